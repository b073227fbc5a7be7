//! Source `processes`: what each process has open, added up by whose it is. One look at `/proc` per pass; a process is its
//! thread group, and nothing of it is held open when the next one's turn comes.
//!
//! A number is whole or absent. An entity of which a process may not be looked at has none; that needs CAP_SYS_PTRACE, and
//! every capability that the process has. How many descriptors there are is one call for a process of any size (Linux 6.2); whether
//! one is a socket has to be asked of each. So all processes are counted first, and then the sockets of the small ones before
//! those of the large ones, until the time is over: who has a process that was not looked through has no number of sockets.

mod scan;

use super::enter::failed;
use super::lock;
use super::{Owners, ReadError, Report, Scratch, Source, Want};
use crate::declare::{TableDecl, gauge};
use crate::hooks::Options;
use crate::table::{Subject, Table};
use netskoop_api::OptionValue;
use rustc_hash::FxHashMap;
use rustix::fs::{AtFlags, Mode, OFlags};
use scan::{Place, Scan};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Descriptors by entity.
pub static FD: TableDecl =
    TableDecl { name: "fd", keys: &[], columns: &[gauge("open"), gauge("sockets")], node: false };

/// How near the processes of an entity are to their limits of descriptors: of that one which is nearest, in millionths.
pub static FD_LIMIT: TableDecl =
    TableDecl { name: "fd_limit", keys: &[], columns: &[gauge("used_ppm")], node: false };

static TABLES: [&TableDecl; 2] = [&FD, &FD_LIMIT];

/// Time that one pass spends here at most, whatever its deadline.
const MOST_TIME: Duration = Duration::from_secs(1);
/// Descriptors of one process that are looked at one by one, unless the option says otherwise.
pub const MOST_DESCRIPTORS: u64 = 20_000;

/// The processes of one procfs.
pub struct Processes {
    proc: PathBuf,
    owners: Mutex<Option<Arc<dyn Owners>>>,
    memory: Mutex<Memory>,
    /// Whether the size of `/proc/<pid>/fd` tells the number of descriptors.
    sized: bool,
    most_descriptors: AtomicU32,
}

/// What is kept from pass to pass, so that nothing is allocated.
#[derive(Default)]
struct Memory {
    sums: FxHashMap<Subject, Sum>,
    queue: Vec<Queued>,
    text: Vec<u8>,
}

/// What the processes of one entity have.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    open: u64,
    sockets: u64,
    /// Whether a process is not in it, because it may not be looked at.
    lacks_process: bool,
    /// Whether the sockets of a process are not in it.
    lacks_sockets: bool,
    used_ppm: Option<u64>,
}

/// A process whose sockets are to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Queued {
    open: u64,
    pid: i32,
    subject: Subject,
}

impl Processes {
    /// The processes under `proc`.
    pub fn new(proc: &Path) -> Processes {
        let own = rustix::fs::statat(rustix::fs::CWD, proc.join("self/fd"), AtFlags::empty());
        Processes {
            proc: proc.to_owned(),
            owners: Mutex::default(),
            memory: Mutex::default(),
            // We have some open.
            sized: own.is_ok_and(|stat| stat.st_size > 0),
            most_descriptors: AtomicU32::new(MOST_DESCRIPTORS as u32),
        }
    }
}

/// What a look at all processes is to find out.
#[derive(Clone, Copy)]
struct Wanted {
    sockets: bool,
    limits: bool,
}

impl Source for Processes {
    fn name(&self) -> &'static str {
        "processes"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn whole(&self) -> bool {
        true
    }

    fn meet(&self, owners: &Arc<dyn Owners>) {
        *lock(&self.owners) = Some(Arc::clone(owners));
    }

    fn configure(&self, probe: &str, options: &Options) {
        if let ("fd", Some(OptionValue::Integer(most))) = (probe, options.get("max_descriptors")) {
            self.most_descriptors.store(u32::try_from(*most).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }

    fn read(&self, want: &Want<'_>, _: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        let ([fd, limit], [fd_wanted, limit_wanted]) = (out, want.columns) else {
            debug_assert!(false, "tables of another source");
            return report;
        };
        let Some(owners) = lock(&self.owners).clone() else { return report };
        let wanted = Wanted { sockets: fd_wanted.contains(1), limits: !limit_wanted.is_empty() };
        let end = want.deadline.min(Instant::now() + MOST_TIME);
        // Another lane may still be at it, in a read that hangs: then it has the memory.
        let mut memory = std::mem::take(&mut *lock(&self.memory));
        memory.sums.clear();
        memory.queue.clear();
        let looked = self.look(&*owners, want, end, wanted, &mut memory, &mut report);
        want.beacon.leave();
        if let Err(error) = looked {
            memory.sums.clear();
            report.fail(error);
        }
        for (subject, sum) in memory.sums.iter().filter(|(_, sum)| !sum.lacks_process) {
            report.done += 1;
            put(fd, *subject, !fd_wanted.is_empty(), &[Some(sum.open), sum.sockets_if(wanted)]);
            put(limit, *subject, sum.used_ppm.is_some(), &[sum.used_ppm]);
        }
        *lock(&self.memory) = memory;
        report
    }
}

impl Sum {
    fn sockets_if(&self, wanted: Wanted) -> Option<u64> {
        (wanted.sockets && !self.lacks_sockets).then_some(self.sockets)
    }
}

fn put(table: &mut Table, subject: Subject, shown: bool, values: &[Option<u64>]) {
    if let Some(cells) = shown.then(|| table.row(subject, &[])).flatten() {
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = value.unwrap_or(*cell);
        }
    }
}

impl Processes {
    fn look(
        &self,
        owners: &dyn Owners,
        want: &Want<'_>,
        end: Instant,
        wanted: Wanted,
        memory: &mut Memory,
        report: &mut Report,
    ) -> Result<(), ReadError> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.proc, directory, Mode::empty())
            .map_err(|error| failed("open", self.proc.display().to_string(), error))?;
        let Memory { sums, queue, text } = memory;
        let mut scan = Scan { root, text, sized: self.sized, end, beacon: want.beacon };
        let (mut hidden, mut first_hidden) = (0_u32, 0);
        scan.processes(|scan, pid| match scan.holder(pid, owners) {
            Some((Place::Of(subject), open)) => {
                let sum = sums.entry(subject).or_default();
                sum.open += open;
                if wanted.limits
                    && let Some(limit) = scan.limit(pid).filter(|limit| *limit > 0)
                {
                    let used = u64::try_from(u128::from(open) * 1_000_000 / u128::from(limit))
                        .unwrap_or(u64::MAX - 1);
                    sum.used_ppm = sum.used_ppm.max(Some(used));
                }
                if wanted.sockets {
                    queue.push(Queued { open, pid, subject });
                }
            }
            Some((Place::Hidden(owner), _)) => {
                first_hidden = if hidden == 0 { pid } else { first_hidden };
                hidden += 1;
                if let Some(subject) = owner {
                    sums.entry(subject).or_default().lacks_process = true;
                }
            }
            Some((Place::Nowhere, _)) | None => {}
        })?;
        if hidden > 0 {
            let what = format!(
                "{hidden} processes, the first of them {first_hidden}, whose entities have no numbers"
            );
            report.fail(failed("look at", what, rustix::io::Errno::ACCESS));
        }
        self.sockets(&mut scan, sums, queue, report);
        Ok(())
    }

    fn sockets(
        &self,
        scan: &mut Scan<'_>,
        sums: &mut FxHashMap<Subject, Sum>,
        queue: &mut [Queued],
        report: &mut Report,
    ) {
        let most = u64::from(self.most_descriptors.load(Ordering::Relaxed));
        queue.sort_unstable();
        for Queued { open, pid, subject } in queue.iter().copied() {
            let Some(sum) = sums.get_mut(&subject) else { continue };
            if open > most {
                (sum.lacks_sockets, report.over_budget) = (true, report.over_budget + 1);
                continue;
            }
            match scan.sockets(pid) {
                Some((seen, sockets)) => {
                    sum.open = sum.open - open + seen;
                    sum.sockets += sockets;
                }
                None => (sum.lacks_sockets, report.late) = (true, report.late + 1),
            }
        }
    }
}

#[cfg(test)]
mod tests;
