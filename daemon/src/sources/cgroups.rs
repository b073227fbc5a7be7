//! Source `cgroups`: how the scheduler of the kernel treats the cgroups of each entity, in cgroup v1, v2, and both together.
//!
//! An entity may have several, one for each container, and they come and go while it lives. Its numbers are the sums over
//! them, and those of a cgroup that is gone stay in: sums do not fall because a container was started anew.

use super::enter::failed;
use super::lock;
use super::tenants::own_part;
use super::{Owners, ReadError, Report, Scratch, Source, Want};
use crate::declare::{ColumnSet, TableDecl, counter};
use crate::kernel::cgroup_mounts::{Mount, Mounts, path_in};
use crate::kernel::procfs::cgroup_cpu::{VALUES, Values, parse_pressure, parse_stat};
use crate::kernel::procfs::{Shape, read_whole};
use crate::table::{Subject, Table};
use rustc_hash::FxHashMap;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Instant;

/// Quotas and pressure. Times are in nanoseconds.
pub static CGROUP_CPU: TableDecl = TableDecl {
    name: "cgroup_cpu",
    keys: &[],
    // In the order of `Values`.
    columns: &[
        counter("nr_periods"),
        counter("nr_throttled"),
        counter("throttled_ns"),
        counter("pressure_some_ns"),
        counter("pressure_full_ns"),
    ],
    node: false,
};

/// Cgroups of one entity at most; the rest is counted as over budget.
const MAX_CGROUPS: usize = 256;

/// The cgroups that the mounts of this process show.
pub struct Cgroups {
    proc: PathBuf,
    mounts: Mounts,
    owners: Mutex<Option<Arc<dyn Owners>>>,
    /// Held while files are read, so that nobody may wait for it.
    memory: Mutex<Memory>,
    /// Whom to forget.
    forgotten: Mutex<Vec<Subject>>,
}

#[derive(Default)]
struct Memory {
    entities: FxHashMap<Subject, Sums>,
    text: Vec<u8>,
    pass: u64,
}

/// What the cgroups of an entity have come to.
#[derive(Default)]
struct Sums {
    gone: Values,
    live: Vec<Live>,
}

/// A cgroup as it was last read.
struct Live {
    /// The kernel gives it to no other one.
    inode: u64,
    values: Values,
    pass: u64,
}

/// Where the files of one cgroup are.
#[derive(Default)]
struct Place {
    stat: Option<PathBuf>,
    pressure: Option<PathBuf>,
    inode: u64,
}

impl Cgroups {
    /// The cgroups of the processes under `proc`.
    pub fn new(proc: &Path) -> Cgroups {
        let (owners, memory, forgotten) = Default::default();
        Cgroups { proc: proc.to_owned(), mounts: Mounts::read(proc), owners, memory, forgotten }
    }

    /// Where the cgroup of a process is whose name has this text in it. Nothing if it is called otherwise: it would be
    /// somebody else's as well.
    fn place(&self, pid: i32, name: &str, text: &mut Vec<u8>) -> Option<Place> {
        read(&self.proc.join(format!("{pid}/cgroup")), text).ok()?;
        let text = std::str::from_utf8(text).ok()?;
        let find = |controller: &str, mount: Option<&Mount>| {
            let path = own_part(path_in(text, controller)?, name)?;
            let directory = mount?.directory(path)?;
            Some((std::fs::metadata(&directory).ok()?.ino(), directory))
        };
        let unified = find("", self.mounts.unified());
        let old = find("cpu", self.mounts.controller("cpu"));
        let inode = old.as_ref().or(unified.as_ref())?.0;
        Some(Place {
            // Where both are mounted, the controller is in one of them.
            stat: old.as_ref().or(unified.as_ref()).map(|(_, directory)| directory.join("cpu.stat")),
            pressure: unified.map(|(_, directory)| directory.join("cpu.pressure")),
            inode,
        })
    }

    fn look(&self, owners: &dyn Owners, want: &Want<'_>, memory: &mut Memory, report: &mut Report) {
        memory.pass += 1;
        let Memory { entities, text, pass } = memory;
        owners.cgroups(&mut |subject, pid, name| {
            if Instant::now() >= want.deadline {
                report.late += 1;
                return;
            }
            want.beacon.enter(Subject::NODE, "cgroups");
            let Some(place) = self.place(pid, name, text) else { return };
            let sums = entities.entry(subject).or_default();
            // Several sources may tell of one container.
            if sums.live.iter().any(|live| live.inode == place.inode && live.pass == *pass) {
                return;
            }
            match place.values(text) {
                Ok(values) if sums.note(place.inode, values, *pass) => {}
                Ok(_) => report.over_budget += 1,
                // It was removed in between.
                Err(ReadError::Vanished) => report.vanished += 1,
                Err(error) => report.fail(error),
            }
        });
        // Of one that was not read for lack of time the last values stand.
        if report.late == 0 && report.failed == 0 {
            entities.values_mut().for_each(|sums| sums.retire(*pass));
        }
    }

    /// The node as a whole has pressure only.
    fn node(&self, owners: &dyn Owners, text: &mut Vec<u8>) -> Option<(Subject, Values)> {
        let host = owners.of_netns(owners.node_netns())?;
        read(&self.proc.join("pressure/cpu"), text).ok()?;
        let mut values = Values::default();
        parse_pressure(text, &mut values).ok()?;
        Some((host, values))
    }
}

impl Place {
    fn values(&self, text: &mut Vec<u8>) -> Result<Values, ReadError> {
        let mut values = Values::default();
        let files =
            [(&self.stat, parse_stat as fn(&[u8], &mut Values) -> _), (&self.pressure, parse_pressure)];
        for (file, parse) in files {
            let Some(file) = file else { continue };
            let what = || file.display().to_string();
            match read(file, text) {
                Ok(()) => parse(text, &mut values).map_err(|bad| {
                    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, bad);
                    ReadError::Failed { doing: "parse", what: what(), source }
                })?,
                // A kernel without quotas or pressure, or where they are switched off.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(Errno::NODEV) => return Err(ReadError::Vanished),
                Err(error) => return Err(failed("read", what(), error)),
            }
        }
        Ok(values)
    }
}

impl Sums {
    /// Takes what a cgroup has come to; false if there is no room for it.
    fn note(&mut self, inode: u64, values: Values, pass: u64) -> bool {
        let room = self.live.len() < MAX_CGROUPS;
        match self.live.iter_mut().find(|live| live.inode == inode) {
            Some(live) => (live.values, live.pass) = (values, pass),
            None if room => self.live.push(Live { inode, values, pass }),
            None => return false,
        }
        true
    }

    /// Keeps what those have come to that were not there this time.
    fn retire(&mut self, pass: u64) {
        let gone = &mut self.gone;
        self.live.retain(|live| {
            if live.pass != pass {
                add(gone, &live.values);
            }
            live.pass == pass
        });
    }

    fn total(&self) -> Values {
        let mut total = self.gone;
        self.live.iter().for_each(|live| add(&mut total, &live.values));
        total
    }
}

fn add(sum: &mut Values, values: &Values) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum = match (*sum, *value) {
            (Some(sum), Some(value)) => Some(sum.saturating_add(value)),
            (sum, value) => sum.or(value),
        };
    }
}

fn read(path: &Path, text: &mut Vec<u8>) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_whole(file, Shape::Records, text)
}

fn put(table: &mut Table, subject: Subject, wanted: &ColumnSet, values: &Values) {
    if values.iter().all(Option::is_none) {
        return;
    }
    if let Some(cells) = table.row(subject, &[]) {
        for (column, value) in (0..VALUES as u16).zip(values) {
            if let Some(value) = value.filter(|_| wanted.contains(column)) {
                cells[usize::from(column)] = value;
            }
        }
    }
}

impl Source for Cgroups {
    fn name(&self) -> &'static str {
        "cgroups"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        static TABLES: [&TableDecl; 1] = [&CGROUP_CPU];
        &TABLES
    }

    fn whole(&self) -> bool {
        true
    }

    fn meet(&self, owners: &Arc<dyn Owners>) {
        *lock(&self.owners) = Some(Arc::clone(owners));
    }

    fn forget(&self, subject: Subject) {
        lock(&self.forgotten).push(subject);
    }

    fn read(&self, want: &Want<'_>, _: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        let ([table], [wanted], Some(owners)) = (out, want.columns, lock(&self.owners).clone()) else {
            return report;
        };
        // A reading that hangs has it.
        let mut memory = match self.memory.try_lock() {
            Ok(memory) => memory,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Report { late: 1, ..report },
        };
        for subject in lock(&self.forgotten).drain(..) {
            memory.entities.remove(&subject);
        }
        self.look(&*owners, want, &mut memory, &mut report);
        if let Some((host, values)) = self.node(&*owners, &mut memory.text) {
            put(table, host, wanted, &values);
            report.done += 1;
        }
        for (subject, sums) in &memory.entities {
            put(table, *subject, wanted, &sums.total());
            report.done += 1;
        }
        want.beacon.leave();
        report
    }
}

#[cfg(test)]
mod tests;
