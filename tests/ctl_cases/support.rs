//! A daemon in this process, on a socket of its own, and `netskoopctl` run against it.

use netskoopd::server::listen;
use netskoopd::{Listeners, Notice, RunError, Signals, config};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, watch};

/// The node of `tests/fixtures/healthy`.
pub(crate) const NODE: &str = "worker-7";

/// Settings that keep the daemon to the fixture: what it shows is the same on every machine.
const QUIET: &str = "[probes.tcpreset]\nenabled = false\n[probes.packetloss]\nenabled = false\n[probes.tcpretrans]\nenabled = false\n";

/// A daemon; it stops, and its directory goes away, when dropped.
pub(crate) struct Daemon {
    directory: PathBuf,
    stop: watch::Sender<bool>,
    // A closed channel is no request, but it would be looked at again and again.
    _reload: mpsc::Sender<()>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

impl Outcome {
    pub(crate) fn of(output: &Output) -> Outcome {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let code = output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"));
        Outcome { out: text(&output.stdout), err: text(&output.stderr), code }
    }

    /// Standard output of a command that went well.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// Exit code and standard error of one that did not; it printed nothing else.
    pub(crate) fn failed(self) -> (i32, String) {
        assert_ne!(self.code, 0, "{}", self.out);
        assert_eq!(self.out, "");
        (self.code, self.err)
    }
}

impl Daemon {
    /// On the fixture, with nothing attached to the kernel by any probe.
    pub(crate) fn quiet() -> Daemon {
        Daemon::on(&fixture(), QUIET)
    }

    /// On a procfs, with further configuration.
    pub(crate) fn on(proc: &Path, more: &str) -> Daemon {
        let directory = directory();
        let file = directory.join("netskoopd.toml");
        let run = directory.join("run");
        let paths = format!("[paths]\nproc = {proc:?}\nrun = {run:?}\n");
        std::fs::write(&file, format!("node_name = {NODE:?}\n[http]\nlisten = []\n{paths}{more}")).unwrap();
        let loaded = config::load(Some(&file)).unwrap();
        // From here on clients can connect; they are answered when the daemon is ready.
        let control = listen::control(&run.join("netskoop/netskoopd.sock")).unwrap();
        let listeners = Listeners { http: Vec::new(), control };
        let (stop, stopped) = watch::channel(false);
        let (reload, reloads) = mpsc::channel(1);
        let signals = Signals { stop: stopped, reload: reloads, notify: |_: &Notice<'_>| {} };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(netskoopd::run(loaded, Some(file), listeners, signals))
        });
        Daemon { directory, stop, _reload: reload, thread: Some(thread) }
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("netskoopd.toml")
    }

    /// Its drop-in with lasting changes; empty if there is none.
    pub(crate) fn drop_in(&self) -> String {
        std::fs::read_to_string(self.directory.join("conf.d/50-netskoopctl.toml")).unwrap_or_default()
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/netskoop/netskoopd.sock")
    }

    /// `netskoopctl` for its socket, not run yet.
    pub(crate) fn command(&self, line: &str) -> Command {
        command(&self.socket(), line)
    }

    /// Runs `netskoopctl LINE`; arguments are separated by single spaces.
    pub(crate) fn ctl(&self, line: &str) -> Outcome {
        Outcome::of(&self.command(line).output().unwrap())
    }

    /// The JSON twin of a screen, as the type that the contract names.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, line: &str) -> T {
        let text = self.ctl(&format!("{line} -o json")).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}\n{text}"))
    }

    /// Stops it as a signal does.
    pub(crate) fn stop(&mut self) -> Result<(), RunError> {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.stop().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A daemon for all tests that change nothing.
pub(crate) fn shared() -> &'static Daemon {
    static SHARED: OnceLock<Daemon> = OnceLock::new();
    SHARED.get_or_init(Daemon::quiet)
}

/// The program under test, in a plain environment.
pub(crate) fn command(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netskoopctl"));
    command.args(line.split(' ').filter(|word| !word.is_empty()));
    // A safety limit: a busy machine is no failure.
    command.args(["--timeout", "30s"]).env_clear().env("NETSKOOP_SOCKET", socket).env("TZ", "UTC");
    command.stdin(Stdio::null());
    command
}

/// `tests/fixtures/healthy/proc`.
pub(crate) fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/healthy/proc").canonicalize().unwrap()
}

/// A new directory that everybody may enter.
pub(crate) fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        sweep();
    }
    let path = std::env::temp_dir().join(format!("netskoop-ctl-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Removes what earlier runs left: the daemon that tests share lives until the process ends, and so does its directory.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix("netskoop-ctl-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Those of other users stay.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a part of a test that needs something must be left out. Says so where `make test` looks, because cargo hides
/// what tests print; where nothing may be skipped, it is a failure.
pub(crate) fn skip(test: &str, missing: Option<&str>) -> bool {
    let Some(why) = missing else { return false };
    assert!(std::env::var_os("NETSKOOP_NO_SKIP").is_none(), "{test}: {why}");
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("NETSKOOP_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        writeln!(file.unwrap(), "{test}: {why}").unwrap();
    }
    true
}

/// Why BPF programs cannot be loaded here.
pub(crate) fn no_bpf() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        Some("needs a kernel with BTF")
    } else {
        None
    }
}

/// The first column of a table, without its title.
pub(crate) fn first_column(table: &str) -> Vec<&str> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

/// Detaches programs behind their owner's back; how many there were.
pub(crate) fn detach(programs: &[u32]) -> usize {
    let ids = programs.iter().map(u32::to_string);
    let output = Command::new("python3")
        .args(["-c", include_str!("../support/detach.py")])
        .args(ids)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
