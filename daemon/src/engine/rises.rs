//! Tells of what only counters of the kernel tell: each that has risen from one pass to the next is an event.

use super::Engine;
use super::pass::{Snapshot, Sources};
use crate::hooks::RawEvent;
use crate::probes::netanomaly::{POLLED, PROBE, risen};
use crate::resolve::directory::Directory;
use crate::table::Subject;
use rustc_hash::FxHashMap;
use std::time::Instant;

/// What the last pass has read.
#[derive(Default)]
pub(super) struct Rises {
    /// When that was.
    taken: Option<Instant>,
    /// By the slot of a namespace and the label of the counter; with it, when who had the slot was first seen.
    counted: FxHashMap<(Subject, &'static str), (Instant, u64)>,
}

impl Rises {
    /// The events of a pass; of one that was looked at before there are none. What a namespace had counted when it was read
    /// for the first time is no news.
    fn of(&mut self, snapshot: &Snapshot, sources: &Sources) -> Vec<RawEvent> {
        if self.taken.replace(snapshot.taken) == Some(snapshot.taken) {
            return vec![];
        }
        let mut events = Vec::new();
        for (decl, counters) in POLLED {
            let Some(table) = sources.index(decl).map(|at| &snapshot.tables[at]) else { continue };
            for row in 0..table.len() {
                let Some(entry) = snapshot.directory.entry(table.subject(row)) else { continue };
                let ns = &entry.namespace;
                for (label, column) in counters {
                    let Some(count) = table.cell(row, *column) else { continue };
                    let before = self.counted.insert((ns.subject, *label), (ns.seen, count));
                    let before = before.filter(|(seen, _)| *seen == ns.seen).map(|(_, count)| count);
                    if let Some(rise) =
                        before.and_then(|before| count.checked_sub(before)).filter(|rise| *rise > 0)
                    {
                        events.push(risen(label, (ns.facts.inode, ns.facts.cookie), rise));
                    }
                }
            }
        }
        self.forget_vanished(&snapshot.directory);
        events
    }

    fn forget_vanished(&mut self, directory: &Directory) {
        self.counted.retain(|(subject, _), (seen, _)| {
            directory.entry(*subject).is_some_and(|entry| entry.namespace.seen == *seen)
        });
    }
}

impl Engine {
    /// Tells what has risen, if somebody wants to know.
    pub(super) fn tell_rises(&self, snapshot: &Snapshot) {
        let wanted = self.slots().iter().any(|slot| std::ptr::eq(slot.probe, &PROBE) && self.works(slot));
        let mut rises = super::lock(&self.rises);
        if !wanted {
            *rises = Rises::default();
            return;
        }
        for event in rises.of(snapshot, &self.sources) {
            self.announce(&PROBE, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::directory::Namespace;
    use crate::resolve::directory::testing::{build, namespace};
    use crate::resolve::identity::Facts;
    use crate::table::Table;
    use netskoop_api::Value;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    /// One namespace in one slot, as a pass finds it: since when it is there, its name, and what its counter has come to.
    fn snapshot(sources: &Sources, taken: Instant, seen: Instant, name: (&str, u64), count: u64) -> Snapshot {
        let (decl, counters) = POLLED[0];
        let mut tables: Vec<Table> = sources.tables().iter().map(|decl| Table::new(decl, 9)).collect();
        let table = &mut tables[sources.index(decl).unwrap()];
        table.row(Subject(1), &[]).unwrap()[usize::from(counters[0].1)] = count;
        let facts = Facts { inode: 100, mounts: vec![name.0.into()], ..Facts::default() };
        let ns = Namespace { seen, ..(*namespace(1, facts, name.1)).clone() };
        Snapshot {
            tables,
            wants: vec![],
            directory: Arc::new(build(name.1, &[Arc::new(ns)], "n")),
            groups: vec![],
            taken,
            time: jiff::Timestamp::now(),
            cpu: Duration::ZERO,
            wall: Duration::ZERO,
            reports: vec![],
            late: 0,
        }
    }

    #[test]
    fn a_rise_is_told_of_a_namespace_that_gets_another_name_and_not_of_the_next_one_in_its_slot() {
        let sources = Sources::new(crate::sources::files(Path::new("/proc")));
        let (mut rises, begin) = (Rises::default(), Instant::now());
        let mut pass = |second, seen, name, count| -> Vec<Value> {
            let at = |second| begin + Duration::from_secs(second);
            let events = rises.of(&snapshot(&sources, at(second), at(seen), name, count), &sources);
            events.into_iter().map(|event| event.fields[1].1.clone()).collect()
        };
        assert_eq!(pass(1, 0, ("a", 1), 5), []);
        assert_eq!(pass(2, 0, ("b", 2), 7), [Value::Number(2)]);
        assert_eq!(pass(3, 2, ("c", 3), 9), []);
        assert_eq!(pass(4, 2, ("c", 3), 10), [Value::Number(1)]);
    }
}
