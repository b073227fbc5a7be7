//! A daemon of one's own, a client written by hand, and namespaces that clean up.

mod client;
pub(crate) mod containerd;
pub(crate) mod docker;
pub(crate) mod fake_podman;
pub(crate) mod grpc;
mod node;
pub(crate) mod nspawn;
pub(crate) mod packages;
pub(crate) mod podman;
mod process;
pub(crate) mod prometheus;
pub(crate) mod sources;

pub(crate) use client::{Answer, Follow, Lines, exchange, get, read_answer};
pub(crate) use node::{
    Netns, Pids, exclusive, inside_own_node, is_root, own_node, programs_vanish, run, test_name,
};
pub(crate) use process::Process;

use netskoop_api::{Entities, ErrorInfo, ProbeChanged, ProbeInfo, Status};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What has not happened by then does not happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The same where everything is slower by a factor that is told: in the emulated machines of the kernel lab.
pub(crate) fn patience() -> Duration {
    let factor = std::env::var("NETSKOOP_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    LIMIT * factor.unwrap_or(1)
}

/// The probes that read files, as a query.
pub(crate) const PULL: &str = "collect[]=netdev&collect[]=tcp&collect[]=udp&collect[]=ip&collect[]=tcpext&collect[]=sock&collect[]=softnet&collect[]=icmp&collect[]=udplite&collect[]=mptcp";

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = patience();
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {patience:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Notes that a test did not run, and why; a failure where nothing may be missing.
pub(crate) fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(std::env::var_os("NETSKOOP_NO_SKIP").is_none(), "{name} may not be skipped: {reason}");
    eprintln!("SKIP: {name}: {reason}");
    if let Some(file) = std::env::var_os("NETSKOOP_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{name}: {reason}").unwrap();
    }
}

pub(crate) fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").canonicalize().unwrap()
}

/// A temporary directory, gone when dropped.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        // Tests with process ids of their own are all number 1, so the number says nothing.
        let path = until("a name that nobody has", || {
            let name = format!("netskoop-{:08x}", std::hash::RandomState::new().hash_one(0) as u32);
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).is_ok().then_some(path)
        });
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a daemon is to be started.
pub(crate) struct Setup {
    pub(crate) dir: Dir,
    sections: BTreeMap<&'static str, String>,
    wrap: Vec<String>,
    program: PathBuf,
}

impl Setup {
    /// On the real `/proc`, with a run directory of its own and a port that the kernel chooses.
    pub(crate) fn new() -> Setup {
        let dir = Dir::new();
        let run = dir.0.join("run");
        std::fs::create_dir(&run).unwrap();
        let setup = Setup {
            dir,
            sections: BTreeMap::new(),
            wrap: vec![],
            program: env!("CARGO_BIN_EXE_netskoopd").into(),
        };
        setup
            .set("", "node_name = \"node-1\"")
            .set("http", "listen = [\"127.0.0.1:0\"]")
            .set("metrics", "min_interval = \"0s\"")
            .set("paths", &format!("run = \"{}\"", run.display()))
    }

    /// On a fixture tree as it is.
    pub(crate) fn fixture(name: &str) -> Setup {
        let proc = tests_dir().join("fixtures").join(name).join("proc");
        Setup::new().set("paths", &format!("proc = \"{}\"", proc.display()))
    }

    /// On a copy of a fixture tree, in `proc` of the temporary directory.
    pub(crate) fn fixture_copy(name: &str) -> Setup {
        let setup = Setup::new();
        let from = tests_dir().join("fixtures").join(name).join("proc");
        run("cp", &["-a", from.to_str().unwrap(), setup.dir.0.to_str().unwrap()]);
        let proc = setup.dir.0.join("proc");
        setup.set("paths", &format!("proc = \"{}\"", proc.display()))
    }

    /// With names under `/run/netns` of the (little) node, and its socket beside them.
    pub(crate) fn on_node() -> Setup {
        let mut setup = Setup::new();
        setup.sections.remove("paths");
        setup
    }

    /// Without the probes that load BPF.
    pub(crate) fn pull_only(self) -> Setup {
        let probes = ["probes.tcpreset", "probes.packetloss", "probes.tcpretrans"];
        probes.into_iter().fold(self, |setup, probe| setup.set(probe, "enabled = false"))
    }

    /// Adds a line to a section of the configuration.
    pub(crate) fn set(mut self, section: &'static str, line: &str) -> Setup {
        let text = self.sections.entry(section).or_default();
        text.push_str(line);
        text.push('\n');
        self
    }

    /// Replaces a section of the configuration.
    pub(crate) fn replace(mut self, section: &'static str, line: &str) -> Setup {
        self.sections.remove(section);
        self.set(section, line)
    }

    /// Runs it under another program.
    pub(crate) fn wrap(mut self, words: &[&str]) -> Setup {
        self.wrap = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Runs a copy of the binary that anybody may execute.
    pub(crate) fn public_binary(mut self) -> Setup {
        let copy = self.dir.0.join("netskoopd");
        std::fs::copy(&self.program, &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.program = copy;
        self
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.0.join("netskoopd.toml")
    }

    /// The configuration as text.
    pub(crate) fn config(&self) -> String {
        let mut text = String::new();
        for (section, lines) in &self.sections {
            if !section.is_empty() {
                text.push_str(&format!("[{section}]\n"));
            }
            text.push_str(lines);
        }
        text
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        match self.sections.contains_key("paths") {
            true => self.dir.0.join("run"),
            false => "/run".into(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("netskoop/netskoopd.sock")
    }

    fn command(&self) -> Command {
        let mut words = self.wrap.iter();
        let mut command = match words.next() {
            Some(program) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg("--config").arg(self.config_file()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Daemon {
        std::fs::write(self.config_file(), self.config()).unwrap();
        Daemon::start(self)
    }

    /// Runs it to its end, which must come by itself.
    pub(crate) fn fails(&self) -> (Option<i32>, String) {
        std::fs::write(self.config_file(), self.config()).unwrap();
        self.fails_as_written()
    }

    /// The same with the configuration file that is there.
    pub(crate) fn fails_as_written(&self) -> (Option<i32>, String) {
        let mut child = self.command().spawn().unwrap();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("the daemon ends", || child.try_wait().unwrap())
        }));
        let _ = child.kill();
        let Output { stderr, .. } = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        (ended.unwrap_or_else(|_| panic!("it did not end:\n{stderr}")).code(), stderr)
    }
}

/// The lines of a log, as they come.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Log {
    /// Waits for a line.
    fn wait(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + patience();
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                return None;
            }
            lines = self.more.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A running daemon; killed when dropped, its log shown if the test fails.
pub(crate) struct Daemon {
    pub(crate) setup: Setup,
    child: Child,
    log: Arc<Log>,
    pub(crate) port: u16,
}

impl Daemon {
    fn start(setup: Setup) -> Daemon {
        let mut child = setup.command().spawn().unwrap();
        let log = Arc::new(Log::default());
        let (reader, stderr) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                reader.lines.lock().unwrap().0.push(line);
                reader.more.notify_all();
            }
            reader.lines.lock().unwrap().1 = true;
            reader.more.notify_all();
        });
        let mut daemon = Daemon { setup, child, log, port: 0 };
        assert!(daemon.log.wait(|line| line.contains(" ready: ")).is_some(), "the daemon is not ready");
        // Said before, if it listens at all.
        let line = daemon.log().into_iter().find(|line| line.contains("metrics on http://"));
        daemon.port = line.map_or(0, |line| {
            let rest = line.split("localhost:").nth(1).unwrap();
            rest.split('/').next().unwrap().parse().unwrap()
        });
        daemon
    }

    /// Starts it again with the same directories, after it ended.
    pub(crate) fn restart(mut self) -> Daemon {
        let setup = std::mem::replace(&mut self.setup, Setup::new());
        drop(self);
        Daemon::start(setup)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log.
    #[track_caller]
    pub(crate) fn logged(&self, text: &str) -> String {
        self.log
            .wait(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no line of the log says '{text}'"))
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().0.clone()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as systemd does; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let began = Instant::now();
        let status = until("the daemon ends after SIGTERM", || self.child.try_wait().unwrap());
        // Two seconds are promised; a loaded machine may take longer, systemd's patience is 90 s.
        assert!(began.elapsed() < Duration::from_secs(10), "stopping took {:?}", began.elapsed());
        status.code()
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream
    }

    pub(crate) fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.setup.socket()).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream
    }

    /// `GET` on the TCP port.
    pub(crate) fn http(&self, path: &str) -> Answer {
        get(self.tcp(), path)
    }

    /// The text of a scrape that must work.
    #[track_caller]
    pub(crate) fn scrape(&self, path: &str) -> String {
        let answer = self.http(path);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    }

    /// `GET` on the control socket.
    pub(crate) fn ask(&self, path: &str) -> Answer {
        get(self.unix(), path)
    }

    /// The JSON of a `GET` on the control socket that must work.
    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.ask(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{path}");
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.text()))
    }

    pub(crate) fn status(&self) -> Status {
        self.json("/v1/status")
    }

    pub(crate) fn probe(&self, name: &str) -> ProbeInfo {
        self.json(&format!("/v1/probes/{name}"))
    }

    pub(crate) fn entities(&self) -> Entities {
        self.json("/v1/entities")
    }

    /// Waits for a picture of the namespaces, by generations.
    #[track_caller]
    pub(crate) fn entities_until(&self, what: &str, good: impl Fn(&Entities) -> bool) -> Entities {
        let end = Instant::now() + patience();
        let mut picture = self.entities();
        while !good(&picture) {
            assert!(Instant::now() < end, "waited in vain for {what}: {picture:#?}");
            picture = self.json(&format!("/v1/entities?after={}", picture.generation));
        }
        picture
    }

    /// `PATCH` of a probe.
    pub(crate) fn patch(&self, probe: &str, body: &str) -> Answer {
        exchange(self.unix(), "PATCH", &format!("/v1/probes/{probe}"), &[], body.as_bytes())
    }

    /// `PATCH` of a probe that must work.
    #[track_caller]
    pub(crate) fn change(&self, probe: &str, body: &str) -> ProbeChanged {
        let answer = self.patch(probe, body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Ids of all its BPF programs that probes have loaded.
    pub(crate) fn programs(&self) -> Vec<u32> {
        let probes: Vec<ProbeInfo> = self.json("/v1/probes");
        probes.into_iter().flat_map(|probe| probe.state.programs).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.log.wait(|_| false);
            eprintln!("the daemon's log:\n{}", self.log().join("\n"));
        }
    }
}

/// The error in an answer of the control socket.
#[track_caller]
pub(crate) fn error_of(answer: &Answer) -> ErrorInfo {
    let body: netskoop_api::ErrorBody =
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.text()));
    body.error
}

/// The value of a series, given as `name{labels}`.
pub(crate) fn series(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}
