//! `netskoopctl selftest`: everything that it makes go wrong is found, and nothing of it is left.

use crate::support::{Daemon, Pids, Setup, error_of, exchange, own_node, run, until};
use netskoop_api::{Event, SelfCheck, SelfResult, SelfTest};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Those that are off by default.
const WITH_HOOKS: [&str; 7] = [
    "probes.tcptwrcv",
    "probes.tcpconnect",
    "probes.tcprtt",
    "probes.softirq",
    "probes.netiftxlat",
    "probes.socketlatency",
    "probes.kernellatency",
];

fn all_on() -> Setup {
    WITH_HOOKS.into_iter().fold(Setup::on_node(), |setup, probe| setup.set(probe, "enabled = true"))
}

fn selftest(daemon: &Daemon) -> SelfTest {
    let answer = exchange(daemon.unix(), "POST", "/v1/selftest", &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
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

#[test]
fn it_finds_all_that_it_makes_go_wrong_and_leaves_nothing() {
    own_node!(Pids::Own);
    let daemon = all_on().start();
    let before = quiet(&daemon);
    let links = run("ip", &["-o", "link"]);
    let test = selftest(&daemon);
    assert!(test.passed, "{test:#?}");
    assert!(test.checks.iter().all(|check| check.result != SelfResult::Failed), "{test:#?}");
    let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
    let versions: &[&str] = if has_v6 { &["v4", "v6"] } else { &["v4"] };
    for (probe, kinds) in [
        ("tcpreset", &["TCP_RESET_NOSOCK", "TCP_RESET_RECEIVE", "TCP_RESET_ACTIVE", "TCP_RESET_RECEIVE"][..]),
        ("tcpretrans", &["TCP_RETRANS"]),
        ("packetloss", &["PACKET_DROP"]),
        ("tcptwrcv", &["TCP_TIME_WAIT_RECEIVE"]),
        ("tcpconnect", &["TCP_CONNECT_FAILED", "TCP_CONNECT_SLOW"]),
        ("tcprtt", &["TCP_RTT_SLOW"]),
        ("socketlatency", &["SOCKETLAT_READSLOW"]),
        ("kernellatency", &["TXKERNEL_SLOW"]),
    ] {
        let checks = of(&test, probe);
        assert_eq!(checks.len(), kinds.len(), "{checks:#?}");
        for (check, kind) in checks.into_iter().zip(kinds) {
            assert_eq!(check.result, SelfResult::Ok, "{check:#?}");
            let told: Vec<&str> = check.events.iter().map(|event| &*event.version).collect();
            assert_eq!(told, versions, "{check:#?}");
            assert!(check.grown >= check.expected && check.expected > Some(0.0), "{check:#?}");
            for told in &check.events {
                assert_eq!(told.kind, *kind);
                // What it says of an event is what everybody sees of it.
                let path = format!("/v1/events?after={}&limit=1", told.seq - 1);
                let event: Event = serde_json::from_str(daemon.ask(&path).text().trim()).unwrap();
                assert_eq!((event.seq, &*event.kind), (told.seq, *kind));
                assert_eq!(event.entity.map(|entity| entity.name), Some(told.entity.clone()));
                assert!(told.entity.starts_with("netskoop-selftest-"), "{told:?}");
            }
        }
    }
    // A handshake that was held up as long as the option asks for, and a segment that waited for its repetition.
    assert!(of(&test, "tcpconnect")[1].events.iter().all(|event| event.milliseconds >= 900.0), "{test:#?}");
    for probe in
        ["tcp", "udp", "ip", "icmp", "netdev", "softnet", "softirq", "netiftxlat", "gone", "selftest"]
    {
        let results: Vec<SelfResult> = of(&test, probe).iter().map(|check| check.result).collect();
        assert_eq!(results, [SelfResult::Ok], "{probe}: {test:#?}");
    }
    let untried = &of(&test, "fd")[0];
    assert_eq!(
        (untried.result, &*untried.says),
        (SelfResult::Skipped, "it tells what processes use, and the self-test starts none")
    );
    await_nothing(&daemon, &before);
    assert_eq!(run("ip", &["-o", "link"]), links);
    let text = daemon.scrape("/metrics?set=full");
    assert!(!text.lines().any(|line| line.contains("selftest")), "a series is left");
    daemon.logged("self-test requested");
}

#[test]
fn probes_that_are_off_are_skipped_and_what_does_not_come_is_a_failure() {
    own_node!(Pids::Own);
    // Of two events of a type and namespace within a second only the first one gets through.
    let daemon = Setup::on_node()
        .set("events", "rate = 1\nburst = 1")
        .set("probes.packetloss", "ignore_reasons = [\"SOCKET_RCVBUFF\"]")
        .start();
    let before = quiet(&daemon);
    let test = selftest(&daemon);
    let resets = of(&test, "tcpreset");
    assert_eq!((test.passed, resets[0].result), (false, SelfResult::Failed), "{test:#?}");
    assert!(resets[0].says.starts_with("no TCP_RESET_NOSOCK event came (v6)"), "{resets:#?}");
    assert_eq!(resets[0].events.len(), 1, "the one over IPv4 has come");
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
    assert!(test.passed, "{test:#?}");
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
