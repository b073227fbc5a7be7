//! Packets dropped as fast as the machine can, and packets that nothing happens to: what is counted, told and run then.

use crate::anomalies::{kernel, total, two};
use crate::root::{address, find, follow};
use crate::support::{Daemon, Lines, Netns, Pids, Setup, own_node, until};
use crate::waiting::connection;
use netskoop_api::{Event, ProbeInfo, StateName, StreamCounts, Value};
use netskoopd::kernel::bpf::count_runs;
use netskoopd::probes::PROBES;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

const DROPS: u64 = 30_000;
const PACKETS: u64 = 2_000;

/// A socket whose buffer is full, and one that sends to it.
struct Full {
    _receiver: UdpSocket,
    sender: UdpSocket,
}

impl Full {
    fn new(netns: &Netns, at: &str) -> Full {
        netns.enter(|| {
            let receiver = UdpSocket::bind(at).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 2048).unwrap();
            let any: SocketAddr = at.parse().unwrap();
            let sender = UdpSocket::bind((any.ip(), 0)).unwrap();
            sender.connect(any).unwrap();
            Full { _receiver: receiver, sender }
        })
    }

    fn send(&self) {
        assert_eq!(self.sender.send(b"hello").unwrap(), 5);
    }
}

/// Datagrams that the kernel counts as lost for want of room in a socket's buffer.
fn lost(netns: &Netns) -> u64 {
    let text = netns.run("cat", &["/proc/net/snmp6"]);
    let v6 = text.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors")).unwrap();
    kernel(netns, "Udp.RcvbufErrors") + v6.trim().parse::<u64>().unwrap()
}

fn counted(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.scrape("/metrics?collect[]=packetloss");
    total(&text, "netskoop_packetloss_packets_total", name, "reason=\"SOCKET_RCVBUFF\"")
}

/// How many drops the events of a namespace stand for: themselves, and those withheld before them.
fn told(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.ask(&format!("/v1/events?entity={name}&type=PACKET_DROP")).text();
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    events.map(|event| 1 + event.suppressed).sum()
}

/// The CPUs that this thread may run on.
fn own_cpus() -> Vec<usize> {
    let own = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|cpu| own.is_set(*cpu)).collect()
}

/// Stays on one CPU from now on: what goes through the loopback device is dropped there.
fn stay_on(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).unwrap();
}

/// Waits until what the programs wrote is in the history.
fn settled(daemon: &Daemon) {
    until("the events have come through", || {
        let events = daemon.status().events;
        let through = events.delivered + events.overrun + events.malformed;
        (events.received >= events.kernel.submitted && through >= events.received).then_some(())
    });
}

#[test]
fn a_storm_is_counted_to_the_packet_and_each_event_is_told_or_withheld() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    let daemon = Setup::on_node().set("probes.packetloss", "stack = true").start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let sockets = |netns| ["127.0.0.1:7300", "[::1]:7300"].map(|at| Full::new(netns, at));
    let (reds, blues) = (sockets(&red), sockets(&blue));
    // At once in both, but one after the other in each: of two CPUs that ask for the last free place both may get it.
    std::thread::scope(|scope| {
        for full in [&reds, &blues] {
            scope.spawn(move || full.iter().for_each(|full| (0..DROPS).for_each(|_| full.send())));
        }
    });
    let cpus = own_cpus();
    for (netns, name, [full, _]) in [(&red, "red", &reds), (&blue, "blue", &blues)] {
        until("the kernel's count and ours agree", || (counted(&daemon, name) == lost(netns)).then_some(()));
        assert!(lost(netns) > 2 * DROPS - 100, "{name} lost {}", lost(netns));
        // What each CPU has withheld is known with its next drop, and told with the next event.
        for cpu in &cpus {
            stay_on(*cpu);
            full.send();
        }
        until("each drop is told of, or withheld before one that is", || {
            full.send();
            settled(&daemon);
            let told = told(&daemon, name);
            assert!(told <= lost(netns), "{told} drops are told of {name}, which had {}", lost(netns));
            (told == lost(netns)).then_some(())
        });
    }
    until("every event is accounted for", || {
        let counts: StreamCounts = daemon.probe("packetloss").state.stream.unwrap();
        let whole = counts.seen == counts.submitted + counts.suppressed + counts.ring_full;
        let enough = counts.seen + counts.missed >= 4 * DROPS - 200;
        (whole && enough && counts.map_full == 0).then_some(())
    });
    let text = daemon.ask("/v1/events?type=PACKET_DROP").text();
    assert!(text.lines().count() < 4000, "the limit holds: {} events", text.lines().count());
}

/// Runs of a program so far.
fn runs(id: u32) -> u64 {
    let program = libbpf_rs::Program::fd_from_id(id).unwrap();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("run_cnt:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn what_is_on_by_default_does_not_run_for_packets_that_nothing_happens_to() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(41, Setup::on_node());
    let hooked: Vec<ProbeInfo> = daemon.json::<Vec<ProbeInfo>>("/v1/probes");
    let hooked: Vec<ProbeInfo> =
        hooked.into_iter().filter(|probe| probe.default_on && !probe.state.programs.is_empty()).collect();
    let names: Vec<&str> = hooked.iter().map(|probe| &*probe.name).collect();
    assert_eq!(names, ["tcpreset", "tcpretrans", "packetloss"]);
    let ids: Vec<u32> = hooked.iter().flat_map(|probe| probe.state.programs.clone()).collect();
    let _counting = count_runs().unwrap();
    for version in [4, 6] {
        let target = address(version, 41, 2, 7410);
        let receiver = blue.enter(|| UdpSocket::bind(target).unwrap());
        let sender = red.enter(|| UdpSocket::bind(address(version, 41, 1, 0)).unwrap());
        let (mut client, mut server) = connection(&red, &blue, target);
        // The programs see the whole machine: something may go wrong elsewhere meanwhile, but not each time.
        until("nothing runs", || {
            let before: Vec<u64> = ids.iter().map(|id| runs(*id)).collect();
            for _ in 0..PACKETS {
                sender.send_to(b"ping", target).unwrap();
                receiver.recv(&mut [0; 8]).unwrap();
                client.write_all(b"ping").unwrap();
                server.read_exact(&mut [0; 4]).unwrap();
            }
            let after: Vec<u64> = ids.iter().map(|id| runs(*id)).collect();
            (before == after).then_some(())
        });
    }
    // They do run where something goes wrong.
    let before: u64 = ids.iter().map(|id| runs(*id)).sum();
    red.enter(|| UdpSocket::bind(address(4, 41, 1, 0)).unwrap())
        .send_to(b"ping", address(4, 41, 2, 7411))
        .unwrap();
    until("a drop runs one", || (ids.iter().map(|id| runs(*id)).sum::<u64>() > before).then_some(()));
}

#[test]
fn in_a_storm_above_the_budget_events_are_few_and_everything_is_counted() {
    own_node!(Pids::Own);
    let blue = Netns::new("blue");
    let setup =
        Setup::on_node().set("limits", "bpf_cpu = \"0.05%\"").set("probes.packetloss", "stack = true");
    let daemon = setup.start();
    daemon.entities_until("blue", |now| find(now, blue.inode()).is_some());
    let mut follow = follow(&daemon, "&type=PROBE_THROTTLED");
    let full = Full::new(&blue, "127.0.0.1:7300");
    let done = AtomicBool::new(false);
    let event = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                full.send();
            }
        });
        let event = std::panic::catch_unwind(AssertUnwindSafe(|| {
            loop {
                let line = follow.next_line().expect("the stream goes on");
                let event: Event = serde_json::from_str(&line).unwrap();
                if event.probe == "packetloss" {
                    break event;
                }
            }
        }));
        done.store(true, Ordering::Relaxed);
        event.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let Some(Value::Text(reason)) = event.fields.get("reason") else { panic!("{event:#?}") };
    assert!(reason.contains("limits.bpf_cpu allows 0.05%"), "{reason}");
    let state = daemon.probe("packetloss").state;
    assert_eq!(state.state, StateName::On);
    assert_eq!(*reason, format!("packetloss: {}", state.reason.as_ref().unwrap()));
    assert!(state.bpf_cpu_ratio.is_some(), "{state:?}");
    let text = daemon.scrape("/metrics");
    assert!(text.contains("\nnetskoop_probe_throttled{probe=\"packetloss\"} 1\n"), "{text}");
    // It was not loaded anew: what it had counted before is still there.
    until("the kernel's count and ours agree", || (counted(&daemon, "blue") == lost(&blue)).then_some(()));
    let events = |text: String| {
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap()).collect::<Vec<Event>>()
    };
    until("what is told now has no stack", || {
        full.send();
        let last = events(daemon.ask("/v1/events?entity=blue&type=PACKET_DROP").text()).pop();
        last.filter(|last| last.stack.is_empty())
    });
    // Whoever asks for it gets all of it again at once.
    daemon.change("packetloss", r#"{"enabled":true,"runtime":true}"#);
    assert_eq!(daemon.probe("packetloss").state.reason, None);
    until("what is told now has a stack", || {
        full.send();
        let last = events(daemon.ask("/v1/events?entity=blue&type=PACKET_DROP").text()).pop();
        last.filter(|last| !last.stack.is_empty())
    });
    assert_eq!(counted(&daemon, "blue"), lost(&blue));
}

/// What the maps of a process take in the kernel, in KiB.
fn maps_kib(pid: u32) -> u64 {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|number| number.trim().parse::<u64>().unwrap())
    };
    // One map may have several descriptors.
    let maps: BTreeMap<u64, u64> =
        texts.filter_map(|text| Some((field(&text, "map_id")?, field(&text, "memlock")?))).collect();
    maps.values().sum::<u64>() / 1024
}

#[test]
fn the_maps_of_all_probes_are_small() {
    own_node!(Pids::Own);
    // The default set, and all probes; on a machine of up to 32 GiB.
    const LIMITS: [u64; 2] = [3_500, 21_500];
    let all = PROBES.iter().filter(|probe| probe.hooks.is_some());
    let all = all.fold(Setup::on_node(), |setup, probe| {
        setup.set(String::leak(format!("probes.{}", probe.name)), "enabled = true")
    });
    let memory = rustix::system::sysinfo();
    let memory = memory.totalram as u64 * u64::from(memory.mem_unit);
    let times = memory.div_ceil(32 << 30).clamp(1, 16).next_power_of_two();
    for (setup, limit) in [Setup::on_node(), all].into_iter().zip(LIMITS) {
        let daemon = setup.start();
        let found = maps_kib(daemon.pid());
        // Where less is found than the ring takes, nothing was found.
        assert!((512..=limit * times).contains(&found), "{found} KiB, at most {limit} times {times}");
    }
}
