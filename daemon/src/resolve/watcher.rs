//! Keeps the directory of namespaces current. One thread that sleeps until the kernel's hooks, `/run/netns` or somebody's
//! request wakes it; a slow rescan is only the safety net.

mod again;
mod crowd;
mod files;
mod guests;
mod hooks;
mod join;
mod mounts;
mod status;
mod survey;

pub use guests::Guest;
pub use hooks::{KernelEvent, KernelWatch};
use survey::file_name;

use super::book::{Book, Key};
use super::directory::{Directory, Namespace, Taken};
use super::identity::{self, Facts};
use super::labels::Labels;
use super::{cgroup, scan};
use crate::kernel::netns_cookie::cookie;
use crate::kernel::netns_watch::Exits;
use crate::wake::{Followers, Wake};
use again::Again;
use arc_swap::ArcSwap;
use crowd::{Cgroups, Crowd};
use join::Places;
use mounts::Mounts;
use netskoop_api::EntityRef;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::event::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Time between full scans when the kernel tells of new namespaces.
const SAFETY_NET: Duration = Duration::from_secs(60);
/// Time between full scans when nobody does.
const POLLING: Duration = Duration::from_secs(5);
/// Full scans asked for by events are at least so far apart, and so many times the time that the last one took.
const SCAN_GAP: Duration = Duration::from_millis(100);
const SCAN_SHARE: u32 = 20;
/// How long a namespace whose name a container runtime may better goes without one, while such a runtime is there; and one
/// that nothing but a process speaks for, which is most likely nobody's container.
const GRACE: Duration = Duration::from_secs(5);
const SHORT_GRACE: Duration = Duration::from_secs(1);
/// Where to look.
#[derive(Clone, Debug)]
pub struct Roots {
    /// procfs.
    pub proc: PathBuf,
    /// The directory of named namespaces.
    pub netns: PathBuf,
}

enum Command {
    Kernel(KernelEvent),
    Scan(oneshot::Sender<()>),
    Labels(Labels),
    Guest(Guest),
    Hooks(Option<Arc<dyn KernelWatch>>),
}

/// Handle of the thread.
pub struct Watcher {
    directory: Arc<ArcSwap<Directory>>,
    changes: watch::Receiver<u64>,
    commands: mpsc::Sender<Command>,
    wake: Arc<Wake>,
    followers: Arc<Followers>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    health: Arc<Mutex<Health>>,
    book: Arc<Book>,
}

#[derive(Clone, Default)]
struct Health {
    hooked: bool,
    watching: bool,
    last_scan: Option<Instant>,
    last_kernel_event: Option<Instant>,
    last_mount_event: Option<Instant>,
    hidden: u32,
    error: Option<String>,
}

impl Watcher {
    /// Scans once, then starts the thread.
    pub fn start(roots: Roots, labels: Labels) -> io::Result<Watcher> {
        let (publish, changes) = watch::channel(0);
        let (commands, inbox) = mpsc::channel();
        let wake = Wake::new()?;
        let waker = Arc::clone(&wake);
        let mut watcher = Watcher {
            directory: Arc::new(ArcSwap::from_pointee(Directory::default())),
            changes,
            commands,
            wake,
            followers: Arc::new(Followers::default()),
            stop: Arc::new(AtomicBool::new(false)),
            thread: Mutex::default(),
            health: Arc::new(Mutex::new(Health::default())),
            book: Arc::new(Book::new(move || waker.wake())),
        };
        let mut worker = Worker::new(roots, labels, &watcher, publish, inbox);
        let (scanned, first_scan) = mpsc::channel();
        let work = move || {
            // On this thread, although it is waited for: what is found is kept in the memory of the thread that finds it,
            // and only what this thread itself gave back is used again when it is named.
            worker.watch_mounts();
            worker.full_scan();
            // The receiver is there until it has this.
            let _ = scanned.send(());
            worker.run();
        };
        let thread = std::thread::Builder::new().name("netskoop-names".into()).spawn(work)?;
        watcher.thread = Mutex::new(Some(thread));
        first_scan.recv().map_err(|_| io::Error::other("the first scan failed"))?;
        Ok(watcher)
    }

    /// The picture now.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    /// The cell that always holds the newest picture, for threads that look often.
    pub fn cell(&self) -> Arc<ArcSwap<Directory>> {
        Arc::clone(&self.directory)
    }

    /// Where the sources of identity write what they know.
    pub fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// Tells the generation of every new picture.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Threads that look whenever there is a new picture. They are woken from the thread that made it.
    pub fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    /// Passes on what a hook said.
    pub fn kernel_event(&self, event: KernelEvent) {
        self.send(Command::Kernel(event));
    }

    /// Sets or removes the hooks.
    pub fn set_hooks(&self, hooks: Option<Arc<dyn KernelWatch>>) {
        self.send(Command::Hooks(hooks));
    }

    /// Changes what labels are made with.
    pub fn set_labels(&self, labels: Labels) {
        self.send(Command::Labels(labels));
    }

    /// Whether the kernel tells of new namespaces; if not, a scrape scans first.
    pub fn hooked(&self) -> bool {
        self.health().hooked
    }

    /// Scans everything now and waits for it.
    pub async fn rescan(&self) {
        let (reply, done) = oneshot::channel();
        self.send(Command::Scan(reply));
        // The thread only goes away when the daemon stops; the picture then stays as it is.
        let _ = done.await;
    }

    /// Whether the thread still runs.
    pub fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.wake.wake();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

struct Worker {
    roots: Roots,
    cgroups: Cgroups,
    labels: Labels,
    book: Arc<Book>,
    directory: Arc<ArcSwap<Directory>>,
    publish: watch::Sender<u64>,
    followers: Arc<Followers>,
    inbox: mpsc::Receiver<Command>,
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
    health: Arc<Mutex<Health>>,
    hooks: Option<Arc<dyn KernelWatch>>,
    namespaces: FxHashMap<u32, Arc<Namespace>>,
    /// Names in the published picture.
    taken: Taken,
    free: Vec<u32>,
    births: u64,
    places: Places,
    /// Workloads whose namespace turned out to be another one's by now.
    displaced: Vec<Key>,
    crowds: FxHashMap<u32, Crowd>,
    /// Owners of processes in the node's own namespace, at the last scan.
    at_home: Vec<cgroup::CgroupOwner>,
    /// Namespaces of the daemon's own.
    guests: Vec<Guest>,
    /// Files that lead to namespaces, at the last look.
    mounts: Mounts,
    /// Those of `/run/netns` that led nowhere yet.
    unfinished: Vec<PathBuf>,
    /// Namespaces that the hooks said were being made, less those that were found without a scan, since the last one.
    missing: i64,
    inotify: Option<OwnedFd>,
    scan_at: Option<Instant>,
    last_scan: Instant,
    /// How long it took.
    scan_time: Duration,
    last_sweep: Instant,
    again: Vec<(Instant, Again)>,
    departed: VecDeque<(Instant, u64, Arc<EntityRef>)>,
    /// Where the turn of looking at addresses is.
    turn: usize,
    /// The node's own namespace.
    host: Option<u32>,
    /// Whether files may lead elsewhere than at the last look.
    doubtful: bool,
    /// Whether this is a look at everything, which also meets what is long there.
    scanning: bool,
    /// Whether we are in the node's own pid namespace.
    sees_node_pids: bool,
    /// Namespaces that came, went or are different since the published picture.
    touched: FxHashSet<u32>,
    /// Whether a living namespace is not in the published picture as it is now.
    changed: bool,
    /// Whether a departed one is not.
    departed_changed: bool,
}

impl Worker {
    /// One that knows nothing yet and works for this handle.
    fn new(
        roots: Roots,
        labels: Labels,
        watcher: &Watcher,
        publish: watch::Sender<u64>,
        inbox: mpsc::Receiver<Command>,
    ) -> Worker {
        Worker {
            cgroups: Cgroups::new(roots.proc.clone()),
            roots,
            labels,
            book: Arc::clone(&watcher.book),
            directory: Arc::clone(&watcher.directory),
            publish,
            followers: Arc::clone(&watcher.followers),
            inbox,
            wake: Arc::clone(&watcher.wake),
            stop: Arc::clone(&watcher.stop),
            health: Arc::clone(&watcher.health),
            hooks: None,
            namespaces: FxHashMap::default(),
            taken: Taken::default(),
            free: Vec::new(),
            births: 0,
            places: Places::default(),
            displaced: Vec::new(),
            crowds: FxHashMap::default(),
            at_home: Vec::new(),
            guests: Vec::new(),
            mounts: Mounts::default(),
            unfinished: Vec::new(),
            missing: 0,
            inotify: None,
            scan_at: None,
            last_scan: Instant::now(),
            scan_time: Duration::ZERO,
            last_sweep: Instant::now(),
            again: Vec::new(),
            departed: VecDeque::new(),
            changed: false,
            departed_changed: false,
            turn: 0,
            host: None,
            touched: FxHashSet::default(),
            doubtful: false,
            scanning: false,
            sees_node_pids: scan::in_initial_pid_namespace(),
        }
    }

    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            self.wait();
            self.cgroups.forget();
            self.read_inotify();
            while let Ok(command) = self.inbox.try_recv() {
                self.obey(command);
            }
            self.join_changed();
            self.look_again();
            let scan = self.scan_at.is_some_and(|at| at <= Instant::now());
            if scan || self.last_scan.elapsed() >= self.interval() {
                self.full_scan();
            }
            // One picture for all that came in this round.
            let departed = std::mem::take(&mut self.departed_changed);
            if self.changed || departed {
                self.publish();
            }
        }
    }

    fn interval(&self) -> Duration {
        if self.is_told() { SAFETY_NET } else { POLLING }
    }

    /// Whether the kernel tells of new namespaces.
    fn is_told(&self) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| hooks.watches())
    }

    /// Sleeps until something happens or the next thing is due.
    fn wait(&self) {
        let due = self
            .again
            .iter()
            .filter(|(_, what)| self.is_needed(what))
            .map(|(at, _)| *at)
            .chain(self.scan_at)
            .chain([self.last_scan + self.interval()]);
        let timeout = due.min().unwrap_or_else(Instant::now).saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(self.inotify.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        // An interrupted or failed poll only makes the round come early.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        self.wake.clear();
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Scan(reply) => {
                self.full_scan();
                // Nobody waits any more if the client went away.
                let _ = reply.send(());
            }
            Command::Labels(labels) => {
                self.labels = Labels { changed: true, ..labels };
                self.changed = true;
            }
            Command::Guest(guest) => self.welcome(guest),
            Command::Hooks(hooks) => {
                self.hooks = hooks;
                self.health().hooked = self.is_told();
                // What appeared while nobody watched is found by a scan, which also tells the hooks what is known.
                self.full_scan();
                self.namespaces.values().for_each(|ns| self.tell_known(ns));
            }
            Command::Kernel(event) => {
                self.health().last_kernel_event = Some(Instant::now());
                self.kernel_event(event);
            }
        }
    }

    fn kernel_event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Seen { inode, pid, comm, cookie } => {
                self.read_inotify();
                // A file that was there before its mount has got it by now: nobody can be inside otherwise.
                self.look_at_files(self.unfinished.clone(), None);
                self.hear_of(inode, cookie);
                if scan::namespace_of(&self.roots.proc, pid) == Some(inode) {
                    self.add_member(inode, pid);
                } else {
                    self.note_departed(inode, cookie, pid, comm);
                    // The hooks speak the node's pids: in another pid namespace only a scan can tell whose it was.
                    if !self.sees_node_pids {
                        self.scan_soon();
                    }
                }
            }
            KernelEvent::Created { pid } => {
                self.missing += 1;
                self.again_process(pid, 0);
            }
            KernelEvent::Exit { inode } => self.check_leader(inode),
        }
    }

    /// A namespace with a first member. What a unit owns can only be told from a look at all processes.
    fn add_member(&mut self, inode: u32, pid: i32) {
        let unit = |path: &str| matches!(cgroup::owner(path), Some(cgroup::CgroupOwner::Unit(_)));
        if self.cgroups.of(pid).as_deref().is_some_and(unit) {
            self.scan_soon();
        } else if !self.namespaces.contains_key(&inode) {
            self.crowds.entry(inode).or_default().add(&self.cgroups, pid);
            self.changed |= self.look(inode, Some(pid));
        }
    }

    /// Looks at a namespace again, by what is known to lead there: no scan.
    fn refresh(&mut self, inode: u32) {
        let member = self.living_member(inode);
        if let Some(pid) = member {
            self.crowds.entry(inode).or_default().add(&self.cgroups, pid);
        }
        if member.is_some() || !self.mounts.of(inode).is_empty() {
            self.changed |= self.look(inode, member);
        }
    }

    /// A namespace that came and went before it could be looked at: its events still get a name.
    fn note_departed(&mut self, inode: u32, cookie: u64, pid: i32, comm: String) {
        if self.namespaces.contains_key(&inode) {
            return;
        }
        self.missing -= 1;
        let facts = Facts { inode, leader: Some(pid), comm: Some(comm), ..Facts::default() };
        let (identity, _) = identity::identify(&facts);
        let id = identity.entity_ref(inode);
        self.departed.push_back((Instant::now(), cookie, Arc::new(id)));
        self.departed_changed = true;
        // It must be announced again if it lives after all, or if its inode is used again.
        if let Some(hooks) = &self.hooks {
            hooks.announce_again(inode);
        }
    }

    /// Tells the hooks of a namespace, and whose exit from it is of interest: that of the process it is read through.
    fn tell_known(&self, ns: &Namespace) {
        if let Some(hooks) = &self.hooks {
            hooks.known(ns.facts.inode, ns.facts.cookie, self.exits(ns.facts.leader));
        }
    }

    fn rearm(&self, ns: &Namespace) {
        if let Some(hooks) = &self.hooks {
            hooks.rearm(ns.facts.inode, ns.facts.cookie, self.exits(ns.facts.leader));
        }
    }

    /// Threads of our own enter namespaces as well, and end there.
    fn exits(&self, leader: Option<i32>) -> Exits {
        match leader {
            None => Exits::None,
            Some(pid) if self.sees_node_pids => Exits::Of(pid),
            Some(_) => Exits::Any,
        }
    }

    /// A process of the namespace ended: if it was the one we read through, another must be found.
    fn check_leader(&mut self, inode: u32) {
        // Armed first: an exit that comes between the look and the arming would be missed.
        let Some(ns) = self.namespaces.get(&inode) else { return self.scan_soon() };
        self.rearm(ns);
        let (leader, mounted) = (ns.facts.leader, ns.facts.mount.is_some());
        match self.living_member(inode) {
            Some(pid) if Some(pid) == leader => self.await_end(inode, pid, 0),
            Some(_) => self.refresh(inode),
            // The mount leads there as well. Who else may be inside is told by the next scan.
            None if mounted => self.refresh(inode),
            None => self.scan_soon(),
        }
    }

    fn scan_soon(&mut self) {
        let gap = SCAN_GAP.max(self.scan_time * SCAN_SHARE);
        let at = (self.last_scan + gap).max(Instant::now() + Duration::from_millis(2));
        self.scan_at = Some(self.scan_at.map_or(at, |planned| planned.min(at)));
    }

    fn is_inside(&self, pid: i32, inode: u32) -> bool {
        scan::namespace_of(&self.roots.proc, pid) == Some(inode)
    }

    /// What is known of a namespace with this leader; `None` if it is gone. A leader that stays is in the namespace that it
    /// was in, and so is a file that nobody has touched: only then the cookie is the one that is known.
    fn facts(&self, inode: u32, leader: Option<i32>) -> Option<Facts> {
        let mut mounts = self.mounts.of(inode).to_vec();
        let old = self.namespaces.get(&inode);
        let same_leader = old.filter(|ns| leader.is_some() && ns.facts.leader == leader);
        if same_leader.is_none() {
            // The inode may have been another namespace's at the last look.
            mounts.retain(|path| scan::nsfs_inode(path) == Some(inode));
        }
        let is_there = |file: &PathBuf| file.starts_with(&self.roots.netns) && mounts.contains(file);
        // What was there before and still is keeps the inode from being another's.
        let same_file = old.filter(|ns| !self.doubtful && ns.facts.mount.as_ref().is_some_and(is_there));
        let same = same_leader.or(same_file.filter(|_| leader.is_none_or(|pid| self.is_inside(pid, inode))));
        let cookie = same.map(|ns| ns.facts.cookie).or_else(|| self.cookie(inode, leader, &mounts))?;
        // The name and cgroup of a leader seldom change once it has led for a while. Before, it is on its way: a shell or a
        // container runtime that has still to become what it starts.
        let settled = same_leader.filter(|ns| ns.led.elapsed() > GRACE).map(|ns| &ns.facts);
        let proc = &self.roots.proc;
        Some(Facts {
            inode,
            cookie,
            host: self.host == Some(inode),
            leader,
            comm: settled.map_or_else(|| scan::comm(proc, leader?), |facts| facts.comm.clone()),
            cgroup: settled.map_or_else(|| self.cgroups.of(leader?), |facts| facts.cgroup.clone()),
            owners: Vec::new(),
            mount: mounts.first().cloned(),
            mounts: mounts.iter().map(|path| file_name(path)).collect(),
            claims: Vec::new(),
            guest: self.guest(inode).map(|guest| Arc::clone(&guest.name)),
        })
    }

    /// Asks for the cookie by whatever leads there; `None` if nothing does any more.
    fn cookie(&self, inode: u32, leader: Option<i32>, mounts: &[PathBuf]) -> Option<u64> {
        let ask = |pid: i32| cookie(&self.roots.proc.join(pid.to_string()).join("ns/net"), inode);
        // In a copy of procfs the link leads nowhere, and still says where the process is.
        let told = |pid: &i32| scan::namespace_of(&self.roots.proc, *pid) == Some(inode);
        let by_process = leader.and_then(ask);
        let by_mount = || mounts.iter().find_map(|path| cookie(path, inode));
        by_process.or_else(by_mount).or_else(|| leader.filter(told).map(|_| 0))
    }
}

#[cfg(test)]
mod tests;
