//! Requests to disks, compared with the kernel's own statistics of the device.

use crate::root::{events_until, find, follow};
use crate::support::{Dir, Netns, Pids, Setup, own_node, run, series, until};
use netskoop_api::{Event, Value};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A disk that is a file of a file system that can be made to wait. Gone when dropped.
pub(crate) struct Disk {
    dir: Dir,
    /// `loop3`.
    pub(crate) name: String,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        let dir = Dir::new();
        let (image, mount) = (dir.0.join("image"), dir.0.join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let (image, mount) = (image.to_str().unwrap(), mount.to_str().unwrap());
        run("mkfs.ext4", &["-q", "-F", image]);
        run("mount", &["-o", "loop", image, mount]);
        let mut disk = Disk { dir, name: String::new() };
        let file = disk.mount().join("disk");
        std::fs::write(&file, vec![7; 4 << 20]).unwrap();
        let name = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        disk.name = name.trim().strip_prefix("/dev/").unwrap().to_owned();
        disk
    }

    /// Where the file system is.
    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.0.join("mount")
    }

    fn wait(&self, wait: bool) {
        run("fsfreeze", &[if wait { "--freeze" } else { "--unfreeze" }, self.mount().to_str().unwrap()]);
    }

    /// Numbers of the kernel's: reads and writes, and the seconds that they took.
    fn numbers(&self) -> [f64; 4] {
        let text = std::fs::read_to_string(format!("/sys/block/{}/stat", self.name)).unwrap();
        let all: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        [all[0], all[4], all[3] / 1e3, all[7] / 1e3]
    }

    fn in_flight(&self) -> bool {
        let text = std::fs::read_to_string(format!("/sys/block/{}/inflight", self.name)).unwrap();
        text.split_whitespace().any(|count| count != "0")
    }

    /// Has somebody read or write blocks, one request for each.
    fn transfer(&self, netns: &Netns, write: bool, count: u32) -> Child {
        let device = format!("/dev/{}", self.name);
        let words = match write {
            true => ["if=/dev/zero".to_owned(), format!("of={device}"), "oflag=direct".to_owned()],
            false => [format!("if={device}"), "of=/dev/null".to_owned(), "iflag=direct".to_owned()],
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.0, "dd", "bs=4096", &format!("count={count}"), "conv=notrunc"]);
        command.args(words).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn blocks(&self, netns: &Netns, write: bool, count: u32) {
        assert!(self.transfer(netns, write, count).wait().unwrap().success());
    }

    /// Has somebody write a block that takes long: who it was, and for how long.
    pub(crate) fn slow_write(&self, netns: &Netns) -> (u32, RangeInclusive<Duration>) {
        self.wait(true);
        let before = Instant::now();
        let mut writer = self.transfer(netns, true, 1);
        until("it waits", || self.in_flight().then_some(()));
        let waits = Instant::now();
        std::thread::sleep(Duration::from_millis(120));
        let least = waits.elapsed();
        self.wait(false);
        assert!(writer.wait().unwrap().success());
        (writer.id(), least..=before.elapsed())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mount = self.mount();
        let mount = mount.to_str().unwrap();
        let device = format!("/dev/{}", self.name);
        let ends: [&[&str]; 3] =
            [&["fsfreeze", "--unfreeze", mount], &["losetup", "-d", &device], &["umount", mount]];
        for words in ends {
            // What was not done need not be undone.
            let _ = Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).status();
        }
    }
}

/// Whether an event tells of a write that took so long, by that process.
pub(crate) fn is_slow_write(
    event: &Event,
    disk: &Disk,
    (pid, took): &(u32, RangeInclusive<Duration>),
) -> bool {
    let Some(Value::Number(latency)) = event.fields.get("latency_ns") else { return false };
    let text = |field: &str| event.fields.get(field).map(Value::to_string).unwrap_or_default();
    (text("device"), text("operation"), text("bytes")) == (disk.name.clone(), "write".into(), "4096".into())
        && took.contains(&Duration::from_nanos(*latency))
        && event.process.as_ref().is_some_and(|process| process.pid == *pid && process.comm == "dd")
}

#[test]
fn requests_to_disks_are_told_and_counted_as_the_kernel_does() {
    own_node!(Pids::Shared);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    let options = "enabled = true\nslow = \"100ms\"\nper_device = true";
    let daemon = Setup::on_node().set("probes.biolatency", options).start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let disk = Disk::new();
    let before = disk.numbers();
    let mut follow = follow(&daemon, "&type=BIOLAT_100MS&entity=red");
    let slow = disk.slow_write(&red);
    events_until(&mut follow, &[], |event| {
        assert_eq!((event.kind.as_str(), event.probe.as_str()), ("BLOCK_IO_SLOW", "biolatency"));
        is_slow_write(event, &disk, &slow)
    });
    disk.blocks(&red, true, 70);
    disk.blocks(&blue, false, 40);
    let now = disk.numbers();
    let [reads, writes, read_seconds, write_seconds] = std::array::from_fn(|at| now[at] - before[at]);
    let text = daemon.scrape("/metrics?collect[]=biolatency");
    let value = |part: &str, entity: &str, operation: &str| {
        let labels = format!("operation=\"{operation}\",device=\"{}\"", disk.name);
        let name = "netskoop_biolatency_device_request_seconds";
        series(&text, &format!("{name}_{part}{{kind=\"netns\",name=\"{entity}\",{labels}}}"))
    };
    assert_eq!((value("count", "red", "write"), value("count", "blue", "read")), (Some(71.0), Some(40.0)));
    assert_eq!((value("count", "red", "read"), value("count", "blue", "write")), (None, None));
    assert_eq!((writes, reads), (71.0, 40.0));
    // The kernel looks at the clock a moment earlier, and shows milliseconds.
    let near = |ours: f64, kernels: f64| (ours - kernels).abs() < 0.003 + kernels * 0.1;
    let (write, read) = (value("sum", "red", "write").unwrap(), value("sum", "blue", "read").unwrap());
    assert!(near(write, write_seconds) && write > 0.12, "{write} {write_seconds}");
    assert!(near(read, read_seconds), "{read} {read_seconds}");
    let all = "netskoop_biolatency_request_seconds_count{kind=\"netns\",name=\"red\",operation=\"write\"}";
    assert_eq!(series(&text, all), Some(71.0));
    crate::golden::lint(&text, "netskoop");
}
