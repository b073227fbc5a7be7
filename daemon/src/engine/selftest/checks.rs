//! What each probe has to tell of what goes wrong on purpose. A probe that is not here is skipped, with a sentence.

use super::deeds::{BLOCK, Deed, WORK};
use super::stage::Role;
use crate::filter;
use crate::probes::{listen, socketlatency};

/// Whose counter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of one of the two namespaces, which the event is of as well.
    Of(Role),
    /// The node's: it is not known who made it grow.
    Node,
}

/// By how much a counter has to grow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    /// By so much each time that it was done.
    Each(f64),
    /// By the number of connections that the whole self-test has made.
    Connections,
}

/// What a probe cannot see on some kernels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blind {
    /// What it says of itself then.
    pub(super) says: &'static str,
    /// An option with which it can; empty if there is none.
    pub(super) unless: &'static str,
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
    /// A counter that grows, or a gauge that stays higher.
    pub(super) metric: &'static str,
    /// One of its labels beside the entity's, if not all of its series count.
    pub(super) label: &'static str,
    /// By how much.
    pub(super) amount: Amount,
    /// Whether nothing else makes it grow, so that it is by so much and no more.
    pub(super) exact: bool,
    /// Why it may not be seen.
    pub(super) blind: Option<Blind>,
}

impl Check {
    const fn of(probe: &'static str, deed: Deed, role: Role, metric: &'static str) -> Check {
        Check {
            probe,
            deed,
            whose: Whose::Of(role),
            event: "",
            fields: &[],
            metric,
            label: "",
            amount: Amount::Each(1.0),
            exact: false,
            blind: None,
        }
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
    const fn amount(self, amount: Amount) -> Check {
        Check { amount, ..self }
    }
    const fn exactly(self) -> Check {
        Check { exact: true, ..self }
    }
    const fn blind(self, says: &'static str, unless: &'static str) -> Check {
        Check { blind: Some(Blind { says, unless }), ..self }
    }
}

use Deed::{
    Aborted, Dropped, Full, Kept, Late, Lite, Lost, Nameless, Nowhere, Overflow, Read, Refused, Slow,
    Unaccepted, Unanswered, Unheard, Unread, Unsent, Worked,
};
use Role::{Client, Server};

/// Option that says from when on something is slow enough for an event.
pub(super) const SLOW: &str = "slow";
/// Option that lists reasons without events.
pub(super) const IGNORED: &str = "ignore_reasons";
/// Options of `dns`: after so long it does not wait for an answer; ports of servers; events of another type.
pub(super) const TIMEOUT: &str = "timeout";
pub(super) const PORTS: &str = "ports";
pub(super) const NXDOMAIN: &str = "nxdomain";

/// Options with which only some events are wanted.
pub(super) const FILTERS: [&str; 5] = [
    filter::PORTS.name,
    filter::IGNORE_PORTS.name,
    filter::PROTOCOLS.name,
    filter::ENTITIES.name,
    filter::IGNORE_ENTITIES.name,
];

/// Options that leave out part of what a probe looks at, once they are not as declared.
pub(super) const PARTS: [&str; 2] = ["interfaces", "vectors"];

/// Of each type, in each namespace, so many events must be let through at once; and so many be kept, until they are looked at.
pub(super) const BURST: u32 = 20;
pub(super) const HISTORY: usize = 512;

/// All checks, in the order of the probes.
pub(super) const CHECKS: &[Check] = &[
    Check::of("netdev", Refused, Client, "netskoop_netdev_receive_packets_total"),
    Check::of("tcp", Lost, Client, "netskoop_tcp_retransmitted_segments_total"),
    Check::of("tcp", Kept, Server, "netskoop_tcp_passive_opens_total").amount(Amount::Connections).exactly(),
    Check::of("tcpext", Aborted, Client, "netskoop_tcpext_abort_on_close_total").exactly(),
    Check::of("tcpext", Full, Server, "netskoop_tcpext_listen_overflows_total").exactly(),
    Check::of("udp", Overflow, Server, "netskoop_udp_receive_buffer_errors_total").exactly(),
    Check::of("udplite", Lite, Server, "netskoop_udplite_in_datagrams_total").exactly(),
    Check::of("sock", Kept, Server, "netskoop_sock_udp_in_use").exactly(),
    Check::of("softnet", Refused, Client, "netskoop_softnet_processed_total").of_node(),
    Check::of("ip", Refused, Server, "netskoop_ip_in_receives_total"),
    Check::of("icmp", Unheard, Server, "netskoop_icmp_out_destination_unreachable_total").exactly(),
    Check::of("neigh", Nowhere, Client, "netskoop_neigh_resolutions_failed_total").of_node(),
    Check::of("qdisc", Dropped, Client, "netskoop_qdisc_drops_total"),
    Check::of("cpu", Worked, Client, "netskoop_cpu_run_seconds_total")
        .of_node()
        .amount(Amount::Each(WORK.as_nanos() as f64 / 1e9)),
    Check::of("io", Read, Client, "netskoop_io_disk_read_bytes_total")
        .of_node()
        .amount(Amount::Each(BLOCK as f64)),
    Check::of("tcpsummary", Kept, Server, "netskoop_tcpsummary_connections")
        .label("state=\"established\"")
        .exactly(),
    Check::of("tcpreset", Refused, Server, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_NOSOCK")
        .label("cause=\"no_socket\"")
        .exactly(),
    Check::of("tcpreset", Refused, Client, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_RECEIVE")
        .label("cause=\"connecting\"")
        .exactly(),
    Check::of("tcpreset", Aborted, Client, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_ACTIVE")
        .label("cause=\"process\"")
        .exactly(),
    Check::of("tcpreset", Aborted, Server, "netskoop_tcpreset_resets_total")
        .event("TCP_RESET_RECEIVE")
        .label("cause=\"established\"")
        .exactly(),
    Check::of("tcpretrans", Lost, Client, "netskoop_tcpretrans_segments_total")
        .event("TCP_RETRANS")
        .fields(&[("type", "data")])
        .label("type=\"data\""),
    Check::of("tcptwrcv", Late, Client, "netskoop_tcptwrcv_segments_total")
        .event("TCP_TIME_WAIT_RECEIVE")
        .fields(&[("type", "data")])
        .label("type=\"data\"")
        .exactly(),
    Check::of("tcpconnect", Refused, Client, "netskoop_tcpconnect_failures_total")
        .event("TCP_CONNECT_FAILED")
        .fields(&[("reason", "refused")])
        .label("cause=\"refused\"")
        .exactly(),
    Check::of("tcpconnect", Slow, Client, "netskoop_tcpconnect_handshake_seconds_count")
        .event("TCP_CONNECT_SLOW")
        .amount(Amount::Connections)
        .exactly(),
    Check::of("tcprtt", Slow, Client, "netskoop_tcprtt_smoothed_seconds_count").event("TCP_RTT_SLOW"),
    Check::of("listen", Kept, Server, "netskoop_listen_connections_total")
        .amount(Amount::Connections)
        .exactly(),
    Check::of("listen", Unaccepted, Server, "netskoop_listen_wait_seconds_count")
        .event("TCP_ACCEPT_SLOW")
        .amount(Amount::Connections)
        .exactly()
        .blind(listen::NO_WAITS, listen::SYSTEM_CALLS),
    Check::of("listen", Full, Server, "netskoop_listen_overflows_total")
        .event("TCP_ACCEPT_OVERFLOW")
        .exactly()
        .blind(listen::NO_FULL_QUEUES, ""),
    Check::of("packetloss", Overflow, Server, "netskoop_packetloss_packets_total")
        .event("PACKET_DROP")
        .fields(&[("reason", "SOCKET_RCVBUFF")]),
    Check::of("netiftxlat", Refused, Client, "netskoop_netiftxlat_driver_seconds_count"),
    Check::of("socketlatency", Unread, Server, "netskoop_socketlatency_read_seconds_count")
        .event("SOCKETLAT_READSLOW")
        .label("protocol=\"tcp\""),
    Check::of("socketlatency", Unsent, Client, "netskoop_socketlatency_write_seconds_count")
        .event("SOCKETLAT_SENDSLOW")
        .label("protocol=\"tcp\"")
        .blind(socketlatency::NO_WRITES, ""),
    Check::of("kernellatency", Unread, Server, "netskoop_kernellatency_receive_seconds_count"),
    // What waits for its neighbour waits between its protocol and the interface.
    Check::of("kernellatency", Slow, Client, "netskoop_kernellatency_transmit_seconds_count")
        .event("TXKERNEL_SLOW"),
    Check::of("softirq", Refused, Client, "netskoop_softirq_execution_seconds_count").of_node(),
    // What threads of the daemon do is the node's, wherever they are.
    Check::of("tasklatency", Worked, Client, "netskoop_tasklatency_wait_seconds_count").of_node(),
    Check::of("biolatency", Read, Client, "netskoop_biolatency_request_seconds_count")
        .label("operation=\"read\"")
        .of_node(),
    Check::of("dns", Unanswered, Client, "netskoop_dns_questions_total")
        .event("DNS_FAILED")
        .fields(&[("rcode", "servfail")])
        .label("result=\"servfail\"")
        .exactly(),
    Check::of("dns", Nameless, Client, "netskoop_dns_questions_total")
        .event("DNS_SLOW")
        .fields(&[("rcode", "nxdomain")])
        .label("result=\"nxdomain\"")
        .exactly(),
    Check::of("netanomaly", Nowhere, Client, "netskoop_netanomaly_total")
        .event("NET_ANOMALY")
        .fields(&[("anomaly", "neighbour_failed")])
        .label("anomaly=\"neighbour_failed\"")
        .exactly(),
];

/// Why probes without a check have none.
const UNTRIED: [(&[&str], &str); 8] = [
    (&["flow"], "it watches interfaces of the node, which the self-test leaves alone; it has its own"),
    (&["virtcmdlatency"], "it would take a command to an interface of the node"),
    (
        &["fd"],
        "the files of all processes come and go, so that none of the self-test's could be told from others",
    ),
    (&["slab", "limit"], "it shows how the whole node stands, which the self-test does not change"),
    (&["conntrack", "ipvs"], "it would take rules, and the self-test makes none"),
    (&["mptcp"], "the self-test makes no connections over several paths"),
    (&["rdma"], "it would take an RDMA device"),
    (&["gone"], "it is tried by the end of the self-test's own namespaces"),
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
    fn every_probe_is_tried_or_says_why_not() {
        for probe in UNTRIED.iter().flat_map(|(probes, _)| *probes) {
            assert!(PROBES.iter().any(|known| known.name == *probe), "{probe}");
        }
        for probe in PROBES {
            let tried = CHECKS.iter().any(|check| check.probe == probe.name);
            let untried = UNTRIED.iter().any(|(probes, _)| probes.contains(&probe.name));
            assert!(tried != untried, "{}", probe.name);
        }
    }

    #[test]
    fn options_that_are_looked_at_exist() {
        let has = |probe: &str, option: &str| {
            let probe = PROBES.iter().find(|known| known.name == probe).unwrap();
            assert!(probe.options.iter().any(|known| known.name == option), "{}: {option}", probe.name);
        };
        [TIMEOUT, PORTS, NXDOMAIN, SLOW].iter().for_each(|option| has("dns", option));
        has("packetloss", IGNORED);
        let blind = CHECKS.iter().filter_map(|check| Some((check.probe, check.blind?.unless)));
        blind.filter(|(_, option)| !option.is_empty()).for_each(|(probe, option)| has(probe, option));
    }

    #[test]
    fn every_deed_is_for_a_check() {
        for deed in Deed::ALL {
            assert!(CHECKS.iter().any(|check| check.deed == deed), "{deed:?}");
        }
    }
}
