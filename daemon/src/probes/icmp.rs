//! Probe `icmp`: the ICMP MIBs of both IP versions, and the messages by type.

use crate::declare::{Cost, Family, Probe};
use crate::facts::{Cells, Fact, cells, fact, native, one};
use crate::sources::columns::{ICMP_TYPES, SNMP};

const FACTS: [Fact; 47] = [
    fact(
        "Icmp.InMsgs",
        "netskoop_icmp_in_messages_total",
        "ICMP messages received (Icmp.InMsgs of /proc/net/snmp for IPv4, Icmp6InMsgs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InMsgs"),
    fact(
        "Icmp.OutMsgs",
        "netskoop_icmp_out_messages_total",
        "ICMP messages sent (Icmp.OutMsgs of /proc/net/snmp for IPv4, Icmp6OutMsgs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutMsgs"),
    fact(
        "Icmp.InErrors",
        "netskoop_icmp_in_errors_total",
        "ICMP messages received that could not be used (Icmp.InErrors of /proc/net/snmp for IPv4, Icmp6InErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InErrors"),
    fact(
        "Icmp.OutErrors",
        "netskoop_icmp_out_errors_total",
        "ICMP messages that could not be sent (Icmp.OutErrors of /proc/net/snmp for IPv4, Icmp6OutErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutErrors"),
    fact(
        "Icmp.InCsumErrors",
        "netskoop_icmp_in_checksum_errors_total",
        "ICMP messages received with a bad checksum (Icmp.InCsumErrors of /proc/net/snmp for IPv4, Icmp6InCsumErrors of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InCsumErrors"),
    fact(
        "Icmp.InDestUnreachs",
        "netskoop_icmp_in_destination_unreachable_total",
        "ICMP messages received that a destination is unreachable (Icmp.InDestUnreachs of /proc/net/snmp for IPv4, Icmp6InDestUnreachs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InDestUnreachs")
    .alarm("a peer or port is unreachable"),
    fact(
        "Icmp.OutDestUnreachs",
        "netskoop_icmp_out_destination_unreachable_total",
        "ICMP messages sent that a destination is unreachable (Icmp.OutDestUnreachs of /proc/net/snmp for IPv4, Icmp6OutDestUnreachs of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutDestUnreachs"),
    fact(
        "Icmp.InTimeExcds",
        "netskoop_icmp_in_time_exceeded_total",
        "ICMP messages received that a time to live was used up (Icmp.InTimeExcds of /proc/net/snmp for IPv4, Icmp6InTimeExcds of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InTimeExcds")
    .alarm("packets run in a loop"),
    fact(
        "Icmp.OutTimeExcds",
        "netskoop_icmp_out_time_exceeded_total",
        "ICMP messages sent that a time to live was used up (Icmp.OutTimeExcds of /proc/net/snmp for IPv4, Icmp6OutTimeExcds of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutTimeExcds"),
    fact(
        "Icmp.InParmProbs",
        "netskoop_icmp_in_parameter_problems_total",
        "ICMP messages received about a bad header (Icmp.InParmProbs of /proc/net/snmp for IPv4, Icmp6InParmProblems of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InParmProblems"),
    fact(
        "Icmp.InRedirects",
        "netskoop_icmp_in_redirects_total",
        "ICMP messages received that name a better route (Icmp.InRedirects of /proc/net/snmp for IPv4, Icmp6InRedirects of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InRedirects"),
    fact(
        "Icmp.OutRateLimitHost",
        "netskoop_icmp_out_rate_limited_total",
        "ICMP messages not sent because of the limit per peer (Icmp.OutRateLimitHost of /proc/net/snmp for IPv4, Icmp6OutRateLimitHost of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutRateLimitHost"),
    fact(
        "Icmp6InPktTooBigs",
        "netskoop_icmp_in_packet_too_big_total",
        "ICMPv6 messages received that a packet was too big (Icmp6InPktTooBigs of /proc/net/snmp6).",
    )
    .alarm("path MTU is smaller than the interface says"),
    fact(
        "Icmp.InEchos",
        "netskoop_icmp_in_echo_requests_total",
        "ICMP echo requests received (Icmp.InEchos of /proc/net/snmp for IPv4, Icmp6InEchos of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InEchos"),
    fact(
        "Icmp.InEchoReps",
        "netskoop_icmp_in_echo_replies_total",
        "ICMP echo replies received (Icmp.InEchoReps of /proc/net/snmp for IPv4, Icmp6InEchoReplies of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6InEchoReplies"),
    fact(
        "Icmp.OutEchos",
        "netskoop_icmp_out_echo_requests_total",
        "ICMP echo requests sent (Icmp.OutEchos of /proc/net/snmp for IPv4, Icmp6OutEchos of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutEchos"),
    fact(
        "Icmp.OutEchoReps",
        "netskoop_icmp_out_echo_replies_total",
        "ICMP echo replies sent (Icmp.OutEchoReps of /proc/net/snmp for IPv4, Icmp6OutEchoReplies of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutEchoReplies"),
    fact(
        "Icmp.OutParmProbs",
        "netskoop_icmp_out_parameter_problems_total",
        "ICMP messages sent about a bad header (Icmp.OutParmProbs of /proc/net/snmp for IPv4, Icmp6OutParmProblems of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutParmProblems"),
    fact(
        "Icmp.OutRedirects",
        "netskoop_icmp_out_redirects_total",
        "ICMP messages sent that name a better route (Icmp.OutRedirects of /proc/net/snmp for IPv4, Icmp6OutRedirects of /proc/net/snmp6 for IPv6).",
    )
    .v6("Icmp6OutRedirects"),
    fact(
        "Icmp.OutRateLimitGlobal",
        "netskoop_icmp_out_rate_limited_globally_total",
        "ICMP messages not sent because of the limit for all peers together (Icmp.OutRateLimitGlobal of /proc/net/snmp).",
    ),
    fact(
        "Icmp.InSrcQuenchs",
        "netskoop_icmp_in_source_quenchs_total",
        "ICMP messages received that ask to send more slowly, which nobody sends any more (Icmp.InSrcQuenchs of /proc/net/snmp).",
    ),
    fact(
        "Icmp.OutSrcQuenchs",
        "netskoop_icmp_out_source_quenchs_total",
        "ICMP messages sent that ask to send more slowly, which the kernel never does (Icmp.OutSrcQuenchs of /proc/net/snmp).",
    ),
    fact(
        "Icmp.InTimestamps",
        "netskoop_icmp_in_timestamp_requests_total",
        "ICMP timestamp requests received (Icmp.InTimestamps of /proc/net/snmp).",
    ),
    fact(
        "Icmp.InTimestampReps",
        "netskoop_icmp_in_timestamp_replies_total",
        "ICMP timestamp replies received (Icmp.InTimestampReps of /proc/net/snmp).",
    ),
    fact(
        "Icmp.OutTimestamps",
        "netskoop_icmp_out_timestamp_requests_total",
        "ICMP timestamp requests sent (Icmp.OutTimestamps of /proc/net/snmp).",
    ),
    fact(
        "Icmp.OutTimestampReps",
        "netskoop_icmp_out_timestamp_replies_total",
        "ICMP timestamp replies sent (Icmp.OutTimestampReps of /proc/net/snmp).",
    ),
    fact(
        "Icmp.InAddrMasks",
        "netskoop_icmp_in_address_mask_requests_total",
        "ICMP address mask requests received (Icmp.InAddrMasks of /proc/net/snmp).",
    ),
    fact(
        "Icmp.InAddrMaskReps",
        "netskoop_icmp_in_address_mask_replies_total",
        "ICMP address mask replies received (Icmp.InAddrMaskReps of /proc/net/snmp).",
    ),
    fact(
        "Icmp.OutAddrMasks",
        "netskoop_icmp_out_address_mask_requests_total",
        "ICMP address mask requests sent (Icmp.OutAddrMasks of /proc/net/snmp).",
    ),
    fact(
        "Icmp.OutAddrMaskReps",
        "netskoop_icmp_out_address_mask_replies_total",
        "ICMP address mask replies sent (Icmp.OutAddrMaskReps of /proc/net/snmp).",
    ),
    fact(
        "Icmp6OutPktTooBigs",
        "netskoop_icmp_out_packet_too_big_total",
        "ICMPv6 messages sent that a packet was too big to be forwarded (Icmp6OutPktTooBigs of /proc/net/snmp6).",
    )
    .alarm("a path through here has a smaller MTU"),
    fact(
        "Icmp6InGroupMembQueries",
        "netskoop_icmp_in_group_queries_total",
        "ICMPv6 questions who listens to a multicast group, received (Icmp6InGroupMembQueries of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InGroupMembResponses",
        "netskoop_icmp_in_group_reports_total",
        "ICMPv6 messages received that somebody listens to a multicast group (Icmp6InGroupMembResponses of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InGroupMembReductions",
        "netskoop_icmp_in_group_leaves_total",
        "ICMPv6 messages received that somebody leaves a multicast group (Icmp6InGroupMembReductions of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InMLDv2Reports",
        "netskoop_icmp_in_mldv2_reports_total",
        "ICMPv6 reports of multicast groups (MLDv2) received (Icmp6InMLDv2Reports of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InRouterSolicits",
        "netskoop_icmp_in_router_solicitations_total",
        "ICMPv6 questions for routers received (Icmp6InRouterSolicits of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InRouterAdvertisements",
        "netskoop_icmp_in_router_advertisements_total",
        "ICMPv6 router advertisements received (Icmp6InRouterAdvertisements of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InNeighborSolicits",
        "netskoop_icmp_in_neighbor_solicitations_total",
        "ICMPv6 questions who has an address, received (Icmp6InNeighborSolicits of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6InNeighborAdvertisements",
        "netskoop_icmp_in_neighbor_advertisements_total",
        "ICMPv6 answers who has an address, received (Icmp6InNeighborAdvertisements of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutGroupMembQueries",
        "netskoop_icmp_out_group_queries_total",
        "ICMPv6 questions who listens to a multicast group, sent (Icmp6OutGroupMembQueries of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutGroupMembResponses",
        "netskoop_icmp_out_group_reports_total",
        "ICMPv6 messages sent that somebody listens to a multicast group (Icmp6OutGroupMembResponses of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutGroupMembReductions",
        "netskoop_icmp_out_group_leaves_total",
        "ICMPv6 messages sent that somebody leaves a multicast group (Icmp6OutGroupMembReductions of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutMLDv2Reports",
        "netskoop_icmp_out_mldv2_reports_total",
        "ICMPv6 reports of multicast groups (MLDv2) sent (Icmp6OutMLDv2Reports of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutRouterSolicits",
        "netskoop_icmp_out_router_solicitations_total",
        "ICMPv6 questions for routers sent (Icmp6OutRouterSolicits of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutRouterAdvertisements",
        "netskoop_icmp_out_router_advertisements_total",
        "ICMPv6 router advertisements sent (Icmp6OutRouterAdvertisements of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutNeighborSolicits",
        "netskoop_icmp_out_neighbor_solicitations_total",
        "ICMPv6 questions who has an address, sent (Icmp6OutNeighborSolicits of /proc/net/snmp6).",
    ),
    fact(
        "Icmp6OutNeighborAdvertisements",
        "netskoop_icmp_out_neighbor_advertisements_total",
        "ICMPv6 answers who has an address, sent (Icmp6OutNeighborAdvertisements of /proc/net/snmp6).",
    ),
];

static CELLS: [Cells; 47] = cells(&SNMP, &FACTS);
static NATIVE: [Family; 47] = native(&SNMP, &FACTS, &CELLS);

const KEYS: &[(&str, usize)] = &[("family", 0), ("type", 1)];

/// The kernel names only the types that it has seen.
static TYPES: [Family; 2] = [
    Family::native(
        "netskoop_icmp_in_type_total",
        "ICMP messages received, by the number of their type (IcmpMsg.InType<type> of /proc/net/snmp for IPv4, Icmp6InType<type> of /proc/net/snmp6 for IPv6).",
        &ICMP_TYPES,
        one(&ICMP_TYPES, "InType"),
    )
    .keys(KEYS),
    Family::native(
        "netskoop_icmp_out_type_total",
        "ICMP messages sent, by the number of their type (IcmpMsg.OutType<type> of /proc/net/snmp for IPv4, Icmp6OutType<type> of /proc/net/snmp6 for IPv6).",
        &ICMP_TYPES,
        one(&ICMP_TYPES, "OutType"),
    )
    .keys(KEYS),
];

/// The probe.
pub static PROBE: Probe = Probe {
    name: "icmp",
    aliases: &["icmp6"],
    summary: "ICMP messages sent, received and withheld, by kind and type, IPv4 and IPv6 apart.",
    when: "When peers or ports cannot be reached, packets are too big on the way, or routes run in a loop.",
    finds: "Unreachable peers and ports, a path MTU that is too small, routing loops, neighbours that do not answer.",
    cost: Cost::Low,
    needs: "/proc/<pid>/net/snmp, and net/snmp6 for IPv6.",
    default_on: true,
    section: None,
    options: &[],
    families: &[&NATIVE, &TYPES],
    events: &[],
    hooks: None,
};
