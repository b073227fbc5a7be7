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
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How often the places of sockets are looked at while nothing is there, and after a source was there a moment ago: a
/// runtime that restarts takes its socket away.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const MOMENT: Duration = Duration::from_secs(60);
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
    #[allow(dead_code, reason = "for the sources that follow")]
    pub(super) proc: PathBuf,
    /// Its page.
    pub(super) reporter: Reporter,
    /// What the watcher wants to know. A source that cannot answer must read it all the same.
    pub(super) questions: mpsc::Receiver<Wanted>,
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
        places: &[
            Place::Run("podman/podman.sock"),
            Place::Root("/var/lib/containers/storage/overlay-containers"),
        ],
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
    pub choices: Vec<(&'static str, Choice)>,
}

/// The thread with all sources. They end when this is dropped.
pub struct Runtimes {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Runtimes {
    /// Starts the thread. Pages are open when this returns.
    pub fn start(settings: &Settings, book: &Arc<Book>) -> io::Result<Runtimes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        for kind in &RUNTIMES {
            let choice = settings.choices.iter().find(|(name, _)| *name == kind.name);
            let choice = choice.map_or(&Choice::Auto, |(_, choice)| choice);
            for (name, places) in sources(kind, choice, &settings.run) {
                let (reporter, questions) = book.open(&name, kind.names);
                let first = places.first().cloned().unwrap_or_default();
                let context = Context { path: first, proc: settings.proc.clone(), reporter, questions };
                runtime.spawn(supervise(kind, places, context));
            }
        }
        let wait = move || {
            runtime.block_on(async {
                // The sender is gone with its owner.
                let _ = stopped.wait_for(|stop| *stop).await;
            });
            // What still blocks in a look-up of a name is left behind.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("netskoop-who".into()).spawn(wait)?;
        Ok(Runtimes { stop, thread: Some(thread) })
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
        Place::Root(path) => PathBuf::from(path),
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
    let mut worked: Option<Instant> = None;
    loop {
        context.path = first_there(&places, &context.reporter, worked).await;
        context.reporter.state(State::Connecting);
        let begin = Instant::now();
        let Err(SourceError(sentence)) = (kind.run)(&mut context).await;
        tracing::warn!(source = kind.name, path = %context.path.display(), "{sentence}; trying again");
        if context.reporter.failed(&sentence) {
            worked = Some(Instant::now());
        }
        // One that worked for a while is most likely back soon.
        retry = if begin.elapsed() > LAST_RETRY { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
        tokio::time::sleep(retry).await;
        while context.questions.try_recv().is_ok() {}
    }
}

/// Waits until one of the places exists.
async fn first_there(places: &[PathBuf], reporter: &Reporter, worked: Option<Instant>) -> PathBuf {
    let mut told = false;
    loop {
        if let Some(path) = places.iter().find(|path| path.exists()) {
            return path.clone();
        }
        if !std::mem::replace(&mut told, true) {
            let first = places.first().map(|path| path.display().to_string()).unwrap_or_default();
            reporter.state(State::Absent(format!("{first} does not exist")));
        }
        let lately = worked.is_some_and(|at| at.elapsed() < MOMENT);
        tokio::time::sleep(if lately { LOOK_AGAIN } else { LOOK }).await;
    }
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
}
