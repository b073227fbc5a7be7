//! Entries by slot, in pieces that pictures share: a copy in which a few differ costs little.

use super::Entry;
use crate::table::Subject;
use std::sync::Arc;

const PIECE: usize = 32;

type Piece = [Option<Arc<Entry>>; PIECE];

/// All entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Vec<Arc<Piece>>);

impl Slots {
    pub(super) fn get(&self, subject: Subject) -> Option<&Arc<Entry>> {
        let at = subject.0 as usize;
        self.0.get(at / PIECE)?[at % PIECE].as_ref()
    }

    pub(super) fn set(&mut self, subject: Subject, entry: Option<Arc<Entry>>) {
        let at = subject.0 as usize;
        if at / PIECE >= self.0.len() {
            self.0.resize_with(at / PIECE + 1, Arc::default);
        }
        Arc::make_mut(&mut self.0[at / PIECE])[at % PIECE] = entry;
    }

    /// Slots whose entry is another one than in `before`, or gone, or new. Pieces that both share are not looked into.
    pub(super) fn changes<'a>(&'a self, before: &'a Slots) -> impl Iterator<Item = Subject> + 'a {
        let pieces = self.0.len().max(before.0.len());
        let differs = |at: &usize| match (self.0.get(*at), before.0.get(*at)) {
            (Some(now), Some(then)) => !Arc::ptr_eq(now, then),
            _ => true,
        };
        let subjects = |piece: usize| (piece * PIECE..(piece + 1) * PIECE).map(|at| Subject(at as u32));
        let entry = |slots: &Slots, subject| slots.get(subject).map(Arc::as_ptr);
        let changed = move |subject: &Subject| entry(self, *subject) != entry(before, *subject);
        (0..pieces).filter(differs).flat_map(subjects).filter(changed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flat_map(|piece| piece.iter().flatten()).map(|entry| &**entry)
    }
}
