//! The engine: passes, lanes, probe states, leases. The only place where probes, sources, identity and events meet.

mod answers;
mod control;
pub mod farewell;
pub mod governor;
mod hooked;
pub mod lanes;
pub mod ledger;
pub mod pass;
mod rises;
pub mod room;
pub mod select;
pub mod self_metrics;
mod selftest;
mod status;
pub mod tracking;
mod words;

pub use answers::{EventFilter, NoSuchEntity};
pub use control::{ChangeError, Peer};
pub use hooked::{HookRunner, HookStatus, Objects};

use crate::config::{Config, Effective, Loaded, State, effective};
use crate::declare::{Names, Probe, Section};
use crate::events::bus::{Counts, Intake};
use crate::events::history::History;
use crate::probes::PROBES;
use crate::resolve::runtimes::Runtimes;
use crate::resolve::watcher::Watcher;
use arc_swap::ArcSwap;
use farewell::Farewell;
use netskoop_api::StateName;
use pass::{Collector, PassError, Snapshot, Sources};
use rises::Rises;
use room::{Limits, Rooms, View};
use select::{Active, Contents, Exposition, Selection};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracking::Tracking;

/// Everything that the servers ask.
pub struct Engine {
    config: ArcSwap<Loaded>,
    config_path: Option<PathBuf>,
    /// Runtime overrides and leases; locked for the length of a change, so that changes come one after the other.
    state: tokio::sync::Mutex<State>,
    slots: Mutex<Vec<Slot>>,
    lease_changed: tokio::sync::Notify,
    /// Told when probes were switched, and when the configuration was read again.
    switched: tokio::sync::Notify,
    sources: Arc<Sources>,
    collector: Collector,
    watcher: Arc<Watcher>,
    history: Arc<History>,
    counts: Arc<Counts>,
    hooks: HookRunner,
    runtimes: Mutex<Option<Runtimes>>,
    farewell: Mutex<Option<Farewell>>,
    tracking: Mutex<Option<Tracking>>,
    facts: Facts,
    reload_ok: AtomicBool,
    last: Arc<Mutex<LastAnswer>>,
    /// Who is shown and who is added up, where series do not find room.
    rooms: Mutex<Rooms>,
    /// Series of each probe that the last answer added up.
    added_up: Mutex<Vec<(&'static str, u64)>>,
    noted: Mutex<Option<Instant>>,
    last_pass: Mutex<Option<LastPass>>,
    cpu: Mutex<Vec<SourceCpu>>,
    errors: Mutex<Vec<Option<String>>>,
    /// Why this node has nothing of what a source reads, by source.
    absent: Mutex<Vec<Option<String>>>,
    /// Parts of a CPU that BPF programs took when they were last measured.
    shares: Mutex<Vec<governor::Share>>,
    /// What the kernel had counted when it was last read.
    rises: Mutex<Rises>,
    /// Where events of the daemon itself go.
    intake: Mutex<Option<Intake>>,
    /// Locked while a self-test runs.
    testing: Arc<tokio::sync::Mutex<()>>,
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Identifies this run.
    pub boot: String,
    /// Name of the node.
    pub node: String,
    /// Kernel release.
    pub kernel: String,
    /// When it started.
    pub started: Instant,
    /// The same as a date, seconds since 1970.
    pub start_time: f64,
    /// URLs on which metrics are served.
    pub urls: Vec<String>,
}

/// The last pass for metrics.
#[derive(Clone, Copy)]
struct LastPass {
    taken: Instant,
    cpu: Duration,
    wall: Duration,
    namespaces: u32,
    late: u32,
}

impl From<&Snapshot> for LastPass {
    fn from(snapshot: &Snapshot) -> LastPass {
        LastPass {
            taken: snapshot.taken,
            cpu: snapshot.cpu,
            wall: snapshot.wall,
            namespaces: snapshot.reports.iter().map(|report| report.done).max().unwrap_or(0),
            late: snapshot.late,
        }
    }
}

/// The last rendered answer.
#[derive(Clone, Copy, Debug, Default)]
struct LastAnswer {
    series: u64,
    bytes: u64,
    over: u64,
}

/// CPU time of a source, and how often it asked again.
#[derive(Clone, Copy, Debug, Default)]
struct SourceCpu {
    last: Option<Duration>,
    total: Duration,
    retries: u64,
}

/// How a probe stands.
struct Slot {
    probe: &'static Probe,
    effective: Effective,
    /// Why it does not work although it is wanted.
    problem: Option<Problem>,
    /// Why it works without its hooks.
    without_hooks: Option<String>,
    /// That it sends few events.
    throttled: Option<governor::Throttled>,
    /// Why this kernel has nothing that it shows.
    lacks: Option<String>,
    /// Words of its options that mean nothing on this kernel, a sentence each.
    void_words: Vec<String>,
}

/// Why a probe does not work.
#[derive(Clone, Debug)]
struct Problem {
    /// What it makes of the probe: not available here (it is never tried again), failed or paused.
    state: StateName,
    /// One sentence.
    sentence: String,
    /// When it is tried again, and how often it failed.
    retry: Option<(Instant, u32)>,
}

/// What the engine is made of.
pub struct Parts {
    /// The configuration and where it came from.
    pub loaded: Loaded,
    /// The path given on the command line.
    pub config_path: Option<PathBuf>,
    /// Runtime overrides and leases.
    pub state: State,
    /// Sources with their tables.
    pub sources: Arc<Sources>,
    /// The pass task.
    pub collector: Collector,
    /// Names of the namespaces.
    pub watcher: Arc<Watcher>,
    /// Kept events.
    pub history: Arc<History>,
    /// Counts of the event stages.
    pub counts: Arc<Counts>,
    /// Runs the probes that have hooks.
    pub hooks: HookRunner,
    /// The sources of names that ask other programs.
    pub runtimes: Runtimes,
    /// Reads namespaces as they die.
    pub farewell: Option<Farewell>,
    /// Hears of tracked connections.
    pub tracking: Tracking,
    /// Where events of the daemon itself go.
    pub intake: Intake,
    /// What does not change.
    pub facts: Facts,
}

/// Why the kernel has nothing of a section. What cannot be read is told by whoever reads it.
fn lacking(section: Section, proc: &Path) -> Option<String> {
    let text = std::fs::read_to_string(proc.join(section.file)).ok()?;
    let here = text.lines().any(|line| line.starts_with(section.line));
    (!here).then(|| {
        format!("this kernel has no {}: /proc/{} has no line {}", section.what, section.file, section.line)
    })
}

impl Engine {
    /// Puts the parts together. No probe with hooks runs yet: see [`Engine::reconcile`].
    pub fn new(parts: Parts) -> Engine {
        let now = unix_now();
        let config = &parts.loaded.config;
        let slot = |probe: &&'static Probe| Slot {
            probe,
            effective: effective(probe, config, parts.state.probes.get(probe.name), now),
            problem: None,
            without_hooks: None,
            throttled: None,
            lacks: probe.section.and_then(|section| lacking(section, &config.proc)),
            void_words: Vec::new(),
        };
        let slots = Mutex::new(PROBES.iter().map(slot).collect());
        let sources = parts.sources.all.len();
        Engine {
            slots,
            config: ArcSwap::from_pointee(parts.loaded),
            config_path: parts.config_path,
            state: tokio::sync::Mutex::new(parts.state),
            lease_changed: tokio::sync::Notify::new(),
            switched: tokio::sync::Notify::new(),
            sources: parts.sources,
            collector: parts.collector,
            watcher: parts.watcher,
            history: parts.history,
            counts: parts.counts,
            hooks: parts.hooks,
            runtimes: Mutex::new(Some(parts.runtimes)),
            farewell: Mutex::new(parts.farewell),
            tracking: Mutex::new(Some(parts.tracking)),
            facts: parts.facts,
            reload_ok: AtomicBool::new(true),
            last: Arc::default(),
            rooms: Mutex::default(),
            added_up: Mutex::default(),
            noted: Mutex::new(None),
            last_pass: Mutex::default(),
            cpu: Mutex::new(vec![SourceCpu::default(); sources]),
            errors: Mutex::new(vec![None; sources]),
            absent: Mutex::new(vec![None; sources]),
            shares: Mutex::default(),
            rises: Mutex::default(),
            intake: Mutex::new(Some(parts.intake)),
            testing: Arc::default(),
        }
    }

    /// Tells the thread that reads namespaces as they end that its probe may have been switched.
    fn wake_farewell(&self) {
        if let Some(farewell) = &*lock(&self.farewell) {
            farewell.wake();
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Config {
        self.config.load().config.clone()
    }

    /// The history of events.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// What does not change.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The generation of names in force, and its changes.
    pub fn name_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.watcher.changes()
    }

    /// Whether the threads that everything hangs on make progress.
    pub fn is_healthy(&self) -> bool {
        let farewell = lock(&self.farewell).as_ref().is_none_or(Farewell::is_alive);
        let tracking = lock(&self.tracking).as_ref().is_none_or(Tracking::is_alive);
        self.watcher.is_alive() && self.hooks.is_alive() && farewell && tracking
    }

    /// Unloads what is left of BPF; for the end of the daemon.
    pub async fn shut_down(&self) {
        drop(lock(&self.runtimes).take());
        drop(lock(&self.intake).take());
        drop(lock(&self.farewell).take());
        drop(lock(&self.tracking).take());
        self.watcher.set_hooks(None);
        self.hooks.shut_down().await;
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        lock(&self.slots)
    }

    /// Probes that are wanted and work, with their options.
    fn active(&self) -> Vec<Active> {
        let slots = self.slots();
        let active = slots.iter().filter(|slot| self.works(slot));
        active.map(|slot| (slot.probe, slot.effective.options.clone())).collect()
    }

    fn works(&self, slot: &Slot) -> bool {
        slot.effective.enabled
            && slot.problem.is_none()
            && (slot.probe.hooks.is_none_or(|hooks| hooks.optional) || self.hooks.is_running(slot.probe))
    }

    /// Waits until a probe is switched, or the configuration was read again.
    pub async fn switched(&self) {
        self.switched.notified().await;
    }

    /// Collects for a scrape, or takes what is fresh enough, and prepares the answer.
    pub async fn scrape(
        &self,
        selection: &Selection,
        limit: Option<Duration>,
    ) -> Result<Exposition, PassError> {
        let config = self.config.load().config.clone();
        let timeout = limit.map_or(config.timeout, |limit| limit.min(config.timeout));
        let chosen = selection.choose(&self.active(), &self.sources);
        let snapshot = self.collect(&chosen, config.min_interval, timeout).await?;
        // A description is a name of this generation, and like the daemon's own metrics is there whatever is picked.
        let infos = selection.names.contains(&Names::Netskoop);
        let limits = Limits { total: config.max_series, probe: config.max_series_per_probe };
        let others = if infos { snapshot.directory.infos_at_most() } else { 0 };
        let view = View::new(&selection.names, selection.full);
        let summed = lock(&self.rooms).plan(limits, view, &snapshot, &chosen, others);
        let added_up: u64 = summed.iter().map(|summed| summed.series).sum();
        *lock(&self.added_up) = summed.iter().map(|summed| (summed.probe.name, summed.series)).collect();
        lock(&self.last).over = added_up;
        let tail = self.self_metrics(&snapshot);
        let last = Arc::clone(&self.last);
        let contents = Contents { chosen, summed, target: selection.target, infos };
        Ok(Exposition::new(snapshot, contents, config.max_series, tail, move |budget, bytes| {
            *lock(&last) = LastAnswer { series: budget.written, bytes, over: added_up + budget.over };
        }))
    }

    async fn collect(
        &self,
        chosen: &[select::Chosen],
        max_age: Duration,
        timeout: Duration,
    ) -> Result<Arc<Snapshot>, PassError> {
        let wants = select::wants(chosen, &self.sources);
        let snapshot = self.collector.collect(wants, max_age, Instant::now() + timeout).await?;
        self.note(&snapshot);
        self.tell_rises(&snapshot);
        *lock(&self.last_pass) = Some(LastPass::from(&*snapshot));
        Ok(snapshot)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All probes.
pub fn all_probes() -> Vec<&'static Probe> {
    PROBES.to_vec()
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
