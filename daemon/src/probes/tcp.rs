//! Probe `tcp`: the TCP MIB.

use crate::declare::{Cost, Family, Probe};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native};
use crate::sources::columns::SNMP;

const FACTS: [Fact; 10] = [
    fact(
        "Tcp.ActiveOpens",
        "netskoop_tcp_active_opens_total",
        "Connections that this side began to open, including those that failed later (Tcp.ActiveOpens of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_activeopens", "inspector_pod_tcpactiveopens")
    .core(),
    fact(
        "Tcp.PassiveOpens",
        "netskoop_tcp_passive_opens_total",
        "Connections that the other side opened and whose handshake was completed (Tcp.PassiveOpens of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_passiveopens", "inspector_pod_tcppassiveopens")
    .core(),
    fact(
        "Tcp.AttemptFails",
        "netskoop_tcp_attempt_fails_total",
        "Connections that failed before they were established (Tcp.AttemptFails of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_attemptfails", "inspector_pod_tcpattemptfails")
    .core()
    .alarm("connections cannot be opened"),
    fact(
        "Tcp.EstabResets",
        "netskoop_tcp_estab_resets_total",
        "Established connections that ended abnormally, by a reset sent or received (Tcp.EstabResets of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_estabresets", "inspector_pod_tcpestabresets")
    .core()
    .alarm("connections are reset"),
    fact(
        "Tcp.CurrEstab",
        "netskoop_tcp_connections",
        "Connections in state ESTABLISHED or CLOSE_WAIT now (Tcp.CurrEstab of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_currestab", "inspector_pod_tcpcurrestab"),
    fact(
        "Tcp.InSegs",
        "netskoop_tcp_in_segments_total",
        "Segments received, including bad ones (Tcp.InSegs of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_insegs", "inspector_pod_tcpinsegs"),
    fact(
        "Tcp.OutSegs",
        "netskoop_tcp_out_segments_total",
        "Segments sent, without retransmitted ones (Tcp.OutSegs of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_outsegs", "inspector_pod_tcpoutsegs")
    .core(),
    fact(
        "Tcp.RetransSegs",
        "netskoop_tcp_retransmitted_segments_total",
        "Segments sent again, counted after segmentation (Tcp.RetransSegs of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_retranssegs", "inspector_pod_tcpretranssegs")
    .core()
    .alarm("packets are lost on the way"),
    fact(
        "Tcp.InErrs",
        "netskoop_tcp_in_errors_total",
        "Segments received with an error, such as a bad checksum or header (Tcp.InErrs of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_inerrs", "inspector_pod_tcpinerrs")
    .alarm("segments arrive damaged"),
    fact(
        "Tcp.OutRsts",
        "netskoop_tcp_out_resets_total",
        "Segments sent with the RST flag (Tcp.OutRsts of /proc/net/snmp).",
    )
    .old("kubeskoop_tcp_outrsts", "inspector_pod_tcpoutrsts")
    .alarm("this side resets connections"),
];

const MORE: [Fact; 1] = [fact(
    "Tcp.InCsumErrors",
    "netskoop_tcp_in_checksum_errors_total",
    "Segments received with a bad checksum (Tcp.InCsumErrors of /proc/net/snmp).",
)
.alarm("segments arrive damaged")];

static CELLS: [Cells; 10] = cells(&SNMP, &FACTS);
static MORE_CELLS: [Cells; 1] = cells(&SNMP, &MORE);
static NATIVE: [Family; 10] = native(&SNMP, &FACTS, &CELLS);
static NATIVE_MORE: [Family; 1] = native(&SNMP, &MORE, &MORE_CELLS);
static KUBESKOOP: [Family; 10] = kubeskoop(&SNMP, &FACTS);
static INSPECTOR: [Family; 10] = inspector(&SNMP, &FACTS);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcp",
    aliases: &[],
    summary: "Connections opened, failed and reset, segments sent, received and sent again.",
    when: "Always: it is the first look at the TCP traffic of a namespace.",
    finds: "Latency jitter from retransmits, connections that cannot be opened, connections closed by a reset.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/snmp; it counts IPv4 and IPv6 together.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &NATIVE_MORE, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
