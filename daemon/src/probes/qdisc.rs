//! Probe `qdisc`: the queues in front of the interfaces.

use crate::declare::{Cost, Family, Only, OptionDecl, OptionType, Probe, is_interface_pattern};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native};
use crate::sources::qdiscs::{QDISC, QDISC_CHILD};

const FACTS: [Fact; 6] = [
    fact(
        "bytes",
        "netskoop_qdisc_sent_bytes_total",
        "Bytes that the queueing discipline sent, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_bytes", "inspector_pod_qdiscbytes"),
    fact(
        "packets",
        "netskoop_qdisc_sent_packets_total",
        "Packets that the queueing discipline sent, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_packets", "inspector_pod_qdiscpackets"),
    fact(
        "drops",
        "netskoop_qdisc_drops_total",
        "Packets that the queueing discipline dropped, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_drops", "inspector_pod_qdiscdrops")
    .core()
    .alarm("the queue is full"),
    fact(
        "overlimits",
        "netskoop_qdisc_overlimits_total",
        "Times that the queueing discipline held packets back because of its limits, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_overlimits", "inspector_pod_qdiscoverlimits"),
    fact(
        "qlen",
        "netskoop_qdisc_queue_packets",
        "Packets in the queueing discipline now, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_qlen", "inspector_pod_qdiscqlen"),
    fact(
        "backlog",
        "netskoop_qdisc_backlog_bytes",
        "Bytes in the queueing discipline now, by interface (root of `tc -s qdisc`, over rtnetlink).",
    )
    .old("kubeskoop_qdisc_backlog", "inspector_pod_qdiscbacklog"),
];

/// Of these the older systems had none.
const MORE: [Fact; 1] = [fact(
    "requeues",
    "netskoop_qdisc_requeues_total",
    "Times that the driver gave packets back to the queueing discipline, by interface (root of `tc -s qdisc`, over rtnetlink).",
)];

const CHILDREN: [Fact; 7] = [
    fact(
        "bytes",
        "netskoop_qdisc_child_sent_bytes_total",
        "Bytes that the queueing discipline sent, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
    fact(
        "packets",
        "netskoop_qdisc_child_sent_packets_total",
        "Packets that the queueing discipline sent, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
    fact(
        "drops",
        "netskoop_qdisc_child_drops_total",
        "Packets that the queueing discipline dropped, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core()
    .alarm("the queue is full"),
    fact(
        "overlimits",
        "netskoop_qdisc_child_overlimits_total",
        "Times that the queueing discipline held packets back because of its limits, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
    fact(
        "requeues",
        "netskoop_qdisc_child_requeues_total",
        "Times that the driver gave packets back to the queueing discipline, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
    fact(
        "qlen",
        "netskoop_qdisc_child_queue_packets",
        "Packets in the queueing discipline now, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
    fact(
        "backlog",
        "netskoop_qdisc_child_backlog_bytes",
        "Bytes in the queueing discipline now, by the class it hangs on (children in `tc -s qdisc`, over rtnetlink).",
    )
    .core(),
];

static CELLS: [Cells; 6] = cells(&QDISC, &FACTS);
static MORE_CELLS: [Cells; 1] = cells(&QDISC, &MORE);
static CHILD_CELLS: [Cells; 7] = cells(&QDISC_CHILD, &CHILDREN);

/// One series per interface; what vanished interfaces had counted is for the sums only.
const fn split<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(&[("device", 0), ("qdisc", 1)]).only(Only {
            key: 0,
            values: &[""],
            include: false,
        });
        i += 1;
    }
    families
}

const fn children<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].keys(&[("device", 0), ("qdisc", 1), ("parent", 2)]).option("children");
        i += 1;
    }
    families
}

/// The older systems had one number per namespace. They added up roots and children, so that the same packet counted twice.
const fn sums<const N: usize>(mut families: [Family; N]) -> [Family; N] {
    let mut i = 0;
    while i < N {
        families[i] = families[i].fold();
        i += 1;
    }
    families
}

static NATIVE: [Family; 6] = split(native(&QDISC, &FACTS, &CELLS));
static NATIVE_MORE: [Family; 1] = split(native(&QDISC, &MORE, &MORE_CELLS));
static SPLIT: [Family; 7] = children(native(&QDISC_CHILD, &CHILDREN, &CHILD_CELLS));
static KUBESKOOP: [Family; 6] = sums(kubeskoop(&QDISC, &FACTS));
static INSPECTOR: [Family; 6] = sums(inspector(&QDISC, &FACTS));

/// The probe.
pub static PROBE: Probe = Probe {
    name: "qdisc",
    aliases: &[],
    summary: "Queueing disciplines of the interfaces of each namespace: what they sent, dropped, held back, and hold now.",
    when: "Always: loss or delay before a packet reaches the driver.",
    finds: "Queues that overflow and shapers that hold traffic back, which show as drops and jitter.",
    cost: Cost::Low,
    needs: "RTM_GETQDISC of rtnetlink(7), asked inside each namespace. Interfaces without a queue (noqueue) are left out.",
    default_on: true,
    section: None,
    options: &[
        OptionDecl {
            name: "interfaces",
            kind: OptionType::List {
                default: &["*"],
                max: 64,
                what: "an interface name or a pattern with *",
                check: is_interface_pattern,
            },
            help: "The interfaces that are shown.",
        },
        OptionDecl {
            name: "children",
            kind: OptionType::Bool { default: false },
            help: "Shows the queueing disciplines below the roots as netskoop_qdisc_child_*, by the class they hang on.",
        },
    ],
    families: &[&NATIVE, &NATIVE_MORE, &SPLIT, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
