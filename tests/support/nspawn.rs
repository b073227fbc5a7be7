//! A little Debian with a real systemd as its process 1, in a container of systemd-nspawn on this kernel.

use super::docker::{installed, remove_cgroups};
use super::{Answer, Dir, LIMIT, Pids, exchange, get, run, skip, until};
use netskoop_api::{Entities, Status};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Whether the caller is to go on, with [`Machine::boot`]: on a little node with process ids of its own. The system's
/// files are made before that, because no archive can be reached from there.
pub(crate) fn inside_own_node(test: &str) -> bool {
    let outside = std::env::var_os("NETSKOOP_TEST_NODE").is_none() && super::is_root();
    (!outside || base_system().is_some()) && super::inside_own_node(test, Pids::Own)
}

/// A booted system. All of it ends with the little node.
pub(crate) struct Machine {
    nspawn: Child,
    leader: u32,
    cgroup: String,
    dir: Dir,
}

impl Machine {
    /// Boots it, with more files (paths from its root, without the first slash) and the daemon as a service. `None` if
    /// that cannot be done here; the test is noted as skipped then.
    pub(crate) fn boot(files: &[(&str, &str)]) -> Option<Machine> {
        let unit = std::fs::read_to_string(super::tests_dir().join("../systemd/netskoopd.service")).unwrap();
        let files = [&[("etc/systemd/system/netskoopd.service", unit.as_str())], files].concat();
        Machine::boot_with(&files, &[(env!("CARGO_BIN_EXE_netskoopd").as_ref(), "/usr/sbin/netskoopd")])
    }

    /// Boots it without the daemon, with more files, and with directories and files of this machine in places of its own.
    pub(crate) fn boot_with(files: &[(&str, &str)], binds: &[(&Path, &str)]) -> Option<Machine> {
        Machine::boot_on(&base_system()?, files, binds)
    }

    /// The same on another system than the usual one.
    pub(crate) fn boot_on(base: &Path, files: &[(&str, &str)], binds: &[(&Path, &str)]) -> Option<Machine> {
        let dir = Dir::new();
        let root = overlay(base, &dir.0);
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let console = dir.0.join("console");
        let cgroup = dir.0.file_name().unwrap().to_str().unwrap().to_owned();
        let mut nspawn = Command::new("sh");
        // In cgroups of its own, where those of another one are not met, and nothing else is when they are removed.
        nspawn.args(["-c", "for to in $CGROUPS; do echo $$ >$to; done; exec systemd-nspawn \"$@\"", "sh"]);
        nspawn.env("CGROUPS", make_cgroups(&cgroup).join(" "));
        nspawn.args(["-q", "--register=no", "--keep-unit", "--private-network", "--capability=all"]);
        nspawn.args(["--system-call-filter=bpf perf_event_open", "-b", "-D"]).arg(&root);
        nspawn.arg(format!("--machine={cgroup}"));
        nspawn.args(binds.iter().map(|(from, to)| format!("--bind-ro={}:{to}", from.display())));
        nspawn.stdin(Stdio::null()).stdout(File::create(&console).unwrap());
        nspawn.stderr(File::options().append(true).open(&console).unwrap());
        let mut machine = Machine { nspawn: nspawn.spawn().unwrap(), leader: 0, cgroup, dir };
        match machine.wait_for_boot() {
            true => Some(machine),
            false => {
                let said = std::fs::read_to_string(&console).unwrap_or_default();
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
                skip(&format!("systemd-nspawn cannot boot a system here: {last}"));
                None
            }
        }
    }

    fn wait_for_boot(&mut self) -> bool {
        let children = format!("/proc/{0}/task/{0}/children", self.nspawn.id());
        let end = Instant::now() + LIMIT;
        loop {
            let pids = std::fs::read_to_string(&children).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()) {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                self.leader = if comm == "systemd\n" { pid } else { self.leader };
            }
            if self.leader > 0 && self.inside("run/dbus/system_bus_socket").exists() {
                return true;
            }
            if self.nspawn.try_wait().unwrap().is_some() || Instant::now() > end {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// A file of it, as seen from here.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.leader.to_string()).join("root").join(path)
    }

    /// Runs a program in it, which must succeed; what it prints.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let leader = self.leader.to_string();
        let enter = ["-t", &leader, "-m", "-u", "-i", "-n", "-p", "--", program];
        run("nsenter", &[&enter, args].concat())
    }

    /// Runs a program in it, however it ends: its exit code, and all that it prints.
    pub(crate) fn attempt(&self, program: &str, args: &[&str]) -> (Option<i32>, String) {
        let leader = self.leader.to_string();
        let enter = ["120", "nsenter", "-t", &leader, "-m", "-u", "-i", "-n", "-p", "--", program];
        let output = Command::new("timeout").args(enter).args(args).stdin(Stdio::null()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Runs a program of this machine in its network, which must succeed; what it prints.
    #[track_caller]
    pub(crate) fn on_its_network(&self, program: &str, args: &[&str]) -> String {
        let leader = self.leader.to_string();
        run("nsenter", &[&["-t", &leader, "-n", "--", program], args].concat())
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let socket = self.inside("run/netskoop/netskoopd.sock");
        let stream = until("the daemon listens", || UnixStream::connect(&socket).ok());
        serde_json::from_slice(&get(stream, path).body).unwrap()
    }

    /// Asks the daemon for an action; its answer.
    pub(crate) fn post(&self, path: &str) -> Answer {
        let socket = self.inside("run/netskoop/netskoopd.sock");
        let stream = until("the daemon listens", || UnixStream::connect(&socket).ok());
        exchange(stream, "POST", path, &[], b"")
    }

    /// Asks the daemon for a change; its answer.
    pub(crate) fn patch(&self, path: &str, body: &[u8]) -> Answer {
        let socket = self.inside("run/netskoop/netskoopd.sock");
        let stream = until("the daemon listens", || UnixStream::connect(&socket).ok());
        exchange(stream, "PATCH", path, &[], body)
    }

    pub(crate) fn entities(&self) -> Entities {
        self.json("/v1/entities")
    }

    pub(crate) fn status(&self) -> Status {
        self.json("/v1/status")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.leader > 0 {
            let log = ["-t", &self.leader.to_string(), "-m", "-p", "--", "journalctl", "-b", "-n", "60"];
            let log = Command::new("nsenter").args(log).output();
            eprintln!(
                "{}",
                log.map(|log| String::from_utf8_lossy(&log.stdout).into_owned()).unwrap_or_default()
            );
        }
        // The kernel ends all others when process 1 of their namespace ends.
        let pid = i32::try_from(self.leader).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let end = Instant::now() + LIMIT;
        while self.leader > 0 && self.nspawn.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > end {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        remove_cgroups(&self.cgroup);
        // Before the directory goes.
        for mount in ["root", "memory"] {
            let _ = Command::new("umount").arg("-l").arg(self.dir.0.join(mount)).output();
        }
    }
}

/// Makes a cgroup in the hierarchies that systemd uses; the files through which processes come in.
fn make_cgroups(name: &str) -> Vec<String> {
    let roots = ["", "systemd", "unified"].map(|sub| Path::new("/sys/fs/cgroup").join(sub));
    let made = roots.iter().filter(|root| root.join("cgroup.procs").exists()).map(|root| root.join(name));
    let made = made.filter(|dir| std::fs::create_dir(dir).is_ok());
    made.map(|dir| dir.join("cgroup.procs").display().to_string()).collect()
}

/// The tree of files, made once and kept beside what cargo builds; the kernel lab uses the same.
fn base_system() -> Option<PathBuf> {
    for program in ["systemd-nspawn", "mmdebstrap"] {
        if !installed(program) {
            skip(&format!("{program} is not installed"));
            return None;
        }
    }
    let script = super::tests_dir().join("vm/image.sh");
    let output = Command::new("timeout").arg("900").arg(script).arg("tree").output().unwrap();
    if !output.status.success() {
        skip(&format!("no system can be made: {}", String::from_utf8_lossy(&output.stderr)));
        return None;
    }
    Some(String::from_utf8(output.stdout).unwrap().trim().into())
}

/// The same files, with changes kept in memory. The mounts go with the little node.
fn overlay(base: &Path, dir: &Path) -> PathBuf {
    let (memory, root) = (dir.join("memory"), dir.join("root"));
    [&memory, &root].iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    run("mount", &["-t", "tmpfs", "-o", "size=1G", "none", memory.to_str().unwrap()]);
    let (upper, work) = (memory.join("upper"), memory.join("work"));
    [&upper, &work].iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    let options =
        format!("lowerdir={},upperdir={},workdir={}", base.display(), upper.display(), work.display());
    run("mount", &["-t", "overlay", "-o", &options, "none", root.to_str().unwrap()]);
    root
}
