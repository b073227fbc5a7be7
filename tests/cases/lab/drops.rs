//! Packets that the kernel throws away.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, Pair, run};
use crate::anomalies::total;
use crate::root::tuple;
use crate::scans::{Scanner, Series, exact};
use crate::support::{Netns, until};
use netskoop_api::{Event, Value};
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};

fn text<'a>(event: &'a Event, field: &str) -> &'a str {
    match event.fields.get(field) {
        Some(Value::Text(text)) => text,
        _ => "",
    }
}

/// Reasons that a kernel may give for the same thing; none where the kernel gives no reasons.
fn has_reason(lab: &Lab, event: &Event, reasons: &[&str]) {
    let without = lab.cannot("packetloss", "does not tell why");
    let found = text(event, "reason");
    assert!(reasons.contains(&found) || without && found.is_empty(), "{reasons:?}: {event:#?}");
}

fn send(pair: &Pair, source: SocketAddr, target: SocketAddr) {
    pair.near.enter(|| {
        let socket = UdpSocket::bind(source).unwrap();
        // A queue that drops may tell the sender so.
        let _ = socket.send_to(b"hello", target);
    });
}

/// The event of the one packet between the two, in the namespace given.
fn dropped(lab: &Lab, netns: &Netns, source: SocketAddr, target: SocketAddr) -> Event {
    let wanted = tuple("udp", source, target);
    lab.event("PACKET_DROP", netns, |event| event.net.as_ref() == Some(&wanted))
}

/// The function in which it was freed.
fn place(event: &Event) -> String {
    text(event, "location").split('+').next().unwrap().to_owned()
}

/// Waits until the namespace has lost two packets, whatever the reasons. A new namespace is not shown at once.
#[track_caller]
fn two_are_lost(lab: &Lab, netns: &Netns) {
    let head = format!("netskoop_packetloss_packets_total{{kind=\"netns\",name=\"{}\"", netns.0);
    until("two are lost", || {
        let text = lab.daemon.scrape("/metrics?collect[]=packetloss");
        let lines = text.lines().filter(|line| line.starts_with(&head));
        let lost: f64 = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
        (lost >= 2.0).then_some(())
    });
}

pub(super) fn rule(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "rule", 4);
    let rules = "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c udp dport 9999 drop";
    pair.far.run("nft", &[rules]);
    let mut places = Vec::new();
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 21_000), pair.far(version, 9999));
        send(&pair, source, target);
        let event = dropped(lab, &pair.far, source, target);
        has_reason(lab, &event, &["NETFILTER_DROP"]);
        places.push(place(&event));
    }
    // Newer kernels free it where the rule is, and have brought that to older ones.
    places.dedup();
    assert!(places == ["nf_hook_slow"] || places == ["nft_do_chain"], "{places:?}");
    two_are_lost(lab, &pair.far);
    Seen(format!("PACKET_DROP v4 v6 at {}", places[0]))
}

pub(super) fn netem(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "netem", 5);
    // Its queue is in the near namespace, and so is what it drops.
    run("tc", &["-n", &pair.near.0, "qdisc", "add", "dev", "c5a", "root", "netem", "loss", "100%"]);
    pair.near.run("ip", &["neigh", "add", "10.9.5.2", "lladdr", "02:00:00:00:00:01", "dev", "c5a"]);
    pair.near.run("ip", &["neigh", "add", "fd09::5:2", "lladdr", "02:00:00:00:00:01", "dev", "c5a"]);
    let mut places = Vec::new();
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 21_001), pair.far(version, 9998));
        send(&pair, source, target);
        let event = dropped(lab, &pair.near, source, target);
        has_reason(lab, &event, &["QDISC_DROP", "QDISC_NETEM_LOSS", "NOT_SPECIFIED", "NETEM_LOSS"]);
        places.push(place(&event));
    }
    two_are_lost(lab, &pair.near);
    places.dedup();
    Seen(format!("PACKET_DROP v4 v6 at {}", places.join(", ")))
}

pub(super) fn no_socket(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "nobody", 6);
    for version in [4, 6] {
        let (source, target) = (pair.near(version, 21_002), pair.far(version, 9997));
        send(&pair, source, target);
        let event = dropped(lab, &pair.far, source, target);
        has_reason(lab, &event, &["NO_SOCKET"]);
    }
    two_are_lost(lab, &pair.far);
    Seen("PACKET_DROP v4 v6".to_owned())
}

/// What TCP drops itself, when the packet has forgotten its interface already.
pub(super) fn segment(lab: &Lab) -> Outcome {
    if lab.cannot("packetloss", "does not tell why") {
        return NotHere("what TCP drops is told with the reason only".to_owned());
    }
    let pair = Pair::new(lab, "flags", 36);
    for version in [4, 6] {
        let target = pair.far(version, 9994);
        let (mut client, _server) = crate::waiting::connection(&pair.near, &pair.far, target);
        let rule = "add table inet t; add chain inet t c { type filter hook output priority 0; }; \
                    add rule inet t c tcp dport 9994 tcp flags set psh";
        pair.near.run("nft", &[rule]);
        client.write_all(b"hello").unwrap();
        let wanted = tuple("tcp", client.local_addr().unwrap(), target);
        let event = lab.event("PACKET_DROP", &pair.far, |event| event.net.as_ref() == Some(&wanted));
        has_reason(lab, &event, &["TCP_FLAGS"]);
        pair.near.run("nft", &["delete table inet t"]);
    }
    two_are_lost(lab, &pair.far);
    Seen("PACKET_DROP v4 v6".to_owned())
}

pub(super) fn scan(lab: &Lab) -> Outcome {
    // Both versions are more than the kernel's map has room for.
    const PORTS: u16 = 2100;
    // Before there are the namespaces: what they drop as they begin is to be counted by flow as well.
    lab.option("packetloss", "flows", "true");
    let pair = Pair::new(lab, "scan", 7);
    for version in [4, 6] {
        // A neighbour that is still looked for has a short queue, and the near end would drop the rest.
        let (source, target) = (pair.near(version, 21_003), pair.far(version, 9995));
        send(&pair, source, target);
        dropped(lab, &pair.far, source, target);
    }
    let scanners =
        [4, 6].map(|version| Scanner::new(&pair.near, pair.near(version, 21_003), pair.far(version, 9996)));
    Scanner::scan(&scanners, 1000..1000 + PORTS);
    let flows = "netskoop_packetloss_flow_packets_total";
    let least = 2 * 3 * u64::from(PORTS);
    let told = !lab.cannot("packetloss", "does not tell why");
    let (mut series, mut seen) = (Series::default(), [0, 0]);
    let look = || {
        let text = lab.daemon.scrape("/metrics?set=full&collect[]=packetloss");
        series.look(&text, flows);
        seen = [exact(&text, &pair.far.0), series.total(&format!("name=\"{}\"", pair.far.0))];
        // Where no reason is told, what is not counted by flow, such as ARP, is in the exact counters without a difference.
        let agree = if told { seen[1] == seen[0] } else { seen[1] <= seen[0] };
        (seen[1] >= least && agree).then_some(text)
    };
    let found =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until("each is in one series", look)));
    let text = found.unwrap_or_else(|_| panic!("{seen:?} of {least}"));
    for version in [4, 6] {
        let labels = format!("dst=\"{}\",dport=\"9996\"", pair.far(version, 0).ip());
        let heavy = total(&text, flows, &pair.far.0, &labels);
        assert!(heavy > u64::from(PORTS), "{heavy} of {labels}: {text}");
    }
    lab.option("packetloss", "flows", "false");
    Seen("heavy flows v4 v6 under a scan, and no packet in two series or none".to_owned())
}
