//! Connections that wait for accept, compared with what the program that accepts them has measured.

use crate::root::{address, events_until, find, follow, tuple};
use crate::support::{Netns, Pids, Setup, own_node, series, until};
use netskoop_api::{Event, Net, Value};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// A connection that was accepted late.
pub(crate) struct LateAccept {
    /// The packets that made it.
    pub(crate) net: Net,
    /// It waited at least and at most so long.
    pub(crate) waited: RangeInclusive<Duration>,
}

impl LateAccept {
    pub(crate) fn new(from: &Netns, to: &Netns, target: SocketAddr) -> LateAccept {
        let listener = to.enter(|| TcpListener::bind(target).unwrap());
        let before = Instant::now();
        let client = from.enter(|| TcpStream::connect(target).unwrap());
        let connected = Instant::now();
        // How slow the program is.
        std::thread::sleep(Duration::from_millis(150));
        let late = connected.elapsed();
        drop(listener.accept().unwrap());
        // The last packet of the handshake may be on its way when the client has its connection, but not for long.
        let waited = late / 2..=before.elapsed();
        LateAccept { net: tuple("tcp", client.local_addr().unwrap(), target), waited }
    }

    #[track_caller]
    pub(crate) fn is_told(&self, event: &Event) {
        let Some(Value::Number(waited)) = event.fields.get("waited_ns") else { panic!("{event:#?}") };
        assert!(self.waited.contains(&Duration::from_nanos(*waited)), "{:?}: {event:#?}", self.waited);
        let process = event.process.as_ref().expect("whoever accepts is known");
        assert_eq!(process.pid, std::process::id(), "{event:#?}");
    }
}

/// A connection that is reset before anybody accepts it.
pub(crate) fn reset_while_waiting(from: &Netns, to: &Netns, target: SocketAddr) {
    let listener = to.enter(|| TcpListener::bind(target).unwrap());
    let client = from.enter(|| TcpStream::connect(target).unwrap());
    let waits = || to.run("ss", &["-tlnH"]).lines().any(|line| line.split_whitespace().nth(1) == Some("1"));
    until("it waits", || waits().then_some(()));
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    until("it is reset", || to.run("ss", &["-tanH", "state", "established"]).is_empty().then_some(()));
    drop(listener);
}

#[test]
fn late_accepts_are_told_as_long_as_they_were_and_counted_by_port() {
    own_node!(Pids::Shared);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 20);
    let options = "enabled = true\nslow = \"50ms\"\nsystem_calls = true";
    let daemon = Setup::on_node().set("probes.listen", options).start();
    daemon.entities_until("both", |now| [&red, &blue].iter().all(|n| find(now, n.inode()).is_some()));
    let mut sum = 0.0..=0.0;
    for version in [4, 6] {
        let mut follow = follow(&daemon, "&type=TCP_ACCEPT_SLOW&entity=blue");
        let late = LateAccept::new(&red, &blue, address(version, 20, 2, 7412));
        let events =
            events_until(&mut follow, &[blue.inode()], |event| event.net.as_ref() == Some(&late.net));
        late.is_told(events.last().unwrap());
        sum = sum.start() + late.waited.start().as_secs_f64()..=sum.end() + late.waited.end().as_secs_f64();
    }
    // These are accepted at once, so that they are in the histogram only.
    let target = address(4, 20, 2, 7413);
    let listener = blue.enter(|| TcpListener::bind(target).unwrap());
    for _ in 0..20 {
        let client = red.enter(|| TcpStream::connect(target).unwrap());
        drop((listener.accept().unwrap(), client));
    }
    let text = daemon.scrape("/metrics?set=full&collect[]=listen&collect[]=tcp");
    let value = |metric: &str, entity: &str, labels: &str| {
        series(&text, &format!("netskoop_{metric}{{kind=\"netns\",name=\"{entity}\"{labels}}}"))
    };
    assert_eq!(value("listen_wait_seconds_count", "blue", ",port=\"7412\""), Some(2.0));
    let found = value("listen_wait_seconds_sum", "blue", ",port=\"7412\"").unwrap();
    assert!(sum.contains(&found), "{found} {sum:?}");
    assert_eq!(value("listen_wait_seconds_count", "blue", ",port=\"7413\""), Some(20.0));
    let connections = |port| value("listen_connections_total", "blue", &format!(",port=\"{port}\"")).unwrap();
    assert_eq!(Some(connections(7412) + connections(7413)), value("tcp_passive_opens_total", "blue", ""));
    assert!(!text.contains("netskoop_listen_connections_total{kind=\"netns\",name=\"red\""), "{text}");
    crate::golden::lint(&text, "netskoop");
    // What is not seen on this kernel is no zero, and it says so.
    let reason = daemon.probe("listen").state.reason.unwrap_or_default();
    let seen = |metric: &str| text.contains(&format!("netskoop_listen_{metric}_total{{"));
    assert_eq!(seen("overflows"), !reason.contains("full queues are not seen"), "{reason}");
    assert_eq!(seen("abandoned"), !reason.contains("with the option system_calls only"), "{reason}");
    waits_end_with_the_option(&daemon, &red, &blue);
}

/// Without the option nothing is measured, and with it again nothing that began before.
fn waits_end_with_the_option(daemon: &crate::support::Daemon, red: &Netns, blue: &Netns) {
    if !daemon.probe("listen").state.reason.is_some_and(|reason| reason.contains("system_calls")) {
        return;
    }
    let target = address(4, 20, 2, 7414);
    let set =
        |on| daemon.change("listen", &format!(r#"{{"options":{{"system_calls":"{on}"}},"runtime":true}}"#));
    let listener = blue.enter(|| TcpListener::bind(target).unwrap());
    let connect = || red.enter(|| TcpStream::connect(target).unwrap());
    set(false);
    let first = connect();
    set(true);
    let second = connect();
    drop((listener.accept().unwrap(), listener.accept().unwrap(), first, second));
    let name = "netskoop_listen_wait_seconds_count{kind=\"netns\",name=\"blue\",port=\"7414\"}";
    until("one is measured", || {
        let text = daemon.scrape("/metrics?collect[]=listen");
        let count = series(&text, name)?;
        assert_eq!(count, 1.0);
        Some(())
    });
}

/// As `MOST_PORTS` of `listen.bpf.c`.
const MOST_PORTS: u16 = 64;

#[test]
fn ports_beyond_the_share_of_a_namespace_are_counted_together_and_take_no_room_from_others() {
    own_node!(Pids::Own);
    let setup = Setup::on_node().set("probes.listen", "enabled = true\nmax_ports = 100");
    let (red, blue, daemon) = crate::anomalies::two(21, setup);
    let connect = |from: &Netns, to: &Netns, target: SocketAddr| {
        let listener = to.enter(|| TcpListener::bind(target).unwrap());
        let client = from.enter(|| TcpStream::connect(target).unwrap());
        drop((listener.accept().unwrap(), client));
    };
    for port in 0..2500 {
        let version = if port % 2 == 0 { 4 } else { 6 };
        connect(&red, &blue, address(version, 21, 2, 10_000 + port));
    }
    for version in [4, 6] {
        connect(&blue, &red, address(version, 21, 1, 80));
    }
    let text = daemon.scrape("/metrics?set=full&collect[]=listen");
    let of = |entity: &str, labels: &str| {
        crate::anomalies::total(&text, "netskoop_listen_connections_total", entity, labels)
    };
    assert_eq!(
        (of("blue", ""), of("blue", "port=\"other\"")),
        (2500, u64::from(2500 - MOST_PORTS)),
        "{text}"
    );
    assert_eq!((of("red", ""), of("red", "port=\"80\"")), (2, 2), "{text}");
    assert_eq!(daemon.probe("listen").state.stream.unwrap().map_full, 0);
}
