//! Rare things that break networks, made to happen in one of two namespaces and compared with what the kernel counted.

use crate::anomalies::{kernel, total, two};
use crate::root::{address, events_until, follow};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, until};
use netskoop_api::{Event, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

const METRIC: &str = "netskoop_netanomaly_total";
const NET: u8 = 21;

/// Anomalies that the kernel counts, and where.
const COUNTED: [(&str, &str); 9] = [
    ("syn_cookies", "TcpExt.SyncookiesSent"),
    ("syn_queue_full", "TcpExt.TCPReqQFullDrop"),
    ("time_wait_overflow", "TcpExt.TCPTimeWaitOverflow"),
    ("tcp_memory_pressure", "TcpExt.TCPMemoryPressures"),
    ("tcp_out_of_memory", "TcpExt.TCPAbortOnMemory"),
    ("orphan_without_linger", "TcpExt.TCPAbortOnLinger"),
    ("zero_window", "TcpExt.TCPToZeroWindowAdv"),
    ("mtu_probe_failed", "TcpExt.TCPMTUPFail"),
    ("rp_filter", "TcpExt.IPReversePathFilter"),
];

pub(crate) fn text(event: &Event, field: &str) -> String {
    event.fields.get(field).map(Value::to_string).unwrap_or_default()
}

/// A datagram for somebody who may not be there.
pub(crate) fn knock(from: &Netns, target: SocketAddr) {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    from.enter(|| {
        // Where there is no room for a neighbour, sending fails at once.
        let _ = UdpSocket::bind(any).unwrap().send_to(b"x", target);
    });
}

/// Neighbours that `ip` says have failed.
pub(crate) fn failed(netns: &Netns) -> Vec<String> {
    let text = netns.run("ip", &["neigh", "show", "nud", "failed"]);
    let mut all: Vec<String> = text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    all.sort();
    all
}

fn sysctl(netns: &Netns, setting: &str) {
    netns.run("sysctl", &["-qw", setting]);
}

#[test]
fn neighbours_that_do_not_answer_are_told_and_counted() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(NET, Setup::on_node().set("probes.netanomaly", "enabled = true"));
    let mut follow = follow(&daemon, "&type=NET_ANOMALY");
    for version in [4, 6] {
        knock(&red, address(version, NET, 77, 9));
        knock(&blue, address(version, NET, 88, 9));
        // This one is there.
        knock(&red, address(version, NET, 2, 9));
    }
    let mut count = 0;
    let events = events_until(&mut follow, &[red.inode(), blue.inode()], |event| {
        let ours = event.entity.as_ref().is_some_and(|entity| ["red", "blue"].contains(&&*entity.name));
        count += u32::from(ours);
        count == 4
    });
    for (netns, device) in [(&red, "c21a"), (&blue, "c21b")] {
        let ours = events.iter().filter(|event| event.entity.as_ref().unwrap().name == netns.0);
        let mut told: Vec<String> = ours
            .map(|event| {
                assert_eq!((event.kind.as_str(), event.probe.as_str()), ("NET_ANOMALY", "netanomaly"));
                assert_eq!(text(event, "anomaly"), "neighbour_failed", "{event:#?}");
                assert_eq!(text(event, "device"), device, "{event:#?}");
                assert_eq!((&event.net, &event.process), (&None, &None), "a timer is nobody's");
                text(event, "neighbour")
            })
            .collect();
        told.sort();
        assert_eq!(told, failed(netns));
        let text = daemon.scrape("/metrics?collect[]=netanomaly");
        assert_eq!(total(&text, METRIC, &netns.0, "anomaly=\"neighbour_failed\""), 2, "{text}");
        crate::golden::lint(&text, "netskoop");
    }
}

/// Each is the kernel's number; those named are not 0, and all others of the namespace are.
fn are_the_kernels(daemon: &Daemon, netns: &Netns, grown: &[&str]) {
    let text = until("the numbers are the kernel's", || {
        let text = daemon.scrape("/metrics?collect[]=netanomaly");
        let same = |(label, field): &(&str, &str)| {
            total(&text, METRIC, &netns.0, &format!("anomaly=\"{label}\"")) == kernel(netns, field)
        };
        COUNTED.iter().all(same).then_some(text)
    });
    for (label, _) in COUNTED {
        let value = total(&text, METRIC, &netns.0, &format!("anomaly=\"{label}\""));
        assert_eq!(value > 0, grown.contains(&label), "{label} of {}: {value}", netns.0);
    }
}

#[test]
fn what_the_kernel_counts_is_under_one_name() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(NET, Setup::on_node().set("probes.netanomaly", "enabled = true"));
    let mut follow = follow(&daemon, "&type=NET_ANOMALY");
    are_the_kernels(&daemon, &red, &[]);
    are_the_kernels(&daemon, &blue, &[]);
    // Every SYN is answered with a cookie, and whoever closes first finds no room to wait.
    sysctl(&blue, "net.ipv4.tcp_syncookies=2");
    sysctl(&red, "net.ipv4.tcp_max_tw_buckets=0");
    for version in [4, 6] {
        let target = address(version, NET, 2, 7410);
        let listener = blue.enter(|| TcpListener::bind(target).unwrap());
        let cookies = kernel(&blue, "TcpExt.SyncookiesSent");
        let client = red.enter(|| TcpStream::connect(target).unwrap());
        assert_eq!(kernel(&blue, "TcpExt.SyncookiesSent"), cookies + 1);
        let server = listener.accept().unwrap().0;
        let waits = kernel(&red, "TcpExt.TCPTimeWaitOverflow");
        drop((client, server));
        until("there was no room", || (kernel(&red, "TcpExt.TCPTimeWaitOverflow") > waits).then_some(()));
    }
    are_the_kernels(&daemon, &red, &["time_wait_overflow"]);
    are_the_kernels(&daemon, &blue, &["syn_cookies"]);
    // A source that blue would answer elsewhere, and a program that does not read.
    sysctl(&blue, "net.ipv4.conf.c21b.rp_filter=1");
    red.run("ip", &["addr", "add", "192.0.2.77/32", "dev", "c21a"]);
    let stranger = red.enter(|| UdpSocket::bind("192.0.2.77:0").unwrap());
    stranger.send_to(b"x", address(4, NET, 2, 9)).unwrap();
    let target = address(6, NET, 2, 7411);
    let listener = blue.enter(|| TcpListener::bind(target).unwrap());
    let mut client = red.enter(|| TcpStream::connect(target).unwrap());
    let _server = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    until("the window closes", || {
        while client.write(&[0; 65536]).is_ok() {}
        (kernel(&blue, "TcpExt.TCPToZeroWindowAdv") > 0).then_some(())
    });
    are_the_kernels(&daemon, &red, &["time_wait_overflow"]);
    are_the_kernels(&daemon, &blue, &["syn_cookies", "rp_filter", "zero_window"]);
    // What was shown was also told, whose it was and how much.
    let mut counted = BTreeMap::new();
    for netns in [&red, &blue] {
        let grown = COUNTED.map(|(label, field)| ((netns.0.clone(), label.to_owned()), kernel(netns, field)));
        counted.extend(grown.into_iter().filter(|(_, count)| *count > 0));
    }
    let mut told: BTreeMap<_, u64> = BTreeMap::new();
    events_until(&mut follow, &[], |event| {
        let anomaly = (event.entity.as_ref().unwrap().name.clone(), text(event, "anomaly"));
        *told.entry(anomaly).or_default() += text(event, "count").parse::<u64>().unwrap();
        told == counted
    });
}
