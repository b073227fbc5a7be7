//! Tasks and what they wait for.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, modprobe, run};
use crate::disks::{Disk, is_slow_write};
use crate::support::{Netns, until};
use crate::tasks::{Hog, is_held_up};
use netskoop_api::{Event, Value};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub(super) fn two_for_one_cpu(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "busy", 20);
    lab.option("tasklatency", "slow", "1ms");
    let (near, far) = (Hog::start(&pair.near), Hog::start(&pair.far));
    lab.event("TASK_WAIT_SLOW", &pair.near, |event| is_held_up(event, &near, &far));
    lab.event("TASK_WAIT_SLOW", &pair.far, |event| is_held_up(event, &far, &near));
    for netns in [&pair.near, &pair.far] {
        lab.wait("tasklatency", "wait_seconds_sum", netns, "", |value| value > 0.2);
    }
    Seen("TASK_WAIT_SLOW in two namespaces with the task that had the CPU; histogram".to_owned())
}

pub(super) fn slow_disk(lab: &Lab) -> Outcome {
    assert!(modprobe("loop"), "no module loop");
    let pair = Pair::new(lab, "disk", 21);
    let disk = Disk::new();
    // What the programs themselves are read from is another disk.
    lab.option("biolatency", "per_device", "true");
    let of = |operation: &str| format!(",operation=\"{operation}\",device=\"{}\"", disk.name);
    let slow = disk.slow_write(&pair.near);
    lab.event("BLOCK_IO_SLOW", &pair.near, |event| is_slow_write(event, &disk, &slow));
    disk.blocks(&pair.near, true, 20);
    disk.blocks(&pair.far, false, 30);
    let metric = "device_request_seconds_count";
    lab.wait("biolatency", metric, &pair.near, &of("write"), |value| value == 21.0);
    lab.wait("biolatency", metric, &pair.far, &of("read"), |value| value == 30.0);
    let written =
        |netns: &Netns| lab.value("biolatency", "request_seconds_count", &netns.0, ",operation=\"write\"");
    assert_eq!((written(&pair.near), written(&pair.far)), (Some(21.0), None));
    Seen("BLOCK_IO_SLOW as long as measured, with the process; histogram of two namespaces".to_owned())
}

/// A cgroup that keeps an account of I/O. Removed when dropped.
struct Account(&'static Path);

impl Account {
    fn new() -> Account {
        std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+io +memory").unwrap();
        let path = Path::new("/sys/fs/cgroup/written-later");
        std::fs::create_dir(path).unwrap();
        Account(path)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let _ = std::fs::remove_dir(self.0);
    }
}

/// What a process leaves in memory is written by the kernel, and still is whose it was.
pub(super) fn written_later(lab: &Lab) -> Outcome {
    assert!(modprobe("loop"), "no module loop");
    let pair = Pair::new(lab, "later", 22);
    let (disk, account) = (Disk::new(), Account::new());
    lab.option("biolatency", "per_device", "true");
    // Inside, the hierarchy of cgroups is not mounted.
    let outer = "echo 0 >\"$0/cgroup.procs\" && exec ip netns exec \"$1\" sh -c \"$2\" \"$3\"";
    let inner = "dd if=/dev/zero of=\"$0/file\" bs=64k count=32 2>/dev/null && echo done && read line";
    let mut command = Command::new("sh");
    command.args(["-c", outer]).arg(account.0).args([&*pair.near.0, inner]).arg(disk.mount());
    let mut writer = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(writer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    // By now it is known whose cgroup it is.
    let writes = || lab.value("biolatency", "request_seconds_count", &pair.near.0, ",operation=\"write\"");
    let before = writes().unwrap_or(0.0);
    Command::new("sync").arg("-f").arg(disk.mount()).status().unwrap();
    lab.wait("biolatency", "request_seconds_count", &pair.near, ",operation=\"write\"", |value| {
        value > before
    });
    writer.stdin.take().unwrap().write_all(b"\n").unwrap();
    writer.wait().unwrap();
    Seen("writes by the kernel, under the name of whoever left them in memory".to_owned())
}

/// A device of the emulated machine gets new addresses, in the node's own namespace and in another one.
pub(super) fn commands_to_a_device(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "virt", 23);
    lab.option("virtcmdlatency", "slow", "1us");
    let device = ",device=\"eth0\"";
    let count =
        |netns: &str| lab.value("virtcmdlatency", "command_seconds_count", netns, device).unwrap_or(0.0);
    let host = count("host");
    run("ip", &["link", "set", "eth0", "address", "52:54:00:00:00:07"]);
    until("the host has sent one", || (count("host") > host).then_some(()));
    run("ip", &["link", "set", "eth0", "netns", &pair.near.0]);
    let host = count("host");
    let before = Instant::now();
    let mut command = Command::new("ip");
    let mut ip = command
        .args(["-n", &pair.near.0, "link", "set", "eth0", "address", "52:54:00:00:00:08"])
        .spawn()
        .unwrap();
    assert!(ip.wait().unwrap().success());
    let most = before.elapsed().as_nanos();
    let text = |event: &Event, field: &str| event.fields.get(field).map(Value::to_string).unwrap_or_default();
    let event = lab.event("VIRTCMDEXCUTE", &pair.near, |event| text(event, "class") == "mac");
    assert_eq!((text(&event, "device"), text(&event, "command")), ("eth0".to_owned(), "1".to_owned()));
    assert!(
        matches!(event.fields.get("latency_ns"), Some(Value::Number(n)) if u128::from(*n) < most),
        "{event:#?}"
    );
    let process = event.process.as_ref().expect("whoever waits for the answer is known");
    assert_eq!((process.pid, &*process.comm), (ip.id(), "ip"));
    assert_eq!(count("host"), host, "the host has not sent it");
    lab.wait("virtcmdlatency", "command_seconds_count", &pair.near, device, |value| value >= 1.0);
    assert_eq!(lab.value("virtcmdlatency", "command_seconds_count", &pair.far.0, device), None);
    let old = lab.daemon.scrape("/metrics?names=inspector&collect[]=virtcmdlatency");
    assert!(
        old.contains("inspector_node_virtsendcmdlat{") && old.contains("inspector_pod_virtcmdlatency100ms{"),
        "{old}"
    );
    run("ip", &["-n", &pair.near.0, "link", "set", "eth0", "netns", "1"]);
    Seen(
        "VIRTIO_COMMAND_SLOW and histogram of the namespace that has the device, with the process".to_owned(),
    )
}
