//! Which families an answer has, and which columns must be read for them.

use super::pass::{Snapshot, Sources, Wants};
use super::room::Summed;
use super::self_metrics::ENTITY_INFO;
use crate::declare::{ColumnSet, Family, Names, Probe};
use crate::hooks::Options;
use crate::server::exposition::{Budget, Whose, write_family, write_infos, write_sums};
use netskoop_api::OptionValue;
use std::sync::Arc;

/// What a scrape asks for.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Generations of names.
    pub names: Vec<Names>,
    /// Whether the inspector's names have the labels of its release 0.1.
    pub target: bool,
    /// All families, or only the core set.
    pub full: bool,
    /// Only these probes; all that are on if `None`.
    pub probes: Option<Vec<&'static Probe>>,
}

/// A family and the table its values are in.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// The probe that shows it.
    pub probe: &'static Probe,
    /// The family.
    pub family: &'static Family,
    /// Index of its table.
    pub table: usize,
}

/// A probe that works, with its options.
pub type Active = (&'static Probe, Options);

impl Selection {
    /// The families of the probes that are on.
    pub fn choose(&self, active: &[Active], sources: &Sources) -> Vec<Chosen> {
        let mut chosen = Vec::new();
        for (probe, options) in active {
            if self.probes.as_ref().is_some_and(|wanted| !wanted.iter().any(|w| std::ptr::eq(*w, *probe))) {
                continue;
            }
            let is_on = |name| options.get(name) == Some(&OptionValue::Bool(true));
            let families = probe.families().filter(|family| {
                let with = family.with.is_none_or(|name| active.iter().any(|(probe, _)| probe.name == name));
                with && self.names.contains(&family.names)
                    && (self.full || family.core || family.option.is_some())
                    && family.option.is_none_or(is_on)
                    && !family.unless.is_some_and(is_on)
            });
            for family in families {
                chosen.extend(sources.index(family.table).map(|table| Chosen { probe, family, table }));
            }
        }
        chosen
    }
}

/// The columns that families show.
pub fn wants(chosen: &[Chosen], sources: &Sources) -> Wants {
    let mut wants = vec![ColumnSet::default(); sources.tables().len()];
    for Chosen { family, table, .. } in chosen {
        family.points.columns().for_each(|column| wants[*table].insert(column));
    }
    wants
}

/// An answer that is written piece by piece as the client takes it.
pub struct Exposition {
    snapshot: Arc<Snapshot>,
    chosen: std::vec::IntoIter<Chosen>,
    /// What is added up, by probe.
    summed: Vec<Summed>,
    target: bool,
    /// Number of the entity whose description is next, if any.
    next_info: Option<usize>,
    budget: Budget,
    titled: &'static str,
    tail: Option<Vec<u8>>,
    bytes: u64,
    finished: Option<Box<dyn FnOnce(Budget, u64) + Send + Sync>>,
}

/// What an answer has.
pub struct Contents {
    /// Families.
    pub chosen: Vec<Chosen>,
    /// What is added up instead of shown.
    pub summed: Vec<Summed>,
    /// Whether the inspector's names have the labels of its release 0.1.
    pub target: bool,
    /// Whether the entities are described.
    pub infos: bool,
}

/// Size from which a piece is handed over.
const PIECE: usize = 32 * 1024;

impl Exposition {
    /// The contents as a snapshot has them, then `tail`. `finished` is told what was written.
    pub fn new(
        snapshot: Arc<Snapshot>,
        contents: Contents,
        max_series: u64,
        tail: Vec<u8>,
        finished: impl FnOnce(Budget, u64) + Send + Sync + 'static,
    ) -> Exposition {
        let Contents { chosen, summed, target, infos } = contents;
        Exposition {
            snapshot,
            chosen: chosen.into_iter(),
            summed,
            target,
            next_info: infos.then_some(0),
            budget: Budget::new(max_series),
            titled: "",
            tail: Some(tail),
            bytes: 0,
            finished: Some(Box::new(finished)),
        }
    }
}

impl Iterator for Exposition {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        // The last family of a piece goes beyond its size.
        let mut piece = Vec::with_capacity(2 * PIECE);
        for chosen in self.chosen.by_ref() {
            let table = &self.snapshot.tables[chosen.table];
            let summed = self.summed.iter().find(|summed| std::ptr::eq(summed.probe, chosen.probe));
            let whose = Whose {
                directory: &self.snapshot.directory,
                groups: &self.snapshot.groups,
                target: self.target,
                hidden: summed.map(|summed| &summed.hidden),
            };
            let (budget, titled) = (&mut self.budget, &mut self.titled);
            write_family(&mut piece, chosen.family, table, &whose, budget, titled);
            if let Some(summed) = summed {
                write_sums(&mut piece, chosen.family, summed.of(chosen.family), &whose, budget, titled);
            }
            if piece.len() >= PIECE {
                break;
            }
        }
        if let Some(from) = self.next_info.filter(|_| piece.len() < PIECE) {
            let infos = self.snapshot.directory.infos();
            self.next_info = write_infos(&mut piece, ENTITY_INFO, infos, from, PIECE, &mut self.budget);
        }
        if piece.is_empty() {
            piece = self.tail.take()?;
            if let Some(finished) = self.finished.take() {
                finished(self.budget, self.bytes + piece.len() as u64);
            }
        }
        self.bytes += piece.len() as u64;
        Some(piece)
    }
}
