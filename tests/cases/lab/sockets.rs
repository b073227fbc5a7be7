//! Sockets that suffer.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, modprobe, run};
use crate::listen::{LateAccept, reset_while_waiting};
use crate::support::until;
use netskoop_api::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

pub(super) fn retransmits(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "again", 7);
    for version in [4, 6] {
        let target = pair.far(version, 7400);
        let listener = pair.far.enter(|| TcpListener::bind(target).unwrap());
        let mut client = pair.near.enter(|| TcpStream::connect(target).unwrap());
        let mut server = listener.accept().unwrap().0;
        let before = lab.value("tcp", "retransmitted_segments_total", &pair.near.0, "").unwrap();
        run("tc", &["-n", &pair.near.0, "qdisc", "add", "dev", "c7a", "root", "netem", "loss", "100%"]);
        client.write_all(b"hello").unwrap();
        lab.wait("tcp", "retransmitted_segments_total", &pair.near, "", |value| value > before);
        run("tc", &["-n", &pair.near.0, "qdisc", "del", "dev", "c7a", "root"]);
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"hello");
    }
    assert_eq!(lab.value("tcp", "retransmitted_segments_total", &pair.far.0, ""), Some(0.0));
    Seen("counter v4 v6".to_owned())
}

/// Connections that nobody accepts, as many as the queue takes and some more.
fn crowd(pair: &Pair, target: SocketAddr) -> (OwnedFd, Vec<OwnedFd>) {
    let family =
        if target.is_ipv4() { rustix::net::AddressFamily::INET } else { rustix::net::AddressFamily::INET6 };
    let socket = || rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    let listener = pair.far.enter(|| {
        let listener = socket();
        rustix::net::bind(&listener, &target).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        listener
    });
    let clients = pair.near.enter(|| {
        let connecting = |_| {
            let client = socket();
            rustix::io::ioctl_fionbio(&client, true).unwrap();
            let _ = rustix::net::connect(&client, &target);
            client
        };
        (0..6).map(connecting).collect()
    });
    (listener, clients)
}

pub(super) fn full_accept_queue(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "crowd", 8);
    let mut before = 0.0;
    for version in [4, 6] {
        let _crowd = crowd(&pair, pair.far(version, 7500));
        before = lab.wait("tcpext", "listen_overflows_total", &pair.far, "", |value| value > before);
    }
    assert_eq!(lab.value("tcpext", "listen_overflows_total", &pair.near.0, ""), Some(0.0));
    Seen("listen_overflows v4 v6".to_owned())
}

pub(super) fn late_accept(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "late", 18);
    let mut sum = 0.0..=0.0;
    for version in [4, 6] {
        let late = LateAccept::new(&pair.near, &pair.far, pair.far(version, 7900));
        let event = lab.event("TCP_ACCEPT_SLOW", &pair.far, |event| event.net.as_ref() == Some(&late.net));
        late.is_told(&event);
        sum = sum.start() + late.waited.start().as_secs_f64()..=sum.end() + late.waited.end().as_secs_f64();
        reset_while_waiting(&pair.near, &pair.far, pair.far(version, 7900));
    }
    lab.wait("listen", "wait_seconds_count", &pair.far, ",port=\"7900\"", |value| value == 2.0);
    lab.wait("listen", "wait_seconds_sum", &pair.far, ",port=\"7900\"", |value| sum.contains(&value));
    lab.wait("listen", "abandoned_total", &pair.far, ",port=\"7900\"", |value| value == 2.0);
    lab.wait("listen", "connections_total", &pair.far, ",port=\"7900\"", |value| value == 4.0);
    assert_eq!(lab.value("listen", "connections_total", &pair.near.0, ",port=\"7900\""), None);
    Seen("TCP_ACCEPT_SLOW v4 v6 as long as measured, with the process; abandoned connections".to_owned())
}

pub(super) fn overflow(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "full", 19);
    for version in [4, 6] {
        let target = pair.far(version, 7901);
        let _crowd = crowd(&pair, target);
        lab.event("TCP_ACCEPT_OVERFLOW", &pair.far, |event| {
            event.fields.get("listener") == Some(&Value::Text(target.to_string()))
                && event
                    .net
                    .as_ref()
                    .is_some_and(|net| net.dport == 7901 && net.src == pair.near(version, 0).ip().to_string())
        });
    }
    // The kernel counts all ports together; nobody else listens there.
    until("as many as the kernel counts", || {
        let of = |packet| {
            lab.value(
                "listen",
                "overflows_total",
                &pair.far.0,
                &format!(",port=\"7901\",packet=\"{packet}\""),
            )
        };
        let kernels = lab.value("tcpext", "listen_overflows_total", &pair.far.0, "")?;
        (of("syn")? + of("ack")? == kernels && kernels >= 2.0).then_some(())
    });
    Seen("TCP_ACCEPT_OVERFLOW v4 v6, as many as the kernel counts".to_owned())
}

pub(super) fn listener_drops(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "queue", 9);
    assert!(modprobe("tcp_diag"), "no module tcp_diag");
    lab.option("tcpsummary", "listeners", "true");
    for version in [4, 6] {
        let target = pair.far(version, 7600);
        let _crowd = crowd(&pair, target);
        let labels = format!(",listener=\"{target}\"");
        lab.wait("tcpsummary", "listener_drops_total", &pair.far, &labels, |value| value > 0.0);
        until("its queue is full", || {
            let full = lab.value("tcpsummary", "listener_backlog", &pair.far.0, &labels)?;
            (full >= 2.0).then_some(())
        });
    }
    Seen("drops and backlog of the listener v4 v6".to_owned())
}
