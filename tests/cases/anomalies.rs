//! Each anomaly produced for real between two namespaces, over IPv4 and IPv6, and compared with what the kernel counted and
//! with what the sockets say of themselves.

use crate::root::{address, events_until, find, follow, tuple};
use crate::support::{Daemon, Lines, Netns, Pids, Setup, own_node, until};
use netskoop_api::{Event, Net, Value};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Two namespaces with a cable, and a daemon that knows them.
pub(crate) fn two(net: u8, setup: Setup) -> (Netns, Netns, Daemon) {
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, net);
    let daemon = setup.start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    (red, blue, daemon)
}

/// A number of the kernel's, as `/proc/net/snmp` and `/proc/net/netstat` show it: `Tcp.RetransSegs`.
pub(crate) fn kernel(netns: &Netns, name: &str) -> u64 {
    let (section, field) = name.split_once('.').unwrap();
    let text = netns.run("cat", &["/proc/net/snmp", "/proc/net/netstat"]);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(section)?.strip_prefix(": "));
    let at = lines.next().unwrap().split(' ').position(|known| known == field).unwrap();
    lines.next().unwrap().split(' ').nth(at).unwrap().parse().unwrap()
}

/// What all series of a metric add up to for an entity, with these labels among its own.
pub(crate) fn total(text: &str, metric: &str, entity: &str, labels: &str) -> u64 {
    let name = format!("{metric}{{kind=\"netns\",name=\"{entity}\"");
    let ours = text.lines().filter(|line| line.starts_with(&name) && line.contains(labels));
    ours.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

fn text_of(event: &Event, field: &str) -> String {
    event.fields.get(field).map(Value::to_string).unwrap_or_default()
}

/// A connection, and a listener that stays open.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    _listener: TcpListener,
}

impl Pair {
    fn new(from: &Netns, to: &Netns, target: SocketAddr) -> Pair {
        let listener = to.enter(|| TcpListener::bind(target).unwrap());
        let client = from.enter(|| TcpStream::connect(target).unwrap());
        let server = listener.accept().unwrap().0;
        Pair { client, server, _listener: listener }
    }
    /// The addresses of what the client sends, as its socket tells them.
    fn forth(&self) -> Net {
        tuple("tcp", self.client.local_addr().unwrap(), self.client.peer_addr().unwrap())
    }
}

const DROP: &str = "add table inet t; add chain inet t c { type filter hook HOOK priority 0; }; add rule inet t c tcp dport PORT drop; add rule inet t c tcp sport PORT drop";

/// No TCP from or to a port any more, at a hook of a namespace.
pub(crate) fn drop_at(netns: &Netns, hook: &str, port: u16) {
    netns.run("nft", &[&DROP.replace("HOOK", hook).replace("PORT", &port.to_string())]);
}

pub(crate) fn allow(netns: &Netns) {
    netns.run("nft", &["delete table inet t"]);
}

#[test]
fn data_sent_once_more_is_told_and_counted() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(4, Setup::on_node().set("probes.tcpretrans", "flows = true"));
    let mut tuples = Vec::new();
    for version in [4, 6] {
        let mut pair = Pair::new(&red, &blue, address(version, 4, 2, 7400));
        let wanted = pair.forth();
        let mut follow = follow(&daemon, "&type=TCPRetrans&entity=red");
        drop_at(&blue, "input", 7400);
        pair.client.write_all(b"hello").unwrap();
        // A probe for the loss of the last segment may come before the time-outs.
        let events = events_until(&mut follow, &[red.inode()], |event| {
            event.net.as_ref() == Some(&wanted) && text_of(event, "trigger") == "timeout"
        });
        allow(&blue);
        let mut all = [0; 5];
        pair.server.read_exact(&mut all).unwrap();
        assert_eq!(&all, b"hello");
        // The one before may send something once more at its end.
        for event in events.into_iter().filter(|event| !tuples.contains(event.net.as_ref().unwrap())) {
            assert_eq!((event.kind.as_str(), event.probe.as_str()), ("TCP_RETRANS", "tcpretrans"));
            assert_eq!(event.entity.as_ref().unwrap().name, "red");
            assert_eq!(event.net.as_ref(), Some(&wanted), "{event:#?}");
            assert_eq!(
                (text_of(&event, "type"), text_of(&event, "state")),
                ("data".into(), "ESTABLISHED".into())
            );
            assert!(["timeout", "probe"].contains(&&*text_of(&event, "trigger")), "{event:#?}");
            let Some(Value::Number(srtt)) = event.fields.get("srtt_ns") else { panic!("{event:#?}") };
            assert!(*srtt > 0 && *srtt < 30_000_000_000, "{event:#?}");
            assert_eq!(event.process, None, "a timer runs in anybody's name");
        }
        tuples.push(wanted);
    }
    let (text, sent) = until("both have counted the same", || {
        let sent = kernel(&red, "Tcp.RetransSegs");
        let text = daemon.scrape("/metrics?set=full");
        (total(&text, "netskoop_tcpretrans_segments_total", "red", "") == sent).then_some((text, sent))
    });
    let segments = |labels: &str| total(&text, "netskoop_tcpretrans_segments_total", "red", labels);
    assert!(sent >= 2 && segments("type=\"data\"") == sent, "{text}");
    let packets = |labels: &str| total(&text, "netskoop_tcpretrans_packets_total", "red", labels);
    assert_eq!(packets("trigger=\"probe\""), kernel(&red, "TcpExt.TCPLossProbes"));
    assert_eq!(segments(""), packets(""), "nothing here is segmented");
    assert_eq!(total(&text, "netskoop_tcpretrans_flow_segments_total", "red", ""), sent, "{text}");
    assert_eq!(total(&text, "netskoop_tcpretrans_segments_total", "blue", ""), 0);
    // By connection too, and under the older name, which has the labels of its time.
    let old = daemon.scrape("/metrics?names=kubeskoop&collect[]=tcpretrans");
    for net in tuples {
        let labels = format!(
            "protocol=\"TCP\",src=\"{}\",sport=\"{}\",dst=\"{}\",dport=\"{}\"",
            net.src, net.sport, net.dst, net.dport
        );
        assert!(
            total(&text, "netskoop_tcpretrans_flow_segments_total", "red", &labels) > 0,
            "{labels}: {text}"
        );
        let line =
            old.lines().find(|line| line.contains(&labels)).unwrap_or_else(|| panic!("{labels}: {old}"));
        assert!(
            line.starts_with("kubeskoop_tcpretrans_total{") && line.contains("src_type=\"unknown\""),
            "{line}"
        );
    }
    crate::golden::lint(&old, "kubeskoop");
}

#[test]
fn handshakes_sent_once_more_are_told_on_both_sides() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(5, Setup::on_node());
    let mut follow = follow(&daemon, "&type=TCP_RETRANS");
    drop_at(&red, "input", 7400);
    let inodes = [red.inode(), blue.inode()];
    let threads: Vec<_> = [4, 6]
        .into_iter()
        .map(|version| {
            let target = address(version, 5, 2, 7400);
            let listener = blue.enter(|| TcpListener::bind(target).unwrap());
            // It waits for an answer that never comes.
            let client = red.enter(|| {
                let family = if version == 4 {
                    rustix::net::AddressFamily::INET
                } else {
                    rustix::net::AddressFamily::INET6
                };
                let flags = rustix::net::SocketFlags::NONBLOCK;
                let kind = rustix::net::SocketType::STREAM;
                let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
                let started = rustix::net::connect(&socket, &target);
                assert_eq!(started, Err(rustix::io::Errno::INPROGRESS));
                TcpStream::from(socket)
            });
            (listener, client, target)
        })
        .collect();
    let mut missing: Vec<(String, String, Net)> = threads
        .iter()
        .flat_map(|(_, client, target)| {
            let source = client.local_addr().unwrap();
            [
                ("red".to_owned(), "syn".to_owned(), tuple("tcp", source, *target)),
                ("blue".to_owned(), "syn_ack".to_owned(), tuple("tcp", *target, source)),
            ]
        })
        .collect();
    let wanted = missing.clone();
    events_until(&mut follow, &inodes, |event| {
        let (Some(net), Some(entity)) = (event.net.clone(), &event.entity) else { return false };
        let found = (entity.name.clone(), text_of(event, "type"), net);
        if inodes.contains(&entity.netns) {
            assert!(wanted.contains(&found), "{event:#?}");
            let state = if found.1 == "syn" { "SYN_SENT" } else { "NEW_SYN_RECV" };
            assert_eq!(text_of(event, "state"), state);
        }
        missing.retain(|wanted| *wanted != found);
        missing.is_empty()
    });
    drop(threads);
    allow(&red);
    // A request that is answered once more after the look at one of the numbers is in the next.
    until("both count the same", || {
        let text = daemon.scrape("/metrics?set=full");
        let same = |entity: &str, netns: &Netns| {
            total(&text, "netskoop_tcpretrans_segments_total", entity, "") == kernel(netns, "Tcp.RetransSegs")
                && kernel(netns, "TcpExt.TCPSynRetrans") >= 2
        };
        (same("red", &red) && same("blue", &blue)).then_some(())
    });
    let text = daemon.scrape("/metrics?set=full");
    assert_eq!(total(&text, "netskoop_tcpretrans_segments_total", "red", "type=\"syn_ack\""), 0);
    assert_eq!(total(&text, "netskoop_tcpretrans_segments_total", "blue", "type=\"syn\""), 0);
    // The older system's program did not see the answers.
    let old = daemon.scrape("/metrics?names=kubeskoop&collect[]=tcpretrans");
    let of = |pod: &str| old.lines().find(|line| line.contains(&format!("k8s_pod=\"{pod}\"")));
    assert!(of("red").is_some() && of("blue").is_none(), "{old}");
}

#[test]
fn a_gap_is_filled_fast() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(6, Setup::on_node());
    blue.run("nft", &["add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c tcp dport 7400 meta length > 500 numgen inc mod 16 == 7 drop"]);
    for version in [4, 6] {
        let pair = Pair::new(&red, &blue, address(version, 6, 2, 7400));
        let Pair { mut client, mut server, _listener } = pair;
        let reader = std::thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()).unwrap());
        client.write_all(&vec![7; 3 << 20]).unwrap();
        drop(client);
        assert_eq!(reader.join().unwrap(), 3 << 20);
    }
    let text = daemon.scrape("/metrics?set=full");
    let fast = total(&text, "netskoop_tcpretrans_packets_total", "red", "trigger=\"fast\"");
    assert!(fast > 0, "{text}");
    assert_eq!(
        total(&text, "netskoop_tcpretrans_segments_total", "red", ""),
        kernel(&red, "Tcp.RetransSegs")
    );
}

#[test]
fn what_this_host_refuses_to_send_again_is_apart() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(7, Setup::on_node());
    if daemon.probe("tcpretrans").state.reason.is_some() {
        return crate::support::skip("this kernel does not tell what could not be sent once more");
    }
    for version in [4, 6] {
        let mut pair = Pair::new(&red, &blue, address(version, 7, 2, 7400));
        let wanted = pair.forth();
        let mut follow = follow(&daemon, "&type=TCP_RETRANS_FAILED&entity=red");
        // It is sent once and lost; only then this host lets nothing out.
        drop_at(&blue, "input", 7400);
        pair.client.write_all(b"hello").unwrap();
        drop_at(&red, "output", 7400);
        let events = events_until(&mut follow, &[red.inode()], |_| true);
        allow(&red);
        allow(&blue);
        assert_eq!(events[0].net.as_ref(), Some(&wanted));
        assert_eq!(events[0].fields.get("error"), Some(&Value::Number(1)), "{:#?}", events[0]);
        pair.server.read_exact(&mut [0; 5]).unwrap();
    }
    let text = daemon.scrape("/metrics?set=full");
    let of = |metric: &str| total(&text, metric, "red", "");
    let failed = of("netskoop_tcpretrans_failed_total");
    assert!(failed >= 2);
    assert_eq!(failed, kernel(&red, "TcpExt.TCPRetransFail"));
    // The kernel counts what it tried.
    assert_eq!(of("netskoop_tcpretrans_segments_total") + failed, kernel(&red, "Tcp.RetransSegs"));
}

/// Waits until a connection of a port is in a state, as `ss` names it.
fn state(netns: &Netns, port: u16, name: &str) {
    until(name, || {
        let filter = format!("sport = :{port} or dport = :{port}");
        netns.run("ss", &["-tanH", &filter]).lines().any(|line| line.starts_with(name)).then_some(())
    });
}

/// Four bytes for somebody who has closed already, and their addresses.
pub(crate) fn late_data(red: &Netns, blue: &Netns, target: SocketAddr) -> Net {
    let Pair { client, mut server, _listener } = Pair::new(red, blue, target);
    let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    drop(client);
    state(red, target.port(), "FIN-WAIT-2");
    server.write_all(b"late").unwrap();
    tuple("tcp", peer, local)
}

/// A connection in good order; then its peer wants the same ports again, is told that it is too early, and gives up. The
/// addresses of what it sends.
pub(crate) fn same_ports_again(red: &Netns, blue: &Netns, target: SocketAddr) -> Net {
    let Pair { client, mut server, _listener } = Pair::new(red, blue, target);
    let local = client.local_addr().unwrap();
    drop((client, _listener));
    assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
    drop(server);
    state(red, target.port(), "TIME-WAIT");
    blue.enter(|| {
        let family = if target.is_ipv4() {
            rustix::net::AddressFamily::INET
        } else {
            rustix::net::AddressFamily::INET6
        };
        let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &target).unwrap();
        assert!(rustix::net::connect(&socket, &local).is_err());
    });
    tuple("tcp", target, local)
}

#[test]
fn what_comes_in_time_wait_is_told() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(8, Setup::on_node().set("probes.tcptwrcv", "enabled = true"));
    let mut follow = follow(&daemon, "&entity=red");
    let mut wanted = Vec::new();
    for version in [4, 6] {
        let late = late_data(&red, &blue, address(version, 8, 2, 7400));
        wanted.push(("TCP_TIME_WAIT_RECEIVE", "data", "4", late));
        let net = same_ports_again(&red, &blue, address(version, 8, 2, 7401));
        wanted.push(("TCP_TIME_WAIT_RECEIVE", "syn", "", net.clone()));
        wanted.push(("TCP_TIME_WAIT_RESET", "rst", "", net));
    }
    let mut missing = wanted.clone();
    let events = events_until(&mut follow, &[red.inode()], |event| {
        let Some(net) = event.net.as_ref() else { return false };
        let fields = (text_of(event, "type"), text_of(event, "payload"));
        missing.retain(|(kind, what, payload, tuple)| {
            (*kind, *what, *payload, tuple) != (&*event.kind, &*fields.0, &*fields.1, net)
        });
        missing.is_empty()
    });
    let told = events.iter().filter(|event| event.probe == "tcptwrcv");
    assert!(told.clone().count() >= wanted.len());
    for event in told {
        let net = event.net.as_ref().unwrap();
        assert!(wanted.iter().any(|wanted| wanted.3 == *net), "{event:#?}");
    }
    let text = daemon.scrape("/metrics");
    for kind in ["data", "syn", "rst"] {
        let labels = format!("type=\"{kind}\"");
        assert!(total(&text, "netskoop_tcptwrcv_segments_total", "red", &labels) >= 2, "{kind}: {text}");
    }
    assert_eq!(total(&text, "netskoop_tcptwrcv_segments_total", "blue", ""), 0);
}

/// A socket that connects without waiting, bound to an address if one is given.
fn attempt(
    from: &Netns,
    source: Option<SocketAddr>,
    target: SocketAddr,
    flags: rustix::net::SocketFlags,
) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket_with};
    from.enter(|| {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
        if let Some(source) = source {
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            bind(&socket, &source).unwrap();
        }
        let _ = connect(&socket, &target);
        TcpStream::from(socket)
    })
}

#[test]
fn failed_connections_are_told_with_cause_and_process() {
    own_node!(Pids::Shared);
    let setup = Setup::on_node().set("probes.tcpconnect", "enabled = true\nflows = true\nslow = \"1ms\"");
    let (red, blue, daemon) = two(9, setup);
    // One local port is all that there is for programs that do not ask for one.
    red.run("sysctl", &["-q", "-w", "net.ipv4.ip_local_port_range=50000 50000"]);
    let mut follow = follow(&daemon, "&type=TCP_CONNECT_FAILED&entity=red");
    let mut wanted = Vec::new();
    for version in [4, 6] {
        let (closed, open) = (address(version, 9, 2, 7402), address(version, 9, 2, 7403));
        let (silent, source) = (address(version, 9, 2, 7400), |port| Some(address(version, 9, 1, port)));
        let waiting = rustix::net::SocketFlags::empty();
        let first = attempt(&red, source(21_000), closed, waiting);
        drop(first);
        wanted.push(("refused", tuple("tcp", source(21_000).unwrap(), closed)));
        // The only port is taken to this peer by the first.
        let listener = blue.enter(|| TcpListener::bind(open).unwrap());
        let holder = attempt(&red, None, open, waiting);
        assert_eq!(holder.local_addr().unwrap().port(), 50_000);
        drop(attempt(&red, None, open, waiting));
        wanted.push(("no_port", tuple("tcp", SocketAddr::new(source(0).unwrap().ip(), 0), open)));
        // So is one that a program asks for.
        let twice = source(21_002);
        let first = attempt(&red, twice, open, waiting);
        drop(attempt(&red, twice, open, waiting));
        wanted.push(("no_port", tuple("tcp", twice.unwrap(), open)));
        drop((holder, first, listener));
        // Given up by the program, after longer than the option allows without a word.
        drop_at(&blue, "input", 7400);
        let patient = attempt(&red, source(21_001), silent, rustix::net::SocketFlags::NONBLOCK);
        until("the SYN is sent once more", || {
            let text = daemon.scrape("/metrics?set=full");
            let syns = total(&text, "netskoop_tcpretrans_segments_total", "red", "type=\"syn\"");
            (syns > wanted.len() as u64 / 4).then_some(())
        });
        drop(patient);
        allow(&blue);
        wanted.push(("cancelled", tuple("tcp", source(21_001).unwrap(), silent)));
    }
    let mut missing = wanted.clone();
    let events = events_until(&mut follow, &[red.inode()], |event| {
        let Some(net) = event.net.as_ref() else { return false };
        let reason = text_of(event, "reason");
        // Where no port was found the kernel may not have chosen an address either.
        missing.retain(|(cause, tuple)| {
            let same = if *cause == "no_port" {
                tuple.dst == net.dst && tuple.sport == net.sport
            } else {
                tuple == net
            };
            *cause != reason || !same
        });
        missing.is_empty()
    });
    assert_eq!(events.len(), wanted.len(), "{events:#?}");
    for event in &events {
        let process = event.process.as_ref().expect("it is known who connects");
        assert_eq!(process.pid, std::process::id(), "{event:#?}");
        let error = match text_of(event, "reason").as_ref() {
            "refused" => Some(&Value::Number(111)),
            "no_port" => Some(&Value::Number(99)),
            _ => None,
        };
        assert_eq!(event.fields.get("error"), error, "{event:#?}");
    }
    let text = daemon.scrape("/metrics");
    for (cause, count) in [("refused", 2), ("no_port", 4), ("cancelled", 2)] {
        let labels = format!("cause=\"{cause}\"");
        let failures = total(&text, "netskoop_tcpconnect_failures_total", "red", &labels);
        assert_eq!(failures, count, "{cause}: {text}");
    }
    let peer = "dst=\"10.9.9.2\",dport=\"7402\",cause=\"refused\"";
    assert_eq!(total(&text, "netskoop_tcpconnect_peer_failures_total", "red", peer), 1, "{text}");
    // Two connections were made over each version.
    assert_eq!(total(&text, "netskoop_tcpconnect_handshake_seconds_count", "red", ""), 4);
    assert_eq!(total(&text, "netskoop_tcpconnect_handshake_seconds_count", "blue", ""), 0);
    crate::golden::lint(&text, "netskoop");
}

#[test]
fn round_trip_times_are_those_of_the_sockets() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().set("probes.tcprtt", "enabled = true\ninterval = \"1ms\"");
    let (red, blue, daemon) = two(10, setup);
    for (at, version) in [4, 6].into_iter().enumerate() {
        let mut pair = Pair::new(&red, &blue, address(version, 10, 2, 7404));
        for _ in 0..50 {
            pair.client.write_all(b"ping").unwrap();
            pair.server.read_exact(&mut [0; 4]).unwrap();
            pair.server.write_all(b"pong").unwrap();
            pair.client.read_exact(&mut [0; 4]).unwrap();
        }
        drop(pair);
        let text = daemon.scrape("/metrics");
        for entity in ["red", "blue"] {
            let of =
                |what: &str| total(&text, &format!("netskoop_tcprtt_smoothed_seconds_{what}"), entity, "");
            // Once at the end at least, and as often as it was asked.
            assert!(of("count") > at as u64 && of("count") <= 102 * (at as u64 + 1), "{text}");
        }
    }
    let text = daemon.scrape("/metrics");
    let buckets = text.lines().filter(|line| {
        line.starts_with("netskoop_tcprtt_smoothed_seconds_bucket{kind=\"netns\",name=\"red\"")
    });
    let counts: Vec<f64> = buckets.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(counts.len(), 9);
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!(counts[8] as u64, total(&text, "netskoop_tcprtt_smoothed_seconds_count", "red", ""));
    crate::golden::lint(&text, "netskoop");
}

#[test]
fn drops_are_told_by_place_class_and_flow() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(11, Setup::on_node().set("probes.packetloss", "flows = true"));
    let mut flows = Vec::new();
    for (version, count) in [(4, 5), (6, 3)] {
        let (source, target) = (address(version, 11, 1, 22_000), address(version, 11, 2, 7405));
        // The neighbours get to know each other first.
        drop(Pair::new(&red, &blue, address(version, 11, 2, 7406)));
        red.enter(|| {
            let socket = std::net::UdpSocket::bind(source).unwrap();
            // Each is answered with an error, which the next call would tell.
            (0..count).for_each(|_| while socket.send_to(b"hello", target).is_err() {});
        });
        flows.push((tuple("udp", source, target), count));
    }
    // No scrape waits until a place has its name, but the sums by reason and class are there from the first on.
    let (packets, location) =
        ("netskoop_packetloss_packets_total", "netskoop_packetloss_location_packets_total");
    let first = daemon.scrape("/metrics?set=full");
    assert_eq!(total(&first, packets, "blue", "reason=\"NO_SOCKET\""), 8, "{first}");
    let text = until("the places have names", || {
        let text = daemon.scrape("/metrics?set=full");
        (total(&text, location, "blue", "") == total(&text, packets, "blue", "")).then_some(text)
    });
    for (net, count) in &flows {
        let labels = format!(
            "protocol=\"UDP\",src=\"{}\",sport=\"{}\",dst=\"{}\",dport=\"{}\"",
            net.src, net.sport, net.dst, net.dport
        );
        let name = "netskoop_packetloss_flow_packets_total";
        assert_eq!(total(&text, name, "blue", &labels), *count, "{labels}: {text}");
    }
    // The users' first case is solved by this function's name.
    let of = |metric: &str, labels: &str| total(&text, metric, "blue", labels);
    let udp = of(location, "location=\"__udp4_lib_rcv\"") + of(location, "location=\"__udp6_lib_rcv\"");
    assert_eq!(udp, 8, "{text}");
    let all = of(packets, "");
    let classes = of("netskoop_packetloss_class_packets_total", "");
    assert_eq!(classes - of("netskoop_packetloss_class_packets_total", "class=\"ignored\""), all);
    assert_eq!(of(packets, "reason=\"NO_SOCKET\""), 8);
    let old = daemon.scrape("/metrics?names=kubeskoop&collect[]=packetloss");
    let line = old.lines().find(|line| line.contains("src=\"10.9.11.1\"") && line.contains("UDP")).unwrap();
    assert!(line.contains("sport=\"0\"") && line.ends_with(" 5"), "{line}");
    crate::golden::lint(&old, "kubeskoop");
}

#[test]
fn a_probe_that_costs_too_much_is_switched_off_and_says_so() {
    own_node!(Pids::Own);
    let setup = Setup::on_node()
        .set("limits", "bpf_cpu = \"0.01%\"")
        .set("probes.tcprtt", "enabled = true\ninterval = \"1ms\"");
    let (red, blue, daemon) = two(12, setup);
    let mut follow = follow(&daemon, "&type=PROBE_SWITCHED_OFF");
    let mut pair = Pair::new(&red, &blue, address(4, 12, 2, 7407));
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    let event = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(order) {
                pair.client.write_all(b"ping").unwrap();
                pair.server.read_exact(&mut [0; 4]).unwrap();
                pair.server.write_all(b"pong").unwrap();
                pair.client.read_exact(&mut [0; 4]).unwrap();
            }
        });
        let event = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            loop {
                let line = follow.next_line().expect("the stream goes on");
                let event: Event = serde_json::from_str(&line).unwrap();
                // Others are as expensive on a machine where much goes wrong.
                if event.probe == "tcprtt" {
                    break event;
                }
            }
        }));
        done.store(true, order);
        event.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(text_of(&event, "reason").contains("limits.bpf_cpu allows 0.01%"), "{event:#?}");
    let state = daemon.probe("tcprtt").state;
    assert_eq!(state.state, netskoop_api::StateName::Paused);
    assert!(state.reason.unwrap().starts_with("switched off for 10 minutes: "));
    assert!(state.programs.is_empty(), "{:?}", state.programs);
    // What the others cost is known now.
    let reset = daemon.probe("tcpretrans").state;
    assert!(reset.bpf_cpu_ratio.is_some(), "{reset:?}");
    let text = daemon.scrape("/metrics");
    assert!(text.contains("netskoop_probe_bpf_cpu_ratio{probe=\"tcpretrans\"}"), "{text}");
    // Whoever asks for it gets it again at once.
    daemon.change("tcprtt", r#"{"enabled":true,"runtime":true}"#);
    assert_eq!(daemon.probe("tcprtt").state.state, netskoop_api::StateName::On);
}

#[test]
fn what_the_network_forbids_is_unreachable_and_entities_are_chosen_by_pattern() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(75, Setup::on_node().set("probes.tcpconnect", "enabled = true"));
    let rule = "add table inet t; add chain inet t c { type filter hook input priority 0; }; \
                add rule inet t c tcp dport 7405 reject with icmpx type admin-prohibited";
    blue.run("nft", &[rule]);
    let mut follow = follow(&daemon, "&type=TCP_CONNECT_FAILED&entity=netns/re*");
    for (version, error) in [(4, 113), (6, 13)] {
        let target = address(version, 75, 2, 7405);
        // Somebody else's, which the pattern leaves out.
        drop(attempt(&blue, None, address(version, 75, 1, 7406), rustix::net::SocketFlags::empty()));
        drop(attempt(&red, None, target, rustix::net::SocketFlags::empty()));
        let event: Event = serde_json::from_str(&follow.next_line().unwrap()).unwrap();
        assert_eq!(event.net.as_ref().map(|net| &*net.dst), Some(&*target.ip().to_string()), "{event:#?}");
        assert_eq!(text_of(&event, "reason"), "unreachable", "{event:#?}");
        assert_eq!(event.fields.get("error"), Some(&Value::Number(error)), "{event:#?}");
    }
    let kept =
        |entity: &str| daemon.ask(&format!("/v1/events?type=TCP_CONNECT_FAILED&entity={entity}")).text();
    let both = kept("red");
    assert_eq!(both.lines().count(), 2, "{both}");
    let inode = red.inode().to_string();
    ["netns/red", "r*d", &inode].into_iter().for_each(|entity| assert_eq!(kept(entity), both, "{entity}"));
}
