//! TCP segments that were sent once more: how many, why, and to whom.

use crate::declare::{Cost, EventDecl, Family, Only, OptionDecl, Points, Probe, TableDecl, column, counter};
use crate::facts::one;
use crate::filter;
use crate::flows::{self, FLOW_COLUMNS, FLOW_KEYS};
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::table::Table;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::tcpretrans::{TcpretransSkel, TcpretransSkelBuilder, types};
use std::mem::MaybeUninit;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcpretrans",
    aliases: &[],
    summary: "TCP segments sent once more, with five-tuple, what made the sender do it, and its round-trip time.",
    when: "Connections are slow or stall, or `netskoop_tcp_retransmitted_segments_total` grows.",
    finds: "A path that loses packets (fast retransmits, probes), a peer that is gone or a firewall that drops silently \
            (time-outs, SYN), a server that drops the answers of its clients (SYN-ACK), a rule on this host that drops \
            what it sends (failed).",
    cost: Cost::Low,
    needs: "BTF tracepoints tcp_retransmit_skb and tcp_retransmit_synack (failed ones: Linux 6.17).",
    default_on: true,
    section: None,
    options: &[
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
        flows::OPTION,
        flows::MAX_OPTION,
    ],
    families: &[NATIVE, KUBESKOOP],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 2] = [
    CountersMap { name: "counters", table: &TABLE, fill },
    CountersMap { name: "counters", table: &FLOWS, fill: fill_flows },
];

static TABLE: TableDecl = TableDecl {
    name: "tcpretrans",
    keys: &["type", "trigger"],
    columns: &[counter("packets"), counter("segments"), counter("failed")],
    node: false,
};

/// The mark is the type.
static FLOWS: TableDecl =
    TableDecl { name: "tcpretrans_flows", keys: &FLOW_KEYS, columns: &FLOW_COLUMNS, node: false };

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "TCP_RETRANS",
        aliases: &["TCPRetrans"],
        fields: &["type", "trigger", "state", "segments", "srtt_ns"],
        help: "TCP sent a segment once more. type: data, syn, syn_ack; trigger: timeout (nothing came back), fast (the peer \
               told of a gap), probe (of the last segment).",
    },
    EventDecl {
        name: "TCP_RETRANS_FAILED",
        aliases: &[],
        fields: &["type", "trigger", "state", "segments", "srtt_ns", "error"],
        help: "TCP wanted to send a segment once more and this host did not let it: error is the errno (1 is a rule of a \
               firewall, 113 no route).",
    },
];

const PACKETS: Points = one(&TABLE, "packets");

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_tcpretrans_segments_total",
        "Segments that TCP sent once more, as they are on the wire. type: data, syn (of connections made here), syn_ack (of \
         connections made by others).",
        &TABLE,
        one(&TABLE, "segments"),
    )
    .keys(&[("type", 0)])
    .fold(),
    Family::native(
        "netskoop_tcpretrans_packets_total",
        "Times that TCP sent something once more, segments that belong together counted as one. trigger: timeout, fast (the \
         peer told of a gap), probe (of the last segment), unknown.",
        &TABLE,
        PACKETS,
    )
    .keys(&[("type", 0), ("trigger", 1)]),
    Family::native(
        "netskoop_tcpretrans_failed_total",
        "Times that this host refused to send a segment once more, because of a firewall rule or a missing route (Linux \
         6.17).",
        &TABLE,
        one(&TABLE, "failed"),
    )
    .keys(&[("type", 0)])
    .fold(),
    Family::native(
        "netskoop_tcpretrans_flow_segments_total",
        "Segments sent once more, by connection for those that did it most (src is the sender); the rest is src=\"other\". All \
         of an entity's together grow by as much as its netskoop_tcpretrans_segments_total; what a series has shown ends with it.",
        &FLOWS,
        one(&FLOWS, "segments"),
    )
    .keys(&flows::LABELS)
    .fold()
    .option(flows::OPTION.name),
];

const OLD_FLOWS: Points = Points::Cells(&[(flows::OLD_LABELS, column(&FLOWS, "packets"))]);
const OLD_HELP: &str = "Times that TCP sent something once more.";

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_tcpretrans_total", OLD_HELP, &TABLE, PACKETS)
        .only(without_answers(0))
        .fold()
        .unless(flows::OPTION.name),
    Family::kubeskoop("kubeskoop_tcpretrans_total", OLD_HELP, &FLOWS, OLD_FLOWS)
        .keys(&flows::LABELS)
        .only(without_answers(flows::MARK))
        .fold()
        .option(flows::OPTION.name),
];

/// The tracepoint of the older systems' programs did not tell of these. `key` is the row key with the type.
const fn without_answers(key: usize) -> Only {
    Only { key, values: &["syn_ack"], include: false }
}

/// In the order of `enum type` and `enum trigger`.
const TYPES: [&str; 3] = ["data", "syn", "syn_ack"];
const TRIGGERS: [&str; 4] = ["unknown", "timeout", "fast", "probe"];

fn run(session: Session) -> Result<(), Refused> {
    let arguments = session.tracepoint("tcp_retransmit_skb")?;
    session.tracepoint("tcp_retransmit_synack")?;
    if arguments <= 2 {
        session.limited("before Linux 6.17 the kernel does not tell what could not be sent once more");
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TcpretransSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
    }
    flows::make_room(&session, &mut open.maps.flows)?;
    session.run(open, apply, "tp_btf", &["counters", flows::MAP])
}

fn apply(skel: &mut TcpretransSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.stack = settings.bool("stack").into();
    options.flows = settings.bool(flows::OPTION.name).into();
}

fn decode(bytes: &[u8], _: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tcpretrans_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let kind = TYPES.get(usize::from(event.r#type))?;
    let trigger = TRIGGERS.get(usize::from(event.trigger))?;
    let mut fields = vec![("type", Value::Text((*kind).to_owned()))];
    if event.trigger > 0 {
        fields.push(("trigger", Value::Text((*trigger).to_owned())));
    }
    fields.extend(record::state(event.state));
    if event.segments > 1 {
        fields.push(("segments", Value::Number(event.segments.into())));
    }
    if event.srtt_us > 0 {
        fields.push(("srtt_ns", Value::Number(u64::from(event.srtt_us) * 1000)));
    }
    if event.error > 0 {
        fields.push(("error", Value::Number(event.error.into())));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::tcpretrans_key = plain::read(key)?;
        let kind = *TYPES.get(usize::from(key.r#type))?;
        let trigger = *TRIGGERS.get(usize::from(key.trigger))?;
        Some(((counters.subject)(key.netns, key.cookie)?, [kind.into(), trigger.into()], value))
    });
}

fn fill_flows(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    // What was sent is in one of these and among the flows; what failed is in neither.
    let sent = counters.entries.iter().filter_map(|(key, value)| {
        let key: types::tcpretrans_key = plain::read(key)?;
        let value: types::tcpretrans_value = plain::read(value)?;
        Some(((key.netns, key.cookie, key.r#type), [value.packets, value.segments]))
    });
    flows::fill(counters, &flows::totals(flows::sums(sent)), &TYPES, table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use crate::kernel::features::Features;
    use crate::table::Subject;
    use std::path::Path;

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    #[test]
    fn counters_become_rows() {
        let entry = |netns: u32, kind: u16, trigger: u16, values: [u64; 3]| {
            let key =
                [&netns.to_ne_bytes()[..], &kind.to_ne_bytes(), &trigger.to_ne_bytes(), &[0; 8]].concat();
            (key, values.map(u64::to_ne_bytes).concat())
        };
        let pairs = [entry(6, 0, 2, [1, 2, 3]), entry(5, 1, 1, [4, 5, 6]), entry(5, 9, 0, [7; 3])];
        let (entries, options, memory) = (Entries::from_pairs(&pairs), Options::new(), Memory::default());
        let subject = |netns, _| Some(Subject(netns));
        let mut table = Table::new(&TABLE, 100);
        fill(&Counters::new(&entries, &subject, &options, &memory), &known(), &mut table);
        let row = |row| (table.subject(row).0, table.key(row, 0), table.key(row, 1), table.cell(row, 2));
        assert_eq!(table.len(), 2);
        assert_eq!(row(0), (5, &b"syn"[..], &b"timeout"[..], Some(6)));
        assert_eq!(row(1), (6, &b"data"[..], &b"fast"[..], Some(3)));
    }

    #[test]
    fn short_records_and_unknown_types_are_refused() {
        let whole = vec![0; size_of::<types::tcpretrans_event>()];
        assert!(decode(&whole, &known()).is_some());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        let mut strange = whole;
        strange[std::mem::offset_of!(types::tcpretrans_event, r#type)] = 9;
        assert!(decode(&strange, &known()).is_none());
    }
}
