//! What each probe has to tell of what goes wrong on purpose. A probe that is not here is skipped, with a sentence.

use super::deeds::Deed;
use super::stage::Role;

/// Whose counter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of one of the two namespaces, which the event is of as well.
    Of(Role),
    /// The node's: it is not known who made it grow.
    Node,
}

/// What a probe has to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// The probe.
    pub(super) probe: &'static str,
    /// Of what.
    pub(super) deed: Deed,
    /// About whom.
    pub(super) whose: Whose,
    /// Type of the event; empty if there is none.
    pub(super) event: &'static str,
    /// Fields that it has, where this kernel tells them.
    pub(super) fields: &'static [(&'static str, &'static str)],
    /// A counter that grows.
    pub(super) metric: &'static str,
    /// One of its labels beside the entity's, if not all of its series count.
    pub(super) label: &'static str,
}

impl Check {
    const fn of(probe: &'static str, deed: Deed, role: Role, metric: &'static str) -> Check {
        Check { probe, deed, whose: Whose::Of(role), event: "", fields: &[], metric, label: "" }
    }
    const fn of_node(self) -> Check {
        Check { whose: Whose::Node, ..self }
    }
    const fn event(self, event: &'static str) -> Check {
        Check { event, ..self }
    }
    const fn fields(self, fields: &'static [(&'static str, &'static str)]) -> Check {
        Check { fields, ..self }
    }
    const fn label(self, label: &'static str) -> Check {
        Check { label, ..self }
    }
}

use Deed::{Aborted, Late, Lost, Overflow, Refused, Slow, Unheard, Unread};
use Role::{Client, Server};

/// Option that says from when on something is slow enough for an event.
pub(super) const SLOW: &str = "slow";
/// Option that lists reasons without events.
pub(super) const IGNORED: &str = "ignore_reasons";

/// All checks, in the order of the probes.
pub(super) const CHECKS: &[Check] = &[
    Check::of("netdev", Refused, Client, "netskoop_netdev_receive_packets_total"),
    Check::of("tcp", Lost, Client, "netskoop_tcp_retransmitted_segments_total"),
    Check::of("tcpext", Aborted, Client, "netskoop_tcpext_abort_on_close_total"),
    Check::of("udp", Overflow, Server, "netskoop_udp_receive_buffer_errors_total"),
    Check::of("softnet", Refused, Client, "netskoop_softnet_processed_total").of_node(),
    Check::of("ip", Refused, Server, "netskoop_ip_in_receives_total"),
    Check::of("icmp", Unheard, Server, "netskoop_icmp_out_destination_unreachable_total"),
    Check::of("tcpreset", Refused, Server, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_NOSOCK")
        .label("cause=\"no_socket\""),
    Check::of("tcpreset", Refused, Client, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_RECEIVE")
        .label("cause=\"connecting\""),
    Check::of("tcpreset", Aborted, Client, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_ACTIVE")
        .label("cause=\"process\""),
    Check::of("tcpreset", Aborted, Server, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_RECEIVE")
        .label("cause=\"established\""),
    Check::of("tcpretrans", Lost, Client, "netskoop_tcpretrans_segments_total")
        .event("TCP_RETRANS")
        .fields(&[("type", "data")])
        .label("type=\"data\""),
    Check::of("tcptwrcv", Late, Client, "netskoop_tcptwrcv_segments_total")
        .event("TCP_TIME_WAIT_RECEIVE")
        .fields(&[("type", "data")])
        .label("type=\"data\""),
    Check::of("tcpconnect", Refused, Client, "netskoop_tcpconnect_failures_total")
        .event("TCP_CONNECT_FAILED")
        .fields(&[("reason", "refused")])
        .label("cause=\"refused\""),
    Check::of("tcpconnect", Slow, Client, "netskoop_tcpconnect_handshake_seconds_count")
        .event("TCP_CONNECT_SLOW"),
    Check::of("tcprtt", Slow, Client, "netskoop_tcprtt_smoothed_seconds_count").event("TCP_RTT_SLOW"),
    Check::of("packetloss", Overflow, Server, "netskoop_packetloss_packets_total")
        .event("PACKET_DROP")
        .fields(&[("reason", "SOCKET_RCVBUFF")]),
    Check::of("netiftxlat", Refused, Client, "netskoop_netiftxlat_driver_seconds_count"),
    Check::of("socketlatency", Unread, Server, "netskoop_socketlatency_read_seconds_count")
        .event("SOCKETLAT_READSLOW")
        .label("protocol=\"tcp\""),
    // What waits for its neighbour waits between its protocol and the interface.
    Check::of("kernellatency", Slow, Client, "netskoop_kernellatency_transmit_seconds_count")
        .event("TXKERNEL_SLOW"),
    Check::of("softirq", Refused, Client, "netskoop_softirq_execution_seconds_count").of_node(),
];

/// Why probes without a check have none.
const UNTRIED: [(&[&str], &str); 7] = [
    (
        &["fd", "io", "cpu", "tasklatency", "biolatency"],
        "it tells what processes use, and the self-test starts none",
    ),
    (
        &["slab", "limit", "sock", "tcpsummary", "neigh", "qdisc"],
        "it shows how things stand and not what went wrong",
    ),
    (&["conntrack", "ipvs"], "it would take rules, and the self-test makes none"),
    (&["flow"], "it watches interfaces of the node, and the self-test has its own"),
    (&["dns"], "it would take a server of names"),
    (&["virtcmdlatency"], "it would take a command for the node's own interface"),
    (&["rdma"], "it would take an RDMA device"),
];

/// Why a probe without a check has none.
pub(super) fn why_untried(probe: &str) -> &'static str {
    let known = UNTRIED.iter().find(|(probes, _)| probes.contains(&probe));
    known.map_or("nothing that the self-test does concerns it", |(_, why)| why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::PROBES;

    #[test]
    fn checks_name_what_there_is() {
        for check in CHECKS {
            let probe = PROBES.iter().find(|probe| probe.name == check.probe).unwrap();
            let metric = check.metric.strip_suffix("_count").unwrap_or(check.metric);
            let family =
                probe.families().find(|family| family.name == metric).unwrap_or_else(|| panic!("{metric}"));
            assert_eq!(family.type_name() == "histogram", metric != check.metric, "{metric}");
            let event = probe.events.iter().find(|event| event.name == check.event);
            assert!(event.is_some() || check.event.is_empty(), "{}", check.event);
            let known = |name: &str| event.is_some_and(|event| event.fields.contains(&name));
            assert!(check.fields.iter().all(|(name, _)| known(name)), "{}: {:?}", check.event, check.fields);
        }
    }

    #[test]
    fn a_probe_is_tried_or_not() {
        for probe in UNTRIED.iter().flat_map(|(probes, _)| *probes) {
            assert!(CHECKS.iter().all(|check| check.probe != *probe), "{probe}");
            assert!(PROBES.iter().any(|known| known.name == *probe), "{probe}");
        }
    }
}
