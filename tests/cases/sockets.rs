//! Whose a socket in the node's own namespace is: told by its cgroup, whoever happens to run when the event comes.

use crate::support::{Daemon, Netns, Pids, Setup, inside_own_node, run, skip, test_name, until};
use netskoop_api::{EntityRef, Event, Kind, Value};
use netskoopd::kernel::features::Features;
use std::hash::BuildHasher;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Does line by line what it is told. `send` does not mind if it may not.
const SCRIPT: &str = "
import socket, sys
def send(address, port):
  u = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
  try: u.sendto(b'x', (address, port))
  except PermissionError: pass
for line in sys.stdin:
  exec(line, globals())
  print('done', flush=True)
";

const ADDRESSES: [&str; 2] = ["127.0.0.1", "::1"];

/// A cgroup with the name of a container, and a Python in it that does what it is told. Both are gone when dropped.
struct Container {
    id: String,
    cgroup: PathBuf,
    python: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Container {
    /// `None` where no cgroup can be made.
    fn new() -> Option<Container> {
        // The hierarchy is the machine's: others may run this test at the same time.
        let digits = format!("{:08x}", std::hash::RandomState::new().hash_one(0) as u32);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let id = digits.repeat(8);
        let pod = PathBuf::from(unified.split(' ').nth(4)?).join(format!("netskoop-test-{digits}"));
        let cgroup = pod.join(&id);
        std::fs::create_dir_all(&cgroup).ok()?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo 0 > \"$0/cgroup.procs\" && exec python3 -c \"$1\""])
            .arg(&cgroup)
            .arg(SCRIPT);
        let mut python = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (python.stdin.take().unwrap(), python.stdout.take().unwrap());
        let mut container = Container { id, cgroup, python, input, output: BufReader::new(output) };
        container.does("pass");
        Some(container)
    }

    /// Has a statement run inside.
    #[track_caller]
    fn does(&mut self, statement: &str) {
        writeln!(self.input, "{statement}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n", "{statement}");
    }

    /// The entity that nobody knows more of than the cgroup.
    fn entity(&self) -> EntityRef {
        let name = self.id[..12].to_owned();
        EntityRef { kind: Kind::Container, name, namespace: None, pod: None, netns: here() }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
        let _ = std::fs::remove_dir(&self.cgroup);
        let _ = std::fs::remove_dir(self.cgroup.parent().unwrap());
    }
}

/// The namespace of the little node.
fn here() -> u32 {
    u32::try_from(std::fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap()
}

fn port(base: u16, address: &str) -> u16 {
    base + u16::from(address.contains(':'))
}

/// The event of a type here with this port at one end.
#[track_caller]
fn event(daemon: &Daemon, kind: &str, port: u16) -> Event {
    until(&format!("{kind} with port {port}"), || {
        let text = daemon.ask("/v1/events").text();
        let mut events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        events.find(|event| {
            let ends = event.net.as_ref().map(|net| [net.sport, net.dport]);
            let netns = event.entity.as_ref().map(|entity| entity.netns);
            event.kind == kind && netns == Some(here()) && ends.is_some_and(|ends| ends.contains(&port))
        })
    })
}

/// Ends a connection with a reset.
fn abort(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "socket.AF_INET6" } else { "socket.AF_INET" }
}

/// A daemon on a little node, and a container on it; `None` if the test cannot run.
fn node() -> Option<(Daemon, Container)> {
    let Some(container) = Container::new() else {
        skip("needs the unified cgroup hierarchy, and to make cgroups");
        return None;
    };
    Some((Setup::on_node().start(), container))
}

#[test]
fn resets_are_credited_to_the_container_of_the_socket() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some((daemon, mut container)) = node() else { return };
    let wanted = Some(container.entity());
    for address in ADDRESSES {
        let family = family(address);
        // A closed port: the kernel answers for nobody, and the client is told.
        let closed = port(7601, address);
        container.does(&format!("socket.socket({family}).connect_ex(('{address}', {closed}))"));
        let received = event(&daemon, "TCP_RESET_RECEIVE", closed);
        assert_eq!(received.entity, wanted, "{received:#?}");
        assert_eq!(received.fields.get("state"), Some(&Value::Text("SYN_SENT".into())));
        assert_ne!(event(&daemon, "TCP_RESET_NOSOCK", closed).entity, wanted);
        // Its connection is reset by somebody else, who is the one that runs when the reset comes in.
        let reset = port(7611, address);
        let listener = TcpListener::bind((address, reset)).unwrap();
        container.does(&format!("c = socket.create_connection(('{address}', {reset}))"));
        abort(listener.accept().unwrap().0);
        let received = event(&daemon, "TCP_RESET_RECEIVE", reset);
        assert_eq!(received.entity, wanted, "{received:#?}");
        assert_eq!(received.fields.get("state"), Some(&Value::Text("ESTABLISHED".into())));
        assert_ne!(event(&daemon, "TCP_RESET_ACTIVE", reset).entity, wanted);
        // A socket that it has accepted, reset by the client.
        let accepted = port(7621, address);
        container.does(&format!(
            "s = socket.socket({family}); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); \
             s.bind(('{address}', {accepted})); s.listen()"
        ));
        let client = TcpStream::connect((address, accepted)).unwrap();
        container.does("a = s.accept()[0]");
        abort(client);
        assert_eq!(event(&daemon, "TCP_RESET_RECEIVE", accepted).entity, wanted);
        // One that it closes without having read everything.
        let mut client = TcpStream::connect((address, accepted)).unwrap();
        container.does("a = s.accept()[0]");
        client.write_all(b"unread").unwrap();
        let source = client.local_addr().unwrap().port();
        container.does("a.recv(1, socket.MSG_PEEK); a.close()");
        let active = event(&daemon, "TCP_RESET_ACTIVE", source);
        assert_eq!((&active.entity, active.process.unwrap().comm.as_str()), (&wanted, "python3"));
    }
}

#[test]
fn drops_are_credited_to_the_container_of_the_socket() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some((daemon, mut container)) = node() else { return };
    let wanted = Some(container.entity());
    run(
        "nft",
        &["add table inet t; add chain inet t o { type filter hook output priority 0; }; \
           add chain inet t i { type filter hook input priority 0; }; \
           add rule inet t o udp dport { 7701, 7702 } drop; add rule inet t i udp dport { 7711, 7712 } drop"],
    );
    // Newer kernels tell also who was to receive.
    let arguments = Features::load(None, &[]).unwrap().tracepoint("kfree_skb").unwrap();
    for address in ADDRESSES {
        // Dropped on its way out, where the packet has its sender still with it; and on its way in, where it has not.
        let (out, inwards) = (port(7701, address), port(7711, address));
        container.does(&format!("send('{address}', {out}); send('{address}', {inwards})"));
        let dropped = event(&daemon, "PACKET_DROP", out);
        assert_eq!(dropped.entity, wanted, "{dropped:#?}");
        assert_eq!(dropped.fields.get("reason"), Some(&Value::Text("NETFILTER_DROP".into())));
        assert_ne!(event(&daemon, "PACKET_DROP", inwards).entity, wanted);
        // Sent to it by somebody else, and it does not read.
        let full = port(7721, address);
        let family = family(address);
        container.does(&format!(
            "r = socket.socket({family}, socket.SOCK_DGRAM); r.bind(('{address}', {full})); \
             r.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)"
        ));
        let sender = UdpSocket::bind((address, 0)).unwrap();
        (0..300).for_each(|_| assert_eq!(sender.send_to(b"x", (address, full)).unwrap(), 1));
        let lost = event(&daemon, "PACKET_DROP", full);
        assert_eq!(lost.fields.get("reason"), Some(&Value::Text("SOCKET_RCVBUFF".into())));
        if arguments > 3 {
            assert_eq!(lost.entity, wanted, "{lost:#?}");
        }
    }
}

/// A packet has its sender's socket with it also in the namespaces that it comes through.
#[test]
fn a_packet_that_comes_through_is_not_its_senders_event() {
    if !inside_own_node(test_name!(), Pids::Own) {
        return;
    }
    let Some((daemon, mut container)) = node() else { return };
    let blue = Netns::new("blue");
    run("ip", &["link", "add", "outer", "type", "veth", "peer", "name", "inner", "netns", "blue"]);
    for (at, netns) in [(1, None), (2, Some("blue"))] {
        let device = if netns.is_some() { "inner" } else { "outer" };
        let ip = |words: &[&str]| match netns {
            Some(name) => run("ip", &[&["-n", name], words].concat()),
            None => run("ip", words),
        };
        ip(&["addr", "add", &format!("10.9.7.{at}/24"), "dev", device]);
        ip(&["addr", "add", &format!("fd09::7:{at}/112"), "dev", device, "nodad"]);
        ip(&["link", "set", device, "up"]);
    }
    run(
        "nft",
        &["add table netdev t; add chain netdev t i { type filter hook ingress device outer priority 0; }; \
           add rule netdev t i udp dport { 7731, 7732 } drop"],
    );
    daemon.entities_until("blue", |now| now.entities.iter().any(|entity| entity.id.netns == blue.inode()));
    container.does("import ctypes, os; ctypes.CDLL(None).setns(os.open('/run/netns/blue', 0), 0x40000000)");
    for address in ["10.9.7.1", "fd09::7:1"] {
        let through = port(7731, address);
        container.does(&format!("send('{address}', {through})"));
        let dropped = event(&daemon, "PACKET_DROP", through);
        assert_eq!(dropped.entity.as_ref().map(|entity| entity.kind), Some(Kind::Host), "{dropped:#?}");
    }
}
