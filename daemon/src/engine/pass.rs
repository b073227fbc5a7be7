//! Passes: one reading of all tables that somebody asked for. A pass is a task of its own; whoever waits for it may go
//! away without disturbing it, and whoever comes while it is fresh shares it.

use super::lanes::{Done, Job, Lanes, Wedged};
use super::ledger::Ledger;
use crate::declare::{ColumnSet, TableDecl};
use crate::resolve::directory::Directory;
use crate::resolve::watcher::Watcher;
use crate::sources::{Owners, Source, Target};
use crate::table::{Subject, Table};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Rows of a table at most.
pub const MAX_ROWS: usize = 1_000_000;
/// Namespaces of one job at most, so that two lanes share the work and a wedged one holds little of it.
const CHUNK: usize = 64;

/// Columns wanted, by index of the table in [`Sources::tables`].
pub type Wants = Vec<ColumnSet>;

/// All sources, and where their tables are.
pub struct Sources {
    /// The sources.
    pub all: Vec<Arc<dyn Source>>,
    tables: Vec<&'static TableDecl>,
    owners: Vec<usize>,
}

impl Sources {
    /// Numbers the tables.
    pub fn new(all: Vec<Arc<dyn Source>>) -> Sources {
        let mut sources = Sources { all, tables: vec![], owners: vec![] };
        for (owner, source) in sources.all.iter().enumerate() {
            for table in source.tables() {
                sources.tables.push(table);
                sources.owners.push(owner);
            }
        }
        sources
    }

    /// All tables.
    pub fn tables(&self) -> &[&'static TableDecl] {
        &self.tables
    }

    /// Index of a table; `None` if no source fills it.
    pub fn index(&self, table: &'static TableDecl) -> Option<usize> {
        self.tables.iter().position(|decl| std::ptr::eq(*decl, table))
    }

    /// Which source fills a table.
    pub fn owner(&self, table: usize) -> usize {
        self.owners[table]
    }

    fn range(&self, source: usize) -> std::ops::Range<usize> {
        let first = self.owners.iter().position(|owner| *owner == source).unwrap_or(0);
        first..first + self.all[source].tables().len()
    }
}

/// How a source did in a pass.
#[derive(Clone, Debug, Default)]
pub struct SourceReport {
    /// Whether anybody wanted it.
    pub ran: bool,
    /// CPU time, all its jobs.
    pub cpu: Duration,
    /// Namespaces read.
    pub done: u32,
    /// Namespaces that could not be read.
    pub failed: u32,
    /// Namespaces left out for lack of time.
    pub late: u32,
    /// Lists that were asked for again.
    pub retries: u32,
    /// Rows and remembered objects that found no room.
    pub over_budget: u64,
    /// The last error.
    pub error: Option<String>,
    /// Why this node has nothing of what it reads.
    pub not_here: Option<String>,
}

impl SourceReport {
    /// Whether it read everything it was asked for.
    pub fn success(&self) -> bool {
        self.failed == 0 && self.late == 0 && self.error.is_none()
    }
}

/// What a pass found.
pub struct Snapshot {
    /// The tables, by index.
    pub tables: Vec<Table>,
    /// Columns that were read.
    pub wants: Wants,
    /// Names as they were when the pass began.
    pub directory: Arc<Directory>,
    /// Labels of the groups of what is gone.
    pub groups: Vec<String>,
    /// When it ended.
    pub taken: Instant,
    /// The same as a date.
    pub time: Timestamp,
    /// CPU time of the lanes.
    pub cpu: Duration,
    /// How long it took.
    pub wall: Duration,
    /// The sources, by index.
    pub reports: Vec<SourceReport>,
    /// Namespaces left out.
    pub late: u32,
}

/// A wish for numbers.
struct Request {
    wants: Wants,
    max_age: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Arc<Snapshot>>,
}

/// Handle of the task that runs passes.
#[derive(Clone)]
pub struct Collector {
    requests: mpsc::Sender<Request>,
    wedged: Arc<Mutex<Vec<Wedged>>>,
}

/// Why there are no numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// Not in time.
    #[error("the collection did not end in time")]
    TooLate,
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Collector {
    /// Makes the handle and the task; the caller spawns the latter and watches over it.
    pub fn new(
        sources: Arc<Sources>,
        watcher: Arc<Watcher>,
        home: Option<Arc<OwnedFd>>,
        ledger: Option<Arc<Ledger>>,
    ) -> (Collector, impl Future<Output = ()>) {
        // Requests beyond this many wait where they are made.
        let (requests, inbox) = mpsc::channel(64);
        let lanes = Lanes::new(home);
        let collector = Collector { requests, wedged: lanes.wedged() };
        let task = Task {
            sources,
            watcher,
            lanes,
            inbox,
            last: None,
            spare: vec![],
            chunks: vec![],
            births: vec![],
            ledger,
            tenants: vec![],
        };
        (collector, task.run())
    }

    /// Numbers that are at most `max_age` old, by `deadline`.
    pub async fn collect(
        &self,
        wants: Wants,
        max_age: Duration,
        deadline: Instant,
    ) -> Result<Arc<Snapshot>, PassError> {
        let (reply, answer) = oneshot::channel();
        // A pass ends a little after its deadline; whoever waits gives it that moment.
        let limit = deadline + Duration::from_millis(400);
        let wait = async {
            let request = Request { wants, max_age, deadline, reply };
            self.requests.send(request).await.map_err(|_| PassError::Stopping)?;
            answer.await.map_err(|_| PassError::Stopping)
        };
        tokio::time::timeout_at(limit.into(), wait).await.map_err(|_| PassError::TooLate)?
    }

    /// Reads that do not return.
    pub fn wedged(&self) -> Vec<Wedged> {
        self.wedged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

struct Task {
    sources: Arc<Sources>,
    watcher: Arc<Watcher>,
    lanes: Lanes,
    inbox: mpsc::Receiver<Request>,
    last: Option<Arc<Snapshot>>,
    /// Tables of a snapshot that nobody holds any more.
    spare: Vec<Table>,
    /// Tables of chunks, by source.
    chunks: Vec<Vec<Vec<Table>>>,
    /// Who had each slot at the last pass.
    births: Vec<u64>,
    /// What was shown of namespaces that may end.
    ledger: Option<Arc<Ledger>>,
    /// Who lived in the node's own namespace at the last pass.
    tenants: Vec<Subject>,
}

impl Task {
    async fn run(mut self) {
        self.chunks.resize_with(self.sources.all.len(), Vec::new);
        while let Some(request) = self.inbox.recv().await {
            self.lanes.drain();
            let mut waiting = VecDeque::from([request]);
            while let Ok(more) = self.inbox.try_recv() {
                waiting.push_back(more);
            }
            waiting.retain(|request| !request.reply.is_closed());
            let late: Vec<Request> = waiting.drain(..).filter_map(|request| self.answer(request)).collect();
            if late.is_empty() {
                continue;
            }
            let mut wants = late[0].wants.clone();
            for request in &late[1..] {
                wants.iter_mut().zip(&request.wants).for_each(|(a, b)| a.union(b));
            }
            let deadline = late.iter().map(|request| request.deadline).min().unwrap_or_else(Instant::now);
            let snapshot = Arc::new(self.pass(wants, deadline).await);
            self.replace(Arc::clone(&snapshot));
            for request in late {
                // A client that went away needs no answer.
                let _ = request.reply.send(Arc::clone(&snapshot));
            }
        }
    }

    /// Answers from the last snapshot if it will do, else gives the request back.
    fn answer(&self, request: Request) -> Option<Request> {
        let Some(last) = &self.last else { return Some(request) };
        let fresh = last.taken.elapsed() <= request.max_age
            && last.directory.generation() == self.watcher.directory().generation()
            && last.wants.iter().zip(&request.wants).all(|(have, want)| have.covers(want));
        if !fresh {
            return Some(request);
        }
        // A client that went away needs no answer.
        let _ = request.reply.send(Arc::clone(last));
        None
    }

    /// Keeps the new snapshot, and the memory of the old one if nobody reads it.
    fn replace(&mut self, snapshot: Arc<Snapshot>) {
        if let Some(ledger) = &self.ledger {
            ledger.end(&snapshot);
        }
        if let Some(old) = self.last.replace(snapshot).and_then(Arc::into_inner) {
            self.spare = old.tables;
        }
    }

    async fn pass(&mut self, wants: Wants, deadline: Instant) -> Snapshot {
        let begin = Instant::now();
        if let Some(ledger) = &self.ledger {
            ledger.begin();
        }
        if !self.watcher.hooked() {
            self.watcher.rescan().await;
        }
        let directory = self.watcher.directory();
        self.forget_vanished(&directory);
        let owners: Arc<dyn Owners> = Arc::<Directory>::clone(&directory);
        self.sources.all.iter().for_each(|source| source.meet(&owners));
        let targets = Arc::new(directory.targets());
        let mut tables = std::mem::take(&mut self.spare);
        if tables.is_empty() {
            tables.extend(self.sources.tables().iter().map(|decl| Table::new(decl, MAX_ROWS)));
        }
        tables.iter_mut().for_each(Table::clear);
        let jobs = self.jobs(&wants, &targets, deadline);
        let mut reports = vec![SourceReport::default(); self.sources.all.len()];
        let (sources, chunks) = (Arc::clone(&self.sources), &mut self.chunks);
        let left_out =
            self.lanes.run(jobs, |done| take_result(&sources, done, &mut tables, &mut reports, chunks)).await;
        let groups = self.ledger.as_ref().map(|ledger| ledger.append(&mut tables)).unwrap_or_default();
        for (report, source) in reports.iter_mut().zip(&sources.all) {
            report.late += left_out.of(source.name());
        }
        Snapshot {
            tables,
            wants,
            directory,
            groups,
            taken: Instant::now(),
            time: Timestamp::now(),
            cpu: reports.iter().map(|report| report.cpu).sum(),
            wall: begin.elapsed(),
            late: reports.iter().map(|report| report.late).max().unwrap_or(0),
            reports,
        }
    }

    /// Tells the sources of slots that have a new owner.
    fn forget_vanished(&mut self, directory: &Directory) {
        let mut births =
            vec![0; directory.entries().map(|e| e.namespace.subject.0 as usize + 1).max().unwrap_or(0)];
        for entry in directory.entries() {
            births[entry.namespace.subject.0 as usize] = entry.namespace.birth;
        }
        for (slot, birth) in self.births.iter().enumerate() {
            if *birth != 0 && births.get(slot) != Some(birth) {
                self.sources.all.iter().for_each(|source| source.forget(Subject(slot as u32)));
            }
        }
        self.births = births;
        let lives = |subject: &&Subject| directory.tenant(**subject).is_some();
        for gone in self.tenants.iter().filter(|subject| !lives(subject)) {
            self.sources.all.iter().for_each(|source| source.forget(*gone));
        }
        self.tenants.clear();
        self.tenants.extend(directory.tenants().iter().map(|tenant| tenant.subject));
    }

    fn jobs(&mut self, wants: &Wants, targets: &Arc<Vec<Target>>, deadline: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (at, source) in self.sources.all.iter().enumerate() {
            let columns = &wants[self.sources.range(at)];
            if columns.iter().all(ColumnSet::is_empty) {
                continue;
            }
            let node_only = source.whole() || source.tables().iter().all(|table| table.node);
            let total = if node_only { 0 } else { targets.len() };
            for first in (0..total.max(1)).step_by(CHUNK) {
                let tables = self.chunks[at].pop().unwrap_or_else(|| {
                    source.tables().iter().map(|decl| Table::new(decl, MAX_ROWS)).collect()
                });
                jobs.push(Job {
                    source: Arc::clone(source),
                    targets: Arc::clone(targets),
                    range: first.min(total)..(first + CHUNK).min(total),
                    columns: columns.to_vec(),
                    tables,
                    deadline,
                });
            }
        }
        jobs
    }
}

fn take_result(
    sources: &Sources,
    mut done: Done,
    tables: &mut [Table],
    reports: &mut [SourceReport],
    chunks: &mut [Vec<Vec<Table>>],
) {
    let Some(at) = sources.all.iter().position(|source| Arc::ptr_eq(source, &done.job.source)) else {
        return;
    };
    let mut over_budget = u64::from(done.report.over_budget);
    for (table, chunk) in tables[sources.range(at)].iter_mut().zip(&mut done.job.tables) {
        let before = table.over_budget();
        table.append(chunk);
        over_budget += table.over_budget() - before;
        chunk.clear();
    }
    let report = &mut reports[at];
    report.ran = true;
    report.cpu += done.cpu;
    report.done += done.report.done;
    report.failed += done.report.failed;
    report.late += done.report.late;
    report.retries += done.report.retries;
    report.over_budget += over_budget;
    report.not_here = done.report.not_here.or(report.not_here.take());
    if done.panicked {
        report.error = Some("a bug: the source panicked; the rest goes on".into());
    } else if let Some(error) = done.report.error {
        report.error = Some(error.to_string());
    }
    // A few are kept for the next pass; what a burst needed once is given back.
    if chunks[at].len() < 64 {
        chunks[at].push(done.job.tables);
    }
}
