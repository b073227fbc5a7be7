//! Time that tasks lose while they could run, compared with what the kernel has counted of it.

use crate::root::{events_until, find, follow};
use crate::support::{Daemon, Netns, Pids, Process, Setup, own_node, series, until};
use netskoop_api::{Event, Value};
use std::process::Command;

/// A process in a namespace that takes all it gets of the first CPU.
pub(crate) struct Hog(Process);

impl Hog {
    pub(crate) fn start(netns: &Netns) -> Hog {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.0, "taskset", "-c", "0", "sh", "-c", "while :; do :; done"]);
        let hog = Process::start(&mut command);
        until("it is at work", || (hog.comm() == "sh" && hog.state() == 'R').then_some(()));
        Hog(hog)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Seconds that it could have run and did not, as the kernel counts them.
    fn waited(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<f64>().unwrap() / 1e9
    }
}

/// Whether an event tells that one had to wait while the other had the CPU.
pub(crate) fn is_held_up(event: &Event, waits: &Hog, runs: &Hog) -> bool {
    let before = event.fields.get("before_pid") == Some(&Value::Number(runs.pid().into()));
    let process =
        event.process.as_ref().is_some_and(|process| process.pid == waits.pid() && process.comm == "sh");
    before
        && process
        && event.fields.get("before_comm") == Some(&Value::Text("sh".to_owned()))
        && event.fields.get("cause") == Some(&Value::Text("preempted".to_owned()))
        && event.fields.get("cpu") == Some(&Value::Number(0))
}

#[test]
fn tasks_that_wait_for_a_cpu_are_told_and_their_time_is_the_kernels() {
    own_node!(Pids::Shared);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    let daemon = Setup::on_node().set("probes.tasklatency", "enabled = true\nslow = \"1ms\"").start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let hogs = [(&red, Hog::start(&red)), (&blue, Hog::start(&blue))];
    hogs.iter().for_each(|(_, hog)| hog.0.stop());
    let before = look(&daemon, &hogs);
    let mut follow = follow(&daemon, "&type=TASK_WAIT_SLOW");
    hogs.iter().for_each(|(_, hog)| hog.0.go_on());
    let mut missing = vec![("red", &hogs[0].1, &hogs[1].1), ("blue", &hogs[1].1, &hogs[0].1)];
    events_until(&mut follow, &[], |event| {
        let Some(Value::Number(waited)) = event.fields.get("waited_ns") else { panic!("{event:#?}") };
        assert!(*waited >= 1_000_000 && event.probe == "tasklatency", "{event:#?}");
        let of = |netns: &str| event.entity.as_ref().is_some_and(|entity| entity.name == netns);
        missing.retain(|(netns, waits, runs)| !(of(netns) && is_held_up(event, waits, runs)));
        missing.is_empty()
    });
    until("they have waited for a while", || hogs.iter().all(|(_, hog)| hog.waited() > 0.5).then_some(()));
    hogs.iter().for_each(|(_, hog)| hog.0.stop());
    for ((ours, kernels), (ours_before, kernels_before)) in look(&daemon, &hogs).into_iter().zip(before) {
        let (ours, kernels) = (ours - ours_before, kernels - kernels_before);
        // It looks at its clock at other moments, between which this machine may not run at all.
        assert!((ours - kernels).abs() < kernels * 0.1, "{ours} {kernels}");
    }
    crate::golden::lint(&daemon.scrape("/metrics?collect[]=tasklatency"), "netskoop");
    // Nobody else waits there, and the host does.
    let text = daemon.scrape("/metrics?collect[]=procsched");
    let host = series(&text, "netskoop_tasklatency_wait_seconds_count{kind=\"host\",name=\"host\"}");
    assert!(host.is_some_and(|host| host > 0.0), "{text}");
}

/// How long they have waited: as the probe shows it, and as the kernel does.
fn look(daemon: &Daemon, hogs: &[(&Netns, Hog)]) -> Vec<(f64, f64)> {
    let text = daemon.scrape("/metrics?collect[]=tasklatency");
    let of = |(netns, hog): &(&Netns, Hog)| {
        let name = format!("netskoop_tasklatency_wait_seconds_sum{{kind=\"netns\",name=\"{}\"}}", netns.0);
        (series(&text, &name).unwrap_or(0.0), hog.waited())
    };
    hogs.iter().map(of).collect()
}
