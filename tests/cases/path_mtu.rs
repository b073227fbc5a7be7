//! A path on which large packets do not fit and nobody is told, between two namespaces with a router in between; and peers
//! that are out of reach altogether, which look much the same.

use crate::anomalies::total;
use crate::netanomaly::text;
use crate::root::{StopAtEnd, address, events_until, find, follow, tuple};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, run};
use netskoop_api::{Event, Net, Value};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The router drops what it would say of packets that do not fit.
const SILENT: &str = "add table inet silent; \
    add chain inet silent out { type filter hook output priority 0; }; \
    add rule inet silent out icmp type destination-unreachable drop; \
    add rule inet silent out icmpv6 type { packet-too-big, destination-unreachable } drop";

/// And here everything in one direction.
const ONE_WAY: &str = "add table inet way; \
    add chain inet way on { type filter hook forward priority 0; }; \
    add rule inet way on iifname DEVICE drop";

/// How many bytes fit through the far end of the path.
const NARROW: &str = "1300";

/// Two namespaces and a router between them.
struct Path {
    near: Netns,
    router: Netns,
    far: Netns,
    nets: (u8, u8),
}

impl Path {
    /// `nets` are numbers that no other has.
    fn new(name: &str, nets: (u8, u8)) -> Path {
        let netns = |end: &str| Netns::new(&format!("{name}-{end}"));
        let (near, router, far) = (netns("near"), netns("router"), netns("far"));
        near.cable(&router, nets.0);
        router.cable(&far, nets.1);
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            router.run("sysctl", &["-qw", setting]);
        }
        // To the net at the other end, by the router's address on this side.
        for (from, to, via, host) in [(&near, nets.1, nets.0, 2), (&far, nets.0, nets.1, 1)] {
            for version in [4, 6] {
                let net = if version == 4 { format!("10.9.{to}.0/24") } else { format!("fd09::{to}:0/112") };
                let gateway = address(version, via, host, 0).ip().to_string();
                run("ip", &["-n", &from.0, "route", "add", &net, "via", &gateway]);
            }
        }
        router.run("nft", &[SILENT]);
        Path { near, router, far, nets }
    }

    /// What does not fit is dropped from now on. The far end itself knows nothing of it, and offers large segments.
    fn narrow(&self) {
        let device = format!("c{}a", self.nets.1);
        run("ip", &["-n", &self.router.0, "link", "set", &device, "mtu", NARROW]);
    }

    /// What comes from the near end is dropped from now on; what comes from the far end is not.
    fn block_one_way(&self) {
        let device = format!("c{}b", self.nets.0);
        self.router.run("nft", &[&ONE_WAY.replace("DEVICE", &device)]);
    }

    fn cut(&self) {
        run("ip", &["-n", &self.far.0, "link", "set", &format!("c{}b", self.nets.1), "down"]);
    }

    fn connect(&self, version: u8, port: u16) -> Connection {
        let target = address(version, self.nets.1, 2, port);
        let listener = self.far.enter(|| TcpListener::bind(target).unwrap());
        // While neighbours get to know each other round trips take long, and then so do time-outs.
        let first = self.near.enter(|| TcpStream::connect(target).unwrap());
        Connection { client: first, server: listener.accept().unwrap().0 }.exchange();
        let client = self.near.enter(|| TcpStream::connect(target).unwrap());
        let server = listener.accept().unwrap().0;
        let connection = Connection { client, server };
        connection.exchange();
        connection
    }
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    /// Small packets arrive at both ends.
    fn exchange(&self) {
        for (mut from, mut to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            from.write_all(b"small").unwrap();
            to.read_exact(&mut [0; 5]).unwrap();
        }
    }

    fn net(&self) -> Net {
        let (local, peer): (SocketAddr, SocketAddr) =
            (self.client.local_addr().unwrap(), self.client.peer_addr().unwrap());
        tuple("tcp", local, peer)
    }

    /// Two segments of full size and a short one.
    fn send_some(&self) {
        (&self.client).write_all(&[7; 3000]).unwrap();
    }

    /// So much that all that is under way is of full size.
    fn send_much(&self) {
        self.client.set_nonblocking(true).unwrap();
        while (&self.client).write(&[7; 65536]).is_ok() {}
    }
}

/// The peers of these connections send a little now and then, until it is done.
fn chatter<'scope>(
    connections: &'scope [Connection],
    scope: &'scope std::thread::Scope<'scope, '_>,
    done: &'scope AtomicBool,
) {
    for connection in connections {
        connection.server.set_nonblocking(true).unwrap();
    }
    scope.spawn(move || {
        while !done.load(Ordering::Relaxed) {
            for connection in connections {
                let _ = (&connection.server).write(b"x");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// What has been told of connections.
#[derive(Default)]
struct Told {
    suspected: BTreeMap<String, Event>,
    timeouts: BTreeMap<String, u32>,
}

impl Told {
    fn note(&mut self, event: &Event) {
        let Some(net) = event.net.as_ref().map(|net| format!("{net:?}")) else { return };
        if text(event, "anomaly") == "mtu_black_hole" {
            assert!(self.suspected.insert(net, event.clone()).is_none(), "twice: {event:#?}");
        } else if text(event, "trigger") == "timeout" {
            *self.timeouts.entry(net).or_default() += 1;
        }
    }

    /// Whether each of them has waited so often in vain.
    fn have_waited(&self, connections: &[&Connection], times: u32) -> bool {
        let timeouts = |connection: &&Connection| self.timeouts.get(&format!("{:?}", connection.net()));
        connections.iter().all(|connection| timeouts(connection).is_some_and(|count| *count >= times))
    }
}

/// What is told of a packet that did not fit.
fn check(event: &Event, whose: &Netns, evidence: &str) {
    assert_eq!(event.entity.as_ref().unwrap().name, whose.0, "{event:#?}");
    let number = |field: &str| match event.fields.get(field) {
        Some(Value::Number(number)) => *number,
        _ => panic!("{field} of {event:#?}"),
    };
    let version = if event.net.as_ref().unwrap().dst.contains(':') { 6 } else { 4 };
    assert_eq!((number("packet_size"), number("path_mtu")), (1500, 1500), "{event:#?}");
    // Without the options, which are there in each segment.
    assert_eq!(number("mss"), if version == 4 { 1448 } else { 1428 }, "{event:#?}");
    assert!(number("timeouts") >= 3, "{event:#?}");
    assert_eq!(text(event, "evidence"), evidence, "{event:#?}");
    assert_eq!(event.process, None, "a timer is nobody's");
}

/// Time-outs that a peer out of reach is waited for: far more than it takes to suspect the path.
const PATIENCE: u32 = 5;

#[test]
fn a_path_that_swallows_large_packets_is_suspected_and_a_peer_out_of_reach_is_not() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node()
        .set("events", "rate = 10000\nburst = 10000")
        .set("probes.netanomaly", "enabled = true")
        .start();
    provoke(&daemon);
}

/// Large packets that get lost at one path, everything at another, and at a third everything in one direction.
pub(crate) fn provoke(daemon: &Daemon) {
    let (hole, gone, deaf) =
        (Path::new("hole", (26, 27)), Path::new("gone", (28, 29)), Path::new("deaf", (30, 31)));
    let nears = [&hole.near, &gone.near, &deaf.near];
    daemon.entities_until("all", |now| nears.iter().all(|netns| find(now, netns.inode()).is_some()));
    let both = |path: &Path, port| [4, 6].map(|version| path.connect(version, port));
    // Some send something small at the end; others only what is too large, and hear from their peers.
    let (short, long) = (both(&hole, 7400), both(&hole, 7401));
    let (gone_short, deaf_short) = (both(&gone, 7400), both(&deaf, 7400));
    // These peers speak from the beginning, or only when they can have been waited for.
    let (deaf_long, deaf_late) = (both(&deaf, 7401), both(&deaf, 7402));
    let lost = [&short, &long, &gone_short, &deaf_short, &deaf_long, &deaf_late];
    let lost: Vec<&Connection> = lost.into_iter().flatten().collect();
    let mut follow = follow(daemon, "&type=NET_ANOMALY,TCP_RETRANS");
    hole.narrow();
    gone.cut();
    deaf.block_one_way();
    let (mut told, mut late, done) = (Told::default(), Some(&deaf_late), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&done);
        chatter(&long, scope, &done);
        chatter(&deaf_long, scope, &done);
        [&short, &gone_short, &deaf_short].into_iter().flatten().for_each(Connection::send_some);
        [&long, &deaf_long, &deaf_late].into_iter().flatten().for_each(Connection::send_much);
        events_until(&mut follow, &[], |event| {
            told.note(event);
            if let Some(peers) = late.take_if(|late| told.have_waited(&late.each_ref(), 2)) {
                chatter(peers, scope, &done);
            }
            // The time-outs of those that are gone come through the same ring after what would have been told of them.
            told.have_waited(&lost, PATIENCE)
        });
    });
    for (connections, evidence) in [(&short, "smaller_acknowledged"), (&long, "peer_sends_on")] {
        for connection in connections {
            let event = told.suspected.remove(&format!("{:?}", connection.net()));
            check(
                &event.unwrap_or_else(|| panic!("{:?} is not told", connection.net())),
                &hole.near,
                evidence,
            );
        }
    }
    assert!(told.suspected.is_empty(), "{:#?}", told.suspected);
    let metrics = daemon.scrape("/metrics?collect[]=netanomaly");
    for (netns, count) in [(&hole.near, 4), (&gone.near, 0), (&deaf.near, 0), (&hole.far, 0)] {
        let counted = total(&metrics, "netskoop_netanomaly_total", &netns.0, "anomaly=\"mtu_black_hole\"");
        assert_eq!(counted, count, "{}: {metrics}", netns.0);
    }
}
