//! Tests with real programs, real namespaces and real traffic. They need root, and say so when they skip. Other BPF
//! users run beside them: each looks at its own namespaces and program ids only.

#![allow(unsafe_code, reason = "tests enter namespaces of their own")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "tests run ip and nft, and say why they skip"
)]

use super::bpf::{Entries, Handle, Loader, Refused, Settings, same_cookie};
use super::buckets::Buckets;
use super::drop_reasons::ENUMS;
use super::features::Features;
use super::netlink::filters::{self, Direction};
use super::netlink::{Family, Netlink};
use super::netns_watch::{self, Exits, NetnsEvent, NetnsWatch};
use super::record;
use super::ring::{Pump, Ring, wait_until};
use crate::declare::Probe;
use crate::hooks::{Counters, CountersMap, Known, Memory, Options, RawEvent};
use crate::probes::{listen, netiftxlat, packetloss, tcpreset, tcpretrans, tcptwrcv};
use crate::table::{Subject, Table};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use netskoop_api::{OptionValue, Value};
use netskoop_bpf::flow::FlowSkelBuilder;
use netskoop_bpf::netns::types::bucket_key;
use netskoop_bpf::packetloss::types::{packetloss_key, packetloss_value};
use netskoop_bpf::plain;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROBE: u16 = 7;
const LIMIT: Duration = Duration::from_secs(30);

/// A ring, its pump, and the records that came out.
struct World {
    loader: Loader,
    records: Arc<Mutex<Vec<Vec<u8>>>>,
    pump: Pump,
}

impl World {
    fn new() -> Option<World> {
        if !rustix::process::geteuid().is_root() || !Path::new("/sys/kernel/btf/vmlinux").exists() {
            eprintln!("SKIPPED: it loads BPF programs, which needs root and a kernel with BTF");
            return None;
        }
        let features = Features::load(None, ENUMS).unwrap();
        let known = Known::new(Path::new("/proc"), &features);
        let loader = Loader {
            ring: Ring::new(1 << 20).unwrap(),
            buckets: Buckets::new(0).unwrap(),
            features: Arc::new(features),
            known: Arc::new(known),
            host_netns: inode("/proc/self/ns/net"),
            namespaces: 0,
        };
        let records: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let sink = Arc::clone(&records);
        let pump =
            Pump::start(&loader.ring, move |record| sink.lock().unwrap().push(record.to_vec())).unwrap();
        Some(World { loader, records, pump })
    }

    fn start(&self, probe: &'static Probe, settings: Settings) -> Handle {
        let hooks = probe.hooks.unwrap();
        Handle::start(probe.name, PROBE, hooks.run, &self.loader, settings).unwrap()
    }

    /// Events of one namespace so far.
    fn events(&self, probe: &'static Probe, netns: u32) -> Vec<RawEvent> {
        let decode = probe.hooks.unwrap().decode;
        let records = self.records.lock().unwrap();
        let decoded = records.iter().map(|bytes| decode(bytes, &self.loader.known).expect("a whole record"));
        decoded.filter(|event| event.netns == netns).collect()
    }

    fn wait(&self, probe: &'static Probe, netns: u32, count: usize) -> Vec<RawEvent> {
        wait_until(LIMIT, || self.events(probe, netns).len() >= count);
        // What comes too much would come now.
        std::thread::sleep(Duration::from_millis(50));
        self.events(probe, netns)
    }

    fn table(
        &self,
        probe: &'static Probe,
        handle: &Handle,
        netns: u32,
    ) -> Vec<(Vec<String>, Vec<Option<u64>>)> {
        self.map_table(&probe.hooks.unwrap().maps[0], handle, netns)
    }

    fn map_table(
        &self,
        map: &CountersMap,
        handle: &Handle,
        netns: u32,
    ) -> Vec<(Vec<String>, Vec<Option<u64>>)> {
        self.table_of(map, handle, netns, &Memory::default())
    }

    /// The same for a probe that remembers its last reading.
    fn table_of(
        &self,
        map: &CountersMap,
        handle: &Handle,
        netns: u32,
        memory: &Memory,
    ) -> Vec<(Vec<String>, Vec<Option<u64>>)> {
        let mut entries = Entries::default();
        handle.read_counters(map.name, &mut entries).unwrap();
        let subject = |inode, _| (inode == netns).then_some(Subject(9));
        let options = Options::new();
        let counters = Counters::new(&entries, &subject, &options, memory);
        let mut table = Table::new(map.table, 1000);
        (map.fill)(&counters, &self.loader.known, &mut table);
        let text = |row, key| String::from_utf8_lossy(table.key(row, key)).into_owned();
        let keys = map.table.keys.len();
        let columns = u16::try_from(map.table.columns.len()).unwrap();
        (0..table.len())
            .map(|row| {
                (
                    (0..keys).map(|key| text(row, key)).collect(),
                    (0..columns).map(|c| table.cell(row, c)).collect(),
                )
            })
            .collect()
    }
}

fn inode(path: &str) -> u32 {
    u32::try_from(std::fs::metadata(path).unwrap().ino()).unwrap()
}

fn unshare() -> u32 {
    // SAFETY: only the namespace of this thread changes, and nothing else runs on it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    inode("/proc/thread-self/ns/net")
}

fn sh(command: &str) {
    let status = Command::new("sh").arg("-ec").arg(command).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Runs `f` on a thread in a network namespace of its own, with loopback up.
fn in_netns<T: Send>(f: impl FnOnce(u32) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let inode = unshare();
            sh("ip link set lo up");
            f(inode)
        });
        inside.join().unwrap()
    })
}

fn set_option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: &[u8]) {
    let size = libc::socklen_t::try_from(value.len()).unwrap();
    // SAFETY: the value is as long as is said, and lives across the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), size) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn unlimited(options: &[(&'static str, OptionValue)]) -> Settings {
    Settings { options: options.iter().cloned().collect(), rate: 0, burst: 0 }
}

fn field<'a>(event: &'a RawEvent, name: &str) -> Option<&'a str> {
    event.fields.iter().find(|(key, _)| *key == name).and_then(|(_, value)| match value {
        Value::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

fn vanish(ids: &[u32]) {
    let gone = |id: &u32| libbpf_rs::Program::fd_from_id(*id).is_err();
    assert!(wait_until(Duration::from_secs(5), || ids.iter().all(gone)), "programs stay: {ids:?}");
}

#[test]
fn refused_connections_are_exactly_told() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&tcpreset::PROBE, unlimited(&[]));
    let (a, b, mut wanted) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), Vec::new());
    let connect = |port: u16, out: &Mutex<Vec<(SocketAddr, SocketAddr)>>| {
        in_netns(|inode| {
            for address in ["127.0.0.1", "::1"] {
                for _ in 0..5 {
                    let closed = SocketAddr::new(address.parse().unwrap(), port);
                    assert!(TcpStream::connect(closed).is_err());
                    out.lock().unwrap().push((closed, closed));
                }
            }
            inode
        })
    };
    let (first, second) = (connect(81, &a), connect(82, &b));
    for (netns, port, count) in [(first, 81, &a), (second, 82, &b)] {
        assert_eq!(count.lock().unwrap().len(), 10);
        let events = world.wait(&tcpreset::PROBE, netns, 20);
        for kind in ["TCP_RESET_NOSOCK", "TCP_RESET_RECEIVE"] {
            let of_kind: Vec<_> = events.iter().filter(|event| event.decl.name == kind).collect();
            assert_eq!(of_kind.len(), 10, "{kind} in {netns}: {events:#?}");
            assert_eq!(of_kind.iter().filter(|event| event.tuple.unwrap().src.is_ipv4()).count(), 5);
            for event in of_kind {
                let tuple = event.tuple.unwrap();
                assert_eq!((tuple.proto, tuple.sport), (6, port));
                assert!(tuple.src.is_loopback() && tuple.src == tuple.dst && tuple.dport > 1024, "{tuple:?}");
                assert_eq!(event.process, None);
            }
        }
        // Each refused connection is one reset, sent and received.
        let mut ports = |kind: &str| {
            let of_kind = events.iter().filter(|event| event.decl.name == kind);
            wanted = of_kind.map(|event| event.tuple.unwrap().dport).collect();
            wanted.sort_unstable();
            wanted.clone()
        };
        assert_eq!(ports("TCP_RESET_NOSOCK"), ports("TCP_RESET_RECEIVE"));
        let received = events.iter().find(|event| event.decl.name == "TCP_RESET_RECEIVE").unwrap();
        assert_eq!(field(received, "state"), Some("SYN_SENT"));
        let sent = events.iter().find(|event| event.decl.name == "TCP_RESET_NOSOCK").unwrap();
        assert_eq!(field(sent, "reason"), Some("NO_SOCKET"));
        let row =
            |direction: &str, cause: &str| (vec![direction.to_owned(), cause.to_owned()], vec![Some(10)]);
        let rows = world.table(&tcpreset::PROBE, &handle, netns);
        assert_eq!(rows, [row("receive", "connecting"), row("send", "no_socket")]);
    }
    let mut entries = Entries::default();
    handle.forget(&[(first, 0)]).unwrap();
    handle.read_counters("counters", &mut entries).unwrap();
    let left = |netns: u32| entries.iter().filter(|(key, _)| key[..4] == netns.to_ne_bytes()).count();
    assert_eq!((left(first), left(second)), (0, 2));
    handle.stop().unwrap();
    world.pump.stop().unwrap();
}

#[test]
fn resets_by_processes_and_sockets_are_told_apart() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&tcpreset::PROBE, unlimited(&[]));
    let (netns, aborted, late) = in_netns(|inode| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        // A close with unread data.
        let (mut client, server) = pair();
        client.write_all(b"unread").unwrap();
        server.peek(&mut [0; 8]).unwrap();
        let aborted = (server.local_addr().unwrap().port(), client.local_addr().unwrap().port());
        drop(server);
        assert!(client.read(&mut [0; 8]).is_err());
        // Data for a socket whose process has closed it in good order.
        let (mut client, server) = pair();
        let late = (server.local_addr().unwrap().port(), client.local_addr().unwrap().port());
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        client.write_all(b"late").unwrap();
        (inode, aborted, late)
    });
    let events = world.wait(&tcpreset::PROBE, netns, 4);
    let of = |kind: &str, (sport, dport): (u16, u16)| {
        let same = |event: &&RawEvent| {
            let tuple = event.tuple.unwrap();
            event.decl.name == kind && (tuple.sport, tuple.dport) == (sport, dport)
        };
        let found: Vec<_> = events.iter().filter(same).collect();
        assert_eq!(found.len(), 1, "{kind}: {events:#?}");
        found[0].clone()
    };
    let active = of("TCP_RESET_ACTIVE", aborted);
    let (pid, comm) = active.process.clone().unwrap();
    assert_eq!(pid, std::process::id());
    assert!(!comm.is_empty());
    assert_eq!(field(&active, "reason"), Some("TCP_ABORT_ON_CLOSE"));
    assert_eq!(field(&of("TCP_RESET_RECEIVE", aborted), "state"), Some("ESTABLISHED"));
    let process = of("TCP_RESET_PROCESS", late);
    assert_eq!((process.process.clone(), field(&process, "state")), (None, Some("CLOSE")), "{process:?}");
    assert_eq!(field(&process, "reason"), Some("TCP_ABORT_ON_DATA"));
    assert_eq!(field(&of("TCP_RESET_RECEIVE", late), "state"), Some("CLOSE_WAIT"));
    assert_eq!(events.len(), 4);
    handle.stop().unwrap();
}

#[test]
fn options_change_while_it_runs() {
    let Some(world) = World::new() else { return };
    let ports = |ports: &[&str]| OptionValue::List(ports.iter().map(|port| (*port).to_owned()).collect());
    let handle = world.start(&tcpreset::PROBE, unlimited(&[("ignore_ports", ports(&["81"]))]));
    let netns = in_netns(|inode| {
        assert!(TcpStream::connect("127.0.0.1:81").is_err());
        assert!(TcpStream::connect("127.0.0.1:82").is_err());
        handle.set(unlimited(&[("stack", OptionValue::Bool(true))])).unwrap();
        assert!(TcpStream::connect("127.0.0.1:81").is_err());
        inode
    });
    let events = world.wait(&tcpreset::PROBE, netns, 4);
    let sports: Vec<_> = events.iter().map(|event| event.tuple.unwrap().sport).collect();
    assert_eq!(sports, [82, 82, 81, 81]);
    assert!(events[..2].iter().all(|event| event.stack.is_empty()));
    let names = world.loader.known.symbols.names(&events[2].stack);
    assert!(names.iter().any(|name| name.starts_with("tcp_v4_rcv+")), "{names:?}");
    handle.stop().unwrap();
}

#[test]
fn dropped_by_a_rule_is_told_with_reason_and_namespace() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&packetloss::PROBE, unlimited(&[("stack", OptionValue::Bool(true))]));
    let netns = in_netns(|inode| {
        sh("nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
            add rule inet t c udp dport 9 drop'");
        for (bind, to, count) in [("127.0.0.1:0", "127.0.0.1:9", 7), ("[::1]:0", "[::1]:9", 3)] {
            let socket = UdpSocket::bind(bind).unwrap();
            for _ in 0..count {
                socket.send_to(b"x", to).unwrap();
            }
        }
        // The ports lie behind extension headers: hop-by-hop and destination options of padding, 8 and 16 bytes.
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        for (option, header) in
            [(54, &[0, 0, 1, 4, 0, 0, 0, 0][..]), (59, &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]
        {
            set_option(&socket, libc::IPPROTO_IPV6, option, header);
        }
        socket.send_to(b"x", "[::1]:9").unwrap();
        inode
    });
    let all = world.wait(&packetloss::PROBE, netns, 11);
    let events: Vec<_> = all.iter().filter(|e| e.tuple.is_some_and(|t| t.dport == 9)).collect();
    assert_eq!(events.len(), 11, "{all:#?}");
    assert_eq!(events.iter().filter(|event| event.tuple.unwrap().src.is_ipv6()).count(), 4);
    for event in &events {
        let tuple = event.tuple.unwrap();
        assert_eq!((tuple.proto, tuple.src), (17, tuple.dst));
        assert_eq!(field(event, "reason"), Some("NETFILTER_DROP"));
        assert!(field(event, "location").unwrap().contains('+'), "{event:?}");
    }
    let names = world.loader.known.symbols.names(&events[0].stack);
    assert!(names.iter().any(|name| name.starts_with("nf_hook_slow+")), "{names:?}");
    // The whole way, from the system call to the rule.
    let last = names.last().unwrap();
    assert!(
        last.starts_with("entry_SYSCALL") || last.starts_with("el0"),
        "{} frames: {names:?}",
        names.len()
    );
    let rows = world.table(&packetloss::PROBE, &handle, netns);
    // Where it was dropped depends on the kernel: in the hook, or in the rule itself.
    let dropped = rows.iter().find(|(keys, _)| keys[..2] == ["NETFILTER_DROP", "netfilter"]);
    assert_eq!(dropped.map(|(_, cells)| &cells[..]), Some(&[Some(11), Some(11)][..]), "{rows:?}");
    handle.stop().unwrap();
}

#[test]
fn a_full_receive_buffer_is_counted_exactly() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&packetloss::PROBE, Settings { rate: 1, burst: 3, ..Settings::default() });
    const SENT: u64 = 500;
    let (netns, received) = in_netns(|inode| {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, &2048i32.to_ne_bytes());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..SENT {
            sender.send_to(b"0123456789", receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let mut received = 0;
        while receiver.recv(&mut [0; 16]).is_ok() {
            received += 1;
        }
        (inode, received)
    });
    assert!(received > 0 && received < SENT);
    let lost = SENT - received;
    let rows = world.table(&packetloss::PROBE, &handle, netns);
    let full: Vec<_> = rows.iter().filter(|(keys, _)| keys[0] == "SOCKET_RCVBUFF").collect();
    assert_eq!(full.len(), 1, "{rows:?}");
    assert_eq!(full[0].1, [Some(lost), Some(lost)]);
    // The rate holds: a burst of three (and one more if the test was slow), the rest withheld and counted.
    let events = world.wait(&packetloss::PROBE, netns, 3);
    assert!((3..=5).contains(&events.len()), "{}", events.len());
    let balanced = || {
        let counts = handle.stream_counts().unwrap();
        counts.seen == counts.submitted + counts.ring_full + counts.suppressed
    };
    assert!(wait_until(LIMIT, balanced));
    assert!(handle.stream_counts().unwrap().suppressed >= lost - 5);
    handle.stop().unwrap();
}

/// Datagrams to full sockets, a thread on each CPU and twice as many: how many the kernel threw away.
fn storm(inode: u32, each: u64) -> (u32, u64, u64) {
    let flood = |cpu: usize| {
        let address = if cpu.is_multiple_of(2) { "127.0.0.1:0" } else { "[::1]:0" };
        let receiver = UdpSocket::bind(address).unwrap();
        set_option(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, &2048i32.to_ne_bytes());
        let sender = UdpSocket::bind(address).unwrap();
        for _ in 0..each {
            sender.send_to(b"0123456789", receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        each - std::iter::from_fn(|| receiver.recv(&mut [0; 16]).ok()).count() as u64
    };
    let threads = 2 * libbpf_rs::num_possible_cpus().unwrap().min(4);
    let lost = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|cpu| scope.spawn(move || flood(cpu))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let cookie = super::netns_cookie::cookie(Path::new("/proc/thread-self/ns/net"), inode).unwrap();
    (inode, cookie, lost)
}

#[test]
fn storms_on_all_cpus_are_counted_exactly_and_leave_their_places_to_others() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&packetloss::PROBE, Settings { rate: 1, burst: 3, ..Settings::default() });
    let full = world.loader.known.drop_reasons.clone();
    let mut entries = Entries::default();
    let mut apart = 0;
    // More namespaces than a CPU has places.
    for _ in 0..40 {
        let (inode, cookie, lost) = in_netns(|inode| storm(inode, 2000));
        handle.read_counters("counters", &mut entries).unwrap();
        let counted: Vec<u64> = entries
            .iter()
            .filter_map(|(key, value)| {
                let key = plain::read::<packetloss_key>(key)?;
                let of_it = key.netns == inode && same_cookie(key.cookie, cookie);
                let of_it = of_it && matches!(&*full.name(key.reason), "SOCKET_RCVBUFF" | "0");
                Some(plain::read::<packetloss_value>(value)?.packets).filter(|_| of_it)
            })
            .collect();
        assert_eq!(counted.iter().sum::<u64>(), lost, "{counted:?}");
        // In the counters map there is one for each IP version.
        apart += counted.len().saturating_sub(2);
        handle.forget(&[(inode, cookie)]).unwrap();
    }
    assert_eq!(apart > 0, world.loader.features.guards_programs(), "{apart}");
    handle.stop().unwrap();
}

#[test]
fn closing_unix_sockets_is_no_packet_loss() {
    let Some(world) = World::new() else { return };
    // All in there: before and after, its inode may be that of another test's namespace.
    in_netns(|netns| {
        let handle = world.start(&packetloss::PROBE, unlimited(&[]));
        for _ in 0..100 {
            let (mut a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
            a.write_all(b"unread").unwrap();
        }
        // TCP in good order, which frees as many buffers as it makes.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..20 {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut server = listener.accept().unwrap().0;
            client.write_all(&[0; 100_000]).unwrap();
            drop(client);
            server.read_to_end(&mut Vec::new()).unwrap();
        }
        // One that is lost comes after all others.
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"lost", "127.0.0.1:9").unwrap();
        let events = world.wait(&packetloss::PROBE, netns, 1);
        let tuples: Vec<_> = events.iter().map(|event| event.tuple.unwrap().dport).collect();
        assert_eq!(tuples, [9], "{events:?}");
        let rows = world.table(&packetloss::PROBE, &handle, netns);
        let lost = rows.iter().filter(|(keys, _)| keys[1] != "ignored").count();
        assert_eq!(lost, 1, "{rows:?}");
        handle.stop().unwrap();
    });
}

/// Runs of the programs of some objects so far.
fn runs(handles: &[Handle]) -> u64 {
    handles.iter().flat_map(Handle::infos).map(|info| info.runs).sum()
}

/// A connection and two datagram sockets on loopback.
struct Sockets {
    client: TcpStream,
    server: TcpStream,
    a: UdpSocket,
    b: UdpSocket,
}

impl Sockets {
    fn new(version: &str) -> Sockets {
        let any = format!("{version}:0");
        let listener = TcpListener::bind(&any).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        Sockets { client, server, a: UdpSocket::bind(&any).unwrap(), b: UdpSocket::bind(&any).unwrap() }
    }

    /// TCP and UDP both ways.
    fn talk(&mut self) {
        let (to_a, to_b) = (self.a.local_addr().unwrap(), self.b.local_addr().unwrap());
        for _ in 0..1000 {
            self.client.write_all(b"ping").unwrap();
            self.server.read_exact(&mut [0; 4]).unwrap();
            self.server.write_all(b"pong").unwrap();
            self.client.read_exact(&mut [0; 4]).unwrap();
            self.a.send_to(b"ping", to_b).unwrap();
            self.b.recv(&mut [0; 8]).unwrap();
            self.b.send_to(b"pong", to_a).unwrap();
            self.a.recv(&mut [0; 8]).unwrap();
        }
    }
}

#[test]
fn nothing_runs_where_nothing_is_wrong() {
    let Some(world) = World::new() else { return };
    let counting = super::bpf::count_runs().unwrap();
    let probes = [&tcpreset::PROBE, &packetloss::PROBE, &tcpretrans::PROBE];
    let handles = probes.map(|probe| world.start(probe, unlimited(&[])));
    in_netns(|_| {
        // Others lose packets beside this test now and then.
        for version in ["127.0.0.1", "[::1]"] {
            let mut sockets = Sockets::new(version);
            let quiet = || {
                let before = runs(&handles);
                sockets.talk();
                runs(&handles) == before
            };
            assert!(wait_until(LIMIT, quiet), "{:#?}", handles.each_ref().map(Handle::infos));
        }
        let before = runs(&handles);
        assert!(TcpStream::connect("127.0.0.1:81").is_err());
        assert!(runs(&handles) > before, "runs are not counted");
    });
    drop(counting);
    handles.into_iter().for_each(|handle| handle.stop().unwrap());
}

/// On a kernel like those before 6.10, whose tracepoint is silent where there is no socket.
#[test]
fn resets_without_a_socket_are_seen_in_another_way() {
    let Some(world) = World::new() else { return };
    let features = Features::load(None, ENUMS).unwrap().pretend("tcp_send_reset", 2);
    let loader = Loader { features: Arc::new(features), ..world.loader.clone() };
    let hooks = tcpreset::PROBE.hooks.unwrap();
    let handle = Handle::start("tcpreset", PROBE, hooks.run, &loader, unlimited(&[])).unwrap();
    assert!(["tp_btf", "tp_btf+fentry", "tp_btf+kprobe"].contains(&handle.via()), "{}", handle.via());
    assert!(handle.limits()[0].contains("why it sends a reset"), "{:?}", handle.limits());
    let netns = in_netns(|inode| {
        for address in ["127.0.0.1:81", "[::1]:81"] {
            for _ in 0..5 {
                assert!(TcpStream::connect(address).is_err());
            }
        }
        // A datagram without a socket is answered in another way.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:81").unwrap();
        inode
    });
    let events = world.wait(&tcpreset::PROBE, netns, 20);
    let mut sent: Vec<_> = events.iter().filter(|event| event.decl.name == "TCP_RESET_NOSOCK").collect();
    let received = events.iter().filter(|event| event.decl.name == "TCP_RESET_RECEIVE");
    sent.sort_by_key(|event| event.time);
    assert_eq!((sent.len(), received.clone().count(), events.len()), (10, 10, 20), "{events:#?}");
    for (sent, received) in sent.iter().zip(received) {
        assert_eq!(sent.tuple, received.tuple);
        assert_eq!(sent.tuple.unwrap().sport, 81);
    }
    handle.stop().unwrap();
}

#[test]
fn where_no_way_works_the_refusal_says_why() {
    let Some(world) = World::new() else { return };
    let features = Features::load(None, ENUMS).unwrap().pretend("kfree_skb", 3);
    let loader = Loader { features: Arc::new(features), ..world.loader.clone() };
    let hooks = tcptwrcv::PROBE.hooks.unwrap();
    match Handle::start("tcptwrcv", PROBE, hooks.run, &loader, unlimited(&[])) {
        Ok(handle) => {
            assert!(["fentry", "kprobe"].contains(&handle.via()), "{}", handle.via());
            handle.stop().unwrap();
        }
        Err(refused @ Refused::NotHere(_)) => {
            let sentence = refused.to_string();
            assert!(sentence.contains("(fentry: ") && sentence.contains("; kprobe: "), "{sentence}");
            assert!(!sentence.contains('\n') && sentence.len() < 400, "{sentence}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn fifty_times_on_and_off_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let mut ids = Vec::new();
    for round in 0..50 {
        let probe = if round % 2 == 0 { &tcpreset::PROBE } else { &packetloss::PROBE };
        let handle = world.start(probe, unlimited(&[]));
        assert_eq!(handle.via(), "tp_btf");
        assert!(!handle.programs().is_empty() && !handle.is_dead());
        ids.extend(handle.programs());
        handle.stop().unwrap();
    }
    assert_eq!(ids.len(), 75);
    vanish(&ids);
}

#[test]
fn a_full_ring_loses_nothing_silently() {
    let Some(world) = World::new() else { return };
    // Nobody empties this one at first.
    let loader = Loader { ring: Ring::new(64 << 10).unwrap(), ..world.loader.clone() };
    let hooks = tcpreset::PROBE.hooks.unwrap();
    let handle = Handle::start("tcpreset", PROBE, hooks.run, &loader, unlimited(&[])).unwrap();
    in_netns(|_| {
        for _ in 0..1000 {
            assert!(TcpStream::connect("127.0.0.1:81").is_err());
        }
    });
    let counts = handle.stream_counts().unwrap();
    assert!(counts.ring_full > 0 && counts.seen >= 2000, "{counts:?}");
    let seen = Arc::new(Mutex::new(0));
    let sink = Arc::clone(&seen);
    let pump = Pump::start(&loader.ring, move |_| *sink.lock().unwrap() += 1).unwrap();
    // Others may cause resets meanwhile, so both sides are read until they agree.
    let equal = || {
        let counts = handle.stream_counts().unwrap();
        counts.seen == counts.submitted + counts.ring_full + counts.suppressed
            && counts.submitted == pump.received()
    };
    assert!(wait_until(LIMIT, equal), "{:?} {}", handle.stream_counts(), pump.received());
    let progress = pump.progress();
    assert!(wait_until(LIMIT, || pump.progress() > progress), "it ticks at rest");
    handle.stop().unwrap();
    let received = pump.received();
    pump.stop().unwrap();
    assert!(*seen.lock().unwrap() >= received);
}

#[test]
fn a_panic_in_the_sink_is_told() {
    let Some(world) = World::new() else { return };
    let ring = Ring::new(64 << 10).unwrap();
    let loader = Loader { ring: ring.clone(), ..world.loader.clone() };
    let hooks = tcpreset::PROBE.hooks.unwrap();
    let handle = Handle::start("tcpreset", PROBE, hooks.run, &loader, unlimited(&[])).unwrap();
    let pump = Pump::start(&ring, |_| panic!("bad record")).unwrap();
    in_netns(|_| assert!(TcpStream::connect("127.0.0.1:81").is_err()));
    assert!(wait_until(LIMIT, || pump.is_finished()));
    assert_eq!(pump.stop().unwrap_err(), "the consumer of the event ring panicked: bad record");
    handle.stop().unwrap();
}

#[test]
fn a_panic_in_the_owner_thread_is_told() {
    let Some(world) = World::new() else { return };
    let early =
        Handle::start("early", 1, |_| panic!("out of luck"), &world.loader, unlimited(&[])).unwrap_err();
    assert_eq!(early.to_string(), "cannot load early: it panicked: out of luck");
    let refuse = |_| Err(Refused::NotHere("not today".to_owned()));
    assert_eq!(
        Handle::start("no", 1, refuse, &world.loader, unlimited(&[])).unwrap_err(),
        Refused::NotHere("not today".to_owned())
    );
}

#[test]
fn missing_capabilities_are_named() {
    let Some(world) = World::new() else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            let hooks = tcpreset::PROBE.hooks.unwrap();
            let refused =
                Handle::start("tcpreset", PROBE, hooks.run, &world.loader, unlimited(&[])).unwrap_err();
            let wanted = "BPF needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and this process lacks CAP_BPF and \
                          CAP_PERFMON";
            assert_eq!(refused, Refused::NotHere(wanted.to_owned()));
            assert_eq!(Ring::new(1 << 20).unwrap_err(), Refused::NotHere(wanted.to_owned()));
        });
    });
}

#[test]
fn two_capabilities_are_enough() {
    if World::new().is_none() {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
            let two = CapabilitySet::BPF | CapabilitySet::PERFMON;
            let sets = CapabilitySets { effective: two, permitted: two, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            let world = World::new().unwrap();
            for probe in [&tcpreset::PROBE, &packetloss::PROBE] {
                let handle = world.start(probe, unlimited(&[]));
                assert!(handle.programs().iter().all(|id| *id > 0));
                handle.read_counters("counters", &mut Entries::default()).unwrap();
                handle.stream_counts().unwrap();
                handle.stop().unwrap();
            }
            let watch = NetnsWatch::start(PROBE, &world.loader).unwrap();
            watch.known_insert(1, 0, Exits::None).unwrap();
            watch.stop().unwrap();
            world.pump.stop().unwrap();
        });
    });
}

#[test]
fn namespaces_are_told_as_they_come_and_go() {
    let Some(world) = World::new() else { return };
    let watch = NetnsWatch::start(PROBE, &world.loader).unwrap();
    // Inodes are used again, so only what came since the last case counts.
    let since = std::cell::Cell::new(0);
    let events = || -> Vec<NetnsEvent> {
        let records = world.records.lock().unwrap();
        records
            .iter()
            .skip(since.get())
            .map(|bytes| netns_watch::decode(bytes).expect("a whole record"))
            .collect()
    };
    // A shell that says which namespace it is in, and ends when its input does.
    let child = |command: &str| {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = Vec::new();
        let out = child.stdout.as_mut().unwrap();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        let inode: u32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
        (child, inode)
    };
    let exec = "stat -Lc %i /proc/self/ns/net; exec cat";
    let python = "import os,sys,ctypes; ctypes.CDLL(None).unshare(0x40000000); \
                  print(os.stat('/proc/self/ns/net').st_ino, flush=True); sys.stdin.read()";
    for (how, command, announced) in [
        ("exec", format!("exec unshare -n sh -c '{exec}'"), true),
        ("fork", format!("exec unshare -n -f sh -c '{exec}'"), true),
        ("no exec", format!("exec python3 -c \"{python}\""), false),
    ] {
        since.set(world.records.lock().unwrap().len());
        let (mut process, inum) = child(&command);
        if announced {
            let seen =
                || events().iter().any(|e| matches!(e, NetnsEvent::Seen { inum: i, .. } if *i == inum));
            assert!(wait_until(LIMIT, seen), "{how}: {:?}", events());
        } else {
            let pid = process.id();
            let created =
                || events().iter().any(|e| matches!(e, NetnsEvent::Created { pid: p } if *p == pid));
            assert!(wait_until(LIMIT, created), "{how}: {:?}", events());
            // Whether it is also seen cannot be told: the inode may have been another test's a moment ago.
            watch.known_insert(inum, 0, Exits::Any).unwrap();
        }
        let exits =
            || events().iter().filter(|e| matches!(e, NetnsEvent::Exit { inum: i } if *i == inum)).count();
        // `stat` above was the first to end there, perhaps only after its line was read.
        assert!(!announced || wait_until(LIMIT, || exits() > 0), "{how}: {:?}", events());
        let before = exits();
        let leader = i32::try_from(process.id()).unwrap();
        if how == "exec" {
            // Another's end is of no interest; were it told, it would be told first.
            watch.clear_pending(inum, 0, Exits::Of(leader)).unwrap();
            sh(&format!("nsenter -t {leader} -n true"));
            watch.clear_pending(inum, 0, Exits::None).unwrap();
            sh(&format!("nsenter -t {leader} -n true"));
            watch.clear_pending(inum, 0, Exits::Of(leader)).unwrap();
        } else {
            watch.clear_pending(inum, 0, Exits::Any).unwrap();
        }
        drop(process.stdin.take());
        process.wait().unwrap();
        assert!(wait_until(LIMIT, || exits() > before), "{how}: {:?}", events());
        assert!(how != "exec" || exits() == before + 1, "{how}: {:?}", events());
        watch.known_remove(inum).unwrap();
        watch.known_remove(inum).unwrap();
    }
    // A namespace with a name and no process.
    let name = format!("nsk-{}", std::process::id());
    since.set(world.records.lock().unwrap().len());
    let mut ip = Command::new("ip").args(["netns", "add", &name]).spawn().unwrap();
    let pid = ip.id();
    assert!(ip.wait().unwrap().success());
    // By pid, since the other tests make namespaces meanwhile.
    let created = || events().iter().any(|e| matches!(e, NetnsEvent::Created { pid: p } if *p == pid));
    let told = wait_until(LIMIT, created);
    sh(&format!("ip netns del {name}"));
    assert!(told, "{:?}", events());
    let ids = watch.handle().programs();
    assert_eq!(ids.len(), 4);
    watch.stop().unwrap();
    vanish(&ids);
}

#[test]
fn large_maps_are_read_whole_and_forgotten_in_part() {
    let Some(world) = World::new() else { return };
    let watch = NetnsWatch::start(PROBE, &world.loader).unwrap();
    // No namespace has such numbers.
    for inum in 1..=3000 {
        watch.known_insert(inum, 0, Exits::Any).unwrap();
    }
    let mut entries = Entries::default();
    let mine = |entries: &Entries| {
        let inode = |key: &[u8]| u32::from_ne_bytes(key.try_into().unwrap());
        let mut mine: Vec<_> =
            entries.iter().map(|(key, _)| inode(key)).filter(|inum| *inum <= 3000).collect();
        mine.sort_unstable();
        mine
    };
    watch.handle().read_counters("known", &mut entries).unwrap();
    assert_eq!(mine(&entries), (1..=3000).collect::<Vec<_>>());
    watch.handle().forget(&(1..=2998).map(|inum| (inum, 0)).collect::<Vec<_>>()).unwrap();
    watch.handle().read_counters("known", &mut entries).unwrap();
    assert_eq!(mine(&entries), [2999, 3000]);
    assert_eq!(watch.handle().limits(), [""; 0]);
    watch.stop().unwrap();
}

#[test]
fn buckets_are_shared_and_go_with_their_namespace_and_their_object() {
    let Some(world) = World::new() else { return };
    let limited = || Settings { rate: 1, burst: 1, ..Settings::default() };
    let start = |number, probe: &'static Probe| {
        Handle::start(probe.name, number, probe.hooks.unwrap().run, &world.loader, limited()).unwrap()
    };
    let (reset, loss) = (start(1, &tcpreset::PROBE), start(2, &packetloss::PROBE));
    let refuse = || {
        in_netns(|inode| {
            for address in ["127.0.0.1:81", "[::1]:81"] {
                assert!(TcpStream::connect(address).is_err());
            }
            inode
        })
    };
    let (first, second) = (refuse(), refuse());
    let left = |number: u16, netns: u32| {
        let keys = world.loader.buckets.map().keys();
        let keys = keys.filter_map(|key| plain::read::<bucket_key>(&key));
        keys.filter(|key| key.probe == number && key.netns == netns).count()
    };
    // Resets have one for those that are sent and one for those that are received.
    assert_eq!([left(1, first), left(1, second), left(2, first), left(2, second)], [2, 2, 1, 1]);
    reset.forget(&[(first, 0)]).unwrap();
    assert_eq!([left(1, first), left(1, second), left(2, first), left(2, second)], [0, 2, 1, 1]);
    reset.stop().unwrap();
    assert_eq!([left(1, second), left(2, first), left(2, second)], [0, 1, 1]);
    loss.stop().unwrap();
    assert_eq!([left(2, first), left(2, second)], [0, 0]);
}

/// What a namespace has taken of its share of ports or interfaces.
fn places_taken(handle: &Handle, inode: u32) -> i64 {
    let mut shares = Entries::default();
    handle.read_counters("shares", &mut shares).unwrap();
    let of_first = |key: &[u8]| key[..8] == [inode, 0].map(u32::to_ne_bytes).concat();
    let taken = shares.iter().find(|(key, _)| of_first(key)).map(|(_, value)| value.try_into().unwrap());
    taken.map_or(0, i64::from_ne_bytes)
}

#[test]
fn ports_are_given_back_long_after_their_listeners_were_closed() {
    let Some(world) = World::new() else { return };
    let handle = world.start(&listen::PROBE, unlimited(&[]));
    in_netns(|inode| {
        let listen = |address: &str| {
            let listener = TcpListener::bind(address).unwrap();
            let target = listener.local_addr().unwrap();
            // From several CPUs at once the first ones may both want the place.
            std::thread::scope(|scope| {
                let connect = || drop(TcpStream::connect(target).unwrap());
                (0..8).for_each(|_| drop(scope.spawn(connect)));
            });
            listener
        };
        let (open, closed) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        let ports = [&open, &closed].map(|listener| u32::from(listener.local_addr().unwrap().port()));
        let entries = || {
            let mut entries = Entries::default();
            handle.read_counters("counters", &mut entries).unwrap();
            let found = entries.iter().filter(|(key, _)| key[..4] == inode.to_ne_bytes());
            found.map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>()
        };
        let counted = || {
            let port = |key: &[u8]| u32::from_ne_bytes(key[4..8].try_into().unwrap());
            let counted = entries().into_iter();
            counted
                .map(|(key, value)| (port(&key), u64::from_ne_bytes(value[..8].try_into().unwrap())))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(counted(), ports.map(|port| (port, 8)).into());
        assert_eq!(places_taken(&handle, inode), 2);
        drop(closed);
        // A look that comes too early changes nothing; settings are taken before one.
        handle.set(unlimited(&[])).unwrap();
        handle.set(unlimited(&[])).unwrap();
        assert_eq!(counted().len(), 2);
        // Ten minutes have passed for all that were closed.
        for (key, mut value) in entries() {
            let (_, since) = value.split_last_chunk_mut::<8>().unwrap();
            if *since != [0; 8] {
                *since = (u64::MAX / 2).to_ne_bytes();
                handle.counters("counters").unwrap().update(&key, &value, MapFlags::ANY).unwrap();
            }
        }
        // Its answer comes before the look that follows it, and that before the next answer.
        handle.set(unlimited(&[])).unwrap();
        handle.set(unlimited(&[])).unwrap();
        assert_eq!(counted(), [(ports[0], 8)].into());
        assert_eq!(places_taken(&handle, inode), 1);
    });
    handle.stop().unwrap();
}

#[test]
fn interfaces_that_send_nothing_for_long_make_room_and_stay_in_the_sum() {
    let Some(world) = World::new() else { return };
    let settings = || unlimited(&[("per_device", OptionValue::Bool(true))]);
    let handle = world.start(&netiftxlat::PROBE, settings());
    in_netns(|inode| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = || socket.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
        let memory = Memory::default();
        let sent = || {
            let drivers = &netiftxlat::PROBE.hooks.unwrap().maps[1];
            let rows = world.table_of(drivers, &handle, inode, &memory).into_iter();
            rows.map(|(mut keys, cells)| (keys.remove(0), cells[1..29].iter().flatten().sum::<u64>()))
                .collect::<Vec<_>>()
        };
        let row = |device: &str, packets| (device.to_owned(), packets);
        for _ in 0..5 {
            send();
        }
        // A look that comes too early changes nothing; settings are taken before one.
        handle.set(settings()).unwrap();
        handle.set(settings()).unwrap();
        assert_eq!((sent(), places_taken(&handle, inode)), (vec![row("lo", 5)], 1));
        // Ten minutes have passed.
        let mut entries = Entries::default();
        handle.read_counters("counters", &mut entries).unwrap();
        for (key, value) in entries.iter().filter(|(key, _)| key[..4] == inode.to_ne_bytes()) {
            let (numbers, _) = value.split_last_chunk::<8>().unwrap();
            let value = [numbers, &(u64::MAX / 2).to_ne_bytes()].concat();
            handle.counters("counters").unwrap().update(key, &value, MapFlags::ANY).unwrap();
        }
        handle.set(settings()).unwrap();
        handle.set(settings()).unwrap();
        assert_eq!((sent(), places_taken(&handle, inode)), (vec![row("", 5)], 0));
        send();
        assert_eq!((sent(), places_taken(&handle, inode)), (vec![row("", 5), row("lo", 1)], 1));
    });
    handle.stop().unwrap();
}

#[test]
#[ignore = "measures; run it alone with --nocapture"]
fn cost() {
    let Some(world) = World::new() else { return };
    // SAFETY: no arguments but a number; the descriptor it returns keeps statistics on until this process ends.
    assert!(unsafe { libbpf_rs::libbpf_sys::bpf_enable_stats(0) } >= 0);
    let began = Instant::now();
    let reset = world.start(&tcpreset::PROBE, Settings { rate: 10, burst: 20, ..Settings::default() });
    let loaded_reset = began.elapsed();
    let began = Instant::now();
    let loss = world.start(&packetloss::PROBE, Settings { rate: 10, burst: 20, ..Settings::default() });
    let loaded_loss = began.elapsed();
    let began = Instant::now();
    let watch = NetnsWatch::start(PROBE, &world.loader).unwrap();
    eprintln!("load: tcpreset {loaded_reset:?}, packetloss {loaded_loss:?}, netns {:?}", began.elapsed());
    let show = |what: &str, handle: &Handle| {
        for info in handle.infos() {
            let mean = info.run_time_ns.checked_div(info.runs).unwrap_or(0);
            eprintln!(
                "{what}: {} instructions {} verified {} runs {} mean {mean} ns missed {}",
                info.name, info.instructions, info.verified_instructions, info.runs, info.missed
            );
        }
    };
    let traffic = || {
        in_netns(|_| {
            for _ in 0..5000 {
                let _ = TcpStream::connect("127.0.0.1:81");
            }
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let full = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..50_000 {
                socket.send_to(b"x", full.local_addr().unwrap()).unwrap();
            }
            for _ in 0..500 {
                Command::new("true").status().unwrap();
            }
        });
    };
    for (what, rate, stack) in [("limited", 10, false), ("unlimited", 0, false), ("stack", 0, true)] {
        let options: Options = [("stack", OptionValue::Bool(stack))].into_iter().collect();
        let settings = Settings { options, rate, burst: 20 };
        reset.set(settings.clone()).unwrap();
        loss.set(settings).unwrap();
        let before: Vec<_> = [&reset, &loss].iter().flat_map(|handle| handle.infos()).collect();
        traffic();
        let after: Vec<_> = [&reset, &loss].iter().flat_map(|handle| handle.infos()).collect();
        for (a, b) in before.iter().zip(&after) {
            let runs = b.runs - a.runs;
            let mean = (b.run_time_ns - a.run_time_ns).checked_div(runs).unwrap_or(0);
            eprintln!("{what}: {} {runs} runs, {mean} ns each", b.name);
        }
        eprintln!(
            "   tcpreset {:?}\n   packetloss {:?}",
            reset.stream_counts().unwrap(),
            loss.stream_counts().unwrap()
        );
    }
    show("all", &reset);
    show("all", &loss);
    show("all", watch.handle());
    assert_eq!(record::probe(&world.records.lock().unwrap()[0]), Some(PROBE));
    eprintln!(
        "{}",
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .find(|l| l.starts_with("VmRSS"))
            .unwrap()
    );
}

fn listed(way: &str) -> String {
    let output = Command::new("tc").args(["filter", "show", "dev", "lo", way]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn qdiscs() -> String {
    String::from_utf8(Command::new("tc").args(["qdisc", "show", "dev", "lo"]).output().unwrap().stdout)
        .unwrap()
}

#[test]
fn filters_of_ours_count_and_are_removed_and_those_of_others_stay() {
    if World::new().is_none() {
        return;
    }
    let _ = in_netns(|inode| {
        let mut storage = std::mem::MaybeUninit::uninit();
        let mut open = FlowSkelBuilder::default().open(&mut storage).unwrap();
        open.maps.rodata_data.as_deref_mut().unwrap().own_netns = inode;
        let skel = open.load().unwrap();
        let programs = [
            (Direction::In, skel.progs.netskoop_in.as_fd()),
            (Direction::Out, skel.progs.netskoop_out.as_fd()),
        ];
        let mut netlink = Netlink::open(Family::Route).unwrap();
        filters::add(&mut netlink, 1, programs).unwrap();
        // Twice are not two: each packet is to be counted once.
        filters::add(&mut netlink, 1, programs).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0; 100], socket.local_addr().unwrap()).unwrap();
        let counted = |direction: u32| {
            let key = [inode, 1, direction, 0, 0, 0].map(u32::to_ne_bytes).concat();
            let value = skel.maps.totals.lookup(&key, MapFlags::ANY).unwrap().unwrap();
            [0, 8].map(|at| u64::from_ne_bytes(*value[at..].first_chunk().unwrap()))
        };
        assert_eq!([counted(0), counted(1)], [[142, 1], [142, 1]]);
        // Alone, they take their qdisc with them; a daemon that was killed leaves them to the next one.
        assert!(listed("ingress").contains("netskoop") && listed("egress").contains("netskoop"));
        assert_eq!(filters::remove_all().unwrap(), [1]);
        assert_eq!((listed("ingress"), qdiscs().contains("clsact")), (String::new(), false));
        // With somebody else there, only ours go, also if the qdisc was ours.
        filters::add(&mut netlink, 1, programs).unwrap();
        filters::add_foreign(&mut netlink, 1, skel.progs.netskoop_in.as_fd()).unwrap();
        filters::remove(&mut netlink, 1).unwrap();
        // A list also shows the names of the programs, which are the same here.
        assert!(listed("ingress").contains("somebody") && !listed("ingress").contains("0x6e73"));
        assert_eq!((listed("egress"), qdiscs().contains("clsact")), (String::new(), true));
        // A qdisc that was there before stays, also if nothing hangs on it.
        sh("tc filter del dev lo ingress");
        filters::add(&mut netlink, 1, programs).unwrap();
        assert_eq!(filters::remove_all().unwrap(), [1]);
        assert!(qdiscs().contains("clsact"));
        assert!(filters::remove_all().unwrap().is_empty());
        inode
    });
}
