//! Connection tracking at its limit.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, Sysctl, modprobe};
use std::net::UdpSocket;

const RULES: &str = "add table inet t; add chain inet t o { type filter hook output priority 0; }; \
                     add rule inet t o ct state new counter";

pub(super) fn full_table(lab: &Lab) -> Outcome {
    assert!(modprobe("nf_conntrack_netlink"), "no module nf_conntrack_netlink");
    let pair = Pair::new(lab, "full", 12);
    pair.near.run("nft", &[RULES]);
    let _limit = Sysctl::new("/proc/sys/net/netfilter/nf_conntrack_max", "200");
    let mut before = 0.0;
    for host in ["127.0.0.1", "[::1]"] {
        pair.near.enter(|| {
            let socket = UdpSocket::bind(format!("{host}:0")).unwrap();
            (1..1000).for_each(|port| drop(socket.send_to(b"x", format!("{host}:{port}"))));
        });
        before = lab.wait("conntrack", "dropped_total", &pair.near, "", |value| value > before + 300.0);
    }
    assert_eq!(lab.value("conntrack", "dropped_total", &pair.far.0, "").unwrap_or(0.0), 0.0);
    assert_eq!(lab.value("conntrack", "max_entries", &pair.near.0, ""), Some(200.0));
    let used = lab.value("limit", "used_ratio", &pair.near.0, ",limit=\"conntrack\"");
    assert!(used > Some(0.8), "{used:?}");
    Seen("dropped v4 v6, the limit".to_owned())
}

pub(super) fn events(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "track", 13);
    pair.near.run("nft", &[RULES]);
    lab.option("conntrack", "events", "true");
    for (host, port) in [("127.0.0.1", 7700), ("[::1]", 7701)] {
        let send = || {
            pair.near.enter(|| {
                let socket = UdpSocket::bind(format!("{host}:0")).unwrap();
                socket.send_to(b"x", format!("{host}:{port}")).unwrap();
            });
        };
        // Listening begins a moment after it is asked for.
        crate::support::until("a new connection", || {
            send();
            let text =
                lab.daemon.ask(&format!("/v1/events?type=CONNTRACK_NEW&entity={}", pair.near.0)).text();
            text.contains(&format!("\"dport\":{port}")).then_some(())
        });
        lab.event("CONNTRACK_NEW", &pair.near, |event| {
            event.net.as_ref().is_some_and(|net| net.dport == port)
        });
    }
    lab.option("conntrack", "events", "false");
    Seen("CONNTRACK_NEW v4 v6".to_owned())
}
