//! A Docker of one's own, on a little node: nothing of it is left when it is dropped.

use super::{Dir, is_root, skip, until};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether a program can be run.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A tree with a busybox in it, as a tar file that `docker import` and `podman import` take.
pub(crate) fn busybox_tar(dir: &Path) -> String {
    let (tree, tar) = (dir.join("tree"), dir.join("busybox.tar"));
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    super::run("tar", &["-C", tree.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]);
    tar.to_str().unwrap().to_owned()
}

/// Ends every process whose command line names this directory, which is nobody else's.
pub(crate) fn end_processes_of(dir: &Path) {
    let name = dir.to_str().unwrap();
    let ours = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let named = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            Ok(*pid) != i32::try_from(std::process::id()) && String::from_utf8_lossy(&line).contains(name)
        };
        pids.filter(named).collect::<Vec<i32>>()
    };
    let end = std::time::Instant::now() + super::LIMIT;
    while let pids = ours()
        && !pids.is_empty()
        && std::time::Instant::now() < end
    {
        for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Ends what runs in a cgroup of ours, and removes it from all hierarchies.
pub(crate) fn remove_cgroups(name: &str) {
    let mut roots = vec![Path::new("/sys/fs/cgroup").to_owned()];
    roots.extend(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
    for root in roots.iter().map(|root| root.join(name)).filter(|root| root.is_dir()) {
        let mut directories = vec![root];
        let mut at = 0;
        while at < directories.len() {
            let inside = std::fs::read_dir(&directories[at]).into_iter().flatten().flatten();
            directories.extend(inside.map(|entry| entry.path()).filter(|path| path.is_dir()));
            at += 1;
        }
        for directory in directories.iter().rev() {
            let end = std::time::Instant::now() + super::LIMIT;
            while std::fs::remove_dir(directory).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound)
                && std::time::Instant::now() < end
            {
                let members = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                for pid in members.lines().filter_map(|line| line.parse().ok()) {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

/// Unmounts everything below a directory, so that it can be removed.
pub(crate) fn unmount_all(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(dir));
    for line in mounts.lines().rev().filter(below) {
        let _ = Command::new("umount").args(["-l", line.split(' ').nth(1).unwrap()]).output();
    }
}

/// `dockerd` with its socket where everybody looks for it, and an image `bb:1` with a busybox. Containers go on
/// running while it is restarted.
pub(crate) struct Docker {
    dir: Dir,
    child: Child,
    cgroup: String,
}

impl Docker {
    /// On the little node of the caller, whose `/run` is its own. Nothing if it is not installed.
    pub(crate) fn start() -> Option<Docker> {
        for program in ["dockerd", "docker", "busybox"] {
            if !installed(program) {
                skip(&format!("needs {program}"));
                return None;
            }
        }
        assert!(is_root());
        let dir = Dir::new();
        let cgroup = dir.0.file_name().unwrap().to_str().unwrap().to_owned();
        let docker = Docker { child: Self::spawn(&dir, &cgroup), dir, cgroup };
        docker.wait();
        docker.docker(&["import", &busybox_tar(&docker.dir.0), "bb:1"]);
        Some(docker)
    }

    fn spawn(dir: &Dir, cgroup: &str) -> Child {
        let at = |name: &str| dir.0.join(name).to_str().unwrap().to_owned();
        let log = std::fs::File::options().append(true).create(true).open(dir.0.join("log")).unwrap();
        let args = ["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")];
        let mut command = Command::new("dockerd");
        command.args(args).args(["-H", "unix:///run/docker.sock", "--live-restore"]);
        command.args(["--cgroup-parent", &format!("/{cgroup}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn wait(&self) {
        let answers = || Command::new("docker").arg("version").output().unwrap().status.success();
        until("dockerd answers", || answers().then_some(()));
    }

    /// `docker ...`, which must succeed; what it prints.
    #[track_caller]
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        super::run("docker", args).trim().to_owned()
    }

    /// A container that does nothing; its id.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, options: &[&str]) -> String {
        let command = ["bb:1", "/bin/busybox", "sleep", "1000"];
        self.docker(&[&["run", "-d", "--name", name], options, &command].concat())
    }

    /// `docker inspect` with a format.
    #[track_caller]
    pub(crate) fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "-f", format, container])
    }

    /// Ends dockerd, as its unit would. The containers stay.
    pub(crate) fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        until("dockerd ends", || self.child.try_wait().unwrap());
    }

    /// Starts it again.
    pub(crate) fn start_again(&mut self) {
        self.child = Self::spawn(&self.dir, &self.cgroup);
        self.wait();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.0.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the last lines of dockerd's log, newest first:\n{}", lines.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        end_processes_of(&self.dir.0);
        remove_cgroups(&self.cgroup);
        unmount_all(&self.dir.0);
    }
}
