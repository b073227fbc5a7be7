//! Probe `udplite`: the UDP-Lite MIBs of both IP versions.

use crate::declare::{Cost, Family, Probe, Section};
use crate::facts::{Cells, Fact, cells, fact, native};
use crate::sources::columns::SNMP;

const FACTS: [Fact; 9] = [
    fact(
        "UdpLite.InDatagrams",
        "netskoop_udplite_in_datagrams_total",
        "UDP-Lite datagrams delivered to sockets (UdpLite.InDatagrams of /proc/net/snmp for IPv4, UdpLite6InDatagrams of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6InDatagrams"),
    fact(
        "UdpLite.NoPorts",
        "netskoop_udplite_no_ports_total",
        "UDP-Lite datagrams for a port on which nobody listened (UdpLite.NoPorts of /proc/net/snmp for IPv4, UdpLite6NoPorts of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6NoPorts"),
    fact(
        "UdpLite.InErrors",
        "netskoop_udplite_in_errors_total",
        "UDP-Lite datagrams that could not be delivered (UdpLite.InErrors of /proc/net/snmp for IPv4, UdpLite6InErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6InErrors"),
    fact(
        "UdpLite.OutDatagrams",
        "netskoop_udplite_out_datagrams_total",
        "UDP-Lite datagrams sent (UdpLite.OutDatagrams of /proc/net/snmp for IPv4, UdpLite6OutDatagrams of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6OutDatagrams"),
    fact(
        "UdpLite.RcvbufErrors",
        "netskoop_udplite_receive_buffer_errors_total",
        "UDP-Lite datagrams dropped because the receive buffer of the socket was full (UdpLite.RcvbufErrors of /proc/net/snmp for IPv4, UdpLite6RcvbufErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6RcvbufErrors"),
    fact(
        "UdpLite.SndbufErrors",
        "netskoop_udplite_send_buffer_errors_total",
        "UDP-Lite datagrams that could not be handed to the IP layer (UdpLite.SndbufErrors of /proc/net/snmp for IPv4, UdpLite6SndbufErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6SndbufErrors"),
    fact(
        "UdpLite.InCsumErrors",
        "netskoop_udplite_in_checksum_errors_total",
        "UDP-Lite datagrams received with a bad checksum (UdpLite.InCsumErrors of /proc/net/snmp for IPv4, UdpLite6InCsumErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6InCsumErrors")
    .alarm("datagrams arrive damaged"),
    fact(
        "UdpLite.MemErrors",
        "netskoop_udplite_memory_errors_total",
        "UDP-Lite datagrams dropped because the memory of the protocol was used up (UdpLite.MemErrors of /proc/net/snmp for IPv4, UdpLite6MemErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("UdpLite6MemErrors")
    .alarm("net.ipv4.udp_mem is used up"),
    fact(
        "UdpLite.IgnoredMulti",
        "netskoop_udplite_ignored_multicast_total",
        "UDP-Lite multicast datagrams over IPv4 that no socket wanted (UdpLite.IgnoredMulti of /proc/net/snmp).",
    ),
];

static CELLS: [Cells; 9] = cells(&SNMP, &FACTS);
static NATIVE: [Family; 9] = native(&SNMP, &FACTS, &CELLS);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "udplite",
    aliases: &[],
    summary: "UDP-Lite datagrams sent, received and dropped, IPv4 and IPv6 apart.",
    when: "On nodes whose programs use UDP-Lite.",
    finds: "Receive buffers that overflow, datagrams for ports on which nobody listens, damaged datagrams.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/snmp, and net/snmp6 for IPv6, of a kernel that still has the protocol.",
    default_on: false,
    section: Some(Section { file: "net/snmp", line: "UdpLite:", what: "UDP-Lite" }),
    options: &[],
    families: &[&NATIVE],
    events: &[],
    hooks: None,
};
