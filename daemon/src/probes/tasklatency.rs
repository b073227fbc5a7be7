//! Tasks that could run and waited for a CPU.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, HISTOGRAM, OptionDecl, OptionType, Points, Probe, TableDecl, histogram,
};
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::Table;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::tasklatency::{TasklatencySkel, TasklatencySkelBuilder, types};
use netskoop_bpf::tcpconnect::types::histogram_key;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tasklatency",
    aliases: &["procsched"],
    summary: "How long the tasks of each entity waited for a CPU when they could run, with the task that had it before.",
    when: "Answers are late although the network is idle, or the probe cpu shows that tasks wait and not how long at a time.",
    finds: "Too many tasks for the CPUs or for a cpuset, a real-time task, a virtual CPU that its host does not run.",
    cost: Cost::Medium,
    needs: "BTF tracepoints sched_wakeup, sched_wakeup_new and sched_switch.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(50),
            Duration::from_micros(100)..=Duration::from_secs(60),
            "A task that waits longer for a CPU is an event.",
        ),
        OptionDecl {
            name: "stack",
            kind: OptionType::Bool { default: false },
            help: "Adds the kernel stack to each event, which costs several microseconds each: where the task that had the CPU \
                   before let go of it.",
        },
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[&[Family::native(
        "netskoop_tasklatency_wait_seconds",
        "Times that tasks waited for a CPU: after they were woken, and after another one had taken it from them. Their sum grows \
         like netskoop_cpu_wait_seconds_total.",
        &TABLE,
        Points::Histogram(&BUCKETS),
    )
    .decimals(9)
    .core()]],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl = TableDecl { name: "tasklatency", keys: &[], columns: &HISTOGRAM, node: false };

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "TASK_WAIT_SLOW",
    aliases: &[],
    fields: &["waited_ns", "cause", "cpu", "before_pid", "before_comm"],
    help: "A task of the process waited for a CPU longer than the option slow. cause: woken, or preempted while it ran; before_pid \
           and before_comm: the task that had the CPU until then; without them it was idle.",
}];

/// 16, 64 and 256 microseconds, 1, 4, 16, 65 and 262 milliseconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([3, 5, 7, 9, 11, 13, 15, 17]);

fn run(session: Session) -> Result<(), Refused> {
    for name in ["sched_wakeup", "sched_wakeup_new"] {
        session.tracepoint(name)?;
    }
    let arguments = session.tracepoint("sched_switch")?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TasklatencySkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.probe, rodata.host_netns) = (session.number(), session.host_netns());
        rodata.daemon = std::process::id();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
    }
    session.run(open, apply, "tp_btf", &["counters"])
}

fn apply(skel: &mut TasklatencySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tasklatency_event>(bytes)?;
    let cause = if event.preempted == 0 { "woken" } else { "preempted" };
    let mut fields = vec![
        ("waited_ns", Value::Number(event.waited_ns)),
        ("cause", Value::Text(cause.to_owned())),
        ("cpu", Value::Number(event.cpu.into())),
    ];
    if event.before_pid != 0 {
        fields.push(("before_pid", Value::Number(event.before_pid.into())));
        fields.push(("before_comm", Value::Text(record::text(&event.before_comm))));
    }
    Some(head.event(&EVENTS[0], None, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: histogram_key = plain::read(key)?;
        Some((counters.owner(key.netns, key.kind, key.cookie)?, [], value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;
    use std::path::Path;

    #[test]
    fn tenants_have_what_is_theirs() {
        let of = |netns: u32, tenant: u32, cookie: u32, sum: u64| {
            let mut value = vec![0; HISTOGRAM.len() * 8];
            value[..8].copy_from_slice(&sum.to_ne_bytes());
            ([netns, tenant, cookie, 0].map(u32::to_ne_bytes).concat(), value)
        };
        // What the daemon's own threads wait is the host's, whose cookie is not known there.
        let pairs = [of(1, 0, 9, 5), of(1, 0, 0, 6), of(1, 77, 9, 7), of(2, 0, 8, 10)];
        let (entries, memory, options) = (Entries::from_pairs(&pairs), Memory::default(), Options::new());
        let subject = |netns, _| Some(Subject(netns));
        let mut table = Table::new(&TABLE, 100);
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        fill(&Counters::new(&entries, &subject, &options, &memory), &known, &mut table);
        let rows: Vec<_> = (0..table.len()).map(|row| (table.subject(row).0, table.cell(row, 0))).collect();
        assert_eq!(rows, [(1, Some(11)), (2, Some(10)), (77, Some(7))]);
    }

    #[test]
    fn short_records_are_refused_and_idle_is_nobody() {
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        let whole = vec![0; size_of::<types::tasklatency_event>()];
        assert_eq!(decode(&whole, &known).unwrap().fields.len(), 3);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known).is_none(), "{length} bytes");
        }
    }
}
