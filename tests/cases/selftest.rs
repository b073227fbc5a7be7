//! `netskoopctl selftest`: everything that it makes go wrong is found, and nothing of it is left.

use crate::support::{Daemon, Pids, Setup, error_of, exchange, own_node, run, until};
use netskoop_api::{Event, ProbeInfo, SelfCheck, SelfResult, SelfTest, StateName};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Those that are off by default.
const OFF: [&str; 19] = [
    "probes.tcptwrcv",
    "probes.tcpconnect",
    "probes.tcprtt",
    "probes.softirq",
    "probes.netiftxlat",
    "probes.socketlatency",
    "probes.kernellatency",
    "probes.listen",
    "probes.dns",
    "probes.netanomaly",
    "probes.tasklatency",
    "probes.biolatency",
    "probes.virtcmdlatency",
    "probes.flow",
    "probes.cpu",
    "probes.io",
    "probes.neigh",
    "probes.udplite",
    "probes.icmp",
];

fn all_on() -> Setup {
    let on = |setup: Setup, probe| setup.set(probe, "enabled = true");
    OFF.into_iter().fold(Setup::on_node(), on).set("probes.listen", "system_calls = true")
}

fn selftest(daemon: &Daemon) -> SelfTest {
    let answer = exchange(daemon.unix(), "POST", "/v1/selftest", &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// That no check failed; else with all that may have kept an event away.
#[track_caller]
fn passes(daemon: &Daemon, test: &SelfTest) {
    let failed: Vec<_> = test.checks.iter().filter(|check| check.result == SelfResult::Failed).collect();
    assert!(test.passed && failed.is_empty(), "{failed:#?}\n{:#?}", daemon.status().events);
}

fn of<'a>(test: &'a SelfTest, probe: &str) -> Vec<&'a SelfCheck> {
    test.checks.iter().filter(|check| check.probe == probe).collect()
}

/// Namespaces of the threads of a process, and how many descriptors it has.
fn held(daemon: &Daemon) -> (BTreeSet<String>, usize) {
    let process = Path::new("/proc").join(daemon.pid().to_string());
    let threads = process.join("task").read_dir().unwrap().flatten();
    let links = threads.filter_map(|thread| thread.path().join("ns/net").read_link().ok());
    let spaces = links.map(|link| link.display().to_string()).collect();
    (spaces, process.join("fd").read_dir().unwrap().count())
}

/// What it holds when it has done everything once that makes it hold something.
fn quiet(daemon: &Daemon) -> (BTreeSet<String>, usize) {
    daemon.scrape("/metrics?set=full");
    daemon.status();
    until("a quiet daemon", || Some(held(daemon)).filter(|held| held.0.len() == 1))
}

/// Nothing of a self-test is there any more.
fn await_nothing(daemon: &Daemon, before: &(BTreeSet<String>, usize)) {
    until("the namespaces and descriptors from before", || {
        let now = held(daemon);
        (now.0 == before.0 && now.1 <= before.1).then_some(())
    });
    daemon.entities_until("the end of its namespaces", |now| {
        !now.entities.iter().any(|entity| entity.id.name.contains("selftest"))
    });
}

/// Types of the events of a probe's checks, in their order.
const TOLD: [(&str, &[&str]); 12] = [
    ("tcpreset", &["TCP_RESET_NOSOCK", "TCP_RESET_RECEIVE", "TCP_RESET_ACTIVE", "TCP_RESET_RECEIVE"]),
    ("tcpretrans", &["TCP_RETRANS"]),
    ("packetloss", &["PACKET_DROP"]),
    ("tcptwrcv", &["TCP_TIME_WAIT_RECEIVE"]),
    ("tcpconnect", &["TCP_CONNECT_FAILED", "TCP_CONNECT_SLOW"]),
    ("tcprtt", &["TCP_RTT_SLOW"]),
    ("listen", &["TCP_ACCEPT_SLOW", "TCP_ACCEPT_OVERFLOW"]),
    ("socketlatency", &["SOCKETLAT_READSLOW", "SOCKETLAT_SENDSLOW"]),
    ("kernellatency", &["TXKERNEL_SLOW"]),
    ("dns", &["DNS_FAILED", "DNS_SLOW"]),
    ("netanomaly", &["NET_ANOMALY"]),
    ("gone", &[]),
];

/// What it says of an event is what everybody sees of it.
fn events_are_what_everybody_sees(daemon: &Daemon, test: &SelfTest) {
    let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
    let versions: &[&str] = if has_v6 { &["v4", "v6"] } else { &["v4"] };
    // What this kernel does not show is told of the probe itself.
    let lacks = |probe: &str| daemon.probe(probe).state.reason.unwrap_or_default();
    let seen = |kind: &&str| match *kind {
        "TCP_ACCEPT_OVERFLOW" => !lacks("listen").contains("full queues are not seen"),
        "SOCKETLAT_SENDSLOW" => !lacks("socketlatency").contains("does not tell what applications write"),
        _ => true,
    };
    for (probe, kinds) in TOLD {
        let checks: Vec<_> = of(test, probe).into_iter().filter(|it| !it.events.is_empty()).collect();
        let told: Vec<&str> = checks.iter().map(|check| &*check.events[0].kind).collect();
        assert_eq!(told, kinds.iter().copied().filter(seen).collect::<Vec<_>>(), "{test:#?}");
        for check in checks {
            assert_eq!(check.result, SelfResult::Ok, "{check:#?}");
            let told: Vec<&str> = check.events.iter().map(|event| &*event.version).collect();
            assert_eq!(told, versions, "{check:#?}");
            for told in &check.events {
                let path = format!("/v1/events?after={}&limit=1", told.seq - 1);
                let event: Event = serde_json::from_str(daemon.ask(&path).text().trim()).unwrap();
                assert_eq!((event.seq, &event.kind), (told.seq, &told.kind));
                assert_eq!(event.entity.map(|entity| entity.name), Some(told.entity.clone()));
                assert!(told.entity.starts_with("netskoop-selftest-"), "{told:?}");
            }
        }
    }
    // A handshake that was held up as long as the option asks for, and an answer that was as late.
    for (probe, at) in [("tcpconnect", 1), ("dns", 1)] {
        let slow = of(test, probe)[at];
        assert!(slow.events.iter().all(|event| event.milliseconds >= 900.0), "{slow:#?}");
    }
}

/// Exactly so, where nothing else makes them grow.
fn counters_grow_by_what_was_done(test: &SelfTest) {
    for check in test.checks.iter().filter(|check| check.metric.is_some()) {
        assert!(check.grown >= check.expected && check.expected > Some(0.0), "{check:#?}");
        assert!(!check.exact || check.grown == check.expected, "{check:#?}");
    }
    for (probe, metric) in [
        ("tcp", "passive_opens_total"),
        ("tcpext", "abort_on_close_total"),
        ("tcpext", "listen_overflows_total"),
        ("udp", "receive_buffer_errors_total"),
        ("icmp", "out_destination_unreachable_total"),
        ("sock", "udp_in_use"),
        ("tcpsummary", "connections{state=\"established\"}"),
        ("tcpreset", "resets_total{cause=\"no_socket\"}"),
        ("tcpconnect", "failures_total{cause=\"refused\"}"),
        ("tcpconnect", "handshake_seconds_count"),
        ("tcptwrcv", "segments_total{type=\"data\"}"),
        ("listen", "connections_total"),
        ("listen", "wait_seconds_count"),
        ("dns", "questions_total{result=\"nxdomain\"}"),
        ("netanomaly", "total{anomaly=\"neighbour_failed\"}"),
    ] {
        let metric = format!("netskoop_{probe}_{metric}");
        let check = test.checks.iter().find(|check| check.metric.as_ref() == Some(&metric));
        assert!(check.is_some_and(|check| check.exact), "{metric}: {test:#?}");
    }
}

/// Whoever is on was tried, or it is said why not.
fn no_probe_is_left_out(daemon: &Daemon, test: &SelfTest) {
    let probes: Vec<ProbeInfo> = daemon.json("/v1/probes");
    for probe in probes {
        let checks = of(test, &probe.name);
        assert!(!checks.is_empty(), "{}", probe.name);
        for check in checks.into_iter().filter(|check| check.result == SelfResult::Skipped) {
            let expected = match probe.state.state {
                StateName::On => "not provoked: ",
                StateName::Off => "it is off",
                _ => "",
            };
            assert!(check.says.starts_with(expected), "{check:#?}");
        }
    }
    for probe in [
        "netdev",
        "softnet",
        "ip",
        "qdisc",
        "neigh",
        "cpu",
        "io",
        "softirq",
        "tasklatency",
        "netiftxlat",
        "gone",
        "selftest",
    ] {
        let results: Vec<SelfResult> = of(test, probe).iter().map(|check| check.result).collect();
        assert_eq!(results, [SelfResult::Ok], "{probe}: {test:#?}");
    }
    let flow =
        "not provoked: it watches interfaces of the node, which the self-test leaves alone; it has its own";
    if daemon.probe("flow").state.state == StateName::On {
        assert_eq!((of(test, "flow")[0].result, &*of(test, "flow")[0].says), (SelfResult::Skipped, flow));
    }
    // Whether the program of the test is on a disk is not for the test to say.
    let disk = of(test, "biolatency")[0];
    let elsewhere = "not provoked: the daemon's own program is on no disk, and the self-test writes none";
    assert!(disk.result == SelfResult::Ok || disk.says == elsewhere, "{disk:#?}");
}

#[test]
fn it_finds_all_that_it_makes_go_wrong_and_leaves_nothing() {
    own_node!(Pids::Own);
    let daemon = all_on().start();
    let before = quiet(&daemon);
    let links = run("ip", &["-o", "link"]);
    let test = selftest(&daemon);
    passes(&daemon, &test);
    events_are_what_everybody_sees(&daemon, &test);
    counters_grow_by_what_was_done(&test);
    no_probe_is_left_out(&daemon, &test);
    await_nothing(&daemon, &before);
    assert_eq!(run("ip", &["-o", "link"]), links);
    let text = daemon.scrape("/metrics?set=full");
    assert!(!text.lines().any(|line| line.contains("selftest")), "a series is left");
    daemon.logged("self-test requested");
}

#[test]
fn what_the_configuration_leaves_out_is_not_waited_for() {
    own_node!(Pids::Own);
    // Of two events of a type and namespace within a second only the first one gets through.
    let daemon = Setup::on_node()
        .set("events", "rate = 1\nburst = 1")
        .set("probes.packetloss", "ignore_reasons = [\"SOCKET_RCVBUFF\"]")
        .set("probes.qdisc", "enabled = true\ninterfaces = [\"eth*\"]")
        .set("probes.softirq", "enabled = true\nvectors = [\"hi\"]")
        .start();
    let before = quiet(&daemon);
    let test = selftest(&daemon);
    assert!(test.passed, "{test:#?}");
    for reset in of(&test, "tcpreset") {
        assert_eq!((reset.result, reset.events.len()), (SelfResult::Ok, 0), "{reset:#?}");
        let says = "no event is waited for, since events.burst is 1, which may withhold it";
        assert!(reset.says.ends_with(says) && reset.grown > Some(0.0), "{reset:#?}");
    }
    for (probe, option) in [("qdisc", "interfaces"), ("softirq", "vectors")] {
        let says = format!("not provoked: the option {option} may leave it out");
        assert!(of(&test, probe).iter().any(|check| check.says == says), "{probe}: {test:#?}");
    }
    let off = of(&test, "tcprtt")[0];
    let says = "it is off; to try it: netskoopctl probes enable tcprtt --for 1m";
    assert_eq!((off.result, &*off.says), (SelfResult::Skipped, says));
    let drops = of(&test, "packetloss")[0];
    assert_eq!(drops.result, SelfResult::Ok, "{drops:#?}");
    assert!(
        drops.says.ends_with("no event is expected, since the option ignore_reasons names SOCKET_RCVBUFF")
    );
    assert!(drops.events.is_empty() && drops.grown > Some(0.0));
    await_nothing(&daemon, &before);
}

#[test]
fn a_probe_that_was_broken_fails_and_no_other_does() {
    own_node!(Pids::Own);
    // Without the names of places in the kernel, whose first look-up holds up all events on a busy machine.
    let setup = all_on().set("probes.packetloss", "enabled = false");
    let daemon = setup.set("probes.dns", "slow = \"50ms\"").start();
    let programs = daemon.probe("dns").state.programs;
    assert_eq!(detach(&programs), 2, "one for each way");
    let test = selftest(&daemon);
    let broken: BTreeSet<&str> = test
        .checks
        .iter()
        .filter(|check| check.result == SelfResult::Failed)
        .map(|check| &*check.probe)
        .collect();
    let events = daemon.status().events;
    assert_eq!((test.passed, broken), (false, BTreeSet::from(["dns"])), "{test:#?}\n{events:#?}");
    for (check, kind, result) in
        of(&test, "dns").into_iter().zip(["DNS_FAILED", "DNS_SLOW"]).zip(["servfail", "nxdomain"]).map(flat)
    {
        let metric = format!("netskoop_dns_questions_total{{result=\"{result}\"}}");
        assert!(check.says.starts_with(&format!("no {kind} event came (v4)")), "{check:#?}");
        assert!(check.says.contains(&format!("{metric} grew by 0 instead of ")), "{check:#?}");
        assert!(check.grown == Some(0.0) && check.exact && check.events.is_empty(), "{check:#?}");
    }
    daemon.logged("self-test ended passed=false");
}

fn flat<A, B, C>(((a, b), c): ((A, B), C)) -> (A, B, C) {
    (a, b, c)
}

#[test]
fn options_with_which_nothing_can_come_are_said() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node()
        .set("probes.dns", "enabled = true\ntimeout = \"200ms\"\nports = [\"5353\", \"53\"]")
        .set("probes.socketlatency", "enabled = true\nslow = \"1s\"")
        .set("probes.listen", "enabled = true\nmax_ports = 3")
        .set("probes.packetloss", "enabled = false")
        .set("probes.tcpreset", "ignore_entities = [\"pod/*\"]")
        .start();
    let test = selftest(&daemon);
    passes(&daemon, &test);
    let [failed, late] = of(&test, "dns")[..] else { panic!("{test:#?}") };
    assert_eq!((failed.result, failed.grown, failed.expected), (SelfResult::Ok, Some(2.0), Some(2.0)));
    let says = "not provoked: since the option timeout is 200ms it does not wait for an answer that takes up to 950ms";
    assert_eq!((late.result, &*late.says), (SelfResult::Skipped, says));
    let read = of(&test, "socketlatency")[0];
    let says =
        "; no event is expected, since the option slow is 1s and 950ms is the most that the self-test makes";
    assert!(read.result == SelfResult::Ok && read.says.ends_with(says), "{read:#?}");
    for reset in of(&test, "tcpreset") {
        let says = "; no event is waited for, since the option ignore_entities may leave it out";
        assert!(reset.result == SelfResult::Ok && reset.says.ends_with(says), "{reset:#?}");
        assert_eq!(reset.grown, reset.expected, "{reset:#?}");
    }
    let waits = of(&test, "listen")[1];
    match daemon.probe("listen").state.reason {
        Some(reason) if reason.contains("with the option system_calls only") => {
            assert_eq!(waits.result, SelfResult::Skipped, "{waits:#?}");
            assert!(waits.says.starts_with("not provoked: this kernel takes neither"), "{waits:#?}");
        }
        _ => assert_eq!(waits.result, SelfResult::Ok, "{waits:#?}"),
    }
    // It takes up two of the three ports that are shown by themselves, and not two more each time.
    passes(&daemon, &selftest(&daemon));
    let text = daemon.scrape("/metrics?set=full&collect[]=listen");
    let rows: Vec<_> =
        text.lines().filter(|line| line.starts_with("netskoop_listen_connections_total{")).collect();
    assert!(rows.len() == 1 && rows[0].contains(&format!("port=\"{}\"", daemon.port)), "{rows:?}");
}

#[test]
fn one_at_a_time_and_whoever_goes_away_leaves_nothing() {
    own_node!(Pids::Own);
    let daemon = all_on().start();
    let before = quiet(&daemon);
    let mut client = daemon.unix();
    client.write_all(b"POST /v1/selftest HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    until("its namespaces", || (held(&daemon).0.len() == 3).then_some(()));
    let second = exchange(daemon.unix(), "POST", "/v1/selftest", &[], b"");
    assert_eq!((second.status, &*error_of(&second).code), (409, "busy"));
    assert_eq!(error_of(&second).message, "a self-test runs already; it takes a few seconds");
    drop(client);
    await_nothing(&daemon, &before);
    let test = until("room for another one", || {
        let answer = exchange(daemon.unix(), "POST", "/v1/selftest", &[], b"");
        (answer.status == 200).then(|| serde_json::from_slice::<SelfTest>(&answer.body).unwrap())
    });
    passes(&daemon, &test);
}

#[test]
fn a_daemon_that_is_killed_meanwhile_leaves_nothing() {
    own_node!(Pids::Own);
    let mut daemon = all_on().start();
    let mut client = daemon.unix();
    client.write_all(b"POST /v1/selftest HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let inodes = until("its namespaces", || Some(held(&daemon).0).filter(|spaces| spaces.len() == 3));
    daemon.kill();
    let now = || {
        let processes = Path::new("/proc").read_dir().unwrap().flatten();
        let links = processes.filter_map(|process| process.path().join("ns/net").read_link().ok());
        links.map(|link| link.display().to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(now().intersection(&inodes).count(), 1, "only the node's own");
    assert!(!run("ip", &["-o", "link"]).contains("selftest"));
}

#[test]
fn a_daemon_on_foreign_files_says_why_it_cannot() {
    let daemon = Setup::fixture("healthy").pull_only().start();
    let answer = exchange(daemon.unix(), "POST", "/v1/selftest", &[], b"");
    let error = error_of(&answer);
    assert_eq!((answer.status, &*error.code), (409, "not_available"));
    let says =
        ["does not show the threads of the daemon", "cannot make a network namespace of its own", "veth"];
    assert!(says.iter().any(|says| error.message.contains(says)), "{}", error.message);
}

/// Detaches programs behind their owner's back; how many there were.
fn detach(programs: &[u32]) -> usize {
    let ids = programs.iter().map(u32::to_string);
    let output = std::process::Command::new("python3")
        .args(["-c", include_str!("../support/detach.py")])
        .args(ids)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
