//! How long packets are on their way through the kernel, and in which part of it.

use crate::declare::{
    Bucket, Cost, EventDecl, Family, LATENCY, Only, OptionDecl, Points, Probe, TableDecl, histogram,
};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::{OpenSkel, Skel};
use libbpf_rs::{Link, OpenObject};
use netskoop_api::Value;
use netskoop_bpf::kernellatency::{KernellatencySkel, KernellatencySkelBuilder, types};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "kernellatency",
    aliases: &[],
    summary: "How long packets are on their way through the kernel, receiving and sending, and in which part of it.",
    when: "Answers are late now and then, and neither the network nor the program is.",
    finds: "Too many packet filter rules (prerouting_ns and local_in_ns, local_out_ns and postrouting_ns), a slow look-up of routes \
            (route_ns), a neighbour that does not answer at once (postrouting_ns).",
    cost: Cost::High,
    needs: "Functions of the IP layer with fentry, else kprobes; else BTF tracepoints netif_receive_skb, tcp_probe and net_dev_queue, \
            for TCP only and without the parts.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::slow(
            Duration::from_millis(10),
            Duration::from_micros(1)..=Duration::from_secs(60),
            "A packet that is on its way for longer is an event.",
        ),
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::PROTOCOLS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl =
    TableDecl { name: "kernellatency", keys: &["path"], columns: &LATENCY, node: false };

/// In the order of `enum kind`.
const PATHS: [&str; 2] = ["receive", "transmit"];

/// In the order of `enum kind`. After the first field come the parts, in their order.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "RXKERNEL_SLOW",
        aliases: &[],
        fields: &["latency_ns", "prerouting_ns", "route_ns", "local_in_ns"],
        help: "From its arrival to its protocol (TCP, UDP) a packet took longer than the option slow. prerouting_ns: up to the end \
               of the hooks at PREROUTING, if there are any; route_ns: from there to the decision that it is for this host; \
               local_in_ns: the hooks at LOCAL_IN.",
    },
    EventDecl {
        name: "TXKERNEL_SLOW",
        aliases: &[],
        fields: &["latency_ns", "local_out_ns", "postrouting_ns"],
        help: "From its protocol to the first interface a packet took longer than the option slow. local_out_ns: look-up of the \
               route and the hooks at LOCAL_OUT; postrouting_ns: those at POSTROUTING, and the wait for the neighbour's address.",
    },
];

/// 4, 16, 64 and 256 microseconds, 1, 4, 16 and 131 milliseconds.
static BUCKETS: [Bucket; 8] = histogram::microseconds([1, 3, 5, 7, 9, 11, 13, 16]);

const RECEIVE: Only = Only { key: 0, values: &[PATHS[0]], include: true };
const TRANSMIT: Only = Only { key: 0, values: &[PATHS[1]], include: true };

const fn times(name: &'static str, help: &'static str, path: Only) -> Family {
    Family::native(name, help, &TABLE, Points::Histogram(&BUCKETS)).decimals(9).core().only(path).fold()
}

const NATIVE: &[Family] = &[
    times(
        "netskoop_kernellatency_receive_seconds",
        "Time from the arrival of a packet in the namespace to its protocol (TCP, UDP).",
        RECEIVE,
    ),
    times(
        "netskoop_kernellatency_transmit_seconds",
        "Time from the protocol that sends a packet (TCP, UDP) to the first interface on its way. Where only TCP is measured it is the \
         time since TCP decided to send, so that of segments sent together each has those before it in its time.",
        TRANSMIT,
    ),
    Family::native(
        "netskoop_kernellatency_unmeasured_packets_total",
        "Packets of which it is not known how long they took. Where only TCP is measured: those that waited for the process that \
         held their socket, and those whose stamp says when they are to leave.",
        &TABLE,
        one(&TABLE, "unmeasured"),
    )
    .keys(&[("path", 0)]),
];

const SLOW: Points = one(&TABLE, "slow_10ms");
const SLOW_100MS: Points = one(&TABLE, "slow_100ms");

const RX: &str = "Received packets that took 10 ms or longer to their protocol.";
const TX: &str = "Packets that took 10 ms or longer from their protocol to the interface.";
const RX_100MS: &str = "Received packets that took 100 ms or longer to their protocol.";
const TX_100MS: &str = "Packets that took 100 ms or longer from their protocol to the interface.";

const fn kubeskoop(name: &'static str, help: &'static str, points: Points, path: Only) -> Family {
    Family::kubeskoop(name, help, &TABLE, points).only(path).fold()
}

const fn inspector(name: &'static str, help: &'static str, points: Points, path: Only) -> Family {
    Family::inspector(name, help, &TABLE, points).only(path).fold()
}

const KUBESKOOP: &[Family] = &[
    kubeskoop("kubeskoop_kernellatency_rxslow", RX, SLOW, RECEIVE),
    kubeskoop("kubeskoop_kernellatency_txslow", TX, SLOW, TRANSMIT),
    kubeskoop("kubeskoop_kernellatency_rxslow100ms", RX_100MS, SLOW_100MS, RECEIVE),
    kubeskoop("kubeskoop_kernellatency_txslow100ms", TX_100MS, SLOW_100MS, TRANSMIT),
];

/// Two of them have no prefix in the documents of their time.
const INSPECTOR: &[Family] = &[
    inspector("inspector_pod_kernellatency_rxslow", RX, SLOW, RECEIVE),
    inspector("inspector_pod_kernellatency_txslow", TX, SLOW, TRANSMIT),
    inspector("kernellatency_rxslow100ms", RX_100MS, SLOW_100MS, RECEIVE),
    inspector("kernellatency_txslow100ms", TX_100MS, SLOW_100MS, TRANSMIT),
];

static FENTRY: Way = Way::new(
    "fentry",
    &[
        "on_receive",
        "fexit_netfilter",
        "fentry_local_v4",
        "fentry_local_v6",
        "fentry_deliver_v4",
        "fentry_deliver_v6",
        "fentry_tcp_v4",
        "fentry_tcp_v6",
        "fentry_udp_v4",
        "fentry_udp_v6",
        "fentry_output_v4",
        "fentry_output_v6",
        "on_queue",
    ],
);
static KPROBE: Way = Way::new(
    "kprobe",
    &[
        "on_receive",
        "kprobe_local_v4",
        "kprobe_local_v6",
        "kprobe_deliver_v4",
        "kprobe_deliver_v6",
        "kprobe_tcp_v4",
        "kprobe_tcp_v6",
        "kprobe_udp_v4",
        "kprobe_udp_v6",
        "kprobe_output_v4",
        "kprobe_output_v6",
        "on_queue",
    ],
);
static TRACEPOINTS: Way = Way::new("tp_btf", &["on_receive", "on_segment", "on_queue_tcp"]);

/// The ways to see what is received and sent, the best one first.
pub static WAYS: [&Way; 3] = [&FENTRY, &KPROBE, &TRACEPOINTS];

fn run(session: Session) -> Result<(), Refused> {
    for name in ["netif_receive_skb", "tcp_probe", "net_dev_queue"] {
        session.tracepoint(name)?;
    }
    session.run_first(&WAYS, |session, way| {
        let mut storage = MaybeUninit::uninit();
        let loaded = load(&session, way, &mut storage);
        let (mut skel, _links) = match loaded {
            Ok(loaded) => loaded,
            Err(refused) => return Err(Box::new((session, refused))),
        };
        session.serve(|settings| apply(&mut skel, settings));
        Ok(())
    })
}

/// Loads and attaches the programs of a way, and tells that they work.
fn load<'o>(
    session: &Session,
    way: &Way,
    storage: &'o mut MaybeUninit<OpenObject>,
) -> Result<(KernellatencySkel<'o>, Vec<Link>), Refused> {
    let mut open = session.open(KernellatencySkelBuilder::default(), storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
    }
    ways::load_only(open.open_object_mut(), &[way]);
    let (skel, links) = session.hook(open, apply)?;
    if let Some(limit) = limit(way) {
        session.limited(limit);
    }
    session.ready(skel.object(), way.via, &["counters"])?;
    Ok((skel, links))
}

/// What cannot be seen in this way.
fn limit(way: &Way) -> Option<&'static str> {
    match way.via {
        "tp_btf" => Some("without fentry and kprobes only TCP is measured, and as a whole only"),
        "kprobe" => Some("without fentry it is not known how long the hooks at PREROUTING take"),
        _ => None,
    }
}

fn apply(skel: &mut KernellatencySkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.slow_ns = settings.nanoseconds("slow");
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::kernellatency_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    // All ones stand for a part that is not known.
    let times = std::iter::once(event.latency_ns).chain(event.parts);
    let known = decl.fields.iter().zip(times).filter(|(_, time)| *time != u64::MAX);
    let fields = known.map(|(name, time)| (*name, Value::Number(time))).collect();
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_histograms(&PATHS, table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::features::Features;
    use std::mem::offset_of;
    use std::path::Path;

    #[test]
    fn parts_that_are_not_known_are_no_fields() {
        let known = Known::new(Path::new("/nonexistent"), &Features::default());
        let mut whole = vec![0; size_of::<types::kernellatency_event>()];
        let parts = offset_of!(types::kernellatency_event, parts);
        whole[parts..parts + 8].fill(0xff);
        whole[parts + 8] = 7;
        let fields = |bytes: &[u8]| decode(bytes, &known).unwrap().fields;
        assert_eq!(
            fields(&whole),
            [
                ("latency_ns", Value::Number(0)),
                ("route_ns", Value::Number(7)),
                ("local_in_ns", Value::Number(0))
            ]
        );
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known).is_none(), "{length} bytes");
        }
        let kind = offset_of!(types::event_head, kind);
        whole[kind] = 1;
        assert_eq!(fields(&whole), [("latency_ns", Value::Number(0)), ("postrouting_ns", Value::Number(7))]);
        whole[kind] = 2;
        assert!(decode(&whole, &known).is_none());
    }

    #[test]
    fn what_cannot_be_seen_is_said() {
        assert_eq!(limit(&FENTRY), None);
        assert!(limit(&KPROBE).unwrap().contains("PREROUTING"));
        assert!(limit(&TRACEPOINTS).unwrap().contains("only TCP is measured, and as a whole"));
    }
}
