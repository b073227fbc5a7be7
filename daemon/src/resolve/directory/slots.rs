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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flat_map(|piece| piece.iter().flatten()).map(|entry| &**entry)
    }
}
