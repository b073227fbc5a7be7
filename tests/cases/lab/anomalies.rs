//! What netanomaly looks for and what cannot be had without changing what all namespaces share.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, Sysctl};
use crate::netanomaly::{failed, knock, text};
use crate::support::until;
use std::net::UdpSocket;

/// A series of the one metric.
fn label(anomaly: &str) -> String {
    format!(",anomaly=\"{anomaly}\"")
}

pub(super) fn silent_neighbours(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "silent", 21);
    for (version, so_far) in [(4, 1.0), (6, 2.0)] {
        let target = crate::root::address(version, 21, 77, 9);
        knock(&pair.near, target);
        let event =
            lab.event("NET_ANOMALY", &pair.near, |event| text(event, "neighbour") == target.ip().to_string());
        assert_eq!((&*text(&event, "anomaly"), &*text(&event, "device")), ("neighbour_failed", "c21a"));
        assert!(failed(&pair.near).contains(&target.ip().to_string()));
        lab.wait("netanomaly", "total", &pair.near, &label("neighbour_failed"), |value| value == so_far);
    }
    assert_eq!(lab.value("netanomaly", "total", &pair.far.0, &label("neighbour_failed")), None);
    Seen("NET_ANOMALY v4 v6, as ip neigh has them".to_owned())
}

pub(super) fn path_mtu(lab: &Lab) -> Outcome {
    crate::path_mtu::provoke(&lab.daemon);
    Seen("NET_ANOMALY v4 v6, and none of a peer out of reach".to_owned())
}

pub(super) fn full_neighbour_table(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "crowded", 22);
    for (version, path) in [
        (4, "/proc/sys/net/ipv4/neigh/default/gc_thresh3"),
        (6, "/proc/sys/net/ipv6/neigh/default/gc_thresh3"),
    ] {
        let _limit = Sysctl::new(path, "1");
        for host in 70..90 {
            knock(&pair.near, crate::root::address(version, 22, host, 9));
        }
        let event = lab.event("NET_ANOMALY", &pair.near, |event| {
            text(event, "anomaly") == "neighbour_table_full"
                && text(event, "neighbour").contains(':') == (version == 6)
        });
        assert_eq!(text(&event, "device"), "c22a", "{event:#?}");
    }
    lab.wait("netanomaly", "total", &pair.near, &label("neighbour_table_full"), |value| value > 1.0);
    // The table is everybody's, so that the other may find no room either, but not on this interface.
    let others = lab.daemon.ask(&format!("/v1/events?type=NET_ANOMALY&entity={}", pair.far.0)).text();
    assert!(!others.contains("c22a"), "{others}");
    Seen("NET_ANOMALY v4 v6".to_owned())
}

pub(super) fn no_memory_for_sockets(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "poor", 23);
    // Since Linux 6.0 each CPU has a megabyte beyond the limit, so that it takes several sockets.
    let _limit = Sysctl::new("/proc/sys/net/ipv4/udp_mem", "0 0 0");
    let count = || lab.value("netanomaly", "total", &pair.far.0, &label("socket_memory"));
    for version in [4, 6] {
        let (mut readers, before) = (Vec::new(), count().unwrap_or(0.0));
        let wanted = until("a socket that gets no memory", || {
            // Nobody reads what it gets.
            let port = 7600 + u16::try_from(readers.len()).unwrap() % 100;
            let target = pair.far(version, port);
            readers.push(pair.far.enter(|| UdpSocket::bind(target).unwrap()));
            pair.near.enter(|| {
                let sender = UdpSocket::bind(pair.near(version, 0)).unwrap();
                for _ in 0..100 {
                    let _ = sender.send_to(&[0; 1400], target);
                }
            });
            (count() > Some(before)).then_some(target)
        });
        let event = lab.event("NET_ANOMALY", &pair.far, |event| {
            let net = event.net.as_ref();
            net.is_some_and(|net| net.dst == wanted.ip().to_string() && net.proto == "udp")
        });
        assert_eq!((&*text(&event, "anomaly"), &*text(&event, "direction")), ("socket_memory", "receive"));
    }
    assert_eq!(lab.value("netanomaly", "total", &pair.near.0, &label("socket_memory")), None);
    Seen("NET_ANOMALY v4 v6".to_owned())
}
