//! Connections that are slow, fail, or are over.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, run};
use crate::anomalies::{late_data, same_ports_again};
use crate::root::{refused, tuple};
use crate::support::{Netns, until};
use netskoop_api::{Event, Value};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

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

pub(super) fn lost_data(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "lost", 14);
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
    lab.wait("tcpconnect", "handshake_seconds_count", &pair.near, "", |value| value == 2.0);
    Seen("TCP_CONNECT_FAILED v4 v6, as many as the kernel counts; handshakes".to_owned())
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
