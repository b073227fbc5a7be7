//! What is counted by five-tuple, where an option asks for it: the connections with the largest numbers are shown. The map
//! in the kernel is bounded and takes what comes first; what has not grown for a while makes room.

use crate::declare::{Column, OptionDecl, OptionType, counter};
use crate::hooks::{Counters, Known};
use crate::kernel::record;
use crate::table::{Subject, Table};
use netskoop_bpf::plain;
use netskoop_bpf::tcpretrans::types::{flow_key, flow_value};

// Every object has its own copy of the shared types; they come from one header.
const _: () = assert!(size_of::<flow_key>() == size_of::<netskoop_bpf::packetloss::types::flow_key>());

/// Switches it on.
pub const OPTION: OptionDecl = OptionDecl {
    name: "flows",
    kind: OptionType::Bool { default: false },
    help: "Counts by five-tuple as well: up to 2048 at once, of which those with the largest numbers are shown.",
};

/// How many are shown.
pub const MAX_OPTION: OptionDecl = OptionDecl {
    name: "max_flows",
    kind: OptionType::Integer { default: 50, min: 1, max: 1000 },
    help: "With `flows`: so many five-tuples are shown at once, over all namespaces.",
};

/// Row keys of a table of flows.
pub const FLOW_KEYS: [&str; 5] = ["protocol", "src", "sport", "dst", "dport"];

/// Its columns.
pub const FLOW_COLUMNS: [Column; 2] = [counter("packets"), counter("segments")];

/// All row keys as labels.
pub const LABELS: [(&str, usize); 5] = [("protocol", 0), ("src", 1), ("sport", 2), ("dst", 3), ("dport", 4)];

/// What else the older systems put on a series of a five-tuple. They asked a controller for pods elsewhere, which does not
/// exist here; an empty label is no label.
pub const OLD_LABELS: &str = "src_type=\"unknown\",dst_type=\"unknown\"";

/// What has not grown for so long makes room.
const IDLE_NS: u64 = 300_000_000_000;

/// Adds the largest flows to their table.
pub fn fill(counters: &Counters<'_>, _: &Known, table: &mut Table) {
    fill_at(counters, &[], now(), table);
}

/// The same for flows that the program has marked with a number: the names of the numbers are a sixth row key.
pub fn fill_marked(counters: &Counters<'_>, marks: &[&str], table: &mut Table) {
    fill_at(counters, marks, now(), table);
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

fn fill_at(counters: &Counters<'_>, marks: &[&str], now: u64, table: &mut Table) {
    let mut flows: Vec<(u64, u64, Subject, flow_key)> = Vec::new();
    for (bytes, value) in counters.entries.iter() {
        let Some((key, value)) = plain::read::<flow_key>(bytes).zip(plain::read::<flow_value>(value)) else {
            continue;
        };
        if now.saturating_sub(value.last) > IDLE_NS {
            counters.expired.borrow_mut().push(bytes.into());
        } else if let Some(subject) = (counters.subject)(key.netns, key.cookie) {
            flows.push((value.packets, value.segments, subject, key));
        }
    }
    flows.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.2.cmp(&b.2)));
    flows.truncate(counters.integer(MAX_OPTION.name).unwrap_or(50));
    // The rows of one subject follow each other.
    flows.sort_by_key(|flow| flow.2);
    for (packets, segments, subject, key) in flows {
        let t = key.tuple;
        let tuple = record::tuple(t.family, t.proto, (t.saddr, t.sport), (t.daddr, t.dport));
        let Some(tuple) = tuple else { continue };
        let words = [
            protocol(tuple.proto),
            tuple.src.to_string(),
            tuple.sport.to_string(),
            tuple.dst.to_string(),
            tuple.dport.to_string(),
        ];
        let mark = (!marks.is_empty()).then(|| marks.get(usize::from(t.pad)).copied().unwrap_or("other"));
        let keys: Vec<&[u8]> = words.iter().map(String::as_bytes).chain(mark.map(str::as_bytes)).collect();
        if let Some(cells) = table.row(subject, &keys) {
            cells.copy_from_slice(&[packets, segments]);
        }
    }
}

/// As the older systems wrote it.
pub fn protocol(number: u8) -> String {
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
    use crate::kernel::bpf::Entries;
    use netskoop_api::OptionValue;

    static TABLE: TableDecl = TableDecl { name: "f", keys: &FLOW_KEYS, columns: &FLOW_COLUMNS, node: false };

    fn entry(netns: u32, dport: u16, packets: u64, last: u64) -> (Vec<u8>, Vec<u8>) {
        let mut key = netns.to_ne_bytes().to_vec();
        key.extend([0; 4]);
        key.extend([4, 6]);
        key.extend([7_u16, dport, 0].map(u16::to_ne_bytes).concat());
        for last_byte in [1, 2] {
            key.extend([10, 0, 0, last_byte]);
            key.extend([0; 12]);
        }
        key.extend([0; 8]);
        assert_eq!(key.len(), size_of::<flow_key>());
        (key, [packets, 2 * packets, last].map(u64::to_ne_bytes).concat())
    }

    #[test]
    fn the_largest_are_shown_and_the_idle_make_room() {
        let now = IDLE_NS * 2;
        let pairs = [
            entry(5, 1, 10, now),
            entry(6, 2, 30, now),
            entry(5, 3, 20, now),
            entry(5, 4, 99, now - IDLE_NS - 1),
            entry(99, 5, 99, now),
        ];
        let entries = Entries::from_pairs(&pairs);
        let (options, memory) = (Options::from([("max_flows", OptionValue::Integer(2))]), Memory::default());
        let subject = |netns, _| (netns < 10).then_some(Subject(netns));
        let counters = Counters::new(&entries, &subject, &options, &memory);
        let mut table = Table::new(&TABLE, 100);
        fill_at(&counters, &[], now, &mut table);
        let row = |row: usize| {
            let keys = (0..5).map(|key| String::from_utf8_lossy(table.key(row, key)).into_owned());
            (table.subject(row).0, keys.collect::<Vec<_>>().join(" "), table.cell(row, 0), table.cell(row, 1))
        };
        assert_eq!(table.len(), 2);
        assert_eq!(row(0), (5, "TCP 10.0.0.1 7 10.0.0.2 3".to_owned(), Some(20), Some(40)));
        assert_eq!(row(1), (6, "TCP 10.0.0.1 7 10.0.0.2 2".to_owned(), Some(30), Some(60)));
        assert_eq!(counters.expired.take(), [pairs[3].0.clone().into_boxed_slice()]);
    }
}
