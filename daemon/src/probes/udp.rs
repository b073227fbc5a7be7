//! Probe `udp`: the UDP MIBs of both IP versions.

use crate::declare::{Cost, Family, Probe};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native, one};
use crate::sources::columns::SNMP;

const FACTS: [Fact; 8] = [
    fact(
        "Udp.InDatagrams",
        "netskoop_udp_in_datagrams_total",
        "UDP datagrams delivered to sockets (Udp.InDatagrams of /proc/net/snmp for IPv4, Udp6InDatagrams of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6InDatagrams")
    .old("kubeskoop_udp_indatagrams", "inspector_pod_udpindatagrams"),
    fact(
        "Udp.NoPorts",
        "netskoop_udp_no_ports_total",
        "UDP datagrams for a port on which nobody listened (Udp.NoPorts of /proc/net/snmp for IPv4, Udp6NoPorts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6NoPorts")
    .old("kubeskoop_udp_noports", "inspector_pod_udpnoports")
    .core()
    .alarm("nobody listens on the port"),
    fact(
        "Udp.InErrors",
        "netskoop_udp_in_errors_total",
        "UDP datagrams that could not be delivered for another reason than a missing listener (Udp.InErrors of /proc/net/snmp for IPv4, Udp6InErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6InErrors")
    .old("kubeskoop_udp_inerrors", "inspector_pod_udpinerrors")
    .alarm("datagrams are dropped on receipt"),
    fact(
        "Udp.OutDatagrams",
        "netskoop_udp_out_datagrams_total",
        "UDP datagrams sent (Udp.OutDatagrams of /proc/net/snmp for IPv4, Udp6OutDatagrams of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6OutDatagrams")
    .old("kubeskoop_udp_outdatagrams", "inspector_pod_udpoutdatagrams"),
    fact(
        "Udp.RcvbufErrors",
        "netskoop_udp_receive_buffer_errors_total",
        "UDP datagrams dropped because the receive buffer of the socket was full (Udp.RcvbufErrors of /proc/net/snmp for IPv4, Udp6RcvbufErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6RcvbufErrors")
    .old("kubeskoop_udp_rcvbuferrors", "inspector_pod_udprcvbuferrors")
    .core()
    .alarm("the receiver is too slow"),
    fact(
        "Udp.SndbufErrors",
        "netskoop_udp_send_buffer_errors_total",
        "UDP datagrams that could not be handed to the IP layer for want of buffer space (Udp.SndbufErrors of /proc/net/snmp for IPv4, Udp6SndbufErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6SndbufErrors")
    .old("kubeskoop_udp_sndbuferrors", "inspector_pod_udpsndbuferrors")
    .alarm("datagrams are dropped on sending"),
    fact(
        "Udp.InCsumErrors",
        "netskoop_udp_in_checksum_errors_total",
        "UDP datagrams received with a bad checksum (Udp.InCsumErrors of /proc/net/snmp for IPv4, Udp6InCsumErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6InCsumErrors")
    .old("kubeskoop_udp_incsumerrors", "inspector_pod_udpincsumerrors")
    .alarm("datagrams arrive damaged"),
    fact(
        "Udp.IgnoredMulti",
        "netskoop_udp_ignored_multicast_total",
        "UDP multicast datagrams that no socket wanted (Udp.IgnoredMulti of /proc/net/snmp for IPv4, Udp6IgnoredMulti of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6IgnoredMulti")
    .old("kubeskoop_udp_ignoredmulti", "inspector_pod_udpignoredmulti"),
];

const MORE: [Fact; 1] = [
    fact(
        "Udp.MemErrors",
        "netskoop_udp_memory_errors_total",
        "UDP datagrams dropped because the memory of the protocol was used up (Udp.MemErrors of /proc/net/snmp for IPv4, Udp6MemErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Udp6MemErrors")
    .alarm("net.ipv4.udp_mem is used up"),
];

static CELLS: [Cells; 8] = cells(&SNMP, &FACTS);
static MORE_CELLS: [Cells; 1] = cells(&SNMP, &MORE);
static NATIVE: [Family; 8] = native(&SNMP, &FACTS, &CELLS);
static NATIVE_MORE: [Family; 1] = native(&SNMP, &MORE, &MORE_CELLS);
static KUBESKOOP: [Family; 8] = kubeskoop(&SNMP, &FACTS);
static INSPECTOR: [Family; 8] = inspector(&SNMP, &FACTS);

const fn hybrid(name: &'static str, help: &'static str, key: &str) -> Family {
    Family::kubeskoop(name, help, &SNMP, one(&SNMP, key))
}

/// Names of the newest documentation, which no build ever had: half of the first generation, half of the second.
static HYBRID: [Family; 6] = [
    hybrid("kubeskoop_pod_udpsndbuferrors", FACTS[5].help(), "Udp.SndbufErrors"),
    hybrid("kubeskoop_pod_udpincsumerrors", FACTS[6].help(), "Udp.InCsumErrors"),
    hybrid("kubeskoop_pod_udpnoports", FACTS[1].help(), "Udp.NoPorts"),
    hybrid("kubeskoop_pod_udpinerrors", FACTS[2].help(), "Udp.InErrors"),
    hybrid("kubeskoop_pod_udpoutdatagrams", FACTS[3].help(), "Udp.OutDatagrams"),
    hybrid("kubeskoop_pod_udprcvbuferrors", FACTS[4].help(), "Udp.RcvbufErrors"),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "udp",
    aliases: &[],
    summary: "UDP datagrams sent, received and dropped, IPv4 and IPv6 apart.",
    when: "Always, and first when DNS look-ups fail now and then.",
    finds: "Receive buffers that overflow, datagrams for ports on which nobody listens, DNS failures.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/snmp, and net/snmp6 for IPv6.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &NATIVE_MORE, &KUBESKOOP, &HYBRID, &INSPECTOR],
    events: &[],
    hooks: None,
};
