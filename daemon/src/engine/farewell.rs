//! Reads namespaces as they die. Through the descriptor of its leading process each is held open until that process has
//! ended, and a moment longer; then it is read once more, and let go, if nobody else leads it by then. So no namespace stays
//! more than that moment longer than it would.

use super::ledger::{Ended, Ledger};
use crate::declare::ColumnSet;
use crate::events::bus::Intake;
use crate::hooks::RawEvent;
use crate::probes::gone;
use crate::resolve::directory::{Directory, Entry};
use crate::sources::gone::{Gone, ROLLED, Sums, sums};
use crate::sources::{Access, Beacon, Scratch, Source, Target, Want};
use crate::table::{ABSENT, Subject, Table};
use crate::wake::{Followers, Wake};
use arc_swap::ArcSwap;
use netskoop_api::{EntityRef, Kind, Value};
use rustc_hash::FxHashMap;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Namespaces held open at most; two descriptors each.
const MAX_HELD: usize = 8192;
/// Descriptors that are left to the rest of the daemon.
const SPARE_DESCRIPTORS: usize = 512;
/// How long the last reading of a namespace may take.
const LAST_READING: Duration = Duration::from_secs(1);
/// A namespace that has a file lives on without a process. When that is removed within this time, as the end of a pod is,
/// little can have happened in it since it was read.
const TEARDOWN: Duration = Duration::from_secs(30);
/// How long a namespace is held when its leader has ended.
const LINGER: Duration = Duration::from_millis(40);
/// The number of the eventfd among the descriptors waited for; those of namespaces are their slots.
const WAKE: u64 = u64::MAX;
/// A look without being woken, in case the probe was switched off.
const LOOK: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// What the thread needs.
pub struct Parts {
    /// Names of the namespaces.
    pub directory: Arc<ArcSwap<Directory>>,
    /// Where what was counted goes.
    pub ledger: Arc<Ledger>,
    /// Whether somebody wants to know.
    pub gone: Arc<Gone>,
    /// What reads the tables that are added up.
    pub source: Arc<dyn Source>,
    /// Where events go.
    pub intake: Intake,
    /// The namespace to come back to.
    pub home: Option<Arc<OwnedFd>>,
    /// procfs.
    pub proc: PathBuf,
    /// Who is woken when there is another picture.
    pub followers: Arc<Followers>,
}

/// Handle of the thread, which ends after this is dropped.
pub struct Farewell {
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

/// A namespace that lives.
struct Living {
    id: Arc<EntityRef>,
    target: Target,
    seen: Instant,
    held: Option<Held>,
    /// What it had counted when its last leader ended, and when that was.
    last: Option<(Instant, Sums)>,
}

/// What holds it open.
struct Held {
    pid: i32,
    process: OwnedFd,
    namespace: Arc<OwnedFd>,
}

struct Worker {
    parts: Parts,
    epoll: OwnedFd,
    stop: Arc<AtomicBool>,
    living: FxHashMap<Subject, Living>,
    held: usize,
    /// Those whose leader has ended, since when, and which that was.
    ended: VecDeque<(Instant, Subject, i32)>,
    most: usize,
    /// The last picture that was looked at.
    picture: Arc<Directory>,
    scratch: Scratch,
    tables: Vec<Table>,
}

impl Farewell {
    /// Starts the thread.
    pub fn start(parts: Parts) -> io::Result<Farewell> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = Wake::new()?;
        parts.followers.add(&wake);
        epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        let stop = Arc::new(AtomicBool::new(false));
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(SPARE_DESCRIPTORS) / 2;
        // Elsewhere its processes have other numbers than ours.
        let own = std::fs::read_link(parts.proc.join("self"));
        let is_ours = own.is_ok_and(|link| link.as_os_str() == &*std::process::id().to_string());
        let most = if is_ours { room.min(MAX_HELD) } else { 0 };
        let scratch = Scratch { home: parts.home.clone(), ..Scratch::default() };
        let tables = parts.source.tables().iter().map(|decl| Table::new(decl, 4096)).collect();
        let mut worker = Worker {
            parts,
            epoll,
            stop: Arc::clone(&stop),
            living: FxHashMap::default(),
            held: 0,
            ended: VecDeque::new(),
            most,
            picture: Arc::default(),
            scratch,
            tables,
        };
        let thread = std::thread::Builder::new().name("netskoop-gone".into());
        let thread = thread.spawn(move || worker.run())?;
        Ok(Farewell { wake, stop, thread })
    }

    /// Tells it that the probe was switched.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Whether the thread is still there.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It is not waited for: a reading that hangs must not keep the daemon from stopping.
        self.wake();
    }
}

impl Worker {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.stop.load(Ordering::Relaxed) {
            self.look();
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            if let Err(error) = epoll::wait(&self.epoll, spare, Some(&self.patience()))
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "the ends of namespaces are not seen any more");
                return;
            }
            for event in &events {
                if let Ok(slot) = u32::try_from(Event::clone(event).data.u64()) {
                    self.leader_ended(Subject(slot));
                }
            }
            let due = |(at, ..): &(Instant, Subject, i32)| at.elapsed() >= LINGER;
            while self.ended.front().is_some_and(due)
                && let Some((_, subject, pid)) = self.ended.pop_front()
            {
                self.read_last(subject, Some(pid));
            }
        }
    }

    /// Compares with the picture: who came, whose leader changed, who is gone.
    fn look(&mut self) {
        if !self.parts.gone.is_enabled() {
            self.living.clear();
            (self.held, self.picture) = (0, Arc::default());
            return;
        }
        let picture = self.parts.directory.load_full();
        let before = std::mem::replace(&mut self.picture, Arc::clone(&picture));
        for subject in picture.changes(&before) {
            let entry = picture.entry(subject).filter(|entry| !entry.namespace.facts.host);
            let seen = entry.map(|entry| entry.namespace.seen);
            if self.living.get(&subject).is_some_and(|living| Some(living.seen) != seen) {
                self.say_farewell(subject);
            }
            if let Some(entry) = entry {
                self.meet(entry);
            }
        }
    }

    fn meet(&mut self, entry: &Entry) {
        let ns = &entry.namespace;
        let pid = match ns.access {
            Access::Process(pid) | Access::Either(pid, _) => Some(pid),
            Access::Mount(_) | Access::Held(_) => None,
        };
        let known = self.living.entry(ns.subject).or_insert_with(|| Living {
            id: Arc::clone(&entry.id),
            target: Target {
                subject: ns.subject,
                inode: ns.facts.inode,
                cookie: ns.facts.cookie,
                access: ns.access.clone(),
            },
            seen: ns.seen,
            held: None,
            last: None,
        });
        known.id = Arc::clone(&entry.id);
        if known.held.as_ref().map(|held| held.pid) == pid {
            return;
        }
        self.held -= usize::from(known.held.take().is_some());
        // It lives on, so what was read is not its end.
        if pid.is_some() {
            known.last = None;
        }
        if let Some(pid) = pid.filter(|_| self.held < self.most)
            && let Some(held) = hold(&self.parts.proc, pid, known.target.inode)
        {
            let flags = EventFlags::IN | EventFlags::ONESHOT;
            if epoll::add(&self.epoll, &held.process, EventData::new_u64(u64::from(ns.subject.0)), flags)
                .is_ok()
            {
                known.held = Some(held);
                self.held += 1;
            }
        }
    }

    /// How long to sleep if nothing happens.
    fn patience(&self) -> Timespec {
        let Some((at, ..)) = self.ended.front() else { return LOOK };
        let left = LINGER.saturating_sub(at.elapsed());
        Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) }
    }

    /// The process through which a namespace is held has ended. Most often another one leads it from now on, as the next
    /// picture will tell; so it is read a moment later.
    fn leader_ended(&mut self, subject: Subject) {
        if let Some(held) = self.living.get(&subject).and_then(|living| living.held.as_ref()) {
            self.ended.push_back((Instant::now(), subject, held.pid));
        }
    }

    /// Reads a namespace, if it is still held through that process, or whichever, and lets it go.
    fn read_last(&mut self, subject: Subject, pid: Option<i32>) {
        let Some(living) = self.living.get_mut(&subject) else { return };
        let is_held = |held: &mut Held| pid.is_none_or(|pid| held.pid == pid);
        let Some(held) = living.held.take_if(is_held) else { return };
        self.held -= 1;
        let target = Target { access: Access::Held(held.namespace), ..living.target.clone() };
        let read = read(&*self.parts.source, &target, &mut self.scratch, &mut self.tables);
        if let Some(living) = self.living.get_mut(&subject).filter(|_| read.is_some()) {
            living.last = read.map(|sums| (Instant::now(), sums));
        }
    }

    fn say_farewell(&mut self, subject: Subject) {
        self.read_last(subject, None);
        let Some(living) = self.living.remove(&subject) else { return };
        let last = living.last.as_ref().filter(|(read, _)| read.elapsed() < TEARDOWN);
        let sums = last.map(|(_, sums)| sums.clone());
        self.tell(&living, sums.as_ref());
        self.parts.ledger.note(Ended {
            subject,
            seen: living.seen,
            kind: living.id.kind.as_str(),
            namespace: living.id.namespace.clone().filter(|_| living.id.kind == Kind::Pod),
            sums,
        });
    }

    fn tell(&self, living: &Living, sums: Option<&Sums>) {
        let mut fields = vec![("seconds", Value::Float(seconds(living.seen.elapsed())))];
        for (table, column, field) in gone::SHOWN {
            let at = ROLLED.iter().position(|decl| std::ptr::eq(*decl, table));
            let sums = sums.zip(at).map(|(sums, at)| &sums[at]);
            let value = sums.and_then(|sums| sums.get(usize::from(column)));
            fields
                .extend(value.filter(|value| **value != ABSENT).map(|value| (field, Value::Number(*value))));
        }
        let netns = (living.target.inode, living.target.cookie);
        let event = RawEvent::found(&gone::PROBE.events[0], netns, fields);
        self.parts.intake.found(gone::PROBE.name, event);
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Opens a process and its namespace; `None` if the process has ended or lives elsewhere by now.
fn hold(proc: &std::path::Path, pid: i32, inode: u32) -> Option<Held> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
    let path = proc.join(pid.to_string()).join("ns/net");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let same = rustix::fs::fstat(&namespace).is_ok_and(|stat| stat.st_ino == u64::from(inode));
    same.then(|| Held { pid, process, namespace: Arc::new(namespace) })
}

/// What a namespace that is held has counted.
fn read(source: &dyn Source, target: &Target, scratch: &mut Scratch, tables: &mut [Table]) -> Option<Sums> {
    tables.iter_mut().for_each(Table::clear);
    let wanted = |table: &Table| {
        let mut set = ColumnSet::default();
        let shown = ROLLED.iter().any(|decl| std::ptr::eq(*decl, table.decl()));
        (0..table.decl().columns.len()).filter(|_| shown).for_each(|column| set.insert(column as u16));
        set
    };
    let columns: Vec<ColumnSet> = tables.iter().map(wanted).collect();
    let want = Want {
        targets: std::slice::from_ref(target),
        columns: &columns,
        deadline: Instant::now() + LAST_READING,
        beacon: &Beacon::default(),
    };
    let report = source.read(&want, scratch, tables);
    let rolled =
        ROLLED.iter().filter_map(|decl| tables.iter().find(|table| std::ptr::eq(table.decl(), *decl)));
    (report.done == 1).then(|| sums(rolled, target.subject))
}
