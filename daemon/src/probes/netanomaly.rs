//! What an expert looks for when a network misbehaves in a way that looks like nothing in particular: neighbours that do not
//! answer, limits that are reached, packets that the kernel takes for lies.

use crate::declare::{Cost, EventDecl, Family, OptionDecl, Points, Probe, TableDecl, column, counter};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::sources::columns::NETSTAT;
use crate::sources::conntrack::CONNTRACK;
use crate::table::Table;
use netskoop_api::Value;
use netskoop_bpf::netanomaly::{NetanomalySkel, NetanomalySkelBuilder, types};
use netskoop_bpf::plain;
use std::mem::MaybeUninit;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "netanomaly",
    aliases: &[],
    summary: "Rare things that break networks: silent neighbours, used up memory of sockets, SYN cookies, spoofed sources and more.",
    when: "Something is wrong, no other probe tells what, and somebody is on call.",
    finds: "A gateway that does not answer ARP, a tunnel that swallows large packets (a black hole of the path MTU), a neighbour \
            table or TIME_WAIT table that is full, tcp_mem or udp_mem reached, a server flooded with SYNs, a reader that lets the \
            window close, packets dropped by rp_filter.",
    cost: Cost::Low,
    needs: "Counters of /proc/net/netstat; for neighbours, memory of sockets and the path MTU the BTF tracepoints \
            neigh_timer_handler, neigh_create, sock_exceed_buf_limit and tcp_retransmit_skb. What conntrack counts is there if \
            that probe is on.",
    default_on: false,
    section: None,
    options: &[OptionDecl::STACK, filter::ENTITIES, filter::IGNORE_ENTITIES],
    families: &[FAMILIES],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: true }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl =
    TableDecl { name: "netanomaly", keys: &["anomaly"], columns: &[counter("count")], node: false };

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "NET_ANOMALY",
    aliases: &[],
    fields: &[
        "anomaly",
        "neighbour",
        "device",
        "direction",
        "packet_size",
        "mss",
        "path_mtu",
        "timeouts",
        "evidence",
        "count",
    ],
    help: "Something that an expert looks for; anomaly: neighbour_failed (neighbour did not answer on device), \
           neighbour_table_full (it found no room), socket_memory (a socket got no memory to send or to receive; direction), \
           mtu_black_hole (a suspicion, told once for a connection until something is acknowledged: a packet of packet_size \
           bytes got lost after so many timeouts in a row, while small ones arrived; mss and path_mtu as this host has them; \
           evidence: smaller_acknowledged, the peer told that it got shorter segments sent later, or peer_sends_on, it sends new \
           data as only one does whose data is acknowledged. Without either, as when all that is under way is large and the peer \
           says nothing, it cannot be told from a peer that is gone, and only tcpretrans tells), \
           or one of those that the kernel counts anyhow: then it is told when metrics are collected, once for all that came \
           since they were collected before (count).",
}];

/// The event of what the kernel has counted since it was read before.
pub fn risen(label: &str, netns: (u32, u64), count: u64) -> RawEvent {
    let anomaly = label.split('"').nth(1).unwrap_or(label).to_owned();
    RawEvent::found(
        &EVENTS[0],
        netns,
        vec![("anomaly", Value::Text(anomaly)), ("count", Value::Number(count))],
    )
}

/// In the order of `enum anomaly`.
const ANOMALIES: [&str; 4] = ["neighbour_failed", "neighbour_table_full", "socket_memory", "mtu_black_hole"];

/// In the order of `enum evidence`.
const EVIDENCE: [&str; 3] = ["none", "smaller_acknowledged", "peer_sends_on"];

/// In the order of the kernel's `SK_MEM_SEND` and `SK_MEM_RECV`.
const DIRECTIONS: [&str; 2] = ["send", "receive"];

const fn of_netstat(label: &'static str, key: &str) -> (&'static str, u16) {
    (label, column(&NETSTAT, key))
}

/// What the kernel counts anyhow: the table, and the label and column of each.
pub static POLLED: [(&TableDecl, &[(&str, u16)]); 2] = [(&NETSTAT, &COUNTED), (&CONNTRACK, &RACES)];

static COUNTED: [(&str, u16); 9] = [
    of_netstat("anomaly=\"syn_cookies\"", "TcpExt.SyncookiesSent"),
    of_netstat("anomaly=\"syn_queue_full\"", "TcpExt.TCPReqQFullDrop"),
    of_netstat("anomaly=\"time_wait_overflow\"", "TcpExt.TCPTimeWaitOverflow"),
    of_netstat("anomaly=\"tcp_memory_pressure\"", "TcpExt.TCPMemoryPressures"),
    of_netstat("anomaly=\"tcp_out_of_memory\"", "TcpExt.TCPAbortOnMemory"),
    of_netstat("anomaly=\"orphan_without_linger\"", "TcpExt.TCPAbortOnLinger"),
    of_netstat("anomaly=\"zero_window\"", "TcpExt.TCPToZeroWindowAdv"),
    of_netstat("anomaly=\"mtu_probe_failed\"", "TcpExt.TCPMTUPFail"),
    of_netstat("anomaly=\"rp_filter\"", "TcpExt.IPReversePathFilter"),
];

static RACES: [(&str, u16); 2] = [
    ("anomaly=\"conntrack_insert_race\"", column(&CONNTRACK, "insert_failed")),
    ("anomaly=\"conntrack_chain_too_long\"", column(&CONNTRACK, "chain_toolong")),
];

const NAME: &str = "netskoop_netanomaly_total";
const HELP: &str = "Rare things that break networks. anomaly: neighbour_failed (ARP or NDISC got no answer), neighbour_table_full \
                    (gc_thresh3 of the node is reached), socket_memory (tcp_mem, udp_mem or the memory limit of a cgroup is \
                    reached), mtu_black_hole (suspected: large segments of a connection get lost while small ones arrive), and as \
                    /proc/net/netstat counts them syn_cookies (SyncookiesSent), syn_queue_full (TCPReqQFullDrop), \
                    time_wait_overflow (TCPTimeWaitOverflow), tcp_memory_pressure (TCPMemoryPressures; the node's, counted where it \
                    began), tcp_out_of_memory (TCPAbortOnMemory), orphan_without_linger (TCPAbortOnLinger), zero_window \
                    (TCPToZeroWindowAdv), mtu_probe_failed (TCPMTUPFail; only where net.ipv4.tcp_mtu_probing is on), rp_filter (IPReversePathFilter); with the probe conntrack \
                    also conntrack_insert_race and conntrack_chain_too_long. Ports that are used up are in \
                    netskoop_tcpconnect_failures_total; what this node itself found too large to forward is in \
                    netskoop_ip_fragment_fails_total.";

const FAMILIES: &[Family] = &[
    Family::native(NAME, HELP, &TABLE, one(&TABLE, "count"))
        .keys(&[("anomaly", 0)])
        .core()
        .alarm("the label tells what it is"),
    Family::native(NAME, HELP, &NETSTAT, Points::Cells(&COUNTED)).core().alarm("the label tells what it is"),
    Family::native(NAME, HELP, &CONNTRACK, Points::Cells(&RACES))
        .with("conntrack")
        .core()
        .alarm("the label tells what it is"),
];

fn run(session: Session) -> Result<(), Refused> {
    for name in ["neigh_timer_handler", "neigh_create", "sock_exceed_buf_limit"] {
        session.tracepoint(name)?;
    }
    let arguments = session.tracepoint("tcp_retransmit_skb")?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(NetanomalySkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
    }
    session.run(open, apply, "tp_btf", &["counters"])
}

fn apply(skel: &mut NetanomalySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::netanomaly_event>(bytes)?;
    let anomaly = ANOMALIES.get(usize::from(head.kind))?;
    let mut fields = vec![("anomaly", Value::Text((*anomaly).to_owned()))];
    let neighbour = record::tuple(event.family, 0, (event.neighbour, 0), ([0; 4], 0));
    if let Some(neighbour) = neighbour {
        fields.push(("neighbour", Value::Text(neighbour.src.to_string())));
        fields.push(("device", Value::Text(record::text(&event.device))));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    if event.packet_size > 0 {
        fields.extend(lost(&event)?);
    } else if tuple.is_some() {
        let direction = DIRECTIONS.get(usize::from(event.direction)).copied().unwrap_or("other");
        fields.push(("direction", Value::Text(direction.to_owned())));
    }
    Some(head.event(&EVENTS[0], tuple, fields, stack))
}

/// What is told of a packet that gets lost each time.
fn lost(event: &types::netanomaly_event) -> Option<[(&'static str, Value); 5]> {
    let evidence = *EVIDENCE.get(usize::from(event.evidence))?;
    Some([
        ("packet_size", Value::Number(event.packet_size.into())),
        ("mss", Value::Number(event.mss.into())),
        ("path_mtu", Value::Number(event.path_mtu.into())),
        ("timeouts", Value::Number(event.timeouts.into())),
        ("evidence", Value::Text(evidence.to_owned())),
    ])
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::netanomaly_key = plain::read(key)?;
        let anomaly = *ANOMALIES.get(usize::try_from(key.anomaly).ok()?)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [anomaly.into()], value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::features::Features;
    use std::path::Path;

    #[test]
    fn records_become_events_and_malformed_ones_are_refused() {
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        let mut record = vec![0; size_of::<types::netanomaly_event>()];
        record[std::mem::offset_of!(types::netanomaly_event, family)] = 4;
        let at = std::mem::offset_of!(types::netanomaly_event, neighbour);
        record[at..at + 4].copy_from_slice(&[192, 0, 2, 1]);
        let at = std::mem::offset_of!(types::netanomaly_event, device);
        record[at..at + 4].copy_from_slice(b"eth0");
        let event = decode(&record, &known).unwrap();
        let texts: Vec<_> = event.fields.iter().map(|(name, value)| (*name, value.to_string())).collect();
        assert_eq!(
            texts,
            [
                ("anomaly", "neighbour_failed".into()),
                ("neighbour", "192.0.2.1".into()),
                ("device", "eth0".into())
            ]
        );
        assert_eq!(event.tuple, None);
        for length in 0..record.len() {
            assert!(decode(&record[..length], &known).is_none(), "{length} bytes");
        }
        let kind = std::mem::offset_of!(netskoop_bpf::netns::types::event_head, kind);
        record[kind] = 4;
        assert!(decode(&record, &known).is_none());
    }

    #[test]
    fn a_lost_packet_is_described_only_with_evidence_that_has_a_name() {
        let mut event = types::netanomaly_event {
            packet_size: 1500,
            mss: 1448,
            path_mtu: 1500,
            timeouts: 3,
            evidence: 1,
            ..Default::default()
        };
        let texts = lost(&event).unwrap().map(|(name, value)| format!("{name} {value}"));
        let wanted =
            ["packet_size 1500", "mss 1448", "path_mtu 1500", "timeouts 3", "evidence smaller_acknowledged"];
        assert_eq!(texts, wanted);
        event.evidence = 3;
        assert!(lost(&event).is_none());
    }
}
