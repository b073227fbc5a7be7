//! Histograms: the kernel counts in slots of powers of two, a few of which are shown as buckets.

use super::{Column, PLAIN, Shape, counter};

/// Slots of a histogram, as `SLOTS` of `bpf/include/histogram.bpf.h`: slot 0 counts the values below 2, slot n those from
/// 2^n to below 2^(n+1), the last one all above.
pub const SLOTS: usize = 28;

/// The columns of a table whose rows are histograms: the sum of all values, then the slots.
pub const HISTOGRAM: [Column; SLOTS + 1] = [
    counter("sum"),
    counter("slot0"),
    counter("slot1"),
    counter("slot2"),
    counter("slot3"),
    counter("slot4"),
    counter("slot5"),
    counter("slot6"),
    counter("slot7"),
    counter("slot8"),
    counter("slot9"),
    counter("slot10"),
    counter("slot11"),
    counter("slot12"),
    counter("slot13"),
    counter("slot14"),
    counter("slot15"),
    counter("slot16"),
    counter("slot17"),
    counter("slot18"),
    counter("slot19"),
    counter("slot20"),
    counter("slot21"),
    counter("slot22"),
    counter("slot23"),
    counter("slot24"),
    counter("slot25"),
    counter("slot26"),
    counter("slot27"),
];

/// The columns of a table whose rows are `struct latency` of `bpf/include/histogram.bpf.h`: a histogram, how many of its times
/// were 10 and 100 milliseconds or longer, how many could not be measured, and for how many of these there was no room.
pub const LATENCY: [Column; HISTOGRAM.len() + 4] = {
    let mut columns = [counter("slow_10ms"); HISTOGRAM.len() + 4];
    let mut i = 0;
    while i < HISTOGRAM.len() {
        columns[i] = HISTOGRAM[i];
        i += 1;
    }
    columns[i + 1] = counter("slow_100ms");
    columns[i + 2] = counter("unmeasured");
    columns[i + 3] = counter("skipped");
    columns
};

/// A bucket that is shown: its label text, and the last slot that belongs to it.
pub type Bucket = (&'static str, u8);

/// Buckets shown at most: each is a series of every entity.
pub const MAX_BUCKETS: usize = 8;

/// The upper ends of the slots in seconds where the kernel counts microseconds.
const MICROSECONDS: [&str; SLOTS] = [
    "le=\"0.000002\"",
    "le=\"0.000004\"",
    "le=\"0.000008\"",
    "le=\"0.000016\"",
    "le=\"0.000032\"",
    "le=\"0.000064\"",
    "le=\"0.000128\"",
    "le=\"0.000256\"",
    "le=\"0.000512\"",
    "le=\"0.001024\"",
    "le=\"0.002048\"",
    "le=\"0.004096\"",
    "le=\"0.008192\"",
    "le=\"0.016384\"",
    "le=\"0.032768\"",
    "le=\"0.065536\"",
    "le=\"0.131072\"",
    "le=\"0.262144\"",
    "le=\"0.524288\"",
    "le=\"1.048576\"",
    "le=\"2.097152\"",
    "le=\"4.194304\"",
    "le=\"8.388608\"",
    "le=\"16.777216\"",
    "le=\"33.554432\"",
    "le=\"67.108864\"",
    "le=\"134.217728\"",
    "le=\"268.435456\"",
];

const SLOT_LABELS: [&str; SLOTS] = [
    "le=\"0\"",
    "le=\"1\"",
    "le=\"2\"",
    "le=\"3\"",
    "le=\"4\"",
    "le=\"5\"",
    "le=\"6\"",
    "le=\"7\"",
    "le=\"8\"",
    "le=\"9\"",
    "le=\"10\"",
    "le=\"11\"",
    "le=\"12\"",
    "le=\"13\"",
    "le=\"14\"",
    "le=\"15\"",
    "le=\"16\"",
    "le=\"17\"",
    "le=\"18\"",
    "le=\"19\"",
    "le=\"20\"",
    "le=\"21\"",
    "le=\"22\"",
    "le=\"23\"",
    "le=\"24\"",
    "le=\"25\"",
    "le=\"26\"",
    "le=\"27\"",
];

/// Buckets that end with these slots, for values in microseconds that are shown as seconds.
pub const fn microseconds<const N: usize>(slots: [u8; N]) -> [Bucket; N] {
    assert!(N <= MAX_BUCKETS, "too many buckets");
    let mut buckets = [("", 0); N];
    let mut i = 0;
    while i < N {
        assert!(i == 0 || slots[i - 1] < slots[i], "buckets grow");
        buckets[i] = (MICROSECONDS[slots[i] as usize], slots[i]);
        i += 1;
    }
    buckets
}

/// Label of a slot.
pub(super) fn slot_label(slot: usize) -> &'static str {
    SLOT_LABELS.get(slot).copied().unwrap_or_default()
}

/// The points of a histogram: its buckets, the bucket of all values, the sum and the number of values.
pub(super) fn shape(buckets: &[Bucket], cell: usize) -> Shape {
    let bucket = |label| Shape { suffix: "_bucket", label, is_count: true };
    match cell.checked_sub(buckets.len()) {
        None => bucket(buckets[cell].0),
        Some(0) => bucket("le=\"+Inf\""),
        Some(1) => Shape { suffix: "_sum", ..PLAIN },
        Some(_) => Shape { suffix: "_count", is_count: true, ..PLAIN },
    }
}

fn slot_column(slot: usize) -> u16 {
    slot as u16 + 1
}

/// Emits the points of a histogram, whose columns `total` tells; nothing if it has none.
pub fn points(buckets: &[Bucket], total: impl Fn(u16) -> Option<u64>, mut emit: impl FnMut(usize, u64)) {
    let Some(sum) = total(0) else { return };
    let (mut count, mut next) = (0_u64, 0);
    for (cell, (_, last)) in buckets.iter().enumerate() {
        while next <= usize::from(*last) {
            count = count.wrapping_add(total(slot_column(next)).unwrap_or(0));
            next += 1;
        }
        emit(cell, count);
    }
    let rest = (next..SLOTS).filter_map(|slot| total(slot_column(slot)));
    count = rest.fold(count, u64::wrapping_add);
    for (at, value) in [count, sum, count].into_iter().enumerate() {
        emit(buckets.len() + at, value);
    }
}

/// Emits the slots in which something was counted.
pub fn slots(total: impl Fn(u16) -> Option<u64>, mut emit: impl FnMut(usize, u64)) {
    for slot in 0..SLOTS {
        if let Some(value) = total(slot_column(slot)).filter(|value| *value > 0) {
            emit(slot, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_has_everything() {
        static BUCKETS: [Bucket; 2] = microseconds([1, 20]);
        let total = |column: u16| {
            Some(match column {
                0 => 700,
                // Slots 0, 2 and the last.
                1 => 1,
                3 => 10,
                28 => 100,
                _ => 0,
            })
        };
        let mut seen = Vec::new();
        points(&BUCKETS, total, |cell, value| seen.push((shape(&BUCKETS, cell), value)));
        let text: Vec<String> = seen
            .iter()
            .map(|(shape, value)| format!("{}{{{}}} {value}", shape.suffix, shape.label))
            .collect();
        assert_eq!(
            text,
            [
                "_bucket{le=\"0.000004\"} 1",
                "_bucket{le=\"2.097152\"} 11",
                "_bucket{le=\"+Inf\"} 111",
                "_sum{} 700",
                "_count{} 111",
            ]
        );
        assert!(seen.iter().all(|(shape, _)| shape.is_count == (shape.suffix != "_sum")));
        points(&BUCKETS, |_| None, |_, _| panic!("a row without numbers"));
    }

    #[test]
    fn the_older_systems_showed_slots() {
        let mut seen = Vec::new();
        slots(|column| Some(u64::from(column == 16)), |cell, value| seen.push((slot_label(cell), value)));
        // 2^15 microseconds are 33 ms: the users' case "le 15".
        assert_eq!(seen, [("le=\"15\"", 1)]);
    }

    #[test]
    fn slots_end_at_powers_of_two() {
        for (slot, label) in MICROSECONDS.iter().enumerate() {
            let end: f64 = label.trim_start_matches("le=\"").trim_end_matches('"').parse().unwrap();
            assert!((end * 1e6 - 2_f64.powi(i32::try_from(slot).unwrap() + 1)).abs() < 1e-3, "{label}");
            assert_eq!(slot_label(slot), format!("le=\"{slot}\""));
        }
    }
}
