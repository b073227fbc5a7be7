#![allow(clippy::disallowed_types, reason = "the test compares with other programs")]

use super::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A namespace by name, gone when dropped.
struct Named(String);

impl Named {
    fn new(what: &str) -> Named {
        let name = format!("nsk-{what}-{}", std::process::id());
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        Named(name)
    }
    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
    fn inode(&self) -> u32 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path()).unwrap().ino() as u32
    }
    fn output(&self, program: &str, args: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.0, program], args].concat())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A process that is ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Says so if the test cannot run.
#[allow(clippy::disallowed_macros, reason = "a skipped test must be seen")]
fn skip() -> bool {
    let skip = !rustix::process::geteuid().is_root();
    if skip {
        eprintln!("SKIP: needs root");
    }
    skip
}

/// Runs something on a thread of its own that has entered the namespace.
fn inside<T: Send>(path: &Path, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(path).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

/// Makes both IP versions count something.
fn traffic() {
    for host in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((host, 0)).unwrap();
        for _ in 0..3 {
            drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            drop(listener.accept().unwrap());
        }
        assert!(TcpStream::connect((host, 1)).is_err());
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.send_to(b"to itself", socket.local_addr().unwrap()).unwrap();
        socket.send_to(b"to nobody", (host, 9)).unwrap();
    }
}

/// A member process of the namespace.
fn member(named: &Named) -> Running {
    let net = format!("--net={}", named.path().display());
    let child = Command::new("nsenter").args([&net, "sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
    let wanted = format!("net:[{}]", named.inode());
    let link = format!("/proc/{}/ns/net", child.id());
    let running = Running(child);
    for _ in 0..500 {
        if std::fs::read_link(&link).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
            return running;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the process did not enter the namespace");
}

fn with_home() -> Rig {
    let mut rig = Rig::new(Path::new("/proc"));
    rig.scratch.home = Some(Arc::new(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()));
    rig
}

fn mount(subject: u32, named: &Named) -> Target {
    Target { subject: Subject(subject), inode: named.inode(), cookie: 0, access: Access::Mount(named.path()) }
}

/// All present cells of a table without keys, under the names that `nstat` uses.
fn cells(rig: &Rig, decl: &'static TableDecl, subject: u32) -> BTreeMap<String, u64> {
    let key = |column: &crate::declare::Column| column.key.replace('.', "");
    let value = |key: &str| rig.cell(decl, subject, None, key);
    decl.columns.iter().filter_map(|column| Some((key(column), value(column.key)?))).collect()
}

/// Compares with `nstat`, `ip -s link` and the files as `cat` shows them. The namespace is at rest.
fn compare(rig: &mut Rig, target: &Target, named: &Named) {
    let Subject(subject) = target.subject;
    let report = rig.read(std::slice::from_ref(target));
    assert_eq!((report.done, report.failed), (1, 0), "{report:?}");
    let text = named.output("nstat", &["-azsj"]);
    let nstat: serde_json::Value = serde_json::from_str(&text).unwrap();
    let nstat = nstat["kernel"].as_object().unwrap();
    let mut compared = 0;
    for (key, value) in cells(rig, &SNMP, subject).into_iter().chain(cells(rig, &NETSTAT, subject)) {
        if let Some(theirs) = nstat.get(&key) {
            assert_eq!(theirs.as_u64(), Some(value), "{key}");
            compared += 1;
        }
    }
    assert!(compared > 250, "only {compared} counters were compared");
    for key in
        ["Tcp.ActiveOpens", "Tcp.OutRsts", "Udp.NoPorts", "Udp6NoPorts", "Ip6InReceives", "IpExt.InOctets"]
    {
        assert!(rig.cell(&SNMP, subject, None, key).unwrap() > 0, "{key}");
    }
    let links: serde_json::Value = serde_json::from_str(&named.output("ip", &["-j", "-s", "link"])).unwrap();
    for link in links.as_array().unwrap() {
        let name = link["ifname"].as_str().unwrap();
        for (side, theirs, ours) in [
            ("rx", "bytes", "rx.bytes"),
            ("rx", "packets", "rx.packets"),
            ("rx", "errors", "rx.errs"),
            ("rx", "dropped", "rx.drop"),
            ("tx", "bytes", "tx.bytes"),
            ("tx", "packets", "tx.packets"),
            ("tx", "errors", "tx.errs"),
            ("tx", "dropped", "tx.drop"),
        ] {
            let theirs = link["stats64"][side][theirs].as_u64();
            assert_eq!(rig.cell(&DEV, subject, Some(name), ours), theirs, "{name} {ours}");
        }
    }
    let sockstat =
        named.output("cat", &["/proc/thread-self/net/sockstat", "/proc/thread-self/net/sockstat6"]);
    for (line, key) in
        [("TCP: inuse ", "TCP.inuse"), ("UDP: inuse ", "UDP.inuse"), ("TCP6: inuse ", "TCP6.inuse")]
    {
        let rest = sockstat.lines().find_map(|l| l.strip_prefix(line)).unwrap();
        let theirs = rest.split(' ').next().unwrap().parse().ok();
        assert_eq!(rig.cell(&SOCKSTAT, subject, None, key), theirs, "{key}");
    }
}

#[test]
fn numbers_equal_those_of_other_programs() {
    if skip() {
        return;
    }
    let named = Named::new("eq");
    named.output("ip", &["link", "add", "d0", "type", "veth", "peer", "name", "d1"]);
    inside(&named.path(), traffic);
    let process_of = member(&named);
    let mut rig = with_home();
    let pid = i32::try_from(process_of.0.id()).unwrap();
    compare(&mut rig, &process(7, pid, named.inode()), &named);
    drop(process_of);
    compare(&mut rig, &mount(7, &named), &named);
}

#[test]
fn a_namespace_without_a_process_is_entered_and_left() {
    if skip() {
        return;
    }
    let (named, mut rig) = (Named::new("mnt"), with_home());
    inside(&named.path(), traffic);
    let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(rig.read(&[mount(1, &named)]).done, 1);
    assert_eq!(rig.cell(&SNMP, 1, None, "Udp6NoPorts"), Some(1));
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
    assert!(!rig.scratch.lost);
    let other = Target { inode: named.inode() + 1, ..mount(2, &named) };
    let gone = Target { access: Access::Mount("/run/netns/nsk-none".into()), ..mount(3, &named) };
    let report = rig.read(&[other, gone]);
    assert_eq!((report.vanished, report.failed, rig.rows()), (2, 0, 0), "{report:?}");
}

#[test]
fn a_lane_that_cannot_come_back_says_so() {
    if skip() {
        return;
    }
    let (named, mut rig) = (Named::new("lost"), with_home());
    let no_namespace = std::fs::File::open("/proc/self/status").unwrap();
    rig.scratch.home = Some(Arc::new(no_namespace.into()));
    let targets = [mount(1, &named), mount(2, &named)];
    // On a thread of its own, since it stays in the namespace.
    let report = std::thread::scope(|scope| scope.spawn(|| rig.read(&targets)).join().unwrap());
    assert!(rig.scratch.lost);
    assert_eq!((report.failed, report.late, rig.rows()), (1, 1, 0), "{report:?}");
}

#[test]
fn nothing_stays_open() {
    if skip() {
        return;
    }
    let (named, mut rig) = (Named::new("fd"), with_home());
    let process_of = member(&named);
    let targets = [process(1, i32::try_from(process_of.0.id()).unwrap(), named.inode()), mount(2, &named)];
    rig.read(&targets);
    let inode = format!("net:[{}]", named.inode());
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let link = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let link = link.to_string_lossy();
        let pid = format!("/proc/{}/", process_of.0.id());
        assert!(link != inode && !link.starts_with(&pid), "{link} is open");
    }
}

#[test]
fn a_long_list_of_interfaces_is_read_to_its_end() {
    if skip() {
        return;
    }
    let (named, mut rig) = (Named::new("many"), with_home());
    let batch: String = (0..100).map(|i| format!("link add a{i} type veth peer name b{i}\n")).collect();
    let file = std::env::temp_dir().join(format!("nsk-batch-{}", std::process::id()));
    std::fs::write(&file, batch).unwrap();
    run("ip", &["-n", &named.0, "-batch", file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
    assert_eq!(rig.read(&[mount(1, &named)]).done, 1);
    let links = run("ip", &["-n", &named.0, "-o", "link"]).lines().count();
    assert!(links >= 201);
    assert_eq!(rig.out[3].len(), links);
}
