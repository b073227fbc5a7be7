//! Puts the daemon together, runs it, and takes it apart again.

use crate::config::{Config, Loaded, State};
use crate::engine::farewell::{self, Farewell};
use crate::engine::ledger::Ledger;
use crate::engine::pass::{Collector, PassError, Sources};
use crate::engine::select::Selection;
use crate::engine::tracking::{self, Tracking};
use crate::engine::{Engine, Facts, HookRunner, Objects, Parts};
use crate::events::bus::{Bus, Counts, Intake};
use crate::events::history::History;
use crate::hooks::{HookTable, Known};
use crate::kernel::bpf::{Loader, Refused};
use crate::kernel::buckets::Buckets;
use crate::kernel::features::Features;
use crate::kernel::ring::{DEFAULT_SIZE, Ring};
use crate::kernel::tc;
use crate::probes::PROBES;
use crate::resolve::labels::Labels;
use crate::resolve::runtimes::{Runtimes, Settings};
use crate::resolve::watcher::{Roots, Watcher};
use crate::server::listen::ControlSocket;
use crate::server::{self, control, metrics};
use crate::sources::counters::CounterSource;
use crate::sources::gone::{Gone, ROLLED};
use crate::sources::{self, Source};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// Clients of the control socket at the same time.
const MAX_CONTROL: usize = 256;
/// Descriptors at most.
const MAX_DESCRIPTORS: u64 = 20_000;
/// Enumerations of the kernel whose names are shown.
const ENUMS: [&str; 2] = ["skb_drop_reason", "sk_rst_reason"];

/// Open sockets.
pub struct Listeners {
    /// For metrics.
    pub http: Vec<TcpListener>,
    /// For control.
    pub control: ControlSocket,
}

/// What reaches the daemon from outside while it runs.
pub struct Signals {
    /// Turns true when it is to stop.
    pub stop: watch::Receiver<bool>,
    /// Something comes through when it is to read its configuration again.
    pub reload: mpsc::Receiver<()>,
    /// Told what the service manager should know.
    pub notify: fn(&Notice<'_>),
}

/// What the service manager is told.
pub enum Notice<'a> {
    /// The first collection has worked and the servers answer.
    Ready(&'a str),
    /// A reload begins.
    Reloading,
    /// It runs as configured, also after a reload that failed; with a line of status.
    Running(&'a str),
    /// Its line of status is another.
    Status(&'a str),
    /// All that must make progress does.
    Alive,
    /// It stops.
    Stopping,
}

/// Why the daemon ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not start.
    #[error("cannot {doing}: {source}")]
    Start {
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The first collection did not work.
    #[error("the first collection failed: {0}")]
    FirstPass(PassError),
    /// A part that everything hangs on ended.
    #[error("{0} ended unexpectedly")]
    PartEnded(&'static str),
}

fn start_error(doing: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Start { doing, source }
}

/// Runs until told to stop. Whatever it held is released when it returns.
pub async fn run(
    loaded: Loaded,
    config_path: Option<PathBuf>,
    listeners: Listeners,
    mut signals: Signals,
) -> Result<(), RunError> {
    raise_descriptor_limit();
    let max_connections = loaded.config.max_connections;
    let mut tasks = JoinSet::new();
    let (engine, passes) = assemble(loaded, config_path, &listeners, &mut tasks).await?;
    let mut endless = vec![passes];
    let (stop_servers, stopped) = watch::channel(false);
    let Listeners { http, control: socket } = listeners;
    let (listener, socket_file) = socket.into_parts();
    for listener in http {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(start_error("use the metrics socket"))?;
        let engine = Arc::clone(&engine);
        let handle = move |request, ()| metrics::handle(Arc::clone(&engine), request);
        tasks.spawn(named(
            "the metrics server",
            server::serve(listener, max_connections, stopped.clone(), handle),
        ));
    }
    let listener =
        tokio::net::UnixListener::from_std(listener).map_err(start_error("use the control socket"))?;
    let for_control = Arc::clone(&engine);
    let handle = move |request, peer| control::handle(Arc::clone(&for_control), request, peer);
    tasks.spawn(named("the control server", server::serve(listener, MAX_CONTROL, stopped, handle)));
    let keeper = Arc::clone(&engine);
    endless.push(tasks.spawn(named("the keeper of leases", async move { keeper.keep_time().await })));
    let governor = Arc::clone(&engine);
    endless.push(tasks.spawn(named("the governor of BPF programs", async move { governor.govern().await })));
    let headline = engine.headline();
    (signals.notify)(&Notice::Ready(&headline));

    let result = supervise(&engine, &mut tasks, &mut signals, headline).await;
    (signals.notify)(&Notice::Stopping);
    engine.history().close();
    stop_servers.send_replace(true);
    drop(socket_file);
    engine.stop_all().await;
    engine.shut_down().await;
    endless.iter().for_each(AbortHandle::abort);
    // The servers end by themselves, after a moment for open answers.
    while tasks.join_next().await.is_some() {}
    tracing::info!("stopped");
    result
}

/// Takes as many descriptors as may be had, up to a bound: each namespace that is watched until its end takes two.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(u64::MAX).min(MAX_DESCRIPTORS);
    if current.is_some_and(|current| current < wanted) {
        // What is there will do as well; fewer namespaces are watched then.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

/// Removes the filters that a daemon left on interfaces of this namespace because it was killed: on how many.
pub fn clean_up() -> io::Result<usize> {
    Ok(tc::clean_up(std::path::Path::new("/proc"))?)
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Waits for signals and watches over the parts; `said` is the line of status that the service manager knows.
async fn supervise(
    engine: &Arc<Engine>,
    tasks: &mut JoinSet<&'static str>,
    signals: &mut Signals,
    mut said: String,
) -> Result<(), RunError> {
    let interval = sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |limit| limit / 3);
    let mut check = tokio::time::interval(interval);
    let notify = signals.notify;
    loop {
        tokio::select! {
            _ = signals.stop.wait_for(|stop| *stop) => return Ok(()),
            Some(()) = signals.reload.recv() => {
                notify(&Notice::Reloading);
                // A bad configuration has been logged, and the running one stays.
                let _ = engine.reload().await;
                said = engine.headline();
                notify(&Notice::Running(&said));
            }
            () = engine.switched() => tell_if_new(engine, notify, &mut said),
            Some(ended) = tasks.join_next() => {
                return Err(RunError::PartEnded(ended.unwrap_or("a task that panicked")));
            }
            _ = check.tick() => {
                if !engine.is_healthy() {
                    return Err(RunError::PartEnded(
                        "the pump of the event ring, the namespace watcher, the thread that reads what dies, or the one that hears of connections,",
                    ));
                }
                notify(&Notice::Alive);
                // Namespaces come and go too often to be told of each.
                tell_if_new(engine, notify, &mut said);
            }
        }
    }
}

fn tell_if_new(engine: &Engine, notify: fn(&Notice<'_>), said: &mut String) {
    let headline = engine.headline();
    if headline != *said {
        notify(&Notice::Status(&headline));
        *said = headline;
    }
}

/// Makes the parts, starts the probes that are wanted, and collects once.
async fn assemble(
    loaded: Loaded,
    config_path: Option<PathBuf>,
    listeners: &Listeners,
    tasks: &mut JoinSet<&'static str>,
) -> Result<(Arc<Engine>, AbortHandle), RunError> {
    remove_leftovers();
    let config = loaded.config.clone();
    let state = state(&config);
    let facts = facts(&config.node_name, listeners)?;
    let (watcher, runtimes) = names(&config, &facts)?;
    let (loader, known) = loader(&config.proc, &watcher);
    let history = Arc::new(History::new(config.history));
    let counts = Arc::new(Counts::default());
    let bus = Bus {
        history: Arc::clone(&history),
        counts: Arc::clone(&counts),
        directory: watcher.cell(),
        known: Arc::clone(&known),
        node: facts.node.clone(),
        boot: facts.boot.clone(),
        proc: config.proc.clone(),
    };
    let (intake, _) = bus.start().map_err(start_error("start the event thread"))?;
    let base = Base { config, watcher, intake, counts };
    let tracking = base.tracking()?;
    let objects = Arc::new(Objects::default());
    let hooks = base.pump(&objects, loader, known)?;
    let gone = Arc::new(Gone::default());
    let sources = Arc::new(base.sources(objects, &gone));
    let ledger = Ledger::new(Arc::clone(&gone), &sources).map(Arc::new);
    let (collector, passes) =
        Collector::new(Arc::clone(&sources), Arc::clone(&base.watcher), home(), ledger.clone());
    let farewell = base.farewell(&sources, gone, ledger)?;
    let passes = tasks.spawn(named("the task that collects", passes));
    let Base { watcher, intake, counts, .. } = base;
    let engine = Arc::new(Engine::new(Parts {
        loaded,
        config_path,
        state,
        sources,
        collector,
        watcher,
        history,
        counts,
        hooks,
        runtimes,
        farewell,
        tracking,
        intake,
        facts,
    }));
    engine.reconcile().await;
    first_pass(&engine).await.map_err(RunError::FirstPass)?;
    Ok((engine, passes))
}

fn remove_leftovers() {
    match clean_up() {
        Ok(0) => {}
        Ok(interfaces) => tracing::info!(interfaces, "filters of an earlier daemon were removed"),
        Err(error) => tracing::warn!(%error, "cannot look for filters of an earlier daemon"),
    }
}

/// What was changed while an earlier daemon ran.
fn state(config: &Config) -> State {
    let (state, complaint) = State::load(&config.run);
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    state
}

/// What finds out the names of namespaces.
fn names(config: &Config, facts: &Facts) -> Result<(Arc<Watcher>, Runtimes), RunError> {
    let roots = Roots { proc: config.proc.clone(), netns: config.run.join("netns") };
    let labels = Labels { node: facts.node.clone(), extra: config.extra(), ..Labels::default() };
    let watcher = Watcher::start(roots, labels).map_err(start_error("watch namespaces"))?;
    let settings =
        Settings { proc: config.proc.clone(), run: config.run.clone(), choices: config.sources.clone() };
    let runtimes =
        Runtimes::start(&settings, watcher.book()).map_err(start_error("start the sources of names"))?;
    Ok((Arc::new(watcher), runtimes))
}

/// What the parts that hear of something are made with.
struct Base {
    config: Config,
    watcher: Arc<Watcher>,
    intake: Intake,
    counts: Arc<Counts>,
}

impl Base {
    /// What hears of tracked connections.
    fn tracking(&self) -> Result<Tracking, RunError> {
        let parts = tracking::Parts {
            directory: self.watcher.cell(),
            intake: self.intake.clone(),
            counts: Arc::clone(&self.counts),
            proc: self.config.proc.clone(),
            followers: Arc::clone(self.watcher.followers()),
        };
        Tracking::start(parts).map_err(start_error("start the thread that hears of tracked connections"))
    }

    /// What hears of BPF objects.
    fn pump(
        &self,
        objects: &Arc<Objects>,
        loader: Result<Loader, Refused>,
        known: Arc<Known>,
    ) -> Result<HookRunner, RunError> {
        let (intake, counts) = (self.intake.clone(), Arc::clone(&self.counts));
        HookRunner::start_pump(Arc::clone(objects), loader, known, intake, &self.watcher, counts)
            .map_err(start_error("start the pump of the event ring"))
    }

    /// Everything that a collection may read.
    fn sources(&self, objects: Arc<Objects>, gone: &Arc<Gone>) -> Sources {
        let (proc, table) = (&self.config.proc, objects as Arc<dyn HookTable>);
        let mut all: Vec<Arc<dyn Source>> = sources::all(proc, &self.config.sys);
        let counters = PROBES.iter().flat_map(|probe| CounterSource::all(probe, &table, proc));
        all.extend(counters.map(|source| Arc::new(source) as Arc<dyn Source>));
        all.push(Arc::clone(gone) as Arc<dyn Source>);
        Sources::new(all)
    }

    /// What reads namespaces as they die, if anything reads the tables that are added up.
    fn farewell(
        &self,
        sources: &Sources,
        gone: Arc<Gone>,
        ledger: Option<Arc<Ledger>>,
    ) -> Result<Option<Farewell>, RunError> {
        let Some((ledger, table)) = ledger.zip(sources.index(ROLLED[0])) else { return Ok(None) };
        let parts = farewell::Parts {
            directory: self.watcher.cell(),
            ledger,
            gone,
            source: Arc::clone(&sources.all[sources.owner(table)]),
            intake: self.intake.clone(),
            home: home(),
            proc: self.config.proc.clone(),
            followers: Arc::clone(self.watcher.followers()),
        };
        let started = Farewell::start(parts);
        started.map(Some).map_err(start_error("start the thread that reads namespaces as they die"))
    }
}

async fn first_pass(engine: &Engine) -> Result<(), PassError> {
    let config = engine.config();
    let selection = Selection { names: config.names, target: false, full: config.full_set, probes: None };
    engine.scrape(&selection, None).await.map(drop)
}

/// The namespace that lanes come back to.
fn home() -> Option<Arc<OwnedFd>> {
    std::fs::File::open("/proc/self/ns/net").ok().map(|file| Arc::new(OwnedFd::from(file)))
}

/// What BPF objects need to be loaded, or why there can be none.
fn loader(proc_root: &std::path::Path, watcher: &Watcher) -> (Result<Loader, Refused>, Arc<Known>) {
    let features = Features::load(None, &ENUMS);
    let empty = Features::default();
    let known = Arc::new(Known::new(proc_root, features.as_ref().unwrap_or(&empty)));
    let directory = watcher.directory();
    let host_netns = directory.entry(directory.host()).map_or(0, |entry| entry.id.netns);
    let namespaces = directory.entries().count();
    let loader = features.and_then(|features| {
        let shared = Ring::new(DEFAULT_SIZE).and_then(|ring| Ok((ring, Buckets::new(namespaces)?)));
        let (ring, buckets) = shared.map_err(|refused| features.explained(refused))?;
        let (features, known) = (Arc::new(features), Arc::clone(&known));
        Ok(Loader { ring, buckets, features, known, host_netns, namespaces })
    });
    if let Err(refused) = &loader {
        tracing::warn!("no eBPF probes: {refused}");
    }
    (loader, known)
}

fn facts(node_name: &str, listeners: &Listeners) -> Result<Facts, RunError> {
    let system = rustix::system::uname();
    let node = if node_name.is_empty() { system.nodename().to_string_lossy() } else { node_name.into() };
    let mut boot = [0_u8; 8];
    rustix::rand::getrandom(&mut boot, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| start_error("get random bytes")(error.into()))?;
    let url = |listener: &TcpListener| {
        let address = listener.local_addr().ok()?;
        let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { host(address.ip()) };
        Some(format!("http://{host}:{}/metrics", address.port()))
    };
    Ok(Facts {
        boot: boot.iter().map(|byte| format!("{byte:02x}")).collect(),
        node: node.into_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
        started: Instant::now(),
        start_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        urls: listeners.http.iter().filter_map(url).collect(),
    })
}

fn host(ip: std::net::IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}
