//! Packets that the kernel threw away: how many, why and where.

use crate::declare::{
    Column, Cost, EventDecl, Family, Kind, Only, OptionDecl, OptionType, Points, Probe, TableDecl, column,
};
use crate::filter;
use crate::flows::{self, Count, FLOW_COLUMNS, FLOW_KEYS, Group, Total};
use crate::hooks::{Counters, CountersMap, Hooks, Known, RawEvent};
use crate::kernel::bpf::{Entries, Refused, Session, Settings};
use crate::kernel::record;
use crate::kernel::symbols::{Found, Landmarks};
use crate::table::{Subject, Table};
use netskoop_api::Value;
use netskoop_bpf::packetloss::{PacketlossSkel, PacketlossSkelBuilder, types};
use netskoop_bpf::plain;
use rustc_hash::FxHasher;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

/// The probe.
pub static PROBE: Probe = Probe {
    name: "packetloss",
    aliases: &[],
    summary: "Packets that the kernel dropped, by the kernel's own reason, with five-tuple and place.",
    when: "Packets vanish: time-outs, retransmits, a service that answers some clients only.",
    finds: "A firewall rule, a full socket buffer, a missing route, a reverse path filter, a full queue, a bad checksum.",
    cost: Cost::Low,
    needs: "BTF tracepoint kfree_skb (reasons: Linux 5.17).",
    default_on: true,
    section: None,
    options: &[
        OptionDecl::STACK,
        OptionDecl {
            name: IGNORE,
            kind: OptionType::List {
                default: IGNORE_REASONS,
                max: 64,
                what: "a drop reason in capitals, as in the event's field `reason`",
                check: is_reason,
            },
            help: "No events for these reasons, which any healthy node shows; they are still counted. `netskoopctl probes show \
                   packetloss` lists those that the kernel knows.",
        },
        OptionDecl {
            name: "reasons",
            kind: OptionType::Integer { default: 24, min: 1, max: 256 },
            help: "So many reasons have metrics of their own; reasons met later are summed up as \"other\".",
        },
        OptionDecl {
            name: "locations",
            kind: OptionType::Integer { default: 32, min: 1, max: 256 },
            help: "So many functions have metrics of their own; those met later are summed up as \"other\".",
        },
        filter::PORTS,
        filter::IGNORE_PORTS,
        filter::PROTOCOLS,
        filter::ENTITIES,
        filter::IGNORE_ENTITIES,
        flows::OPTION,
        flows::MAX_OPTION,
    ],
    families: &[NATIVE, KUBESKOOP, INSPECTOR],
    events: &EVENTS,
    hooks: Some(Hooks { run, decode, maps: &MAPS, optional: false }),
};

static MAPS: [CountersMap; 2] = [
    CountersMap { name: "counters", table: &TABLE, fill },
    CountersMap { name: "counters", table: &FLOWS, fill: fill_flows },
];

/// The mark is a part: what is counted by five-tuple, or what is not.
static FLOWS: TableDecl =
    TableDecl { name: "packetloss_flows", keys: &FLOW_KEYS, columns: &FLOW_COLUMNS, node: false };

static TABLE: TableDecl = TableDecl {
    name: "packetloss",
    keys: &["reason", "class", "location"],
    columns: &[
        Column { key: "packets", kind: Kind::Counter },
        Column { key: "segments", kind: Kind::Counter },
    ],
    node: false,
};

static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "PACKET_DROP",
    aliases: &["PacketLoss", "PACKETLOSS"],
    fields: &["reason", "location", "segments"],
    help: "The kernel dropped a packet.",
}];

const PACKETS: Points = Points::Cells(&[("", column(&TABLE, "packets"))]);
const OLD_FLOWS: Points = Points::Cells(&[(
    "sport=\"0\",dport=\"0\",src_type=\"unknown\",dst_type=\"unknown\"",
    column(&FLOWS, "packets"),
)]);
const FLOW_PACKETS: Points = Points::Cells(&[("", column(&FLOWS, "packets"))]);
const SEGMENTS: Points = Points::Cells(&[("", column(&TABLE, "segments"))]);

const fn class(values: &'static [&'static str], include: bool) -> Only {
    Only { key: 1, values, include }
}

const NATIVE: &[Family] = &[
    Family::native(
        "netskoop_packetloss_packets_total",
        "Packets dropped, by the kernel's reason. Left out is what was freed with a closed socket, answered in TIME_WAIT, \
         or multicast that nobody here asked for.",
        &TABLE,
        PACKETS,
    )
    .keys(&[("reason", 0)])
    .only(class(&["ignored"], false))
    .fold()
    .core(),
    Family::native(
        "netskoop_packetloss_segments_total",
        "Packets dropped as they are on the wire: a packet that is segmented by the device counts as its segments.",
        &TABLE,
        SEGMENTS,
    )
    .keys(&[("reason", 0)])
    .only(class(&["ignored"], false))
    .fold(),
    Family::native(
        "netskoop_packetloss_location_packets_total",
        "Packets dropped, by the kernel function that dropped them, without what is left out above. A function is shown \
         from the scrape after the one that met it first, since its name is looked up meanwhile.",
        &TABLE,
        PACKETS,
    )
    .keys(&[("location", 2)])
    .only(Only { key: 2, values: &[NOT_SHOWN], include: false })
    .fold(),
    Family::native(
        "netskoop_packetloss_class_packets_total",
        "Packets dropped, by class: netfilter, tcp_state (not fit for the connection's state), tcp_receive (for no \
         connection), tcp_handle (refused by a socket), other, and ignored, which is left out above.",
        &TABLE,
        PACKETS,
    )
    .keys(&[("class", 1)])
    .fold(),
    Family::native(
        "netskoop_packetloss_flow_packets_total",
        "IP packets dropped that may be events (not those of class ignored, nor of the reasons in the option ignore_reasons), \
         by five-tuple for those that lost most; the rest is src=\"other\". Together they grow \
         by as much as what was lost; what a series has shown ends with it.",
        &FLOWS,
        FLOW_PACKETS,
    )
    .keys(&flows::LABELS)
    .only(Only { key: flows::MARK, values: &[BY_FLOW], include: true })
    .fold()
    .option(flows::OPTION.name),
];

const KUBESKOOP: &[Family] = &[
    Family::kubeskoop("kubeskoop_packetloss_total", "Packets dropped.", &TABLE, PACKETS)
        .fold()
        .unless(flows::OPTION.name),
    // The older system left the ports out. What is not counted by five-tuple is in the sum all the same, as it is without
    // the option.
    Family::kubeskoop("kubeskoop_packetloss_total", "Packets dropped.", &FLOWS, OLD_FLOWS)
        .keys(&[("protocol", 0), ("src", 1), ("dst", 3)])
        .fold()
        .option(flows::OPTION.name),
    Family::kubeskoop("kubeskoop_packetloss_netfilter", "Packets dropped by netfilter.", &TABLE, PACKETS)
        .only(class(&["netfilter"], true))
        .fold(),
];

const INSPECTOR: &[Family] = &[
    Family::inspector("inspector_pod_packetloss_total", "Packets dropped.", &TABLE, PACKETS).fold(),
    Family::inspector("inspector_pod_totalloss", "Packets dropped.", &TABLE, PACKETS).fold(),
    Family::inspector(
        "inspector_pod_packetloss_abnormal",
        "Packets dropped, without benign ones.",
        &TABLE,
        PACKETS,
    )
    .only(class(&["ignored"], false))
    .fold(),
    Family::inspector("inspector_pod_abnormalloss", "Packets dropped, without benign ones.", &TABLE, PACKETS)
        .only(class(&["ignored"], false))
        .fold(),
    Family::inspector("inspector_pod_packetloss_netfilter", "Packets dropped by netfilter.", &TABLE, PACKETS)
        .only(class(&["netfilter"], true))
        .fold(),
    Family::inspector(
        "inspector_pod_packetloss_tcpstatm",
        "Dropped by the TCP state machine.",
        &TABLE,
        PACKETS,
    )
    .only(class(&["tcp_state"], true))
    .fold(),
    Family::inspector("inspector_pod_packetloss_tcprcv", "Dropped at the entry of TCP.", &TABLE, PACKETS)
        .only(class(&["tcp_receive"], true))
        .fold(),
    Family::inspector("inspector_pod_packetloss_tcphandle", "Dropped by the TCP socket.", &TABLE, PACKETS)
        .only(class(&["tcp_handle"], true))
        .fold(),
];

/// The option with the reasons of which there are no events.
pub const IGNORE: &str = "ignore_reasons";

/// What a node without any trouble shows (measured with bulk TCP between two namespaces on a bridge): data that had
/// arrived before, what was left in the queues of a closed socket, frames for others on a promiscuous device.
const IGNORE_REASONS: &[&str] =
    &["OTHERHOST", "QUEUE_PURGE", "TCP_OFOMERGE", "TCP_OLD_DATA", "TCP_OLD_SEQUENCE"];

/// Functions that free packets which were delivered, whose socket is gone, or which nobody here asked for:
/// `ip6_mc_input` gets the neighbour discovery of everyone on the link.
const BENIGN: [&str; 11] = [
    "ip6_mc_input",
    "nfnetlink_rcv_batch",
    "sk_stream_kill_queues",
    "skb_queue_purge",
    "skb_queue_purge_reason",
    "skb_release_data",
    "udp_destruct_common",
    "udp_destruct_sock",
    "unix_release_sock",
    "unix_stream_connect",
    "skb_rbtree_purge",
];

/// Functions that stand for a class of their own.
const CLASSIFIED: [&str; 6] =
    ["nf_hook_slow", "tcp_rcv_state_process", "tcp_v4_do_rcv", "tcp_v4_rcv", "tcp_v6_do_rcv", "tcp_v6_rcv"];

/// Stands for the place of packets that are not told by place: they are no loss, or its name is still looked up. Under a
/// name of its own what is to be named would fall once it is, which looks like a counter that was reset.
const NOT_SHOWN: &str = "";

/// Stands in the counters for no reason of the kernel's: the last segments of a connection, which its socket in
/// TIME_WAIT has answered, are freed like a drop without a reason, once per connection closed in good order.
const IN_TIME_WAIT: u32 = u32::MAX;

/// The words for marks in the table of flows; the program gives none, which is the first.
const PARTS: [&str; 2] = [BY_FLOW, "not counted by flow"];
const BY_FLOW: &str = "by flow";
const REST: u16 = 1;

/// Sets of row keys that have rows of their own.
const SET_OF_REASONS: u8 = 0;
const SET_OF_LOCATIONS: u8 = 1;

/// Length of the programs' list of code ranges, and words of their set of reasons.
const RANGES: usize = 16;
const REASONS: usize = 256;

/// The reasons of this kernel that can be left out, in alphabetical order; none if it does not tell reasons.
pub fn ignorable(known: &Known) -> Vec<String> {
    let reasons = known.drop_reasons.numbered().filter(|(number, _)| (*number as usize) < REASONS);
    let mut names: Vec<String> = reasons.map(|(_, name)| name.to_owned()).collect();
    names.sort_unstable();
    names
}

fn is_reason(word: &str) -> bool {
    !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn run(session: Session) -> Result<(), Refused> {
    let arguments = session.tracepoint("kfree_skb")?;
    if arguments <= 2 {
        session.limited("before Linux 5.17 the kernel does not tell why it drops: there is the place only");
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(PacketlossSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.arguments = u8::try_from(arguments).unwrap_or(u8::MAX);
        rodata.in_time_wait = IN_TIME_WAIT;
        rodata.alone = session.guards_programs();
        rodata.tick_ns = tick_ns();
    }
    // Hidden symbols cost the filter, not the probe: then benign drops are events too.
    let known = session.known();
    let functions = [&BENIGN[..], &CLASSIFIED].concat();
    let benign =
        known.symbols.learn(&functions).map(|landmarks| landmarks.ranges(&BENIGN)).unwrap_or_default();
    if let Some(hidden) = known.symbols.hidden() {
        session.limited(hidden);
    }
    let apply = |skel: &mut _, settings: &_| apply(skel, settings, &known, &benign);
    flows::make_room(&session, &mut open.maps.flows)?;
    session.run(open, apply, "tp_btf", &["counters", flows::MAP])
}

/// Length of a tick of the kernel's clock: the coarse clocks go by it.
fn tick_ns() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_sec * 1_000_000_000 + tick.tv_nsec).unwrap_or(0)
}

fn apply(skel: &mut PacketlossSkel<'_>, settings: &Settings, known: &Known, benign: &[Range<u64>]) {
    let Some(options) = skel.maps.bss_data.as_deref_mut().map(|data| &mut data.options) else { return };
    (options.limit.interval_ns, options.limit.tolerance_ns) = settings.limit();
    filter::apply(&mut options.filter, settings);
    options.stack = settings.bool("stack").into();
    options.flows = settings.bool(flows::OPTION.name).into();
    let mut set = [0u64; REASONS / 64];
    for reason in settings.list(IGNORE).iter().filter_map(|name| known.drop_reasons.number(name)) {
        let reason = reason as usize;
        if reason < REASONS {
            set[reason / 64] |= 1 << (reason % 64);
        }
    }
    options.ignore_reasons = set;
    let mut ranges = benign.iter().take(RANGES);
    for range in &mut options.ignore {
        (range.start, range.end) = ranges.next().map_or((0, 0), |range| (range.start, range.end));
    }
    // Last, so that what is judged under the new number is judged by all of this. The programs have 31 bits for it.
    fence(Ordering::Release);
    options.generation = ((options.generation + 1) % (1 << 31)).max(1);
}

fn decode(bytes: &[u8], known: &Known) -> Option<RawEvent> {
    let (head, event, stack) = record::parse::<types::packetloss_event>(bytes)?;
    let mut fields = Vec::with_capacity(4);
    if !known.drop_reasons.is_empty() {
        fields.push(("reason", Value::Text(known.drop_reasons.name(event.reason).into_owned())));
    }
    fields.push(("location", Value::Text(known.symbols.name(event.location))));
    if event.segments > 1 {
        fields.push(("segments", Value::Number(event.segments.into())));
    }
    let t = event.tuple;
    let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
    Some(head.event(&EVENTS[0], tuple, fields, stack))
}

/// What stands in the row of an entry of the counters map.
type RowKey<'a> = (Subject, Cow<'a, str>, &'static str, Cow<'a, str>);

fn fill(counters: &Counters<'_>, known: &Known, table: &mut Table) {
    let entries = || {
        counters.entries.iter().filter_map(|(key, value)| {
            Some((plain::read::<types::packetloss_key>(key)?, plain::read::<types::packetloss_value>(value)?))
        })
    };
    let mut locations: Vec<u64> =
        entries().filter(|(key, _)| key.reason != IN_TIME_WAIT).map(|(key, _)| key.location).collect();
    locations.sort_unstable();
    locations.dedup();
    let places = known.symbols.places(&locations);
    let landmarks = known.symbols.landmarks();
    let spot = |address: u64| Spot {
        address,
        found: locations.binary_search(&address).map_or(&Found::Later, |at| &places[at]),
        landmarks: &landmarks,
    };
    let mut rows: Vec<(RowKey<'_>, u64, u64)> = entries()
        .filter_map(|(key, value)| {
            let subject = (counters.subject)(key.netns, key.cookie)?;
            let row = row_key(counters, known, subject, key.reason, &spot(key.location))?;
            Some((row, value.packets, value.packets + value.more))
        })
        .collect();
    rows.sort_unstable();
    for group in rows.chunk_by(|a, b| a.0 == b.0) {
        let (subject, reason, class, location) = &group[0].0;
        if let Some(cells) = table.row(*subject, &[reason.as_bytes(), class.as_bytes(), location.as_bytes()])
        {
            cells[0] = group.iter().map(|row| row.1).sum();
            cells[1] = group.iter().map(|row| row.2).sum();
        }
    }
}

fn fill_flows(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    // A packet on its way through the program is counted, and not by five-tuple yet. It is when this is read once more, so
    // that it never seems to be one that is not.
    let Some(later) = counters.beside.and_then(|beside| beside("counters")) else { return };
    flows::fill(counters, &totals_of_parts(counters.entries, &later), &PARTS, table);
}

/// Totals of both parts, by the counters as they were, and a moment later.
fn totals_of_parts(entries: &Entries, later: &Entries) -> Vec<Total<Group>> {
    let by_flow = sums(entries, |value| [value.flow_packets, value.flow_packets + value.flow_more]);
    let later = sums(later, |value| [value.flow_packets, value.flow_packets + value.flow_more]);
    let all = sums(entries, |value| [value.packets, value.packets + value.more]);
    let rest = all.into_iter().map(|((netns, cookie, part), [packets, segments])| {
        let [flow_packets, flow_segments] = later.get(&(netns, cookie, part)).copied().unwrap_or_default();
        let count = [packets.saturating_sub(flow_packets), segments.saturating_sub(flow_segments)];
        // It may seem to fall by what was dropped in that moment.
        Total { group: (netns, cookie, REST), count, pulse: packets }
    });
    flows::totals(by_flow).into_iter().chain(rest).collect()
}

fn sums(entries: &Entries, count: impl Fn(&types::packetloss_value) -> Count) -> BTreeMap<Group, Count> {
    flows::sums(entries.iter().filter_map(|(key, value)| {
        let key: types::packetloss_key = plain::read(key)?;
        Some(((key.netns, key.cookie, 0), count(&plain::read(value)?)))
    }))
}

/// Where packets were dropped, as far as it is known.
struct Spot<'a> {
    address: u64,
    found: &'a Found,
    landmarks: &'a Landmarks,
}

impl<'a> Spot<'a> {
    fn function(&self) -> Option<&'a str> {
        match self.found {
            Found::At(place) => Some(place.function()),
            Found::Nameless | Found::Later => None,
        }
    }

    /// Which class a drop belongs to; `None` if that is not known yet, since only its name can tell.
    fn class(&self, reason: &str) -> Option<&'static str> {
        if self.landmarks.cover(self.address) {
            return Some(class_of(self.landmarks.function(self.address), reason));
        }
        (*self.found != Found::Later).then(|| class_of(self.function(), reason))
    }
}

/// `None` if what was counted cannot be shown yet: in a sum that it leaves again it must not be, even for one scrape.
fn row_key<'a>(
    counters: &Counters<'_>,
    known: &'a Known,
    subject: Subject,
    reason: u32,
    spot: &Spot<'a>,
) -> Option<RowKey<'a>> {
    if reason == IN_TIME_WAIT {
        return Some((subject, "TIME_WAIT".into(), "ignored", NOT_SHOWN.into()));
    }
    let name = known.drop_reasons.name(reason);
    let class = spot.class(&name)?;
    let shown = counters.integer("reasons").unwrap_or(24);
    let own = counters.memory.admit(SET_OF_REASONS, reason.into(), shown);
    let reason = if own { name } else { "other".into() };
    let shown = counters.integer("locations").unwrap_or(32);
    let location = match (spot.found, spot.function()) {
        (Found::Later, _) => NOT_SHOWN,
        // What is left out must not take the room of what is shown.
        _ if class == "ignored" => NOT_SHOWN,
        (_, None) => "unknown",
        (_, Some(name)) if counters.memory.admit(SET_OF_LOCATIONS, number_of(name), shown) => name,
        (_, Some(_)) => "other",
    };
    Some((subject, reason, class, location.into()))
}

/// A number that stands for a function: addresses of one function differ from call to call.
fn number_of(function: &str) -> u64 {
    let mut hasher = FxHasher::default();
    function.hash(&mut hasher);
    hasher.finish()
}

/// Which of the older systems' classes a drop belongs to, by the function that freed the packet.
fn class_of(function: Option<&str>, reason: &str) -> &'static str {
    match function {
        Some("nf_hook_slow") => "netfilter",
        _ if reason == "NETFILTER_DROP" => "netfilter",
        _ if reason == "QUEUE_PURGE" => "ignored",
        Some("tcp_rcv_state_process") => "tcp_state",
        Some("tcp_v4_rcv" | "tcp_v6_rcv") => "tcp_receive",
        Some("tcp_v4_do_rcv" | "tcp_v6_do_rcv") => "tcp_handle",
        Some(function) if BENIGN.contains(&function) => "ignored",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::features::Features;
    use netskoop_api::OptionValue;
    use std::path::Path;

    fn known() -> Known {
        Known::new(Path::new("/nonexistent"), &Features::default())
    }

    fn entry(netns: u32, reason: u32, location: u64, packets: u64, segments: u64) -> (Vec<u8>, Vec<u8>) {
        let key =
            [&netns.to_ne_bytes()[..], &reason.to_ne_bytes(), &location.to_ne_bytes(), &[0; 8]].concat();
        (key, [packets, segments - packets, 0, 0, 0].map(u64::to_ne_bytes).concat())
    }

    /// Waits until names were looked up.
    fn named(known: &Known, pairs: &[(Vec<u8>, Vec<u8>)]) {
        let address =
            |(key, _): &(Vec<u8>, Vec<u8>)| plain::read::<types::packetloss_key>(key).unwrap().location;
        let addresses: Vec<u64> = pairs.iter().map(address).collect();
        while known.symbols.places(&addresses).contains(&Found::Later) {
            std::thread::yield_now();
        }
    }

    fn filled(known: &Known, pairs: &[(Vec<u8>, Vec<u8>)], shown: u64, memory: &Memory) -> Table {
        let (entries, subject) = (Entries::from_pairs(pairs), |netns, _| Some(Subject(netns)));
        let options = Options::from([("reasons", OptionValue::Integer(shown))]);
        let counters = Counters::new(&entries, &subject, &options, memory);
        let mut table = Table::new(&TABLE, 100);
        fill(&counters, known, &mut table);
        table
    }

    /// What is shown once names were looked up.
    fn rows(
        pairs: &[(Vec<u8>, Vec<u8>)],
        shown: u64,
        memory: &Memory,
    ) -> Vec<(u32, String, Option<u64>, Option<u64>)> {
        let known = known();
        named(&known, pairs);
        let table = filled(&known, pairs, shown, memory);
        let keys = |row| [table.key(row, 0), b" ", table.key(row, 1)].concat();
        (0..table.len())
            .map(|row| {
                let keys = String::from_utf8(keys(row)).unwrap();
                (table.subject(row).0, keys, table.cell(row, 0), table.cell(row, 1))
            })
            .collect()
    }

    #[test]
    fn places_of_one_reason_are_one_row() {
        let pairs = [entry(5, 3, 0x10, 1, 2), entry(5, 3, 0x20, 10, 20), entry(4, 3, 0x10, 100, 100)];
        let wanted =
            [(4, "3 other".to_owned(), Some(100), Some(100)), (5, "3 other".to_owned(), Some(11), Some(22))];
        assert_eq!(rows(&pairs, 24, &Memory::default()), wanted);
    }

    #[test]
    fn sums_do_not_fall_when_reasons_come_or_the_limit_changes() {
        let memory = Memory::default();
        let first = [entry(5, 3, 1, 7, 7)];
        let more = [entry(5, 3, 1, 7, 7), entry(5, 4, 1, 9, 9)];
        let row = |keys: &str, value| (5, keys.to_owned(), Some(value), Some(value));
        assert_eq!(rows(&first, 1, &memory), [row("3 other", 7)]);
        assert_eq!(rows(&more, 1, &memory), [row("3 other", 7), row("other other", 9)]);
        assert_eq!(rows(&more, 99, &memory), [row("3 other", 7), row("other other", 9)]);
    }

    #[test]
    fn sums_are_whole_before_places_have_names_and_nothing_moves_then() {
        let dir = std::env::temp_dir().join(format!("netskoop-packetloss-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let text = "1000 T _stext\n1100 T nf_hook_slow\n1200 T udp_rcv\n1300 T skb_release_data\n1400 T _etext\n\
                    9000 t nfnetlink_rcv_batch [nfnetlink]\n9100 t other_module [other]\n";
        std::fs::write(dir.join("kallsyms"), text).unwrap();
        let known = Known::new(&dir, &Features::default());
        known.symbols.learn(&[&BENIGN[..], &CLASSIFIED].concat()).unwrap();
        let places = [0x1110, 0x1210, 0x1220, 0x1310, 0x9010, 0x9110];
        let pairs: Vec<_> =
            places.iter().zip([1, 10, 20, 300, 4000, 50000]).map(|(at, n)| entry(5, 2, *at, n, n)).collect();
        let memory = Memory::default();
        let rows = || {
            let table = filled(&known, &pairs, 24, &memory);
            let key = |row, at| String::from_utf8(table.key(row, at).to_vec()).unwrap();
            let mut rows: Vec<_> =
                (0..table.len()).map(|row| (key(row, 1), key(row, 2), table.cell(row, 0).unwrap())).collect();
            rows.sort();
            rows
        };
        let row = |class: &str, place: &str, packets| (class.to_owned(), place.to_owned(), packets);
        // A module's function might be one of those that are left out of sums, so it is waited for.
        let at_once = [row("ignored", "", 300), row("netfilter", "", 1), row("other", "", 30)];
        assert_eq!(rows(), at_once);
        named(&known, &pairs);
        std::fs::remove_dir_all(&dir).unwrap();
        let then = [
            row("ignored", "", 4300),
            row("netfilter", "nf_hook_slow", 1),
            row("other", "other_module", 50000),
            row("other", "udp_rcv", 30),
        ];
        assert_eq!(rows(), then);
    }

    #[test]
    fn what_time_wait_answered_is_no_loss() {
        assert_eq!(rows(&[entry(5, IN_TIME_WAIT, 1, 3, 3)], 9, &Memory::default())[0].1, "TIME_WAIT ignored");
    }

    #[test]
    fn classes_follow_the_function() {
        assert_eq!(class_of(Some("nf_hook_slow"), "NOT_SPECIFIED"), "netfilter");
        assert_eq!(class_of(Some("nft_do_chain"), "NETFILTER_DROP"), "netfilter");
        assert_eq!(class_of(Some("tcp_rcv_state_process"), ""), "tcp_state");
        assert_eq!(class_of(Some("tcp_v6_rcv"), ""), "tcp_receive");
        assert_eq!(class_of(Some("tcp_v6_do_rcv"), ""), "tcp_handle");
        assert_eq!(class_of(Some("skb_queue_purge"), ""), "ignored");
        assert_eq!(class_of(None, "QUEUE_PURGE"), "ignored");
        assert_eq!(class_of(None, ""), "other");
    }

    #[test]
    fn short_records_are_refused() {
        let whole = vec![0; size_of::<types::packetloss_event>()];
        assert!(decode(&whole, &known()).is_some());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], &known()).is_none(), "{length} bytes");
        }
    }
}
