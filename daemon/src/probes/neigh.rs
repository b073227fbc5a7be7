//! Probe `neigh`: the tables of neighbours (ARP and NDISC) and how full they are.

use crate::declare::{Cost, Family, OptionDecl, OptionType, Points, Probe, column};
use crate::facts::{Cells, Fact, cells, fact, native};
use crate::sources::neigh::{NEIGH, NEIGH_TABLES};

const FACTS: [Fact; 15] = [
    fact(
        "ipv4.entries",
        "netskoop_neigh_table_entries",
        "Neighbours of all namespaces of the node together, since they share one table per IP version (entries of ip -s ntable).",
    )
    .v6("ipv6.entries")
    .core(),
    fact(
        "ipv4.gc_thresh3",
        "netskoop_neigh_table_max_entries",
        "Neighbours that the node may have, permanent ones not counted (gc_thresh3 of net.ipv4.neigh.default and net.ipv6.neigh.default).",
    )
    .v6("ipv6.gc_thresh3")
    .core(),
    fact(
        "ipv4.gc_thresh2",
        "netskoop_neigh_table_forced_gc_entries",
        "Neighbours beyond which old ones are thrown out when a new one comes (gc_thresh2 of net.ipv4.neigh.default and net.ipv6.neigh.default).",
    )
    .v6("ipv6.gc_thresh2"),
    fact(
        "ipv4.gc_thresh1",
        "netskoop_neigh_table_no_gc_entries",
        "Neighbours up to which none is thrown out (gc_thresh1 of net.ipv4.neigh.default and net.ipv6.neigh.default).",
    )
    .v6("ipv6.gc_thresh1"),
    fact(
        "ipv4.table_fulls",
        "netskoop_neigh_table_fulls_total",
        "Packets that got no neighbour because the table of the node was full (table_fulls of ip -s ntable).",
    )
    .v6("ipv6.table_fulls")
    .core()
    .alarm("gc_thresh3 is reached, in whichever namespace"),
    fact(
        "ipv4.res_failed",
        "netskoop_neigh_resolutions_failed_total",
        "Neighbours that did not answer, in all namespaces of the node (res_failed of ip -s ntable).",
    )
    .v6("ipv6.res_failed")
    .core(),
    fact(
        "ipv4.forced_gc_runs",
        "netskoop_neigh_forced_gc_runs_total",
        "Times that old neighbours were thrown out because there were too many (forced_gc_runs of ip -s ntable).",
    )
    .v6("ipv6.forced_gc_runs")
    .core()
    .alarm("there are more neighbours than gc_thresh2"),
    fact(
        "ipv4.periodic_gc_runs",
        "netskoop_neigh_periodic_gc_runs_total",
        "Times that the tables were looked through for old neighbours (periodic_gc_runs of ip -s ntable).",
    )
    .v6("ipv6.periodic_gc_runs"),
    fact(
        "ipv4.hash_grows",
        "netskoop_neigh_table_grown_total",
        "Times that the table was made larger (hash_grows of ip -s ntable).",
    )
    .v6("ipv6.hash_grows"),
    fact(
        "ipv4.lookups",
        "netskoop_neigh_lookups_total",
        "Searches for a neighbour by its address (lookups of ip -s ntable).",
    )
    .v6("ipv6.lookups"),
    fact("ipv4.hits", "netskoop_neigh_hits_total", "Searches that found the neighbour (hits of ip -s ntable).")
        .v6("ipv6.hits"),
    fact(
        "ipv4.allocs",
        "netskoop_neigh_created_total",
        "Neighbours that were added to the table (allocs of ip -s ntable).",
    )
    .v6("ipv6.allocs"),
    fact(
        "ipv4.destroys",
        "netskoop_neigh_destroyed_total",
        "Neighbours that were taken out of the table (destroys of ip -s ntable).",
    )
    .v6("ipv6.destroys"),
    fact(
        "ipv4.rcv_probes_mcast",
        "netskoop_neigh_multicast_probes_received_total",
        "Solicitations received by multicast (rcv_probes_mcast of ip -s ntable; IPv6 only).",
    )
    .v6("ipv6.rcv_probes_mcast"),
    fact(
        "ipv4.rcv_probes_ucast",
        "netskoop_neigh_unicast_probes_received_total",
        "Solicitations received by unicast (rcv_probes_ucast of ip -s ntable; IPv6 only).",
    )
    .v6("ipv6.rcv_probes_ucast"),
];

static CELLS: [Cells; 15] = cells(&NEIGH_TABLES, &FACTS);
static NATIVE: [Family; 15] = native(&NEIGH_TABLES, &FACTS, &CELLS);

static ENTRIES: [Family; 1] = [Family::native(
    "netskoop_neigh_entries",
    "Neighbours of the namespace by state (ip neigh).",
    &NEIGH,
    Points::Cells(&[
        ("state=\"incomplete\"", column(&NEIGH, "incomplete")),
        ("state=\"reachable\"", column(&NEIGH, "reachable")),
        ("state=\"stale\"", column(&NEIGH, "stale")),
        ("state=\"delay\"", column(&NEIGH, "delay")),
        ("state=\"probe\"", column(&NEIGH, "probe")),
        ("state=\"failed\"", column(&NEIGH, "failed")),
        ("state=\"noarp\"", column(&NEIGH, "noarp")),
        ("state=\"permanent\"", column(&NEIGH, "permanent")),
    ]),
)
.keys(&[("family", 0)])
.core()
.option("by_state")];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "neigh",
    aliases: &["arp", "neighbour"],
    summary: "Neighbour tables (ARP and NDISC) of the node: entries, limits, failures; by option neighbours of each namespace.",
    when: "When new connections within a subnet fail or take seconds, above all on nodes with many pods.",
    finds: "A table that is full, which hits all namespaces of the node at once; neighbours that do not answer.",
    cost: Cost::Low,
    needs: "Netlink (RTM_GETNEIGHTBL, RTM_GETNEIGH), which every kernel has.",
    default_on: false,
    section: None,
    options: &[OptionDecl {
        name: "by_state",
        kind: OptionType::Bool { default: false },
        help: "Adds the neighbours of each namespace by state. For each namespace the kernel looks through the tables of the whole node, so that this costs namespaces times neighbours.",
    }],
    families: &[&NATIVE, &ENTRIES],
    events: &[],
    hooks: None,
};
