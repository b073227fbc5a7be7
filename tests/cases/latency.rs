//! Time lost inside the kernel, produced for real and compared with what others have measured of it.

use crate::root::{events_until, find, follow};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, until};
use netskoop_api::{Event, Value};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(crate) const PORT: u16 = 7410;

/// Lets each packet to a port (`udp dport 7`) walk past so many times so many rules at a hook.
pub(crate) fn slow_filter(netns: &Netns, hook: &str, to: &str, rules: u32) {
    let mut text = "add table inet slow; add chain inet slow leaf; add chain inet slow branch; ".to_owned();
    text += &format!("add chain inet slow {hook} {{ type filter hook {hook} priority 0; }}; ");
    for _ in 0..rules {
        text += "add rule inet slow leaf meta l4proto sctp drop; ";
        text += "add rule inet slow branch jump leaf; ";
        text += &format!("add rule inet slow {hook} {to} jump branch; ");
    }
    netns.run("nft", &[&text]);
}

pub(crate) fn number(event: &Event, field: &str) -> u64 {
    match event.fields.get(field) {
        Some(Value::Number(number)) => *number,
        other => panic!("{field} is {other:?}: {event:#?}"),
    }
}

/// How often a softirq has run, as the kernel counts it.
fn runs(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/softirqs").unwrap();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().map(|count| count.parse::<u64>().unwrap()).sum()
}

/// What all series that begin so add up to.
fn total(text: &str, series: &str) -> u64 {
    let ours = text.lines().filter(|line| line.starts_with(series));
    ours.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// Ends the sender, also if the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends one datagram after the other. The loopback device receives in the system call that sends, so the sender knows how
/// long each was on its way.
fn send_until(done: &AtomicBool, local: IpAddr, took: &Mutex<Vec<u64>>) {
    let socket = UdpSocket::bind((local, 0)).unwrap();
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        socket.send_to(b"hello", SocketAddr::new(local, PORT)).unwrap();
        took.lock().unwrap().push(u64::try_from(began.elapsed().as_nanos()).unwrap());
    }
}

/// Waits for an event of a run that took as long as a datagram was on its way; the answer is how many took 10 ms.
pub(crate) fn runs_are_told(daemon: &Daemon, took: &Mutex<Vec<u64>>) -> u64 {
    let mut seen = 0;
    events_until(&mut follow(daemon, "&type=SOFTIRQ_EXEC_SLOW"), &[], |event| {
        assert_eq!((event.probe.as_str(), event.process.as_ref()), ("softirq", None), "{event:#?}");
        let latency = number(event, "latency_ns");
        if event.fields.get("type") != Some(&Value::Text("net_rx".into())) {
            return false;
        }
        seen += u64::from(latency >= 10_000_000);
        let took = took.lock().unwrap();
        seen > 0 && took.iter().any(|took| (took - took / 10..*took).contains(&latency))
    });
    seen
}

/// Meanwhile interrupts raise others, which have to wait for the sender: waits for an event that tells so.
fn holders_are_told(daemon: &Daemon) {
    events_until(&mut follow(daemon, "&type=NETSOFTIRQ_SCHED_SLOW"), &[], |event| {
        let latency = number(event, "latency_ns");
        assert!(latency >= 1_000_000, "{event:#?}");
        let Some(process) = &event.process else { return false };
        let held = number(event, "held_ns");
        assert!(held <= latency, "{event:#?}");
        let in_red = event.entity.as_ref().is_some_and(|entity| entity.name == "red");
        process.pid == std::process::id() && in_red && held > latency / 2
    });
}

/// Has datagrams arrive in a namespace, v4 and v6, while `watch` is given how long each was on its way; the answer is the
/// sum of what it says.
pub(crate) fn while_datagrams_arrive(netns: &Netns, watch: impl Fn(&Mutex<Vec<u64>>) -> u64) -> u64 {
    let one = |local| {
        let (took, done) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| netns.enter(|| send_until(&done, local, &took)));
            let _done = Done(&done);
            watch(&took)
        })
    };
    one(IpAddr::V4(Ipv4Addr::LOCALHOST)) + one(IpAddr::V6(Ipv6Addr::LOCALHOST))
}

#[test]
fn softirqs_that_run_long_are_told_and_so_is_who_holds_others_up() {
    own_node!(Pids::Shared);
    let red = Netns::new("red");
    // That many take milliseconds.
    slow_filter(&red, "input", &format!("udp dport {PORT}"), 120);
    let all = r#"["hi", "timer", "net_tx", "net_rx", "block", "tasklet", "sched", "hrtimer", "rcu"]"#;
    let options = format!("enabled = true\nslow = \"1ms\"\nvectors = {all}");
    let daemon = Setup::on_node().set("probes.softirq", &options).start();
    let inode = red.inode();
    daemon.entities_until("red", |now| find(now, inode).is_some());
    let seen = while_datagrams_arrive(&red, |took| {
        let seen = runs_are_told(&daemon, took);
        holders_are_told(&daemon);
        seen
    });
    // The older systems counted what took 10 ms.
    let old = daemon.scrape("/metrics?names=kubeskoop&collect[]=softirq");
    let counted = |name: &str| {
        let mut lines = old.lines().filter(|line| line.starts_with(&format!("kubeskoop_softirq_{name}{{")));
        let line =
            lines.find(|line| line.contains("softirq_type=\"net_rx\"")).expect("a row for each vector");
        total(line, "kubeskoop_softirq_")
    };
    assert!(seen > 0 && counted("excuteslow") >= seen, "{seen}: {old}");
    assert!(counted("excuteslow100ms") <= counted("excuteslow"), "{old}");
    crate::golden::lint(&old, "kubeskoop");
}

#[test]
fn every_run_of_a_softirq_is_in_the_histogram() {
    own_node!(Pids::Shared);
    let red = Netns::new("red");
    let daemon = Setup::on_node().set("probes.softirq", "enabled = true\nper_cpu = true").start();
    let look = || {
        let before = runs("NET_RX");
        let text = daemon.scrape("/metrics");
        (before, total(&text, "netskoop_softirq_execution_seconds_count{"), runs("NET_RX"), text)
    };
    let first = until("runs are counted", || Some(look()).filter(|now| now.1 > 0));
    red.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for _ in 0..5000 {
            socket.send_to(b"hello", (Ipv4Addr::LOCALHOST, PORT)).unwrap();
        }
    });
    let second = until("these too", || Some(look()).filter(|now| now.1 >= first.1 + 5000));
    // What the kernel had counted before the probe did is the same number at any time; on each CPU one may be under way.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let earlier = |look: &(u64, u64, u64, String)| (look.0 - look.1 - cpus)..=(look.2 - look.1 + cpus);
    let (one, other) = (earlier(&first), earlier(&second));
    assert!(one.start() <= other.end() && other.start() <= one.end(), "{one:?} {other:?}");
    // Few can not have been measured, and no CPU is left out.
    let text = second.3;
    let waited = total(&text, "netskoop_softirq_schedule_seconds_count{");
    assert!(waited <= second.1 && waited >= second.1 * 9 / 10, "{waited} of {}", second.1);
    assert_eq!(total(&text, "netskoop_softirq_cpu_execution_seconds_count{"), second.1);
    assert!(!text.contains("vector=\"timer\""), "only what is asked for");
    crate::golden::lint(&text, "netskoop");
    let closed = daemon.scrape("/metrics?names=inspector&collect[]=softirq");
    assert!(total(&closed, "inspector_node_netsoftirq{") >= second.1, "{closed}");
    crate::golden::lint(&closed, "inspector");
}
