//! Softirqs: how long they waited for their CPU, and how long they ran.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, Only, OptionDecl, OptionType, Points, Probe, TableDecl,
    counter, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent, copy_words};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::{Subject, Table};
use netskoop_api::{OptionValue, Value};
use netskoop_bpf::plain;
use netskoop_bpf::softirq::{SoftirqSkel, SoftirqSkelBuilder, types};
use netskoop_bpf::tcpconnect::types::histogram_key;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "softirq",
    aliases: &["net_softirq", "netsoftirq"],
    summary: "Softirqs: how long they waited for their CPU and how long they ran, with the task that was on the CPU meanwhile.",
    when: "Packets are late now and then on a node whose network is fine, or a CPU is busy with softirqs.",
    finds: "A real-time task or a kernel section that keeps a CPU for itself (schedule), a packet filter with very many rules or a \
            driver that takes too much at once (execution), a virtual CPU that its host does not run (both).",
    cost: Cost::Medium,
    needs: "BTF tracepoints softirq_raise, softirq_entry, softirq_exit and sched_switch.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(10),
            Duration::from_micros(100)..=Duration::from_secs(60),
            "A softirq that waits or runs longer is an event.",
        ),
        OptionDecl {
            name: "vectors",
            kind: OptionType::List {
                default: &["net_tx", "net_rx"],
                max: VECTORS.len(),
                what: "a softirq: hi, timer, net_tx, net_rx, block, irq_poll, tasklet, sched, hrtimer or rcu",
                check: is_vector,
            },
            help: "Which softirqs are looked at; all if empty.",
        },
        OptionDecl {
            name: "per_cpu",
            kind: OptionType::Bool { default: false },
            help: "Shows each CPU on its own under netskoop_softirq_cpu_*.",
        },
        OptionDecl {
            name: "stack",
            kind: OptionType::Bool { default: false },
            help: "Adds the kernel stack to each event, which costs several microseconds each: where a softirq that was late was \
                   let in at last.",
        },
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

/// By the kernel's numbers.
const VECTORS: [&str; 10] =
    ["hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu"];

static MAPS: [CountersMap; 3] = [
    CountersMap { name: "counters", table: &SLOW, fill },
    CountersMap { name: "schedule", table: &SCHEDULE, fill: fill_histograms },
    CountersMap { name: "execution", table: &EXECUTION, fill: fill_histograms },
];

static SLOW: TableDecl = TableDecl {
    name: "softirq",
    keys: &["vector"],
    columns: &[counter("late"), counter("late_100ms"), counter("longer"), counter("longer_100ms")],
    node: true,
};

const KEYS: &[&str] = &["vector", "cpu"];

static SCHEDULE: TableDecl =
    TableDecl { name: "softirq_schedule", keys: KEYS, columns: &HISTOGRAM, node: true };

static EXECUTION: TableDecl =
    TableDecl { name: "softirq_execution", keys: KEYS, columns: &HISTOGRAM, node: true };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "SOFTIRQ_SCHED_SLOW",
        aliases: &["SOFTIRQ_SCHED_100MS", "NETSOFTIRQ_SCHED_SLOW", "NETSOFTIRQ_SCHED_100MS"],
        fields: &["type", "cpu", "latency_ns", "held_ns"],
        help: "A softirq had to wait longer than the option slow. The process is the one that was on the CPU for the longest part \
               of the wait, which held_ns tells; without a process the CPU was idle, or an interrupt took it.",
    },
    EventDecl {
        name: "SOFTIRQ_EXEC_SLOW",
        aliases: &[
            "SOFTIRQ_EXCUTE_SLOW",
            "SOFTIRQ_EXCUTE_100MS",
            "NETSOFTIRQ_EXCUTE_SLOW",
            "NETSOFTIRQ_EXCUTE_100MS",
        ],
        fields: &["type", "cpu", "latency_ns"],
        help: "A softirq ran longer than the option slow.",
    },
];

/// 16, 64 and 256 microseconds, 1, 4, 16, 65 and 262 milliseconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([3, 5, 7, 9, 11, 13, 15, 17]);

const WAITED: &str = "Time from the raise of a softirq to its run, on all CPUs. What was raised while a run of the same was about to \
                      begin is not measured, so that there are fewer of these than runs.";
const RAN: &str = "Time that the runs of a softirq took, interrupts in between included, on all CPUs.";

const fn by_vector(name: &'static str, help: &'static str, table: &'static TableDecl) -> Family {
    Family::native(name, help, table, Points::Histogram(&BUCKETS))
        .decimals(9)
        .core()
        .keys(&[("vector", 0)])
        .fold()
}

const fn by_cpu(name: &'static str, help: &'static str, table: &'static TableDecl) -> Family {
    Family::native(name, help, table, Points::Histogram(&BUCKETS))
        .decimals(9)
        .core()
        .keys(&[("vector", 0), ("cpu", 1)])
        .option("per_cpu")
}

const NATIVE: &[Family] = &[
    by_vector("netskoop_softirq_schedule_seconds", WAITED, &SCHEDULE),
    by_vector("netskoop_softirq_execution_seconds", RAN, &EXECUTION),
    by_cpu(
        "netskoop_softirq_cpu_schedule_seconds",
        "Time from the raise of a softirq to its run, by CPU.",
        &SCHEDULE,
    ),
    by_cpu(
        "netskoop_softirq_cpu_execution_seconds",
        "Time that the runs of a softirq took, interrupts in between included, by CPU.",
        &EXECUTION,
    ),
];

const LATE: Points = one(&SLOW, "late");
const LATE_100MS: Points = one(&SLOW, "late_100ms");
const LONGER: Points = one(&SLOW, "longer");
const LONGER_100MS: Points = one(&SLOW, "longer_100ms");

const LATE_HELP: &str = "Softirqs that had to wait 10 ms or longer.";
const LATE_100MS_HELP: &str = "Softirqs that had to wait 100 ms or longer.";
const LONGER_HELP: &str = "Softirqs that ran 10 ms or longer.";
const LONGER_100MS_HELP: &str = "Softirqs that ran 100 ms or longer.";

const OLD_KEYS: &[(&str, usize)] = &[("softirq_type", 0)];

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_softirq_schedslow", LATE_HELP, &SLOW, LATE).keys(OLD_KEYS),
    Family::kubeskoop("kubeskoop_softirq_schedslow100ms", LATE_100MS_HELP, &SLOW, LATE_100MS).keys(OLD_KEYS),
    Family::kubeskoop("kubeskoop_softirq_excuteslow", LONGER_HELP, &SLOW, LONGER).keys(OLD_KEYS),
    Family::kubeskoop("kubeskoop_softirq_excuteslow100ms", LONGER_100MS_HELP, &SLOW, LONGER_100MS)
        .keys(OLD_KEYS),
];

/// A histogram of the older system's closed build: of the network's softirqs alone, without a label for them.
const fn closed(name: &'static str, table: &'static TableDecl, help: &'static str) -> Family {
    let network = Only { key: 0, values: &["net_tx", "net_rx"], include: true };
    Family::inspector(name, help, table, Points::Slots).only(network).fold()
}

const WAITED_SLOTS: &str =
    "Network softirqs by the time that they had to wait; le is the binary logarithm of the microseconds.";
const RAN_SLOTS: &str =
    "Network softirqs by the time that they ran; le is the binary logarithm of the microseconds.";

const INSPECTOR: &[Family] = &[
    Family::inspector("inspector_pod_net_softirq_schedslow", LATE_HELP, &SLOW, LATE).keys(OLD_KEYS),
    Family::inspector("inspector_pod_net_softirq_schedslow100ms", LATE_100MS_HELP, &SLOW, LATE_100MS)
        .keys(OLD_KEYS),
    Family::inspector("inspector_pod_net_softirq_excuteslow", LONGER_HELP, &SLOW, LONGER).keys(OLD_KEYS),
    Family::inspector("inspector_pod_net_softirq_excuteslow100ms", LONGER_100MS_HELP, &SLOW, LONGER_100MS)
        .keys(OLD_KEYS),
    closed("inspector_node_netsoftirqshed", &SCHEDULE, WAITED_SLOTS),
    closed("inspector_node_netsoftirq", &EXECUTION, RAN_SLOTS),
    closed("inspector_pod_netsoftirqshed", &SCHEDULE, WAITED_SLOTS),
    closed("inspector_pod_netsoftirq", &EXECUTION, RAN_SLOTS),
];

fn is_vector(word: &str) -> bool {
    VECTORS.contains(&word)
}

fn run(session: Session) -> Result<(), Refused> {
    for name in ["softirq_raise", "softirq_entry", "softirq_exit", "sched_switch"] {
        session.tracepoint(name)?;
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(SoftirqSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.host_netns = session.host_netns();
    }
    session.room_by_cpu(&mut open.maps.schedule, VECTORS.len(), 0)?;
    session.room_by_cpu(&mut open.maps.execution, VECTORS.len(), 0)?;
    session.run(open, apply, "tp_btf", &["counters", "schedule", "execution"])
}

fn apply(skel: &mut SoftirqSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
    options.vectors = numbers(settings.list("vectors")).fold(0, |mask, vector| mask | 1 << vector);
}

/// The numbers of the vectors with these names, in their order.
fn numbers(names: &[String]) -> impl Iterator<Item = usize> {
    VECTORS
        .iter()
        .enumerate()
        .filter(|(_, name)| names.is_empty() || names.iter().any(|wanted| wanted == *name))
        .map(|(number, _)| number)
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::softirq_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let vector = VECTORS.get(usize::try_from(event.vector).ok()?)?;
    let mut fields = vec![
        ("type", Value::Text((*vector).to_owned())),
        ("cpu", Value::Number(event.cpu.into())),
        ("latency_ns", Value::Number(event.latency_ns)),
    ];
    if head.pid != 0 && decl.fields.contains(&"held_ns") {
        fields.push(("held_ns", Value::Number(event.held_ns)));
    }
    Some(head.event(decl, None, fields, stack))
}

/// A row for each vector that is looked at: nothing that was slow is a number too.
fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    let mut rows = [[0_u64; 4]; VECTORS.len()];
    for (key, value) in counters.entries.iter() {
        let Some(key) = plain::read::<types::softirq_key>(key) else { continue };
        let Some(value) = plain::read::<types::softirq_value>(value) else { continue };
        if let Some(row) = usize::try_from(key.vector).ok().and_then(|vector| rows.get_mut(vector)) {
            *row = [value.late, value.late_100ms, value.longer, value.longer_100ms];
        }
    }
    let Some(OptionValue::List(wanted)) = counters.options.get("vectors") else { return };
    for vector in numbers(wanted) {
        if let Some(cells) = table.row(Subject::NODE, &[VECTORS[vector].as_bytes()]) {
            cells.copy_from_slice(&rows[vector]);
        }
    }
}

fn fill_histograms(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    let mut rows: Vec<(usize, u32, &[u8])> = counters
        .entries
        .iter()
        .filter_map(|(key, value)| {
            let key: histogram_key = plain::read(key)?;
            let vector = usize::try_from(key.kind & 0xff).ok().filter(|vector| *vector < VECTORS.len())?;
            Some((vector, key.kind >> 8, value))
        })
        .collect();
    rows.sort_unstable();
    for (vector, cpu, value) in rows {
        let cpu = cpu.to_string();
        let Some(cells) = table.row(Subject::NODE, &[VECTORS[vector].as_bytes(), cpu.as_bytes()]) else {
            return;
        };
        copy_words(value, cells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use std::path::Path;

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    fn filled(
        pairs: &[(Vec<u8>, Vec<u8>)],
        decl: &'static TableDecl,
        fill: fn(&Counters<'_>, &Known, &mut Table),
    ) -> Table {
        let vectors = OptionValue::List(vec!["net_rx".to_owned(), "hi".to_owned()]);
        let (entries, options) = (Entries::from_pairs(pairs), Options::from([("vectors", vectors)]));
        let (subject, memory) = (|_, _| None, Memory::default());
        let mut table = Table::new(decl, 100);
        fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
        table
    }

    fn key(number: u32) -> Vec<u8> {
        [0, number, 0, 0].map(u32::to_ne_bytes).concat()
    }

    #[test]
    fn each_vector_that_is_looked_at_has_a_row() {
        let slow = |number| (key(number), [1_u64, 2, 3, 4].map(u64::to_ne_bytes).concat());
        let table = filled(&[slow(3), slow(9), slow(77)], &SLOW, fill);
        assert_eq!(table.len(), 2);
        assert_eq!((table.key(0, 0), table.cell(0, 3)), (&b"hi"[..], Some(0)));
        assert_eq!((table.key(1, 0), table.cell(1, 3)), (&b"net_rx"[..], Some(4)));
        assert_eq!(table.subject(1), Subject::NODE);
    }

    #[test]
    fn histograms_are_by_vector_and_cpu() {
        let of = |cpu: u32, vector: u32, sum: u64| {
            let mut value = vec![0; HISTOGRAM.len() * 8];
            value[..8].copy_from_slice(&sum.to_ne_bytes());
            (key(cpu << 8 | vector), value)
        };
        let table =
            filled(&[of(11, 3, 5), of(2, 3, 6), of(2, 1, 7), of(2, 200, 8)], &SCHEDULE, fill_histograms);
        let row = |row| (table.key(row, 0), table.key(row, 1), table.cell(row, 0));
        assert_eq!(table.len(), 3);
        assert_eq!(row(0), (&b"timer"[..], &b"2"[..], Some(7)));
        assert_eq!(row(1), (&b"net_rx"[..], &b"2"[..], Some(6)));
        assert_eq!(row(2), (&b"net_rx"[..], &b"11"[..], Some(5)));
    }

    #[test]
    fn short_records_and_unknown_vectors_are_refused() {
        let whole = vec![0; size_of::<types::softirq_event>()];
        assert_eq!(decode(&whole, &known()).unwrap().process, None);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let mut strange = whole;
        strange[std::mem::offset_of!(types::softirq_event, vector)] = 10;
        assert!(decode(&strange, &known()).is_none());
    }
}
