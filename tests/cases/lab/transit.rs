//! What packets lose on their way through the kernel.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, run};
use crate::latency::number;
use crate::root::tuple;
use crate::support::Netns;
use netskoop_api::{Net, Value};
use std::net::UdpSocket;

/// Sends a few datagrams to the far side; the addresses of all.
fn send(from: &Netns, own: std::net::SocketAddr, target: std::net::SocketAddr) -> Net {
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
