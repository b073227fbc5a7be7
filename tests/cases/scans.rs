//! Port scans against what is counted by five-tuple: far more tuples than the kernel's maps have room for.

use crate::anomalies::{total, two};
use crate::root::{address, refused};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, until};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

/// What a healthy node drops, and of which there are no events, by default.
const IGNORED: [&str; 5] = ["OTHERHOST", "QUEUE_PURGE", "TCP_OFOMERGE", "TCP_OLD_DATA", "TCP_OLD_SEQUENCE"];

const FLOWS: &str = "netskoop_packetloss_flow_packets_total";
const REST: &str = "src=\"other\",sport=\"0\",dst=\"other\",dport=\"0\"";

/// Somebody who sends datagrams to ports on which nobody listens.
pub(crate) struct Scanner {
    socket: UdpSocket,
    /// Gets most of them.
    target: SocketAddr,
}

impl Scanner {
    pub(crate) fn new(from: &Netns, source: SocketAddr, target: SocketAddr) -> Scanner {
        Scanner { socket: from.enter(|| UdpSocket::bind(source).unwrap()), target }
    }

    fn send(&self, port: u16) {
        let to = SocketAddr::new(self.target.ip(), port);
        // The answer to one is an error of the next, which then was not sent.
        while self.socket.send_to(b"hello", to).is_err() {}
    }

    /// One for each of so many ports, and meanwhile two for its target each time.
    pub(crate) fn scan(all: &[Scanner], ports: std::ops::Range<u16>) {
        for port in ports {
            for scanner in all {
                scanner.send(port);
                (0..2).for_each(|_| scanner.send(scanner.target.port()));
            }
        }
    }
}

/// What all series of a metric ever were at most, by their entity, as somebody has it who has seen each scrape.
#[derive(Default)]
pub(crate) struct Series(BTreeMap<String, u64>);

impl Series {
    pub(crate) fn look(&mut self, text: &str, metric: &str) {
        for line in text.lines().filter(|line| line.starts_with(metric)) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (value, last) = (value.parse().unwrap(), self.0.get(series).copied().unwrap_or_default());
            assert!(value >= last, "{series} fell from {last} to {value}");
            self.0.insert(series.to_owned(), value);
        }
    }

    pub(crate) fn total(&self, labels: &str) -> u64 {
        self.0.iter().filter(|(series, _)| series.contains(labels)).map(|(_, value)| value).sum()
    }
}

/// Drops that may be events, by the exact counters of reasons.
pub(crate) fn exact(text: &str, entity: &str) -> u64 {
    let packets = |labels: &str| total(text, "netskoop_packetloss_packets_total", entity, labels);
    let ignored: u64 = IGNORED.iter().map(|reason| packets(&format!("reason=\"{reason}\""))).sum();
    packets("") - ignored
}

/// A scrape in which the exact counters are those of so many datagrams at least, and nothing changes any more.
fn settled(daemon: &Daemon, least: u64) -> String {
    let mut before = [0, 0];
    until("both namespaces have lost all", || {
        let text = daemon.scrape("/metrics?set=full&collect[]=packetloss");
        let now = ["red", "blue"].map(|entity| exact(&text, entity));
        let same = std::mem::replace(&mut before, now) == now;
        (same && now.iter().all(|lost| *lost >= least)).then_some(text)
    })
}

#[test]
fn a_port_scan_hides_no_heavy_flow_and_every_packet_is_in_one_series() {
    const PORTS: u16 = 2300;
    own_node!(Pids::Own);
    let (red, blue, daemon) =
        two(71, Setup::on_node().set("probes.packetloss", "flows = true\nmax_flows = 8"));
    let mut seen = Series::default();
    let ends = [4, 6].map(|version| {
        let (red, blue) = (address(version, 71, 1, 20_000), address(version, 71, 2, 20_000));
        [("blue", red, SocketAddr::new(blue.ip(), 6)), ("red", blue, SocketAddr::new(red.ip(), 6))]
    });
    let scanner =
        |(at, source, target)| Scanner::new(if at == "blue" { &red } else { &blue }, source, target);
    let scanners = ends.concat().into_iter().map(scanner).collect::<Vec<_>>();
    for round in 0..3_u16 {
        Scanner::scan(&scanners, 1000 + round * PORTS..1000 + (round + 1) * PORTS);
        let ports = u64::from(PORTS) * (u64::from(round) + 1);
        let text = settled(&daemon, 2 * 3 * ports);
        for (at, source, target) in ends.concat() {
            let (src, dst) = (source.ip(), target.ip());
            let labels = format!("protocol=\"UDP\",src=\"{src}\",sport=\"20000\",dst=\"{dst}\",dport=\"6\"");
            let heavy = total(&text, FLOWS, at, &labels);
            // The kernel finds out only roughly who has not been heard of for longest.
            assert!(heavy > ports && heavy <= 2 * ports, "{labels}: {heavy} of {}: {text}", 2 * ports);
        }
        if round == 0 {
            for entity in ["red", "blue"] {
                assert_eq!(total(&text, FLOWS, entity, ""), exact(&text, entity), "{entity}: {text}");
            }
        }
        let rows = text.lines().filter(|line| line.starts_with(FLOWS) && !line.contains(REST));
        assert_eq!(rows.count(), 8, "{text}");
        // The others come and go, and what they had is not in the rest once more.
        seen.look(&text, FLOWS);
        for entity in ["red", "blue"] {
            assert!(total(&text, FLOWS, entity, REST) > 0, "{text}");
            let all = seen.total(&format!("name=\"{entity}\""));
            assert_eq!(all, exact(&text, entity), "{entity}: {:#?}", seen.0);
        }
    }
    let stream = daemon.probe("packetloss").state.stream.unwrap();
    assert_eq!(stream.map_full, 0, "nothing was left out");
}

/// The sum of a metric of a generation of names that has other labels for the entity.
fn sum(text: &str, metric: &str, labels: &str) -> u64 {
    let name = format!("{metric}{{");
    let ours = text.lines().filter(|line| line.starts_with(&name) && line.contains(labels));
    ours.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

#[test]
fn older_sums_are_the_same_with_and_without_flows() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(72, Setup::on_node().set("probes.packetloss", "max_flows = 4"));
    let older = || daemon.scrape("/metrics?names=kubeskoop,inspector&collect[]=packetloss");
    let agree = |what: &str| {
        until(what, || {
            let text = older();
            let ours = sum(&text, "kubeskoop_packetloss_total", "");
            (ours == sum(&text, "inspector_pod_packetloss_total", "")).then_some((ours, text))
        })
    };
    let scanners = [4, 6].map(|version| {
        let ends = [address(version, 72, 1, 20_000), address(version, 72, 2, 20_000)];
        let target = |end: usize| SocketAddr::new(ends[end].ip(), 6);
        [Scanner::new(&red, ends[0], target(1)), Scanner::new(&blue, ends[1], target(0))]
    });
    let scan_both = |first| scanners.iter().for_each(|both| Scanner::scan(both, first..first + 100));
    scan_both(1000);
    let (before, _) = agree("without flows");
    assert!(before >= 1200, "{before}");
    daemon.change("packetloss", r#"{"options":{"flows":"true"},"runtime":true}"#);
    let (then, text) = agree("what there was before is in other");
    assert!(then >= before, "{text}");
    scan_both(2000);
    let (now, text) = agree("with flows");
    assert!(now >= then + 1200, "{text}");
    for version in [4, 6] {
        let ends = format!(
            "protocol=\"UDP\",src=\"{}\",dst=\"{}\"",
            address(version, 72, 1, 0).ip(),
            address(version, 72, 2, 0).ip()
        );
        assert!(sum(&text, "kubeskoop_packetloss_total", &ends) >= 200, "{ends}: {text}");
    }
    crate::golden::lint(&text, "kubeskoop");
}

#[test]
fn a_scan_of_closed_ports_is_in_the_failures_by_peer() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().set("probes.tcpconnect", "enabled = true\nflows = true\nmax_flows = 3");
    let (red, _blue, daemon) = two(73, setup);
    for version in [4, 6] {
        for port in 1000..3200 {
            let heavy = address(version, 73, 2, 7000);
            refused(&red, address(version, 73, 1, 0), heavy);
            refused(&red, address(version, 73, 1, 0), address(version, 73, 2, port));
        }
    }
    let text = daemon.scrape("/metrics?set=full&collect[]=tcpconnect");
    let of =
        |metric: &str, labels: &str| total(&text, &format!("netskoop_tcpconnect_{metric}"), "red", labels);
    let all = of("failures_total", "cause=\"refused\"");
    assert_eq!(all, 2 * 2 * 2200);
    assert_eq!(of("peer_failures_total", "cause=\"refused\""), all, "{text}");
    for version in [4, 6] {
        let heavy = format!("dst=\"{}\",dport=\"7000\"", address(version, 73, 2, 0).ip());
        assert!(of("peer_failures_total", &heavy) > 1100, "{heavy}: {text}");
    }
    assert_eq!(daemon.probe("tcpconnect").state.stream.unwrap().map_full, 0);
}
