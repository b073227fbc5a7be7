//! What entries of a map had counted that the kernel deletes while their namespace lives, because nothing comes to them any
//! more. Where it is part of a sum that is shown it stays there, since a sum that falls looks like a counter that was reset.

use crate::hooks::Counters;
use crate::table::{ABSENT, Subject};
use rustc_hash::FxHashMap;
use std::time::Instant;

/// A namespace's inode and its cookie: keys begin with the one and end with the other.
type Netns = (u32, u64);

/// The entries of a map as they were read last, and for each namespace the sum of those that are gone. So there is no more of it
/// than the kernel's map has room for, and one sum for each namespace.
#[derive(Debug, Default)]
pub struct Retired {
    entries: FxHashMap<Box<[u8]>, Last>,
    namespaces: FxHashMap<Netns, Namespace>,
    readings: u64,
    /// When the last reading was entered.
    entered: Option<Instant>,
}

/// An entry at its last reading.
#[derive(Debug)]
struct Last {
    netns: Netns,
    /// Its numbers, as the kernel keeps them.
    value: Box<[u8]>,
    is_summed: bool,
    reading: u64,
}

#[derive(Debug)]
struct Namespace {
    /// Whose it was when that was known last.
    subject: Subject,
    /// What was counted by entries that are gone; empty if none is.
    sum: Vec<u8>,
}

impl Retired {
    /// Enters a reading. The first `numbers` words of a value only grow, or are absent. `is_summed` tells by its key whether what
    /// an entry counts is in a sum; it is asked once for as long as the entry is there, and once its namespace is known.
    pub fn enter(&mut self, counters: &Counters<'_>, numbers: usize, is_summed: impl Fn(&[u8]) -> bool) {
        // A reading that took so long that another one came in between may be older than that.
        if self.entered.is_some_and(|entered| counters.began < entered) {
            return;
        }
        self.readings += 1;
        self.drop_former_owners(counters);
        for (key, value) in counters.entries.iter() {
            if let Some(value) = value.get(..numbers * size_of::<u64>()) {
                self.meet(counters, key, value, &is_summed);
            }
        }
        self.retire_the_gone();
        self.forget(counters);
        self.entered = Some(Instant::now());
    }

    /// What was entered last: the keys of entries, whether they are in a sum, and their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], bool, &[u8])> {
        self.entries.iter().map(|(key, last)| (&**key, last.is_summed, &*last.value))
    }

    /// What summed entries of each namespace had counted that are gone.
    pub fn sums(&self) -> impl Iterator<Item = (Netns, &[u8])> {
        let sums = self.namespaces.iter().filter(|(_, namespace)| !namespace.sum.is_empty());
        sums.map(|(netns, namespace)| (*netns, &*namespace.sum))
    }

    /// Where namespaces have no cookie, the inode of one that is gone may be another's by now.
    fn drop_former_owners(&mut self, counters: &Counters<'_>) {
        let namespaces = &mut self.namespaces;
        namespaces.retain(|(inode, cookie), namespace| {
            (counters.subject)(*inode, *cookie).is_none_or(|subject| subject == namespace.subject)
        });
        self.entries.retain(|_, last| namespaces.contains_key(&last.netns));
    }

    fn meet(
        &mut self,
        counters: &Counters<'_>,
        key: &[u8],
        value: &[u8],
        is_summed: &impl Fn(&[u8]) -> bool,
    ) {
        let Some(netns) = netns(key) else { return };
        let reading = self.readings;
        let Some(last) = self.entries.get_mut(key) else {
            // What has not been shown yet needs not be remembered.
            let Some(subject) = (counters.subject)(netns.0, netns.1) else { return };
            self.namespaces.entry(netns).or_insert(Namespace { subject, sum: Vec::new() });
            let last = Last { netns, value: value.into(), is_summed: is_summed(key), reading };
            self.entries.insert(key.into(), last);
            return;
        };
        last.reading = reading;
        // It was deleted, and came again before this reading.
        if last.is_summed && has_fallen(&last.value, value) {
            retire(&mut self.namespaces, last);
        }
        last.value.copy_from_slice(value);
    }

    fn retire_the_gone(&mut self) {
        let (reading, namespaces) = (self.readings, &mut self.namespaces);
        self.entries.retain(|_, last| {
            let is_gone = last.reading != reading;
            if is_gone && last.is_summed {
                retire(namespaces, last);
            }
            !is_gone
        });
    }

    /// Forgets namespaces of which the kernel has nothing and that nobody knows: they are gone.
    fn forget(&mut self, counters: &Counters<'_>) {
        let mut gone = std::mem::take(&mut self.namespaces);
        let is_known = |netns: Netns| (counters.subject)(netns.0, netns.1).is_some();
        let counted = self.entries.values().map(|last| last.netns);
        let known: Vec<Netns> = gone.keys().copied().filter(|netns| is_known(*netns)).collect();
        for netns in counted.chain(known) {
            self.namespaces.extend(gone.remove_entry(&netns));
        }
    }
}

fn netns(key: &[u8]) -> Option<Netns> {
    let (inode, cookie) = key.first_chunk().zip(key.last_chunk())?;
    Some((u32::from_ne_bytes(*inode), u64::from_ne_bytes(*cookie)))
}

fn numbers(value: &[u8]) -> impl Iterator<Item = u64> {
    value.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word))
}

fn has_fallen(last: &[u8], now: &[u8]) -> bool {
    numbers(last).zip(numbers(now)).any(|(last, now)| last != ABSENT && now < last)
}

/// Adds what an entry had counted to the sum of its namespace.
fn retire(namespaces: &mut FxHashMap<Netns, Namespace>, last: &Last) {
    let Some(sum) = namespaces.get_mut(&last.netns).map(|namespace| &mut namespace.sum) else { return };
    if sum.is_empty() {
        sum.extend_from_slice(&last.value);
        return;
    }
    for (sum, more) in sum.as_chunks_mut().0.iter_mut().zip(numbers(&last.value)) {
        *sum = match (u64::from_ne_bytes(*sum), more) {
            // What is not seen on this kernel stays absent.
            (ABSENT, number) | (number, ABSENT) => number,
            (sum, more) => sum.wrapping_add(more),
        }
        .to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::{Memory, Options};
    use crate::kernel::bpf::Entries;
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// Of namespace, number (the even ones are in a sum), cookie: two numbers and one that is no count.
    type Entry = ([u32; 3], [u64; 2]);

    fn entries(all: &[Entry]) -> Entries {
        let pair = |([netns, number, cookie], [first, second]): &Entry| {
            let key = [*netns, *number, *cookie, 0].map(u32::to_ne_bytes).concat();
            (key, [*first, *second, 9].map(u64::to_ne_bytes).concat())
        };
        Entries::from_pairs(&all.iter().map(pair).collect::<Vec<_>>())
    }

    /// The sums after a reading; `known` are the namespaces that are known, and whose they are.
    fn enter(
        retired: &mut Retired,
        known: &[(u32, u32)],
        all: &[Entry],
        began: Option<Instant>,
    ) -> BTreeMap<u32, Vec<u64>> {
        let subject = |inode, _| known.iter().find(|(of, _)| *of == inode).map(|(_, it)| Subject(*it));
        let (entries, options, memory) = (entries(all), Options::new(), Memory::default());
        let mut counters = Counters::new(&entries, &subject, &options, &memory);
        counters.began = began.unwrap_or(counters.began);
        retired.enter(&counters, 2, |key| key[4] % 2 == 0);
        let mut sums: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let summed = retired.entries().filter(|(_, is_summed, _)| *is_summed);
        let there = summed.map(|(key, _, value)| (netns(key).unwrap(), value));
        for ((inode, _), value) in there.chain(retired.sums()) {
            let sum = sums.entry(inode).or_insert_with(|| vec![0; 2]);
            sum.iter_mut().zip(numbers(value)).for_each(|(sum, number)| *sum = sum.wrapping_add(number));
        }
        sums
    }

    const KNOWN: &[(u32, u32)] = &[(5, 1), (6, 2)];

    #[test]
    fn a_sum_does_not_fall_with_an_entry_that_goes_or_begins_anew() {
        let mut retired = Retired::default();
        let mut read = |all: &[Entry]| enter(&mut retired, KNOWN, all, None);
        let two = [([5, 2, 0], [10, 1]), ([5, 4, 0], [5, 3]), ([5, 3, 0], [100, 100])];
        assert_eq!(read(&two), [(5, vec![15, 4])].into());
        assert_eq!(read(&two[1..2]), [(5, vec![15, 4])].into());
        assert_eq!(read(&[]), [(5, vec![15, 4])].into());
        // One that begins anew, and one that did so between two readings.
        assert_eq!(read(&[([5, 2, 0], [1, 1])]), [(5, vec![16, 5])].into());
        assert_eq!(read(&[([5, 2, 0], [2, 0])]), [(5, vec![18, 5])].into());
        assert_eq!(read(&[]), [(5, vec![18, 5])].into());
    }

    #[test]
    fn what_is_not_seen_stays_absent_and_adds_nothing() {
        let mut retired = Retired::default();
        let gone = |retired: &mut Retired, all: &[Entry]| {
            enter(retired, KNOWN, all, None);
            enter(retired, KNOWN, &[], None).remove(&5)
        };
        assert_eq!(gone(&mut retired, &[([5, 2, 0], [10, ABSENT])]), Some(vec![10, ABSENT]));
        assert_eq!(gone(&mut retired, &[([5, 4, 0], [1, ABSENT])]), Some(vec![11, ABSENT]));
    }

    #[test]
    fn all_is_forgotten_with_the_namespace() {
        let mut retired = Retired::default();
        let both = [([5, 2, 0], [10, 0]), ([6, 2, 0], [20, 0]), ([6, 4, 0], [1, 0])];
        enter(&mut retired, KNOWN, &both, None);
        // As long as the kernel has something of it, it is not gone.
        assert_eq!(enter(&mut retired, &[], &both[2..], None), [(6, vec![21, 0])].into());
        assert!(enter(&mut retired, &[], &[], None).is_empty());
        assert!(retired.entries.is_empty() && retired.namespaces.is_empty());
        // What has no name yet is not remembered either.
        enter(&mut retired, &[], &both, None);
        assert!(retired.entries.is_empty() && retired.namespaces.is_empty());
    }

    #[test]
    fn another_namespace_with_the_same_inode_inherits_nothing() {
        let mut retired = Retired::default();
        enter(&mut retired, KNOWN, &[([5, 2, 0], [10, 0]), ([5, 4, 0], [10, 0])], None);
        enter(&mut retired, KNOWN, &[([5, 2, 0], [10, 0])], None);
        assert_eq!(enter(&mut retired, &[(5, 7)], &[([5, 2, 0], [1, 0])], None), [(5, vec![1, 0])].into());
    }

    #[test]
    fn a_reading_that_was_overtaken_changes_nothing() {
        let mut retired = Retired::default();
        let before = Instant::now().checked_sub(Duration::from_secs(1));
        let now = [([5, 2, 0], [10, 0]), ([5, 4, 0], [1, 0])];
        enter(&mut retired, KNOWN, &now, None);
        assert_eq!(enter(&mut retired, KNOWN, &[([5, 2, 0], [9, 0])], before), [(5, vec![11, 0])].into());
        assert_eq!(enter(&mut retired, KNOWN, &now, None), [(5, vec![11, 0])].into());
    }
}
