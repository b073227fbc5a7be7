//! Room for series: `metrics.max_series` for a whole answer, `metrics.max_series_per_probe` for one probe. What finds no room
//! under its own name is added up under `kind="other",name="other"`.
//!
//! A sum must never fall, or `rate()` would see a reset. So an entity is shown by a probe or added up as a whole, and stays
//! so as long as it lives, also when others vanish and make room; what an added-up one had counted when it vanished, or was
//! not read for once, stays in the sum.

use super::pass::Snapshot;
use super::select::Chosen;
use crate::declare::{Family, Kind, Names, Probe, Scope};
use crate::resolve::directory::Directory;
use crate::server::exposition::points;
use crate::table::{ABSENT, Subject};
use rustc_hash::{FxHashMap, FxHashSet};
use std::time::Instant;

/// Numbers that are remembered at most for what is added up, 8 bytes each. What is beyond is left out.
const MAX_REMEMBERED: usize = 1 << 20;

/// The limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Series of one answer.
    pub total: u64,
    /// Series of one probe in it.
    pub probe: u64,
}

/// Answers that have the same series: a generation of names more or less is another one, and so is the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    names: u8,
    full: bool,
}

impl View {
    /// The view of these names, all of their families or only the core set.
    pub fn new(names: &[Names], full: bool) -> View {
        View { names: names.iter().fold(0, |mask, names| mask | 1 << (*names as u8)), full }
    }
}

/// Who is shown and who is added up, for every view that ever had too many series.
#[derive(Debug, Default)]
pub struct Rooms {
    limits: Limits,
    views: FxHashMap<View, Room>,
}

/// One view.
#[derive(Debug, Default)]
struct Room {
    /// When the newest snapshot that was looked at was taken.
    at: Option<Instant>,
    ledgers: Vec<Ledger>,
}

/// One probe in a view.
#[derive(Debug)]
struct Ledger {
    probe: &'static Probe,
    /// The families, each with the place of its first point among `retired` and `last`.
    families: Vec<(&'static Family, usize)>,
    points: usize,
    members: FxHashMap<Subject, Member>,
    /// What added-up entities had counted that are gone.
    retired: Vec<u64>,
    /// Series that are shown.
    shown: u64,
}

#[derive(Debug)]
struct Member {
    life: Life,
    /// Whether it got another name since its numbers were taken. Sources have then forgotten what of it was gone before.
    renamed: bool,
    /// What it had counted when it was last read; `None` if it is shown under its own name.
    last: Option<Box<[u64]>>,
}

/// Which owner of its slot an entity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    /// When the namespace was first seen, which tells it from others that had the slot. The subject of a tenant is never given
    /// again.
    seen: Option<Instant>,
    /// Changes with its name too.
    birth: u64,
}

/// What is added up of one probe in one answer.
#[derive(Debug)]
pub struct Summed {
    /// The probe.
    pub probe: &'static Probe,
    /// The entities that are not shown.
    pub hidden: FxHashSet<Subject>,
    /// Series that they have.
    pub series: u64,
    families: Vec<(&'static Family, usize)>,
    values: Vec<u64>,
}

impl Summed {
    /// The sums of a family, one for each of its points.
    pub fn of(&self, family: &'static Family) -> &[u64] {
        let found = self.families.iter().find(|(known, _)| std::ptr::eq(*known, family));
        found.map_or(&[], |(_, first)| &self.values[*first..first + family.points.count()])
    }
}

/// Where a family's values are, and whose they may be.
struct Answer<'a> {
    snapshot: &'a Snapshot,
    chosen: &'a [Chosen],
}

impl Answer<'_> {
    fn directory(&self) -> &Directory {
        &self.snapshot.directory
    }

    fn families(&self, probe: &'static Probe) -> impl Iterator<Item = &Chosen> {
        self.chosen.iter().filter(move |chosen| std::ptr::eq(chosen.probe, probe))
    }

    fn probes(&self) -> Vec<&'static Probe> {
        let mut probes: Vec<&'static Probe> = self.chosen.iter().map(|chosen| chosen.probe).collect();
        probes.dedup_by(|a, b| std::ptr::eq(*a, *b));
        probes
    }

    /// More series than a probe can have.
    fn at_most(&self, probe: &'static Probe, subjects: u64) -> u64 {
        let most = |chosen: &Chosen| {
            let rows = self.snapshot.tables[chosen.table].len() as u64 * chosen.family.points.count() as u64;
            if chosen.family.scope == Scope::Repeat { rows * subjects } else { rows }
        };
        self.families(probe).map(most).sum()
    }

    /// Whether it is shown whatever there is: there are few of these.
    fn is_exempt(&self, subject: Subject) -> bool {
        let special = [Subject::NODE, Subject::UNATTRIBUTED, self.directory().host()];
        special.contains(&subject) || subject.group_number().is_some()
    }

    /// Series of a probe by entity.
    fn series(&self, probe: &'static Probe) -> FxHashMap<Subject, u64> {
        let mut series: FxHashMap<Subject, u64> = FxHashMap::default();
        let directory = self.directory();
        for Chosen { family, table, .. } in self.families(probe) {
            let has_name = |subject: Subject| {
                subject.group_number().is_some() || directory.labels(subject, family.names).is_some()
            };
            points(family, &self.snapshot.tables[*table], |point| match family.scope {
                Scope::Own if has_name(point.subject) => *series.entry(point.subject).or_default() += 1,
                Scope::Own | Scope::HostOnly => {}
                Scope::Repeat => {
                    for subject in directory.subjects().filter(|subject| has_name(*subject)) {
                        *series.entry(subject).or_default() += 1;
                    }
                }
            });
        }
        series
    }
}

impl Rooms {
    /// What must be added up in an answer. Nothing as long as everything fits, which costs no look at the numbers.
    /// `infos` is the number of series that the answer has beside those of probes.
    pub fn plan(
        &mut self,
        limits: Limits,
        view: View,
        snapshot: &Snapshot,
        chosen: &[Chosen],
        infos: u64,
    ) -> Vec<Summed> {
        if self.limits != limits {
            *self = Rooms { limits, ..Rooms::default() };
        }
        let answer = Answer { snapshot, chosen };
        let probes = answer.probes();
        if !self.views.contains_key(&view) {
            let subjects = answer.directory().subjects().count() as u64;
            let most: Vec<u64> = probes.iter().map(|probe| answer.at_most(probe, subjects)).collect();
            if fits(&most, limits, infos) {
                return Vec::new();
            }
            let exact: Vec<u64> = probes.iter().map(|probe| answer.series(probe).values().sum()).collect();
            if fits(&exact, limits, infos) {
                return Vec::new();
            }
        }
        self.views.entry(view).or_default().plan(limits, &answer, &probes, infos)
    }
}

fn fits(series: &[u64], limits: Limits, infos: u64) -> bool {
    series.iter().all(|series| *series <= limits.probe) && series.iter().sum::<u64>() + infos <= limits.total
}

impl Room {
    fn plan(
        &mut self,
        limits: Limits,
        answer: &Answer<'_>,
        probes: &[&'static Probe],
        infos: u64,
    ) -> Vec<Summed> {
        for probe in probes {
            self.open(answer, probe);
        }
        // Two answers may come in another order than their snapshots.
        let is_newest = self.at.is_none_or(|at| at <= answer.snapshot.taken);
        let series: Vec<FxHashMap<Subject, u64>> = probes.iter().map(|probe| answer.series(probe)).collect();
        if is_newest {
            self.at = Some(answer.snapshot.taken);
            let alive = alive(answer.directory());
            self.ledgers.iter_mut().for_each(|ledger| ledger.retire(&alive));
            self.admit(limits, answer, probes, &series, &alive, infos);
        }
        let with_series = probes.iter().zip(&series);
        with_series.filter_map(|(probe, series)| self.ledger(probe)?.sum(answer, series, is_newest)).collect()
    }

    fn ledger(&mut self, probe: &'static Probe) -> Option<&mut Ledger> {
        self.ledgers.iter_mut().find(|ledger| std::ptr::eq(ledger.probe, probe))
    }

    /// A ledger for the families that the probe shows now; after a change of its options it begins anew.
    fn open(&mut self, answer: &Answer<'_>, probe: &'static Probe) {
        let mut points = 0;
        let mut families = Vec::new();
        for Chosen { family, .. } in answer.families(probe).filter(|chosen| chosen.family.scope == Scope::Own)
        {
            families.push((*family, points));
            points += family.points.count();
        }
        let same = |ledger: &Ledger| {
            let both = ledger.families.iter().zip(&families);
            ledger.families.len() == families.len() && both.into_iter().all(|(a, b)| std::ptr::eq(a.0, b.0))
        };
        if self.ledger(probe).is_some_and(|ledger| same(ledger)) {
            return;
        }
        self.ledgers.retain(|ledger| !std::ptr::eq(ledger.probe, probe));
        let (members, retired) = (FxHashMap::default(), vec![ABSENT; points]);
        self.ledgers.push(Ledger { probe, families, points, members, retired, shown: 0 });
    }

    /// Decides for those who are new.
    fn admit(
        &mut self,
        limits: Limits,
        answer: &Answer<'_>,
        probes: &[&'static Probe],
        series: &[FxHashMap<Subject, u64>],
        alive: &FxHashMap<Subject, Life>,
        infos: u64,
    ) {
        for (probe, series) in probes.iter().zip(series) {
            let Some(ledger) = self.ledger(probe) else { continue };
            let is_shown = |subject: &Subject| {
                answer.is_exempt(*subject)
                    || ledger.members.get(subject).is_some_and(|member| member.last.is_none())
            };
            ledger.shown =
                series.iter().filter(|(subject, _)| is_shown(subject)).map(|(_, count)| count).sum();
        }
        // Room for the sums themselves is kept from the beginning.
        let sums: u64 = self.ledgers.iter().map(|ledger| ledger.points as u64).sum();
        let mut total = infos + sums + self.ledgers.iter().map(|ledger| ledger.shown).sum::<u64>();
        let mut remembered: usize = self
            .ledgers
            .iter()
            .flat_map(|l| l.members.values())
            .filter_map(|m| Some(m.last.as_ref()?.len()))
            .sum();
        let mut subjects: Vec<Subject> = series.iter().flat_map(|series| series.keys().copied()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        for subject in subjects.into_iter().filter(|subject| !answer.is_exempt(*subject)) {
            let Some(life) = alive.get(&subject).copied() else { continue };
            for (probe, series) in probes.iter().zip(series) {
                let (Some(ledger), Some(count)) = (self.ledger(probe), series.get(&subject)) else {
                    continue;
                };
                if ledger.members.contains_key(&subject) {
                    continue;
                }
                let in_probe = ledger.shown + ledger.points as u64 + count;
                let fits = in_probe <= limits.probe && total + count <= limits.total;
                let last = (!fits).then(|| {
                    let room = if remembered + ledger.points <= MAX_REMEMBERED { ledger.points } else { 0 };
                    remembered += room;
                    vec![ABSENT; room].into_boxed_slice()
                });
                if fits {
                    ledger.shown += count;
                    total += count;
                }
                ledger.members.insert(subject, Member { life, renamed: false, last });
            }
        }
    }
}

/// Everybody who lives, and which owner of the slot it is.
fn alive(directory: &Directory) -> FxHashMap<Subject, Life> {
    let namespaces = directory.entries().map(|entry| &entry.namespace);
    let namespaces = namespaces.map(|ns| (ns.subject, Life { seen: Some(ns.seen), birth: ns.birth }));
    let tenants = directory.tenants().iter().map(|tenant| (tenant.subject, Life { seen: None, birth: 0 }));
    namespaces.chain(tenants).collect()
}

/// Adds to a sum that may not have begun.
fn add(family: &Family, sum: &mut u64, value: u64) {
    if value != ABSENT {
        *sum = if *sum == ABSENT { value } else { family.add(*sum, value) };
    }
}

impl Ledger {
    /// Whose values these are, point by point.
    fn owners(&self) -> impl Iterator<Item = &'static Family> {
        self.families.iter().flat_map(|(family, _)| std::iter::repeat_n(*family, family.points.count()))
    }

    /// Forgets who is gone; what an added-up one had counted stays in the sums.
    fn retire(&mut self, alive: &FxHashMap<Subject, Life>) {
        let owners: Vec<&Family> = self.owners().collect();
        let retired = &mut self.retired;
        self.members.retain(|subject, member| {
            let now = alive.get(subject).filter(|life| life.seen == member.life.seen);
            let lives = now.is_some();
            if let Some(now) = now {
                member.renamed |= now.birth != member.life.birth;
                member.life = *now;
            }
            if let Some(last) = member.last.as_deref().filter(|_| !lives) {
                for ((family, sum), value) in owners.iter().zip(&mut *retired).zip(last) {
                    if family.kind() == Kind::Counter {
                        add(family, sum, *value);
                    }
                }
            }
            lives
        });
    }

    /// Takes the numbers of those who are added up, and adds them up; `None` if there are none.
    fn sum(
        &mut self,
        answer: &Answer<'_>,
        series: &FxHashMap<Subject, u64>,
        is_newest: bool,
    ) -> Option<Summed> {
        let is_hidden = |member: &&Member| member.last.is_some();
        let hidden: FxHashSet<Subject> = self
            .members
            .iter()
            .filter(|(_, member)| is_hidden(member))
            .map(|(subject, _)| *subject)
            .collect();
        if is_newest {
            self.take(answer, &hidden);
        }
        let mut values = self.retired.clone();
        let owners: Vec<&Family> = self.owners().collect();
        for last in self.members.values().filter_map(|member| member.last.as_deref()) {
            for ((family, sum), value) in owners.iter().zip(&mut values).zip(last) {
                add(family, sum, *value);
            }
        }
        let nothing = hidden.is_empty() && values.iter().all(|value| *value == ABSENT);
        let series = hidden.iter().filter_map(|subject| series.get(subject)).sum();
        let (probe, families) = (self.probe, self.families.clone());
        (!nothing).then_some(Summed { probe, hidden, series, families, values })
    }

    /// Takes over the numbers of a snapshot. A counter that was not read stays; one that began anew goes on, and of one that
    /// only lost what was gone before it got another name, that stays in the sum.
    fn take(&mut self, answer: &Answer<'_>, hidden: &FxHashSet<Subject>) {
        let mut now: FxHashMap<Subject, Vec<u64>> = FxHashMap::default();
        for Chosen { family, table, .. } in answer.families(self.probe) {
            let Some((_, first)) = self.families.iter().find(|(known, _)| std::ptr::eq(*known, *family))
            else {
                continue;
            };
            points(family, &answer.snapshot.tables[*table], |point| {
                if hidden.contains(&point.subject) {
                    let values = now.entry(point.subject).or_insert_with(|| vec![ABSENT; self.points]);
                    add(family, &mut values[first + point.cell], point.value);
                }
            });
        }
        let owners: Vec<&Family> = self.owners().collect();
        let nothing = vec![ABSENT; self.points];
        for (subject, member) in &mut self.members {
            let Some(last) = &mut member.last else { continue };
            let now = now.get(subject).unwrap_or(&nothing);
            let mut unread = false;
            for (at, (last, now)) in last.iter_mut().zip(now).enumerate() {
                let is_counter = owners[at].kind() == Kind::Counter;
                if is_counter && *now == ABSENT {
                    unread |= *last != ABSENT;
                    continue;
                }
                if is_counter && *last != ABSENT && *now < *last {
                    let lost = if member.renamed { *last - *now } else { *last };
                    add(owners[at], &mut self.retired[at], lost);
                }
                *last = *now;
            }
            member.renamed &= unread;
        }
    }
}

#[cfg(test)]
mod tests;
