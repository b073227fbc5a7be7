//! Probe `limit`: how much of each limit is used, under one name, so that one alert rule covers them all.
//!
//! To add a limit: the source that counts what is used also reads the limit, and its table gets a column that ends in
//! `used_ppm` with the used part in millionths (`used * 1_000_000 / limit`), absent where there is no limit. Then one line
//! below, `used(&TABLE, &LIMIT)`, with the label and the column. If a namespace has several rows (listeners, say), add
//! `.fold().largest()`: what counts is the one that is closest to its limit. Where counting costs something, `.with(probe)`
//! leaves it to who has that probe on.

use crate::declare::{Cost, Family, Points, Probe, TableDecl, column};
use crate::sources::columns::SOCKSTAT_NODE;
use crate::sources::conntrack::CONNTRACK;
use crate::sources::neigh::NEIGH_TABLES;
use crate::sources::processes::FD_LIMIT;
use crate::sources::sockets::{LISTEN_LIMIT, PORTS_LIMIT};

const fn used(table: &'static TableDecl, limits: &'static [(&'static str, u16)]) -> Family {
    Family::native(
        "netskoop_limit_used_ratio",
        "Used part of a limit of the kernel, from 0 to 1: net.ipv4.tcp_mem and udp_mem (the last of their three numbers) and net.ipv4.tcp_max_orphans are limits of the node; so are neighbours_ipv4 and neighbours_ipv6 (gc_thresh3); accept_queue is the fullest one of the namespace; ephemeral_ports are those of net.ipv4.ip_local_port_range that TCP connections have as their own, to whatever destination; conntrack is net.netfilter.nf_conntrack_max; fds is the process that is closest to its RLIMIT_NOFILE. The last four are there if the probe is on that counts them: tcpsummary, conntrack, fd.",
        table,
        Points::Cells(limits),
    )
    .decimals(6)
    .largest()
    .core()
    .alarm("a limit is nearly reached")
}

static NODE: [(&str, u16); 3] = [
    ("limit=\"tcp_mem\"", column(&SOCKSTAT_NODE, "tcp_mem.used_ppm")),
    ("limit=\"udp_mem\"", column(&SOCKSTAT_NODE, "udp_mem.used_ppm")),
    ("limit=\"tcp_orphans\"", column(&SOCKSTAT_NODE, "tcp_max_orphans.used_ppm")),
];

static ACCEPT: [(&str, u16); 1] = [("limit=\"accept_queue\"", column(&LISTEN_LIMIT, "used_ppm"))];
static PORTS: [(&str, u16); 1] = [("limit=\"ephemeral_ports\"", column(&PORTS_LIMIT, "used_ppm"))];

static CONNECTIONS: [(&str, u16); 1] = [("limit=\"conntrack\"", column(&CONNTRACK, "used_ppm"))];
static NEIGHBOURS: [(&str, u16); 2] = [
    ("limit=\"neighbours_ipv4\"", column(&NEIGH_TABLES, "ipv4.used_ppm")),
    ("limit=\"neighbours_ipv6\"", column(&NEIGH_TABLES, "ipv6.used_ppm")),
];
static DESCRIPTORS: [(&str, u16); 1] = [("limit=\"fds\"", column(&FD_LIMIT, "used_ppm"))];

static USED: [Family; 6] = [
    used(&SOCKSTAT_NODE, &NODE),
    used(&NEIGH_TABLES, &NEIGHBOURS),
    used(&LISTEN_LIMIT, &ACCEPT).with("tcpsummary"),
    used(&PORTS_LIMIT, &PORTS).with("tcpsummary"),
    used(&CONNTRACK, &CONNECTIONS).with("conntrack"),
    used(&FD_LIMIT, &DESCRIPTORS).with("fd"),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "limit",
    aliases: &[],
    summary: "How much of the kernel's limits is used.",
    when: "Always: one alert rule covers every limit.",
    finds: "TCP memory, orphans and other things of which there are only so many, before they run out.",
    cost: Cost::Low,
    needs: "/proc/sys/net/ipv4 of the first network namespace, and what the probes of the limited things need; these must be on.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&USED],
    events: &[],
    hooks: None,
};
