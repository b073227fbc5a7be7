use crate::support::{Daemon, Netns, Pids, Setup, own_node, run, series, until};
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// States as `ss` writes them, and as the label does.
const STATES: [(&str, &str); 11] = [
    ("ESTAB", "established"),
    ("SYN-SENT", "syn_sent"),
    ("SYN-RECV", "syn_recv"),
    ("FIN-WAIT-1", "fin_wait1"),
    ("FIN-WAIT-2", "fin_wait2"),
    ("TIME-WAIT", "time_wait"),
    ("UNCONN", "close"),
    ("CLOSE-WAIT", "close_wait"),
    ("LAST-ACK", "last_ack"),
    ("LISTEN", "listen"),
    ("CLOSING", "closing"),
];

/// An answer of the probe.
fn scrape(daemon: &Daemon, more: &str) -> String {
    daemon.scrape(&format!("/metrics?collect[]=tcpsummary&set=full{more}"))
}

/// A series of the probe.
fn value(text: &str, netns: &str, name: &str, more: &str) -> Option<f64> {
    series(text, &format!("netskoop_tcpsummary_{name}{{kind=\"netns\",name=\"{netns}\"{more}}}"))
}

/// Everything that `ss` shows in a namespace, by the labels of the series that says the same.
fn ss(netns: &Netns) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let mut add = |name: String, value: f64| *found.entry(name).or_default() += value;
    for (_, state) in STATES {
        add(format!("connections state {state}"), 0.0);
    }
    for queue in ["tx", "rx"] {
        add(format!("queue_bytes queue {queue}"), 0.0);
        add(format!("queue_all_bytes queue {queue}"), 0.0);
    }
    for line in netns.run("ss", &["-Htan"]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, state) = STATES.iter().find(|(word, _)| *word == words[0]).unwrap();
        let (receive, send): (f64, f64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        add(format!("connections state {state}"), 1.0);
        match *state {
            "listen" => {
                add("listen_backlog".into(), receive);
                add("listen_backlog_limit".into(), send);
                continue;
            }
            "established" => {
                add("queue_bytes queue tx".into(), send);
                add("queue_bytes queue rx".into(), receive);
            }
            _ => {}
        }
        add("queue_all_bytes queue tx".into(), send);
        add("queue_all_bytes queue rx".into(), receive);
    }
    found
}

/// What the daemon shows of the same.
fn shown(text: &str, netns: &str, like: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let look = |key: &String| {
        let words: Vec<&str> = key.split(' ').collect();
        let labels = words.get(2).map(|value| format!(",{}=\"{value}\"", words[1])).unwrap_or_default();
        value(text, netns, words[0], &labels)
    };
    like.keys().filter_map(|key| Some((key.clone(), look(key)?))).collect()
}

/// Compares a namespace with `ss` when nothing moves, and hands out what both say.
fn compare(daemon: &Daemon, netns: &Netns) -> BTreeMap<String, f64> {
    until(&format!("{} is as ss shows it", netns.0), || {
        let before = ss(netns);
        let text = scrape(daemon, "");
        let found = shown(&text, &netns.0, &before);
        (found == before && ss(netns) == before).then_some(found)
    })
}

/// A socket whose connection is under way.
fn connecting(target: SocketAddr, from: Option<SocketAddr>) -> OwnedFd {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    if let Some(from) = from {
        rustix::net::bind(&socket, &from).unwrap();
    }
    let result = rustix::net::connect(&socket, &target);
    assert!(matches!(result, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{result:?}");
    socket_error(&socket).unwrap().unwrap();
    socket
}

/// A pair of connected sockets, client and server.
fn pair(from: &Netns, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = from.enter(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    (client, listener.accept().unwrap().0)
}

fn listen(netns: &Netns, address: &str) -> TcpListener {
    netns.enter(|| TcpListener::bind(address).unwrap())
}

/// Lets what goes to an address of a cable get lost.
fn lose(netns: &Netns, address: &str, device: &str) {
    let words = ["-n", &netns.0, "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", device];
    run("ip", &[&words[..], &["nud", "permanent"]].concat());
}

/// `from` sends a SYN from 10.98.0.1, and what `to` answers gets lost.
fn half_open(from: &Netns, to: &Netns, target: &str) -> OwnedFd {
    run("ip", &["-n", &from.0, "addr", "add", "10.98.0.1/32", "dev", "lo"]);
    run("ip", &["-n", &to.0, "route", "add", "10.98.0.1", "via", "10.9.1.200"]);
    lose(to, "10.9.1.200", "c1b");
    let target = target.parse().unwrap();
    from.enter(move || connecting(target, Some("10.98.0.1:0".parse().unwrap())))
}

#[test]
fn connections_are_as_ss_shows_them() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    run("ip", &["-n", "red", "route", "add", "10.99.0.0/16", "via", "10.9.1.2"]);
    let listeners = [listen(&blue, "10.9.1.2:7000"), listen(&blue, "[fd09::1:2]:7000")];
    let mut pairs = Vec::new();
    for (listener, count) in listeners.iter().zip([3, 2]) {
        pairs.extend((0..count).map(|_| pair(&red, listener)));
        // One that the server does not close, and one that both close.
        let (client, server) = pair(&red, listener);
        client.shutdown(Shutdown::Write).unwrap();
        pairs.push((client, server));
        drop(pair(&red, listener));
    }
    // Nobody answers there.
    let lost = red.enter(|| connecting("10.99.0.1:80".parse().unwrap(), None));
    let half = half_open(&red, &blue, "10.9.1.2:7000");
    let daemon = Setup::on_node().pull_only().start();
    let found = compare(&daemon, &red);
    let of = |found: &BTreeMap<String, f64>, state: &str| found[&format!("connections state {state}")];
    let counts = |found: &BTreeMap<String, f64>| {
        ["established", "syn_sent", "syn_recv", "fin_wait2", "close_wait", "listen"].map(|s| of(found, s))
    };
    assert_eq!(counts(&found), [5.0, 2.0, 0.0, 2.0, 0.0, 0.0], "{found:?}");
    assert_eq!(of(&found, "time_wait"), 2.0, "{found:?}");
    let found = compare(&daemon, &blue);
    assert_eq!(counts(&found), [5.0, 0.0, 1.0, 0.0, 2.0, 2.0], "{found:?}");
    let summary = red.run("ss", &["-s"]);
    assert!(summary.contains("(estab 5,") && summary.contains("timewait 2)"), "{summary}");

    // The older names.
    for (names, prefix) in [("kubeskoop", "kubeskoop_tcpsummary_"), ("inspector", "inspector_pod_tcpsummary")]
    {
        let text = scrape(&daemon, &format!("&names={names}"));
        let of = |metric: &str, netns: &str| {
            let start = format!("{prefix}{metric}{{");
            let line = text.lines().find(|line| line.starts_with(&start) && line.contains(netns));
            line.and_then(|line| line.rsplit_once(' '))
                .unwrap_or_else(|| panic!("{metric}: {text}"))
                .1
                .to_owned()
        };
        let found = ["tcpestablishedconn", "tcptimewaitconn", "tcpsynsentconn"].map(|name| of(name, "red"));
        assert_eq!(found, ["5", "2", "2"], "{names}");
        let found = ["tcpsynrecvconn", "tcpclosewaitconn", "tcprxqueue"].map(|name| of(name, "blue"));
        // The end of what one side sent counts as a byte that is not read.
        assert_eq!(found, ["1", "2", "2"], "{names}");
    }
    assert!(scrape(&daemon, "&names=kubeskoop").contains("kubeskoop_pod_tcpsummarytcptimewaitconn{"));
    drop((lost, half, pairs));
}

#[test]
fn queues_are_what_was_written_and_not_read() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    let (v4, v6) = (listen(&blue, "10.9.1.2:7000"), listen(&blue, "[fd09::1:2]:7000"));
    let (mut first, mut second, mut full) = (pair(&red, &v4), pair(&red, &v6), pair(&red, &v6));
    first.0.write_all(&[1; 5000]).unwrap();
    second.0.write_all(&[1; 300]).unwrap();
    let daemon = Setup::on_node().pull_only().start();
    let found = compare(&daemon, &blue);
    assert_eq!((found["queue_bytes queue rx"], found["queue_bytes queue tx"]), (5300.0, 0.0));
    // Until the other side has no room.
    full.0.set_nonblocking(true).unwrap();
    let mut written = 0;
    until("the other side has no room any more", || {
        while let Ok(length) = full.0.write(&[1; 65536]) {
            written += length;
        }
        let text = scrape(&daemon, "");
        (value(&text, "red", "zero_window_connections", "") == Some(1.0)).then_some(())
    });
    let (here, there) = (compare(&daemon, &red), compare(&daemon, &blue));
    let kept = here["queue_bytes queue tx"] + there["queue_bytes queue rx"] - 5300.0;
    assert_eq!(kept, written as f64);
    drop(full);
    // What is sent from now on gets lost. The server has not read, so that closing resets.
    lose(&red, "10.9.1.2", "c1a");
    let before = compare(&daemon, &red)["queue_bytes queue tx"];
    first.0.write_all(&[1; 7000]).unwrap();
    assert_eq!(compare(&daemon, &red)["queue_bytes queue tx"] - before, 7000.0);
    until("it is sent again", || {
        (value(&scrape(&daemon, ""), "red", "retransmitting_connections", "") == Some(1.0)).then_some(())
    });
}

/// A socket that listens, with room for so many.
fn listening(netns: &Netns, address: &str, room: i32) -> OwnedFd {
    let address: SocketAddr = address.parse().unwrap();
    netns.enter(|| {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, room).unwrap();
        socket
    })
}

#[test]
fn ports_that_run_out_are_a_limit() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    red.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40009").unwrap());
    let listeners = [listen(&blue, "10.9.1.2:7000"), listen(&blue, "[fd09::1:2]:7000")];
    let daemon = Setup::on_node().pull_only().start();
    let used = |netns: &str| {
        let name =
            format!("netskoop_limit_used_ratio{{kind=\"netns\",name=\"{netns}\",limit=\"ephemeral_ports\"}}");
        series(&daemon.scrape("/metrics?collect[]=limit"), &name)
    };
    assert_eq!((used("red"), used("blue")), (Some(0.0), Some(0.0)));
    let mut pairs: Vec<_> = (0..7).map(|_| pair(&red, &listeners[0])).collect();
    assert_eq!((used("red"), used("blue")), (Some(0.7), Some(0.0)));
    pairs.extend((0..10).map(|_| pair(&red, &listeners[1])));
    // The kernel gives a port to connections with different destinations, so there is room for three more to the first.
    assert_eq!(used("red"), Some(1.0));
    pairs.extend((0..3).map(|_| pair(&red, &listeners[0])));
    let none = red.enter(|| TcpStream::connect("10.9.1.2:7000"));
    assert_eq!(none.unwrap_err().kind(), std::io::ErrorKind::AddrNotAvailable);
}

#[test]
fn a_full_accept_queue_is_seen_before_and_when_it_overflows() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    let (narrow, wide) = (listening(&blue, "[fd09::1:2]:7000", 2), listening(&blue, "10.9.1.2:80", 99));
    let daemon = Setup::on_node().pull_only().set("probes.tcpsummary", "listeners = true").start();
    let overflows = |text: &str| {
        series(text, "netskoop_tcpext_listen_overflows_total{kind=\"netns\",name=\"blue\"}").unwrap()
    };
    let look = || daemon.scrape("/metrics?collect[]=tcpsummary&collect[]=tcpext&set=full");
    let text = look();
    let ratio = |text: &str| value(text, "blue", "listen_backlog_used_ratio", "");
    assert_eq!((ratio(&text), overflows(&text)), (Some(0.0), 0.0));
    let target = "[fd09::1:2]:7000".parse().unwrap();
    let connect = || red.enter(|| connecting(target, None));
    let mut clients = vec![connect()];
    let third = until("one is in the queue", || ratio(&look()).filter(|ratio| *ratio > 0.0));
    assert_eq!(third, 0.333_333);
    clients.extend([connect(), connect()]);
    until("the queue is full", || (ratio(&look()) == Some(1.0)).then_some(()));
    clients.extend((0..5).map(|_| connect()));
    let text = until("it overflows", || Some(look()).filter(|text| overflows(text) > 0.0));
    assert_eq!(value(&text, "blue", "listen_backlog", ""), Some(3.0));
    let limits = daemon.scrape("/metrics?collect[]=limit");
    let limit = "netskoop_limit_used_ratio{kind=\"netns\",name=\"blue\",limit=\"accept_queue\"}";
    assert_eq!(series(&limits, limit), Some(1.0), "{limits}");
    assert_eq!(value(&text, "blue", "listen_backlog_limit", ""), Some(101.0));
    // By address: the narrow one is full, the wide one empty.
    let of = |text: &str, name: &str, address: &str| {
        value(text, "blue", name, &format!(",listener=\"{address}\""))
    };
    let row = |address| {
        ["listener_backlog", "listener_backlog_limit", "listener_drops_total"]
            .map(|name| of(&text, name, address))
    };
    let drops = value(&text, "blue", "listen_drops_total", "").unwrap();
    assert!(drops >= 1.0, "{drops}");
    assert_eq!(row("[fd09::1:2]:7000"), [Some(3.0), Some(2.0), Some(drops)]);
    assert_eq!(row("10.9.1.2:80"), [Some(0.0), Some(99.0), Some(0.0)]);
    let memory = blue.run("ss", &["-Htlnm", "sport", "=", "7000"]);
    let shown: f64 = memory.split(",d").nth(1).unwrap().split(')').next().unwrap().parse().unwrap();
    assert!(shown >= drops, "{memory}");
    // What a closed one had dropped stays in the sum.
    drop(narrow);
    let text = look();
    assert!(value(&text, "blue", "listen_drops_total", "").unwrap() >= drops);
    assert_eq!(addresses(&text), 1, "{text}");
    drop((wide, clients));
}

/// How many addresses are shown.
fn addresses(text: &str) -> usize {
    text.lines()
        .filter(|line| line.starts_with("netskoop_tcpsummary_listener_backlog{kind=\"netns\",name=\"blue\""))
        .count()
}

/// Where there is nothing but listening sockets and connections that are being accepted, not every pass looks for the latter.
#[test]
fn half_open_connections_are_found_where_there_is_nothing_else() {
    own_node!(Pids::Own);
    let (red, green) = (Netns::new("red"), Netns::new("green"));
    red.cable(&green, 1);
    let listener = listen(&green, "10.9.1.2:7000");
    let daemon = Setup::on_node().pull_only().start();
    let half = half_open(&red, &green, "10.9.1.2:7000");
    let count = |text: &str| value(text, "green", "connections", ",state=\"syn_recv\"");
    let mut passes = 0;
    until("it is seen", || {
        passes += 1;
        (count(&scrape(&daemon, "")) == Some(1.0)).then_some(())
    });
    // Passes that came before the packet did are counted, too, but there cannot be many.
    assert!(passes < 30, "{passes}");
    for _ in 0..5 {
        assert_eq!(count(&scrape(&daemon, "")), Some(1.0));
    }
    drop((listener, half));
}

/// Connections in TIME_WAIT in a namespace, over its loopback: they need no descriptors.
fn crowd(netns: &Netns, count: usize) {
    netns.enter(|| {
        for (name, value) in [("tcp_tw_reuse", "0"), ("tcp_max_tw_buckets", "100000")] {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
        }
        let listeners: Vec<_> =
            [7000, 7001].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap()).into();
        for number in 0..count {
            let listener = &listeners[number % listeners.len()];
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = listener.accept().unwrap().0;
            drop(client);
            drop(server);
        }
    });
}

#[test]
fn a_crowded_namespace_does_not_keep_the_others_waiting() {
    own_node!(Pids::Own);
    let (big, small) = (Netns::new("big"), Netns::new("small"));
    crowd(&big, 22_000);
    let listener = listen(&small, "127.0.0.1:1");
    let few: Vec<_> = (0..3).map(|_| pair(&small, &listener)).collect();
    let daemon = Setup::on_node().pull_only().set("probes.tcpsummary", "max_milliseconds = 900").start();
    let count = |text: &str, netns: &str, state: &str| {
        value(text, netns, "connections", &format!(",state=\"{state}\""))
    };
    let text = scrape(&daemon, "");
    assert_eq!(count(&text, "small", "established"), Some(6.0));
    let waiting = count(&text, "big", "time_wait");
    assert!(waiting > Some(20_000.0), "{waiting:?}");
    let sockstat = big.enter(|| std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap());
    assert!(sockstat.contains(&format!(" tw {} ", waiting.unwrap())), "{waiting:?} in {sockstat}");
    // There is not enough time for the one; the other is complete, and so is what listens. For both the kernel walks through
    // the sockets of all namespaces, which takes some machines more than a millisecond.
    let read_in = |milliseconds: u32| {
        let options = format!(r#"{{"options":{{"max_milliseconds":"{milliseconds}"}},"runtime":true}}"#);
        daemon.change("tcpsummary", &options);
        (0..20).map(|_| scrape(&daemon, "")).find(|text| count(text, "small", "established") == Some(6.0))
    };
    let text = [1, 2, 4, 8].into_iter().find_map(read_in).expect("the small one is read");
    assert_eq!(count(&text, "big", "time_wait"), None, "20,000 sockets in a few milliseconds");
    assert_eq!(count(&text, "big", "listen"), Some(0.0));
    assert!(series(&text, "netskoop_collection_late_namespaces").is_some_and(|late| late >= 1.0), "{text}");
    assert_eq!(series(&text, "netskoop_probe_success{probe=\"tcpsummary\"}"), Some(0.0));
    assert_eq!(series(&text, "netskoop_probe_retries_total{probe=\"tcpsummary\"}"), Some(0.0));
    drop(few);
}

#[test]
fn namespaces_that_vanish_while_they_are_read_are_no_errors() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node().pull_only().start();
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for round in 0..40 {
                let short = Netns::new("short");
                let listener = listen(&short, "127.0.0.1:1");
                let pairs: Vec<_> = (0..round).map(|_| pair(&short, &listener)).collect();
                drop((short, pairs));
            }
        });
        while !churn.is_finished() {
            let text = scrape(&daemon, "");
            let success = series(&text, "netskoop_probe_success{probe=\"tcpsummary\"}");
            assert_eq!(success, Some(1.0), "{text}");
        }
        churn.join().unwrap();
    });
    assert!(!daemon.log().iter().any(|line| line.contains("sockets")), "{:?}", daemon.log());
}
