//! Probe `ip`: the IP MIBs of both IP versions.

use crate::declare::{Cost, Family, Probe};
use crate::facts::{Cells, Fact, cells, fact, inspector, kubeskoop, native};
use crate::sources::columns::SNMP;

const FACTS: [Fact; 21] = [
    fact(
        "Ip.Forwarding",
        "netskoop_ip_forwarding",
        "Whether the namespace forwards IPv4 packets, 1 for yes and 2 for no (Ip.Forwarding of /proc/net/snmp).",
    )
    .old("kubeskoop_ip_forwarding", "inspector_pod_ipforwarding"),
    fact(
        "Ip.DefaultTTL",
        "netskoop_ip_default_ttl",
        "Time to live of IPv4 packets that are sent, in hops (Ip.DefaultTTL of /proc/net/snmp).",
    )
    .old("kubeskoop_ip_defaultttl", "inspector_pod_ipdefaultttl"),
    fact(
        "Ip.InReceives",
        "netskoop_ip_in_receives_total",
        "IP packets received, including those with errors (Ip.InReceives of /proc/net/snmp for IPv4, Ip6InReceives of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InReceives")
    .old("kubeskoop_ip_inreceives", "inspector_pod_ipinreceives"),
    fact(
        "Ip.InHdrErrors",
        "netskoop_ip_in_header_errors_total",
        "IP packets dropped for an error in their header (Ip.InHdrErrors of /proc/net/snmp for IPv4, Ip6InHdrErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InHdrErrors")
    .old("kubeskoop_ip_inhdrerrors", "inspector_pod_ipinhdrerrors")
    .alarm("packets arrive damaged or with a used-up TTL"),
    fact(
        "Ip.InAddrErrors",
        "netskoop_ip_in_address_errors_total",
        "IP packets dropped because their destination is not valid here (Ip.InAddrErrors of /proc/net/snmp for IPv4, Ip6InAddrErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InAddrErrors")
    .old("kubeskoop_ip_inaddrerrors", "inspector_pod_ipinaddrerrors")
    .alarm("packets come to the wrong place"),
    fact(
        "Ip.ForwDatagrams",
        "netskoop_ip_forwarded_datagrams_total",
        "IP packets forwarded (Ip.ForwDatagrams of /proc/net/snmp for IPv4, Ip6OutForwDatagrams of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutForwDatagrams")
    .old("kubeskoop_ip_forwdatagrams", "inspector_pod_ipforwdatagrams"),
    fact(
        "Ip.InUnknownProtos",
        "netskoop_ip_in_unknown_protocols_total",
        "IP packets dropped because nobody handles their protocol (Ip.InUnknownProtos of /proc/net/snmp for IPv4, Ip6InUnknownProtos of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InUnknownProtos")
    .old("kubeskoop_ip_inunknownprotos", "inspector_pod_ipinunknownprotos"),
    fact(
        "Ip.InDiscards",
        "netskoop_ip_in_discards_total",
        "IP packets dropped on receipt although nothing was wrong with them, for want of memory or by a filter (Ip.InDiscards of /proc/net/snmp for IPv4, Ip6InDiscards of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InDiscards")
    .old("kubeskoop_ip_indiscards", "inspector_pod_ipindiscards")
    .alarm("packets are dropped on receipt"),
    fact(
        "Ip.InDelivers",
        "netskoop_ip_in_delivers_total",
        "IP packets handed to a protocol above IP (Ip.InDelivers of /proc/net/snmp for IPv4, Ip6InDelivers of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InDelivers")
    .old("kubeskoop_ip_indelivers", "inspector_pod_ipindelivers"),
    fact(
        "Ip.OutRequests",
        "netskoop_ip_out_requests_total",
        "IP packets that protocols above IP asked to send (Ip.OutRequests of /proc/net/snmp for IPv4, Ip6OutRequests of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutRequests")
    .old("kubeskoop_ip_outrequests", "inspector_pod_ipoutrequests"),
    fact(
        "Ip.OutDiscards",
        "netskoop_ip_out_discards_total",
        "IP packets dropped on sending although nothing was wrong with them, for want of memory or by a filter (Ip.OutDiscards of /proc/net/snmp for IPv4, Ip6OutDiscards of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutDiscards")
    .old("kubeskoop_ip_outdiscards", "inspector_pod_ipoutdiscards")
    .alarm("packets are dropped on sending"),
    fact(
        "Ip.OutNoRoutes",
        "netskoop_ip_out_no_routes_total",
        "IP packets dropped on sending because there was no route (Ip.OutNoRoutes of /proc/net/snmp for IPv4, Ip6OutNoRoutes of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutNoRoutes")
    .old("kubeskoop_ip_outnoroutes", "inspector_pod_ipoutnoroutes")
    .core()
    .alarm("a route is missing"),
    fact(
        "Ip.ReasmTimeout",
        "netskoop_ip_reassembly_timeouts_total",
        "IP packets whose fragments did not all arrive in time (Ip.ReasmTimeout of /proc/net/snmp for IPv4, Ip6ReasmTimeout of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6ReasmTimeout")
    .old("kubeskoop_ip_reasmtimeout", "inspector_pod_ipreasmtimeout")
    .alarm("fragments are lost"),
    fact(
        "Ip.ReasmReqds",
        "netskoop_ip_reassembly_fragments_total",
        "IP fragments received that had to be put together (Ip.ReasmReqds of /proc/net/snmp for IPv4, Ip6ReasmReqds of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6ReasmReqds")
    .old("kubeskoop_ip_reasmreqds", "inspector_pod_ipreasmreqds"),
    fact(
        "Ip.ReasmOKs",
        "netskoop_ip_reassembled_total",
        "IP packets put together from fragments (Ip.ReasmOKs of /proc/net/snmp for IPv4, Ip6ReasmOKs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6ReasmOKs")
    .old("kubeskoop_ip_reasmoks", "inspector_pod_ipreasmoks"),
    fact(
        "Ip.ReasmFails",
        "netskoop_ip_reassembly_fails_total",
        "Failures to put IP packets together from fragments (Ip.ReasmFails of /proc/net/snmp for IPv4, Ip6ReasmFails of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6ReasmFails")
    .old("kubeskoop_ip_reasmfails", "inspector_pod_ipreasmfails")
    .core()
    .alarm("fragments are lost or their memory is used up"),
    fact(
        "Ip.FragOKs",
        "netskoop_ip_fragmented_total",
        "IP packets that were cut into fragments (Ip.FragOKs of /proc/net/snmp for IPv4, Ip6FragOKs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6FragOKs")
    .old("kubeskoop_ip_fragoks", "inspector_pod_ipfragoks"),
    fact(
        "Ip.FragFails",
        "netskoop_ip_fragment_fails_total",
        "IP packets dropped because they needed fragments and must not have any (Ip.FragFails of /proc/net/snmp for IPv4, Ip6FragFails of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6FragFails")
    .old("kubeskoop_ip_fragfails", "inspector_pod_ipfragfails")
    .alarm("path MTU is too small"),
    fact(
        "Ip.FragCreates",
        "netskoop_ip_fragments_created_total",
        "IP fragments made (Ip.FragCreates of /proc/net/snmp for IPv4, Ip6FragCreates of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6FragCreates")
    .old("kubeskoop_ip_fragcreates", "inspector_pod_ipfragcreates"),
    fact(
        "IpExt.InNoRoutes",
        "netskoop_ip_in_no_routes_total",
        "IP packets dropped on receipt because there was no route to forward them (IpExt.InNoRoutes of /proc/net/netstat for IPv4, Ip6InNoRoutes of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InNoRoutes")
    .old("kubeskoop_ip_innoroutes", "inspector_pod_ipinnoroutes")
    .alarm("a route is missing"),
    fact(
        "IpExt.InTruncatedPkts",
        "netskoop_ip_in_truncated_packets_total",
        "IP packets dropped because they were shorter than their header says (IpExt.InTruncatedPkts of /proc/net/netstat for IPv4, Ip6InTruncatedPkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InTruncatedPkts")
    .old("kubeskoop_ip_intruncatedpkts", "inspector_pod_ipintruncatedpkts")
    .alarm("packets arrive cut off"),
];

const MORE: [Fact; 14] = [
    fact(
        "IpExt.InOctets",
        "netskoop_ip_in_bytes_total",
        "Bytes of IP packets received (IpExt.InOctets of /proc/net/netstat for IPv4, Ip6InOctets of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InOctets"),
    fact(
        "IpExt.OutOctets",
        "netskoop_ip_out_bytes_total",
        "Bytes of IP packets sent (IpExt.OutOctets of /proc/net/netstat for IPv4, Ip6OutOctets of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutOctets"),
    fact(
        "IpExt.InMcastPkts",
        "netskoop_ip_in_multicast_packets_total",
        "IP multicast packets received (IpExt.InMcastPkts of /proc/net/netstat for IPv4, Ip6InMcastPkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InMcastPkts"),
    fact(
        "IpExt.OutMcastPkts",
        "netskoop_ip_out_multicast_packets_total",
        "IP multicast packets sent (IpExt.OutMcastPkts of /proc/net/netstat for IPv4, Ip6OutMcastPkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutMcastPkts"),
    fact(
        "IpExt.InBcastPkts",
        "netskoop_ip_in_broadcast_packets_total",
        "IPv4 broadcast packets received (IpExt.InBcastPkts of /proc/net/netstat).",
    ),
    fact(
        "IpExt.OutBcastPkts",
        "netskoop_ip_out_broadcast_packets_total",
        "IPv4 broadcast packets sent (IpExt.OutBcastPkts of /proc/net/netstat).",
    ),
    fact(
        "IpExt.InCsumErrors",
        "netskoop_ip_in_checksum_errors_total",
        "IPv4 packets received with a bad header checksum (IpExt.InCsumErrors of /proc/net/netstat).",
    )
    .alarm("packets arrive damaged"),
    fact(
        "IpExt.InNoECTPkts",
        "netskoop_ip_in_not_ect_packets_total",
        "IP packets received whose sender does not use ECN (IpExt.InNoECTPkts of /proc/net/netstat for IPv4, Ip6InNoECTPkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InNoECTPkts"),
    fact(
        "IpExt.InECT1Pkts",
        "netskoop_ip_in_ect1_packets_total",
        "IP packets received with ECN code point ECT(1) (IpExt.InECT1Pkts of /proc/net/netstat for IPv4, Ip6InECT1Pkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InECT1Pkts"),
    fact(
        "IpExt.InECT0Pkts",
        "netskoop_ip_in_ect0_packets_total",
        "IP packets received with ECN code point ECT(0) (IpExt.InECT0Pkts of /proc/net/netstat for IPv4, Ip6InECT0Pkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InECT0Pkts"),
    fact(
        "IpExt.InCEPkts",
        "netskoop_ip_in_congestion_experienced_packets_total",
        "IP packets received that a router marked as having met congestion (IpExt.InCEPkts of /proc/net/netstat for IPv4, Ip6InCEPkts of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6InCEPkts")
    .alarm("a queue on the way is full"),
    fact(
        "IpExt.ReasmOverlaps",
        "netskoop_ip_reassembly_overlaps_total",
        "IPv4 fragments that overlapped others (IpExt.ReasmOverlaps of /proc/net/netstat).",
    )
    .alarm("somebody sends overlapping fragments"),
    fact(
        "Ip.OutTransmits",
        "netskoop_ip_out_transmits_total",
        "IP packets handed to the layer below (Ip.OutTransmits of /proc/net/snmp for IPv4, Ip6OutTransmits of /proc/net/snmp6 for IPv6).",
    )
    .v6("Ip6OutTransmits"),
    fact(
        "Ip6InTooBigErrors",
        "netskoop_ip_in_too_big_errors_total",
        "IPv6 packets that were too big to be forwarded (Ip6InTooBigErrors of /proc/net/snmp6).",
    )
    .alarm("path MTU is too small"),
];

static CELLS: [Cells; 21] = cells(&SNMP, &FACTS);
static MORE_CELLS: [Cells; 14] = cells(&SNMP, &MORE);
static NATIVE: [Family; 21] = native(&SNMP, &FACTS, &CELLS);
static NATIVE_MORE: [Family; 14] = native(&SNMP, &MORE, &MORE_CELLS);
static KUBESKOOP: [Family; 21] = kubeskoop(&SNMP, &FACTS);
static INSPECTOR: [Family; 21] = inspector(&SNMP, &FACTS);

/// The probe.
pub static PROBE: Probe = Probe {
    name: "ip",
    aliases: &[],
    summary: "IP packets received, sent, forwarded, fragmented and dropped, IPv4 and IPv6 apart.",
    when: "When packets vanish below TCP and UDP: missing routes, fragments, MTU, cut-off packets.",
    finds: "Drops because of a missing route, reassembly that fails, packets shorter than their header says.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/snmp and net/netstat, and net/snmp6 for IPv6.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &NATIVE_MORE, &KUBESKOOP, &INSPECTOR],
    events: &[],
    hooks: None,
};
