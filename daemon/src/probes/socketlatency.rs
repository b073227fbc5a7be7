//! What sockets wait for: data until its application reads it, and what an application has written until it is sent.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, Points, Probe, TableDecl, counter, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::{OpenSkel, Skel};
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::socketlatency::{SocketlatencySkel, SocketlatencySkelBuilder, types};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "socketlatency",
    aliases: &[],
    summary: "How long data waits in a socket until its application reads it, and what an application writes until it is sent.",
    when: "A service answers late although the network is fast, or it is not known whether the application or the network is slow.",
    finds: "An application that does not come to read (too few threads, no CPU left of its quota, a lock), a peer that does not \
            read (a full window), a queue that is too long or Nagle's algorithm on the way out.",
    cost: Cost::Medium,
    needs: "BTF tracepoints sk_data_ready, sock_recv_length, sock_send_length (Linux 6.3), tcp_rcv_space_adjust and net_dev_queue; \
            before, fentry or TCP alone. Of UDP, which is sent at once, only the reading is looked at.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(100),
            Duration::from_millis(1)..=Duration::from_secs(600),
            "Data that is read, or sent, later than this is an event, and so is data that is not read or not sent for so long.",
        ),
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::PROTOCOLS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 4] = [
    CountersMap { name: "counters", table: &SLOW, fill },
    CountersMap { name: "reads", table: &READS, fill: fill_histograms },
    CountersMap { name: "writes", table: &WRITES, fill: fill_histograms },
    CountersMap { name: "blocks", table: &BLOCKS, fill: fill_histograms },
];

static SLOW: TableDecl = TableDecl {
    name: "socketlatency",
    keys: &[],
    columns: &[
        counter("read_1ms"),
        counter("read_100ms"),
        counter("read_300ms"),
        counter("write_1ms"),
        counter("write_100ms"),
        counter("unread"),
        counter("unsent"),
    ],
    node: false,
};

const fn histograms(name: &'static str) -> TableDecl {
    TableDecl { name, keys: &["protocol"], columns: &HISTOGRAM, node: false }
}

static READS: TableDecl = histograms("socketlatency_reads");
static WRITES: TableDecl = histograms("socketlatency_writes");
static BLOCKS: TableDecl = histograms("socketlatency_blocks");

/// In the order of `enum protocol`.
const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 5] = [
    EventDecl {
        name: "SOCKETLAT_READSLOW",
        aliases: &[],
        fields: &["latency_ns"],
        help: "Data waited longer than the option slow before the process read it. The process is the one that read it at last. Of a \
               UDP socket without a peer the sender is not known, and its address is *.",
    },
    EventDecl {
        name: "SOCKETLAT_SENDSLOW",
        aliases: &[],
        fields: &["latency_ns"],
        help: "What the process wrote waited longer than the option slow before the first of it was sent: the peer did not read, or \
               did not acknowledge what was sent before. What a packet has left behind counts from when it was noticed.",
    },
    EventDecl {
        name: "SOCKETLAT_UNREAD",
        aliases: &[],
        fields: &["latency_ns"],
        help: "Data has waited longer than the option slow, and nobody has read it yet. It is looked for every two seconds and told \
               once; SOCKETLAT_READSLOW follows when it is read. The process is the one that read last from the socket, if any has. \
               Of a UDP socket without a peer the sender is that of the oldest datagram.",
    },
    EventDecl {
        name: "SOCKETLAT_UNSENT",
        aliases: &[],
        fields: &["latency_ns"],
        help: "What was written has waited longer than the option slow, and it is not sent yet (TCP): the peer does not read, or does \
               not acknowledge what was sent before. It is looked for every two seconds and told once; SOCKETLAT_SENDSLOW follows \
               when it is sent. The process is the one that wrote last, if any was seen. Without fentry, who is held up in its very \
               first write is not seen.",
    },
    EventDecl {
        name: "SOCKETLAT_BLOCKED",
        aliases: &[],
        fields: &["latency_ns"],
        help: "The process was held up in a write for longer than the option slow, because there was no room in the socket's buffer \
               (TCP, kernels with fentry).",
    },
];

/// 16, 64 and 256 microseconds, 1, 4, 16 and 131 milliseconds, 1 second.
static BUCKETS: [Bucket; 8] = histogram::microseconds([3, 5, 7, 9, 11, 13, 16, 19]);

const fn by_protocol(name: &'static str, help: &'static str, table: &'static TableDecl) -> Family {
    Family::native(name, help, table, Points::Histogram(&BUCKETS)).decimals(9).core().keys(&[("protocol", 0)])
}

const NATIVE: &[Family] = &[
    by_protocol(
        "netskoop_socketlatency_read_seconds",
        "Time that data was ready before its application read it, for each piece that was read. Of a piece that is read in parts \
         the later ones count from the last data that came.",
        &READS,
    ),
    Family::native(
        "netskoop_socketlatency_unread_total",
        "Times that data was found in a socket that had waited longer than the option slow and was not read yet.",
        &SLOW,
        one(&SLOW, "unread"),
    )
    .core(),
    by_protocol(
        "netskoop_socketlatency_write_seconds",
        "Time from the end of a write to the packet with the first byte of it, of writes that were not sent at once (TCP). What a \
         packet has left behind, and what a write that is held up has written, is there only if it waited longer than the option \
         slow.",
        &WRITES,
    ),
    Family::native(
        "netskoop_socketlatency_unsent_total",
        "Times that data was found in a socket that had waited longer than the option slow and was not sent yet (TCP).",
        &SLOW,
        one(&SLOW, "unsent"),
    )
    .core(),
    by_protocol(
        "netskoop_socketlatency_blocked_seconds",
        "Time that threads were held up in writes because there was no room in the socket's buffer (TCP).",
        &BLOCKS,
    ),
];

const READ_1MS: Points = one(&SLOW, "read_1ms");
const READ_100MS: Points = one(&SLOW, "read_100ms");
const WRITE_1MS: Points = one(&SLOW, "write_1ms");
const WRITE_100MS: Points = one(&SLOW, "write_100ms");

const READ_1MS_HELP: &str = "Data that was read 1 ms or more after it was ready.";
const READ_100MS_HELP: &str = "Data that was read 100 ms or more after it was ready.";
const WRITE_1MS_HELP: &str = "Writes of which nothing was sent for 1 ms or longer.";
const WRITE_100MS_HELP: &str = "Writes of which nothing was sent for 100 ms or longer.";

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_socketlatency_read1ms", READ_1MS_HELP, &SLOW, READ_1MS),
    Family::kubeskoop("kubeskoop_socketlatency_read100ms", READ_100MS_HELP, &SLOW, READ_100MS),
    Family::kubeskoop("kubeskoop_socketlatency_write1ms", WRITE_1MS_HELP, &SLOW, WRITE_1MS),
    Family::kubeskoop("kubeskoop_socketlatency_write100ms", WRITE_100MS_HELP, &SLOW, WRITE_100MS),
];

const INSPECTOR: &[Family] = &[
    Family::inspector("inspector_pod_socketlatencyread1ms", READ_1MS_HELP, &SLOW, READ_1MS),
    Family::inspector("inspector_pod_socketlatencyread100ms", READ_100MS_HELP, &SLOW, READ_100MS),
    Family::inspector(
        "inspector_pod_socketlatencyread300ms",
        "Data that was read 300 ms or more after it was ready.",
        &SLOW,
        one(&SLOW, "read_300ms"),
    ),
    Family::inspector("inspector_pod_socketlatencywrite1ms", WRITE_1MS_HELP, &SLOW, WRITE_1MS),
    Family::inspector("inspector_pod_socketlatencywrite100ms", WRITE_100MS_HELP, &SLOW, WRITE_100MS),
];

static READ_TRACEPOINTS: Way = Way::new("tp_btf", &["on_ready", "on_tcp_read", "on_udp_read"]);
static READ_FENTRY: Way =
    Way::new("fentry", &["fentry_ready", "on_tcp_read", "fexit_inet_recvmsg", "fexit_inet6_recvmsg"]);
/// Of TCP alone.
static READ_SEGMENTS: Way = Way::new("tp_btf", &["on_segment", "on_tcp_read"]);
static WRITE_TRACEPOINT: Way = Way::new("tp_btf", &["on_written", "on_queue"]);
static WRITE_FEXIT: Way = Way::new("fentry", &["fexit_sendmsg", "on_queue"]);
static SWEEP: Way = Way::new("iter", &["on_sweep"]);
static BLOCKED_FENTRY: Way = Way::new("fentry", &["fentry_blocks", "fexit_blocks"]);
static BLOCKED_KPROBE: Way = Way::new("kprobe", &["kprobe_blocks", "kretprobe_blocks"]);

/// What it says of itself on kernels without the hooks for the way out.
pub const NO_WRITES: &str = "this kernel does not tell what applications write (Linux 6.3, or fentry)";

/// From one look for data that nobody reads, or that is not sent, to the next.
const LOOK: Duration = Duration::from_secs(2);

fn run(session: Session) -> Result<(), Refused> {
    session.socket_storage()?;
    let chosen = chosen(&session)?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(SocketlatencySkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    let looks = looks(&session);
    let all: Vec<&Way> = chosen.iter().copied().chain(looks).collect();
    ways::load_only(open.open_object_mut(), &all);
    let (mut skel, _links) = session.hook(open, apply)?;
    let sweep = looks.map(|_| session.sweep(skel.object(), "on_sweep", "sockets")).transpose()?;
    session.ready(skel.object(), &ways::via(&chosen), &["counters", "reads", "writes", "blocks"])?;
    session.serve_every(
        |settings| apply(&mut skel, settings),
        || {
            let Some(sweep) = &sweep else { return Duration::MAX };
            sweep.run_or_say("data that nobody reads, or that is not sent");
            LOOK
        },
    );
    Ok(())
}

/// The look for data that nobody reads, or that is not sent, which is no hook.
fn looks(session: &Session) -> Option<&'static Way> {
    let found = session.choose::<SocketlatencySkelBuilder>(&[&SWEEP]);
    if let Err(refused) = &found {
        tracing::debug!("socketlatency without a look for what nobody reads: {refused}");
        session.limited("data that nobody reads, or that is never sent, cannot be looked for on this kernel");
    }
    found.ok()
}

/// The hooks for each side. Without those of reading there is nothing worth it; what else is missing is told.
fn chosen(session: &Session) -> Result<Vec<&'static Way>, Refused> {
    let read =
        session.choose::<SocketlatencySkelBuilder>(&[&READ_TRACEPOINTS, &READ_FENTRY, &READ_SEGMENTS])?;
    if std::ptr::eq(read, &raw const READ_SEGMENTS) {
        session.limited("this kernel does not tell when UDP data is read (Linux 6.3, or fentry)");
    }
    let write = session.choose::<SocketlatencySkelBuilder>(&[&WRITE_TRACEPOINT, &WRITE_FEXIT]);
    if let Err(refused) = &write {
        tracing::debug!("socketlatency without writes: {refused}");
        session.limited(NO_WRITES);
    }
    let blocked = session.choose::<SocketlatencySkelBuilder>(&[&BLOCKED_FENTRY, &BLOCKED_KPROBE]);
    if let Err(refused) = &blocked {
        tracing::debug!("socketlatency without blocked writes: {refused}");
        session.limited("the time that writes are blocked cannot be seen without fentry or kprobes");
    }
    Ok([Some(read), write.ok(), blocked.ok()].into_iter().flatten().collect())
}

fn apply(skel: &mut SocketlatencySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::socketlatency_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let fields = vec![("latency_ns", Value::Number(event.latency_ns))];
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::socketlatency_key = plain::read(key)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [], value))
    });
}

fn fill_histograms(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_histograms(&PROTOCOLS, table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;
    use std::path::Path;

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    #[test]
    fn what_was_slow_is_a_row_of_each_namespace() {
        let entry = |netns: u32, values: [u64; 7]| {
            let key = [&netns.to_ne_bytes()[..], &[0; 4], &9_u64.to_ne_bytes()].concat();
            (key, values.map(u64::to_ne_bytes).concat())
        };
        let pairs = [entry(6, [5, 4, 3, 2, 1, 0, 0]), entry(5, [1, 0, 0, 7, 0, 3, 9]), entry(99, [1; 7])];
        let (entries, options, memory) = (Entries::from_pairs(&pairs), Options::new(), Memory::default());
        let subject = |netns, cookie| (netns < 10 && cookie == 9).then_some(Subject(netns));
        let mut table = Table::new(&SLOW, 100);
        fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
        let row = |row| (table.subject(row).0, [0, 3, 6].map(|column| table.cell(row, column).unwrap()));
        assert_eq!((table.len(), row(0), row(1)), (2, (5, [1, 7, 9]), (6, [5, 2, 0])));
    }

    #[test]
    fn short_records_and_unknown_kinds_are_refused() {
        let whole = vec![0; size_of::<types::socketlatency_event>()];
        assert_eq!(decode(&whole, &known()).unwrap().decl.name, "SOCKETLAT_READSLOW");
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let mut strange = whole;
        strange[std::mem::offset_of!(types::event_head, kind)] = 5;
        assert!(decode(&strange, &known()).is_none());
    }
}
