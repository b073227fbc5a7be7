//! Probe `limit`: how much of each limit is used, under one name, so that one alert rule covers them all.
//!
//! To add a limit: the source that counts what is used also reads the limit, and its table gets a column that ends in
//! `used_ppm` with the used part in millionths (`used * 1_000_000 / limit`), absent where there is no limit. Then one line
//! below, `used(&TABLE, &LIMIT)`, with the label and the column. If a namespace has several rows (listeners, say), add
//! `.fold().largest()`: what counts is the one that is closest to its limit.

use crate::declare::{Cost, Family, Points, Probe, TableDecl, column};
use crate::sources::columns::SOCKSTAT_NODE;

const fn used(table: &'static TableDecl, limits: &'static [(&'static str, u16)]) -> Family {
    Family::native(
        "netskoop_limit_used_ratio",
        "Used part of a limit of the kernel, from 0 to 1: net.ipv4.tcp_mem and udp_mem (the last of their three numbers) and net.ipv4.tcp_max_orphans are limits of the node.",
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

static USED: [Family; 1] = [used(&SOCKSTAT_NODE, &NODE)];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "limit",
    aliases: &[],
    summary: "How much of the kernel's limits is used.",
    when: "Always: one alert rule covers every limit.",
    finds: "TCP memory, orphans and other things of which there are only so many, before they run out.",
    cost: Cost::Low,
    needs: "/proc/sys/net/ipv4 of the first network namespace, and what the probes of the limited things need.",
    default_on: true,
    options: &[],
    families: &[&USED],
    events: &[],
    hooks: None,
};
