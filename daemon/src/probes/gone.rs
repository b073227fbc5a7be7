//! Probe `gone`: what namespaces counted that are no more.

use crate::declare::{Cost, EventDecl, Family, Probe, TableDecl, column};
use crate::facts::{Cells, Fact, cells, fact, native};
use crate::sources::columns::{DEV, NETSTAT, SNMP};
use crate::sources::gone::GONE;

const FACTS: [Fact; 2] = [
    fact(
        "entities",
        "netskoop_gone_entities_total",
        "Network namespaces that ended while the probe was on, by the Kubernetes namespace of a pod, else by kind.",
    )
    .core(),
    fact(
        "unread",
        "netskoop_gone_unread_total",
        "Of these, namespaces whose counters could not be read at their end: no process had lived in them that could be watched, or there were too many to watch.",
    )
    .core(),
];

static CELLS: [Cells; 2] = cells(&GONE, &FACTS);
static NATIVE: [Family; 2] = native(&GONE, &FACTS, &CELLS);

const ENTITY_GONE: EventDecl = EventDecl {
    name: "ENTITY_GONE",
    aliases: &[],
    fields: &[
        "seconds",
        "rx_bytes",
        "rx_packets",
        "rx_dropped",
        "tx_bytes",
        "tx_packets",
        "tx_dropped",
        "tcp_active_opens",
        "tcp_attempt_fails",
        "tcp_retrans_segs",
        "tcp_out_rsts",
        "listen_drops",
        "udp_in_errors",
    ],
    help: "A network namespace has ended: how many seconds it was known, and what it had counted in all its life, if it could be read at its end.",
};

/// The columns behind the fields of [`ENTITY_GONE`]: table, column, field.
pub static SHOWN: [(&TableDecl, u16, &str); 12] = [
    shown(&DEV, "rx.bytes", "rx_bytes"),
    shown(&DEV, "rx.packets", "rx_packets"),
    shown(&DEV, "rx.drop", "rx_dropped"),
    shown(&DEV, "tx.bytes", "tx_bytes"),
    shown(&DEV, "tx.packets", "tx_packets"),
    shown(&DEV, "tx.drop", "tx_dropped"),
    shown(&SNMP, "Tcp.ActiveOpens", "tcp_active_opens"),
    shown(&SNMP, "Tcp.AttemptFails", "tcp_attempt_fails"),
    shown(&SNMP, "Tcp.RetransSegs", "tcp_retrans_segs"),
    shown(&SNMP, "Tcp.OutRsts", "tcp_out_rsts"),
    shown(&NETSTAT, "TcpExt.ListenDrops", "listen_drops"),
    shown(&SNMP, "Udp.InErrors", "udp_in_errors"),
];

const fn shown(
    table: &'static TableDecl,
    key: &str,
    field: &'static str,
) -> (&'static TableDecl, u16, &'static str) {
    (table, column(table, key), field)
}

static EVENTS: [EventDecl; 1] = [ENTITY_GONE];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "gone",
    aliases: &[],
    summary: "What namespaces that have ended had counted since the last scrape, by Kubernetes namespace or kind.",
    when: "Where jobs live shorter than a scrape interval, or pods are replaced while something goes wrong.",
    finds: "Short jobs that fail to connect or retransmit, and what a pod did in its last seconds.",
    cost: Cost::Low,
    needs: "A process in the namespace, through which it is held open until it has been read at its end; the counters of netdev, tcp, tcpext, udp and ip are shown under kind=\"gone\" where those probes are on.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE],
    events: &EVENTS,
    hooks: None,
};
