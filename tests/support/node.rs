//! Little nodes and namespaces for tests as root.

use super::until;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether a little node has process ids of its own. BPF sees those of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pids {
    Own,
    Shared,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The path of the test it is used in, as the test runner knows it.
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.split_once("::").unwrap().1.strip_suffix("::here").unwrap()
    }};
}
pub(crate) use test_name;

/// Goes on only on a little node of its own.
macro_rules! own_node {
    ($pids:expr) => {
        if !$crate::support::inside_own_node($crate::support::test_name!(), $pids) {
            return;
        }
    };
}
pub(crate) use own_node;

const SCRIPT: &str = "mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec \"$@\"";

/// Whether the caller is to go on: it is on a little node of its own then, with its own `/run` and network. Else the
/// test has run in another process, or was skipped.
pub(crate) fn inside_own_node(test: &str, pids: Pids) -> bool {
    if std::env::var_os("NETSKOOP_TEST_NODE").is_some_and(|name| name == test) {
        return true;
    }
    if !is_root() {
        super::skip("needs root");
        return false;
    }
    let flags: &[&str] = match pids {
        Pids::Own => &["-nmpf", "--kill-child", "--mount-proc"],
        Pids::Shared => &["-nm"],
    };
    let output = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", SCRIPT, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("NETSKOOP_TEST_NODE", test)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "the test did not run: {out}");
    false
}

/// Runs a program that must succeed; what it prints.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Tests that make many namespaces or count what is left run one at a time.
pub(crate) fn exclusive() -> File {
    let file = File::create(std::env::temp_dir().join("netskoop-tests.lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

/// Waits until the kernel has freed BPF programs.
#[track_caller]
pub(crate) fn programs_vanish(ids: &[u32]) {
    for id in ids {
        until("a BPF program is gone", || libbpf_rs::Program::fd_from_id(*id).is_err().then_some(()));
    }
}

/// A namespace with a name, and its loopback up.
pub(crate) struct Netns(pub(crate) String);

impl Netns {
    pub(crate) fn new(name: &str) -> Netns {
        run("ip", &["netns", "add", name]);
        run("ip", &["-n", name, "link", "set", "lo", "up"]);
        Netns(name.to_owned())
    }
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
    pub(crate) fn inode(&self) -> u32 {
        u32::try_from(std::fs::metadata(self.path()).unwrap().ino()).unwrap()
    }
    /// Runs a program inside.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.0, program], args].concat())
    }
    /// Runs code on a thread inside. Sockets made there stay of that namespace.
    pub(crate) fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                let file = File::open(self.path()).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                action()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
    /// A cable to another namespace: `10.9.NET.1` and `fd09::NET:1` here, `.2` and `:2` there.
    pub(crate) fn cable(&self, other: &Netns, net: u8) {
        let (a, b) = (format!("c{net}a"), format!("c{net}b"));
        run(
            "ip",
            &["link", "add", &a, "netns", &self.0, "type", "veth", "peer", "name", &b, "netns", &other.0],
        );
        for (netns, dev, host) in [(&self.0, &a, 1), (&other.0, &b, 2)] {
            run("ip", &["-n", netns, "addr", "add", &format!("10.9.{net}.{host}/24"), "dev", dev]);
            run("ip", &["-n", netns, "addr", "add", &format!("fd09::{net}:{host}/112"), "dev", dev, "nodad"]);
            run("ip", &["-n", netns, "link", "set", dev, "up"]);
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}
