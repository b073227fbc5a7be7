//! Connections that others make: how long they wait for `accept`, and those that find its queue full.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl, column,
    counter, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent, add_up};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::retired::Retired;
use crate::table::Table;
use libbpf_rs::skel::{OpenSkel, Skel};
use libbpf_rs::{Link, ProgramMut};
use netskoop_api::Value;
use netskoop_bpf::listen::{ListenSkelBuilder, types};
use netskoop_bpf::plain;
use netskoop_bpf::tcpconnect::types::histogram_key;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "listen",
    aliases: &[],
    summary: "Connections from others by port: how long they wait for accept, and those that find its queue full.",
    when: "Clients connect and get no answer for a while, or the alarm about listen drops does not tell which server it is.",
    finds: "A program that accepts too late because it is busy, collects garbage or has too few workers; a backlog that is too short.",
    cost: Cost::Low,
    needs: "BTF tracepoint inet_sock_set_state; fentry or kprobes for waits and full queues, or for waits the option system_calls.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(100),
            Duration::from_micros(100)..=Duration::from_secs(60),
            "A connection that waits longer for accept is an event.",
        ),
        OptionDecl {
            name: "max_ports",
            kind: OptionType::Integer { default: 32, min: 1, max: 1000 },
            help: "So many ports are shown by themselves, over all namespaces; the rest is port other.",
        },
        OptionDecl {
            name: SYSTEM_CALLS,
            kind: OptionType::Bool { default: false },
            help: "Where the kernel takes neither fentry nor kprobes: looks at the end of every system call of the node, of which \
                   accept is one. Each system call then takes a tenth of a microsecond longer.",
        },
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

/// What ports that are not shown by themselves are shown as.
const OTHER: &str = "other";

/// The keys of both maps are laid out in the same way.
const _: () = assert!(size_of::<types::listen_key>() == size_of::<histogram_key>());

/// Option for kernels that do not tell of accepted connections by themselves.
pub const SYSTEM_CALLS: &str = "system_calls";
/// What it says of itself on kernels without the hooks for accepted connections.
pub const NO_WAITS: &str = "this kernel takes neither fentry nor kprobes, so that how long connections wait is seen with the option \
                            system_calls only";
/// And without those for dropped ones.
pub const NO_FULL_QUEUES: &str = "full queues are not seen: see the option listeners of tcpsummary";

static MAPS: [CountersMap; 2] = [
    CountersMap { name: "counters", table: &TABLE, fill },
    CountersMap { name: "waits", table: &WAITS, fill: fill_waits },
];

static TABLE: TableDecl = TableDecl {
    name: "listen",
    keys: &["port"],
    columns: &[counter("connections"), counter("full_syn"), counter("full_ack"), counter("abandoned")],
    node: false,
};

static WAITS: TableDecl =
    TableDecl { name: "listen_waits", keys: &["port"], columns: &HISTOGRAM, node: false };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "TCP_ACCEPT_SLOW",
        aliases: &[],
        fields: &["waited_ns"],
        help: "A connection waited for accept longer than the option slow. The process is the one that accepted it at last.",
    },
    EventDecl {
        name: "TCP_ACCEPT_OVERFLOW",
        aliases: &[],
        fields: &["packet", "listener", "backlog", "limit"],
        help: "A packet that makes a connection was dropped because as many connections waited for accept as may; packet: syn, the \
               first of a handshake, or ack, its last one; listener: the address that is listened on.",
    },
];

/// 64 microseconds, 1, 8, 33, 131 and 524 milliseconds, 2 and 8 seconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([5, 9, 12, 14, 16, 18, 20, 22]);

static FULL: [(&str, u16); 2] =
    [("packet=\"syn\"", column(&TABLE, "full_syn")), ("packet=\"ack\"", column(&TABLE, "full_ack"))];

const PORT: &[(&str, usize)] = &[("port", 0)];

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_listen_wait_seconds",
        "Time that connections waited from the end of their handshake until accept took them, by port. How many wait at this \
         moment is in netskoop_tcpsummary_listen_backlog.",
        &WAITS,
        Points::Histogram(&BUCKETS),
    )
    .decimals(9)
    .keys(PORT)
    .core(),
    Family::native(
        "netskoop_listen_connections_total",
        "Connections that others made, by port. Of each namespace 64 ports are counted one by one, the others together as other; a \
         port whose listener was closed ten minutes ago makes room, and begins anew if there is one again.",
        &TABLE,
        one(&TABLE, "connections"),
    )
    .keys(PORT)
    .core(),
    Family::native(
        "netskoop_listen_overflows_total",
        "Packets that were dropped because the accept queue of their port was full (ListenOverflows of /proc/net/netstat has all \
         ports together; netskoop_tcpsummary_listener_drops_total, by address, has what was dropped for other reasons as well). \
         packet: syn, the first one of a handshake, or ack, its last one.",
        &TABLE,
        Points::Cells(&FULL),
    )
    .keys(PORT)
    .core()
    .alarm("the program does not accept fast enough"),
    Family::native(
        "netskoop_listen_abandoned_total",
        "Connections that were reset, or whose server closed its port, while they waited for accept, by port.",
        &TABLE,
        one(&TABLE, "abandoned"),
    )
    .keys(PORT)
    .core()
    .alarm("clients do not wait any longer"),
];

static STATES: Way = Way::new("tp_btf", &["on_state"]);
static ACCEPT_FENTRY: Way = Way::new("fentry", &["fentry_graft"]);
static ACCEPT_KPROBE: Way = Way::new("kprobe", &["kprobe_graft"]);
static SWEEP: Way = Way::new("iter", &["on_sweep"]);
static CALLS: Way = Way::new("tp_btf", &["on_sys_exit"]);
static FULL_FENTRY: Way = Way::new("fentry", &["fentry_request", "fentry_child_v4", "fentry_child_v6"]);
static FULL_KPROBE: Way = Way::new("kprobe", &["kprobe_request", "kprobe_child_v4", "kprobe_child_v6"]);

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("inet_sock_set_state")?;
    let accept = session.choose::<ListenSkelBuilder>(&[&ACCEPT_FENTRY, &ACCEPT_KPROBE]).ok();
    let full = session.choose::<ListenSkelBuilder>(&[&FULL_FENTRY, &FULL_KPROBE]).ok();
    let chosen: Vec<&Way> = [Some(&STATES), accept, full].into_iter().flatten().collect();
    tell_limits(&session, accept.is_some(), full.is_some());
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(ListenSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.sees_all = accept.is_some();
        rodata.sees_full = full.is_some();
    }
    let calls = accept.is_none() && session.tracepoint("sys_exit").is_ok();
    let sweeps = session.choose::<ListenSkelBuilder>(&[&SWEEP]).ok();
    let loaded: Vec<&Way> = chosen.iter().copied().chain(calls.then_some(&CALLS)).chain(sweeps).collect();
    ways::load_only(open.open_object_mut(), &loaded);
    let mut skel = session.load(open)?;
    let mut data = skel.maps.bss_data.take();
    let links = session.attach_ways(skel.object(), &chosen)?;
    let mut accepts =
        Accepts { always: accept.is_some(), calls: calls.then_some(&skel.progs.on_sys_exit), link: None };
    apply(data.as_deref_mut(), session.settings(), &mut accepts);
    let sweep = sweeps.map(|_| session.sweep(skel.object(), "on_sweep", "counters")).transpose()?;
    session.ready(skel.object(), &ways::via(&chosen), &["counters", "waits", "shares"])?;
    let changed = |settings: &Settings| apply(data.as_deref_mut(), settings, &mut accepts);
    session.serve_every(changed, || {
        if let Some(sweep) = &sweep {
            sweep.run_or_say("ports on which nobody listens");
        }
        OFTEN
    });
    drop(links);
    Ok(())
}

/// From one look for ports on which nobody listens any more to the next.
const OFTEN: Duration = Duration::from_secs(30);

fn tell_limits(session: &Session, accept: bool, full: bool) {
    if !accept {
        session.limited(NO_WAITS);
    }
    if !full {
        session.limited(NO_FULL_QUEUES);
    }
}

/// What tells that a connection was accepted.
struct Accepts<'o> {
    /// A hook of its own.
    always: bool,
    /// Else the end of all system calls, while the option is on.
    calls: Option<&'o ProgramMut<'o>>,
    link: Option<Link>,
}

impl Accepts<'_> {
    /// Whether anything tells it from now on.
    fn want(&mut self, system_calls: bool) -> bool {
        if !system_calls {
            self.link = None;
        } else if let (Some(program), None) = (&self.calls, &self.link) {
            match program.attach() {
                Ok(link) => self.link = Some(link),
                Err(error) => tracing::warn!(%error, "listen: the ends of system calls cannot be looked at"),
            }
        }
        self.always || self.link.is_some()
    }
}

fn apply(data: Option<&mut types::bss>, settings: &Settings, accepts: &mut Accepts<'_>) {
    let Some(options) = data.map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
    options.stamp = accepts.want(settings.bool(SYSTEM_CALLS)).into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::listen_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    let fields = match head.kind {
        0 => vec![("waited_ns", Value::Number(event.waited_ns))],
        _ => full(&event)?,
    };
    Some(head.event(decl, tuple, fields, stack))
}

fn full(event: &types::listen_event) -> Option<Vec<(&'static str, Value)>> {
    let end = (event.listener, event.port);
    let listener = record::tuple(event.family, 6, end, end)?;
    let packet = if event.is_ack == 0 { "syn" } else { "ack" };
    Some(vec![
        ("packet", Value::Text(packet.to_owned())),
        ("listener", Value::Text(SocketAddr::new(listener.dst, listener.dport).to_string())),
        ("backlog", Value::Number(event.backlog.into())),
        ("limit", Value::Number(event.limit.into())),
    ])
}

/// What was read of both maps. Ports that are gone stay in `other`, if they were there.
#[derive(Debug, Default)]
struct Read {
    counters: Retired,
    waits: Retired,
}

/// Whether a port is shown by itself. The kernel counts as port 0 what is beyond a namespace's share.
fn is_shown(counters: &Counters<'_>, port: u32) -> bool {
    let shown = counters.integer("max_ports").unwrap_or(32);
    port != 0 && counters.memory.admit(0, port.into(), shown)
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.memory.own(|read: &mut Read| fill_from(counters, &mut read.counters, table));
    let ports = counters.entries.iter().filter_map(|(key, _)| plain::read::<types::listen_key>(key));
    counters.memory.dismiss_others(0, &ports.map(|key| key.port.into()).collect());
}

fn fill_waits(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.memory.own(|read: &mut Read| fill_from(counters, &mut read.waits, table));
}

fn fill_from(counters: &Counters<'_>, read: &mut Retired, table: &mut Table) {
    let port = |key: &[u8]| plain::read::<types::listen_key>(key).map_or(0, |key| key.port);
    read.enter(counters, table.decl().columns.len(), |key| !is_shown(counters, port(key)));
    let there = read.entries().filter_map(|(key, is_other, value)| {
        let key: types::listen_key = plain::read(key)?;
        let name = if is_other { OTHER.into() } else { key.port.to_string().into() };
        Some(((counters.subject)(key.netns, key.cookie)?, [name], value))
    });
    let gone = read
        .sums()
        .filter_map(|((netns, cookie), sum)| Some(((counters.subject)(netns, cookie)?, [OTHER.into()], sum)));
    add_up(table, there.chain(gone).collect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;
    use netskoop_api::OptionValue;
    use std::path::Path;

    fn entry(netns: u32, port: u32, values: [u64; 4]) -> (Vec<u8>, Vec<u8>) {
        ([netns, port, 0, 0].map(u32::to_ne_bytes).concat(), values.map(u64::to_ne_bytes).concat())
    }

    #[test]
    fn ports_that_find_no_room_are_added_up_and_what_is_not_seen_is_no_zero() {
        const NOTHING: u64 = u64::MAX;
        let pairs = [
            entry(5, 80, [1, 2, 3, NOTHING]),
            entry(5, 81, [10, 20, 30, NOTHING]),
            entry(5, 82, [100, 200, 300, NOTHING]),
            entry(6, 80, [7, NOTHING, NOTHING, NOTHING]),
        ];
        let (entries, memory) = (Entries::from_pairs(&pairs), Memory::default());
        let options = Options::from([("max_ports", OptionValue::Integer(1))]);
        let subject = |netns, _| Some(Subject(netns));
        let mut table = Table::new(&TABLE, 100);
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        fill(&Counters::new(&entries, &subject, &options, &memory), &known, &mut table);
        let row = |row| {
            let cells: Vec<_> = (0..4).map(|cell| table.cell(row, cell)).collect();
            (table.subject(row).0, String::from_utf8(table.key(row, 0).to_vec()).unwrap(), cells)
        };
        assert_eq!(table.len(), 3);
        assert_eq!(row(0), (5, "80".to_owned(), vec![Some(1), Some(2), Some(3), None]));
        assert_eq!(row(1), (5, "other".to_owned(), vec![Some(110), Some(220), Some(330), None]));
        assert_eq!(row(2), (6, "80".to_owned(), vec![Some(7), None, None, None]));
    }

    type Pair = (Vec<u8>, Vec<u8>);

    /// The rows that one reading fills in: namespace, port, connections or sum of the waits.
    fn rows(map: &CountersMap, pairs: &[Pair], memory: &Memory) -> Vec<(u32, String, u64)> {
        let (entries, mut table) = (Entries::from_pairs(pairs), Table::new(map.table, 100));
        let options = Options::from([("max_ports", OptionValue::Integer(1))]);
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        (map.fill)(&Counters::new(&entries, &subject, &options, memory), &known, &mut table);
        let row = |row| {
            let port = String::from_utf8(table.key(row, 0).to_vec()).unwrap();
            (table.subject(row).0, port, table.cell(row, 0).unwrap())
        };
        (0..table.len()).map(row).collect()
    }

    #[test]
    fn other_does_not_fall_when_the_kernel_gives_ports_back() {
        let histogram = |netns, port, sum| {
            let (key, _) = entry(netns, port, [0; 4]);
            (
                key,
                (0..HISTOGRAM.len()).flat_map(|at| if at == 0 { sum } else { 0_u64 }.to_ne_bytes()).collect(),
            )
        };
        let counted = |netns, port, count| entry(netns, port, [count, 0, 0, u64::MAX]);
        let makers: [&dyn Fn(u32, u32, u64) -> Pair; 2] = [&counted, &histogram];
        for (map, of) in MAPS.iter().zip(makers) {
            let memory = Memory::default();
            let rows = |pairs: &[_]| rows(map, pairs, &memory);
            let row = |netns, port: &str, count| (netns, port.to_owned(), count);
            let mut pairs = vec![of(5, 80, 1), of(5, 0, 2), of(5, 81, 10), of(5, 82, 20), of(6, 81, 3)];
            let before = [row(5, "80", 1), row(5, "other", 32), row(6, "other", 3)];
            assert_eq!(rows(&pairs), before);
            // A listener in each of them is gone for ten minutes; the namespaces live.
            pairs.truncate(3);
            assert_eq!(rows(&pairs), before);
            pairs.remove(2);
            assert_eq!(rows(&pairs), before);
            // The port that had a series of its own was in no sum.
            pairs.remove(0);
            assert_eq!(rows(&pairs), before[1..]);
            // Another one has its room from when it comes again, and what it had counted before stays where it is. Who has
            // room is decided where connections are counted.
            pairs.push(of(5, 82, 4));
            let port = if map.name == "counters" { row(5, "82", 4) } else { row(5, "other", 36) };
            assert!(rows(&pairs).contains(&port), "{:?}", rows(&pairs));
        }
    }

    #[test]
    fn the_listener_is_named_as_its_address() {
        let mut event = types::listen_event { family: 4, port: 80, is_ack: 1, ..Default::default() };
        let listener = |event: &_| full(event).unwrap()[1].1.clone();
        assert_eq!(listener(&event), Value::Text("0.0.0.0:80".to_owned()));
        event.family = 6;
        assert_eq!(listener(&event), Value::Text("[::]:80".to_owned()));
        assert_eq!(full(&event).unwrap()[0].1, Value::Text("ack".to_owned()));
        event.family = 0;
        assert!(full(&event).is_none());
    }

    #[test]
    fn short_records_are_refused() {
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        let whole = vec![0; size_of::<types::listen_event>()];
        assert!(decode(&whole, &known).is_some());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known).is_none(), "{length} bytes");
        }
    }
}
