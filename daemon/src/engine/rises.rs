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
    /// By the slot of a namespace and the label of the counter; with it, who had the slot.
    counted: FxHashMap<(Subject, &'static str), (u64, u64)>,
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
                    let before = self.counted.insert((ns.subject, *label), (ns.birth, count));
                    let before = before.filter(|(birth, _)| *birth == ns.birth).map(|(_, count)| count);
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
        self.counted.retain(|(subject, _), (birth, _)| {
            directory.entry(*subject).is_some_and(|entry| entry.namespace.birth == *birth)
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
