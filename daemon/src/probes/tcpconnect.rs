//! TCP connections made from here: how long the handshake took, and why some failed.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, Points, Probe, TableDecl, counter, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::flows::{self, FLOW_COLUMNS, FLOW_KEYS};
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::OpenSkel;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::tcpconnect::{TcpconnectSkel, TcpconnectSkelBuilder, types};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcpconnect",
    aliases: &[],
    summary: "TCP connections made from here: time of the handshake, and failures by cause with the process that wanted it.",
    when: "Clients say \"connection refused\", \"timed out\" or \"cannot assign requested address\", or are slow at the start.",
    finds: "A server that is down (refused) or behind a silent firewall (timeout), a lost SYN (handshakes of 1, 3, 7 seconds), \
            local ports that are used up (no_port), a route that is missing or forbids it (no_route), a program with too short a \
            time-out of its own (cancelled).",
    cost: Cost::Low,
    needs: "BTF tracepoint inet_sock_set_state; fentry or kprobes for connections that end before they begin, for lack of a route \
            or of an address (elsewhere netskoop_ip_out_no_routes_total counts the former). What the kernel or a BPF program \
            refuses before it looks for a route is not seen.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(900),
            Duration::from_millis(1)..=Duration::from_secs(600),
            "A handshake that takes longer is an event; so is an attempt that was given up after so long.",
        ),
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
        flows::OPTION,
        flows::MAX_OPTION,
    ],
    families: &[NATIVE],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

/// What it says of itself on kernels without hooks at the end of connect().
const NO_CALLS: &str = "this kernel takes neither fentry nor kprobes, so that connections for which there is no route or no address \
                            are not seen: netskoop_ip_out_no_routes_total counts the former";

static MAPS: [CountersMap; 3] = [
    CountersMap { name: "counters", table: &FAILURES, fill },
    CountersMap { name: "handshakes", table: &HANDSHAKES, fill: fill_handshakes },
    CountersMap { name: "counters", table: &PEERS, fill: fill_peers },
];

static FAILURES: TableDecl =
    TableDecl { name: "tcpconnect", keys: &["cause"], columns: &[counter("failures")], node: false };

static HANDSHAKES: TableDecl =
    TableDecl { name: "tcpconnect_handshakes", keys: &[], columns: &HISTOGRAM, node: false };

/// The mark is the cause.
static PEERS: TableDecl =
    TableDecl { name: "tcpconnect_peers", keys: &FLOW_KEYS, columns: &FLOW_COLUMNS, node: false };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "TCP_CONNECT_FAILED",
        aliases: &[],
        fields: &["reason", "error", "latency_ns"],
        help: "A connection could not be made. reason: refused, timeout, unreachable, no_port (all local ports to that peer \
               are in use), cancelled (closed by the program after a long wait), no_route (this host has no route to the peer, or \
               one that forbids it: unreachable, prohibit, blackhole), no_address (it has no address to send from), other; error is \
               the errno.",
    },
    EventDecl {
        name: "TCP_CONNECT_SLOW",
        aliases: &[],
        fields: &["latency_ns"],
        help: "The handshake of a connection took longer than the option slow.",
    },
];

/// 128 and 512 microseconds, 2, 8, 33 and 131 milliseconds, 1 and 4 seconds: a lost SYN takes one second or more.
static BUCKETS: [Bucket; 8] = histogram::microseconds([6, 8, 10, 12, 14, 16, 19, 21]);

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_tcpconnect_handshake_seconds",
        "Time from connect() to the answer of the peer, of connections that were made.",
        &HANDSHAKES,
        Points::Histogram(&BUCKETS),
    )
    .decimals(6)
    .core(),
    Family::native(
        "netskoop_tcpconnect_failures_total",
        "Connections that could not be made. cause: refused, timeout, unreachable, no_port (all local ports to that peer are in \
         use), cancelled (closed by the program before there was an answer), no_route (this host has no route to the peer, or one \
         that forbids it), no_address (it has no address to send from), other. unreachable is what the network answered.",
        &FAILURES,
        one(&FAILURES, "failures"),
    )
    .keys(&[("cause", 0)])
    .core(),
    Family::native(
        "netskoop_tcpconnect_peer_failures_total",
        "Connections that could not be made, by peer and cause for those with the largest numbers; the rest of each cause is \
         dst=\"other\". All of an entity's together grow by as much as its netskoop_tcpconnect_failures_total; what a series \
         has shown ends with it.",
        &PEERS,
        one(&PEERS, "packets"),
    )
    .keys(&[("dst", 3), ("dport", 4), ("cause", flows::MARK)])
    .fold()
    .option(flows::OPTION.name),
];

/// In the order of `enum cause`.
const CAUSES: [&str; 8] =
    ["other", "refused", "timeout", "unreachable", "cancelled", "no_port", "no_route", "no_address"];

static STATES: Way = Way::new("tp_btf", &["on_state"]);
static CALLS_FENTRY: Way = Way::new("fentry", &["fexit_v4", "fexit_v6"]);
static CALLS_KPROBE: Way = Way::new("kprobe", &["kprobe_v4", "kprobe_v6", "kretprobe_v4", "kretprobe_v6"]);
/// To see the end of connect().
pub static CALLS: [&Way; 2] = [&CALLS_FENTRY, &CALLS_KPROBE];

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("inet_sock_set_state")?;
    let calls = session.choose::<TcpconnectSkelBuilder>(&CALLS).ok();
    if calls.is_none() {
        session.limited(NO_CALLS);
    }
    let chosen: Vec<&Way> = [Some(&STATES), calls].into_iter().flatten().collect();
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TcpconnectSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.sees_calls = calls.is_some();
    }
    flows::make_room(&session, &mut open.maps.flows)?;
    ways::load_only(open.open_object_mut(), &chosen);
    session.run(open, apply, &ways::via(&chosen), &["counters", "handshakes", flows::MAP, "shares"])
}

fn apply(skel: &mut TcpconnectSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
    options.flows = settings.bool(flows::OPTION.name).into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tcpconnect_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let cause = CAUSES.get(usize::from(event.cause))?;
    let mut fields = Vec::with_capacity(3);
    if decl.fields.contains(&"reason") {
        fields.push(("reason", Value::Text((*cause).to_owned())));
    }
    if event.error > 0 {
        fields.push(("error", Value::Number(event.error.into())));
    }
    fields.push(("latency_ns", Value::Number(event.latency_ns)));
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::tcpconnect_key = plain::read(key)?;
        let cause = *CAUSES.get(usize::try_from(key.cause).ok()?)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [cause.into()], value))
    });
}

fn fill_handshakes(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_histograms(&[], table);
}

fn fill_peers(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    // Each failure is in one of these, and under this cause among the flows.
    let failures = counters.entries.iter().filter_map(|(key, value)| {
        let key: types::tcpconnect_key = plain::read(key)?;
        let failures = u64::from_ne_bytes(*value.first_chunk()?);
        Some(((key.netns, key.cookie, u16::try_from(key.cause).ok()?), [failures; 2]))
    });
    flows::fill(counters, &flows::totals(flows::sums(failures)), &CAUSES, table);
}
