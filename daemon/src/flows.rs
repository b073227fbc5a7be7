//! What is counted by five-tuple, where an option asks for it: the largest have rows of their own, and one row has the rest.
//! The map in the kernel is bounded; beside it each program counts exactly, by namespace, what goes into that map.

use crate::declare::{Column, OptionDecl, OptionType, counter};
use crate::hooks::{Counters, Tuple};
use crate::kernel::bpf::{Entries, Refused, Session};
use crate::kernel::record;
use crate::table::{Subject, Table};
use ledger::{Flow, Ledger, Limits};
use libbpf_rs::OpenMapMut;
use netskoop_bpf::plain;
use netskoop_bpf::tcpretrans::types::{flow_key, flow_value};
use std::collections::BTreeMap;

pub mod ledger;

pub use ledger::{Count, Total};

// Every object has its own copy of the shared types; they come from one header.
const _: () = assert!(size_of::<flow_key>() == size_of::<netskoop_bpf::packetloss::types::flow_key>());

/// Switches it on.
pub const OPTION: OptionDecl = OptionDecl {
    name: "flows",
    kind: OptionType::Bool { default: false },
    help: "Counts by five-tuple as well. Those with the largest numbers have series of their own; the rest, also what finds no \
           room in the kernel (4096 at once), is src=\"other\".",
};

/// How many are shown.
pub const MAX_OPTION: OptionDecl = OptionDecl {
    name: "max_flows",
    kind: OptionType::Integer { default: 50, min: 1, max: 1000 },
    help: "With `flows`: so many five-tuples have series of their own at once, over all namespaces.",
};

/// The map in the kernel.
pub const MAP: &str = "flows";

/// Row keys of a table of flows. The mark is the program's: one of the words that [`fill`] gets.
pub const FLOW_KEYS: [&str; 6] = ["protocol", "src", "sport", "dst", "dport", "mark"];

/// Its columns.
pub const FLOW_COLUMNS: [Column; 2] = [counter("packets"), counter("segments")];

/// Row keys as labels.
pub const LABELS: [(&str, usize); 5] = [("protocol", 0), ("src", 1), ("sport", 2), ("dst", 3), ("dport", 4)];

/// The row key with the mark.
pub const MARK: usize = 5;

/// What else the older systems put on a series of a five-tuple. They asked a controller for pods elsewhere, which does not
/// exist here; an empty label is no label.
pub const OLD_LABELS: &str = "src_type=\"unknown\",dst_type=\"unknown\"";

/// Protocol, source and destination of what has no row of its own.
pub const OTHER: [&str; 5] = ["other", "other", "0", "other", "0"];

/// What has not grown for so long makes room.
const IDLE_NS: u64 = 300_000_000_000;

/// Entries of the map in the kernel: so many at least, and so many for each CPU. Each keeps up to 128 free ones for itself.
const ROOM: usize = 4096;
const ROOM_BY_CPU: usize = 256;

/// Gives the map in the kernel the room that it needs.
pub fn make_room(session: &Session, map: &mut OpenMapMut<'_>) -> Result<(), Refused> {
    session.room_by_cpu(map, ROOM_BY_CPU, ROOM)
}

/// What has one total: a namespace's inode, its cookie, and the number of a mark.
pub type Group = (u32, u64, u16);

/// Adds up what was counted of each group.
pub fn sums(parts: impl Iterator<Item = (Group, Count)>) -> BTreeMap<Group, Count> {
    let mut sums: BTreeMap<Group, Count> = BTreeMap::new();
    for (group, count) in parts {
        let sum = sums.entry(group).or_default();
        *sum = [sum[0].wrapping_add(count[0]), sum[1].wrapping_add(count[1])];
    }
    sums
}

/// Sums that only grow, as totals.
pub fn totals(sums: BTreeMap<Group, Count>) -> Vec<Total<Group>> {
    sums.into_iter().map(|(group, count)| Total { group, count, pulse: count[0] }).collect()
}

/// Adds the largest flows to their table, and a row for the rest of each total. `totals` are what was counted exactly, read
/// before this is called; `marks` are the words for the numbers that the program has marked flows with.
pub fn fill(counters: &Counters<'_>, totals: &[Total<Group>], marks: &[&str], table: &mut Table) {
    if let Some(flows) = counters.beside.and_then(|beside| beside(MAP)) {
        fill_at(counters, (totals, &flows), marks, now(), table);
    }
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

fn fill_at(
    counters: &Counters<'_>,
    (totals, flows): (&[Total<Group>], &Entries),
    marks: &[&str],
    now: u64,
    table: &mut Table,
) {
    let flows = flows.iter().filter_map(|(bytes, value)| {
        let (key, value) = plain::read::<flow_key>(bytes).zip(plain::read::<flow_value>(value))?;
        let group = (key.netns, key.cookie, key.tuple.pad);
        Some(Flow { key: bytes, group, count: [value.packets, value.segments] })
    });
    let limits = Limits { shown: shown(counters), idle: IDLE_NS, now };
    let mut rows: Vec<(Subject, Vec<String>, Count)> = Vec::new();
    let mut add = |(netns, cookie, mark): Group, words: [String; 5], count: Count| {
        let Some(subject) = (counters.subject)(netns, cookie) else { return };
        let mark = marks.get(usize::from(mark)).copied().unwrap_or("other").to_owned();
        rows.push((subject, words.into_iter().chain([mark]).collect(), count));
    };
    counters.memory.own(|ledger: &mut Ledger<Group>| {
        let known = |(netns, cookie, _): &Group| (counters.subject)(*netns, *cookie).is_some();
        let shares = ledger.enter(flows, totals, known, limits);
        for (flow, count) in shares.own {
            if let Some(tuple) = plain::read::<flow_key>(flow.key).and_then(|key| tuple(&key)) {
                add(flow.group, words(&tuple), count);
            }
        }
        for total in totals {
            add(total.group, OTHER.map(str::to_owned), ledger.other(total.group));
        }
        let idle = shares.idle.into_iter().map(|key| (MAP, key.into()));
        counters.expired.borrow_mut().extend(idle);
    });
    // The rows of one subject follow each other.
    rows.sort_by_key(|(subject, ..)| *subject);
    for (subject, keys, count) in rows {
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        if let Some(cells) = table.row(subject, &keys) {
            cells.copy_from_slice(&count);
        }
    }
}

/// So many flows have rows of their own.
pub fn shown(counters: &Counters<'_>) -> usize {
    counters.integer(MAX_OPTION.name).unwrap_or(50)
}

fn tuple(key: &flow_key) -> Option<Tuple> {
    let t = key.tuple;
    record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport))
}

/// Protocol, source and destination as row keys.
pub fn words(tuple: &Tuple) -> [String; 5] {
    [
        protocol(tuple.proto),
        tuple.src.to_string(),
        tuple.sport.to_string(),
        tuple.dst.to_string(),
        tuple.dport.to_string(),
    ]
}

/// As the older systems wrote it.
fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::TableDecl;
    use crate::hooks::{Memory, Options};
    use netskoop_api::OptionValue;

    static TABLE: TableDecl = TableDecl { name: "f", keys: &FLOW_KEYS, columns: &FLOW_COLUMNS, node: false };

    fn entry(netns: u32, dport: u16, mark: u16, packets: u64) -> (Vec<u8>, Vec<u8>) {
        let mut key = netns.to_ne_bytes().to_vec();
        key.extend([0; 4]);
        key.extend([4, 6]);
        key.extend([7_u16, dport, mark].map(u16::to_ne_bytes).concat());
        for last_byte in [1, 2] {
            key.extend([10, 0, 0, last_byte]);
            key.extend([0; 12]);
        }
        key.extend([0; 8]);
        assert_eq!(key.len(), size_of::<flow_key>());
        (key, [packets, 2 * packets].map(u64::to_ne_bytes).concat())
    }

    /// What one reading fills in: subject, row keys, packets, segments.
    fn filled(
        counters: &Counters<'_>,
        flows: &[(Vec<u8>, Vec<u8>)],
        totals: &[Total<Group>],
        now: u64,
    ) -> Vec<(u32, String, Count)> {
        let (flows, mut table) = (Entries::from_pairs(flows), Table::new(&TABLE, 100));
        fill_at(counters, (totals, &flows), &["data", "syn"], now, &mut table);
        let row = |row| {
            let keys: Vec<_> = (0..6).map(|key| String::from_utf8_lossy(table.key(row, key))).collect();
            let cell = |column| table.cell(row, column).unwrap();
            (table.subject(row).0, keys.join(" "), [cell(0), cell(1)])
        };
        (0..table.len()).map(row).collect()
    }

    #[test]
    fn the_largest_have_rows_and_the_rest_of_each_total_has_one() {
        let entries = Entries::default();
        let (options, memory) = (Options::from([("max_flows", OptionValue::Integer(2))]), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let parts =
            [((5, 0, 0), [31, 62]), ((5, 0, 0), [10, 20]), ((6, 0, 1), [30, 60]), ((99, 0, 0), [9, 9])];
        let totals = totals(sums(parts.into_iter()));
        let flows = [entry(5, 1, 0, 10), entry(6, 2, 1, 30), entry(5, 3, 0, 20), entry(99, 5, 0, 5)];
        let row = |subject, keys: &str, packets| (subject, keys.to_owned(), [packets, 2 * packets]);
        let now = IDLE_NS * 2;
        let wanted = [
            row(5, "TCP 10.0.0.1 7 10.0.0.2 3 data", 20),
            row(5, "other other 0 other 0 data", 21),
            row(6, "TCP 10.0.0.1 7 10.0.0.2 2 syn", 30),
            row(6, "other other 0 other 0 syn", 0),
        ];
        assert_eq!(filled(&counters, &flows, &totals, now), wanted);
        assert!(counters.expired.take().is_empty());
        // Nothing has grown for long: all make room, and nothing is lost.
        let wanted = [row(5, "other other 0 other 0 data", 21), row(6, "other other 0 other 0 syn", 0)];
        assert_eq!(filled(&counters, &flows, &totals, now + IDLE_NS + 1), wanted);
        let [first, second, third, _] = flows.map(|(key, _)| (MAP, key.into_boxed_slice()));
        assert_eq!(counters.expired.take(), [first, second, third], "the last one's namespace is not known");
    }
}
