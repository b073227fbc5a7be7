//! What reads. A source fills tables; it knows subjects, and neither metric names nor entity names.

pub mod addresses;
pub mod cgroups;
pub mod columns;
pub mod conntrack;
pub mod counters;
mod devices;
mod each;
mod enter;
pub mod gone;
mod icmp_types;
pub mod ipvs;
mod kept;
pub mod neigh;
pub mod netfiles;
pub mod nodefiles;
pub mod processes;
pub mod qdiscs;
pub mod rdma;
pub mod slab;
pub mod sockets;
mod sysctl;
mod tenants;

use crate::declare::{ColumnSet, TableDecl};
use crate::hooks::Options;
use crate::table::{Subject, Table};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A network namespace as sources need it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its slot.
    pub subject: Subject,
    /// Inode number of the namespace, checked again after reading.
    pub inode: u32,
    /// Its cookie; 0 if it is not known.
    pub cookie: u64,
    /// How to get at it.
    pub access: Access,
}

/// The way into a network namespace.
#[derive(Clone, Debug)]
pub enum Access {
    /// A live member: its `/proc/<pid>/net` is read.
    Process(i32),
    /// A live member, and the way in should it have ended by then (`ip netns exec` is often short).
    Either(i32, PathBuf),
    /// Somebody holds the namespace open for the moment.
    Held(Arc<OwnedFd>),
    /// No process is left: `setns` through this file, opened only while it is read.
    Mount(PathBuf),
}

/// Whose processes are: sources that read processes ask it, and see no names.
pub trait Owners: Send + Sync {
    /// Inode of the node's own namespace.
    fn node_netns(&self) -> u32;
    /// Whose a network namespace is; `None` if it is not known (yet).
    fn of_netns(&self, inode: u32) -> Option<Subject>;
    /// Whose container a process is part of, by the text of its `/proc/<pid>/cgroup`.
    fn of_cgroup(&self, text: &str) -> Option<Subject>;
    /// Whether anybody shares the node's own namespace with it.
    fn has_tenants(&self) -> bool;
    /// Tells of everything that has a cgroup of its own: whose it is, a process in it, and what that cgroup is called: the
    /// part of its path that has this text in it.
    fn cgroups(&self, each: &mut dyn FnMut(Subject, i32, &str));
    /// Tells of every container that is a tenant of the node's own namespace: its id, its first process, whose it is.
    fn tenants(&self, each: &mut dyn FnMut(&str, i32, Subject));
}

/// What a job asks of a source.
pub struct Want<'a> {
    /// The namespaces, for tables that are kept per namespace.
    pub targets: &'a [Target],
    /// For each table of `out`, the columns that somebody shows.
    pub columns: &'a [ColumnSet],
    /// After this moment the source stops and says what is missing.
    pub deadline: Instant,
    /// Told before every read that may block.
    pub beacon: &'a Beacon,
}

/// What a source did.
#[derive(Debug, Default)]
pub struct Report {
    /// Namespaces read completely.
    pub done: u32,
    /// Namespaces that vanished while they were read; not an error.
    pub vanished: u32,
    /// Namespaces left out because the deadline passed.
    pub late: u32,
    /// Namespaces that could not be read.
    pub failed: u32,
    /// Lists that were asked for again, because they changed or were cut while the kernel wrote them.
    pub retries: u32,
    /// Objects that found no room in a memory of the source: their sum may fall when they vanish.
    pub over_budget: u32,
    /// One of the failures, for the log.
    pub error: Option<ReadError>,
    /// Why this node has nothing of what it reads: a sentence that begins small, as `the module ip_vs is not loaded`. Not an
    /// error; the probe is shown as not available, and asked again at the next pass.
    pub not_here: Option<String>,
}

impl Report {
    /// Counts a failure and keeps the first one.
    pub fn fail(&mut self, error: ReadError) {
        self.failed += 1;
        self.error.get_or_insert(error);
    }
}

/// All sources of a node whose procfs is at `proc` and whose sysfs is at `sys`. A copy of a procfs is another node's, about
/// which this kernel cannot be asked.
pub fn all(proc: &Path, sys: &Path) -> Vec<Arc<dyn Source>> {
    let mut all = files(proc);
    if !rustix::fs::statfs(proc).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC) {
        return all;
    }
    all.push(Arc::new(qdiscs::Qdiscs::new(proc)));
    all.push(Arc::new(conntrack::Conntrack::new(proc)));
    all.push(Arc::new(neigh::NeighTables));
    all.push(Arc::new(neigh::Neighbours::new(proc)));
    all.push(Arc::new(sockets::Sockets::new(proc)));
    all.push(Arc::new(ipvs::Ipvs::new(proc)));
    all.push(Arc::new(rdma::Rdma::new(proc, sys)));
    all
}

/// Those that read nothing but files under `proc`, which may be a copy of some of it.
pub fn files(proc: &Path) -> Vec<Arc<dyn Source>> {
    vec![
        Arc::new(netfiles::NetFiles::new(proc)),
        Arc::new(nodefiles::NodeFiles::new(proc)),
        Arc::new(slab::Slab::new(proc)),
        Arc::new(addresses::Addresses::new(proc)),
        Arc::new(processes::Processes::new(proc)),
        Arc::new(cgroups::Cgroups::new(proc)),
    ]
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel, or its configuration, has no such thing. One sentence.
    #[error("{0}")]
    NotHere(String),
    /// The process or namespace is gone.
    #[error("it vanished")]
    Vanished,
    /// The time was too short.
    #[error("the time was too short")]
    Late,
    /// Anything else.
    #[error("{doing} {what}: {source}")]
    Failed {
        /// What was being done: `read`, `parse`, `enter`.
        doing: &'static str,
        /// To what.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// A reader of tables. It runs on a lane thread, may block, and looks at the deadline between subjects.
pub trait Source: Send + Sync {
    /// Name for status and logs.
    fn name(&self) -> &'static str;
    /// What it asks, for those who look at probes: `procfs`, `netlink`.
    fn via(&self) -> &'static str {
        "procfs"
    }
    /// The tables it fills, in the order in which `read` gets them.
    fn tables(&self) -> &'static [&'static TableDecl];
    /// Reads. `out[i]` belongs to `tables()[i]`; a table with no wanted column stays empty. `scratch` is the lane's own
    /// buffer.
    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report;
    /// Whether one job reads all namespaces at once, as a BPF map is read.
    fn whole(&self) -> bool {
        false
    }
    /// Before each pass: whose namespaces and processes are from now on.
    fn meet(&self, _owners: &Arc<dyn Owners>) {}
    /// The namespace is gone, or its slot belongs to another now: what the source remembers of it is dropped.
    fn forget(&self, _subject: Subject) {}
    /// Whether a probe is on, at the start and whenever that changes.
    fn enable(&self, _probe: &str, _enabled: bool) {}
    /// Options of a probe, at the start and whenever they change; a source takes what it knows.
    fn configure(&self, _probe: &str, _options: &Options) {}
}

/// Memory that a lane lends to the sources that run on it.
#[derive(Default)]
pub struct Scratch {
    /// For whole files.
    pub bytes: Vec<u8>,
    /// The namespace the lane was started in; a source that enters another one comes back through it.
    pub home: Option<Arc<OwnedFd>>,
    /// Set by a source that could not come back: the lane ends after the job.
    pub lost: bool,
}

/// What another thread left when it panicked is as good as before: whoever writes does so at the end.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where a lane is, for those who watch whether it is stuck.
#[derive(Debug, Default)]
pub struct Beacon {
    state: std::sync::Mutex<Option<(Subject, &'static str, Instant)>>,
}

impl Beacon {
    /// A read that may block begins.
    pub fn enter(&self, subject: Subject, what: &'static str) {
        self.enter_at(subject, what, Instant::now());
    }
    /// The same, for who has just looked at the clock.
    pub fn enter_at(&self, subject: Subject, what: &'static str, now: Instant) {
        self.put(Some((subject, what, now)));
    }
    /// It came back.
    pub fn leave(&self) {
        self.put(None);
    }
    /// What is being read, and since when.
    pub fn look(&self) -> Option<(Subject, &'static str, Instant)> {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    fn put(&self, state: Option<(Subject, &'static str, Instant)>) {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }
}
