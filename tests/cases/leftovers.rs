//! What is left in the kernel and in the daemon when probes were on and are off again, and when the daemon was killed: nothing.
//! BPF sees the whole machine, where other tests load programs at the same time: what is a daemon's own its descriptors tell.

use crate::support::{Daemon, Pids, Setup, own_node, programs_vanish, run, tests_dir, until};
use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use netskoop_api::{ProbeInfo, StateName};
use netskoop_bpf::flow::FlowSkelBuilder;
use netskoopd::kernel::netlink::filters::{self, Direction};
use netskoopd::kernel::netlink::{Family, Netlink};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process::Command;

/// Times that each probe is switched on and off, one after the other: together more than 200 switches.
const TURNS: usize = 7;
/// Times that one of them is, which is loaded quickly.
const TIMES: usize = 200;
const QUICK: &str = "softirq";

/// Numbers of BPF programs, maps and links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// Those that a daemon holds, and the bytes that the kernel keeps for its maps.
    fn of(daemon: &Daemon) -> (Objects, u64) {
        let (mut held, mut bytes) = (Objects::default(), BTreeMap::new());
        for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).unwrap() {
            // A descriptor may be closed by now.
            let Ok(text) = std::fs::read_to_string(entry.unwrap().path()) else { continue };
            let number = |key: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
                line.map(|number| number.trim().parse::<u64>().unwrap())
            };
            let id = |key: &str| number(key).map(|id| u32::try_from(id).unwrap());
            held.programs.extend(id("prog_id"));
            held.links.extend(id("link_id"));
            // A link to walk over a map tells of that map as well.
            held.maps.extend(id("map_id"));
            bytes.extend(id("map_id").zip(number("memlock")));
        }
        (held, bytes.values().sum())
    }

    /// Those among them that the kernel still has.
    fn still_there(&self) -> Objects {
        let all = Objects {
            programs: ProgInfoIter::default().map(|program| program.id).collect(),
            maps: MapInfoIter::default().map(|map| map.id).collect(),
            links: LinkInfoIter::default().map(|link| link.id).collect(),
        };
        Objects {
            programs: &self.programs & &all.programs,
            maps: &self.maps & &all.maps,
            links: &self.links & &all.links,
        }
    }

    fn add(&mut self, more: Objects) {
        self.programs.extend(more.programs);
        self.maps.extend(more.maps);
        self.links.extend(more.links);
    }

    fn without(&self, other: &Objects) -> Objects {
        Objects {
            programs: &self.programs - &other.programs,
            maps: &self.maps - &other.maps,
            links: &self.links - &other.links,
        }
    }

    /// Waits until the kernel has freed them all, which it does a moment after they were let go.
    #[track_caller]
    fn vanish(&self) {
        until("the kernel has freed all of it", || (self.still_there() == Objects::default()).then_some(()));
    }
}

/// How many descriptors of each kind a daemon has, and how many threads.
fn parts(daemon: &Daemon) -> (BTreeMap<String, usize>, usize) {
    let proc = PathBuf::from(format!("/proc/{}", daemon.pid()));
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(proc.join("fd")).unwrap() {
        if let Ok(target) = std::fs::read_link(entry.unwrap().path()) {
            let kind = target.to_string_lossy().split(":[").next().unwrap().to_owned();
            *kinds.entry(kind).or_default() += 1;
        }
    }
    (kinds, std::fs::read_dir(proc.join("task")).unwrap().count())
}

/// Switches a probe; how it stands then.
fn switch(daemon: &Daemon, probe: &str, on: bool) -> ProbeInfo {
    daemon.change(probe, &format!(r#"{{"enabled":{on},"runtime":true}}"#)).probe
}

/// With programs on an interface for the probe `flow`.
fn setup() -> Setup {
    Setup::on_node().set("probes.flow", "devices = [\"lo\"]")
}

/// Names of the probes that load programs on this kernel. They are all off afterwards.
fn with_programs(daemon: &Daemon) -> Vec<String> {
    let all: Vec<ProbeInfo> = daemon.json("/v1/probes");
    let loads = |probe: &ProbeInfo| {
        let tried = daemon.patch(&probe.name, r#"{"enabled":true,"runtime":true}"#);
        let loads = tried.status == 200 && !daemon.probe(&probe.name).state.programs.is_empty();
        if loads {
            switch(daemon, &probe.name, false);
        }
        loads
    };
    all.into_iter().filter(loads).map(|probe| probe.name).collect()
}

#[test]
fn probes_switched_hundreds_of_times_leave_nothing() {
    own_node!(Pids::Own);
    let daemon = setup().start();
    let probes = with_programs(&daemon);
    assert!(probes.len() >= 15, "{probes:?}");
    let ((own, bytes), before) = until("what is known only after the first time has come", || {
        let now = (Objects::of(&daemon), parts(&daemon));
        let rest = now.0.0.still_there() == now.0.0 && !now.0.0.programs.is_empty();
        // The threads that load and unload end when they have had nothing to do for a while.
        (rest && now.1.1 <= 12).then_some(now)
    });
    let mut seen = Objects::default();
    let mut once = |probe: &str| {
        let on = switch(&daemon, probe, true).state;
        assert_eq!(on.state, StateName::On, "{probe}: {on:?}");
        let held = Objects::of(&daemon).0.without(&own);
        assert!(!held.maps.is_empty() && !held.links.is_empty(), "{probe}: {held:?}");
        assert!(on.programs.iter().all(|id| held.programs.contains(id)), "{probe}: {on:?} {held:?}");
        seen.add(held);
        let off = switch(&daemon, probe, false).state;
        assert_eq!((off.state, off.programs), (StateName::Off, vec![]), "{probe}");
    };
    for _ in 0..TURNS {
        probes.iter().for_each(|probe| once(probe));
    }
    (0..TIMES).for_each(|_| once(QUICK));
    assert!(seen.programs.len() >= TURNS * probes.len() + TIMES);
    seen.vanish();
    until("it has what it had before, and no more", || {
        let (kinds, threads) = parts(&daemon);
        let same = kinds.iter().all(|(kind, count)| before.0.get(kind).is_some_and(|had| count <= had));
        (Objects::of(&daemon) == (own.clone(), bytes) && same && threads <= before.1).then_some(())
    });
}

#[test]
fn a_daemon_that_is_killed_leaves_no_program_map_or_link() {
    own_node!(Pids::Own);
    let mut daemon = setup().start();
    for probe in with_programs(&daemon) {
        assert_eq!(switch(&daemon, &probe, true).state.state, StateName::On, "{probe}");
    }
    let (held, bytes) = Objects::of(&daemon);
    let programs = daemon.programs();
    assert!(programs.len() >= 40 && programs.iter().all(|id| held.programs.contains(id)), "{held:?}");
    assert!(held.links.len() >= 40 && bytes > 1 << 20, "{bytes}: {held:?}");
    assert_eq!(held.still_there(), held, "what is asked for by number is found");
    daemon.kill();
    held.vanish();
}

/// What hangs on the loopback interface of the node.
fn on_loopback() -> String {
    let filters = ["ingress", "egress"].map(|way| run("tc", &["filter", "show", "dev", "lo", way]));
    run("tc", &["qdisc", "show", "dev", "lo"]) + &filters.concat()
}

/// Does what a daemon does before Linux 6.6, where there are filters only, and ends like one that is killed: they stay. Numbers
/// of their programs.
fn leave_filters() -> [u32; 2] {
    let mut storage = MaybeUninit::uninit();
    let open = FlowSkelBuilder::default().open(&mut storage).unwrap();
    let flow = open.load().unwrap();
    let (into, out) = (flow.progs.netskoop_in.as_fd(), flow.progs.netskoop_out.as_fd());
    let mut netlink = Netlink::open(Family::Route).unwrap();
    filters::add(&mut netlink, 1, [(Direction::In, into), (Direction::Out, out)]).unwrap();
    [into, out].map(|program: BorrowedFd<'_>| {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap();
        line.trim().parse().unwrap()
    })
}

#[test]
fn filters_of_a_killed_daemon_go_with_its_unit_and_with_the_next_start() {
    own_node!(Pids::Own);
    let clean = on_loopback();
    let unit = std::fs::read_to_string(tests_dir().join("../systemd/netskoopd.service")).unwrap();
    let after = unit.lines().find_map(|line| line.strip_prefix("ExecStopPost=")).unwrap();
    let arguments: Vec<&str> = after.split(' ').skip(1).collect();
    let by_unit = || {
        let cleaned = Command::new(env!("CARGO_BIN_EXE_netskoopd")).args(&arguments).status().unwrap();
        assert!(cleaned.success());
    };
    let by_start = || {
        setup().start().logged("filters of an earlier daemon were removed");
    };
    for remove in [&by_unit as &dyn Fn(), &by_start] {
        let programs = leave_filters();
        assert_ne!(on_loopback(), clean);
        remove();
        assert_eq!(on_loopback(), clean);
        programs_vanish(&programs);
    }
}
