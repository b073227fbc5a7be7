//! The sources of identity that ask other programs: container runtimes and systemd. Each runs as a task on one thread of
//! its own, so that no scrape waits for them, and writes its page of the [`Book`]. A source that is absent, slow, broken or
//! restarting disturbs nobody: it is tried again, and its state is shown.

mod containerd;
mod cri;
mod docker;
mod grpc;
mod http;
mod labels;
mod oci;
mod podman;
mod systemd;

use super::book::{Book, Reporter, State, Wanted};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How often the places of sockets are looked at while nothing is there, and for a moment after a source was there or the
/// daemon began: a runtime that restarts takes its socket away, and after a boot it comes a little later.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_secs(60);
/// A source that goes on failing without having been connected is logged again after this time.
const LOG_AGAIN: Duration = Duration::from_secs(600);
/// Time before a source that failed is tried again: doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(3);

/// Which sockets of a kind of source are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Those that are found in the usual places.
    #[default]
    Auto,
    /// None.
    Off,
    /// These.
    Paths(Vec<PathBuf>),
}

/// What a running source works with.
pub(super) struct Context {
    /// The socket, or the place of the state files.
    pub(super) path: PathBuf,
    /// procfs.
    pub(super) proc: PathBuf,
    /// Root of runtime state.
    pub(super) run: PathBuf,
    /// Its page.
    pub(super) reporter: Reporter,
    /// What the watcher wants to know. A source that cannot answer must read it all the same.
    pub(super) questions: mpsc::Receiver<Wanted>,
    /// A question for which it tries to connect.
    pub(super) unanswered: Option<Wanted>,
}

/// Why a source stopped working: one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SourceError(pub(super) String);

type Running<'a> = Pin<Box<dyn Future<Output = Result<Infallible, SourceError>> + Send + 'a>>;

/// Where a socket may be.
enum Place {
    /// Below the root of runtime state.
    Run(&'static str),
    /// Anywhere.
    Root(&'static str),
    /// Not a socket, but the directory of state files.
    Files(&'static str),
}

/// A kind of source.
struct Runtime {
    /// Its name in the configuration, in `status` and on metrics.
    name: &'static str,
    /// Its usual places, the most usual first.
    places: &'static [Place],
    /// Whether several places are used at once, or only the first that is there.
    several: bool,
    /// Whether it names what nobody else can name.
    names: bool,
    /// Connects, keeps the page current, and returns when it cannot go on.
    run: for<'a> fn(&'a mut Context) -> Running<'a>,
}

static RUNTIMES: [Runtime; 5] = [
    Runtime {
        name: "containerd",
        places: &[
            Place::Run("containerd/containerd.sock"),
            Place::Run("k3s/containerd/containerd.sock"),
            Place::Run("k0s/containerd.sock"),
            Place::Run("docker/containerd/containerd.sock"),
            Place::Root("/var/snap/microk8s/common/run/containerd.sock"),
        ],
        several: true,
        names: true,
        run: |context| Box::pin(containerd::run(context)),
    },
    Runtime {
        // Not containerd's own: its API tells the same, and streams events.
        name: "cri",
        places: &[Place::Run("crio/crio.sock"), Place::Run("cri-dockerd.sock")],
        several: true,
        names: true,
        run: |context| Box::pin(cri::run(context)),
    },
    Runtime {
        name: "docker",
        places: &[Place::Run("docker.sock")],
        several: false,
        names: true,
        run: |context| Box::pin(docker::run(context)),
    },
    Runtime {
        name: "podman",
        places: &[Place::Run("podman/podman.sock"), Place::Files(podman::STORAGE)],
        several: false,
        names: true,
        run: |context| Box::pin(podman::run(context)),
    },
    Runtime {
        name: "systemd",
        places: &[Place::Run("dbus/system_bus_socket")],
        several: false,
        names: false,
        run: |context| Box::pin(systemd::run(context)),
    },
];

/// Names of the sources, as the configuration knows them.
pub fn names() -> impl Iterator<Item = &'static str> {
    RUNTIMES.iter().map(|runtime| runtime.name)
}

/// What the sources need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// procfs.
    pub proc: PathBuf,
    /// Root of runtime state.
    pub run: PathBuf,
    /// What was chosen, by name; a source that is not named is found by itself.
    pub choices: BTreeMap<&'static str, Choice>,
}

/// The thread with all sources. They end when this is dropped.
pub struct Runtimes {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    spawner: Handle,
    settings: Settings,
    book: Arc<Book>,
    started: Vec<Started>,
}

/// A source that runs.
struct Started {
    kind: &'static str,
    task: AbortHandle,
    page: Reporter,
}

impl Runtimes {
    /// Starts the thread. Pages are open when this returns.
    pub fn start(settings: &Settings, book: &Arc<Book>) -> io::Result<Runtimes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        let spawner = runtime.handle().clone();
        let wait = move || {
            runtime.block_on(async {
                // The sender is gone with its owner.
                let _ = stopped.wait_for(|stop| *stop).await;
            });
            // What still blocks in a look-up of a name is left behind.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("netskoop-who".into()).spawn(wait)?;
        let (settings, book) = (settings.clone(), Arc::clone(book));
        let mut all = Runtimes { stop, thread: Some(thread), spawner, settings, book, started: Vec::new() };
        RUNTIMES.iter().for_each(|kind| all.begin(kind));
        Ok(all)
    }

    /// Other sockets are to be used: sources for which that is a change are stopped, with all that they said, and begin
    /// anew. The others are not disturbed.
    pub fn choose(&mut self, choices: &BTreeMap<&'static str, Choice>) {
        let before = std::mem::replace(&mut self.settings.choices, choices.clone());
        for kind in RUNTIMES.iter().filter(|kind| before.get(kind.name) != choices.get(kind.name)) {
            for stopped in self.started.extract_if(.., |started| started.kind == kind.name) {
                stopped.task.abort();
                stopped.page.close();
            }
            self.begin(kind);
        }
    }

    fn begin(&mut self, kind: &'static Runtime) {
        let choice = self.settings.choices.get(kind.name).unwrap_or(&Choice::Auto);
        for (name, places) in sources(kind, choice, &self.settings.run) {
            let (reporter, questions) = self.book.open(&name, kind.names);
            let page = reporter.clone();
            let first = places.first().cloned().unwrap_or_default();
            let (proc, run) = (self.settings.proc.clone(), self.settings.run.clone());
            let context = Context { path: first, proc, run, reporter, questions, unanswered: None };
            let task = self.spawner.spawn(supervise(kind, places, context)).abort_handle();
            self.started.push(Started { kind: kind.name, task, page });
        }
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sources of a kind: each a name and the places of which it uses the first that is there.
fn sources(kind: &Runtime, choice: &Choice, run: &Path) -> Vec<(String, Vec<PathBuf>)> {
    let place = |place: &Place| match place {
        Place::Run(path) => run.join(path),
        Place::Root(path) | Place::Files(path) => PathBuf::from(path),
    };
    let (paths, several) = match choice {
        Choice::Off => return Vec::new(),
        Choice::Auto => (kind.places.iter().map(place).collect::<Vec<_>>(), kind.several),
        Choice::Paths(paths) => (paths.clone(), true),
    };
    if !several {
        return vec![(kind.name.to_owned(), paths)];
    }
    let name = |at: usize, path: &Path| match at {
        0 => kind.name.to_owned(),
        _ => format!("{} {}", kind.name, path.display()),
    };
    paths.iter().enumerate().map(|(at, path)| (name(at, path), vec![path.clone()])).collect()
}

/// Runs a source whenever one of its places is there, for ever.
async fn supervise(kind: &Runtime, places: Vec<PathBuf>, mut context: Context) {
    let mut retry = FIRST_RETRY;
    // After a boot runtimes start at the same time as we do.
    let mut worked = Instant::now();
    let mut logged: Option<Instant> = None;
    loop {
        context.path = first_there(&places, &context.reporter, worked).await;
        context.reporter.state(State::Connecting);
        let begin = Instant::now();
        let SourceError(sentence) = match is_usable(kind, &context.path) {
            true => guarded((kind.run)(&mut context)).await,
            false => SourceError("it is no socket".to_owned()),
        };
        let sentence = with_path(sentence, &context.path);
        let was_connected = context.reporter.failed(&sentence);
        if was_connected {
            worked = Instant::now();
        }
        // A socket that never answers is tried every few seconds.
        if was_connected || logged.is_none_or(|at| at.elapsed() > LOG_AGAIN) {
            tracing::warn!(source = kind.name, "{sentence}; trying again");
            logged = Some(Instant::now());
        }
        // One that worked for a while is most likely back soon.
        retry = if begin.elapsed() > LAST_RETRY { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
        tokio::time::sleep(retry).await;
        while context.questions.try_recv().is_ok() {}
    }
}

/// Whether something can be asked there. The kernel says "connection refused" of a plain file, which would mislead.
fn is_usable(kind: &Runtime, path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let has_files = kind.places.iter().any(|place| matches!(place, Place::Files(_)));
    // What is gone by now says so when it is asked.
    std::fs::metadata(path).map_or(true, |file| file.file_type().is_socket() || (has_files && file.is_dir()))
}

/// Says which socket, if the sentence does not.
fn with_path(sentence: String, path: &Path) -> String {
    let path = path.display().to_string();
    if sentence.contains(&path) { sentence } else { format!("{path}: {sentence}") }
}

/// A panic in a source is that source's failure only.
async fn guarded(mut running: Running<'_>) -> SourceError {
    let poll = std::future::poll_fn(move |context| {
        let poll = std::panic::AssertUnwindSafe(|| running.as_mut().poll(context));
        std::panic::catch_unwind(poll).unwrap_or_else(|_| {
            Poll::Ready(Err(SourceError("a bug: the source panicked, the log says where".to_owned())))
        })
    });
    let Err(error) = poll.await;
    error
}

/// Waits until one of the places exists.
async fn first_there(places: &[PathBuf], reporter: &Reporter, worked: Instant) -> PathBuf {
    let mut told = false;
    loop {
        if let Some(path) = places.iter().find(|path| path.exists()) {
            return path.clone();
        }
        if !std::mem::replace(&mut told, true) {
            let first = places.first().map(|path| path.display().to_string()).unwrap_or_default();
            reporter.state(State::Absent(format!("{first} does not exist")));
        }
        let lately = worked.elapsed() < MOMENT;
        tokio::time::sleep_until(next(if lately { LOOK_AGAIN } else { LOOK })).await;
    }
}

/// The next of the moments that are so far apart. They are the same for all sources, so that the thread wakes once for all.
fn next(step: Duration) -> Instant {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let steps = FIRST.elapsed().as_secs() / step.as_secs().max(1) + 1;
    *FIRST + step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_names() {
        let run = Path::new("/r");
        let of = |kind: &Runtime, choice: &Choice| sources(kind, choice, run);
        let containerd = of(&RUNTIMES[0], &Choice::Auto);
        assert_eq!(containerd[0], ("containerd".into(), vec!["/r/containerd/containerd.sock".into()]));
        assert_eq!(containerd[1].0, "containerd /r/k3s/containerd/containerd.sock");
        assert_eq!(of(&RUNTIMES[3], &Choice::Auto).len(), 1, "podman: socket or files");
        assert!(of(&RUNTIMES[0], &Choice::Off).is_empty());
        let own = of(&RUNTIMES[2], &Choice::Paths(vec!["/x".into()]));
        assert_eq!(own, [("docker".into(), vec!["/x".into()])]);
    }

    #[tokio::test]
    async fn a_source_that_panics_has_failed() {
        let error = guarded(Box::pin(async { panic!("as if it were a bug") })).await;
        assert!(error.0.contains("panicked"), "{error}");
        let error = guarded(Box::pin(async { Err(SourceError("gone".to_owned())) })).await;
        assert_eq!(error.0, "gone");
    }

    #[test]
    fn other_sockets_are_chosen_while_it_runs() {
        let book = Arc::new(Book::new(|| {}));
        // Nothing is there, so that every source waits for its socket.
        let run = PathBuf::from("/nonexistent/run");
        let settings = Settings { proc: "/proc".into(), run, choices: [("systemd", Choice::Off)].into() };
        let mut all = Runtimes::start(&settings, &book).unwrap();
        let names = || {
            let kind = |name: &str| name.split(' ').next().unwrap_or_default().to_owned();
            let mut found: Vec<String> = book.reports().iter().map(|report| kind(&report.name)).collect();
            found.sort();
            found.dedup();
            found
        };
        assert_eq!(names(), ["containerd", "cri", "docker", "podman"]);
        all.choose(&[("docker", Choice::Off), ("cri", Choice::Paths(vec!["/x".into()]))].into());
        assert_eq!(names(), ["containerd", "cri", "podman", "systemd"]);
        let cri: Vec<_> =
            book.reports().into_iter().filter(|report| report.name.starts_with("cri")).collect();
        assert_eq!(cri.len(), 1, "only the one that was chosen");
        all.choose(&BTreeMap::new());
        assert_eq!(names().len(), 5);
    }
}
