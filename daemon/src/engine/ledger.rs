//! What each namespace had counted when a scrape last showed it, so that what it counted until its end is known.

use super::pass::{Snapshot, Sources};
use crate::sources::gone::{Gone, Group, ROLLED, Sums, sums};
use crate::table::{ABSENT, Subject, Table};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long what was last shown of a vanished namespace is kept: by then it has been read at its end, or will never be.
const KEPT: Duration = Duration::from_secs(60);
/// Namespaces that may end during one pass, or have vanished and not been heard of; those beyond are as if never shown.
const MAX_WAITING: usize = 1024;

/// A namespace that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its slot.
    pub subject: Subject,
    /// When it was first seen, which tells it from others that had the slot.
    pub seen: Instant,
    /// Its kind.
    pub kind: &'static str,
    /// The Kubernetes namespace, of a pod.
    pub namespace: Option<String>,
    /// What it had counted; `None` if nobody could read it at its end.
    pub sums: Option<Sums>,
}

/// The ledger.
pub struct Ledger {
    gone: Arc<Gone>,
    /// Where the tables that are added up are among all.
    tables: [usize; ROLLED.len()],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last snapshot that shows as much as any.
    shown: Option<Arc<Snapshot>>,
    /// What it had shown of namespaces that the next one did not have any more, and since when.
    left: FxHashMap<(Subject, Instant), (Instant, Sums)>,
    /// Whether a pass runs: what it reads will have been shown.
    running: bool,
    waiting: Vec<Ended>,
}

impl Ledger {
    /// An empty ledger; `None` if nobody fills the tables that are added up.
    pub fn new(gone: Arc<Gone>, sources: &Sources) -> Option<Ledger> {
        let mut tables = [0; ROLLED.len()];
        for (at, decl) in tables.iter_mut().zip(ROLLED) {
            *at = sources.index(decl)?;
        }
        Some(Ledger { gone, tables, state: Mutex::default() })
    }

    /// A pass begins.
    pub fn begin(&self) {
        self.lock().running = true;
    }

    /// The pass has read everything: the sums of what is gone are put beside it. Labels of the groups.
    pub fn append(&self, tables: &mut [Table]) -> Vec<String> {
        let places = self.tables;
        let rolled = tables.iter_mut().enumerate().filter(|(at, _)| places.contains(at));
        let mut rolled: Vec<(usize, &mut Table)> = rolled.collect();
        rolled.sort_by_key(|(at, _)| places.iter().position(|place| place == at));
        self.gone.append(rolled.into_iter().map(|(_, table)| table));
        self.gone.labels()
    }

    /// The pass is over.
    pub fn end(&self, snapshot: &Arc<Snapshot>) {
        let mut state = self.lock();
        state.running = false;
        if self.gone.is_enabled() {
            self.replace(&mut state, snapshot);
        } else {
            *state = State::default();
        }
        for ended in std::mem::take(&mut state.waiting) {
            self.settle(&mut state, &ended);
        }
    }

    /// A namespace has ended.
    pub fn note(&self, ended: Ended) {
        let mut state = self.lock();
        if state.running && state.waiting.len() < MAX_WAITING {
            state.waiting.push(ended);
        } else {
            self.settle(&mut state, &ended);
        }
    }

    /// Adds what it had counted and nobody was shown.
    fn settle(&self, state: &mut State, ended: &Ended) {
        let Ended { subject, seen, kind, namespace, sums } = ended;
        let group = Group { kind, namespace: namespace.as_deref() };
        let shown = state.shown.as_ref().and_then(|shown| self.of(shown, *subject, *seen));
        let shown = shown.or_else(|| state.left.remove(&(*subject, *seen)).map(|(_, sums)| sums));
        let grown = sums.as_ref().map(|sums| match &shown {
            Some(shown) => difference(sums, shown),
            None => sums.clone(),
        });
        self.gone.add(group, grown.as_ref());
    }

    /// What a snapshot shows of a namespace.
    fn of(&self, snapshot: &Snapshot, subject: Subject, seen: Instant) -> Option<Sums> {
        let entry = snapshot.directory.entry(subject)?;
        let found = (entry.namespace.seen == seen).then(|| sums(self.rolled(snapshot), subject))?;
        found.iter().any(|sums| !sums.is_empty()).then_some(found)
    }

    fn rolled<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Table> {
        self.tables.iter().map(|at| &snapshot.tables[*at])
    }

    /// Takes the snapshot for what is shown, unless it shows less than the one before: who asks for one probe now and then
    /// is not who looks at everything.
    fn replace(&self, state: &mut State, snapshot: &Arc<Snapshot>) {
        let now = snapshot.taken;
        state.left.retain(|_, (since, _)| now.saturating_duration_since(*since) < KEPT);
        if let Some(before) = &state.shown {
            let covers = self.tables.iter().all(|at| snapshot.wants[*at].covers(&before.wants[*at]));
            if !covers && now.saturating_duration_since(before.taken) < KEPT {
                return;
            }
            // Mostly the same namespaces have the same rows as before.
            let lengths = |snapshot| self.rolled(snapshot).map(Table::len);
            if Arc::ptr_eq(&before.directory, &snapshot.directory) && lengths(before).eq(lengths(snapshot)) {
                state.shown = Some(Arc::clone(snapshot));
                return;
            }
            let rows = |table: &'_ Table| (0..table.len()).map(|row| table.subject(row)).collect::<Vec<_>>();
            let present: FxHashSet<Subject> = self.rolled(snapshot).flat_map(rows).collect();
            for entry in before.directory.entries() {
                let (subject, seen) = (entry.namespace.subject, entry.namespace.seen);
                let same = snapshot.directory.entry(subject).is_some_and(|e| e.namespace.seen == seen);
                // One that vanished while it was read is in the picture and has no numbers.
                let stays = same && present.contains(&subject);
                if !stays
                    && state.left.len() < MAX_WAITING
                    && let Some(sums) = self.of(before, subject, seen)
                {
                    state.left.insert((subject, seen), (now, sums));
                }
            }
        }
        state.shown = Some(Arc::clone(snapshot));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came since; a column that was not shown has grown from nothing.
fn difference(sums: &Sums, shown: &Sums) -> Sums {
    let mut grown = sums.clone();
    for (grown, shown) in grown.iter_mut().zip(shown) {
        for (value, shown) in grown.iter_mut().zip(shown) {
            if *value != ABSENT && *shown != ABSENT {
                *value = value.saturating_sub(*shown);
            }
        }
    }
    grown
}
