use crate::support::{Daemon, Netns, Pids, Setup, exclusive, own_node, series, skip, until};
use netskoop_api::{Event, StateName, Value};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;

/// Rules that use connection tracking; without any a namespace tracks nothing.
const RULES: &str = "add table inet t; add chain inet t in { type filter hook input priority 0; }; \
                     add rule inet t in ct state new counter; add chain inet t out { type filter hook output priority 0; }; \
                     add rule inet t out ct state new counter";

/// The words of `conntrack -S` and the metrics that show them.
const COUNTERS: [(&str, &str); 10] = [
    ("found", "found_total"),
    ("invalid", "invalid_total"),
    ("insert", "inserted_total"),
    ("insert_failed", "insert_failed_total"),
    ("drop", "dropped_total"),
    ("early_drop", "early_dropped_total"),
    ("error", "errors_total"),
    ("search_restart", "search_restarts_total"),
    ("clash_resolve", "clashes_resolved_total"),
    ("chaintoolong", "chain_too_long_total"),
];

/// Every number that `conntrack` shows inside, by metric.
fn theirs(netns: &Netns) -> BTreeMap<String, f64> {
    let mut numbers = BTreeMap::new();
    for line in netns.run("conntrack", &["-S"]).lines() {
        let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        for (name, value) in pairs.filter(|(name, _)| *name != "cpu") {
            let (_, metric) = COUNTERS.iter().find(|(known, _)| *known == name).expect(name);
            *numbers.entry((*metric).to_owned()).or_default() += value.parse::<f64>().unwrap();
        }
    }
    let entries = netns.run("conntrack", &["-C"]);
    numbers.insert("entries".to_owned(), entries.trim().parse().unwrap());
    numbers
}

fn value(text: &str, netns: &Netns, metric: &str) -> Option<f64> {
    series(text, &format!("netskoop_conntrack_{metric}{{kind=\"netns\",name=\"{}\"}}", netns.0))
}

/// Compares all numbers; some may move between two looks.
fn agree(daemon: &Daemon, netns: &Netns) {
    until("the numbers agree", || {
        let before = theirs(netns);
        let text = daemon.scrape("/metrics?set=full&collect[]=conntrack");
        let ours = before.keys().filter_map(|name| Some((name.clone(), value(&text, netns, name)?)));
        (ours.collect::<BTreeMap<_, _>>() == before && before.len() == 11).then_some(())
    });
}

/// TCP and UDP in both IP versions.
fn traffic(from: &Netns, to: &Netns, net: u8) {
    for host in [format!("10.9.{net}.2"), format!("[fd09::{net}:2]")] {
        let (listener, receiver) = to.enter(|| {
            (
                TcpListener::bind(format!("{host}:7000")).unwrap(),
                UdpSocket::bind(format!("{host}:7000")).unwrap(),
            )
        });
        from.enter(|| {
            let mut client = TcpStream::connect(format!("{host}:7000")).unwrap();
            let mut server = listener.accept().unwrap().0;
            client.write_all(b"hello").unwrap();
            drop(client);
            server.read_to_end(&mut Vec::new()).unwrap();
            let any = if host.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            for _ in 0..3 {
                let socket = UdpSocket::bind(any).unwrap();
                socket.send_to(b"hello", format!("{host}:7000")).unwrap();
                let (_, sender) = receiver.recv_from(&mut [0; 16]).unwrap();
                receiver.send_to(b"answer", sender).unwrap();
                socket.recv(&mut [0; 16]).unwrap();
            }
        });
    }
}

fn insert(netns: &Netns, port: u16) {
    let port = port.to_string();
    let entry = ["-s", "192.0.2.1", "-d", "192.0.2.2", "--sport", &port, "--dport", "7"];
    netns.run("conntrack", &[&["-I", "-p", "udp", "-t", "600"][..], &entry].concat());
}

#[test]
fn each_namespace_has_its_own_numbers() {
    own_node!(Pids::Own);
    let (red, blue, idle) = (Netns::new("red"), Netns::new("blue"), Netns::new("idle"));
    red.cable(&blue, 1);
    for netns in [&red, &blue] {
        netns.run("nft", &[RULES]);
    }
    let daemon = Setup::on_node().pull_only().start();
    traffic(&red, &blue, 1);
    (1..4).for_each(|port| insert(&blue, port));
    for netns in [&red, &blue, &idle] {
        agree(&daemon, netns);
    }
    let text = daemon.scrape("/metrics?set=full&collect[]=conntrack");
    assert!(value(&text, &red, "entries").unwrap() >= 8.0, "{text}");
    assert_eq!(value(&text, &blue, "inserted_total"), Some(3.0));
    assert_eq!(value(&text, &idle, "entries"), Some(0.0));
    // Another test changes it for a moment.
    until("the limit is the kernel's", || {
        let text = daemon.scrape("/metrics?set=full&collect[]=conntrack");
        let max = idle.run("cat", &["/proc/sys/net/netfilter/nf_conntrack_max"]);
        (value(&text, &idle, "max_entries") == max.trim().parse().ok()).then_some(())
    });
    assert_eq!(value(&text, &idle, "ignored_total"), None, "this kernel does not count it");
    // The older systems showed the host only.
    let text = daemon.scrape("/metrics?names=kubeskoop,inspector&collect[]=conntrack");
    for name in ["kubeskoop_conntrack_entries{", "inspector_pod_conntrackentries{"] {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{text}");
    }
    let info = daemon.probe("conntrack");
    assert_eq!(info.state.state, StateName::On, "{info:?}");
}

/// `conntrack -L`, counted by protocol and state as the metric has them.
fn listed(netns: &Netns) -> BTreeMap<(String, String), f64> {
    let mut counts = BTreeMap::new();
    let text = ["ipv4", "ipv6"].map(|family| netns.run("conntrack", &["-L", "-f", family])).concat();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (protocol, state) = match words[0] {
            "tcp" => ("tcp", words[3].to_lowercase()),
            protocol => {
                let state = match () {
                    () if line.contains("[ASSURED]") => "assured",
                    () if line.contains("[UNREPLIED]") => "unreplied",
                    () => "replied",
                };
                let protocol = match protocol {
                    "udp" => "udp",
                    "icmp" | "icmpv6" => "icmp",
                    _ => "other",
                };
                (protocol, state.to_owned())
            }
        };
        *counts.entry((protocol.to_owned(), state)).or_default() += 1.0;
    }
    counts
}

fn by_state(text: &str, netns: &Netns) -> BTreeMap<(String, String), f64> {
    let head = format!("netskoop_conntrack_entries_by_state{{kind=\"netns\",name=\"{}\",", netns.0);
    let lines = text.lines().filter_map(|line| line.strip_prefix(&*head));
    let parse = |line: &str| {
        let mut parts = line.split('"');
        let (protocol, state) = (parts.nth(1).unwrap().to_owned(), parts.nth(1).unwrap().to_owned());
        ((protocol, state), line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
    };
    lines.map(parse).filter(|(_, count)| *count > 0.0).collect()
}

#[test]
fn entries_are_told_apart_by_state_if_asked_for() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 2);
    red.run("nft", &[RULES]);
    let daemon = Setup::on_node().pull_only().start();
    traffic(&red, &blue, 2);
    // Nobody answers.
    red.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "10.9.2.77:9").unwrap());
    red.run(
        "conntrack",
        &[
            "-I",
            "-p",
            "gre",
            "-t",
            "600",
            "-s",
            "192.0.2.1",
            "-d",
            "192.0.2.2",
            "--srckey",
            "1",
            "--dstkey",
            "2",
            "-u",
            "SEEN_REPLY",
        ],
    );
    assert_eq!(by_state(&daemon.scrape("/metrics?set=full&collect[]=conntrack"), &red), BTreeMap::new());
    daemon.change("conntrack", r#"{"options":{"entries_by_state":"true"},"runtime":true}"#);
    let states = until("both agree", || {
        let before = listed(&red);
        let ours = by_state(&daemon.scrape("/metrics?collect[]=conntrack"), &red);
        (ours == before && listed(&red) == before).then_some(ours)
    });
    for known in [("tcp", "time_wait"), ("udp", "replied"), ("udp", "unreplied"), ("other", "replied")] {
        let known = (known.0.to_owned(), known.1.to_owned());
        assert!(states.contains_key(&known), "{known:?} is not in {states:?}");
    }
    // More than may be walked: nothing rather than half of it.
    daemon.change("conntrack", r#"{"options":{"walk_limit":"3"},"runtime":true}"#);
    let text = daemon.scrape("/metrics?collect[]=conntrack");
    assert_eq!(by_state(&text, &red), BTreeMap::new());
    assert!(value(&text, &red, "entries").unwrap() > 3.0);
}

/// The limit of all namespaces, as it was again when dropped. It can be changed where the machine has its own namespace
/// only.
struct Limit {
    outside: PathBuf,
    before: String,
}

impl Limit {
    fn new(value: u32) -> Option<Limit> {
        let parent = rustix::process::getppid()?;
        let outside = format!("/proc/{}/ns/net", parent.as_raw_pid()).into();
        let mut limit = Limit { outside, before: String::new() };
        let output = limit.command("cat").output().unwrap();
        limit.before = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        limit.put(&value.to_string()).then_some(limit)
    }
    fn command(&self, action: &str) -> Command {
        let mut command = Command::new("nsenter");
        let script = format!("{action} /proc/sys/net/netfilter/nf_conntrack_max");
        command.arg(format!("--net={}", self.outside.display())).args(["sh", "-c", &script]);
        command
    }
    fn put(&self, value: &str) -> bool {
        self.command(&format!("echo {value} >")).output().unwrap().status.success()
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let restored = self.put(&self.before);
        assert!(restored || std::thread::panicking(), "nf_conntrack_max stays changed");
    }
}

#[test]
fn a_full_table_is_seen() {
    own_node!(Pids::Shared);
    let _alone = exclusive();
    let (full, calm) = (Netns::new("full"), Netns::new("calm"));
    for netns in [&full, &calm] {
        netns.run("nft", &[RULES]);
    }
    let daemon = Setup::on_node().pull_only().start();
    let Some(limit) = Limit::new(500) else {
        return skip(
            "the limit of conntrack can be changed only where the tests run in the first network namespace",
        );
    };
    for host in ["127.0.0.1", "[::1]"] {
        full.enter(|| {
            let socket = UdpSocket::bind(format!("{host}:0")).unwrap();
            let refused =
                (1..4000).filter(|port| socket.send_to(b"x", format!("{host}:{port}")).is_err()).count();
            assert!(refused > 1000, "only {refused} of them found the table full");
        });
    }
    calm.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", "127.0.0.1:9").unwrap());
    agree(&daemon, &full);
    agree(&daemon, &calm);
    let text = daemon.scrape("/metrics?set=full&collect[]=conntrack");
    assert_eq!(value(&text, &full, "max_entries"), Some(500.0));
    assert!(value(&text, &full, "entries").unwrap() >= 450.0);
    assert!(value(&text, &full, "dropped_total").unwrap() > 2000.0);
    assert!(value(&text, &full, "early_dropped_total").unwrap() > 0.0);
    assert_eq!(value(&text, &calm, "dropped_total"), Some(0.0), "each namespace is held to the limit alone");
    drop(limit);
}

/// Sends what is for nobody to somebody else.
const TRANSLATED: &str = "add table inet n; add chain inet n o { type nat hook output priority -100; }; \
                          add rule inet n o ip daddr 10.9.3.99 tcp dport 80 dnat ip to 10.9.3.2:7000; \
                          add rule inet n o ip6 daddr fd09::3:99 tcp dport 80 dnat ip6 to [fd09::3:2]:7000";

/// Sockets in the node's own namespace that have joined a group of connection tracking.
fn listeners() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words[1] == "12" && words[3] != "00000000").count()
}

fn events(daemon: &Daemon, kind: &str) -> Vec<Event> {
    let text = daemon.ask(&format!("/v1/events?type={kind}")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_of(event: &Event, netns: &Netns) -> bool {
    event.entity.as_ref().is_some_and(|entity| entity.name == netns.0)
}

fn text<'a>(event: &'a Event, field: &str) -> &'a str {
    match event.fields.get(field) {
        Some(Value::Text(text)) => text,
        _ => "",
    }
}

/// One datagram from one address of the loopback interface to another.
fn datagram(netns: &Netns, port: u16) {
    netns.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", port)).unwrap());
}

/// Waits until connections of the namespace are heard of.
fn heard(daemon: &Daemon, netns: &Netns) {
    let mut port = 30_000;
    until("it is heard of", || {
        port += 1;
        datagram(netns, port);
        let is_heard = |event: &Event| event.net.as_ref().is_some_and(|net| net.dport > 30_000);
        events(daemon, "conntrack_new")
            .iter()
            .any(|event| is_of(event, netns) && is_heard(event))
            .then_some(())
    });
}

#[test]
fn events_tell_of_connections_in_all_namespaces_once_they_are_wanted() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 3);
    for netns in [&red, &blue] {
        netns.run("nft", &[RULES]);
    }
    red.run("nft", &[TRANSLATED]);
    let mac = blue.run("cat", &["/sys/class/net/c3b/address"]);
    for address in ["10.9.3.99", "fd09::3:99"] {
        red.run("ip", &["neigh", "add", address, "lladdr", mac.trim(), "dev", "c3a"]);
    }
    let daemon = Setup::on_node().pull_only().start();
    datagram(&red, 9);
    daemon.scrape("/metrics?collect[]=conntrack");
    assert_eq!((listeners(), daemon.probe("conntrack").state.stream), (0, None), "it is off by default");

    daemon.change("conntrack", r#"{"options":{"events":"true"},"runtime":true}"#);
    until("it listens", || daemon.probe("conntrack").state.stream);
    assert_eq!(listeners(), 1);
    heard(&daemon, &red);
    heard(&daemon, &blue);
    for (host, own) in [("10.9.3", "10.9.3.1"), ("fd09::3", "fd09::3:1")] {
        let address = |last: &str| match host.contains(':') {
            true => format!("{host}:{last}"),
            false => format!("{host}.{last}"),
        };
        let (server, nobody) = (address("2"), address("99"));
        let socket = |ip: &str, port| std::net::SocketAddr::new(ip.parse().unwrap(), port);
        let listener = blue.enter(|| TcpListener::bind(socket(&server, 7000)).unwrap());
        let client = red.enter(|| TcpStream::connect(socket(&nobody, 80)).unwrap());
        let sport = client.local_addr().unwrap().port();
        let find = |kind: &str, netns: &Netns, dport: u16, state: &str| {
            until(&format!("{kind} in {} with {state}", netns.0), || {
                events(&daemon, kind).into_iter().find(|event| {
                    let net = event.net.as_ref().unwrap();
                    is_of(event, netns)
                        && (net.sport, net.dport) == (sport, dport)
                        && text(event, "state") == state
                })
            })
        };
        let new = find("conntrack_new", &red, 80, "syn_sent");
        let net = new.net.as_ref().unwrap();
        assert_eq!((&*net.proto, &*net.src, &*net.dst), ("tcp", own, &*nobody), "{new:?}");
        assert_eq!(text(&new, "nat_dst"), server, "{new:?}");
        assert_eq!(new.fields["nat_dport"], Value::Number(7000));
        assert!(!new.fields.contains_key("nat_src") && text(&new, "status") == "unreplied", "{new:?}");
        let update = find("conntrack_update", &red, 80, "established");
        assert_eq!((text(&update, "status"), text(&update, "nat_dst")), ("assured", &*server), "{update:?}");
        // The other end sees the receiver that it is, and nothing translated.
        let other = find("conntrack_new", &blue, 7000, "syn_sent");
        assert!(!other.fields.contains_key("nat_dst"), "{other:?}");
        drop((client, listener));
        red.run("conntrack", &["-F"]);
        let gone = until("its end is told", || {
            let all = events(&daemon, "conntrack_destroy");
            all.into_iter().find(|event| {
                is_of(event, &red)
                    && event.net.as_ref().is_some_and(|net| (net.sport, net.dport) == (sport, 80))
            })
        });
        assert_eq!(text(&gone, "nat_dst"), server, "{gone:?}");
    }
    let old = events(&daemon, "ConntrackDestroy");
    assert!(!old.is_empty() && old.iter().all(|event| event.kind == "CONNTRACK_DESTROY"), "{old:?}");

    daemon.change("conntrack", r#"{"options":{"events":"false"},"runtime":true}"#);
    until("nobody listens", || (listeners() == 0).then_some(()));
    assert_eq!(daemon.probe("conntrack").state.stream, None);
}

#[test]
fn events_are_filtered_by_type_protocol_state_and_entity() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 4);
    for netns in [&red, &blue] {
        netns.run("nft", &[RULES]);
    }
    let setup = Setup::on_node().pull_only().set("probes.conntrack", "events = true");
    let setup = setup.set("probes.conntrack", "event_entities = [\"blue\"]");
    let daemon = setup.set("probes.conntrack", "event_protocols = [\"udp\"]").start();
    heard(&daemon, &blue);
    traffic(&red, &blue, 4);
    let replied = |event: &Event| event.net.as_ref().is_some_and(|net| net.dport == 7000);
    let updates = || events(&daemon, "conntrack_update").into_iter().filter(replied).collect::<Vec<_>>();
    until("the datagrams are told of", || (updates().len() >= 6).then_some(()));
    let text_of_all = daemon.ask("/v1/events").text();
    let all: Vec<Event> = text_of_all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in all.iter().filter(|event| event.kind.starts_with("CONNTRACK")) {
        assert!(is_of(event, &blue) && event.net.as_ref().unwrap().proto == "udp", "{event:?}");
    }

    let last = daemon.status().events.last_seq;
    let change = r#"{"options":{"event_types":"update,destroy","event_protocols":"","event_states":"established"},"runtime":true}"#;
    daemon.change("conntrack", change);
    until("an established connection is told of", || {
        traffic(&red, &blue, 4);
        let later = updates().into_iter().find(|event| event.seq > last);
        later.filter(|event| event.net.as_ref().unwrap().proto == "tcp")
    });
    let text_of_all = daemon.ask("/v1/events").text();
    let all = text_of_all.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    // What was on its way when the filter was changed belongs to the old one.
    for event in all.filter(|event| event.seq > last && event.net.as_ref().unwrap().proto == "tcp") {
        assert!(is_of(&event, &blue) && event.kind != "CONNTRACK_NEW", "{event:?}");
        assert_eq!(text(&event, "state"), "established", "{event:?}");
    }
    let error = daemon.patch("conntrack", r#"{"options":{"event_types":"old"},"runtime":true}"#);
    assert_eq!(error.status, 400);
}

#[test]
fn a_flood_of_connections_is_held_to_the_rate_and_counted() {
    /// Connections, and the last port.
    const FLOOD: u16 = 20_000;
    own_node!(Pids::Own);
    let _alone = exclusive();
    let netns = Netns::new("flood");
    netns.run("nft", &[RULES]);
    let setup = Setup::on_node().pull_only().set("probes.conntrack", "events = true");
    let setup = setup.set("probes.conntrack", "event_types = [\"new\"]");
    let daemon = setup.set("events", "rate = 1").set("events", "burst = 5").start();
    heard(&daemon, &netns);
    let counted =
        || daemon.probe("conntrack").state.stream.map(|stream| (stream.seen + stream.missed, stream));
    let (before, _) = counted().unwrap();
    // It cannot read, and the socket has not room for all of them.
    daemon.signal(rustix::process::Signal::STOP);
    netns.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        (1..=FLOOD).for_each(|port| assert!(socket.send_to(b"x", ("127.0.0.1", port)).is_ok()));
    });
    daemon.signal(rustix::process::Signal::CONT);
    let flood = u64::from(FLOOD);
    let stream = until("each is accounted for", || {
        counted().filter(|(count, _)| *count == before + flood).map(|(_, stream)| stream)
    });
    assert!(stream.missed > 0, "{stream:?}");
    assert_eq!(stream.seen, stream.submitted + stream.suppressed, "{stream:?}");
    assert!(stream.suppressed > 0 && stream.submitted < 100, "{stream:?}");
    until("what came is in the history", || {
        let status = daemon.status().events;
        let whole = status.received
            == status.delivered + status.malformed + status.overrun + status.filtered_by_entity;
        (whole && status.received == status.kernel.submitted).then_some(())
    });
    // The next event tells how many were withheld.
    let mut port = 30_000;
    until("it is told", || {
        port += 1;
        datagram(&netns, port);
        let all = events(&daemon, "conntrack_new");
        all.iter().any(|event| event.suppressed > 100).then_some(())
    });
    let text = daemon.scrape("/metrics");
    for name in ["seen", "suppressed", "missed"] {
        let name = format!("netskoop_events_{name}_total{{probe=\"conntrack\"}}");
        assert!(series(&text, &name).is_some(), "{name}: {text}");
    }
}
