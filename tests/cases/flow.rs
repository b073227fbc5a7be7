//! Bytes and packets by connection, compared with what was sent and with the counters of the interface.

use crate::support::{Daemon, LIMIT, Netns, Pids, Setup, own_node, programs_vanish, run, series, until};
use netskoop_api::StateName;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

/// An interface of the node with a default route behind it, and the namespace at its other end.
pub(crate) fn uplink(name: &str, net: u8) -> Netns {
    let far = Netns::new(&format!("far{net}"));
    run("ip", &["link", "add", name, "type", "veth", "peer", "name", "peer0", "netns", &far.0]);
    for version in [4, 6] {
        let prefix = if version == 4 { "24" } else { "112" };
        let add = |number: u8| format!("{}/{prefix}", crate::root::address(version, net, number, 0).ip());
        run("ip", &["addr", "add", &add(1), "dev", name, "nodad"]);
        run("ip", &["-n", &far.0, "addr", "add", &add(2), "dev", "peer0", "nodad"]);
    }
    run("ip", &["-n", &far.0, "link", "set", "peer0", "up"]);
    run("ip", &["link", "set", name, "up"]);
    far
}

pub(crate) fn here(version: u8, net: u8, port: u16) -> SocketAddr {
    crate::root::address(version, net, 1, port)
}

pub(crate) fn there(version: u8, net: u8, port: u16) -> SocketAddr {
    crate::root::address(version, net, 2, port)
}

/// Sends so many datagrams of 1000 bytes from the node to the other end, and half as many back.
pub(crate) fn talk(far: &Netns, version: u8, net: u8, port: u16, datagrams: u64) {
    let (near, to) = (here(version, net, port), there(version, net, port + 1));
    let server = far.enter(|| UdpSocket::bind(to).unwrap());
    let client = UdpSocket::bind(near).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    for number in 0..datagrams {
        client.send_to(&[0; 1000], to).unwrap();
        server.recv(&mut [0; 1000]).unwrap();
        if number % 2 == 1 {
            server.send_to(&[0; 1000], near).unwrap();
            client.recv(&mut [0; 1000]).unwrap();
        }
    }
}

/// Bytes of such a datagram on the wire: headers of Ethernet, IP and UDP.
fn size(version: u8) -> u64 {
    1000 + 8 + if version == 4 { 20 } else { 40 } + 14
}

fn scrape(daemon: &Daemon) -> String {
    daemon.scrape("/metrics?collect[]=flow")
}

/// The value of a native metric of the node, 0 if there is none.
fn value(text: &str, metric: &str, labels: &str) -> u64 {
    let name = format!("netskoop_flow_{metric}_total{{kind=\"host\",name=\"host\",{labels}}}");
    series(text, &name).unwrap_or(0.0) as u64
}

/// Takes note of the last value of every series, also of those that have made room for others since.
fn remember(seen: &mut BTreeMap<String, u64>, text: &str) {
    for line in text.lines().filter(|line| line.starts_with("netskoop_flow_")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        seen.insert(series.to_owned(), value.parse::<f64>().unwrap() as u64);
    }
}

pub(crate) fn labels(device: &str, direction: &str, from: SocketAddr, to: SocketAddr, ports: bool) -> String {
    let (sport, dport) = match ports {
        true => (format!(",sport=\"{}\"", from.port()), format!(",dport=\"{}\"", to.port())),
        false => Default::default(),
    };
    format!(
        "device=\"{device}\",direction=\"{direction}\",protocol=\"UDP\",src=\"{}\"{sport},dst=\"{}\"{dport}",
        from.ip(),
        to.ip()
    )
}

fn counter(device: &str, file: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/{file}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Bytes that the interface itself has counted, out and in.
fn of_interface() -> [u64; 2] {
    ["tx_bytes", "rx_bytes"].map(|file| counter("wan0", file))
}

/// The sum of all that was ever shown for one direction of a device.
fn all(seen: &BTreeMap<String, u64>, metric: &str, device: &str) -> u64 {
    let name = format!("netskoop_flow_{metric}_total{{");
    let ours = seen.iter().filter(|(key, _)| key.starts_with(&name) && key.contains(device));
    ours.map(|(_, value)| value).sum()
}

/// Twenty datagrams went out and ten came back.
fn each_way_is_counted(text: &str, version: u8) {
    let (near, to) = (here(version, 61, 7000), there(version, 61, 7001));
    for (direction, from, to, count) in [("out", near, to, 20), ("in", to, near, 10)] {
        let labels = labels("wan0", direction, from, to, true);
        assert_eq!(value(text, "packets", &labels), count, "{labels}: {text}");
        assert_eq!(value(text, "bytes", &labels), count * size(version), "{labels}: {text}");
    }
}

/// Two connections are one, under another set of labels.
fn without_ports_connections_are_one(daemon: &Daemon, far: &Netns) {
    daemon.change("flow", r#"{"options":{"ports":"false","max_flows":"50"},"runtime":true}"#);
    let before = scrape(daemon);
    let pair = labels("wan0", "out", here(4, 61, 0), there(4, 61, 0), false);
    talk(far, 4, 61, 7020, 6);
    talk(far, 4, 61, 7030, 6);
    let grown = value(&scrape(daemon), "bytes", &pair) - value(&before, "bytes", &pair);
    assert_eq!(grown, 12 * size(4));
}

fn older_names_have_the_ends(daemon: &Daemon) {
    let older = daemon.scrape("/metrics?names=kubeskoop&collect[]=flow");
    let line = older.lines().find(|line| {
        line.starts_with("kubeskoop_flow_bytes{")
            && line.contains(&format!("dst=\"{}\"", there(4, 61, 0).ip()))
    });
    let line = line.unwrap_or_else(|| panic!("{older}"));
    for label in ["k8s_node=\"node-1\"", "protocol=\"UDP\"", "sport=\"", "dport=\"", "src_type=\"unknown\""] {
        assert!(line.contains(label), "{label}: {line}");
    }
}

#[test]
fn connections_are_counted_to_the_byte_and_the_rest_is_other() {
    own_node!(Pids::Own);
    // Its /sys is that of the machine else, where it shows the interfaces of whoever mounted it.
    run("mount", &["-t", "sysfs", "none", "/sys"]);
    let far = uplink("wan0", 61);
    run("ip", &["route", "add", "default", "via", &there(4, 61, 0).ip().to_string()]);
    run("tc", &["qdisc", "add", "dev", "wan0", "clsact"]);
    let daemon = Setup::on_node().set("probes.flow", "enabled = true\nports = true\nmax_flows = 3").start();
    let state = daemon.probe("flow").state;
    assert_eq!((state.state, state.via.as_deref()), (StateName::On, Some("tcx")), "{state:?}");
    let (sent, mut seen) = (of_interface(), BTreeMap::new());
    let mut look = || {
        let text = scrape(&daemon);
        remember(&mut seen, &text);
        text
    };
    let first = look();
    for version in [4, 6] {
        talk(&far, version, 61, 7000, 20);
        each_way_is_counted(&look(), version);
    }
    // There is no room for more: what comes is in other, and no byte is lost or twice there.
    talk(&far, 4, 61, 7010, 4);
    let text = look();
    let now = of_interface();
    for (at, way) in ["out", "in"].into_iter().enumerate() {
        let device = format!("device=\"wan0\",direction=\"{way}\"");
        let total = |text: &str, metric: &str| value(text, &format!("device_{metric}"), &device);
        assert_eq!(total(&text, "bytes") - total(&first, "bytes"), now[at] - sent[at], "{way}: {text}");
        for metric in ["bytes", "packets"] {
            assert_eq!(all(&seen, metric, &device), total(&text, metric), "{way}: {text}");
        }
    }
    let own = text
        .lines()
        .filter(|line| line.starts_with("netskoop_flow_bytes_total{") && !line.contains("src=\"other\""));
    assert_eq!(own.count(), 3, "{text}");

    without_ports_connections_are_one(&daemon, &far);
    older_names_have_the_ends(&daemon);
    // What was there before is there afterwards, and nothing else.
    assert!(run("tc", &["qdisc", "show", "dev", "wan0"]).contains("clsact"));
    daemon.change("flow", r#"{"enabled":false,"runtime":true}"#);
    let programs = daemon.programs();
    assert!(!programs.is_empty(), "those of other probes");
    assert!(!scrape(&daemon).contains("netskoop_flow_"));
}

/// Sends datagrams with tags in front of them, which takes no interface that knows tags.
fn tagged(far: &Netns, tags: &str, count: u32) {
    let (from, to) = (there(4, 63, 0).ip(), here(4, 63, 0).ip());
    let script = format!(
        "import socket, struct\n\
         s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
         s.bind((\"peer0\", 0))\n\
         ends = socket.inet_aton(\"{from}\") + socket.inet_aton(\"{to}\")\n\
         ip = struct.pack(\">BBHHHBBH\", 0x45, 0, 32, 0, 0, 64, 17, 0) + ends\n\
         udp = struct.pack(\">HHHH\", 1, 2, 12, 0) + b\"data\"\n\
         frame = b\"\\xff\" * 6 + b\"\\2\" * 6 + bytes.fromhex(\"{tags}0800\") + ip + udp\n\
         for _ in range({count}): s.send(frame)\n"
    );
    far.run("python3", &["-c", &script]);
}

#[test]
fn tags_are_followed_and_interfaces_come_and_go() {
    own_node!(Pids::Own);
    let far = uplink("wan0", 62);
    let daemon =
        Setup::on_node().set("probes.flow", "enabled = true\ndevices = [\"wan*\", \"hot*\"]").start();
    // Once and twice: the inner tag is in the packet, the outer one beside it.
    for (at, tags) in ["81000007", "88a8000781000008"].into_iter().enumerate() {
        tagged(&far, tags, 3);
        let text = scrape(&daemon);
        let pair = labels("wan0", "in", there(4, 63, 0), here(4, 63, 0), false);
        assert_eq!(value(&text, "packets", &pair), 3 * (at as u64 + 1), "{text}");
    }
    let pair = labels("wan0", "in", there(4, 63, 0), here(4, 63, 0), false);

    let hot = uplink("hot1", 64);
    until("a program on the new interface", || {
        talk(&hot, 6, 64, 7200, 2);
        let pair = labels("hot1", "in", there(6, 64, 0), here(6, 64, 0), false);
        (value(&scrape(&daemon), "packets", &pair) > 0).then_some(())
    });
    run("ip", &["link", "del", "hot1"]);
    until("the end of its series", || (!scrape(&daemon).contains("device=\"hot1\"")).then_some(()));
    assert_eq!(value(&scrape(&daemon), "packets", &pair), 6, "the others stay");
    // Patterns may change while it runs.
    daemon.change("flow", r#"{"options":{"devices":"lo"},"runtime":true}"#);
    until("the end of its series", || (!scrape(&daemon).contains("device=\"wan0\"")).then_some(()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    assert!(value(&scrape(&daemon), "device_packets", "device=\"lo\",direction=\"out\"") > 0);
}

#[test]
fn an_interface_that_was_let_go_begins_anew() {
    own_node!(Pids::Own);
    let far = uplink("wan0", 66);
    let route = |what| run("ip", &["route", what, "default", "via", &there(4, 66, 0).ip().to_string()]);
    route("add");
    let daemon = Setup::on_node().set("probes.flow", "enabled = true").start();
    talk(&far, 4, 66, 7500, 40);
    let (way, pair) =
        ("device=\"wan0\",direction=\"out\"", labels("wan0", "out", here(4, 66, 0), there(4, 66, 0), false));
    assert_eq!(value(&scrape(&daemon), "packets", &pair), 40);
    route("del");
    until("the end of its series", || (!scrape(&daemon).contains(way)).then_some(()));
    route("add");
    let text = until("programs on it again", || {
        talk(&far, 4, 66, 7510, 2);
        let text = scrape(&daemon);
        (value(&text, "packets", &pair) > 0).then_some(text)
    });
    // What it had before is not in its series again, which would leave nothing for all others.
    let mut seen = BTreeMap::new();
    remember(&mut seen, &text);
    assert_eq!(all(&seen, "packets", way), value(&text, "device_packets", way), "{text}");
}

#[test]
fn without_a_default_route_it_says_so_and_nothing_stays_when_it_is_killed() {
    own_node!(Pids::Own);
    let mut daemon = Setup::on_node().set("probes.flow", "enabled = true").start();
    let state = daemon.probe("flow").state;
    assert_eq!(state.state, StateName::On);
    let says = "there was no default route at the start; name interfaces with the option devices";
    assert_eq!(state.reason.as_deref(), Some(says));
    let far = uplink("wan0", 65);
    run("ip", &["-6", "route", "add", "default", "via", &there(6, 65, 0).ip().to_string()]);
    until("a program on the interface of the new route", || {
        talk(&far, 4, 65, 7300, 2);
        let pair = labels("wan0", "out", here(4, 65, 0), there(4, 65, 0), false);
        (value(&scrape(&daemon), "packets", &pair) > 0).then_some(())
    });
    // What hangs on links ends with whoever made them, however that ended.
    daemon.kill();
    programs_vanish(&state.programs);
}
