//! TCP resets of each kind.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair};
use crate::root::{refused, tuple};
use crate::support::{Netns, until};
use netskoop_api::{Event, Value};
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

/// Without a socket the older kernels tell nothing.
fn cannot_see_without_socket(lab: &Lab) -> bool {
    lab.cannot("tcpreset", "without a socket")
}

fn count(lab: &Lab, netns: &Netns, direction: &str, cause: &str, wanted: f64) {
    let labels = format!(",direction=\"{direction}\",cause=\"{cause}\"");
    lab.wait("tcpreset", "resets_total", netns, &labels, |value| value == wanted);
}

fn state(event: &Event) -> Option<&Value> {
    event.fields.get("state")
}

pub(super) fn closed_port(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "reset", 1);
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 20_001), pair.far(version, 7100));
        refused(&pair.near, source, target);
        let wanted = tuple("tcp", target, source);
        let event = lab.event("TCP_RESET_RECEIVE", &pair.near, |event| event.net.as_ref() == Some(&wanted));
        assert_eq!(state(&event), Some(&Value::Text("SYN_SENT".into())), "{event:#?}");
        if !cannot_see_without_socket(lab) {
            lab.event("TCP_RESET_NOSOCK", &pair.far, |event| event.net.as_ref() == Some(&wanted));
        }
    }
    count(lab, &pair.near, "receive", "connecting", 2.0);
    if cannot_see_without_socket(lab) {
        return Seen("TCP_RESET_RECEIVE v4 v6".to_owned());
    }
    count(lab, &pair.far, "send", "no_socket", 2.0);
    Seen("TCP_RESET_NOSOCK and TCP_RESET_RECEIVE v4 v6".to_owned())
}

/// A connection: the client's end in the near namespace, the server's in the far one.
fn connected(pair: &Pair, source: SocketAddr, target: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = pair.far.enter(|| TcpListener::bind(target).unwrap());
    let client = pair.near.enter(|| {
        let family = if source.is_ipv4() {
            rustix::net::AddressFamily::INET
        } else {
            rustix::net::AddressFamily::INET6
        };
        let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &source).unwrap();
        rustix::net::connect(&socket, &target).unwrap();
        TcpStream::from(socket)
    });
    (client, listener.accept().unwrap().0)
}

pub(super) fn unread_data(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "abort", 2);
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 20_002), pair.far(version, 7200));
        let (mut client, server) = connected(&pair, source, target);
        client.write_all(b"never read").unwrap();
        until("the data is there", || (server.peek(&mut [0; 16]).unwrap() > 0).then_some(()));
        drop(server);
        let wanted = tuple("tcp", target, source);
        let sent = lab.event("TCP_RESET_ACTIVE", &pair.far, |event| event.net.as_ref() == Some(&wanted));
        assert!(sent.process.is_some(), "a close has a process: {sent:#?}");
        let received =
            lab.event("TCP_RESET_RECEIVE", &pair.near, |event| event.net.as_ref() == Some(&wanted));
        assert_eq!(state(&received), Some(&Value::Text("ESTABLISHED".into())), "{received:#?}");
    }
    count(lab, &pair.far, "send", "process", 2.0);
    count(lab, &pair.near, "receive", "established", 2.0);
    Seen("TCP_RESET_ACTIVE and TCP_RESET_RECEIVE v4 v6".to_owned())
}

pub(super) fn late_data(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "late", 3);
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 20_003), pair.far(version, 7300));
        let (mut client, server) = connected(&pair, source, target);
        // If it were closed, it would depend on who is quicker whether its socket or one in TIME_WAIT gets the data.
        server.shutdown(Shutdown::Both).unwrap();
        // The end of the stream has come, so the socket at the other end takes nothing any more.
        assert_eq!(client.peek(&mut [0; 16]).unwrap(), 0);
        client.write_all(b"too late").unwrap();
        let wanted = tuple("tcp", target, source);
        lab.event("TCP_RESET_PROCESS", &pair.far, |event| event.net.as_ref() == Some(&wanted));
    }
    count(lab, &pair.far, "send", "socket", 2.0);
    Seen("TCP_RESET_PROCESS v4 v6".to_owned())
}
