use crate::support::{Daemon, Netns, Pids, Process, Setup, own_node, run, series, until};
use netskoop_api::{Event, Value};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

/// A process with a namespace of its own and nothing else, killed when dropped.
struct Job(Child, u32);

impl Job {
    fn new(daemon: &Daemon) -> Job {
        let script = "ip link set lo up; stat -Lc %i /proc/self/ns/net; exec sleep 1000";
        let mut child =
            Command::new("unshare").args(["-n", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let job = Job(child, line.trim().parse().unwrap());
        daemon.entities_until("the job", |now| {
            let is_leader = |it: &netskoop_api::Entity| it.comm.as_deref() == Some("sleep");
            now.entities.iter().any(|it| it.id.netns == job.1 && is_leader(it))
        });
        until("it is held open", || (held(daemon, job.1) == 1).then_some(()));
        job
    }

    /// Sends datagrams to nobody: each counts once, over IPv4 and IPv6.
    fn send(&self, count: usize) {
        let path = format!("/proc/{}/ns/net", self.0.id());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::open(path).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                for (own, other) in [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9")] {
                    let socket = UdpSocket::bind(own).unwrap();
                    (0..count).for_each(|_| assert_eq!(socket.send_to(b"x", other).unwrap(), 1));
                }
            });
        });
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Descriptors of a namespace that the daemon has open.
fn held(daemon: &Daemon, inode: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter(|link| link.as_os_str() == &*format!("net:[{inode}]")).count()
}

fn events(daemon: &Daemon) -> Vec<Event> {
    let text = daemon.ask("/v1/events?type=entity_gone").text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Datagrams to nobody of what is gone, by IP version.
fn no_ports(text: &str, name: &str) -> [Option<f64>; 2] {
    ["ipv4", "ipv6"].map(|family| {
        let labels = format!("kind=\"gone\",name=\"{name}\",family=\"{family}\"");
        series(text, &format!("netskoop_udp_no_ports_total{{{labels}}}"))
    })
}

#[test]
fn a_job_that_no_scrape_has_seen_is_counted_when_it_ends() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node().pull_only().start();
    let job = Job::new(&daemon);
    let inode = job.1;
    job.send(7);
    drop(job);
    let event = until("its end is told", || events(&daemon).pop());
    assert_eq!(event.entity.as_ref().map(|entity| entity.netns), Some(inode), "{event:?}");
    assert_eq!(event.fields["tcp_active_opens"], Value::Number(0), "{event:?}");
    assert!(!event.fields.contains_key("tx_packets"), "there was the loopback interface only: {event:?}");
    let text = daemon.scrape("/metrics");
    assert_eq!(no_ports(&text, "unknown"), [Some(7.0), Some(7.0)]);
    assert_eq!(series(&text, "netskoop_gone_entities_total{kind=\"gone\",name=\"unknown\"}"), Some(1.0));
    assert_eq!(series(&text, "netskoop_gone_unread_total{kind=\"gone\",name=\"unknown\"}"), Some(0.0));
    let old = daemon.scrape("/metrics?names=kubeskoop&names=inspector");
    assert!(
        !old.contains("kind=\"gone\"") && !old.contains("pod=\"unknown\""),
        "the older systems knew no such thing"
    );

    // What a scrape has shown is not counted again.
    let job = Job::new(&daemon);
    job.send(5);
    let text = daemon.scrape("/metrics");
    let shown = format!("name=\"sleep[{}]\"", job.0.id());
    assert!(text.lines().any(|line| line.contains(&shown) && line.ends_with(" 5")), "{shown} is shown");
    // Somebody who looks at less does not make it forgotten.
    daemon.scrape("/metrics?collect[]=sock");
    job.send(3);
    drop(job);
    until("its end is told, too", || (events(&daemon).len() == 2).then_some(()));
    assert_eq!(no_ports(&daemon.scrape("/metrics"), "unknown"), [Some(10.0), Some(10.0)]);
    let status = daemon.status().events;
    assert_eq!((status.received, status.overrun), (status.delivered, 0));
}

#[test]
fn a_namespace_without_a_process_ends_unread_and_nothing_is_held() {
    own_node!(Pids::Own);
    let daemon = Setup::on_node().pull_only().start();
    let netns = Netns::new("blue");
    daemon.entities_until("blue", |now| now.entities.iter().any(|it| it.id.name == "blue"));
    drop(netns);
    until("its end is told", || events(&daemon).pop());
    let text = daemon.scrape("/metrics");
    assert_eq!(series(&text, "netskoop_gone_unread_total{kind=\"gone\",name=\"netns\"}"), Some(1.0));
    assert_eq!(no_ports(&text, "netns"), [None, None]);

    // A cable into a job's namespace ends with it.
    let job = Job::new(&daemon);
    let pid = job.0.id().to_string();
    run("ip", &["link", "add", "here", "type", "veth", "peer", "name", "there", "netns", &pid]);
    drop(job);
    until("the cable is gone", || {
        let gone = !Command::new("ip").args(["link", "show", "here"]).output().unwrap().status.success();
        gone.then_some(())
    });

    // Nothing is held for a probe that is off.
    let job = Job::new(&daemon);
    daemon.change("gone", r#"{"enabled":false,"runtime":true}"#);
    until("it is let go", || (held(&daemon, job.1) == 0).then_some(()));
}

/// The kernel tells of an exit as it begins, and only then gives back the memory: until that is done the process seems to
/// live in its namespace.
#[test]
fn a_job_that_takes_a_while_to_end_is_told_of_when_it_has() {
    own_node!(Pids::Shared);
    let daemon = Setup::on_node().pull_only().start();
    for _ in 0..5 {
        // A buffer of this size takes milliseconds to give back.
        let arguments = ["-n", "dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "status=none"];
        let job = Process::start(Command::new("unshare").args(arguments));
        let (pid, path) = (job.pid(), format!("/proc/{}/ns/net", job.pid()));
        daemon.entities_until("the job", |now| {
            let inode = std::fs::metadata(&path).map(|meta| meta.ino()).unwrap_or_default();
            let is_leader = |it: &netskoop_api::Entity| it.comm.as_deref() == Some("dd");
            now.entities.iter().any(|it| u64::from(it.id.netns) == inode && is_leader(it))
        });
        // What is looked at a moment after a namespace was found must not be what finds its end.
        let pages = || resident_pages(pid);
        until("its buffer is there", || (pages() > (90 << 20) / 4096).then_some(()));
        drop(job);
        let name = format!("dd[{pid}]");
        until("its end is told", || {
            let is_it = |event: &Event| event.entity.as_ref().is_some_and(|entity| entity.name == name);
            events(&daemon).iter().any(is_it).then_some(())
        });
    }
}

fn resident_pages(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}
