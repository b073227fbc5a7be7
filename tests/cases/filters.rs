//! Events that nobody wants: not told, not seen, counted all the same. That they do not come a later event proves, which is
//! wanted.

use crate::anomalies::{allow, drop_at, kernel, late_data, total, two};
use crate::latency::slow_filter;
use crate::listen::LateAccept;
use crate::root::{address, events_until, find, follow, refused};
use crate::support::{Daemon, Follow, Netns, Pids, Setup, error_of, own_node, run, until};
use crate::waiting::{connection, read_late, udp_pair, udp_read_late};
use netskoop_api::{Event, Net, StreamCounts};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};

fn has_port(net: &Net, port: u16) -> bool {
    net.sport == port || net.dport == port
}

/// The counts of a probe, when nothing is on its way and they agree.
fn counts(daemon: &Daemon, probe: &str) -> StreamCounts {
    until("the counts agree", || {
        let counts = daemon.probe(probe).state.stream.unwrap();
        (counts.seen == counts.submitted + counts.ring_full + counts.suppressed).then_some(counts)
    })
}

/// Whether all that was received has gone somewhere.
fn nothing_is_lost(daemon: &Daemon) {
    until("all is accounted for", || {
        let events = daemon.status().events;
        let gone = events.delivered + events.malformed + events.overrun + events.filtered_by_entity;
        (events.received == gone && events.malformed + events.overrun == 0).then_some(())
    });
}

#[test]
fn ignored_ports_give_no_events_and_take_nothing_of_the_rate() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().set("events", "rate = 1\nburst = 2").set(
        "probes.tcpreset",
        "ignore_ports = [\"80\", \"7410-7419\"]\nignore_entities = [\"host\", \"netns/red\"]",
    );
    let (red, blue, daemon) = two(81, setup.set("probes.packetloss", "enabled = false"));
    let mut follow = follow(&daemon, "&entity=blue");
    let mut marks = 0;
    for version in [4, 6] {
        for round in 0..50 {
            refused(
                &red,
                address(version, 81, 1, 21_000 + round),
                address(version, 81, 2, 7410 + round % 10),
            );
        }
        refused(&red, address(version, 81, 1, 22_000), address(version, 81, 2, 7420));
    }
    let events = events_until(&mut follow, &[blue.inode()], |event| {
        marks += u32::from(event.net.as_ref().is_some_and(|net| has_port(net, 7420)));
        marks == 2
    });
    assert_eq!(events.len(), 2, "the burst is 2, and the others have taken nothing of it: {events:#?}");
    assert!(events.iter().all(|event| event.suppressed == 0), "{events:#?}");
    let resets =
        |entity, labels| total(&daemon.scrape("/metrics"), "netskoop_tcpreset_resets_total", entity, labels);
    assert_eq!((resets("blue", "cause=\"no_socket\""), resets("red", "cause=\"connecting\"")), (102, 102));
    // Others on this machine may be refused as well.
    assert!(counts(&daemon, "tcpreset").filtered >= 200);
    nothing_is_lost(&daemon);
    let text = daemon.scrape("/metrics");
    let line =
        text.lines().find(|line| line.starts_with("netskoop_events_filtered_total{probe=\"tcpreset\"}"));
    assert!(line.is_some_and(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 200.0));
}

/// A datagram that nobody takes.
fn unwanted(from: &Netns, to: &Netns, version: u8, port: u16) {
    let [near, far] = [(1, 21_000), (2, port)].map(|(host, port)| address(version, 82, host, port));
    let gone = to.enter(|| UdpSocket::bind(far).unwrap());
    drop(gone);
    from.enter(|| {
        let socket = UdpSocket::bind(near).unwrap();
        socket.send_to(b"x", far).unwrap();
    });
}

#[test]
fn only_wanted_ports_and_protocols_give_events() {
    own_node!(Pids::Own);
    let options = "ports = [\"7421\", \"9000-9100\"]\nprotocols = [\"udp\"]";
    let (red, blue, daemon) = two(82, Setup::on_node().set("probes.packetloss", options));
    let before = daemon.scrape("/metrics?set=full");
    let mut follow = follow(&daemon, "&type=PACKET_DROP&entity=blue");
    let mut wanted = Vec::new();
    for version in [4, 6] {
        unwanted(&red, &blue, version, 7422);
        refused(&red, address(version, 82, 1, 23_000), address(version, 82, 2, 7421));
        for port in [7421, 9050] {
            unwanted(&red, &blue, version, port);
            wanted.push((address(version, 82, 2, port).ip().to_string(), port));
        }
    }
    let events = events_until(&mut follow, &[blue.inode()], |event| {
        let net = event.net.as_ref().unwrap();
        wanted.last() == Some(&(net.dst.clone(), net.dport))
    });
    let told = |event: &Event| {
        let net = event.net.as_ref().unwrap();
        assert_eq!(net.proto, "udp", "{event:#?}");
        (net.dst.clone(), net.dport)
    };
    assert_eq!(events.iter().map(told).collect::<Vec<_>>(), wanted);
    let after = daemon.scrape("/metrics?set=full");
    let dropped =
        |text: &str| total(text, "netskoop_packetloss_packets_total", "blue", "reason=\"NO_SOCKET\"");
    assert_eq!(dropped(&after) - dropped(&before), 2 * 4);
    assert!(counts(&daemon, "packetloss").filtered >= 4);

    // Changed while it runs: now only the other one is told of.
    daemon.change(
        "packetloss",
        r#"{"options":{"ports":"","ignore_ports":"7421,9050","protocols":"udp,58"},"runtime":true}"#,
    );
    for version in [4, 6] {
        unwanted(&red, &blue, version, 7421);
        unwanted(&red, &blue, version, 7422);
    }
    let last = address(6, 82, 2, 7422).ip().to_string();
    let events = events_until(&mut follow, &[blue.inode()], |event| {
        event.net.as_ref().is_some_and(|net| net.dst == last && net.dport == 7422)
    });
    assert!(events.iter().all(|event| !has_port(event.net.as_ref().unwrap(), 7421)), "{events:#?}");
}

/// Data that is lost once, and sent once more.
fn lost_data(from: &Netns, to: &Netns, target: SocketAddr) {
    let mut pair = connection(from, to, target);
    let segments = || kernel(from, "Tcp.RetransSegs");
    let before = segments();
    drop_at(to, "input", target.port());
    pair.0.write_all(b"lost").unwrap();
    until("it is sent once more", || (segments() > before).then_some(()));
    allow(to);
    pair.1.read_exact(&mut [0; 4]).unwrap();
}

/// Datagrams of which some have to wait, and that are all through: see `slow_queue`.
fn wait_in_queue([near, far]: &[UdpSocket; 2]) {
    let data = [0; 1400];
    (0..5).for_each(|_| assert_eq!(near.send(&data).unwrap(), data.len()));
    (0..5).for_each(|_| assert_eq!(far.recv(&mut [0; 1400]).unwrap(), data.len()));
}

/// Every way in which a probe may tell of a connection on this kernel, over both versions.
fn converse((from, near): (&Netns, u8), (to, far): (&Netns, u8), port: u16) {
    for version in [4, 6] {
        let target = address(version, 83, far, port);
        refused(from, address(version, 83, near, port + 10_000), target);
        let mut pair = connection(from, to, target);
        // Its acknowledgement comes late, which is a long round trip.
        rustix::net::sockopt::set_tcp_quickack(&pair.1, false).unwrap();
        read_late(&mut pair);
        drop(pair);
        let udp = udp_pair(from, to, address(version, 83, near, port + 20_000), target);
        udp_read_late(&udp);
        wait_in_queue(&udp);
        LateAccept::new(from, to, target);
        lost_data(from, to, target);
        late_data(from, to, target);
    }
}

/// The queue of an interface lets a few large datagrams wait, however fast the machine is, and nothing smaller.
fn slow_queue(netns: &Netns, device: &str) {
    let shaper = ["root", "tbf", "rate", "1mbit", "burst", "3000", "limit", "200000"];
    run("tc", &[&["-n", &netns.0, "qdisc", "add", "dev", device], &shaper[..]].concat());
}

/// What is told of that: by which probe, with which options, and of which protocols on every kernel.
const TOLD: [(&str, &str, &[&str]); 9] = [
    ("tcpreset", "", &["tcp"]),
    ("tcpretrans", "", &["tcp"]),
    ("tcpconnect", "slow = \"1ms\"", &["tcp"]),
    ("tcptwrcv", "", &["tcp"]),
    ("tcprtt", "slow = \"1ms\"", &["tcp"]),
    ("listen", "slow = \"1ms\"\nsystem_calls = true", &["tcp"]),
    ("socketlatency", "slow = \"1ms\"", &["tcp", "udp"]),
    ("netiftxlat", "slow = \"1us\"", &["tcp", "udp"]),
    ("kernellatency", "slow = \"1us\"", &["tcp"]),
];

/// Two namespaces, and a daemon whose probes tell of connections, with a filter for all that take it.
fn filtered(filter: &str, takes: &dyn Fn(&str) -> bool) -> (Netns, Netns, Daemon) {
    let setup = Setup::on_node()
        .set("events", "rate = 100\nburst = 1000\nhistory = 100000")
        .set("probes.packetloss", "enabled = false");
    let setup = TOLD.iter().fold(setup, |setup, (probe, options, _)| {
        let (enabled, filter) = if takes(probe) { ("true", filter) } else { ("false", "") };
        let table = String::leak(format!("probes.{probe}"));
        setup.set(table, &format!("enabled = {enabled}\n{options}\n{filter}"))
    });
    let (red, blue, daemon) = two(83, setup);
    for (netns, device) in [(&red, "c83a"), (&blue, "c83b")] {
        slow_queue(netns, device);
        slow_filter(netns, "input", "meta l4proto tcp", 16);
    }
    (red, blue, daemon)
}

/// What no event has told of yet; whoever fails meanwhile is shown it.
struct Missing<'a>(Vec<(&'a str, &'a str, bool)>);

impl Drop for Missing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("not told of (probe, protocol, whether IPv6): {:?}", self.0);
        }
    }
}

/// Reads events until each of some probes has told of each version what is wanted, of each of its protocols. All of them.
fn all_are_told(
    follow: &mut Follow,
    inodes: &[u32],
    takes: &dyn Fn(&str, &str) -> bool,
    wanted: &dyn Fn(&Event) -> bool,
) -> Vec<Event> {
    let rows = TOLD.iter().flat_map(|(probe, _, all)| all.iter().map(move |proto| (*probe, *proto)));
    let rows = rows.filter(|(probe, proto)| takes(probe, proto));
    let mut missing =
        Missing(rows.flat_map(|(probe, proto)| [false, true].map(|v6| (probe, proto, v6))).collect());
    assert!(!missing.0.is_empty());
    events_until(follow, inodes, |event| {
        let Some(net) = event.net.as_ref().filter(|_| wanted(event)) else { return false };
        missing.0.retain(|row| *row != (&*event.probe, &*net.proto, net.src.contains(':')));
        missing.0.is_empty()
    })
}

#[test]
fn every_probe_that_tells_of_connections_takes_the_same_ports() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = filtered("ports = [\"7441\"]", &|_| true);
    let mut follow = follow(&daemon, "");
    converse((&red, 1), (&blue, 2), 7440);
    converse((&red, 1), (&blue, 2), 7441);
    let ours = |event: &Event| event.net.as_ref().is_some_and(|net| has_port(net, 7441));
    let events = all_are_told(&mut follow, &[red.inode(), blue.inode()], &|_, _| true, &ours);
    for event in &events {
        assert!(ours(event), "{event:#?}");
    }
    for (probe, ..) in TOLD {
        assert!(counts(&daemon, probe).filtered > 0, "{probe}");
    }
    nothing_is_lost(&daemon);
}

#[test]
fn every_probe_that_tells_of_connections_takes_the_same_entities() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = filtered("ignore_entities = [\"netns/red\"]", &|_| true);
    names_are_sure(&daemon, &[&red, &blue]);
    let mut follow = follow(&daemon, "");
    converse((&red, 1), (&blue, 2), 7442);
    converse((&blue, 2), (&red, 1), 7443);
    let ours = |event: &Event| event.entity.as_ref().is_some_and(|entity| entity.name == "blue");
    let events = all_are_told(&mut follow, &[red.inode(), blue.inode()], &|_, _| true, &ours);
    for event in &events {
        assert!(ours(event), "{event:#?}");
    }
    // Of each probe and version, what it would have told of the other.
    let least = TOLD.len() as u64 * 2;
    until("the others are left out", || (daemon.status().events.filtered_by_entity >= least).then_some(()));
    nothing_is_lost(&daemon);
}

#[test]
fn every_probe_of_several_protocols_takes_those_wanted() {
    own_node!(Pids::Own);
    // kernellatency tells of UDP only where there are fentry or kprobes: tests/cases/lab/transit.rs.
    let several = |probe: &str| ["socketlatency", "netiftxlat"].contains(&probe);
    let (red, blue, daemon) = filtered("protocols = [\"udp\"]", &several);
    let mut follow = follow(&daemon, "");
    converse((&red, 1), (&blue, 2), 7444);
    let takes = |probe: &str, proto: &str| several(probe) && proto == "udp";
    let events = all_are_told(&mut follow, &[red.inode(), blue.inode()], &takes, &|_| true);
    for event in &events {
        assert_eq!(event.net.as_ref().unwrap().proto, "udp", "{event:#?}");
    }
    for probe in ["socketlatency", "netiftxlat"] {
        assert!(counts(&daemon, probe).filtered > 0, "{probe}");
    }
    nothing_is_lost(&daemon);
}

/// Until its name is sure, an event of a namespace may be anybody's.
fn names_are_sure(daemon: &Daemon, namespaces: &[&Netns]) {
    daemon.entities_until("sure names", |now| {
        let sure = |netns: &&Netns| find(now, netns.inode()).is_some_and(|entity| !entity.provisional);
        namespaces.iter().all(sure)
    });
}

#[test]
fn events_of_some_entities_only() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().set("probes.packetloss", "enabled = false");
    let (red, blue, daemon) = two(84, setup.set("probes.tcpreset", "ignore_entities = [\"netns/re*\"]"));
    names_are_sure(&daemon, &[&red, &blue]);
    let inodes = [red.inode(), blue.inode()];
    let mut follow = follow(&daemon, "&type=TCP_RESET_NOSOCK&type=TCP_RESET_RECEIVE");
    let mut port = 7450;
    // Each connection has a reset that one has sent and the other has received.
    let mut told = |wanted: &str, from: &Netns, hosts: (u8, u8)| {
        for version in [4, 6] {
            port += 1;
            let [near, far] = [(hosts.0, port + 10_000), (hosts.1, port)]
                .map(|(host, port)| address(version, 84, host, port));
            refused(from, near, far);
            let events = events_until(&mut follow, &inodes, |event| {
                event.net.as_ref().is_some_and(|net| has_port(net, port))
            });
            let names: Vec<&str> = events.iter().map(|event| &*event.entity.as_ref().unwrap().name).collect();
            assert_eq!(names, [wanted], "{events:#?}");
        }
    };
    told("blue", &red, (1, 2));
    told("blue", &blue, (2, 1));
    let options = r#"{"options":{"entities":"pod/*,red","ignore_entities":""},"runtime":true}"#;
    daemon.change("tcpreset", options);
    told("red", &red, (1, 2));
    told("red", &blue, (2, 1));
    until("the last one as well", || (daemon.status().events.filtered_by_entity >= 8).then_some(()));
    nothing_is_lost(&daemon);
    let text = daemon.scrape("/metrics");
    let resets = |entity| total(&text, "netskoop_tcpreset_resets_total", entity, "");
    assert_eq!((resets("red"), resets("blue")), (8, 8));
}

#[test]
fn bad_filters_are_refused_with_their_place() {
    let setup = Setup::fixture("healthy")
        .set("probes.tcpreset", "ports = [\"http\"]")
        .set("probes.packetloss", "protocols = [\"tcpp\"]")
        .set("probes.tcpretrans", "entities = [\"\"]");
    let (code, stderr) = setup.fails();
    assert_eq!(code, Some(78), "{stderr}");
    for says in [
        "probes.tcpreset.ports: expected a port number, or a range like 30000-32767, found the text 'http'",
        "probes.packetloss.protocols: expected a protocol: tcp, udp, icmp, icmp6,",
        "probes.tcpretrans.entities: expected a name of an entity, or a pattern with *,",
    ] {
        let line = stderr.lines().find(|line| line.contains(says));
        assert!(line.is_some_and(|line| line.starts_with("netskoopd: /")), "{says}: {stderr}");
    }
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
}

#[test]
fn reasons_that_the_kernel_does_not_know_are_refused_or_warned_of() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node()
        .set("probes.packetloss", "ignore_reasons = [\"NO_SOCKET\", \"QUEUE_PURGE\", \"NO_SUCH_REASON\"]")
        .start();
    let words = |daemon: &Daemon| {
        let options = daemon.probe("packetloss").options;
        options.into_iter().find(|option| option.name == "ignore_reasons").unwrap().words
    };
    let known = words(&daemon);
    assert!(known.contains(&"NO_SOCKET".to_owned()) && known.is_sorted(), "{known:?}");
    assert!(!known.iter().any(|word| ["MAX", "NO_SUCH_REASON"].contains(&&**word)), "{known:?}");
    // One file may be for many kernels: this one says what it cannot do, and does the rest.
    let says = "'NO_SUCH_REASON' is none of its words on this kernel, and is passed over; `netskoopctl probes show \
                packetloss` lists them";
    let warned = |daemon: &Daemon| {
        let warnings = daemon.status().warnings;
        warnings.into_iter().filter(|warning| warning.contains("ignore_reasons")).collect::<Vec<_>>()
    };
    let [warning] = &warned(&daemon)[..] else { panic!("{:?}", daemon.status().warnings) };
    assert!(
        warning.starts_with("probes.packetloss.ignore_reasons (config /") && warning.contains(says),
        "{warning}"
    );
    assert!(warning.contains(".toml:"), "it tells the line: {warning}");
    assert!(daemon.logged(says).contains("WARN"));
    // Who asks for it now is told at once, and nothing is changed.
    let before = daemon.probe("packetloss").options;
    let body = |reasons: &str| format!(r#"{{"options":{{"ignore_reasons":"{reasons}"}},"runtime":true}}"#);
    let answer = daemon.patch("packetloss", &body("NO_SOCKET,NO_SOCKT"));
    let error = error_of(&answer);
    let wanted = "packetloss.ignore_reasons: 'NO_SOCKT' is none of its words on this kernel; `netskoopctl probes show \
                  packetloss` lists them. Did you mean 'NO_SOCKET'?";
    assert_eq!((answer.status, &*error.code, &*error.message), (400, "bad_request", wanted));
    assert_eq!(daemon.probe("packetloss").options, before);
    daemon.change("packetloss", &body("NO_SOCKET,TCP_OFOMERGE"));
    assert_eq!(warned(&daemon), Vec::<String>::new());
}
