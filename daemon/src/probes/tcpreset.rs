//! TCP resets: which connections were refused or broken off, by whom and why.

use crate::declare::{Column, Cost, EventDecl, Family, Kind, OptionDecl, Points, Probe, TableDecl, column};
use crate::filter;
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::ways::{self, Way};
use crate::table::Table;
use libbpf_rs::skel::OpenSkel;
use netskoop_api::Value;
use netskoop_bpf::plain;
use netskoop_bpf::tcpreset::{TcpresetSkel, TcpresetSkelBuilder, types};
use std::mem::MaybeUninit;

/// The probe.
pub static PROBE: Probe = Probe {
    name: "tcpreset",
    aliases: &["tcp_reset"],
    summary: "TCP resets sent and received, with five-tuple, cause and the kernel's reason.",
    when: "Connections are refused, or break off with \"connection reset by peer\".",
    finds: "A port that nobody listens on; a peer that closes idle connections earlier than its client expects; a \
            program that closes with unread data; state lost by NAT or a load balancer.",
    cost: Cost::Low,
    needs: "BTF tracepoints tcp_send_reset and tcp_receive_reset (resets without a socket: Linux 6.10, else fentry, a kprobe, or \
            kfree_skb with reasons).",
    default_on: true,
    section: None,
    options: &[
        OptionDecl::STACK,
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
    ],
    families: &[&[Family::native(
        "netskoop_tcpreset_resets_total",
        "TCP resets by direction and cause. send: no_socket (nobody listens, or the connection is not known any more), \
         socket (an answer to a packet that the socket does not accept), process (closed or aborted here); receive: \
         connecting (refused), established (broken off), closing.",
        &TABLE,
        Points::Cells(&[("", column(&TABLE, "resets"))]),
    )
    .keys(&[("direction", 0), ("cause", 1)])
    .core()]],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 1] = [CountersMap { name: "counters", table: &TABLE, fill }];

static TABLE: TableDecl = TableDecl {
    name: "tcpreset",
    keys: &["direction", "cause"],
    columns: &[Column { key: "resets", kind: Kind::Counter }],
    node: false,
};

/// In the order of `enum kind`.
static EVENTS: [EventDecl; 4] = [
    EventDecl {
        name: "TCP_RESET_NOSOCK",
        aliases: &["TCPRESET_NOSOCK", "TCP_SEND_RST_NOSock"],
        fields: &["reason", "state"],
        help: "A reset was sent in answer to a packet that belongs to no socket.",
    },
    EventDecl {
        name: "TCP_RESET_PROCESS",
        aliases: &["TCPRESET_PROCESS", "TCP_SEND_RST"],
        fields: &["reason", "state"],
        help: "A reset was sent in answer to a packet that its socket does not accept.",
    },
    EventDecl {
        name: "TCP_RESET_ACTIVE",
        aliases: &["TCPRESET_ACTIVE", "TCP_SEND_RST_ACTIVE"],
        fields: &["reason", "state"],
        help: "A reset was sent on our own account: a close with unread data, an abort, a timer.",
    },
    EventDecl {
        name: "TCP_RESET_RECEIVE",
        aliases: &["TCPRESET_RECEIVE", "TCP_RCV_RST_SYN", "TCP_RCV_RST_ESTAB"],
        fields: &["state"],
        help: "The peer sent a reset; in state SYN_SENT it refused the connection.",
    },
];

/// In the order of `enum cause`.
const CAUSES: [(&str, &str); 6] = [
    ("send", "no_socket"),
    ("send", "socket"),
    ("send", "process"),
    ("receive", "connecting"),
    ("receive", "established"),
    ("receive", "closing"),
];

fn run(session: Session) -> Result<(), Refused> {
    let send = session.tracepoint("tcp_send_reset")?;
    session.tracepoint("tcp_receive_reset")?;
    let mut chosen = vec![&TRACEPOINTS];
    // The reason came with the same release that began to tell resets without a socket.
    if send <= 2 {
        session.limited("before Linux 6.10 the kernel does not tell why it sends a reset");
        chosen.extend(without_socket(&session));
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(TcpresetSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.arguments = u8::try_from(send).unwrap_or(u8::MAX);
        rodata.no_socket_elsewhere = chosen.len() > 1;
        rodata.kfree_skb_arguments = u8::try_from(freed(&session)).unwrap_or(u8::MAX);
    }
    ways::load_only(open.open_object_mut(), &chosen);
    session.run(open, apply, &ways::via(&chosen), &["counters"])
}

static TRACEPOINTS: Way = Way::new("tp_btf", &["on_send_reset", "on_receive_reset"]);
static FENTRY: Way = Way::new("fentry", &["fentry_v4", "fentry_v6"]);
static KPROBE: Way = Way::new("kprobe", &["kprobe_v4", "kprobe_v6"]);
static STAND_IN: Way = Way::new("tp_btf", &["on_no_socket"]);

/// Arguments of the tracepoint for freed packets; 0 if there is none.
fn freed(session: &Session) -> usize {
    session.tracepoint("kfree_skb").unwrap_or(0)
}

/// The way to see resets without a socket where their own tracepoint does not tell of them.
fn without_socket(session: &Session) -> Option<&'static Way> {
    // Without a reason it cannot stand in.
    let ways: &[&Way] = if freed(session) > 2 { &[&FENTRY, &KPROBE, &STAND_IN] } else { &[&FENTRY, &KPROBE] };
    match session.choose::<TcpresetSkelBuilder>(ways) {
        Ok(way) => Some(way),
        Err(refused) => {
            session.limited(format!("resets without a socket are not seen: {refused}"));
            None
        }
    }
}

fn apply(skel: &mut TcpresetSkel<'_>, settings: &Settings) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.stack = settings.bool("stack").into();
}

fn decode(bytes: &[u8], known: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::tcpreset_event>(bytes)?;
    let decl = EVENTS.get(usize::from(head.kind))?;
    let mut fields = Vec::with_capacity(2);
    if decl.fields.contains(&"reason")
        && let Some(reason) = known.reset_reasons.name(event.reason)
    {
        fields.push(("reason", Value::Text(reason.into_owned())));
    }
    fields.extend(record::state(event.state));
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(decl, tuple, fields, stack))
}

fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    counters.fill_rows(table, |key, value| {
        let key: types::tcpreset_key = plain::read(key)?;
        let (direction, cause) = *CAUSES.get(usize::try_from(key.cause).ok()?)?;
        Some(((counters.subject)(key.netns, key.cookie)?, [direction.into(), cause.into()], value))
    });
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

    fn entry(netns: u32, cause: u32, value: u64) -> (Vec<u8>, Vec<u8>) {
        ([netns.to_ne_bytes(), cause.to_ne_bytes(), [0; 4], [0; 4]].concat(), value.to_ne_bytes().to_vec())
    }

    #[test]
    fn counters_become_rows_of_one_subject_each() {
        let pairs = [entry(5, 0, 7), entry(6, 3, 1), entry(5, 4, 2), entry(99, 0, 1), entry(5, 77, 1)];
        let (entries, options, memory) = (Entries::from_pairs(&pairs), Options::new(), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let mut table = Table::new(&TABLE, 100);
        fill(&counters, &known(), &mut table);
        let rows: Vec<_> = (0..table.len())
            .map(|row| (table.subject(row).0, table.key(row, 1).to_vec(), table.cell(row, 0)))
            .collect();
        let row = |subject, cause: &str, value| (subject, cause.as_bytes().to_vec(), Some(value));
        assert_eq!(rows, [row(5, "established", 2), row(5, "no_socket", 7), row(6, "connecting", 1)]);
    }

    #[test]
    fn short_records_and_unknown_kinds_are_refused() {
        let whole = vec![0; size_of::<types::tcpreset_event>()];
        assert!(decode(&whole, &known()).is_some());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
        // `kind` lies behind time, cookie, cgroup, netns and probe.
        let mut strange = whole;
        strange[30..32].copy_from_slice(&9u16.to_ne_bytes());
        assert!(decode(&strange, &known()).is_none());
    }
}
