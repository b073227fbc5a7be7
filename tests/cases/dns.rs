//! Questions to a name server of the test's own, which answers as its questions want it to and counts what it has done.

use crate::anomalies::{total, two};
use crate::root::{address, tuple};
use crate::support::{Daemon, Netns, Pids, Setup, own_node, until};
use netskoop_api::{Event, Net, StateName, Value};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How late the answer to a question for `slow` is.
const LATE: Duration = Duration::from_millis(80);
/// After so long a question is one without an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(400);

/// What a question for a name is answered with.
const RESULTS: [(&str, u8, &str); 5] = [
    ("fine", 0, "noerror"),
    ("slow", 0, "noerror"),
    ("broken", 2, "servfail"),
    ("nowhere", 3, "nxdomain"),
    ("closed", 5, "refused"),
];

/// What a name server is told at last; it is no question.
const END: &[u8] = b"end";

/// A question for the address of a name, with other labels behind it.
fn question(id: u16, name: &str, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [id, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    for label in [name.as_bytes()].iter().chain(rest) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(*label);
    }
    bytes.push(0);
    bytes.extend([1_u16, 1].map(u16::to_be_bytes).concat());
    bytes
}

/// Answers every question whose name says how, until it is told that this is the end.
fn serve(socket: &UdpSocket) {
    let mut bytes = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut bytes).unwrap();
        if bytes[..length] == *END {
            return;
        }
        let Some(name) = bytes[..length].get(13..13 + usize::from(bytes[12])) else { continue };
        let name = String::from_utf8_lossy(name).into_owned();
        let Some((_, code, _)) = RESULTS.iter().find(|(known, ..)| *known == name) else { continue };
        if name == "slow" {
            std::thread::sleep(LATE);
        }
        // One that nobody has asked for comes first.
        let mut answer = bytes[..length].to_vec();
        answer[2] |= 0x80;
        answer[3] = *code;
        answer[0] ^= 0xff;
        socket.send_to(&answer, client).unwrap();
        answer[0] ^= 0xff;
        socket.send_to(&answer, client).unwrap();
    }
}

/// A name server that answers as long as this is there.
pub(crate) struct Server<'a> {
    at: SocketAddr,
    netns: &'a Netns,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl<'a> Server<'a> {
    pub(crate) fn new(netns: &'a Netns, at: SocketAddr) -> Server<'a> {
        let socket = netns.enter(|| UdpSocket::bind(at).unwrap());
        Server { at, netns, thread: Some(std::thread::spawn(move || serve(&socket))) }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let at = self.at;
        self.netns.enter(|| {
            let own = SocketAddr::new(at.ip(), 0);
            UdpSocket::bind(own).unwrap().send_to(END, at).unwrap();
        });
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A question that was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) net: Net,
    /// Shortest and longest time that it can have taken.
    took: std::ops::RangeInclusive<u128>,
}

impl Asked {
    /// Whether an event tells of it.
    pub(crate) fn is_in(&self, event: &Event) -> bool {
        let Some(Value::Number(latency)) = event.fields.get("latency_ns") else { panic!("{event:#?}") };
        event.net.as_ref() == Some(&self.net) && self.took.contains(&u128::from(*latency))
    }
}

/// Asks for a name from a socket of its own and waits for the answer.
pub(crate) fn ask(from: &Netns, own: SocketAddr, server: SocketAddr, name: &str) -> Asked {
    let socket = from.enter(|| UdpSocket::bind(own).unwrap());
    let (id, began) = (own.port(), Instant::now());
    socket.send_to(&question(id, name, &[b"example"]), server).unwrap();
    let net = tuple("udp", socket.local_addr().unwrap(), server);
    let mut bytes = [0; 512];
    while RESULTS.iter().any(|(known, ..)| *known == name) {
        let length = socket.recv(&mut bytes).unwrap();
        if bytes[..length].starts_with(&id.to_be_bytes()) {
            break;
        }
    }
    let least = if name == "slow" { LATE } else { Duration::ZERO };
    Asked { net, took: least.as_nanos()..=began.elapsed().as_nanos() }
}

fn text(event: &Event, field: &str) -> String {
    event.fields.get(field).map(Value::to_string).unwrap_or_default()
}

#[track_caller]
fn told(daemon: &Daemon, kind: &str, netns: &Netns, good: impl Fn(&Event) -> bool) -> Event {
    let event = until(kind, || {
        let text = daemon.ask(&format!("/v1/events?type={kind}")).text();
        let mut events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        events.find(|event| good(event))
    });
    assert_eq!((event.probe.as_str(), &event.process), ("dns", &None));
    assert_eq!(event.entity.as_ref().map(|entity| entity.netns), Some(netns.inode()), "{event:#?}");
    event
}

/// The numbers of questions by result.
fn results(daemon: &Daemon, entity: &str) -> BTreeMap<&'static str, u64> {
    let text = daemon.scrape("/metrics?set=full&collect[]=dns");
    let all =
        ["noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "other", "timeout", "unfollowed"];
    let of = |result| {
        let labels = format!("result=\"{result}\"");
        total(&text, "netskoop_dns_questions_total", entity, &labels)
    };
    all.into_iter().map(|result| (result, of(result))).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn answers_failures_and_silence_are_told_and_counted() {
    own_node!(Pids::Own);
    let options = "enabled = true\nslow = \"40ms\"\ntimeout = \"400ms\"\nnames = true";
    let (red, blue, daemon) = two(13, Setup::on_node().set("probes.dns", options));
    let state = daemon.probe("dns").state;
    if state.state == StateName::NotAvailable {
        return crate::support::skip(&state.reason.unwrap_or_default());
    }
    assert_eq!((state.state, state.via.as_deref()), (StateName::On, Some("cgroup_skb")), "{state:?}");
    let mut port = 23_000;
    for version in [4, 6] {
        let server = address(version, 13, 2, 53);
        let _server = Server::new(&blue, server);
        let mut asked = |name: &str| {
            port += 1;
            ask(&red, address(version, 13, 1, port), server, name)
        };
        (0..20).for_each(|_| drop(asked("fine")));
        let slow = asked("slow");
        let event = told(&daemon, "DNS_SLOW", &red, |event| slow.is_in(event));
        let fields = ["rcode", "qname", "qtype"].map(|field| text(&event, field));
        assert_eq!(fields, ["noerror", "slow.example.", "A"]);
        for (name, _, result) in &RESULTS[2..] {
            let failed = asked(name);
            if *result == "nxdomain" {
                continue;
            }
            let event = told(&daemon, "DNS_FAILED", &red, |event| failed.is_in(event));
            assert_eq!(
                (text(&event, "rcode"), text(&event, "qname")),
                ((*result).into(), format!("{name}.example."))
            );
        }
        let lost = asked("lost");
        let event = told(&daemon, "DNS_TIMEOUT", &red, |event| event.net.as_ref() == Some(&lost.net));
        assert_eq!((text(&event, "rcode"), text(&event, "qname")), (String::new(), "lost.example.".into()));
        let Some(Value::Number(latency)) = event.fields.get("latency_ns") else { panic!("{event:#?}") };
        assert!(u128::from(*latency) >= TIMEOUT.as_nanos(), "{event:#?}");
    }
    let wanted = [("noerror", 42), ("nxdomain", 2), ("refused", 2), ("servfail", 2), ("timeout", 2)];
    assert_eq!(results(&daemon, "red"), BTreeMap::from(wanted));
    // Who answers has asked nothing.
    assert_eq!(results(&daemon, "blue"), BTreeMap::new());
    let text = daemon.scrape("/metrics?set=full&collect[]=dns");
    assert_eq!(total(&text, "netskoop_dns_answer_seconds_count", "red", ""), 48, "{text}");
    let kept = daemon.ask("/v1/events?type=DNS_FAILED").text();
    assert!(!kept.contains("nowhere"), "that there is no such name is no event unless wanted: {kept}");
    crate::golden::lint(&text, "netskoop");
}

#[test]
fn what_is_no_question_is_not_counted_and_what_is_asked_again_is_counted_once() {
    own_node!(Pids::Own);
    let options = "enabled = true\ntimeout = \"400ms\"\nnames = true\nnxdomain = true";
    let (red, blue, daemon) = two(14, Setup::on_node().set("probes.dns", options));
    if daemon.probe("dns").state.state == StateName::NotAvailable {
        return crate::support::skip("dns is not available here");
    }
    let server = address(4, 14, 2, 53);
    let _server = Server::new(&blue, server);
    let own = address(4, 14, 1, 24_000);
    let socket = red.enter(|| UdpSocket::bind(own).unwrap());
    let ordinary = question(7, "fine", &[b"example"]);
    for length in 0..12 {
        socket.send_to(&ordinary[..length], server).unwrap();
    }
    let mut strange = ordinary.clone();
    // An update, then an answer that goes the wrong way, then nothing that is asked for.
    for (at, byte) in [(2, 0x28), (2, 0x81), (5, 0)] {
        let before = std::mem::replace(&mut strange[at], byte);
        socket.send_to(&strange, server).unwrap();
        strange[at] = before;
    }
    // The server answers some of these, which answers nothing. Then a hostile name, asked for three times.
    let hostile = question(8, "nowhere", &[b"a.\"\n", b"\x1b[2J", &[b'x'; 63], &[0xff; 63]]);
    let silent = question(9, "lost", &[b"example"]);
    for bytes in [&silent, &silent, &hostile] {
        socket.send_to(bytes, server).unwrap();
    }
    let wanted = tuple("udp", own, server);
    let event = told(&daemon, "DNS_FAILED", &red, |event| event.net.as_ref() == Some(&wanted));
    let name = format!("nowhere.a\\046\\034\\010.\\027[2J.{}.{}.", "x".repeat(63), "\\255".repeat(63));
    assert_eq!((text(&event, "rcode"), text(&event, "qname")), ("nxdomain".into(), name));
    told(&daemon, "DNS_TIMEOUT", &red, |event| event.net.as_ref() == Some(&wanted));
    assert_eq!(results(&daemon, "red"), BTreeMap::from([("nxdomain", 1), ("timeout", 1)]));
}

/// What goes out is seen after it was translated, and what comes in before: the server is another one each time.
#[test]
fn a_server_behind_nat_is_one_that_answers() {
    own_node!(Pids::Own);
    let (red, blue, daemon) = two(15, Setup::on_node().set("probes.dns", "enabled = true\nslow = \"40ms\""));
    if daemon.probe("dns").state.state == StateName::NotAvailable {
        return crate::support::skip("dns is not available here");
    }
    for version in [4, 6] {
        let (real, service) = (address(version, 15, 2, 53), address(version, 15, 99, 53));
        let _server = Server::new(&blue, real);
        let (family, to) =
            if version == 4 { ("ip", real.ip().to_string()) } else { ("ip6", format!("[{}]", real.ip())) };
        let rule = format!(
            "add table {family} t; add chain {family} t o {{ type nat hook output priority -100; }}; \
             add rule {family} t o {family} daddr {} udp dport 53 dnat to {to}",
            service.ip()
        );
        red.run("nft", &[&rule]);
        let slow = ask(&red, address(version, 15, 1, 25_000), service, "slow");
        let wire = Asked { net: Net { dst: real.ip().to_string(), ..slow.net.clone() }, ..slow };
        told(&daemon, "DNS_SLOW", &red, |event| wire.is_in(event));
    }
    assert_eq!(results(&daemon, "red"), BTreeMap::from([("noerror", 2)]));
}

/// As on a machine that knows the first version of cgroups only.
#[test]
fn without_the_unified_hierarchy_it_is_not_available() {
    own_node!(Pids::Own);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        crate::support::run("umount", &["-l", line.split(' ').nth(4).unwrap()]);
    }
    let daemon = Setup::on_node().set("probes.dns", "enabled = true").start();
    let state = daemon.probe("dns").state;
    let reason = state.reason.unwrap_or_default();
    assert!(state.state == StateName::NotAvailable && reason.contains("is not mounted"), "{reason}");
}

/// As `MOST_QUESTIONS` of `dns.bpf.c`.
const MOST: u64 = 2048;

#[test]
fn who_asks_too_much_is_counted_and_takes_no_room_from_others() {
    own_node!(Pids::Own);
    let (red, blue, daemon) =
        two(16, Setup::on_node().set("probes.dns", "enabled = true\ntimeout = \"60s\""));
    if daemon.probe("dns").state.state == StateName::NotAvailable {
        return crate::support::skip("dns is not available here");
    }
    for version in [4, 6] {
        // Nobody takes what comes to this one.
        let silent = blue.enter(|| UdpSocket::bind(address(version, 16, 2, 53)).unwrap());
        let asks = red.enter(|| UdpSocket::bind(address(version, 16, 1, 0)).unwrap());
        for id in 0..10_000 {
            asks.send_to(&question(id, "fine", &[]), silent.local_addr().unwrap()).unwrap();
        }
        let server = Server::new(&red, address(version, 16, 1, 53));
        for port in 20_000..20_050 {
            ask(&blue, address(version, 16, 2, port), server.at, "fine");
        }
    }
    assert_eq!(results(&daemon, "red"), BTreeMap::from([("unfollowed", 20_000 - MOST)]));
    assert_eq!(results(&daemon, "blue"), BTreeMap::from([("noerror", 100)]));
    assert_eq!(daemon.probe("dns").state.stream.unwrap().map_full, 0);
}
