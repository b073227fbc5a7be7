//! What the objects of each namespace had counted when they were last seen: it makes 32-bit counters wide, and keeps what
//! vanished objects had counted, so that sums do not fall.

use crate::table::Subject;
use rustc_hash::FxHashMap;

/// Counters of the objects of all namespaces. The first of an object's `N` counters has 64 bits and never falls, so that an
/// object that was made anew under the same key is known.
#[derive(Debug)]
pub(super) struct Kept<K, const N: usize> {
    subjects: FxHashMap<Subject, Known<K, N>>,
    /// Which counters have 32 bits only.
    narrow: [bool; N],
    objects: usize,
    max: usize,
    ticket: u64,
}

#[derive(Debug)]
struct Known<K, const N: usize> {
    objects: Vec<Object<K, N>>,
    retired: Option<[u64; N]>,
    seen: u64,
}

impl<K, const N: usize> Default for Known<K, N> {
    fn default() -> Known<K, N> {
        Known { objects: Vec::new(), retired: None, seen: 0 }
    }
}

#[derive(Debug)]
struct Object<K, const N: usize> {
    key: K,
    last: [u64; N],
    total: [u64; N],
    seen: u64,
}

/// What came of a reading.
pub(super) struct Outcome<const N: usize> {
    /// The sum of what vanished objects had counted.
    pub(super) retired: Option<[u64; N]>,
    /// Objects that found no room: the sum may fall when they vanish.
    pub(super) forgotten: u32,
}

impl<K: Copy + PartialEq, const N: usize> Kept<K, N> {
    /// Room for `max` objects, all namespaces together.
    pub(super) fn new(narrow: [bool; N], max: usize) -> Kept<K, N> {
        Kept { subjects: FxHashMap::default(), narrow, objects: 0, max, ticket: 0 }
    }

    /// A number to draw before reading: a reading that was overtaken would look like a wrap.
    pub(super) fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// The namespace is gone.
    pub(super) fn forget(&mut self, subject: Subject) {
        if let Some(known) = self.subjects.remove(&subject) {
            self.objects -= known.objects.len();
        }
    }

    /// Takes a whole reading of a namespace and makes its counters wide, in place. `None` if a later one is known.
    pub(super) fn take<R>(
        &mut self,
        subject: Subject,
        ticket: u64,
        readings: &mut [R],
        object: impl Fn(&mut R) -> (K, &mut [u64; N]),
    ) -> Option<Outcome<N>> {
        let known = self.subjects.entry(subject).or_default();
        if ticket < known.seen {
            return None;
        }
        known.seen = ticket;
        let mut forgotten = 0;
        for reading in readings {
            let (key, counters) = object(reading);
            if known.widen(key, counters, &self.narrow, ticket) {
                continue;
            }
            if self.objects >= self.max {
                forgotten += 1;
                continue;
            }
            self.objects += 1;
            known.objects.push(Object { key, last: *counters, total: *counters, seen: ticket });
        }
        self.objects -= known.retire(ticket);
        Some(Outcome { retired: known.retired, forgotten })
    }
}

impl<K: Copy + PartialEq, const N: usize> Known<K, N> {
    /// Brings an object up to date; false if it is not known.
    fn widen(&mut self, key: K, counters: &mut [u64; N], narrow: &[bool; N], ticket: u64) -> bool {
        let Some(object) = self.objects.iter_mut().find(|object| object.key == key) else { return false };
        object.seen = ticket;
        if counters[0] < object.last[0] {
            let gone = std::mem::replace(&mut object.total, *counters);
            object.last = *counters;
            add(&mut self.retired, &gone);
            return true;
        }
        for (at, value) in counters.iter_mut().enumerate() {
            // More than the lower half is known of some that are narrow as a rule.
            let fits = narrow[at] && *value <= u64::from(u32::MAX);
            let grown = match fits {
                true => u64::from((*value as u32).wrapping_sub(object.last[at] as u32)),
                false => value.saturating_sub(object.last[at]),
            };
            object.last[at] = *value;
            object.total[at] = object.total[at].saturating_add(grown);
            *value = object.total[at];
        }
        true
    }

    /// Adds up what is not there any more; how many those were.
    fn retire(&mut self, ticket: u64) -> usize {
        let before = self.objects.len();
        let retired = &mut self.retired;
        self.objects.retain(|object| {
            if object.seen != ticket {
                add(retired, &object.total);
            }
            object.seen == ticket
        });
        before - self.objects.len()
    }
}

fn add<const N: usize>(sum: &mut Option<[u64; N]>, values: &[u64; N]) {
    for (total, value) in sum.get_or_insert([0; N]).iter_mut().zip(values) {
        *total = total.saturating_add(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Subject = Subject(1);
    type Reading = (u8, [u64; 2]);

    fn kept(max: usize) -> Kept<u8, 2> {
        Kept::new([false, true], max)
    }

    fn take(kept: &mut Kept<u8, 2>, readings: &mut [Reading]) -> Option<[u64; 2]> {
        let ticket = kept.draw();
        kept.take(S, ticket, readings, |(key, counters)| (*key, counters)).unwrap().retired
    }

    #[test]
    fn a_narrow_counter_that_wraps_goes_on() {
        let mut kept = kept(9);
        let max = u64::from(u32::MAX);
        take(&mut kept, &mut [(1, [5, max - 1])]);
        let mut readings = [(1, [6, 3])];
        assert_eq!(take(&mut kept, &mut readings), None);
        assert_eq!(readings[0].1, [6, max + 4]);
    }

    #[test]
    fn what_vanished_or_was_made_anew_stays_in_the_sum() {
        let mut kept = kept(9);
        take(&mut kept, &mut [(1, [5, 50]), (2, [7, 70])]);
        assert_eq!(take(&mut kept, &mut [(1, [6, 60])]), Some([7, 70]));
        let mut readings = [(1, [1, 2])];
        assert_eq!(take(&mut kept, &mut readings), Some([13, 130]));
        assert_eq!(readings[0].1, [1, 2]);
        kept.forget(S);
        assert_eq!((take(&mut kept, &mut []), kept.objects), (None, 0));
    }

    #[test]
    fn memory_is_bounded_and_a_reading_that_was_overtaken_is_ignored() {
        let mut kept = kept(1);
        let early = kept.draw();
        let ticket = kept.draw();
        let mut readings = [(1, [5, 5]), (2, [5, 5])];
        let outcome = kept.take(S, ticket, &mut readings, |(key, counters)| (*key, counters)).unwrap();
        assert_eq!(outcome.forgotten, 1);
        assert!(kept.take(S, early, &mut readings, |(key, counters)| (*key, counters)).is_none());
    }
}
