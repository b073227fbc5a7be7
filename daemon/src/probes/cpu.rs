//! Probe `cpu`: how long the processes of each entity run, and what they wait for.

use crate::declare::{Column, Cost, Family, Kind, Points, Probe, TableDecl, column};
use crate::facts::one;
use crate::hooks::{Counters, CountersMap, Hooks, Known, no_events};
use crate::kernel::bpf::{Refused, Session};
use crate::sources::cgroups::CGROUP_CPU;
use crate::table::Table;
use netskoop_bpf::cpu::CpuSkelBuilder;
use std::mem::MaybeUninit;

/// What tasks have used, in nanoseconds and in the order of the program.
static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl = TableDecl {
    name: "cpu",
    keys: &[],
    columns: &[Column { key: "run_ns", kind: Kind::Counter }, Column { key: "wait_ns", kind: Kind::Counter }],
    node: false,
};

static PRESSURE: [(&str, u16); 2] = [
    ("level=\"some\"", column(&CGROUP_CPU, "pressure_some_ns")),
    ("level=\"full\"", column(&CGROUP_CPU, "pressure_full_ns")),
];

static FAMILIES: [Family; 6] = [
    Family::native(
        "netskoop_cpu_run_seconds_total",
        "Time that all processes ran; those that ended while the probe was on stay in it (first field of /proc/<pid>/task/<tid>/schedstat).",
        &TABLE,
        one(&TABLE, "run_ns"),
    )
    .decimals(9)
    .core(),
    Family::native(
        "netskoop_cpu_wait_seconds_total",
        "Time that all processes could have run and waited for a CPU; those that ended while the probe was on stay in it (second field of /proc/<pid>/task/<tid>/schedstat).",
        &TABLE,
        one(&TABLE, "wait_ns"),
    )
    .decimals(9)
    .core()
    .alarm("processes wait for a CPU"),
    Family::native(
        "netskoop_cpu_cfs_periods_total",
        "Periods of its CPU quota in which something ran, over the cgroups of all containers of the entity (nr_periods of cpu.stat).",
        &CGROUP_CPU,
        one(&CGROUP_CPU, "nr_periods"),
    )
    .core(),
    Family::native(
        "netskoop_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up, over the cgroups of all containers of the entity (nr_throttled of cpu.stat).",
        &CGROUP_CPU,
        one(&CGROUP_CPU, "nr_throttled"),
    )
    .core()
    .alarm("the CPU limit is used up"),
    Family::native(
        "netskoop_cpu_cfs_throttled_seconds_total",
        "Time for which the CPU quota kept tasks from running, over the cgroups of all containers of the entity and all CPUs (throttled_usec of cpu.stat, throttled_time in cgroup v1).",
        &CGROUP_CPU,
        one(&CGROUP_CPU, "throttled_ns"),
    )
    .decimals(9)
    .core()
    .alarm("the CPU limit is used up"),
    Family::native(
        "netskoop_cpu_pressure_seconds_total",
        "Time in which some tasks waited for a CPU, and in which all did, over the cgroups of all containers of the entity; of the host, the whole node (total of cpu.pressure in cgroup v2, of /proc/pressure/cpu).",
        &CGROUP_CPU,
        Points::Cells(&PRESSURE),
    )
    .decimals(9)
    .core(),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "cpu",
    aliases: &[],
    summary: "CPU time of each entity, its wait for a CPU, and how its CPU limit slows it down.",
    when: "When packets or answers are late although the network is idle.",
    finds: "Containers that are throttled by their CPU limit, processes that wait for a busy CPU.",
    cost: Cost::Low,
    needs: "Files cpu.stat and cpu.pressure of the containers' cgroups; for time run and waited the BTF tracepoint sched_process_exit and the iterator over tasks, Linux 5.12.",
    default_on: false,
    section: None,
    options: &[],
    families: &[&FAMILIES],
    events: &[],
    hooks: Some(Hooks { run, decode: no_events, maps: &MAPS, optional: true }),
};

fn run(session: Session) -> Result<(), Refused> {
    session.tracepoint("sched_process_exit")?;
    session.task_storage()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(CpuSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        (rodata.probe, rodata.host_netns) = (session.number(), session.host_netns());
        rodata.daemon = std::process::id();
    }
    session.run(open, |_, _| {}, "tp_btf", &["counters"])
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_usage::<2>(table);
}
