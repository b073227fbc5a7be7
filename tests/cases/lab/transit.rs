//! What packets lose on their way through the kernel.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, one_of_five, run};
use crate::latency::{number, slow_filter};
use crate::root::tuple;
use crate::support::Netns;
use netskoop_api::{Net, Value};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

/// Sends a few datagrams to the far side; the addresses of all.
fn send(from: &Netns, own: SocketAddr, target: SocketAddr) -> Net {
    let socket = from.enter(|| UdpSocket::bind(own).unwrap());
    for _ in 0..3 {
        socket.send_to(b"hello", target).unwrap();
    }
    tuple("udp", own, target)
}

pub(super) fn netem_delay(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "delay", 20);
    run("tc", &["-n", &pair.near.0, "qdisc", "add", "dev", "c20a", "root", "netem", "delay", "300ms"]);
    for version in [4, 6] {
        let net = send(&pair.near, pair.near(version, 20_020), pair.far(version, 7820));
        let event = lab.event("NETIFTXLAT_QDISC", &pair.near, |event| event.net.as_ref() == Some(&net));
        assert_eq!(event.fields.get("device"), Some(&Value::Text("c20a".into())), "{event:#?}");
        assert!(number(&event, "latency_ns") >= 299_000_000, "{event:#?}");
    }
    // Both and what it took to find the neighbour.
    lab.wait("netiftxlat", "qdisc_seconds_count", &pair.near, "", |count| count >= 6.0);
    lab.wait("netiftxlat", "driver_seconds_count", &pair.near, "", |count| count >= 6.0);
    assert_eq!(lab.value("netiftxlat", "qdisc_seconds_count", &pair.far.0, ""), None, "it has no queue");
    Seen("NETIFTXLAT_QDISC v4 v6, histograms".to_owned())
}

/// Sends something to the far side over TCP, as often; the addresses of what was sent.
fn talk(pair: &Pair, target: SocketAddr) -> Net {
    let listener = pair.far.enter(|| TcpListener::bind(target).unwrap());
    let mut client = pair.near.enter(|| TcpStream::connect(target).unwrap());
    let mut server = listener.accept().unwrap().0;
    for _ in 0..3 {
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
    }
    tuple("tcp", client.local_addr().unwrap(), target)
}

/// Many rules at a hook, at either end: what is slow there, and which part of it is.
const HOOKS: [(&str, &str, bool, &str); 4] = [
    ("prerouting", "RXKERNEL_SLOW", true, "prerouting_ns"),
    ("input", "RXKERNEL_SLOW", true, "local_in_ns"),
    ("output", "TXKERNEL_SLOW", false, "local_out_ns"),
    ("postrouting", "TXKERNEL_SLOW", false, "postrouting_ns"),
];

/// What rules hold up is told, with the part of the way in which they are.
fn told(lab: &Lab, netns: &Netns, kind: &str, part: Option<&str>, mut held_up: impl FnMut() -> Net) {
    one_of_five("the rules are slower than all else", || {
        let net = held_up();
        let event = lab.event(kind, netns, |event| event.net.as_ref() == Some(&net));
        let Some(part) = part else {
            assert_eq!(event.fields.len(), 1, "{event:#?}");
            return Some(());
        };
        (number(&event, part) > number(&event, "latency_ns") / 2).then_some(())
    });
}

/// Of slow datagrams, those to a port that nobody wants to hear of are not told.
fn only_wanted_datagrams(lab: &Lab, pair: &Pair, netns: &Netns, kind: &str) {
    for (option, value, port) in [("ports", "7824", 20_100), ("ignore_ports", "7823", 20_101)] {
        lab.option("kernellatency", option, value);
        for version in [4, 6] {
            let unwanted = send(&pair.near, pair.near(version, port), pair.far(version, 7823));
            let wanted = send(&pair.near, pair.near(version, port), pair.far(version, 7824));
            lab.event(kind, netns, |event| event.net.as_ref() == Some(&wanted));
            let told = lab.events(kind, netns);
            assert!(told.iter().all(|event| event.net.as_ref() != Some(&unwanted)), "{option}: {told:#?}");
        }
        lab.option("kernellatency", option, "");
    }
    assert!(lab.state("kernellatency").stream.is_some_and(|stream| stream.filtered > 0));
}

pub(super) fn many_rules(lab: &Lab) -> Outcome {
    let whole = lab.cannot("kernellatency", "as a whole");
    lab.option("kernellatency", "slow", "2ms");
    for (at, (hook, kind, far, part)) in HOOKS.into_iter().enumerate() {
        let pair = Pair::new(lab, hook, 21 + at as u8);
        let netns = if far { &pair.far } else { &pair.near };
        slow_filter(netns, hook, "meta l4proto { tcp, udp }", 60);
        let part = (!whole).then_some(part);
        for version in [4, 6] {
            told(lab, netns, kind, part, || talk(&pair, pair.far(version, 7821)));
            let mut port = 20_020;
            let mut datagram = || {
                port += 1;
                send(&pair.near, pair.near(version, port), pair.far(version, 7822))
            };
            if !whole {
                told(lab, netns, kind, part, &mut datagram);
            }
        }
        if !whole && !far {
            only_wanted_datagrams(lab, &pair, netns, kind);
        }
        let path = if far { "receive" } else { "transmit" };
        let least = if whole { 2.0 } else { 12.0 };
        lab.wait("kernellatency", &format!("{path}_seconds_count"), netns, "", |count| count >= least);
    }
    lab.option("kernellatency", "slow", "10ms");
    let protocols = if whole { "TCP" } else { "TCP and UDP, the slow part named," };
    Seen(format!("RXKERNEL_SLOW and TXKERNEL_SLOW of {protocols} v4 v6"))
}
