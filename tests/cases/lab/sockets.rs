//! Sockets that suffer.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, modprobe, run};
use crate::support::until;
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
