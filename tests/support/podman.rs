//! A podman with storage and state of its own, on a little node: nothing of it is left when it is dropped.

use super::docker::{busybox_tar, installed, remove_cgroups, unmount_all};
use super::{Dir, is_root, run, skip, until};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Podman on the usual paths, which are its own in here, and an image `bb:1` with a busybox.
pub(crate) struct Podman {
    dir: Dir,
    cgroup: String,
    service: Option<Child>,
}

/// Limits that need no privilege, and a runtime that also knows mixed cgroups.
const CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "DIR/networks"
"#;

impl Podman {
    /// On the little node of the caller, whose `/run` is its own. Nothing if it is not installed.
    pub(crate) fn start() -> Option<Podman> {
        for program in ["podman", "runc", "busybox"] {
            if !installed(program) {
                skip(&format!("needs {program}"));
                return None;
            }
        }
        assert!(is_root());
        let dir = Dir::new();
        let at = dir.0.to_str().unwrap().to_owned();
        let cgroup = dir.0.file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::create_dir(dir.0.join("storage")).unwrap();
        std::fs::create_dir_all("/var/lib/containers").unwrap();
        // Seen by nobody else: the mount namespace is the node's.
        run("mount", &["--bind", &format!("{at}/storage"), "/var/lib/containers"]);
        run("mount", &["-t", "tmpfs", "none", "/dev/shm"]);
        std::fs::write(dir.0.join("containers.conf"), CONFIG.replace("DIR", &at)).unwrap();
        let podman = Podman { dir, cgroup, service: None };
        podman.podman(&["import", &busybox_tar(&podman.dir.0), "bb:1"]);
        Some(podman)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.args(args).env("CONTAINERS_CONF", self.dir.0.join("containers.conf"));
        command
    }

    /// `podman ...`, which must succeed; what it prints.
    #[track_caller]
    pub(crate) fn podman(&self, args: &[&str]) -> String {
        // conmon lives on with what it inherits, so that no pipe may be among it.
        let (out, err) = (self.dir.0.join("out"), self.dir.0.join("err"));
        let file = |path: &Path| std::fs::File::create(path).unwrap();
        let mut command = self.command(args);
        let status = command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err)).status().unwrap();
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert!(status.success(), "podman {args:?}: {}", text(&err));
        text(&out).trim().to_owned()
    }

    /// A container that does nothing; its id.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, options: &[&str]) -> String {
        let parent = format!("/{}", self.cgroup);
        // A pod has a cgroup of its own, and its containers are in it.
        let in_pod = options.contains(&"--pod");
        let cgroup: &[&str] = if in_pod { &[] } else { &["--cgroup-parent", &parent] };
        let command = ["bb:1", "/bin/busybox", "sleep", "1000"];
        self.podman(&[&["run", "-d", "--name", name], cgroup, options, &command].concat())
    }

    /// A pod that runs; its id.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> String {
        let parent = format!("/{}", self.cgroup);
        let infra = ["--infra-image", "bb:1", "--infra-command", "/bin/busybox sleep 1000"];
        let create = ["pod", "create", "--name", name, "--cgroup-parent", &parent];
        let id = self.podman(&[&create[..], &infra].concat());
        self.podman(&["pod", "start", name]);
        id
    }

    /// `podman inspect` with a format.
    #[track_caller]
    pub(crate) fn inspect(&self, container: &str, format: &str) -> String {
        self.podman(&["inspect", "-f", format, container])
    }

    /// Starts its API where everybody looks for it.
    pub(crate) fn serve(&mut self) {
        std::fs::create_dir_all("/run/podman").unwrap();
        let log = std::fs::File::create(self.dir.0.join("log")).unwrap();
        let mut command = self.command(&["system", "service", "-t", "0", "unix:///run/podman/podman.sock"]);
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.service = Some(command.spawn().unwrap());
        until("podman serves", || UnixStream::connect("/run/podman/podman.sock").ok());
    }

    /// Ends its API; the socket stays, as it does when a service is killed.
    pub(crate) fn stop_serving(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.stop_serving();
        remove_cgroups(&self.cgroup);
        for place in ["/var/lib/containers", "/dev/shm"] {
            unmount_all(Path::new(place));
        }
        unmount_all(&self.dir.0);
    }
}
