//! Runs the BPF objects: those of the probes, and the one that watches namespaces. Owns the event ring's pump.

use super::governor::Usage;
use crate::declare::Probe;
use crate::events::bus::{Counts, Incoming, Intake};
use crate::hooks::{Counters, CountersMap, HookTable, Known, Memory, Options};
use crate::kernel::bpf::{Entries, Handle, Loader, Refused, Settings};
use crate::kernel::netns_watch::{self, Exits, NetnsEvent, NetnsWatch};
use crate::kernel::record;
use crate::kernel::ring::Pump;
use crate::kernel::tasks::Tenant;
use crate::probes::PROBES;
use crate::resolve::watcher::{KernelEvent, KernelWatch, Watcher};
use crate::table::{Subject, Table};
use netskoop_api::StreamCounts;
use rustc_hash::FxHashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// Number that the records of the namespace watch carry; the probes' are below.
fn watch_number() -> u16 {
    number(PROBES.len())
}

fn number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// How a loaded object does.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// How it is attached.
    pub via: String,
    /// Ids of its programs.
    pub programs: Vec<u32>,
    /// Where its events went.
    pub stream: StreamCounts,
    /// What it does without on this kernel, a sentence each.
    pub limits: Vec<String>,
    /// Mean time of a run, while BPF statistics are on.
    pub event_ns: Option<u64>,
}

/// What the status says of BPF.
pub struct Description {
    /// Where the kernel's type information came from, or why there is none.
    pub btf: String,
    /// What is not as it should be.
    pub warnings: Vec<String>,
}

struct Running {
    handle: Handle,
    settings: Settings,
    memory: Memory,
}

/// The loaded objects.
#[derive(Default)]
pub struct Objects {
    running: RwLock<FxHashMap<&'static str, Running>>,
    watch: RwLock<Option<NetnsWatch>>,
    known: RwLock<Option<Arc<Known>>>,
    /// Time in programs that are unloaded, nanoseconds.
    retired: Mutex<FxHashMap<&'static str, u64>>,
}

impl Objects {
    fn running(&self) -> RwLockReadGuard<'_, FxHashMap<&'static str, Running>> {
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn running_mut(&self) -> RwLockWriteGuard<'_, FxHashMap<&'static str, Running>> {
        self.running.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unloads a probe's object, if it is loaded, and keeps what its programs have cost.
    fn retire(&self, probe: &Probe) -> Result<(), String> {
        let Some(running) = self.running_mut().remove(probe.name) else { return Ok(()) };
        *super::lock(&self.retired).entry(probe.name).or_default() += run_time(&running.handle);
        running.handle.stop()
    }
}

/// Nanoseconds in the programs of an object, as far as the kernel counts them.
fn run_time(handle: &Handle) -> u64 {
    handle.infos().iter().map(|info| info.run_time_ns).sum()
}

impl HookTable for Objects {
    fn fill(
        &self,
        probe: &Probe,
        map: &CountersMap,
        subject: &dyn Fn(u32, u64) -> Option<Subject>,
        table: &mut Table,
    ) -> io::Result<()> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let running = self.running();
        let (Some(running), Some(known)) = (running.get(probe.name), known) else {
            return Ok(());
        };
        let (mut entries, began) = (Entries::default(), Instant::now());
        running.handle.read_counters(map.name, &mut entries)?;
        let beside = |name: &str| {
            let mut entries = Entries::default();
            running.handle.read_counters(name, &mut entries).ok().map(|()| entries)
        };
        let counters = Counters {
            beside: Some(&beside),
            began,
            ..Counters::new(&entries, subject, &running.settings.options, &running.memory)
        };
        (map.fill)(&counters, &known, table);
        running.handle.delete_entries(&counters.expired.take())
    }

    fn counts_tasks(&self, probe: &Probe) -> bool {
        self.running().get(probe.name).is_some_and(|running| running.handle.counts_tasks())
    }

    fn set_tenants(&self, probe: &Probe, tenants: &[Tenant]) -> io::Result<()> {
        self.running().get(probe.name).map_or(Ok(()), |running| running.handle.set_tenants(tenants))
    }

    fn forget_tenant(&self, probe: &Probe, tenant: Subject) {
        let running = self.running();
        let forgotten = running.get(probe.name).map(|running| running.handle.forget_tenant(tenant.0));
        if let Some(Err(error)) = forgotten {
            tracing::warn!(%error, probe = probe.name, "cannot delete the counters of a tenant that is gone");
        }
    }
}

impl KernelWatch for Objects {
    fn watches(&self) -> bool {
        self.watch.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
    fn known(&self, inode: u32, cookie: u64, exits: Exits) {
        self.tell("insert a namespace", |watch| watch.known_insert(inode, cookie, exits));
    }
    fn forget(&self, inode: u32, cookie: u64) {
        self.tell("remove a namespace", |watch| watch.known_remove(inode));
        for running in self.running().values() {
            // The inode may be used again: its counters must not go over to another namespace.
            if let Err(error) = running.handle.forget(&[(inode, cookie)]) {
                tracing::warn!(%error, netns = inode, "cannot delete the counters of a namespace that is gone");
            }
        }
    }
    fn announce_again(&self, inode: u32) {
        self.tell("remove a namespace", |watch| watch.known_remove(inode));
    }
    fn retain(&self, live: &FxHashMap<u32, u64>) {
        for running in self.running().values() {
            if let Err(error) = running.handle.retain(live) {
                tracing::warn!(%error, "cannot delete the counters of namespaces that are gone");
            }
        }
    }
    fn rearm(&self, inode: u32, cookie: u64, exits: Exits) {
        self.tell("watch a namespace again", |watch| watch.clear_pending(inode, cookie, exits));
    }
}

impl Objects {
    fn tell(&self, what: &str, act: impl Fn(&NetnsWatch) -> io::Result<()>) {
        let watch = self.watch.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = watch.as_ref().map(act) {
            tracing::warn!(%error, "cannot {what} in the kernel's map; the next scan finds it");
        }
    }
}

/// Starts and stops objects.
pub struct HookRunner {
    objects: Arc<Objects>,
    loader: Result<Loader, Refused>,
    pump: Mutex<Option<Pump>>,
    counts: Arc<Counts>,
    watcher: Arc<Watcher>,
    /// Why namespaces are not watched by the kernel.
    watch_problem: Mutex<Option<Refused>>,
}

impl HookRunner {
    /// Starts the pump, if there can be BPF at all, and the namespace watch.
    pub fn start_pump(
        objects: Arc<Objects>,
        loader: Result<Loader, Refused>,
        known: Arc<Known>,
        intake: Intake,
        watcher: &Arc<Watcher>,
        counts: Arc<Counts>,
    ) -> io::Result<HookRunner> {
        *objects.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        let mut runner = HookRunner {
            objects,
            loader,
            pump: Mutex::new(None),
            counts,
            watcher: Arc::clone(watcher),
            watch_problem: Mutex::new(None),
        };
        if let Ok(loader) = &runner.loader {
            let (counts, to_watcher) = (Arc::clone(&runner.counts), Arc::clone(watcher));
            let pump = Pump::start(&loader.ring, move |bytes| {
                // What the namespace watch says is no event.
                if record::probe(bytes) != Some(watch_number()) {
                    counts.received.fetch_add(1, Ordering::Relaxed);
                }
                if !dispatch(bytes, &known, &intake, &to_watcher) {
                    counts.malformed.fetch_add(1, Ordering::Relaxed);
                }
            })?;
            runner.pump = Mutex::new(Some(pump));
        }
        let watch = runner.loader.clone().and_then(|loader| NetnsWatch::start(watch_number(), &loader));
        runner.set_watch(watch);
        Ok(runner)
    }

    /// Takes note of the namespace watch, or of why there is none. Counters of namespaces that are gone are deleted with it
    /// or without.
    fn set_watch(&self, watch: Result<NetnsWatch, Refused>) {
        let problem = match watch {
            Ok(watch) => {
                *self.objects.watch.write().unwrap_or_else(PoisonError::into_inner) = Some(watch);
                None
            }
            Err(refused) => {
                tracing::warn!("new namespaces are found by scanning only: {refused}");
                Some(refused)
            }
        };
        *super::lock(&self.watch_problem) = problem;
        if self.loader.is_ok() {
            self.watcher.set_hooks(Some(Arc::clone(&self.objects) as Arc<dyn KernelWatch>));
        }
    }

    /// Tries the namespace watch again, if it failed and may work another time.
    pub async fn watch_again(&self) {
        if !matches!(*super::lock(&self.watch_problem), Some(Refused::Failed { .. })) {
            return;
        }
        let Ok(loader) = self.loader.clone() else { return };
        let started = tokio::task::spawn_blocking(move || NetnsWatch::start(watch_number(), &loader)).await;
        if let Ok(Ok(watch)) = started {
            tracing::info!("new namespaces are told by the kernel again");
            self.set_watch(Ok(watch));
        }
    }

    /// Whether the pump makes progress, or there is none to make.
    pub fn is_alive(&self) -> bool {
        super::lock(&self.pump).as_ref().is_none_or(|pump| !pump.is_finished())
    }

    /// Whether a probe's object is loaded.
    pub fn is_running(&self, probe: &Probe) -> bool {
        self.objects.running().get(probe.name).is_some_and(|running| !running.handle.is_dead())
    }

    /// Loads a probe's object, or changes its settings if it is loaded. An error says whether it can never work here,
    /// and why.
    pub async fn start(
        &self,
        probe: &'static Probe,
        options: Options,
        (rate, burst): (u32, u32),
    ) -> Result<(), (bool, String)> {
        let mut loader = self.loader.clone().map_err(|refused| explain(&refused))?;
        loader.namespaces = self.watcher.directory().entries().count();
        let objects = Arc::clone(&self.objects);
        let settings = Settings { options, rate, burst };
        // Loading asks the kernel's verifier, which takes milliseconds.
        let started = tokio::task::spawn_blocking(move || start(&objects, probe, &loader, settings)).await;
        started.map_err(|error| (false, format!("cannot load {}: {error}", probe.name)))?
    }

    /// Unloads a probe's object.
    pub async fn stop(&self, probe: &'static Probe) {
        let objects = Arc::clone(&self.objects);
        let stopped = tokio::task::spawn_blocking(move || objects.retire(probe)).await;
        if let Ok(Err(error)) = stopped {
            tracing::error!(probe = probe.name, "{error}");
        }
    }

    /// Unloads the namespace watch and ends the pump.
    pub async fn shut_down(&self) {
        let watch = self.objects.watch.write().unwrap_or_else(PoisonError::into_inner).take();
        let pump = super::lock(&self.pump).take();
        let ended = tokio::task::spawn_blocking(move || {
            let watch = watch.map_or(Ok(()), NetnsWatch::stop);
            watch.and(pump.map_or(Ok(()), Pump::stop))
        })
        .await;
        if let Ok(Err(error)) = ended {
            tracing::error!("{error}");
        }
    }

    /// How a probe's object does; `None` if it is not loaded.
    pub fn status(&self, probe: &Probe) -> Option<HookStatus> {
        let running = self.objects.running();
        let handle = &running.get(probe.name)?.handle;
        let infos = handle.infos();
        let (time, runs) = infos.iter().fold((0, 0), |(t, n), info| (t + info.run_time_ns, n + info.runs));
        Some(HookStatus {
            via: handle.via().to_owned(),
            programs: infos.iter().map(|info| info.id).collect(),
            stream: handle.stream_counts().unwrap_or_default(),
            limits: handle.limits().to_vec(),
            event_ns: time.checked_div(runs),
        })
    }

    /// Seconds in a probe's programs since the daemon began, as far as the kernel counts them, also of those that are
    /// unloaded.
    pub fn cpu_seconds(&self, probe: &Probe) -> f64 {
        let now = self.objects.running().get(probe.name).map_or(0, |running| run_time(&running.handle));
        let before = super::lock(&self.objects.retired).get(probe.name).copied().unwrap_or(0);
        (now + before) as f64 / 1e9
    }

    /// Time in a probe's programs, as far as the kernel counts it, and their events; `None` if it is not loaded.
    pub fn usage(&self, probe: &Probe) -> Option<Usage> {
        let running = self.objects.running();
        let handle = &running.get(probe.name)?.handle;
        Some(Usage {
            nanoseconds: run_time(handle),
            events: handle.stream_counts().map_or(0, |counts| counts.submitted),
        })
    }

    /// What the running kernel told about itself.
    pub fn known(&self) -> Option<Arc<Known>> {
        self.objects.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Inode of the host's network namespace; 0 where there is no BPF.
    pub fn host_netns(&self) -> u32 {
        self.loader.as_ref().map_or(0, |loader| loader.host_netns)
    }

    /// What the status says of BPF.
    pub fn describe(&self) -> Description {
        let mut warnings = Vec::new();
        let btf = match &self.loader {
            Ok(loader) => {
                warnings.extend(loader.known.symbols.hidden().map(str::to_owned));
                match loader.features.path() {
                    Some(path) => format!("BTF from {}", path.display()),
                    None => "BTF built in".to_owned(),
                }
            }
            Err(refused) => format!("no BPF: {refused}"),
        };
        let scanning = |refused: &Refused| format!("namespaces are found by scanning only: {refused}");
        warnings.extend(super::lock(&self.watch_problem).as_ref().map(scanning));
        Description { btf, warnings }
    }
}

fn start(
    objects: &Objects,
    probe: &'static Probe,
    loader: &Loader,
    settings: Settings,
) -> Result<(), (bool, String)> {
    let Some(hooks) = &probe.hooks else { return Ok(()) };
    let is_dead = objects.running().get(probe.name).map(|running| running.handle.is_dead());
    match is_dead {
        Some(false) => return change(objects, probe, settings),
        Some(true) => {
            let why = objects.retire(probe);
            tracing::error!(probe = probe.name, ?why, "the thread of a BPF object ended; it is loaded again");
        }
        None => {}
    }
    // Loading takes a while: readers of other probes' counters must not wait for it.
    let at = PROBES.iter().position(|known| known.name == probe.name).unwrap_or(PROBES.len());
    let handle = Handle::start(probe.name, number(at), hooks.run, loader, settings.clone())
        .map_err(|refused| explain(&refused))?;
    objects.running_mut().insert(probe.name, Running { handle, settings, memory: Memory::default() });
    Ok(())
}

/// Hands new settings to a loaded object. Its thread may be at work for a while, in which others are read.
fn change(objects: &Objects, probe: &Probe, settings: Settings) -> Result<(), (bool, String)> {
    match objects.running().get(probe.name) {
        Some(running) if running.settings != settings => {
            running.handle.set(settings.clone()).map_err(|refused| explain(&refused))?;
        }
        _ => return Ok(()),
    }
    if let Some(running) = objects.running_mut().get_mut(probe.name) {
        running.settings = settings;
    }
    Ok(())
}

fn explain(refused: &Refused) -> (bool, String) {
    (matches!(refused, Refused::NotHere(_)), refused.to_string())
}

/// Sends a record where it belongs; false if it is malformed.
fn dispatch(bytes: &[u8], known: &Known, intake: &Intake, watcher: &Watcher) -> bool {
    let Some(number) = record::probe(bytes) else { return false };
    if number == watch_number() {
        let pid = |pid: u32| i32::try_from(pid).unwrap_or(0);
        return match netns_watch::decode(bytes) {
            Some(NetnsEvent::Seen { inum, pid: p, comm, cookie }) => {
                watcher.kernel_event(KernelEvent::Seen { inode: inum, pid: pid(p), comm, cookie });
                true
            }
            Some(NetnsEvent::Created { pid: p }) => {
                watcher.kernel_event(KernelEvent::Created { pid: pid(p) });
                true
            }
            Some(NetnsEvent::Exit { inum }) => {
                watcher.kernel_event(KernelEvent::Exit { inode: inum });
                true
            }
            None => false,
        };
    }
    let Some(probe) = PROBES.get(usize::from(number)) else { return false };
    let event = probe.hooks.as_ref().and_then(|hooks| (hooks.decode)(bytes, known));
    event.map(|event| intake.put(Incoming { probe: probe.name, event })).is_some()
}
