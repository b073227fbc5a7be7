//! Probe `tcpsummary`: TCP connections by state, their queues, and the queues of those that wait for `accept`.

use crate::declare::{Cost, Family, OptionDecl, OptionType, Points, Probe, column};
use crate::facts::one;
use crate::sources::sockets::{
    LISTEN_LIMIT, LISTEN_SOCKETS, LISTENERS, MILLISECONDS, TCP_SOCKETS, TOTAL_MILLISECONDS,
};

const fn connection(key: &str) -> u16 {
    column(&TCP_SOCKETS, key)
}

/// The states that tell of trouble first.
static IMPORTANT: [(&str, u16); 4] = [
    ("state=\"established\"", connection("established")),
    ("state=\"syn_sent\"", connection("syn_sent")),
    ("state=\"syn_recv\"", connection("syn_recv")),
    ("state=\"close_wait\"", connection("close_wait")),
];

static OTHERS: [(&str, u16); 7] = [
    ("state=\"fin_wait1\"", connection("fin_wait1")),
    ("state=\"fin_wait2\"", connection("fin_wait2")),
    ("state=\"time_wait\"", connection("time_wait")),
    ("state=\"close\"", connection("close")),
    ("state=\"last_ack\"", connection("last_ack")),
    ("state=\"listen\"", connection("listen")),
    ("state=\"closing\"", connection("closing")),
];

static QUEUES: [(&str, u16); 2] = [
    ("queue=\"tx\"", connection("established.tx_queue")),
    ("queue=\"rx\"", connection("established.rx_queue")),
];

static ALL_QUEUES: [(&str, u16); 2] =
    [("queue=\"tx\"", connection("tx_queue")), ("queue=\"rx\"", connection("rx_queue"))];

const CONNECTIONS_HELP: &str = "TCP sockets by state, IPv4 and IPv6 together; of state listen, those that wait for connections (State of `ss -tan`, over sock_diag).";

static NATIVE: [Family; 10] = [
    Family::native("netskoop_tcpsummary_connections", CONNECTIONS_HELP, &TCP_SOCKETS, Points::Cells(&IMPORTANT))
        .core()
        .alarm("close_wait: the program does not close; syn_sent, syn_recv: the other side does not answer"),
    Family::native("netskoop_tcpsummary_connections", CONNECTIONS_HELP, &TCP_SOCKETS, Points::Cells(&OTHERS)),
    Family::native(
        "netskoop_tcpsummary_queue_bytes",
        "Bytes in the queues of established TCP connections: tx was sent and is not acknowledged, or waits to be sent; rx was received and is not read (Send-Q and Recv-Q of `ss -tan`, over sock_diag).",
        &TCP_SOCKETS,
        Points::Cells(&QUEUES),
    )
    .core()
    .alarm("rx: the program does not read; tx: the network or the other side is slow"),
    Family::native(
        "netskoop_tcpsummary_queue_all_bytes",
        "Bytes in the queues of TCP sockets of every state but listen (Send-Q and Recv-Q of `ss -tan`, over sock_diag).",
        &TCP_SOCKETS,
        Points::Cells(&ALL_QUEUES),
    ),
    Family::native(
        "netskoop_tcpsummary_retransmitting_connections",
        "TCP connections, also unfinished ones, that have sent something again after a time-out and still have no answer (timer on with retransmissions in `ss -tano`, over sock_diag).",
        &TCP_SOCKETS,
        one(&TCP_SOCKETS, "retransmitting"),
    )
    .alarm("packets are lost, or the other side is gone"),
    Family::native(
        "netskoop_tcpsummary_zero_window_connections",
        "TCP connections that have something to send, nothing under way, and ask whether the other side has room again (timer persist in `ss -tano`, over sock_diag).",
        &TCP_SOCKETS,
        one(&TCP_SOCKETS, "zero_window_probes"),
    )
    .alarm("the other side does not read"),
    Family::native(
        "netskoop_tcpsummary_listen_backlog",
        "Connections that wait for accept, all listening sockets together (Recv-Q of `ss -tln`, over sock_diag).",
        &LISTEN_SOCKETS,
        one(&LISTEN_SOCKETS, "backlog"),
    )
    .alarm("the program does not accept fast enough"),
    Family::native(
        "netskoop_tcpsummary_listen_backlog_limit",
        "Connections that may wait for accept, all listening sockets together (Send-Q of `ss -tln`, over sock_diag).",
        &LISTEN_SOCKETS,
        one(&LISTEN_SOCKETS, "backlog_limit"),
    ),
    Family::native(
        "netskoop_tcpsummary_listen_drops_total",
        "Packets that listening sockets dropped, closed ones included, mostly because the accept queue was full (d of skmem in `ss -tlnm`, over sock_diag).",
        &LISTEN_SOCKETS,
        one(&LISTEN_SOCKETS, "drops"),
    )
    .alarm("the accept queue is full"),
    Family::native(
        "netskoop_tcpsummary_listen_backlog_used_ratio",
        "How full the fullest accept queue is; 1 means that new connections are refused (Recv-Q over Send-Q plus one of `ss -tln`, over sock_diag).",
        &LISTEN_LIMIT,
        one(&LISTEN_LIMIT, "used_ppm"),
    )
    .decimals(6)
    .alarm("the program does not accept fast enough"),
];

const LISTENER: &[(&str, usize)] = &[("listener", 0)];

static SPLIT: [Family; 3] = [
    Family::native(
        "netskoop_tcpsummary_listener_backlog",
        "Connections that wait for accept, by the address that is listened on (Recv-Q of `ss -tln`, over sock_diag).",
        &LISTENERS,
        one(&LISTENERS, "backlog"),
    )
    .keys(LISTENER)
    .core()
    .option("listeners")
    .alarm("the program does not accept fast enough"),
    Family::native(
        "netskoop_tcpsummary_listener_backlog_limit",
        "Connections that may wait for accept, by the address that is listened on (Send-Q of `ss -tln`, over sock_diag).",
        &LISTENERS,
        one(&LISTENERS, "backlog_limit"),
    )
    .keys(LISTENER)
    .core()
    .option("listeners"),
    Family::native(
        "netskoop_tcpsummary_listener_drops_total",
        "Packets that listening sockets dropped, by the address that is listened on (d of skmem in `ss -tlnm`, over sock_diag).",
        &LISTENERS,
        one(&LISTENERS, "drops"),
    )
    .keys(LISTENER)
    .core()
    .option("listeners")
    .alarm("the accept queue is full"),
];

const ESTABLISHED: &str = "TCP connections in state ESTABLISHED (over sock_diag).";
const TIME_WAIT: &str = "TCP connections in state TIME_WAIT (over sock_diag).";
const CLOSE_WAIT: &str = "TCP connections in state CLOSE_WAIT (over sock_diag).";
const SYN_SENT: &str = "TCP connections in state SYN_SENT (over sock_diag).";
const SYN_RECV: &str = "TCP connections in state SYN_RECV (over sock_diag).";
const TX: &str = "Bytes in the send queues of TCP sockets of every state but LISTEN (over sock_diag).";
const RX: &str = "Bytes in the receive queues of TCP sockets of every state but LISTEN (over sock_diag).";
const BACKLOG: &str = "Connections that wait for accept, all listening sockets together (over sock_diag).";

const fn kubeskoop(name: &'static str, help: &'static str, key: &str) -> Family {
    Family::kubeskoop(name, help, &TCP_SOCKETS, one(&TCP_SOCKETS, key))
}

const fn inspector(name: &'static str, help: &'static str, key: &str) -> Family {
    Family::inspector(name, help, &TCP_SOCKETS, one(&TCP_SOCKETS, key))
}

/// The last one is a name of the newest user document, which no build of KubeSkoop showed.
static KUBESKOOP: [Family; 8] = [
    kubeskoop("kubeskoop_tcpsummary_tcpestablishedconn", ESTABLISHED, "established"),
    kubeskoop("kubeskoop_tcpsummary_tcptimewaitconn", TIME_WAIT, "time_wait"),
    kubeskoop("kubeskoop_tcpsummary_tcpclosewaitconn", CLOSE_WAIT, "close_wait"),
    kubeskoop("kubeskoop_tcpsummary_tcpsynsentconn", SYN_SENT, "syn_sent"),
    kubeskoop("kubeskoop_tcpsummary_tcpsynrecvconn", SYN_RECV, "syn_recv"),
    kubeskoop("kubeskoop_tcpsummary_tcptxqueue", TX, "tx_queue"),
    kubeskoop("kubeskoop_tcpsummary_tcprxqueue", RX, "rx_queue"),
    kubeskoop("kubeskoop_pod_tcpsummarytcptimewaitconn", TIME_WAIT, "time_wait"),
];

/// The last one was declared and never shown.
static INSPECTOR: [Family; 8] = [
    inspector("inspector_pod_tcpsummarytcpestablishedconn", ESTABLISHED, "established"),
    inspector("inspector_pod_tcpsummarytcptimewaitconn", TIME_WAIT, "time_wait"),
    inspector("inspector_pod_tcpsummarytcpclosewaitconn", CLOSE_WAIT, "close_wait"),
    inspector("inspector_pod_tcpsummarytcpsynsentconn", SYN_SENT, "syn_sent"),
    inspector("inspector_pod_tcpsummarytcpsynrecvconn", SYN_RECV, "syn_recv"),
    inspector("inspector_pod_tcpsummarytcptxqueue", TX, "tx_queue"),
    inspector("inspector_pod_tcpsummarytcprxqueue", RX, "rx_queue"),
    Family::inspector(
        "inspector_pod_tcpsummarytcplistenbacklog",
        BACKLOG,
        &LISTEN_SOCKETS,
        one(&LISTEN_SOCKETS, "backlog"),
    ),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcpsummary",
    aliases: &[],
    summary: "TCP connections by state, bytes in their queues, and how full the accept queues are.",
    when: "Always: connections that fail or are slow now and then, programs that hang.",
    finds: "Programs that do not read, accept or close, which show as full queues, drops and CLOSE_WAIT; peers that do not answer.",
    cost: Cost::Medium,
    needs: "The kernel's tcp_diag, asked over netlink (sock_diag), and /proc/thread-self/net/sockstat inside the namespace.",
    default_on: true,
    section: None,
    options: &[
        OptionDecl {
            name: "listeners",
            kind: OptionType::Bool { default: false },
            help: "Shows the accept queue of each address that is listened on under netskoop_tcpsummary_listener_*, at most 32 per namespace; the rest is listener other.",
        },
        OptionDecl {
            name: "max_milliseconds",
            // A read of a second counts as hanging.
            kind: OptionType::Integer { default: MILLISECONDS, min: 1, max: 900 },
            help: "Time for the connections of one namespace; where there are too many for it, they are left out of the answer and the collection is counted as late. A million connections take about a second.",
        },
        OptionDecl {
            name: "max_total_milliseconds",
            kind: OptionType::Integer { default: TOTAL_MILLISECONDS, min: 1, max: 10_000 },
            help: "Time for the connections of all namespaces in a collection, since the kernel goes through those of the whole node once for each namespace; where it does not suffice, each collection shows those that the one before left out, and is counted as late.",
        },
    ],
    families: &[&NATIVE, &SPLIT, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
