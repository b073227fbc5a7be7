//! Lane threads: where blocking kernel reads happen. A lane that sits in one read for too long is *wedged*: it is left to
//! itself with its job, and another takes its place.

use crate::declare::ColumnSet;
use crate::sources::{Beacon, Report, Scratch, Source, Target, Want};
use crate::table::{Subject, Table};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc as tokio_mpsc;

/// Lanes that work at the same time.
const MAX_LANES: usize = 2;
/// Wedged lanes at most; with so many, sources that wedge are left out until one returns.
const MAX_WEDGED: usize = 4;
/// A single read may take this long before its lane counts as wedged.
const STALL: Duration = Duration::from_secs(1);
/// How often a running job is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Work for a lane. It owns its buffers, so that an abandoned job harms nobody.
pub struct Job {
    /// Who reads.
    pub source: Arc<dyn Source>,
    /// Which namespaces.
    pub targets: Arc<Vec<Target>>,
    /// Which part of them.
    pub range: std::ops::Range<usize>,
    /// Columns wanted of each table.
    pub columns: Vec<ColumnSet>,
    /// What is filled.
    pub tables: Vec<Table>,
    /// When to stop.
    pub deadline: Instant,
}

/// A finished job.
pub struct Done {
    lane: u64,
    /// The job, with its tables filled.
    pub job: Job,
    /// What the source said.
    pub report: Report,
    /// CPU time it took.
    pub cpu: Duration,
    /// Set if the source panicked.
    pub panicked: bool,
}

/// A read that does not return.
#[derive(Clone, Debug)]
pub struct Wedged {
    lane: u64,
    /// Name of the source.
    pub source: &'static str,
    /// What it reads.
    pub what: &'static str,
    /// Whose.
    pub subject: Subject,
    /// Inode of the namespace, 0 for the node.
    pub inode: u32,
    /// Since when.
    pub since: Instant,
}

/// Namespaces that were left out of a pass, by source; the node counts as one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOut(Vec<(&'static str, u32)>);

impl LeftOut {
    fn add(&mut self, source: &'static str, count: u32) {
        if count > 0 {
            self.0.push((source, count));
        }
    }

    /// How many of a source.
    pub fn of(&self, source: &str) -> u32 {
        self.0.iter().filter(|(name, _)| *name == source).map(|(_, count)| count).sum()
    }
}

struct Lane {
    id: u64,
    jobs: mpsc::Sender<Job>,
    beacon: Arc<Beacon>,
    running: Option<Running>,
}

/// What is needed to give a job up.
struct Running {
    source: Arc<dyn Source>,
    targets: Arc<Vec<Target>>,
    range: std::ops::Range<usize>,
    columns: Vec<ColumnSet>,
    deadline: Instant,
}

/// The lanes. Owned by the task that runs passes; only the list of wedged reads is shared.
pub struct Lanes {
    lanes: Vec<Lane>,
    results: tokio_mpsc::UnboundedReceiver<Done>,
    report: tokio_mpsc::UnboundedSender<Done>,
    wedged: Arc<Mutex<Vec<Wedged>>>,
    /// Lanes whose read did not return, by id, with what may be given to them again.
    stuck: Vec<Lane>,
    home: Option<Arc<OwnedFd>>,
    next_id: u64,
}

impl Lanes {
    /// No lane yet: they are started with the first job. `home` is the namespace they come back to.
    pub fn new(home: Option<Arc<OwnedFd>>) -> Lanes {
        let (report, results) = tokio_mpsc::unbounded_channel();
        Lanes { lanes: vec![], results, report, wedged: Arc::default(), stuck: vec![], home, next_id: 0 }
    }

    /// The list of reads that do not return, for the status.
    pub fn wedged(&self) -> Arc<Mutex<Vec<Wedged>>> {
        Arc::clone(&self.wedged)
    }

    /// Runs jobs and hands over each result. Returns when all are done or given up, with what was left out.
    pub async fn run(&mut self, jobs: Vec<Job>, mut take: impl FnMut(Done)) -> LeftOut {
        let mut late = LeftOut::default();
        let mut waiting: VecDeque<Job> = jobs.into();
        while let Ok(done) = self.results.try_recv() {
            self.returned(&done);
        }
        loop {
            self.assign(&mut waiting, &mut late);
            if self.lanes.iter().all(|lane| lane.running.is_none()) {
                return late;
            }
            match tokio::time::timeout(LOOK, self.results.recv()).await {
                Ok(Some(done)) => {
                    if !self.returned(&done) {
                        take(done);
                    }
                }
                Ok(None) => return late,
                Err(_) => self.give_up_stuck(&mut waiting, &mut late),
            }
        }
    }

    /// Gives waiting jobs to idle lanes. Namespaces that wedged a lane before are left out while it sits there.
    fn assign(&mut self, waiting: &mut VecDeque<Job>, late: &mut LeftOut) {
        while !waiting.is_empty() {
            let Some(lane) = self.idle_lane() else { return };
            let Some(job) = waiting.pop_front() else { return };
            let source = job.source.name();
            let (job, rest, skipped) = self.split_at_wedged(job);
            late.add(source, skipped);
            waiting.extend(rest);
            let Some(job) = job else { continue };
            let running = Running {
                source: Arc::clone(&job.source),
                targets: Arc::clone(&job.targets),
                range: job.range.clone(),
                columns: job.columns.clone(),
                deadline: job.deadline,
            };
            let lane = &mut self.lanes[lane];
            if lane.jobs.send(job).is_ok() {
                lane.running = Some(running);
            } else {
                // The thread ended: it could not come back from a namespace. Another is started in the next round.
                late.add(source, running.range.len() as u32);
                let id = lane.id;
                self.lanes.retain(|lane| lane.id != id);
            }
        }
    }

    /// A lane that may take a job. Reading is the kernel's work and two lanes at once only get in each other's way (on
    /// two threads of one core each read costs half as much again), so another one is used only while a read hangs.
    fn idle_lane(&mut self) -> Option<usize> {
        let flows = |lane: &Lane| lane.beacon.look().is_none_or(|(_, _, since)| since.elapsed() < LOOK);
        if self.lanes.iter().any(|lane| lane.running.is_some() && flows(lane)) {
            return None;
        }
        if let Some(idle) = self.lanes.iter().position(|lane| lane.running.is_none()) {
            return Some(idle);
        }
        if self.lanes.len() >= MAX_LANES {
            return None;
        }
        match start_lane(self.next_id, self.report.clone(), self.home.clone()) {
            Ok(lane) => {
                self.next_id += 1;
                self.lanes.push(lane);
                Some(self.lanes.len() - 1)
            }
            Err(error) => {
                tracing::error!(%error, "cannot start a thread for reading");
                None
            }
        }
    }

    /// Cuts a job at the namespaces whose read by this source hangs.
    fn split_at_wedged(&self, mut job: Job) -> (Option<Job>, Option<Job>, u32) {
        let wedged = self.wedged.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source: Vec<&Wedged> = wedged.iter().filter(|w| w.source == job.source.name()).collect();
        if wedged.len() >= MAX_WEDGED && !of_source.is_empty() {
            return (None, None, job.range.len() as u32);
        }
        if job.range.is_empty() {
            let node_hangs = of_source.iter().any(|w| w.subject == Subject::NODE);
            return ((!node_hangs).then_some(job), None, u32::from(node_hangs));
        }
        let hangs = |target: &Target| {
            of_source.iter().any(|w| w.subject == target.subject && w.inode == target.inode)
        };
        let Some(at) = job.range.clone().find(|at| hangs(&job.targets[*at])) else {
            return (Some(job), None, 0);
        };
        let rest = (at + 1..job.range.end).start < job.range.end;
        let rest =
            rest.then(|| again(&job.source, &job.targets, at + 1..job.range.end, &job.columns, job.deadline));
        job.range.end = at;
        ((!job.range.is_empty()).then_some(job), rest, 1)
    }

    /// Moves lanes that sit in one read for too long, or are past the deadline, to the wedged ones; what is left of
    /// their jobs is given to others.
    fn give_up_stuck(&mut self, waiting: &mut VecDeque<Job>, late: &mut LeftOut) {
        let now = Instant::now();
        let mut index = 0;
        while index < self.lanes.len() {
            let lane = &self.lanes[index];
            let stuck = match (&lane.running, lane.beacon.look()) {
                (Some(running), Some((subject, what, since))) => {
                    let limit = if now >= running.deadline { LOOK } else { STALL };
                    (since.elapsed() >= limit).then_some((subject, what, since))
                }
                _ => None,
            };
            match stuck {
                Some((subject, what, since)) => self.wedge(index, (subject, what, since), waiting, late),
                None => index += 1,
            }
        }
    }

    fn wedge(
        &mut self,
        index: usize,
        (subject, what, since): (Subject, &'static str, Instant),
        waiting: &mut VecDeque<Job>,
        late: &mut LeftOut,
    ) {
        let mut lane = self.lanes.swap_remove(index);
        let Some(running) = lane.running.take() else { return };
        let inode = running.targets[running.range.clone()].iter().find(|t| t.subject == subject);
        let inode = inode.map_or(0, |target| target.inode);
        let source = running.source.name();
        tracing::warn!(
            source,
            what,
            netns = inode,
            "a read does not return; it is left alone and others go on"
        );
        let entry = Wedged { lane: lane.id, source, what, subject, inode, since };
        self.wedged.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        self.stuck.push(lane);
        if running.range.is_empty() {
            late.add(source, 1);
            return;
        }
        let Running { source, targets, range, columns, deadline } = running;
        // The job is done again from its start, without the namespace that hangs.
        waiting.push_front(again(&source, &targets, range, &columns, deadline));
    }

    /// Takes note that a lane is free again; true if it had been given up and its result is stale.
    fn returned(&mut self, done: &Done) -> bool {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == done.lane) {
            lane.running = None;
            return false;
        }
        self.wedged.lock().unwrap_or_else(PoisonError::into_inner).retain(|wedged| wedged.lane != done.lane);
        if let Some(at) = self.stuck.iter().position(|lane| lane.id == done.lane) {
            let lane = self.stuck.swap_remove(at);
            tracing::info!(source = done.job.source.name(), "a read that hung has returned");
            // With enough lanes already this one ends: dropping its sender tells it so.
            if self.lanes.len() < MAX_LANES {
                self.lanes.push(lane);
            }
        }
        true
    }

    /// Notes reads that returned since the last pass, so that the status does not show them until the next one.
    pub fn drain(&mut self) {
        while let Ok(done) = self.results.try_recv() {
            self.returned(&done);
        }
    }
}

fn again(
    source: &Arc<dyn Source>,
    targets: &Arc<Vec<Target>>,
    range: std::ops::Range<usize>,
    columns: &[ColumnSet],
    deadline: Instant,
) -> Job {
    let tables = source.tables().iter().map(|decl| Table::new(decl, super::pass::MAX_ROWS)).collect();
    Job {
        source: Arc::clone(source),
        targets: Arc::clone(targets),
        range,
        columns: columns.to_vec(),
        tables,
        deadline,
    }
}

fn start_lane(
    id: u64,
    report: tokio_mpsc::UnboundedSender<Done>,
    home: Option<Arc<OwnedFd>>,
) -> std::io::Result<Lane> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    let beacon = Arc::new(Beacon::default());
    let told = Arc::clone(&beacon);
    std::thread::Builder::new().name("netskoop-lane".into()).stack_size(256 * 1024).spawn(move || {
        let mut scratch = Scratch { home, ..Scratch::default() };
        while let Ok(job) = inbox.recv() {
            let done = run_job(id, job, &told, &mut scratch);
            // Nobody listens any more while the daemon stops.
            if report.send(done).is_err() || scratch.lost {
                return;
            }
        }
    })?;
    Ok(Lane { id, jobs, beacon, running: None })
}

fn run_job(lane: u64, mut job: Job, beacon: &Beacon, scratch: &mut Scratch) -> Done {
    let before = thread_cpu();
    let source = Arc::clone(&job.source);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let range = if source.whole() { 0..job.targets.len() } else { job.range.clone() };
        let want =
            Want { targets: &job.targets[range], columns: &job.columns, deadline: job.deadline, beacon };
        source.read(&want, scratch, &mut job.tables)
    }));
    beacon.leave();
    let panicked = result.is_err();
    let report = result.unwrap_or_else(|_| {
        job.tables.iter_mut().for_each(Table::clear);
        Report { failed: job.range.len() as u32, ..Report::default() }
    });
    Done { lane, job, report, cpu: thread_cpu().saturating_sub(before), panicked }
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::{Column, Kind, TableDecl};
    use crate::sources::Access;
    use std::sync::Condvar;

    static TABLE: TableDecl = TableDecl {
        name: "test",
        keys: &[],
        columns: &[Column { key: "value", kind: Kind::Counter }],
        node: false,
    };

    /// Reads every namespace at once, but sits in one until the gate opens, and panics at another.
    struct Stubborn {
        hangs_at: u32,
        panics_at: u32,
        gate: Arc<(Mutex<bool>, Condvar)>,
    }

    impl Source for Stubborn {
        fn name(&self) -> &'static str {
            "stubborn"
        }
        fn tables(&self) -> &'static [&'static TableDecl] {
            static TABLES: [&TableDecl; 1] = [&TABLE];
            &TABLES
        }
        fn read(&self, want: &Want<'_>, _: &mut Scratch, out: &mut [Table]) -> Report {
            let mut report = Report::default();
            for target in want.targets {
                want.beacon.enter(target.subject, "net/fifo");
                assert_ne!(target.subject.0, self.panics_at, "a bug in a source");
                let mut open = self.gate.0.lock().unwrap();
                while target.subject.0 == self.hangs_at && !*open {
                    open = self.gate.1.wait(open).unwrap();
                }
                out[0].row(target.subject, &[]).unwrap()[0] = 1;
                report.done += 1;
                want.beacon.leave();
            }
            report
        }
    }

    fn job(source: &Arc<dyn Source>, subjects: std::ops::Range<u32>) -> Job {
        let target = |s: u32| Target { subject: Subject(s), inode: s, cookie: 0, access: Access::Process(1) };
        let targets: Vec<Target> = subjects.map(target).collect();
        let range = 0..targets.len();
        again(
            source,
            &Arc::new(targets),
            range,
            &[ColumnSet::default()],
            Instant::now() + Duration::from_secs(20),
        )
    }

    async fn subjects_read(lanes: &mut Lanes, jobs: Vec<Job>) -> (Vec<u32>, u32) {
        let mut seen = vec![];
        let late = lanes
            .run(jobs, |done| {
                let table = &done.job.tables[0];
                seen.extend((0..table.len()).map(|row| table.subject(row).0));
            })
            .await;
        seen.sort_unstable();
        (seen, late.of("stubborn"))
    }

    #[tokio::test]
    async fn a_stuck_read_costs_one_namespace_and_comes_back() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let source: Arc<dyn Source> =
            Arc::new(Stubborn { hangs_at: 3, panics_at: 0, gate: Arc::clone(&gate) });
        let mut lanes = Lanes::new(None);
        let (seen, _) = subjects_read(&mut lanes, vec![job(&source, 1..6), job(&source, 6..8)]).await;
        assert_eq!(seen, [1, 2, 4, 5, 6, 7]);
        assert_eq!(lanes.wedged().lock().unwrap()[0].subject, Subject(3));
        let (seen, late) = subjects_read(&mut lanes, vec![job(&source, 1..6)]).await;
        assert_eq!((seen, late), (vec![1, 2, 4, 5], 1), "it is not tried again while it hangs");
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        while !lanes.wedged().lock().unwrap().is_empty() {
            lanes.drain();
            tokio::task::yield_now().await;
        }
        let (seen, late) = subjects_read(&mut lanes, vec![job(&source, 1..6)]).await;
        assert_eq!((seen, late), (vec![1, 2, 3, 4, 5], 0));
    }

    #[tokio::test]
    async fn a_panic_fails_its_job_and_the_lane_goes_on() {
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let source: Arc<dyn Source> = Arc::new(Stubborn { hangs_at: 0, panics_at: 2, gate });
        let mut lanes = Lanes::new(None);
        let mut failed = 0;
        lanes.run(vec![job(&source, 1..3)], |done| failed += done.report.failed).await;
        assert_eq!(failed, 2);
        let (seen, _) = subjects_read(&mut lanes, vec![job(&source, 3..5)]).await;
        assert_eq!(seen, [3, 4]);
    }
}
