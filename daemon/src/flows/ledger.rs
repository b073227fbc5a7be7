//! Who of very many has a series of its own, and what is left for the one of all others.
//!
//! The kernel's map of flows is bounded: whoever has not been heard of for longest makes room. Beside it something is
//! counted exactly for each group of flows. Each unit of that total is in one series only, whoever has one meanwhile: a flow
//! that has none has its growth in `other`, and when it gets one again, that goes on where it had ended. So no series ever
//! falls, and what all of them have grown by is what the total has grown by.

use rustc_hash::FxHashMap;
use std::hash::Hash;

/// Two numbers that are counted of everything: packets and segments, or bytes and packets. The first one decides who is
/// large.
pub type Count = [u64; 2];

/// Flows that are gone from the kernel's map and had a series before: so many are remembered.
const MAX_GONE: usize = 1024;

/// An entry of the kernel's map.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a, G> {
    /// Its key.
    pub key: &'a [u8],
    /// The group that it belongs to.
    pub group: G,
    /// What was counted since it came into the map.
    pub count: Count,
}

/// What was counted of a group, whether or not it is in one of its flows. It has to be read before the flows, and to be
/// counted after them: then it is never too large for what was found in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total<G> {
    /// The group.
    pub group: G,
    /// Everything.
    pub count: Count,
    /// A number that does not fall as long as the group is the same: the inode of a namespace is used again, and the kernel
    /// may have no cookie to tell.
    pub pulse: u64,
}

/// What a reading has found.
#[derive(Debug)]
pub struct Shares<'a, G> {
    /// Who has a series of its own, and what it shows.
    pub own: Vec<(Flow<'a, G>, Count)>,
    /// Who has not grown for longer than allowed.
    pub idle: Vec<&'a [u8]>,
}

/// Whom a reading shows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So many flows have series of their own.
    pub shown: usize,
    /// Who has not grown for so long has none, in the unit of `now`.
    pub idle: u64,
    /// The time of the reading.
    pub now: u64,
}

/// The groups of a reading: all that the kernel counts for, and whether it is known whose they are. What is not known is left
/// as it is, and takes no room from others.
type Known<G> = FxHashMap<G, bool>;

/// Somebody who may be shown: how large, what it has grown by, and which.
type Candidate<'a, G> = (Count, Count, Flow<'a, G>);

/// What was shown of what.
#[derive(Debug)]
pub struct Ledger<G> {
    flows: FxHashMap<Box<[u8]>, Kept<G>>,
    groups: FxHashMap<G, Group>,
    readings: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept<G> {
    group: G,
    /// What the kernel had counted at the last reading; nothing if it was not in the map then.
    last: Count,
    /// What of it ever was in a series of its own.
    own: Count,
    /// When it had grown.
    grown: u64,
    /// The last reading that found it.
    reading: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    pulse: u64,
    /// What ever was in series of their own.
    told: Count,
    /// What is shown as other; it never falls.
    other: Count,
}

impl<G> Default for Ledger<G> {
    fn default() -> Ledger<G> {
        Ledger { flows: FxHashMap::default(), groups: FxHashMap::default(), readings: 0 }
    }
}

fn plus(a: Count, b: Count) -> Count {
    [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])]
}

fn minus(a: Count, b: Count) -> Count {
    [a[0].saturating_sub(b[0]), a[1].saturating_sub(b[1])]
}

fn larger(a: Count, b: Count) -> Count {
    [a[0].max(b[0]), a[1].max(b[1])]
}

impl<G: Copy + Eq + Hash> Ledger<G> {
    /// Enters what a reading has found. Left out are flows of groups without a total, and of those of whom it is not `known`
    /// whose they are.
    pub fn enter<'a>(
        &mut self,
        flows: impl Iterator<Item = Flow<'a, G>>,
        totals: &[Total<G>],
        known: impl Fn(&G) -> bool,
        limits: Limits,
    ) -> Shares<'a, G> {
        self.readings += 1;
        let known: Known<G> = totals.iter().map(|total| (total.group, known(&total.group))).collect();
        self.meet(totals, &known);
        let mut shares = Shares { own: Vec::new(), idle: Vec::new() };
        let mut candidates: Vec<Candidate<'a, G>> = Vec::new();
        for flow in flows {
            if known.get(&flow.group) != Some(&true) {
                continue;
            }
            let (kept, grown) = self.look(&flow, limits.now);
            match limits.now.saturating_sub(kept.grown) > limits.idle {
                true => shares.idle.push(flow.key),
                // Who had to leave the map and came back is as large as before.
                false => candidates.push((larger(flow.count, plus(kept.own, grown)), grown, flow)),
            }
        }
        // There may be thousands of others, which need not be in order.
        let larger_first =
            |a: &Candidate<'_, G>, b: &Candidate<'_, G>| b.0.cmp(&a.0).then(a.2.key.cmp(b.2.key));
        if candidates.len() > limits.shown {
            candidates.select_nth_unstable_by(limits.shown, larger_first);
            candidates.truncate(limits.shown);
        }
        candidates.sort_unstable_by(larger_first);
        for (_, grown, flow) in candidates {
            let (Some(kept), Some(group)) = (self.flows.get_mut(flow.key), self.groups.get_mut(&flow.group))
            else {
                continue;
            };
            kept.own = plus(kept.own, grown);
            group.told = plus(group.told, grown);
            shares.own.push((flow, kept.own));
        }
        for total in totals.iter().filter(|total| known.get(&total.group) == Some(&true)) {
            if let Some(group) = self.groups.get_mut(&total.group) {
                group.other = larger(group.other, minus(total.count, group.told));
            }
        }
        self.forget(&known);
        shares
    }

    /// What of a group is in no series of its own.
    pub fn other(&self, group: G) -> Count {
        self.groups.get(&group).map(|group| group.other).unwrap_or_default()
    }

    /// Which groups there are from now on.
    fn meet(&mut self, totals: &[Total<G>], known: &Known<G>) {
        self.groups.retain(|group, _| known.contains_key(group));
        for total in totals {
            let known = self.groups.entry(total.group).or_default();
            if total.pulse < known.pulse {
                *known = Group::default();
                self.flows.retain(|_, kept| kept.group != total.group);
            }
            known.pulse = total.pulse;
        }
    }

    /// Notes what was found of a flow; what it has grown by.
    fn look(&mut self, flow: &Flow<'_, G>, now: u64) -> (Kept<G>, Count) {
        let (count, group, reading) = (flow.count, flow.group, self.readings);
        let Some(kept) = self.flows.get_mut(flow.key) else {
            let kept = Kept { group, last: count, own: [0; 2], grown: now, reading };
            self.flows.insert(flow.key.into(), kept);
            return (kept, count);
        };
        // One that made room and came again begins anew.
        let begins = count[0] < kept.last[0] || count[1] < kept.last[1];
        let grown = if begins { count } else { minus(count, kept.last) };
        if grown != [0; 2] {
            kept.grown = now;
        }
        (kept.last, kept.reading) = (count, reading);
        (*kept, grown)
    }

    /// Forgets who is gone: whose group is, who never was shown, and of the others those that left longest ago.
    fn forget(&mut self, known: &Known<G>) {
        let reading = self.readings;
        let mut left = Vec::new();
        self.flows.retain(|_, kept| {
            let is_known = known.get(&kept.group).copied();
            if kept.reading == reading || is_known == Some(false) {
                return is_known.is_some();
            }
            kept.last = [0; 2];
            let stays = kept.own != [0; 2] && is_known.is_some();
            left.extend(stays.then_some(kept.reading));
            stays
        });
        if left.len() > MAX_GONE {
            let at = left.len() - MAX_GONE;
            let (_, oldest, _) = left.select_nth_unstable(at);
            let oldest = *oldest;
            self.flows.retain(|_, kept| kept.reading >= oldest || known.get(&kept.group) == Some(&false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const IDLE: u64 = 100;

    /// The kernel's side: a map with so much room, and exact totals of two groups.
    #[derive(Default)]
    struct Kernel {
        map: Vec<([u8; 3], Count)>,
        totals: BTreeMap<u8, u64>,
        room: usize,
    }

    impl Kernel {
        fn count(&mut self, group: u8, flow: u16, packets: u64) {
            let key = [group, flow.to_be_bytes()[0], flow.to_be_bytes()[1]];
            let at = self.map.iter().position(|(known, _)| *known == key);
            // The last one is who was heard of last.
            let (_, count) = at.map_or((key, [0; 2]), |at| self.map.remove(at));
            self.map.push((key, plus(count, [packets, 2 * packets])));
            if self.map.len() > self.room {
                self.map.remove(0);
            }
            *self.totals.entry(group).or_default() += packets;
        }

        fn totals(&self) -> Vec<Total<u8>> {
            let total = |(group, packets): (&u8, &u64)| Total {
                group: *group,
                count: [*packets, 2 * packets],
                pulse: *packets,
            };
            self.totals.iter().map(total).collect()
        }

        fn read(&self, ledger: &mut Ledger<u8>, shown: usize, now: u64) -> BTreeMap<[u8; 3], Count> {
            let flows = self.map.iter().map(|(key, count)| Flow { key, group: key[0], count: *count });
            let known = |group: &u8| *group < 100;
            let shares = ledger.enter(flows, &self.totals(), known, Limits { shown, idle: IDLE, now });
            shares.own.iter().map(|(flow, count)| (flow.key.try_into().unwrap(), *count)).collect()
        }
    }

    /// What Prometheus would make of it: how much each series has grown since it was first seen, beginning at nothing.
    #[derive(Default)]
    struct Reader {
        last: BTreeMap<String, u64>,
        sums: BTreeMap<u8, u64>,
    }

    impl Reader {
        fn see(&mut self, name: &str, group: u8, value: u64) {
            let last = self.last.insert(name.to_owned(), value).unwrap_or(0);
            assert!(value >= last, "{name} fell from {last} to {value}");
            *self.sums.entry(group).or_default() += value - last;
        }
    }

    #[test]
    fn a_scan_evicts_itself_and_every_packet_is_in_one_series() {
        let mut kernel = Kernel { room: 64, ..Kernel::default() };
        let (mut ledger, mut reader) = (Ledger::default(), Reader::default());
        let heavy = [1, 0xff, 0xff];
        for scan in 0_u16..20 {
            for tuple in 0..100 {
                kernel.count(1, 1000 * (scan % 7) + tuple, 1);
                kernel.count(2, 100 * scan + tuple, 1);
                kernel.count(1, 0xffff, 1);
            }
            let own = kernel.read(&mut ledger, 5, u64::from(scan));
            assert_eq!(own.len(), 5);
            // It never left, so it has all of its own from the first reading on.
            let all = 100 * (u64::from(scan) + 1);
            assert_eq!(own.get(&heavy), Some(&[all, 2 * all]));
            for (key, count) in &own {
                reader.see(&format!("{key:?}"), key[0], count[0]);
            }
            for group in [1, 2] {
                reader.see(&format!("other of {group}"), group, ledger.other(group)[0]);
            }
            assert_eq!(reader.sums, kernel.totals);
            assert!(ledger.flows.len() <= kernel.map.len() + 5 * 20);
        }
    }

    #[test]
    fn who_had_to_leave_the_map_goes_on_where_it_ended() {
        let mut kernel = Kernel { room: 2, ..Kernel::default() };
        let mut ledger = Ledger::default();
        let key = [1, 0, 7];
        kernel.count(1, 7, 50);
        assert_eq!(kernel.read(&mut ledger, 1, 0)[&key], [50, 100]);
        (100..110).for_each(|flow| kernel.count(1, flow, 1));
        assert!(!kernel.read(&mut ledger, 1, 1).contains_key(&key));
        // What has the map's only series now was new there, so all of it is its own.
        assert_eq!(ledger.other(1), [9, 18]);
        kernel.count(1, 7, 5);
        assert_eq!(kernel.read(&mut ledger, 1, 2)[&key], [55, 110]);
        assert_eq!(ledger.other(1), [9, 18]);
        // Larger than at the last reading, but not the same: the growth between is lost for it, not for the sum.
        (100..110).for_each(|flow| kernel.count(1, flow, 1));
        kernel.count(1, 7, 6);
        assert_eq!(kernel.read(&mut ledger, 1, 3)[&key], [56, 112]);
        assert_eq!(ledger.other(1), [9 + 10 + 5, 2 * (9 + 10 + 5)]);
    }

    #[test]
    fn the_idle_lose_their_series_and_what_comes_late_is_not_lost() {
        let mut kernel = Kernel { room: 9, ..Kernel::default() };
        let mut ledger = Ledger::default();
        kernel.count(1, 1, 10);
        kernel.count(1, 2, 3);
        assert_eq!(kernel.read(&mut ledger, 1, 0).into_keys().collect::<Vec<_>>(), [[1, 0, 1]]);
        kernel.count(1, 2, 1);
        let flows = kernel.map.iter().map(|(key, count)| Flow { key, group: key[0], count: *count });
        let limits = Limits { shown: 1, idle: IDLE, now: IDLE + 1 };
        let shares = ledger.enter(flows, &kernel.totals(), |_| true, limits);
        assert_eq!(shares.idle, [[1, 0, 1]]);
        let own: Vec<_> = shares.own.iter().map(|(flow, count)| (flow.key, *count)).collect();
        assert_eq!(own, [(&[1, 0, 2][..], [1, 2])], "what it had before is in other");
        assert_eq!(ledger.other(1), [3, 6]);
    }

    #[test]
    fn another_group_of_the_same_name_begins_anew() {
        let mut kernel = Kernel { room: 9, ..Kernel::default() };
        let mut ledger = Ledger::default();
        kernel.count(1, 1, 100);
        kernel.count(1, 2, 50);
        kernel.count(2, 1, 10);
        kernel.read(&mut ledger, 1, 0);
        assert_eq!((ledger.other(1), ledger.other(2)), ([50, 100], [10, 20]));
        let mut kernel = Kernel { room: 9, ..Kernel::default() };
        kernel.count(1, 1, 7);
        kernel.count(1, 2, 5);
        assert_eq!(kernel.read(&mut ledger, 1, 1), [([1, 0, 1], [7, 14])].into());
        assert_eq!((ledger.other(1), ledger.other(2)), ([5, 10], [0, 0]));
        assert_eq!(ledger.groups.len(), 1);
        // Flows of what is gone may be in the map a moment longer.
        kernel.totals.clear();
        assert!(kernel.read(&mut ledger, 1, 2).is_empty());
        assert!(ledger.flows.is_empty() && ledger.groups.is_empty());
    }

    #[test]
    fn what_is_not_known_takes_no_room_and_loses_nothing() {
        let mut kernel = Kernel { room: 9, ..Kernel::default() };
        let mut ledger = Ledger::default();
        let mut read = |kernel: &Kernel, is_known: bool| {
            let flows = kernel.map.iter().map(|(key, count)| Flow { key, group: key[0], count: *count });
            let limits = Limits { shown: 1, idle: IDLE, now: 0 };
            let shares = ledger.enter(flows, &kernel.totals(), |group| is_known || *group == 2, limits);
            let own: Vec<_> = shares.own.iter().map(|(flow, count)| (flow.key[0], count[0])).collect();
            (own, ledger.other(1)[0], ledger.other(2)[0])
        };
        kernel.count(1, 1, 50);
        kernel.count(1, 2, 5);
        kernel.count(2, 1, 3);
        assert_eq!(read(&kernel, false), (vec![(2, 3)], 0, 0));
        assert_eq!(read(&kernel, true), (vec![(1, 50)], 5, 0));
        kernel.count(1, 1, 10);
        kernel.count(2, 1, 3);
        assert_eq!(read(&kernel, false), (vec![(2, 6)], 5, 0));
        kernel.count(1, 2, 1);
        kernel.count(2, 1, 3);
        assert_eq!(read(&kernel, true), (vec![(1, 60)], 6, 3));
    }

    #[test]
    fn what_is_remembered_of_those_that_are_gone_is_bounded() {
        let mut kernel = Kernel { room: 500, ..Kernel::default() };
        let mut ledger = Ledger::default();
        for time in 0..10_u16 {
            (0..500).for_each(|flow| kernel.count(1, 500 * time + flow, 1));
            kernel.read(&mut ledger, 500, u64::from(time));
        }
        assert!(ledger.flows.len() <= 500 + MAX_GONE + 500, "{}", ledger.flows.len());
        assert!(ledger.flows.contains_key(&[1, 0x11, 0x94][..]), "the newest of them");
        assert_eq!(ledger.other(1), [0, 0]);
    }
}
