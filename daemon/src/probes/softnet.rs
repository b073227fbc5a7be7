//! Probe `softnet`: how the CPUs of the node keep up with received packets.

use crate::declare::{Cost, Family, OptionDecl, OptionType, Probe, Scope};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native, one};
use crate::sources::columns::SOFTNET;

const FACTS: [Fact; 2] = [
    fact(
        "processed",
        "netskoop_softnet_processed_total",
        "Packets that the network softirq processed on all CPUs of the node (column 1 of /proc/net/softnet_stat).",
    )
    .old("kubeskoop_softnet_processed", "inspector_pod_softnetprocessed"),
    fact(
        "dropped",
        "netskoop_softnet_dropped_total",
        "Packets dropped because the backlog of a CPU was full, on all CPUs of the node (column 2 of /proc/net/softnet_stat).",
    )
    .old("kubeskoop_softnet_dropped", "inspector_pod_softnetdropped")
    .core()
    .alarm("net.core.netdev_max_backlog is used up"),
];

const MORE: [Fact; 4] = [
    fact(
        "time_squeeze",
        "netskoop_softnet_time_squeeze_total",
        "Times that the network softirq stopped with work left because its budget or time was over, on all CPUs of the node (column 3 of /proc/net/softnet_stat).",
    )
    .core()
    .alarm("CPUs are too busy to receive"),
    fact(
        "received_rps",
        "netskoop_softnet_received_rps_total",
        "Times that a CPU was woken by another to receive packets, on all CPUs of the node (column 10 of /proc/net/softnet_stat).",
    ),
    fact(
        "flow_limit_count",
        "netskoop_softnet_flow_limit_total",
        "Packets dropped by the flow limit of the backlog, on all CPUs of the node (column 11 of /proc/net/softnet_stat).",
    )
    .alarm("one flow floods a CPU"),
    fact(
        "backlog_len",
        "netskoop_softnet_backlog_packets",
        "Packets in the backlogs of all CPUs of the node now (column 12 of /proc/net/softnet_stat, since 5.10).",
    ),
];

static CELLS: [Cells; 2] = cells(&SOFTNET, &FACTS);
static MORE_CELLS: [Cells; 4] = cells(&SOFTNET, &MORE);

const PER_CPU: [Fact; 6] = [
    fact(
        "processed",
        "netskoop_softnet_cpu_processed_total",
        "Packets that the network softirq processed, by CPU (column 1 of /proc/net/softnet_stat).",
    )
    .core(),
    fact(
        "dropped",
        "netskoop_softnet_cpu_dropped_total",
        "Packets dropped because the backlog of the CPU was full (column 2 of /proc/net/softnet_stat).",
    )
    .core()
    .alarm("net.core.netdev_max_backlog is used up"),
    fact(
        "time_squeeze",
        "netskoop_softnet_cpu_time_squeeze_total",
        "Times that the network softirq stopped with work left because its budget or time was over, by CPU (column 3 of /proc/net/softnet_stat).",
    )
    .core()
    .alarm("the CPU is too busy to receive"),
    fact(
        "received_rps",
        "netskoop_softnet_cpu_received_rps_total",
        "Times that the CPU was woken by another to receive packets (column 10 of /proc/net/softnet_stat).",
    )
    .core(),
    fact(
        "flow_limit_count",
        "netskoop_softnet_cpu_flow_limit_total",
        "Packets dropped by the flow limit of the backlog, by CPU (column 11 of /proc/net/softnet_stat).",
    )
    .core(),
    fact(
        "backlog_len",
        "netskoop_softnet_cpu_backlog_packets",
        "Packets in the backlog of the CPU now (column 12 of /proc/net/softnet_stat, since 5.10).",
    )
    .core(),
];

static PER_CPU_CELLS: [Cells; 6] = cells(&SOFTNET, &PER_CPU);

const fn sums<const N: usize>(mut families: [Family; N], scope: Scope) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].fold().scope(scope);
        i += 1;
    }
    families
}

const fn split<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(&[("cpu", 0)]).option("per_cpu");
        i += 1;
    }
    families
}

static NATIVE: [Family; 2] = sums(native(&SOFTNET, &FACTS, &CELLS), Scope::Own);
static NATIVE_MORE: [Family; 4] = sums(native(&SOFTNET, &MORE, &MORE_CELLS), Scope::Own);
static SPLIT: [Family; 6] = split(native(&SOFTNET, &PER_CPU, &PER_CPU_CELLS));
// The older systems read the file once per pod and showed the number of the node under every one.
static KUBESKOOP: [Family; 2] = sums(kubeskoop(&SOFTNET, &FACTS), Scope::Repeat);
static INSPECTOR: [Family; 2] = sums(inspector(&SOFTNET, &FACTS), Scope::Repeat);
static SQUEEZE: [Family; 1] = sums(
    [Family::inspector(
        "inspector_pod_softnettimesqueeze",
        "Times that the network softirq stopped with work left, on all CPUs of the node (column 3 of /proc/net/softnet_stat).",
        &SOFTNET,
        one(&SOFTNET, "time_squeeze"),
    )],
    Scope::Repeat,
);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "softnet",
    aliases: &[],
    summary: "Packets that the CPUs of the node received, dropped, or left for later.",
    when: "When packets are lost or late on the whole node and CPUs are busy with softirqs.",
    finds: "Backlogs that overflow, CPUs that run out of time while receiving.",
    cost: Cost::Low,
    needs: "/proc/net/softnet_stat; it is one file for the node, so nothing of it is per namespace.",
    default_on: true,
    section: None,
    options: &[OptionDecl {
        name: "per_cpu",
        kind: OptionType::Bool { default: false },
        help: "Shows each CPU on its own under netskoop_softnet_cpu_*.",
    }],
    families: &[&NATIVE, &NATIVE_MORE, &SPLIT, &KUBESKOOP, &INSPECTOR, &SQUEEZE],
    events: &[],
    hooks: None,
};
