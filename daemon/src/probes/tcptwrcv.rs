//! TCP segments for connections that are closed here already and wait in TIME_WAIT.

use crate::declare::{Cost, EventDecl, Family, OptionDecl, Probe, TableDecl, counter};
use crate::facts::one;
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::OpenSkel;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::tcptwrcv::{TcptwrcvSkel, TcptwrcvSkelBuilder, types};
use std::mem::MaybeUninit;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcptwrcv",
    aliases: &[],
    summary: "TCP segments that came for a connection in TIME_WAIT: late data, resets, and ports used again too early.",
    when: "Connections through NAT or a load balancer cannot be made now and then, or data vanishes at the end of a connection.",
    finds: "A client behind NAT whose ports come back before 60 seconds are over (SYN), a peer that goes on sending after \
            this side has closed (data), a reset that cuts TIME_WAIT short.",
    cost: Cost::Low,
    needs: "BTF tracepoint kfree_skb with the receiving socket (Linux 6.11), else fentry or a kprobe.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[&[Family::native(
        "netskoop_tcptwrcv_segments_total",
        "Segments that came for a connection in TIME_WAIT. type: syn (a SYN that opens a new connection is none of them with \
         some ways to look), rst, fin (the regular end, or its repetition), data, ack.",
        &TABLE,
        one(&TABLE, "segments"),
    )
    .keys(&[("type", 0)])
    .core()]],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl =
    TableDecl { name: "tcptwrcv", keys: &["type"], columns: &[counter("segments")], node: false };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "TCP_TIME_WAIT_RECEIVE",
        aliases: &["TCPTWRCV"],
        fields: &["type", "payload"],
        help: "A segment came for a connection in TIME_WAIT: syn, data (payload: bytes of it) or ack.",
    },
    EventDecl {
        name: "TCP_TIME_WAIT_RESET",
        aliases: &["TCP_RCV_RST_TW"],
        fields: &["type"],
        help: "The peer sent a reset for a connection in TIME_WAIT.",
    },
];

/// In the order of `enum type`.
const TYPES: [&str; 5] = ["syn", "rst", "fin", "data", "ack"];

static TRACEPOINT: Way = Way::new("tp_btf", &["on_kfree_skb"]);
static FENTRY: Way = Way::new("fentry", &["fentry_timewait"]);
static KPROBE: Way = Way::new("kprobe", &["kprobe_timewait"]);

fn run(session: Session) -> Result<(), Refused> {
    let arguments = session.tracepoint("kfree_skb")?;
    let ways: &[&Way] = if arguments > 3 { &[&TRACEPOINT, &FENTRY, &KPROBE] } else { &[&FENTRY, &KPROBE] };
    let way = session.choose::<TcptwrcvSkelBuilder>(ways)?;
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TcptwrcvSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
    }
    ways::load_only(open.open_object_mut(), &[way]);
    session.run(open, apply, way.via, &["counters"])
}

fn apply(skel: &mut TcptwrcvSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tcptwrcv_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let kind = TYPES.get(usize::from(event.r#type))?;
    let mut fields = vec![("type", Value::Text((*kind).to_owned()))];
    if event.payload > 0 {
        fields.push(("payload", Value::Number(event.payload.into())));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::tcptwrcv_key = plain::read(key)?;
        let kind = *TYPES.get(usize::try_from(key.r#type).ok()?)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [kind.into()], value))
    });
}
