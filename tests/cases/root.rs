use crate::support::{
    Daemon, Follow, LIMIT, Lines, Netns, PULL, Pids, Setup, exclusive, own_node, programs_vanish, run,
    series, until,
};
use netskoop_api::{Entities, Entity, Event, Kind, Net, StateName, Value};
use rustix::net::AddressFamily;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Ends the threads that run until told, also when a test fails.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A process with a namespace of its own, ended when dropped.
pub(crate) struct Lonely(Child, u32);

impl Lonely {
    fn new() -> Lonely {
        let script = "stat -Lc %i /proc/self/ns/net; exec sleep 1000";
        let mut command = Command::new("unshare");
        let command = command.args(["-n", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let inode = line.trim().parse().unwrap();
        Lonely(child, inode)
    }
}

impl Drop for Lonely {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process inside a named namespace.
pub(crate) fn member(netns: &Netns) -> Lonely {
    let net = format!("--net={}", netns.path().display());
    let mut command = Command::new("nsenter");
    let child = command.args([&net, "sleep", "1000"]).spawn().unwrap();
    let link = format!("/proc/{}/ns/net", child.id());
    let wanted = format!("net:[{}]", netns.inode());
    until("the process is inside", || {
        std::fs::read_link(&link).is_ok_and(|l| l.as_os_str() == &*wanted).then_some(())
    });
    Lonely(child, netns.inode())
}

pub(crate) fn find(entities: &Entities, inode: u32) -> Option<&Entity> {
    entities.entities.iter().find(|entity| entity.id.netns == inode)
}

fn come_and_go(daemon: &Daemon) {
    let named = Netns::new("blue");
    let blue = named.inode();
    let now = daemon.entities_until("blue", |now| find(now, blue).is_some());
    let entity = find(&now, blue).unwrap();
    assert_eq!((entity.id.kind, &*entity.id.name, entity.leader), (Kind::Netns, "blue", None));
    assert_eq!((entity.mounts.as_slice(), entity.processes), (&["blue".to_owned()][..], 0));

    let lonely = Lonely::new();
    let pid = i32::try_from(lonely.0.id()).unwrap();
    let now = daemon.entities_until("a process alone", |now| {
        // What `sh` ran before is gone by then.
        let alone = |entity: &Entity| (entity.comm.as_deref(), entity.processes) == (Some("sleep"), 1);
        find(now, lonely.1).is_some_and(alone)
    });
    let entity = find(&now, lonely.1).unwrap();
    assert_eq!((entity.leader, entity.processes), (Some(pid), 1));

    let both = member(&named);
    let leader = i32::try_from(both.0.id()).unwrap();
    let now =
        daemon.entities_until("a member of blue", |now| find(now, blue).is_some_and(|e| e.leader.is_some()));
    let entity = find(&now, blue).unwrap();
    assert_eq!((entity.leader, &*entity.id.name), (Some(leader), "blue"));

    let alone = lonely.1;
    drop(lonely);
    daemon.entities_until("the process alone is gone", |now| find(now, alone).is_none());
    // The name goes first, the process stays; then it goes, too.
    drop(named);
    let now = daemon.entities_until("blue has no name any more", |now| {
        find(now, blue).is_some_and(|entity| entity.mounts.is_empty())
    });
    assert_eq!(find(&now, blue).unwrap().leader, Some(leader));
    drop(both);
    daemon.entities_until("blue is gone", |now| find(now, blue).is_none());
    assert!(!daemon.scrape("/metrics").contains("blue"), "a namespace that is gone is still shown");
}

#[test]
fn namespaces_come_and_go() {
    own_node!(Pids::Shared);
    let daemon = Setup::on_node().pull_only().start();
    assert!(daemon.status().sources.iter().any(|s| s.name == "kernel hooks" && s.state == "watching"));
    come_and_go(&daemon);
}

#[test]
fn namespaces_come_and_go_without_bpf_too() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().pull_only();
    // CAP_DAC_READ_SEARCH and the like stay.
    let daemon = setup.wrap(&["setpriv", "--bounding-set=-bpf,-perfmon"]).start();
    come_and_go(&daemon);
}

/// The kernel tells; nobody has to ask.
#[test]
fn a_long_poll_ends_when_a_namespace_appears() {
    own_node!(Pids::Shared);
    let daemon = Setup::on_node().pull_only().start();
    for round in 0..3 {
        let before = daemon.entities().generation;
        std::thread::scope(|scope| {
            let poll = scope.spawn(|| {
                let mut generation = before;
                loop {
                    let now: Entities = daemon.json(&format!("/v1/entities?after={generation}"));
                    if now.entities.iter().any(|entity| entity.id.name == "fresh") {
                        return;
                    }
                    assert!(now.generation > generation, "the poll ended with nothing new");
                    generation = now.generation;
                }
            });
            let fresh = Netns::new("fresh");
            poll.join().unwrap_or_else(|_| panic!("round {round}"));
            drop(fresh);
            daemon.entities_until("it is gone", |now| now.entities.iter().all(|e| e.id.name != "fresh"));
        });
    }
}

#[test]
fn a_namespace_whose_process_has_just_ended_is_in_the_next_scrape() {
    own_node!(Pids::Shared);
    let blue = Netns::new("blue");
    let daemon = Setup::on_node().pull_only().start();
    for round in 0..20 {
        // As after `ip netns exec`.
        let member = member(&blue);
        daemon.entities_until("a member", |now| find(now, blue.inode()).is_some_and(|e| e.leader.is_some()));
        drop(member);
        let text = daemon.scrape("/metrics");
        let opens = series(&text, "netskoop_tcp_active_opens_total{kind=\"netns\",name=\"blue\"}");
        assert_eq!(opens, Some(0.0), "round {round}");
    }
}

#[test]
fn a_namespace_is_not_held_by_being_read() {
    own_node!(Pids::Own);
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    near.cable(&far, 1);
    let daemon = Setup::on_node().start();
    let member = member(&far);
    assert!(daemon.scrape("/metrics?set=full").contains("name=\"far\""));
    drop(member);
    assert!(daemon.scrape("/metrics?set=full").contains("name=\"far\""));
    drop(far);
    // The kernel takes a namespace apart when nobody holds it any more; the other end of its cable goes with it.
    until("the namespace is freed", || (!near.run("ip", &["-o", "link"]).contains("c1a")).then_some(()));
}

/// Makes both IP versions count: TCP in good order and refused, UDP delivered and not, over a cable.
fn traffic(from: &Netns, to: &Netns, net: u8) {
    for address in [format!("10.9.{net}.2"), format!("fd09::{net}:2")] {
        let address: IpAddr = address.parse().unwrap();
        let (listener, receiver) = to.enter(|| {
            let listener = TcpListener::bind((address, 7000)).unwrap();
            (listener, UdpSocket::bind((address, 7000)).unwrap())
        });
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        from.enter(|| {
            for round in 0..5 {
                let mut client = TcpStream::connect((address, 7000)).unwrap();
                let mut server = listener.accept().unwrap().0;
                client.write_all(&vec![1; 10_000 * (round + 1)]).unwrap();
                drop(client);
                server.read_to_end(&mut Vec::new()).unwrap();
            }
            for _ in 0..3 {
                assert!(TcpStream::connect((address, 7001)).is_err());
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).unwrap();
                socket.send_to(b"hello", (address, 7000)).unwrap();
                receiver.recv(&mut [0; 16]).unwrap();
                // Refused with an ICMP message; fragmented on the way.
                socket.connect((address, 7002)).unwrap();
                socket.send(&[0; 4000]).unwrap();
                until("it is refused", || socket.send(b"x").is_err().then_some(()));
            }
        });
    }
}

/// A socket for UDP-Lite, which is used like one for UDP.
fn lite(address: SocketAddr) -> UdpSocket {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = Some(rustix::net::ipproto::UDPLITE);
    let socket = rustix::net::socket(family, rustix::net::SocketType::DGRAM, protocol).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    socket.into()
}

/// UDP-Lite in both IP versions, delivered and not, and echoes.
fn lite_traffic(from: &Netns, to: &Netns, net: u8) {
    for (any, address) in [("0.0.0.0:0", format!("10.9.{net}.2")), ("[::]:0", format!("fd09::{net}:2"))] {
        let address: IpAddr = address.parse().unwrap();
        let receiver = to.enter(|| lite((address, 7010).into()));
        receiver.set_read_timeout(Some(LIMIT)).unwrap();
        from.enter(|| {
            let socket = lite(any.parse().unwrap());
            for _ in 0..4 {
                socket.send_to(b"hello", (address, 7010)).unwrap();
                receiver.recv(&mut [0; 16]).unwrap();
            }
            socket.send_to(b"nobody", (address, 7011)).unwrap();
        });
        // An echo, without a program that may be missing: what is sent to a raw socket is answered by the kernel.
        let (protocol, request) = match address.is_ipv4() {
            true => (rustix::net::ipproto::ICMP, [8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
            false => (rustix::net::ipproto::ICMPV6, [128, 0, 0, 0, 0, 0, 0, 0]),
        };
        from.enter(|| {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket(family, rustix::net::SocketType::RAW, Some(protocol)).unwrap();
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.send_to(&request, (address, 0)).unwrap();
            // It also gets what was said about the datagrams above; over IPv4 with the IP header in front.
            let mut answer = [0; 128];
            let kind = if address.is_ipv4() { 20 } else { 0 };
            while !matches!(answer[kind], 0 | 129) || answer == [0; 128] {
                socket.recv(&mut answer).unwrap();
            }
        });
    }
}

/// Every number of the kernel by the name that the help texts give it, from other readers than the daemon.
type Numbers = BTreeMap<String, u64>;

/// `Tcp: a b` over `Tcp: 1 2`.
fn two_lines(text: &str, file: &str, out: &mut Numbers) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks(2) {
        let (names, values) = (pair[0].split_whitespace(), pair[1].split_whitespace());
        let group = pair[0].split(':').next().unwrap();
        for (name, value) in names.zip(values).skip(1) {
            // MaxConn is -1.
            let Ok(value) = value.parse() else { continue };
            out.insert(format!("{group}.{name} of {file}"), value);
        }
    }
}

fn read_numbers(netns: Option<&Netns>) -> Numbers {
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        match netns {
            Some(netns) => netns.enter(|| std::fs::read_to_string(path).unwrap()),
            None => std::fs::read_to_string(path).unwrap(),
        }
    };
    let mut out = Numbers::new();
    two_lines(&read("snmp"), "/proc/net/snmp", &mut out);
    two_lines(&read("netstat"), "/proc/net/netstat", &mut out);
    for line in read("snmp6").lines() {
        let (name, value) = line.split_once(char::is_whitespace).unwrap();
        out.insert(format!("{name} of /proc/net/snmp6"), value.trim().parse().unwrap());
    }
    let page = rustix::param::page_size() as u64;
    for file in ["sockstat", "sockstat6"] {
        for line in read(file).lines() {
            let (group, rest) = line.split_once(": ").unwrap();
            let words: Vec<&str> = rest.split(' ').collect();
            for pair in words.chunks(2) {
                let value: u64 = pair[1].parse().unwrap();
                out.insert(format!("{group}: {} of /proc/net/{file}", pair[0]), value);
                out.insert(
                    format!("{group}: {} of /proc/net/{file}, which counts pages", pair[0]),
                    value * page,
                );
            }
        }
    }
    const DEV: [&str; 16] = [
        "bytes of Receive",
        "packets of Receive",
        "errs of Receive",
        "drop of Receive",
        "fifo of Receive",
        "frame of Receive",
        "compressed of Receive",
        "multicast of Receive",
        "bytes of Transmit",
        "packets of Transmit",
        "errs of Transmit",
        "drop of Transmit",
        "fifo of Transmit",
        "colls of Transmit",
        "carrier of Transmit",
        "compressed of Transmit",
    ];
    for line in read("dev").lines().skip(2) {
        let (device, values) = line.split_once(':').unwrap();
        if device.trim() == "lo" {
            continue;
        }
        for (name, value) in DEV.iter().zip(values.split_whitespace()) {
            *out.entry(format!("column {name} in /proc/net/dev")).or_default() +=
                value.parse::<u64>().unwrap();
        }
    }
    for line in read("softnet_stat").lines() {
        for (at, value) in line.split(' ').enumerate() {
            let value = u64::from_str_radix(value, 16).unwrap();
            *out.entry(format!("column {} of /proc/net/softnet_stat", at + 1)).or_default() += value;
        }
    }
    out
}

/// Programs that every administrator trusts, for the numbers they show.
fn read_with_tools(netns: &Netns, numbers: &mut Numbers) {
    let nstat: serde_json::Value = serde_json::from_str(&netns.run("nstat", &["-aszj"])).unwrap();
    let nstat = nstat["kernel"].as_object().unwrap();
    let mut compared = 0;
    for (name, value) in numbers.iter_mut() {
        let Some((name, file)) = name.split_once(" of ") else { continue };
        if matches!(file, "/proc/net/snmp" | "/proc/net/netstat" | "/proc/net/snmp6")
            && let Some(theirs) = nstat.get(&name.replace('.', ""))
        {
            *value = theirs.as_u64().unwrap();
            compared += 1;
        }
    }
    assert!(compared > 250, "nstat shows only {compared}");
    let links: serde_json::Value = serde_json::from_str(&netns.run("ip", &["-j", "-s", "link"])).unwrap();
    let links = links.as_array().unwrap();
    for (side, column) in [("rx", "Receive"), ("tx", "Transmit")] {
        for (theirs, ours) in
            [("bytes", "bytes"), ("packets", "packets"), ("errors", "errs"), ("dropped", "drop")]
        {
            let others = links.iter().filter(|link| link["ifname"] != "lo");
            let sum = others.map(|link| link["stats64"][side][theirs].as_u64().unwrap()).sum();
            numbers.insert(format!("column {ours} of {column} in /proc/net/dev"), sum);
        }
    }
}

/// The kernel's name of each native series, as its help text tells it: series without the entity's labels, scope and
/// name.
fn claims(metrics: &str) -> BTreeMap<&str, &str> {
    let helps = metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    helps.filter_map(|(family, help)| Some((family, help.rsplit_once('(')?.1.strip_suffix(").")?))).collect()
}

/// The one place of several that a series with these labels shows.
fn place(claim: &str, labels: &str) -> String {
    let family = if labels.contains("family=\"ipv6\"") { " for IPv6" } else { " for IPv4" };
    let whole = claim.split(", ").find_map(|part| part.strip_suffix(family)).unwrap_or(claim);
    let kind = labels.split_once("type=\"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default();
    whole.split(", since").next().unwrap().replace("<type>", kind)
}

/// Compares every native value of an entity with the kernel's. A number that changes meanwhile is looked at again.
fn compare(daemon: &Daemon, entity: &str, read: &dyn Fn() -> Numbers, at_least: usize) {
    let end = Instant::now() + LIMIT;
    let mut equal = BTreeSet::new();
    loop {
        let before = read();
        let metrics = daemon.scrape(&format!("/metrics?set=full&{PULL}"));
        let after = read();
        let (metrics, _) = metrics.split_once("# HELP netskoop_entity_info").unwrap();
        let claims = claims(metrics);
        let mut differ = BTreeMap::new();
        for line in metrics.lines().filter(|line| !line.starts_with('#') && line.contains(entity)) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (family, labels) = name.split_once('{').unwrap_or((name, ""));
            let claim = claims.get(family).unwrap_or_else(|| panic!("the help of {family} names no place"));
            let place = place(claim, labels);
            if family.ends_with("_type_total") && !before.contains_key(&place) {
                // The first message of this type came meanwhile.
                differ.insert(
                    name.to_owned(),
                    format!("{value}; {place}: not there, then {:?}", after.get(&place)),
                );
                continue;
            }
            let (Some(low), Some(high)) = (before.get(&place), after.get(&place)) else {
                panic!("{name} claims to show {place}, which is not there");
            };
            let scale = if family == "netskoop_tcpext_memory_pressure_seconds_total" { 1000.0 } else { 1.0 };
            let value = value.parse::<f64>().unwrap() * scale;
            // All packets of the machine: this one never rests.
            let moving = family == "netskoop_softnet_processed_total";
            let value_is =
                |range: RangeInclusive<u64>| (*range.start() as f64..=*range.end() as f64).contains(&value);
            if (low == high || moving) && value_is(*low..=*high) {
                equal.insert(name.to_owned());
            } else if !equal.contains(name) {
                differ.insert(name.to_owned(), format!("{value}; {place}: {low}, then {high}"));
            }
        }
        if differ.is_empty() && equal.len() >= at_least {
            return;
        }
        assert!(Instant::now() < end, "{} values are equal, but {differ:#?}", equal.len());
    }
}

#[test]
fn every_number_is_the_kernels() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    let member = member(&blue);
    let setup = Setup::on_node().pull_only().set("probes.udplite", "enabled = true");
    let daemon = setup.set("probes.mptcp", "enabled = true").start();
    traffic(&red, &blue, 1);
    traffic(&red, &blue, 1);
    lite_traffic(&red, &blue, 1);
    let now = daemon.entities();
    let process = |netns: &Netns| find(&now, netns.inode()).unwrap().leader;
    assert_eq!((process(&red), process(&blue)), (None, Some(i32::try_from(member.0.id()).unwrap())));
    for netns in [&red, &blue] {
        let entity = format!("{{kind=\"netns\",name=\"{}\"", netns.0);
        compare(&daemon, &entity, &|| read_numbers(Some(netns)), 240);
        let with_tools = || {
            let mut numbers = read_numbers(Some(netns));
            read_with_tools(netns, &mut numbers);
            numbers
        };
        compare(&daemon, &entity, &with_tools, 240);
    }
    // Zeros everywhere would be equal, too.
    let text = daemon.scrape("/metrics?set=full");
    for (family, more, least) in [
        ("tcp_active_opens_total", "", 10.0),
        ("tcp_retransmitted_segments_total", "", 0.0),
        ("udp_out_datagrams_total", ",family=\"ipv4\"", 12.0),
        ("udp_out_datagrams_total", ",family=\"ipv6\"", 12.0),
        ("ip_fragments_created_total", ",family=\"ipv6\"", 6.0),
        ("netdev_transmit_bytes_total", "", 300_000.0),
        ("icmp_out_echo_requests_total", ",family=\"ipv4\"", 1.0),
        ("icmp_out_echo_requests_total", ",family=\"ipv6\"", 1.0),
        ("icmp_out_type_total", ",family=\"ipv4\",type=\"8\"", 1.0),
        ("icmp_in_type_total", ",family=\"ipv6\",type=\"136\"", 1.0),
        ("icmp_in_destination_unreachable_total", ",family=\"ipv6\"", 1.0),
        ("udplite_out_datagrams_total", ",family=\"ipv4\"", 5.0),
        ("udplite_out_datagrams_total", ",family=\"ipv6\"", 5.0),
        ("mptcp_capable_syn_sent_total", "", 0.0),
        ("sock_used", "", 0.0),
    ] {
        let name = format!("netskoop_{family}{{kind=\"netns\",name=\"red\"{more}}}");
        let value = series(&text, &name).unwrap_or_else(|| panic!("no {name}"));
        assert!(value >= least, "{name} {value}");
    }
    // What is kept once for the node.
    compare(&daemon, "netskoop_softnet_", &|| read_numbers(None), 4);
}

#[test]
fn datagrams_that_find_the_buffer_full_are_counted() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 1);
    let daemon = Setup::on_node().pull_only().start();
    for (to, family, nstat) in
        [("10.9.1.2:7000", "ipv4", "UdpRcvbufErrors"), ("[fd09::1:2]:7000", "ipv6", "Udp6RcvbufErrors")]
    {
        let to: SocketAddr = to.parse().unwrap();
        // Its owner never looks.
        let deaf = blue.enter(|| UdpSocket::bind(to).unwrap());
        rustix::net::sockopt::set_socket_recv_buffer_size(&deaf, 4096).unwrap();
        red.enter(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            (0..100).for_each(|_| assert_eq!(socket.send_to(&[0; 1000], to).unwrap(), 1000));
        });
        let name = format!(
            "netskoop_udp_receive_buffer_errors_total{{kind=\"netns\",name=\"blue\",family=\"{family}\"}}"
        );
        // The last datagrams may still be on their way.
        until("kernel and daemon agree", || {
            let theirs: serde_json::Value = serde_json::from_str(&blue.run("nstat", &["-aszj"])).unwrap();
            let theirs = theirs["kernel"][nstat].as_u64().unwrap();
            let ours = series(&daemon.scrape("/metrics"), &name).unwrap();
            (theirs > 50 && ours == theirs as f64).then_some(())
        });
        let other = name.replace("blue", "red");
        assert_eq!(series(&daemon.scrape("/metrics"), &other), Some(0.0), "{other}");
    }
}

/// What all but the given entities have under a name, added up.
fn added_up(text: &str, metric: &str, without: &[&str]) -> f64 {
    let own = |line: &&str| {
        line.starts_with(&format!("{metric}{{"))
            && !without.iter().any(|name| line.contains(&format!("name=\"{name}\"")))
    };
    text.lines().filter(own).map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[test]
fn series_that_find_no_room_are_added_up() {
    own_node!(Pids::Own);
    const OPENS: &str = "netskoop_tcp_active_opens_total";
    const OTHER: &str = "netskoop_tcp_active_opens_total{kind=\"other\",name=\"other\"}";
    let mut all: Vec<Netns> = (0..30).map(|number| Netns::new(&format!("n{number}"))).collect();
    let connect = |netns: &Netns| {
        netns.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        });
    };
    all.iter().for_each(connect);
    let daemon = Setup::on_node().pull_only().set("metrics", "max_series_per_probe = 100").start();
    let path = "/metrics?collect[]=tcp";
    let full = Setup::new().pull_only().start().scrape(path);
    let text = daemon.scrape(path);
    lint_all(&daemon);
    let shown = |text: &str| {
        text.lines().filter(|line| line.starts_with(&format!("{OPENS}{{kind=\"netns\""))).count()
    };
    let (few, other) = (shown(&text), series(&text, OTHER).unwrap());
    assert!((5..30).contains(&few) && shown(&full) == 30, "{few} of {}", shown(&full));
    assert_eq!(added_up(&text, OPENS, &["host"]), added_up(&full, OPENS, &["host"]), "nothing is lost");
    assert!(text.lines().filter(|line| line.starts_with("netskoop_tcp_")).count() <= 100);
    let over = series(&text, "netskoop_probe_series_over_budget{probe=\"tcp\"}").unwrap();
    assert_eq!(series(&text, "netskoop_series_over_budget"), Some(over));
    assert!(over >= (30 - few) as f64, "{over}");
    // Another probe has its own room, and the other sets of names have theirs.
    assert_eq!(series(&text, "netskoop_probe_series_over_budget{probe=\"limit\"}"), None);
    let older = daemon.scrape("/metrics?names=inspector&collect[]=tcp&labels=target");
    let of_other = "inspector_pod_tcpactiveopens{target_node=\"node-1\",target_namespace=\"\",target_pod=\"other\",node=\"node-1\",namespace=\"\",pod=\"other\"}";
    assert!(series(&older, of_other).is_some(), "{older}");

    // A shown one goes, and leaves at once; those who are added up stay there, and their sum does not fall.
    let named = |text: &str, name: &str| text.contains(&format!("{OPENS}{{kind=\"netns\",name=\"{name}\"}}"));
    let at = all.iter().position(|netns| named(&text, &netns.0)).unwrap();
    let gone = all.remove(at).0.clone();
    daemon.entities_until("it is gone", |now| now.entities.iter().all(|entity| entity.id.name != gone));
    let text = daemon.scrape(path);
    assert!(!named(&text, &gone) && shown(&text) == few - 1);
    assert_eq!(series(&text, OTHER), Some(other));
    // An added-up one counts on, and leaves what it had counted when it goes.
    let at = all.iter().position(|netns| !named(&text, &netns.0)).unwrap();
    connect(&all[at]);
    assert_eq!(series(&daemon.scrape(path), OTHER), Some(other + 1.0));
    let gone = all.remove(at).0.clone();
    daemon.entities_until("it is gone", |now| now.entities.iter().all(|entity| entity.id.name != gone));
    assert_eq!(series(&daemon.scrape(path), OTHER), Some(other + 1.0));
    // A new one finds the room of the one that was shown.
    let fresh = Netns::new("fresh");
    daemon.entities_until("it is there", |now| find(now, fresh.inode()).is_some());
    let text = daemon.scrape(path);
    assert!(named(&text, "fresh") && shown(&text) == few, "{text}");
    assert_eq!(series(&text, OTHER), Some(other + 1.0));
}

fn lint_all(daemon: &Daemon) {
    for names in ["netskoop", "kubeskoop", "inspector"] {
        crate::golden::lint(&daemon.scrape(&format!("/metrics?set=full&names={names}")), names);
    }
}

/// A connection from a known port that nobody accepts.
pub(crate) fn refused(from: &Netns, source: SocketAddr, target: SocketAddr) {
    from.enter(|| {
        let family = match source.is_ipv4() {
            true => AddressFamily::INET,
            false => AddressFamily::INET6,
        };
        let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &source).unwrap();
        assert_eq!(rustix::net::connect(&socket, &target), Err(rustix::io::Errno::CONNREFUSED));
    });
}

pub(crate) fn address(version: u8, net: u8, host: u8, port: u16) -> SocketAddr {
    let text = if version == 4 { format!("10.9.{net}.{host}") } else { format!("fd09::{net}:{host}") };
    (text.parse::<IpAddr>().unwrap(), port).into()
}

/// The addresses of a packet.
pub(crate) fn tuple(proto: &str, src: SocketAddr, dst: SocketAddr) -> Net {
    let (sport, dport) = (src.port(), dst.port());
    Net { proto: proto.into(), src: src.ip().to_string(), sport, dst: dst.ip().to_string(), dport }
}

/// Reads events of some namespaces until one that is the end.
pub(crate) fn events_until(
    follow: &mut Follow,
    inodes: &[u32],
    mut last: impl FnMut(&Event) -> bool,
) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let line = follow.next_line().expect("the stream goes on");
        let event: Event = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let ours = event.entity.as_ref().is_some_and(|entity| inodes.contains(&entity.netns));
        let done = last(&event);
        if ours {
            events.push(event);
        }
        if done {
            return events;
        }
    }
}

pub(crate) fn follow(daemon: &Daemon, filter: &str) -> Follow {
    let after = daemon.status().events.last_seq;
    Follow::new(daemon.unix(), &format!("/v1/events?follow=1&after={after}{filter}"))
}

/// The kernel gives the inode of a namespace that is gone to the next one at once.
#[test]
fn a_namespace_has_nothing_of_the_one_before_it() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node().start();
    let mut follow = follow(&daemon, "&type=TCP_RESET_NOSOCK");
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let mut inodes = BTreeSet::new();
    for round in 0..60 {
        let netns = Netns::new(&format!("gen{round}"));
        refused(&netns, local(20_000 + round), local(7100));
        inodes.insert(netns.inode());
    }
    assert!(inodes.len() < 60, "without an inode that comes twice this tests nothing");
    let last = Netns::new("last");
    let inode = last.inode();
    daemon.entities_until("last", |now| find(now, inode).is_some_and(|entity| entity.id.name == "last"));
    let resets =
        "netskoop_tcpreset_resets_total{kind=\"netns\",name=\"last\",direction=\"send\",cause=\"no_socket\"}";
    assert_eq!(series(&daemon.scrape("/metrics"), resets), None, "counts of another namespace");
    refused(&last, local(29_999), local(7100));
    loop {
        let line = follow.next_line().expect("the stream goes on");
        let event: Event = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let port = event.net.as_ref().map_or(0, |net| net.dport);
        let Some(entity) = &event.entity else { continue };
        match port {
            29_999 => break assert_eq!(entity.name, "last"),
            20_000..20_060 if entity.kind == Kind::Netns => {
                assert_eq!(entity.name, format!("gen{}", port - 20_000), "{event:#?}");
            }
            _ => {}
        }
    }
    assert_eq!(series(&daemon.scrape("/metrics"), resets), Some(1.0));
}

#[test]
fn refused_connections_are_exactly_these_events() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 2);
    let _member = member(&blue);
    let daemon = Setup::on_node().start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let mut follow = follow(&daemon, "");
    let inodes = [red.inode(), blue.inode()];
    let mut wanted = Vec::new();
    for version in [4, 6] {
        for (from, to, client, server) in [(&red, &blue, 1, 2), (&blue, &red, 2, 1)] {
            for round in 0..3 {
                let source = address(version, 2, client, 20_000 + u16::from(version) * 100 + round);
                let target = address(version, 2, server, 7100 + round);
                refused(from, source, target);
                // The reset goes from the closed port to the client: sent there, received here.
                wanted.push(("TCP_RESET_NOSOCK", to.0.clone(), tuple("tcp", target, source)));
                wanted.push(("TCP_RESET_RECEIVE", from.0.clone(), tuple("tcp", target, source)));
            }
        }
    }
    // Connections in good order, which reset nothing; then one more as the mark.
    traffic_in_order(&red, &blue, 2);
    let mark = (address(4, 2, 1, 29_999), address(4, 2, 2, 7199));
    refused(&red, mark.0, mark.1);
    let last = tuple("tcp", mark.1, mark.0);
    let events = events_until(&mut follow, &inodes, |event| {
        event.kind == "TCP_RESET_RECEIVE" && event.net.as_ref() == Some(&last)
    });
    let mut seen = Vec::new();
    for event in &events {
        let entity = event.entity.as_ref().unwrap();
        let net = event.net.clone().unwrap();
        assert_eq!((entity.kind, &*event.node, event.schema), (Kind::Netns, "node-1", 1), "{event:#?}");
        if net == last {
            continue;
        }
        match &*event.kind {
            "TCP_RESET_NOSOCK" => {
                assert_eq!(event.fields.get("reason"), Some(&Value::Text("NO_SOCKET".into())), "{event:#?}");
                assert_eq!(event.probe, "tcpreset");
                seen.push(("TCP_RESET_NOSOCK", entity.name.clone(), net));
            }
            "TCP_RESET_RECEIVE" => {
                assert_eq!(event.fields.get("state"), Some(&Value::Text("SYN_SENT".into())), "{event:#?}");
                seen.push(("TCP_RESET_RECEIVE", entity.name.clone(), net));
            }
            // A segment for a port without a socket is also a dropped packet; and the kernel drops some of its own
            // neighbour discovery.
            "PACKET_DROP" if net.proto == "tcp" => {
                let no_socket = Some(&Value::Text("NO_SOCKET".into()));
                assert_eq!(event.fields.get("reason"), no_socket, "{event:#?}");
            }
            "PACKET_DROP" => {}
            other => panic!("{other}: {event:#?}"),
        }
    }
    let key = |(kind, name, net): &(&str, String, Net)| {
        (*kind == "TCP_RESET_RECEIVE", name.clone(), net.dst.clone(), net.dport)
    };
    wanted.sort_by_key(key);
    seen.sort_by_key(key);
    assert_eq!(seen, wanted);
    // And counted: six and the mark one way, six the other.
    let text = daemon.scrape("/metrics");
    for (name, cause, direction, count) in [
        ("blue", "no_socket", "send", 7.0),
        ("red", "no_socket", "send", 6.0),
        ("red", "connecting", "receive", 7.0),
        ("blue", "connecting", "receive", 6.0),
    ] {
        let labels = format!("kind=\"netns\",name=\"{name}\",direction=\"{direction}\",cause=\"{cause}\"");
        let series_name = format!("netskoop_tcpreset_resets_total{{{labels}}}");
        assert_eq!(series(&text, &series_name), Some(count), "{series_name}");
    }
}

pub(crate) fn traffic_in_order(from: &Netns, to: &Netns, net: u8) {
    for version in [4, 6] {
        let target = address(version, net, 2, 7200);
        let listener = to.enter(|| TcpListener::bind(target).unwrap());
        from.enter(|| {
            let mut client = TcpStream::connect(target).unwrap();
            let mut server = listener.accept().unwrap().0;
            client.write_all(b"hello").unwrap();
            drop(client);
            server.read_to_end(&mut Vec::new()).unwrap();
        });
    }
}

fn drops(daemon: &Daemon, netns: &str, reason: &str) -> Option<f64> {
    let name =
        format!("netskoop_packetloss_packets_total{{kind=\"netns\",name=\"{netns}\",reason=\"{reason}\"}}");
    series(&daemon.scrape("/metrics"), &name)
}

#[test]
fn packets_that_a_rule_drops_are_told_and_counted() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 3);
    blue.run("nft", &["add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c udp dport 9999 drop"]);
    let daemon = Setup::on_node().start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    // The neighbours get to know each other first: until then packets wait, and come in another order.
    traffic_in_order(&red, &blue, 3);
    let mut follow = follow(&daemon, "&type=PACKET_DROP&entity=blue");
    let sources: Vec<(SocketAddr, u64)> = [(4, 12), (6, 7)]
        .into_iter()
        .map(|(version, count)| {
            let (source, target) = (address(version, 3, 1, 21_000), address(version, 3, 2, 9999));
            red.enter(|| {
                let socket = UdpSocket::bind(source).unwrap();
                (0..count).for_each(|_| assert_eq!(socket.send_to(b"hello", target).unwrap(), 5));
            });
            (source, count)
        })
        .collect();
    // The mark.
    let (source, mark) = (address(4, 3, 1, 21_001), address(4, 3, 2, 9999));
    red.enter(|| UdpSocket::bind(source).unwrap().send_to(b"x", mark).unwrap());
    let last = tuple("udp", source, mark);
    let events = events_until(&mut follow, &[blue.inode()], |event| event.net.as_ref() == Some(&last));
    for (source, count) in sources {
        let target = SocketAddr::new(address(if source.is_ipv4() { 4 } else { 6 }, 3, 2, 0).ip(), 9999);
        let wanted = tuple("udp", source, target);
        let ours = events.iter().filter(|event| event.net.as_ref() == Some(&wanted));
        let mut told = 0;
        for event in ours {
            assert_eq!(event.fields.get("reason"), Some(&Value::Text("NETFILTER_DROP".into())), "{event:#?}");
            assert_eq!(event.entity.as_ref().unwrap().name, "blue");
            told += 1;
        }
        assert_eq!(told, count, "{wanted:?}");
    }
    assert_eq!(drops(&daemon, "blue", "NETFILTER_DROP"), Some(20.0));
    assert_eq!(drops(&daemon, "red", "NETFILTER_DROP"), None, "the sender dropped nothing");
    let old = "inspector_pod_packetloss_netfilter{namespace=\"\",pod=\"blue\"";
    let text = daemon.scrape("/metrics?names=inspector");
    let line = text.lines().find(|line| line.starts_with(old)).expect("the older name");
    assert!(line.ends_with(" 20"), "{line}");
}

#[test]
fn a_full_socket_buffer_is_counted_to_the_packet() {
    own_node!(Pids::Own);
    let blue = Netns::new("blue");
    let daemon = Setup::on_node().start();
    daemon.entities_until("blue", |now| find(now, blue.inode()).is_some());
    for (version, so_far) in [("127.0.0.1:7300", 0.0), ("[::1]:7300", 1.0)] {
        let before = if so_far > 0.0 { drops(&daemon, "blue", "SOCKET_RCVBUFF").unwrap() } else { 0.0 };
        let lost = blue.enter(|| {
            let receiver = UdpSocket::bind(version).unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 2048).unwrap();
            let any = version.replace("7300", "0");
            let sender = UdpSocket::bind(any).unwrap();
            let target = receiver.local_addr().unwrap();
            (0..300).for_each(|_| assert_eq!(sender.send_to(b"hello", target).unwrap(), 5));
            receiver.set_nonblocking(true).unwrap();
            let mut received = 0;
            while receiver.recv(&mut [0; 16]).is_ok() {
                received += 1;
            }
            300 - received
        });
        assert!(lost > 0);
        let drops = drops(&daemon, "blue", "SOCKET_RCVBUFF")
            .unwrap_or_else(|| panic!("{}", daemon.scrape("/metrics?collect[]=packetloss&collect[]=udp")));
        assert_eq!(drops - before, f64::from(lost), "{version}");
    }
    // The kernel's own count agrees.
    let text = daemon.scrape("/metrics");
    let errors = |family: &str| {
        let name = format!(
            "netskoop_udp_receive_buffer_errors_total{{kind=\"netns\",name=\"blue\",family=\"{family}\"}}"
        );
        series(&text, &name).unwrap()
    };
    assert_eq!(drops(&daemon, "blue", "SOCKET_RCVBUFF"), Some(errors("ipv4") + errors("ipv6")));
}

#[test]
fn history_and_live_events_join_without_a_gap() {
    own_node!(Pids::Own);
    let blue = Netns::new("blue");
    let daemon = Setup::on_node().set("events", "rate = 1000000\nburst = 1000000\nhistory = 100000").start();
    daemon.entities_until("blue", |now| find(now, blue.inode()).is_some());
    let knock = |times: u16, port: u16| {
        blue.enter(|| (0..times).for_each(|_| drop(TcpStream::connect(("127.0.0.1", port)).unwrap_err())));
    };
    let ours = |event: &Event, port: u16| {
        event.kind == "TCP_RESET_NOSOCK"
            && event.entity.as_ref().is_some_and(|entity| entity.netns == blue.inode())
            && event.net.as_ref().is_some_and(|net| net.sport == port)
    };
    knock(100, 7400);
    until("the first are in the history", || {
        let text = daemon.ask("/v1/events").text();
        let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        (events.filter(|event| ours(event, 7400)).count() == 100).then_some(())
    });
    // Followers join at any moment of a stream that flows.
    let (stop, marked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let (stop, marked, ours, knock) = (&stop, &marked, &ours, &knock);
        let flow = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                knock(20, 7401);
                // Not so many that a slow follower would lag behind what is kept.
                std::thread::sleep(Duration::from_millis(10));
            }
            // Under load some may be lost, which is counted; the mark comes until all have seen it.
            while marked.load(Ordering::Relaxed) < 8 {
                knock(1, 7402);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let followers: Vec<_> = (0..8)
            .map(|_| {
                let mut follow = Follow::new(daemon.unix(), "/v1/events?follow=1");
                scope.spawn(move || {
                    let (mut next, mut first) = (None, 0);
                    loop {
                        let line = follow.next_line().expect("the stream goes on");
                        let event: Event =
                            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                        assert_eq!(event.seq, next.unwrap_or(event.seq), "a gap or a repeat");
                        next = Some(event.seq + 1);
                        first += u32::from(ours(&event, 7400));
                        if ours(&event, 7402) {
                            marked.fetch_add(1, Ordering::Relaxed);
                            return first;
                        }
                    }
                })
            })
            .collect();
        until("they flow", || (daemon.status().events.followers == 8).then_some(()));
        stop.store(true, Ordering::Relaxed);
        for follower in followers {
            let seen = follower.join();
            // One that failed must not keep the flow going.
            marked.fetch_add(u32::from(seen.is_err()) * 8, Ordering::Relaxed);
            assert_eq!(seen.unwrap(), 100, "the history is there from its beginning");
        }
        flow.join().unwrap();
    });
    // A follower that goes away is forgotten.
    until("nobody follows", || (daemon.status().events.followers == 0).then_some(()));
    let count = |query: &str| daemon.ask(&format!("/v1/events?entity=blue&{query}")).text().lines().count();
    assert_eq!((count("limit=5"), count("type=tcpreset_nosock&limit=7"), count("since=0s")), (5, 7, 0));
    // Everything is accounted for when nothing flows.
    until("the counts agree", || {
        let events = daemon.status().events;
        let kernel = events.kernel;
        let kernel_side = kernel.seen == kernel.submitted + kernel.ring_full + kernel.suppressed;
        (kernel_side && events.malformed == 0 && events.delivered == events.last_seq).then_some(())
    });
}

#[test]
fn a_follower_is_told_what_it_missed() {
    own_node!(Pids::Own);
    let blue = Netns::new("blue");
    let setup = Setup::on_node().set("probes.packetloss", "enabled = false");
    let daemon = setup.set("events", "history = 10").start();
    daemon.entities_until("blue", |now| find(now, blue.inode()).is_some());
    blue.enter(|| (0..50).for_each(|_| drop(TcpStream::connect(("127.0.0.1", 7500)).unwrap_err())));
    until("they are here", || (daemon.status().events.delivered >= 100).then_some(()));
    let text = daemon.ask("/v1/events?after=5").text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let missed = lines[0]["missed"].as_u64().unwrap();
    assert_eq!((lines[1]["seq"].as_u64(), lines.len()), (Some(5 + missed + 1), 11));
    assert!(
        daemon.ask("/v1/events").text().lines().all(|line| line.contains("\"seq\"")),
        "who asks for what is kept misses nothing"
    );
    let counted = series(&daemon.scrape("/metrics"), "netskoop_events_missed_by_followers_total").unwrap();
    assert!(counted >= missed as f64, "{counted}");
}

#[test]
fn on_and_off_fifty_times_leaves_nothing() {
    own_node!(Pids::Own);
    let _alone = exclusive();
    let mut daemon = Setup::on_node().pull_only().start();
    let mut ids = Vec::new();
    let threads = || series(&daemon.scrape("/metrics"), "process_threads").unwrap();
    let fds = || series(&daemon.scrape("/metrics"), "process_open_fds").unwrap();
    daemon.change("tcpreset", r#"{"enabled":true,"runtime":true}"#);
    daemon.change("tcpreset", r#"{"enabled":false,"runtime":true}"#);
    let before = (until("idle threads are gone", || (threads() <= 12.0).then(threads)), fds());
    for round in 0..50 {
        let name = if round % 2 == 0 { "tcpreset" } else { "packetloss" };
        let on = daemon.change(name, r#"{"enabled":true,"runtime":true}"#).probe.state;
        assert_eq!((on.state, on.via.as_deref()), (StateName::On, Some("tp_btf")));
        assert!(!on.programs.is_empty());
        ids.extend(on.programs);
        let off = daemon.change(name, r#"{"enabled":false,"runtime":true}"#).probe.state;
        assert_eq!((off.state, off.programs), (StateName::Off, vec![]));
    }
    programs_vanish(&ids);
    until("threads and descriptors are as before", || {
        (threads() <= before.0 && fds() <= before.1).then_some(())
    });
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn namespaces_may_vanish_while_they_are_read() {
    own_node!(Pids::Own);
    let _alone = exclusive();
    let daemon = Setup::on_node().start();
    let steady = Netns::new("steady");
    daemon.entities_until("steady", |now| find(now, steady.inode()).is_some());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // With a process and without one, and the name goes to the next one.
                    let netns = Netns::new(&format!("w{worker}-{}", round % 3));
                    let _member = (round % 2 == 0).then(|| member(&netns));
                    netns.enter(|| {
                        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                        for _ in 0..=worker {
                            socket.send_to(b"x", "127.0.0.1:9").unwrap();
                        }
                    });
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for _ in 0..150 {
            check_churn(&daemon.scrape("/metrics?set=full"));
        }
    });
    daemon.entities_until("all are gone", |now| now.entities.len() == 2);
    let bad: Vec<String> =
        daemon.log().into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert_eq!(bad, Vec::<String>::new());
}

/// Each worker's namespaces have sent at most so many datagrams, to nobody: another number is another's.
fn check_churn(text: &str) {
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(name), "twice: {name}");
        let Some(labels) = name.strip_prefix("netskoop_udp_no_ports_total{") else {
            if let Some(probe) = name.strip_prefix("netskoop_probe_success{probe=") {
                assert_eq!(value, "1", "{probe}");
            }
            continue;
        };
        let most = match () {
            () if labels.contains("name=\"w0-") => 1,
            () if labels.contains("name=\"w1-") => 2,
            () if labels.contains("name=\"steady\"") || labels.contains("name=\"host\"") => 0,
            // Between the end of its name and its own, it is called after its process.
            () if labels.contains("kind=\"unknown\"") => 2,
            // The sum over those that have ended.
            () if labels.starts_with("kind=\"gone\",name=\"") => u64::MAX,
            () => panic!("nobody is called {labels}"),
        };
        assert!(value.parse::<u64>().unwrap() <= most, "{line}");
    }
    assert!(text.contains("name=\"steady\"") && text.contains("name=\"host\""));
}

/// Everything that an administrator sets, here and inside.
fn listing(netns: Option<&Netns>) -> String {
    let script = "ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip neigh; \
                  nft list ruleset; tc qdisc; tc filter show dev lo; sysctl -a 2>/dev/null | grep '^net\\.' | \
                  grep -v 'nf_conntrack_count\\|route.flush\\|stable_secret'; cut -d' ' -f1 /proc/modules; ls /sys/module; \
                  sysctl kernel.bpf_stats_enabled kernel.kptr_restrict kernel.perf_event_paranoid 2>/dev/null";
    match netns {
        Some(netns) => netns.run("sh", &["-c", script]),
        None => run("sh", &["-c", script]),
    }
}

#[test]
fn the_node_is_left_as_it_was() {
    own_node!(Pids::Own);
    // Another test changes a limit that all namespaces show.
    let _alone = exclusive();
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 4);
    blue.run("nft", &["add table inet mine"]);
    // Kernel modules are loaded by this, and neighbours are learned, before the first look.
    traffic(&red, &blue, 4);
    let _member = member(&blue);
    let settled = |netns: Option<&Netns>| {
        let mut last = listing(netns);
        until("the network settles", || {
            let now = listing(netns);
            let same = now == last && !now.contains("tentative");
            last = now;
            same.then(|| last.clone())
        })
    };
    let strip = |text: String| -> Vec<String> {
        // Neighbours go stale by themselves.
        let line = |line: &str| {
            line.split(" REACHABLE")
                .next()
                .unwrap()
                .split(" STALE")
                .next()
                .unwrap()
                .split(" DELAY")
                .next()
                .unwrap()
                .to_owned()
        };
        text.lines().map(line).collect()
    };
    let before = [None, Some(&red), Some(&blue)].map(|netns| strip(settled(netns)));
    let mut daemon = Setup::on_node().start();
    for _ in 0..5 {
        daemon.scrape("/metrics?set=full&names=netskoop,kubeskoop,inspector");
        daemon.entities();
    }
    daemon.change("netdev", r#"{"options":{"per_interface":"true"},"runtime":true}"#);
    let during = [None, Some(&red), Some(&blue)].map(|netns| strip(listing(netns)));
    assert_eq!(daemon.stop(), Some(0));
    let after = [None, Some(&red), Some(&blue)].map(|netns| strip(listing(netns)));
    for (at, lines) in before.iter().enumerate() {
        for (when, now) in [("while it runs", &during[at]), ("afterwards", &after[at])] {
            let new: Vec<_> = now.iter().filter(|line| !lines.contains(line)).collect();
            let gone: Vec<_> = lines.iter().filter(|line| !now.contains(line)).collect();
            assert!(new.is_empty() && gone.is_empty(), "{when}: new {new:#?}, gone {gone:#?}");
        }
    }
    let left: Vec<_> = std::fs::read_dir("/run/netskoop").unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["state.json"], "what was changed until the next boot, and nothing else");
}

#[test]
fn a_namespace_mounted_anywhere_has_the_name_of_its_file() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node().pull_only().start();
    std::fs::create_dir("/run/lab").unwrap();
    std::fs::write("/run/lab/left hand", "").unwrap();
    run("unshare", &["--net=/run/lab/left hand", "true"]);
    let now = daemon.entities_until("the mount", |now| {
        now.entities.iter().any(|entity| entity.id.name == "left hand" && entity.id.kind == Kind::Netns)
    });
    let entity = now.entities.iter().find(|entity| entity.id.name == "left hand").unwrap();
    assert_eq!((entity.leader, entity.mounts.as_slice()), (None, &["left hand".to_owned()][..]));
    assert!(
        daemon
            .scrape("/metrics")
            .contains("netskoop_tcp_active_opens_total{kind=\"netns\",name=\"left hand\"} 0")
    );
    run("umount", &["/run/lab/left hand"]);
    daemon.entities_until("it is gone", |now| now.entities.iter().all(|e| e.id.name != "left hand"));
}
