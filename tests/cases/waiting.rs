//! Data that waits in sockets for a known time: the test is the application that is late, and knows how late it was.

use crate::anomalies::total;
use crate::root::{address, find, tuple};
use crate::support::{Daemon, Netns, Pids, Process, Setup, own_node, until};
use netskoop_api::{Event, Net, StateName, Value};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::{Duration, Instant};

/// How late the application is, and so what a test waits for on purpose.
const LATE: Duration = Duration::from_millis(60);

/// The option `slow`: later than this is told.
const SLOW: Duration = Duration::from_millis(40);

/// What the daemon has to tell: between whom, how long it took at least and at most, and of which process.
#[derive(Clone, Debug)]
pub(crate) struct Late {
    net: Net,
    at_least: Duration,
    at_most: Duration,
    pid: u32,
}

impl Late {
    /// That this process is late.
    fn own(net: Net, at_least: Duration, at_most: Duration) -> Late {
        Late { net, at_least, at_most, pid: std::process::id() }
    }

    /// Whether an event tells of it.
    pub(crate) fn is_in(&self, event: &Event) -> bool {
        let took = self.at_least..=self.at_most;
        event.net.as_ref() == Some(&self.net)
            && took.contains(&latency(event))
            && event.process.as_ref().is_some_and(|process| process.pid == self.pid)
    }
}

fn latency(event: &Event) -> Duration {
    let Some(Value::Number(latency)) = event.fields.get("latency_ns") else { panic!("{event:#?}") };
    Duration::from_nanos(*latency)
}

fn dawdle() -> Instant {
    let began = Instant::now();
    std::thread::sleep(LATE);
    began
}

fn wait_for(socket: &impl AsFd, what: PollFlags) {
    while poll(&mut [PollFd::new(socket, what)], None).is_err() {}
}

/// Waits until there is something to read, and then does not read it for a while.
fn dawdle_with_data(socket: &impl AsFd) -> Instant {
    wait_for(socket, PollFlags::IN);
    dawdle()
}

/// Two connected TCP sockets.
pub(crate) fn connection(from: &Netns, to: &Netns, target: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = to.enter(|| TcpListener::bind(target).unwrap());
    let client = from.enter(|| TcpStream::connect(target).unwrap());
    (client, listener.accept().unwrap().0)
}

/// Two UDP sockets that know each other.
pub(crate) fn udp_pair(from: &Netns, to: &Netns, at: SocketAddr, target: SocketAddr) -> [UdpSocket; 2] {
    let one = |netns: &Netns, own: SocketAddr, peer: SocketAddr| {
        netns.enter(|| {
            let socket = UdpSocket::bind(own).unwrap();
            socket.connect(peer).unwrap();
            socket
        })
    };
    [one(from, at, target), one(to, target, at)]
}

/// A request that is looked at, and read in two parts too late, of which the second counts from the same moment.
pub(crate) fn read_late((client, server): &mut (TcpStream, TcpStream)) -> [Late; 2] {
    let net = tuple("tcp", client.local_addr().unwrap(), server.local_addr().unwrap());
    let sent = Instant::now();
    client.write_all(b"requests").unwrap();
    let came = dawdle_with_data(server);
    assert_eq!(server.peek(&mut [0; 8]).unwrap(), 8);
    let part = |server: &mut TcpStream| {
        server.read_exact(&mut [0; 4]).unwrap();
        Late::own(net.clone(), LATE, sent.elapsed())
    };
    let first = part(server);
    std::thread::sleep(LATE);
    let second = Late { at_least: came.elapsed(), ..part(server) };
    [first, second]
}

/// Datagrams that are read too late.
pub(crate) fn udp_read_late([client, server]: &[UdpSocket; 2]) -> Late {
    let net = tuple("udp", client.local_addr().unwrap(), server.local_addr().unwrap());
    let sent = Instant::now();
    client.send(b"question").unwrap();
    let _ = dawdle_with_data(server);
    assert_eq!(server.peek(&mut [0; 8]).unwrap(), 8);
    assert_eq!(server.recv(&mut [0; 8]).unwrap(), 8);
    Late::own(net, LATE, sent.elapsed())
}

/// A UDP socket for all addresses, without a peer, and one that sends to it from an address.
pub(crate) struct Unconnected {
    client: UdpSocket,
    server: UdpSocket,
    target: SocketAddr,
}

impl Unconnected {
    pub(crate) fn new(from: &Netns, to: &Netns, at: SocketAddr, target: SocketAddr) -> Unconnected {
        let all: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let server = to.enter(|| UdpSocket::bind((all, target.port())).unwrap());
        Unconnected { client: from.enter(|| UdpSocket::bind(at).unwrap()), server, target }
    }

    /// A datagram that is read too late: then it is gone, and nothing tells any more who has sent it.
    pub(crate) fn read_late(&self) -> Late {
        let to = tuple("udp", self.client.local_addr().unwrap(), self.server.local_addr().unwrap());
        let sent = Instant::now();
        self.client.send_to(b"question", self.target).unwrap();
        let _ = dawdle_with_data(&self.server);
        assert_eq!(self.server.recv(&mut [0; 8]).unwrap(), 8);
        Late::own(Net { src: "*".into(), sport: 0, ..to }, LATE, sent.elapsed())
    }

    /// A datagram that nobody reads, and its addresses.
    pub(crate) fn never_read(&self) -> Net {
        self.client.send_to(b"please", self.target).unwrap();
        wait_for(&self.server, PollFlags::IN);
        tuple("udp", self.client.local_addr().unwrap(), self.target)
    }
}

/// A program that does not go on with its end of a connection.
pub(crate) struct Stuck {
    process: Process,
    net: Net,
    since: Instant,
    client: TcpStream,
    server: TcpStream,
    out: Option<UnixStream>,
}

impl Stuck {
    /// It has read from the connection, and is stopped before more comes.
    pub(crate) fn reader((mut client, server): (TcpStream, TcpStream)) -> Stuck {
        let net = tuple("tcp", client.local_addr().unwrap(), server.local_addr().unwrap());
        let (mut out, copy) = UnixStream::pair().unwrap();
        let mut cat = Command::new("cat");
        cat.stdin(OwnedFd::from(server.try_clone().unwrap())).stdout(OwnedFd::from(copy));
        let process = Process::start(&mut cat);
        client.write_all(b"read").unwrap();
        out.read_exact(&mut [0; 4]).unwrap();
        process.stop();
        let since = Instant::now();
        client.write_all(b"late").unwrap();
        wait_for(&server, PollFlags::IN);
        Stuck { process, net, since, client, server, out: Some(out) }
    }

    /// It writes without end, and nobody reads.
    pub(crate) fn writer((client, server): (TcpStream, TcpStream)) -> Stuck {
        let net = tuple("tcp", client.local_addr().unwrap(), server.local_addr().unwrap());
        let mut cat = Command::new("cat");
        cat.stdin(File::open("/dev/zero").unwrap()).stdout(OwnedFd::from(client.try_clone().unwrap()));
        let since = Instant::now();
        Stuck { process: Process::start(&mut cat), net, since, client, server, out: None }
    }

    /// What is told while it does not go on.
    pub(crate) fn late(&self) -> Late {
        let pid = self.process.pid();
        Late { net: self.net.clone(), at_least: SLOW, at_most: Duration::MAX, pid }
    }

    /// Whether an event may be what was told until now.
    pub(crate) fn judge(&self, event: &Event) {
        assert!(latency(event) <= self.since.elapsed(), "{event:#?}");
        assert_eq!(event.process.as_ref().unwrap().comm, "cat", "{event:#?}");
    }

    /// The reader goes on.
    pub(crate) fn reads(mut self) -> Late {
        let at_least = dawdle().elapsed();
        self.process.go_on();
        self.out.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        Late { at_least, at_most: self.since.elapsed(), ..self.late() }
    }

    /// The writer is killed, and all is read that it has written. That it was not sent was told by an event; now it is, and
    /// the writer is held up no more.
    pub(crate) fn peer_reads(mut self, told: &Event) -> [Late; 2] {
        let late = self.late();
        drop((self.process, self.client));
        self.server.read_to_end(&mut Vec::new()).unwrap();
        let held_up = Late { at_most: self.since.elapsed(), ..late };
        [Late { at_least: latency(told), ..held_up.clone() }, held_up]
    }
}

/// A request that nobody reads, and its addresses.
pub(crate) fn never_read((client, server): &mut (TcpStream, TcpStream)) -> Net {
    client.write_all(b"please").unwrap();
    wait_for(server, PollFlags::IN);
    tuple("tcp", client.local_addr().unwrap(), server.local_addr().unwrap())
}

/// Bytes that a connection has taken from its application and has not sent yet, as the kernel tells others.
fn unsent(netns: &Netns, client: &TcpStream) -> u64 {
    let [own, peer] = [client.local_addr(), client.peer_addr()].map(|address| address.unwrap().port());
    let text = netns.run("ss", &["-tinH", &format!("sport = :{own} and dport = :{peer}")]);
    let found = text.split_whitespace().find_map(|word| word.strip_prefix("notsent:"));
    found.map_or(0, |bytes| bytes.parse().unwrap())
}

/// Writes until there is no room, and says how much that was. A socket that blocks would wait for ever.
fn fill(client: &mut TcpStream) -> usize {
    let (piece, mut written) = (vec![7; 64 << 10], 0);
    loop {
        match client.write(&piece) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes more than the peer takes, which reads it too late. The last attempt to write waits longest.
pub(crate) fn sent_late(from: &Netns, (client, server): &mut (TcpStream, TcpStream)) -> Late {
    let net = tuple("tcp", client.local_addr().unwrap(), client.peer_addr().unwrap());
    client.set_nonblocking(true).unwrap();
    let (mut written, began) = (0, Instant::now());
    // For a while the peer still takes something, and some of it only when its acknowledgement or a probe of its window is
    // due. What waits from the last attempt on is sent by none of these if as much is unsent after as before.
    let at_least = until("nothing moves while the sender waits", || {
        written += fill(client);
        let before = unsent(from, client);
        let more = fill(client);
        written += more;
        let waited = dawdle().elapsed();
        (more == 0 && before > 0 && unsent(from, client) == before).then_some(waited)
    });
    let mut taken = vec![0; written];
    server.read_exact(&mut taken).unwrap();
    client.set_nonblocking(false).unwrap();
    Late::own(net, at_least, began.elapsed())
}

/// Writes more than there is room for, and is held up until the peer reads.
pub(crate) fn blocked((client, server): &mut (TcpStream, TcpStream)) {
    let all = vec![7; 16 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&all).unwrap());
        let _ = dawdle_with_data(server);
        server.read_exact(&mut vec![0; all.len()]).unwrap();
    });
}

/// Answers one byte for each, at once.
fn ping_pong(pair: &mut (TcpStream, TcpStream), times: usize) {
    for _ in 0..times {
        pair.0.write_all(b"?").unwrap();
        pair.1.read_exact(&mut [0; 1]).unwrap();
        pair.1.write_all(b"!").unwrap();
        pair.0.read_exact(&mut [0; 1]).unwrap();
    }
}

/// The event of a type that tells of it, as the daemon keeps it.
#[track_caller]
fn told(daemon: &Daemon, kind: &str, netns: &Netns, late: &Late) -> Event {
    let events = || {
        let text = daemon.ask(&format!("/v1/events?type={kind}")).text();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap()).collect::<Vec<_>>()
    };
    let of_it = |event: &Event| event.net.as_ref() == Some(&late.net);
    let looked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        until("an event of these addresses", || {
            let events: Vec<Event> = events().into_iter().filter(of_it).collect();
            events.iter().any(|event| late.is_in(event)).then_some(events)
        })
    }));
    let found = looked.unwrap_or_else(|_| panic!("no {late:#?} in {:#?}", events()));
    for event in &found {
        assert_eq!(event.probe, "socketlatency");
        assert_eq!(event.entity.as_ref().map(|entity| entity.netns), Some(netns.inode()), "{event:#?}");
        let process = event.process.as_ref().expect("it is known who is late");
        assert_eq!(process.pid, late.pid, "{event:#?}");
    }
    found.into_iter().find(|event| late.is_in(event)).unwrap()
}

fn scrape(daemon: &Daemon) -> String {
    daemon.scrape("/metrics?set=full&collect[]=socketlatency")
}

fn reads(text: &str, entity: &str, protocol: &str) -> u64 {
    let labels = format!("protocol=\"{protocol}\"");
    total(text, "netskoop_socketlatency_read_seconds_count", entity, &labels)
}

/// What is read at once: a hundred times each.
fn at_once_is_counted(daemon: &Daemon, tcp: &mut [(TcpStream, TcpStream)], udp: &[[UdpSocket; 2]]) {
    for pair in tcp {
        ping_pong(pair, 100);
    }
    for [client, server] in udp {
        for _ in 0..100 {
            client.send(b"?").unwrap();
            assert_eq!(server.recv(&mut [0; 1]).unwrap(), 1);
        }
    }
    let text = scrape(daemon);
    assert_eq!((reads(&text, "red", "tcp"), reads(&text, "blue", "tcp")), (200, 200), "{text}");
    assert_eq!(reads(&text, "red", "udp"), 0, "{text}");
    // A reader on another CPU may be quicker than the sentence that there is something to read.
    assert!((190..=200).contains(&reads(&text, "blue", "udp")), "{text}");
}

fn late_reads_are_told(
    daemon: &Daemon,
    blue: &Netns,
    tcp: &mut [(TcpStream, TcpStream)],
    udp: &[[UdpSocket; 2]],
) {
    for pair in tcp {
        for late in read_late(pair) {
            told(daemon, "SOCKETLAT_READSLOW", blue, &late);
        }
    }
    for pair in udp {
        told(daemon, "SOCKETLAT_READSLOW", blue, &udp_read_late(pair));
    }
    let text = scrape(daemon);
    assert_eq!(reads(&text, "blue", "tcp"), 204, "{text}");
    let old = daemon.scrape("/metrics?names=kubeskoop&collect[]=socketlatency");
    assert!(old.contains("kubeskoop_socketlatency_read1ms{"), "{old}");
    crate::golden::lint(&old, "kubeskoop");
}

fn what_nobody_reads_is_told(daemon: &Daemon, red: &Netns, blue: &Netns) {
    let unread = || total(&scrape(daemon), "netskoop_socketlatency_unread_total", "blue", "");
    // What was late may have been met by the look for what nobody reads.
    let before = unread();
    let told = |net: &Net, pid: Option<u32>| {
        until("what nobody reads", || {
            let text = daemon.ask("/v1/events?type=SOCKETLAT_UNREAD&entity=blue").text();
            let mut events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
            let who = |event: &Event| event.process.as_ref().map(|process| process.pid);
            events.find(|event| event.net.as_ref() == Some(net) && who(event) == pid)
        })
    };
    let target = |version| address(version, 12, 2, 7412);
    let mut pairs = [4, 6].map(|version| connection(red, blue, target(version)));
    let udp = [(4, 7430), (6, 7431)].map(|end| unconnected(red, blue, end));
    // Who is late is not known before it has read anything.
    let nets: Vec<Net> = pairs.iter_mut().map(never_read).collect();
    let datagrams: Vec<Net> = udp.iter().map(Unconnected::never_read).collect();
    for net in nets.iter().chain(&datagrams) {
        told(net, None);
    }
    for pair in &mut pairs {
        pair.1.read_exact(&mut [0; 6]).unwrap();
        never_read(pair);
    }
    for net in &nets {
        told(net, Some(std::process::id()));
    }
    assert_eq!(unread() - before, 6);
}

/// A process that is stopped, and one whose peer never reads.
fn stuck_programs_are_told(daemon: &Daemon, red: &Netns, blue: &Netns) {
    let pair = |version, port| connection(red, blue, address(version, 12, 2, port));
    let unsent = || total(&scrape(daemon), "netskoop_socketlatency_unsent_total", "red", "");
    let (before, writes) = (unsent(), writes(&scrape(daemon), "red"));
    let readers = [4, 6].map(|version| Stuck::reader(pair(version, 7414)));
    let writers = [4, 6].map(|version| Stuck::writer(pair(version, 7415)));
    for reader in readers {
        reader.judge(&told(daemon, "SOCKETLAT_UNREAD", blue, &reader.late()));
        told(daemon, "SOCKETLAT_READSLOW", blue, &reader.reads());
    }
    for writer in writers {
        let event = told(daemon, "SOCKETLAT_UNSENT", red, &writer.late());
        writer.judge(&event);
        told(daemon, "SOCKETLAT_SENDSLOW", red, &writer.peer_reads(&event)[0]);
    }
    assert!(unsent() - before >= 2);
    let text = scrape(daemon);
    assert!(self::writes(&text, "red") - writes >= 2, "{text}");
    assert_eq!(self::writes(&text, "blue"), 0, "{text}");
}

fn writes(text: &str, entity: &str) -> u64 {
    total(text, "netskoop_socketlatency_write_seconds_count", entity, "")
}

fn late_writes_are_told(daemon: &Daemon, red: &Netns, tcp: &mut [(TcpStream, TcpStream)]) {
    for pair in tcp {
        told(daemon, "SOCKETLAT_SENDSLOW", red, &sent_late(red, pair));
    }
    let text = scrape(daemon);
    assert!(writes(&text, "red") >= 2, "{text}");
    assert_eq!(writes(&text, "blue"), 0, "{text}");
    crate::golden::lint(&text, "netskoop");
}

/// The packets have another port than the socket.
fn writes_behind_address_translation_are_told(daemon: &Daemon, red: &Netns, blue: &Netns) {
    for (version, family) in [(4, "ip"), (6, "ip6")] {
        let [asked, there] = [7414, 7415].map(|port| address(version, 12, 2, port));
        let rule = format!(
            "add table {family} t; add chain {family} t c {{ type nat hook output priority -100; }}; \
             add rule {family} t c tcp dport {} dnat to {there}",
            asked.port()
        );
        red.run("nft", &[&rule]);
        let listener = blue.enter(|| TcpListener::bind(there).unwrap());
        let client = red.enter(|| TcpStream::connect(asked).unwrap());
        let mut pair = (client, listener.accept().unwrap().0);
        told(daemon, "SOCKETLAT_SENDSLOW", red, &sent_late(red, &mut pair));
    }
}

fn peers_that_are_not_known_have_no_address(daemon: &Daemon, red: &Netns, blue: &Netns) {
    for end in [(4, 7432), (6, 7433)] {
        told(daemon, "SOCKETLAT_READSLOW", blue, &unconnected(red, blue, end).read_late());
    }
}

/// Each has a port of its own: a socket for all addresses may be for those of both versions.
fn unconnected(red: &Netns, blue: &Netns, (version, port): (u8, u16)) -> Unconnected {
    let [from, target] = [1, 2].map(|host| address(version, 12, host, port));
    Unconnected::new(red, blue, from, target)
}

fn older_names_have_them(daemon: &Daemon, red: &Netns) {
    let old = daemon.scrape("/metrics?names=inspector&collect[]=socketlatency");
    let late = |name: &str| {
        let mut lines =
            old.lines().filter(|line| line.starts_with(&format!("inspector_pod_socketlatency{name}{{")));
        let line = lines.find(|line| line.contains(&format!("netns=\"ns{}\"", red.inode())));
        line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    assert!(late("write1ms").is_some_and(|writes| writes >= 2.0), "{old}");
    assert!(late("read300ms").is_some(), "{old}");
    crate::golden::lint(&old, "inspector");
}

#[test]
fn late_readers_and_writes_are_told_and_counted() {
    own_node!(Pids::Shared);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 12);
    // What was there before the probe is looked at like anything else.
    let target = |version, port| address(version, 12, 2, port);
    let mut tcp = [4, 6].map(|version| connection(&red, &blue, target(version, 7410)));
    let udp =
        [4, 6].map(|version| udp_pair(&red, &blue, address(version, 12, 1, 7411), target(version, 7411)));
    let daemon = Setup::on_node().set("probes.socketlatency", "enabled = true\nslow = \"40ms\"").start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let state = daemon.probe("socketlatency").state;
    assert_eq!(state.state, StateName::On, "{state:?}");
    assert!(!state.reason.is_some_and(|reason| reason.contains("what applications write")));

    at_once_is_counted(&daemon, &mut tcp, &udp);
    late_reads_are_told(&daemon, &blue, &mut tcp, &udp);
    what_nobody_reads_is_told(&daemon, &red, &blue);
    late_writes_are_told(&daemon, &red, &mut tcp);
    stuck_programs_are_told(&daemon, &red, &blue);
    writes_behind_address_translation_are_told(&daemon, &red, &blue);
    peers_that_are_not_known_have_no_address(&daemon, &red, &blue);
    older_names_have_them(&daemon, &red);
}
