//! What the interfaces of each namespace had counted when they were last seen. Without it the sum over the interfaces
//! of a namespace would fall when one vanishes, `rate()` would take that for a restart and add the whole remainder.

use crate::declare::matches_pattern;
use crate::kernel::procfs::dev::{FIELDS, MAX_NAME, Values};
use crate::table::{ABSENT, Subject};
use rustc_hash::FxHashMap;

/// Interfaces remembered at most, all namespaces together: 200 bytes each.
pub(super) const MAX_DEVICES: usize = 8192;

/// Interfaces of a namespace shown one by one at most.
pub(super) const MAX_SHOWN: usize = 64;

/// Positions in [`FIELDS`] that fall only if the interface was made anew: bytes and packets. A driver may take back a
/// drop that it has counted; taking that for a new interface would count all its bytes twice.
const TRUSTED: [usize; 4] = [0, 1, 8, 9];

/// Name of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    bytes: [u8; MAX_NAME],
    len: u8,
}

impl Name {
    pub(super) fn new(name: &[u8]) -> Name {
        let mut bytes = [0; MAX_NAME];
        let len = name.len().min(MAX_NAME);
        bytes[..len].copy_from_slice(&name[..len]);
        Name { bytes, len: len as u8 }
    }
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One line of `net/dev`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub(super) name: Name,
    pub(super) values: Values,
}

/// Sums over interfaces; `None` until there is something in it.
pub(super) type Sum = Option<Values>;

fn add(sum: &mut Sum, values: &Values) {
    for (total, value) in sum.get_or_insert([0; FIELDS.len()]).iter_mut().zip(values) {
        *total = total.wrapping_add(if *value == ABSENT { 0 } else { *value });
    }
}

#[derive(Debug)]
struct Device {
    name: Name,
    last: Values,
    /// Whether the split by interface shows it; decided when the split first sees it, and kept until it vanishes.
    shown: Option<bool>,
    seen: u64,
    /// It was not there last time. Some kernels hand out a long `net/dev` by position, so that an interface that
    /// is there may be left out when another vanishes meanwhile: it is given up only when missed twice.
    missed: bool,
}

#[derive(Debug, Default)]
struct Known {
    devices: Vec<Device>,
    ticket: u64,
    /// Sum of what vanished.
    retired: Sum,
    /// The part of it that the split did not show.
    retired_other: Sum,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Devices {
    subjects: FxHashMap<Subject, Known>,
    patterns: Vec<String>,
    held: usize,
    max: usize,
    ticket: u64,
}

/// What is to be shown beside the readings themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What vanished interfaces had counted.
    pub(super) retired: Sum,
    /// The row `other` of the split.
    pub(super) other: Sum,
    /// Interfaces that found no room in the memory.
    pub(super) forgotten: u32,
}

impl Devices {
    pub(super) fn new(max: usize) -> Devices {
        Devices { subjects: FxHashMap::default(), patterns: vec!["*".to_owned()], held: 0, max, ticket: 0 }
    }

    /// A number to draw before reading: of two readings of a namespace that overtake each other only the later counts.
    pub(super) fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// Drops what is known of a namespace.
    pub(super) fn forget(&mut self, subject: Subject) {
        if let Some(known) = self.subjects.remove(&subject) {
            self.held -= known.devices.len();
        }
    }

    /// Sets which interfaces the split shows, and decides anew.
    pub(super) fn show(&mut self, patterns: &[String]) {
        if self.patterns == patterns {
            return;
        }
        self.patterns = patterns.to_vec();
        for known in self.subjects.values_mut() {
            known.retired_other = None;
            known.devices.iter_mut().for_each(|device| device.shown = None);
        }
    }

    /// Takes a reading in. `split` says whether the split is shown, `show` gets the interfaces it shows. `None` if a
    /// later reading came first.
    pub(super) fn take(
        &mut self,
        subject: Subject,
        ticket: u64,
        readings: &[Reading],
        split: bool,
        mut show: impl FnMut(&Reading),
    ) -> Option<Outcome> {
        let known = self.subjects.entry(subject).or_default();
        if ticket < known.ticket {
            return None;
        }
        known.ticket = ticket;
        let (mut outcome, mut next) = (Outcome::default(), 0);
        let mut live_other = None;
        for reading in readings {
            let lo = reading.name.as_bytes() == b"lo";
            let index = if lo { None } else { known.place(reading, &mut next, ticket, self.held < self.max) };
            self.held += usize::from(index.is_some_and(|(_, new)| new));
            outcome.forgotten += u32::from(!lo && index.is_none());
            if split {
                match (known.shown(index.map(|(at, _)| at), lo, reading, &self.patterns), lo) {
                    (true, _) => show(reading),
                    (false, false) => add(&mut live_other, &reading.values),
                    (false, true) => {}
                }
            }
        }
        self.held -= known.retire(ticket);
        let (all, other) = known.gone();
        if let Some(other) = &other {
            add(&mut live_other, other);
        }
        outcome.retired = all;
        outcome.other = live_other.filter(|_| split);
        Some(outcome)
    }
}

impl Known {
    /// Finds or makes the memory of an interface and updates it: its place, and whether it is new.
    fn place(
        &mut self,
        reading: &Reading,
        next: &mut usize,
        ticket: u64,
        room: bool,
    ) -> Option<(usize, bool)> {
        let count = self.devices.len();
        let found =
            (*next..count).chain(0..(*next).min(count)).find(|at| self.devices[*at].name == reading.name);
        if let Some(at) = found {
            *next = at + 1;
            self.update(at, reading, ticket);
            return Some((at, false));
        }
        if !room {
            return None;
        }
        self.devices.push(Device {
            name: reading.name,
            last: reading.values,
            shown: None,
            seen: ticket,
            missed: false,
        });
        *next = count + 1;
        Some((count, true))
    }

    /// Keeps what an interface of that name had counted if it was made anew.
    fn update(&mut self, at: usize, reading: &Reading, ticket: u64) {
        let device = &mut self.devices[at];
        let fell =
            |field: &usize| reading.values[*field] < device.last[*field] && device.last[*field] != ABSENT;
        let mut lost = [0; FIELDS.len()];
        if TRUSTED.iter().any(fell) {
            lost = device.last;
        } else {
            for field in (0..FIELDS.len()).filter(fell) {
                lost[field] = device.last[field] - reading.values[field];
            }
        }
        let other = device.shown == Some(false);
        device.last = reading.values;
        (device.seen, device.missed) = (ticket, false);
        if lost.iter().any(|value| *value != 0 && *value != ABSENT) {
            add(&mut self.retired, &lost);
            if other {
                add(&mut self.retired_other, &lost);
            }
        }
    }

    fn shown(&mut self, at: Option<usize>, lo: bool, reading: &Reading, patterns: &[String]) -> bool {
        let name = reading.name.as_bytes();
        let Some(at) = at else {
            // It is in no sum, so it is shown only if it was named.
            return lo && patterns.iter().any(|pattern| pattern == "lo");
        };
        if let Some(shown) = self.devices[at].shown {
            return shown;
        }
        let count = self.devices.iter().filter(|device| device.shown == Some(true)).count();
        let wanted =
            name != b"other" && patterns.iter().any(|pattern| matches_pattern(pattern.as_bytes(), name));
        let shown = wanted && count < MAX_SHOWN;
        self.devices[at].shown = Some(shown);
        shown
    }

    /// Gives up what was missed twice: it goes into the sums. Says how many there were.
    fn retire(&mut self, ticket: u64) -> usize {
        let before = self.devices.len();
        let (retired, retired_other) = (&mut self.retired, &mut self.retired_other);
        self.devices.retain_mut(|device| {
            if device.seen == ticket {
                return true;
            }
            if !device.missed {
                device.missed = true;
                return true;
            }
            add(retired, &device.last);
            if device.shown == Some(false) {
                add(retired_other, &device.last);
            }
            false
        });
        before - self.devices.len()
    }

    /// What the interfaces that are not there had counted: all, and the part that the split did not show.
    fn gone(&self) -> (Sum, Sum) {
        let (mut all, mut other) = (self.retired, self.retired_other);
        for device in self.devices.iter().filter(|device| device.missed) {
            add(&mut all, &device.last);
            if device.shown == Some(false) {
                add(&mut other, &device.last);
            }
        }
        (all, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Subject = Subject(1);

    fn reading(name: &str, bytes: u64, drops: u64) -> Reading {
        let mut values = [0; FIELDS.len()];
        (values[0], values[3]) = (bytes, drops);
        Reading { name: Name::new(name.as_bytes()), values }
    }

    /// Sum over all but `lo` of bytes and drops, as a folding family shows it.
    fn total(devices: &mut Devices, readings: &[Reading]) -> (u64, u64) {
        let ticket = devices.draw();
        let mut sum = devices.take(S, ticket, readings, false, |_| {}).unwrap().retired;
        for reading in readings.iter().filter(|reading| reading.name.as_bytes() != b"lo") {
            add(&mut sum, &reading.values);
        }
        sum.map_or((0, 0), |sum| (sum[0], sum[3]))
    }

    fn split(devices: &mut Devices, readings: &[Reading]) -> (Vec<String>, Option<u64>) {
        let ticket = devices.draw();
        let mut names = Vec::new();
        let show =
            |reading: &Reading| names.push(String::from_utf8_lossy(reading.name.as_bytes()).into_owned());
        let other = devices.take(S, ticket, readings, true, show).unwrap().other;
        (names, other.map(|sum| sum[0]))
    }

    #[test]
    fn the_sum_does_not_fall_when_an_interface_vanishes_or_is_made_anew() {
        let mut devices = Devices::new(10);
        assert_eq!(
            total(&mut devices, &[reading("lo", 9, 9), reading("a", 10, 1), reading("b", 5, 0)]),
            (15, 1)
        );
        assert_eq!(total(&mut devices, &[reading("b", 6, 0)]), (16, 1));
        assert_eq!(total(&mut devices, &[reading("b", 2, 0)]), (18, 1));
        assert_eq!(total(&mut devices, &[reading("b", 2, 0), reading("a", 1, 0)]), (19, 1));
        for held in [2, 0, 0] {
            assert_eq!(total(&mut devices, &[]), (19, 1));
            assert_eq!(devices.held, held);
        }
        assert_eq!(total(&mut devices, &[reading("b", 1, 0)]), (20, 1));
    }

    #[test]
    fn an_interface_that_the_kernel_left_out_once_is_not_counted_twice() {
        let mut devices = Devices::new(10);
        let both = [reading("a", 10, 0), reading("b", 5, 0)];
        assert_eq!(total(&mut devices, &both), (15, 0));
        assert_eq!(total(&mut devices, &both[1..]), (15, 0));
        assert_eq!(total(&mut devices, &[reading("b", 5, 0), reading("a", 11, 0)]), (16, 0));
    }

    #[test]
    fn a_drop_taken_back_does_not_count_bytes_twice() {
        let mut devices = Devices::new(10);
        total(&mut devices, &[reading("a", 1000, 5)]);
        assert_eq!(total(&mut devices, &[reading("a", 1001, 4)]), (1001, 5));
        assert_eq!(total(&mut devices, &[reading("a", 1002, 5)]), (1002, 6));
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut devices = Devices::new(2);
        let three = [reading("a", 1, 0), reading("b", 1, 0), reading("c", 1, 0)];
        let ticket = devices.draw();
        assert_eq!(devices.take(S, ticket, &three, false, |_| {}).unwrap().forgotten, 1);
        assert_eq!(devices.held, 2);
        devices.forget(S);
        devices.forget(S);
        assert_eq!((devices.held, devices.subjects.len()), (0, 0));
    }

    #[test]
    fn a_reading_that_was_overtaken_is_ignored() {
        let mut devices = Devices::new(9);
        let (early, late) = (devices.draw(), devices.draw());
        assert!(devices.take(S, late, &[reading("a", 9, 0)], false, |_| {}).is_some());
        assert!(devices.take(S, early, &[reading("a", 3, 0)], false, |_| {}).is_none());
        assert_eq!(total(&mut devices, &[reading("a", 10, 0)]), (10, 0));
    }

    #[test]
    fn what_the_split_shows_stays_until_it_vanishes() {
        let mut devices = Devices::new(1000);
        let mut many: Vec<_> = (0..70).map(|i| reading(&format!("v{i}"), 1, 0)).collect();
        let (names, other) = split(&mut devices, &many);
        assert_eq!((names.len(), other), (MAX_SHOWN, Some(6)));
        many.remove(0);
        let (names, other) = split(&mut devices, &many);
        assert_eq!((names.len(), other), (MAX_SHOWN - 1, Some(6)));
        many.pop();
        assert_eq!(split(&mut devices, &many).1, Some(6));
        many.push(reading("new", 5, 0));
        let (names, other) = split(&mut devices, &many);
        assert_eq!((names.len(), other), (MAX_SHOWN, Some(6)));
        assert!(names.contains(&"new".to_owned()));
    }

    #[test]
    fn patterns_choose_and_lo_must_be_named() {
        let mut devices = Devices::new(10);
        let all = [reading("lo", 1, 0), reading("eth0", 2, 0), reading("veth1", 4, 0)];
        assert_eq!(split(&mut devices, &all), (vec!["eth0".into(), "veth1".into()], None));
        devices.show(&["eth*".into(), "lo".into()]);
        assert_eq!(split(&mut devices, &all), (vec!["lo".into(), "eth0".into()], Some(4)));
        assert!(
            matches_pattern(b"*", b"")
                && matches_pattern(b"e*0", b"eth10")
                && !matches_pattern(b"e*0", b"eth1")
                && !matches_pattern(b"", b"x")
        );
    }
}
