//! Connections that are slow, fail, or are over.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, run};
use crate::anomalies::{late_data, same_ports_again, total};
use crate::root::{refused, tuple};
use crate::support::{Netns, until};
use netskoop_api::{Event, Value};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

fn text(event: &Event, field: &str) -> String {
    event.fields.get(field).map(Value::to_string).unwrap_or_default()
}

/// Waits until a probe with hooks has counted as often as the kernel itself, and at least `least` times.
#[track_caller]
fn agree(lab: &Lab, netns: &Netns, ours: (&str, &str, &str), kernels: &str, least: f64) {
    let (probe, metric, labels) = ours;
    until(&format!("{metric} of {probe} is {kernels}"), || {
        let found = lab.value(probe, metric, &netns.0, labels)?;
        (lab.value("tcp", kernels, &netns.0, "") == Some(found) && found >= least).then_some(())
    });
}

/// Waits until what is counted by flow is in all what is counted exactly.
#[track_caller]
fn in_one_series_each(lab: &Lab, netns: &Netns, probe: &str, metrics: [&str; 2]) {
    until(&format!("{} is {}", metrics[1], metrics[0]), || {
        let text = lab.daemon.scrape(&format!("/metrics?set=full&collect[]={probe}"));
        let [exact, by_flow] =
            metrics.map(|metric| total(&text, &format!("netskoop_{probe}_{metric}"), &netns.0, ""));
        (exact > 0 && exact == by_flow).then_some(())
    });
    lab.option(probe, "flows", "false");
}

pub(super) fn lost_data(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "lost", 14);
    lab.option("tcpretrans", "flows", "true");
    for version in [4, 6] {
        let target = pair.far(version, 7800);
        let listener = pair.far.enter(|| TcpListener::bind(target).unwrap());
        let mut client = pair.near.enter(|| TcpStream::connect(target).unwrap());
        let mut server = listener.accept().unwrap().0;
        let wanted = tuple("tcp", client.local_addr().unwrap(), target);
        run("tc", &["-n", &pair.near.0, "qdisc", "add", "dev", "c14a", "root", "netem", "loss", "100%"]);
        client.write_all(b"hello").unwrap();
        // A probe for the loss of the last segment may come before the time-outs.
        let event = lab.event("TCP_RETRANS", &pair.near, |event| {
            event.net.as_ref() == Some(&wanted) && text(event, "trigger") == "timeout"
        });
        assert_eq!((text(&event, "type"), text(&event, "state")), ("data".into(), "ESTABLISHED".into()));
        assert!(event.fields.contains_key("srtt_ns"), "{event:#?}");
        run("tc", &["-n", &pair.near.0, "qdisc", "del", "dev", "c14a", "root"]);
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"hello");
    }
    let ours = ("tcpretrans", "segments_total", ",type=\"data\"");
    agree(lab, &pair.near, ours, "retransmitted_segments_total", 2.0);
    in_one_series_each(lab, &pair.near, "tcpretrans", ["segments_total", "flow_segments_total"]);
    Seen("TCP_RETRANS v4 v6, as many as the kernel counts".to_owned())
}

pub(super) fn after_the_end(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "over", 15);
    for (at, version) in [4, 6].into_iter().enumerate() {
        let late = late_data(&pair.near, &pair.far, pair.far(version, 7801));
        let again = same_ports_again(&pair.near, &pair.far, pair.far(version, 7802));
        let wanted = [
            ("TCP_TIME_WAIT_RECEIVE", "data", late),
            ("TCP_TIME_WAIT_RECEIVE", "syn", again.clone()),
            ("TCP_TIME_WAIT_RESET", "rst", again),
        ];
        for (kind, what, net) in wanted {
            lab.event(kind, &pair.near, |event| {
                event.net.as_ref() == Some(&net) && text(event, "type") == what
            });
            let labels = format!(",type=\"{what}\"");
            let least = at as f64 + 1.0;
            lab.wait("tcptwrcv", "segments_total", &pair.near, &labels, |value| value >= least);
        }
    }
    for what in ["data", "syn", "rst"] {
        let labels = format!(",type=\"{what}\"");
        assert_eq!(lab.value("tcptwrcv", "segments_total", &pair.far.0, &labels), None);
    }
    Seen("TCP_TIME_WAIT_RECEIVE and TCP_TIME_WAIT_RESET v4 v6".to_owned())
}

pub(super) fn refused_connections(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "shut", 16);
    lab.option("tcpconnect", "flows", "true");
    for version in [4, 6] {
        let (source, closed) = (pair.near(version, 20_016), pair.far(version, 7803));
        refused(&pair.near, source, closed);
        let wanted = tuple("tcp", source, closed);
        let event = lab.event("TCP_CONNECT_FAILED", &pair.near, |event| event.net.as_ref() == Some(&wanted));
        assert_eq!(
            (text(&event, "reason"), event.fields.get("error")),
            ("refused".into(), Some(&Value::Number(111)))
        );
        let process = event.process.as_ref().expect("it is known who connects");
        assert_eq!(process.pid, std::process::id(), "{event:#?}");
        let open = pair.far(version, 7804);
        let _listener = pair.far.enter(|| TcpListener::bind(open).unwrap());
        drop(pair.near.enter(|| TcpStream::connect(open).unwrap()));
    }
    let ours = ("tcpconnect", "failures_total", ",cause=\"refused\"");
    agree(lab, &pair.near, ours, "attempt_fails_total", 2.0);
    in_one_series_each(lab, &pair.near, "tcpconnect", ["failures_total", "peer_failures_total"]);
    lab.wait("tcpconnect", "handshake_seconds_count", &pair.near, "", |value| value == 2.0);
    Seen("TCP_CONNECT_FAILED v4 v6, as many as the kernel counts; handshakes".to_owned())
}

/// What comes of a connect() that has to fail; on an IPv6 socket also to an address of IPv4.
fn fails(from: &Netns, target: SocketAddr) -> Option<rustix::io::Errno> {
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    from.enter(|| connect(socket(family, SocketType::STREAM, None).unwrap(), &target)).err()
}

pub(super) fn without_a_route(lab: &Lab) -> Outcome {
    use rustix::io::Errno;
    let pair = Pair::new(lab, "lonely", 34);
    // A namespace may have the number of one that is gone, of which there are events.
    let older = lab.events("TCP_CONNECT_FAILED", &pair.near).last().map(|event| event.seq);
    for (way, route) in [("blackhole", "192.0.2.0/25"), ("prohibit", "192.0.2.128/25")] {
        pair.near.run("ip", &["route", "add", way, route]);
    }
    for (way, route) in [("blackhole", "2001:db8:1::/48"), ("prohibit", "2001:db8:2::/48")] {
        pair.near.run("ip", &["-6", "route", "add", way, route]);
    }
    let told = |address: &str, reason: &str, error: Errno| {
        let target: SocketAddr = address.parse().unwrap();
        assert_eq!(fails(&pair.near, target), Some(error), "{target}");
        let event = lab.event("TCP_CONNECT_FAILED", &pair.near, |event| {
            let net = event.net.as_ref();
            net.is_some_and(|net| {
                net.dst == target.ip().to_canonical().to_string() && net.dport == target.port()
            })
        });
        let errno = Value::Number(u64::try_from(error.raw_os_error()).unwrap());
        assert_eq!(
            (&*text(&event, "reason"), event.fields.get("error")),
            (reason, Some(&errno)),
            "{event:#?}"
        );
        let process = event.process.as_ref().expect("it is known who connects");
        assert_eq!(process.pid, std::process::id(), "{event:#?}");
    };
    let routes = [
        ("198.51.100.1:7806", Errno::NETUNREACH),
        ("[2001:db8:3::1]:7806", Errno::NETUNREACH),
        ("[::ffff:198.51.100.2]:7806", Errno::NETUNREACH),
        ("192.0.2.1:7806", Errno::INVAL),
        ("[2001:db8:1::1]:7806", Errno::INVAL),
        ("192.0.2.129:7806", Errno::ACCESS),
        ("[2001:db8:2::1]:7806", Errno::ACCESS),
    ];
    for (address, error) in routes {
        told(address, "no_route", error);
    }
    // Without an interface the address is none.
    told("[fe80::1]:7806", "other", Errno::INVAL);
    // These have begun when they end, and are not counted twice. The only port is taken to this peer.
    pair.near.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=50000 50000"]);
    let open = [pair.far(4, 7807), pair.far(6, 7807)];
    let listeners = open.map(|open| pair.far.enter(|| TcpListener::bind(open).unwrap()));
    let holders = open.map(|open| pair.near.enter(|| TcpStream::connect(open).unwrap()));
    let IpAddr::V4(address) = open[0].ip() else { panic!("{open:?}") };
    let mapped = SocketAddr::new(address.to_ipv6_mapped().into(), 7807);
    for target in [open[0], open[1], mapped] {
        assert_eq!(fails(&pair.near, target), Some(Errno::ADDRNOTAVAIL));
    }
    drop((holders, listeners));
    // With no address there is nothing to send from.
    let bare = Netns::new("bare");
    lab.daemon.entities_until("it", |now| now.entities.iter().any(|entity| entity.id.name == "bare"));
    bare.run("ip", &["link", "set", "lo", "down"]);
    bare.run("ip", &["link", "add", "plain", "type", "veth", "peer", "name", "other"]);
    bare.run("ip", &["link", "set", "plain", "addrgenmode", "none", "up"]);
    bare.run("ip", &["link", "set", "other", "addrgenmode", "none", "up"]);
    bare.run("ip", &["-6", "route", "add", "2001:db8::/32", "dev", "plain"]);
    assert_eq!(fails(&bare, "[2001:db8::1]:7808".parse().unwrap()), Some(Errno::ADDRNOTAVAIL));
    lab.event("TCP_CONNECT_FAILED", &bare, |event| text(event, "reason") == "no_address");
    let counted = [("no_route", routes.len()), ("other", 1), ("no_port", 3)];
    for (cause, count) in counted {
        lab.wait("tcpconnect", "failures_total", &pair.near, &format!(",cause=\"{cause}\""), |value| {
            value == count as f64
        });
    }
    let mut all = lab.events("TCP_CONNECT_FAILED", &pair.near);
    all.retain(|event| Some(event.seq) > older);
    assert_eq!(all.len(), counted.iter().map(|(_, count)| count).sum::<usize>(), "{all:#?}");
    Seen("TCP_CONNECT_FAILED v4 v6 for lack of a route, an address and a port, once each".to_owned())
}

pub(super) fn round_trips(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "rtt", 17);
    let mut before = 0.0;
    for version in [4, 6] {
        let target = pair.far(version, 7805);
        let listener = pair.far.enter(|| TcpListener::bind(target).unwrap());
        let mut client = pair.near.enter(|| TcpStream::connect(target).unwrap());
        let mut server = listener.accept().unwrap().0;
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        drop((client, server));
        for netns in [&pair.near, &pair.far] {
            lab.wait("tcprtt", "smoothed_seconds_count", netns, "", |value| value > before);
        }
        before = lab.value("tcprtt", "smoothed_seconds_count", &pair.near.0, "").unwrap();
    }
    Seen("histogram v4 v6".to_owned())
}
