//! Probe `sock`: sockets in use and the memory they take.

use crate::declare::{Cost, Family, Points, Probe, Scope, column};
use crate::facts::{Cells, Fact, cells, fact, native, one};
use crate::sources::columns::{SOCKSTAT, SOCKSTAT_NODE};

const FACTS: [Fact; 8] = [
    fact("sockets.used", "netskoop_sock_used", "Sockets of any kind in the namespace (sockets: used of /proc/net/sockstat).")
        .core()
        .alarm("sockets leak"),
    fact(
        "TCP.inuse",
        "netskoop_sock_tcp_in_use",
        "TCP sockets in use, without those in TIME_WAIT (TCP: inuse of /proc/net/sockstat for IPv4, TCP6: inuse of /proc/net/sockstat6 for IPv6).",
    )
    .v6("TCP6.inuse"),
    fact(
        "TCP.tw",
        "netskoop_sock_tcp_time_wait",
        "TCP sockets in TIME_WAIT, IPv4 and IPv6 together (TCP: tw of /proc/net/sockstat).",
    ),
    fact(
        "UDP.inuse",
        "netskoop_sock_udp_in_use",
        "UDP sockets in use (UDP: inuse of /proc/net/sockstat for IPv4, UDP6: inuse of /proc/net/sockstat6 for IPv6).",
    )
    .v6("UDP6.inuse"),
    fact(
        "UDPLITE.inuse",
        "netskoop_sock_udp_lite_in_use",
        "UDP-Lite sockets in use (UDPLITE: inuse of /proc/net/sockstat for IPv4, UDPLITE6: inuse of /proc/net/sockstat6 for IPv6).",
    )
    .v6("UDPLITE6.inuse"),
    fact(
        "RAW.inuse",
        "netskoop_sock_raw_in_use",
        "Raw IP sockets in use (RAW: inuse of /proc/net/sockstat for IPv4, RAW6: inuse of /proc/net/sockstat6 for IPv6).",
    )
    .v6("RAW6.inuse"),
    fact(
        "FRAG.inuse",
        "netskoop_sock_fragment_queues",
        "IP packets that wait for more fragments (FRAG: inuse of /proc/net/sockstat for IPv4, FRAG6: inuse of /proc/net/sockstat6 for IPv6).",
    )
    .v6("FRAG6.inuse"),
    fact(
        "FRAG.memory",
        "netskoop_sock_fragment_memory_bytes",
        "Bytes of memory that waiting IP fragments take (FRAG: memory of /proc/net/sockstat for IPv4, FRAG6: memory of /proc/net/sockstat6 for IPv6).",
    )
    .v6("FRAG6.memory"),
];

const NODE: [Fact; 4] = [
    fact(
        "TCP.orphan",
        "netskoop_sock_node_tcp_orphans",
        "TCP sockets of the node that no process holds any more (TCP: orphan of /proc/net/sockstat).",
    )
    .alarm("net.ipv4.tcp_max_orphans may be reached"),
    fact(
        "TCP.alloc",
        "netskoop_sock_node_tcp_allocated",
        "TCP sockets of the node that are allocated, in any state (TCP: alloc of /proc/net/sockstat).",
    )
    .alarm("sockets leak"),
    fact(
        "TCP.mem_bytes",
        "netskoop_sock_node_tcp_memory_bytes",
        "Bytes of memory in TCP buffers of the node (TCP: mem of /proc/net/sockstat, which counts pages).",
    )
    .alarm("net.ipv4.tcp_mem may be reached"),
    fact(
        "UDP.mem_bytes",
        "netskoop_sock_node_udp_memory_bytes",
        "Bytes of memory in UDP buffers of the node (UDP: mem of /proc/net/sockstat, which counts pages).",
    )
    .alarm("net.ipv4.udp_mem may be reached"),
];

const fn level(key: &str) -> u16 {
    column(&SOCKSTAT_NODE, key)
}

static TCP_LIMITS: [(&str, u16); 3] = [
    ("level=\"min\"", level("tcp_mem.min")),
    ("level=\"pressure\"", level("tcp_mem.pressure")),
    ("level=\"max\"", level("tcp_mem.max")),
];
static UDP_LIMITS: [(&str, u16); 3] = [
    ("level=\"min\"", level("udp_mem.min")),
    ("level=\"pressure\"", level("udp_mem.pressure")),
    ("level=\"max\"", level("udp_mem.max")),
];

/// The settings behind the numbers of the node.
static LIMITS: [Family; 3] = [
    Family::native(
        "netskoop_sock_node_tcp_memory_limit_bytes",
        "Limits of the memory in TCP buffers of the node: below min nothing is done, above pressure buffers shrink, max is the end (/proc/sys/net/ipv4/tcp_mem, which counts pages).",
        &SOCKSTAT_NODE,
        Points::Cells(&TCP_LIMITS),
    ),
    Family::native(
        "netskoop_sock_node_udp_memory_limit_bytes",
        "Limits of the memory in UDP buffers of the node: below min nothing is done, max is the end (/proc/sys/net/ipv4/udp_mem, which counts pages).",
        &SOCKSTAT_NODE,
        Points::Cells(&UDP_LIMITS),
    ),
    Family::native(
        "netskoop_sock_node_tcp_max_orphans",
        "TCP sockets that no process holds any more: so many the node may have (/proc/sys/net/ipv4/tcp_max_orphans).",
        &SOCKSTAT_NODE,
        one(&SOCKSTAT_NODE, "tcp_max_orphans"),
    ),
];

static CELLS: [Cells; 8] = cells(&SOCKSTAT, &FACTS);
static NODE_CELLS: [Cells; 4] = cells(&SOCKSTAT_NODE, &NODE);
static NATIVE: [Family; 8] = native(&SOCKSTAT, &FACTS, &CELLS);
static NATIVE_NODE: [Family; 4] = native(&SOCKSTAT_NODE, &NODE, &NODE_CELLS);

/// The older systems added up both IP versions.
static IN_USE: [u16; 2] = [column(&SOCKSTAT, "TCP.inuse"), column(&SOCKSTAT, "TCP6.inuse")];

const IN_USE_HELP: &str = "TCP sockets of the host's namespace in use, IPv4 and IPv6 together (TCP: inuse of /proc/net/sockstat and TCP6: inuse of /proc/net/sockstat6).";
const TW_HELP: &str = "TCP sockets of the host's namespace in TIME_WAIT (TCP: tw of /proc/net/sockstat).";
const ORPHAN_HELP: &str =
    "TCP sockets of the node that no process holds any more (TCP: orphan of /proc/net/sockstat).";
const ALLOC_HELP: &str = "TCP sockets of the node that are allocated (TCP: alloc of /proc/net/sockstat).";
const MEM_HELP: &str = "Pages of memory in TCP buffers of the node (TCP: mem of /proc/net/sockstat).";

/// They knew the host only.
static KUBESKOOP: [Family; 5] = [
    Family::kubeskoop("kubeskoop_sock_inuse", IN_USE_HELP, &SOCKSTAT, Points::Sum(&IN_USE))
        .scope(Scope::HostOnly),
    Family::kubeskoop("kubeskoop_sock_tw", TW_HELP, &SOCKSTAT, one(&SOCKSTAT, "TCP.tw"))
        .scope(Scope::HostOnly),
    Family::kubeskoop(
        "kubeskoop_sock_orphan",
        ORPHAN_HELP,
        &SOCKSTAT_NODE,
        one(&SOCKSTAT_NODE, "TCP.orphan"),
    )
    .scope(Scope::HostOnly),
    Family::kubeskoop("kubeskoop_sock_alloc", ALLOC_HELP, &SOCKSTAT_NODE, one(&SOCKSTAT_NODE, "TCP.alloc"))
        .scope(Scope::HostOnly),
    Family::kubeskoop("kubeskoop_sock_mem", MEM_HELP, &SOCKSTAT_NODE, one(&SOCKSTAT_NODE, "TCP.mem"))
        .scope(Scope::HostOnly),
];

static INSPECTOR: [Family; 5] = [
    Family::inspector("inspector_pod_sockinuse", IN_USE_HELP, &SOCKSTAT, Points::Sum(&IN_USE))
        .scope(Scope::HostOnly),
    Family::inspector("inspector_pod_socktw", TW_HELP, &SOCKSTAT, one(&SOCKSTAT, "TCP.tw"))
        .scope(Scope::HostOnly),
    Family::inspector(
        "inspector_pod_sockorphan",
        ORPHAN_HELP,
        &SOCKSTAT_NODE,
        one(&SOCKSTAT_NODE, "TCP.orphan"),
    )
    .scope(Scope::HostOnly),
    Family::inspector(
        "inspector_pod_sockalloc",
        ALLOC_HELP,
        &SOCKSTAT_NODE,
        one(&SOCKSTAT_NODE, "TCP.alloc"),
    )
    .scope(Scope::HostOnly),
    Family::inspector("inspector_pod_sockmem", MEM_HELP, &SOCKSTAT_NODE, one(&SOCKSTAT_NODE, "TCP.mem"))
        .scope(Scope::HostOnly),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "sock",
    aliases: &[],
    summary: "Sockets in use per namespace, and TCP orphans and socket memory of the node.",
    when: "Always: sockets that leak, TIME_WAIT that piles up, TCP memory that runs out.",
    finds: "Socket leaks, memory that grows with them, connections that fail or are reset because TCP memory is used up.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/sockstat, net/sockstat6 for IPv6, and /proc/sys/net/ipv4 for the limits.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &NATIVE_NODE, &LIMITS, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
