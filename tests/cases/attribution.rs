use crate::support::containerd::{Containerd, Pod, PodPlan, Running};
use crate::support::docker::Docker;
use crate::support::podman::Podman;
use crate::support::{Daemon, Netns, Pids, Process, Setup, exclusive, own_node, until};
use netskoop_api::{Entity, Event, Kind};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

const OPENS: &str = "netskoop_tcp_active_opens_total";

/// Runs code on a thread in the network namespace of a process.
fn inside<T: Send>(pid: i32, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let file = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            action()
        };
        scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[track_caller]
fn named(daemon: &Daemon, name: &str) -> Entity {
    until(&format!("{name} is named"), || {
        let found = daemon.entities().entities.into_iter().find(|entity| entity.id.name == name);
        found.filter(|entity| !entity.provisional)
    })
}

/// Has a container connect to where nobody listens.
fn refused(containerd: &Containerd, from: &Running, to: IpAddr, port: u16) {
    let script = format!("nc -w 20 {to} {port} 2>&1; true");
    let said = containerd.exec(from, &["sh", "-c", &script]);
    assert!(said.contains("refused"), "{to} {port}: {said}");
}

/// The event of a type with this port at its far end, as the history shows it once it is as wanted.
#[track_caller]
fn event(daemon: &Daemon, kind: &str, port: u16, good: impl Fn(&Event) -> bool) -> Event {
    let look = || {
        let text = daemon.ask("/v1/events").text();
        let mut events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
        events.find(|event| event.kind == kind && event.net.as_ref().is_some_and(|net| net.sport == port))
    };
    let wait = std::panic::AssertUnwindSafe(|| until("the event", || look().filter(|event| good(event))));
    std::panic::catch_unwind(wait).unwrap_or_else(|_| panic!("{kind} with port {port}: {:#?}", look()))
}

fn name_of(event: &Event) -> Option<&str> {
    event.entity.as_ref().map(|entity| entity.name.as_str())
}

/// Entities that are ours, as they are shown: kind, name, first source.
fn shown(daemon: &Daemon) -> BTreeSet<(String, String)> {
    let ours = |entity: &Entity| {
        let name = entity.id.name.as_str();
        ["shop/", "kube-system/"].iter().any(|prefix| name.starts_with(prefix)) || name == "blue"
    };
    let entities = daemon.entities().entities.into_iter().filter(ours);
    entities.map(|entity| (entity.id.kind.as_str().to_owned(), entity.id.name)).collect()
}

fn labels_of(metrics: &str, family: &str) -> BTreeSet<String> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(family)?.split_once('}'));
    lines.map(|(labels, _)| labels.to_owned()).filter(|labels| labels.contains("shop/")).collect()
}

#[track_caller]
fn containerd_state(daemon: &Daemon, good: impl Fn(&netskoop_api::SourceStatus) -> bool) {
    until("a state of containerd", || {
        daemon.status().sources.into_iter().find(|source| source.name == "containerd" && good(source))
    });
}

/// What an operator sees of two pods, one of the node's own network, and a namespace of `ip netns`.
#[test]
fn pods_are_named_on_every_screen_and_a_restart_of_containerd_changes_nothing() {
    own_node!(Pids::Shared);
    // `ip netns` mounts its directory over itself when it is first used; what others have mounted there is busy from then.
    let _blue = Netns::new("blue");
    let Some(mut containerd) = Containerd::start() else { return };
    let daemon = Setup::on_node().start();
    let cart = PodPlan::new("shop", "cart").label("app", "cart").containers(&["main", "sidecar"]);
    let cart = containerd.run_pod(&cart);
    let db = containerd.run_pod(&PodPlan::new("shop", "db"));
    let proxy = containerd.run_pod(&PodPlan::new("kube-system", "proxy").host_network());

    let seen = named(&daemon, "shop/cart");
    assert_eq!((seen.id.kind, seen.id.netns, seen.leader), (Kind::Pod, cart.netns, Some(cart.pid)));
    assert_eq!((seen.id.namespace.as_deref(), seen.id.pod.as_deref()), (Some("shop"), Some("cart")));
    assert_eq!((seen.uid.as_deref(), seen.sources[0].as_str()), (Some(cart.uid.as_str()), "containerd"));
    let seen = until("both containers are known", || {
        Some(named(&daemon, "shop/cart")).filter(|entity| entity.containers.len() == 3)
    });
    let names: Vec<(&str, bool)> = seen.containers.iter().map(|c| (c.name.as_str(), c.sandbox)).collect();
    assert_eq!(names[1..], [("main", false), ("sidecar", false)]);
    assert!(names[0].1, "the sandbox comes first: {names:?}");
    assert_eq!(seen.labels.get("app").map(String::as_str), Some("cart"));
    let addresses: Vec<String> = cart.addresses.iter().map(ToString::to_string).collect();
    assert!(addresses.len() == 2 && addresses.iter().all(|a| seen.addresses.contains(a)), "{seen:#?}");
    let host = named(&daemon, "host");
    let seen = named(&daemon, "kube-system/proxy");
    assert_eq!((seen.id.kind, seen.host_network, seen.id.netns), (Kind::Pod, true, host.id.netns));
    assert_eq!((host.id.netns, host.sources.join(",")), (proxy.netns, "process 1".to_owned()));
    assert_eq!((named(&daemon, "blue").id.kind, shown(&daemon).len()), (Kind::Netns, 4));

    let text = daemon.scrape("/metrics");
    assert_eq!(labels_of(&text, OPENS).len(), 2, "{text}");
    assert!(
        !text.contains(&format!("{OPENS}{{kind=\"pod\",name=\"kube-system/proxy\"")),
        "it has no counters"
    );
    let info =
        text.lines().find(|line| line.starts_with("netskoop_entity_info{kind=\"pod\",name=\"shop/cart\""));
    let info = info.unwrap_or_else(|| panic!("{text}"));
    for part in ["label_app=\"cart\"", "containers=\"main,sidecar\"", &format!("uid=\"{}\"", cart.uid)] {
        assert!(info.contains(part), "{part}: {info}");
    }
    assert!(text.contains("netskoop_entity_info{kind=\"pod\",name=\"kube-system/proxy\""));

    events_name_pods_containers_and_peers(&daemon, &containerd, &cart, &db, &proxy);

    let (before, labels) = (shown(&daemon), labels_of(&text, OPENS));
    visitors_change_no_names(&daemon, &cart, &proxy, &before);
    let agent = containerd.run_pod(&PodPlan::new("kube-system", "agent").host_network());
    named(&daemon, "kube-system/agent");
    containerd.kill();
    containerd_state(&daemon, |source| source.connected_seconds.is_none());
    // Nobody tells of this end. If they share a namespace of processes, the first takes the other along.
    for pid in [agent.pid, agent.containers[0].pid] {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        assert!(matches!(killed, Ok(()) | Err(rustix::io::Errno::SRCH)), "{killed:?}");
    }
    until("a pod of the node's network is gone", || (shown(&daemon).len() == before.len()).then_some(()));
    assert_eq!(
        (shown(&daemon), labels_of(&daemon.scrape("/metrics"), OPENS)),
        (before.clone(), labels.clone())
    );
    containerd.restart();
    containerd_state(&daemon, |source| source.connected_seconds.is_some());
    assert_eq!((shown(&daemon), labels_of(&daemon.scrape("/metrics"), OPENS)), (before, labels));
    containerd_state(&daemon, |source| {
        source.counts.as_ref().is_some_and(|c| c.lists == 2 && c.failures > 0)
    });
    let late = containerd.run_pod(&PodPlan::new("shop", "late"));
    assert_eq!(named(&daemon, "shop/late").id.netns, late.netns);
    for pod in [&cart, &db, &proxy, &late, &agent] {
        containerd.remove_pod(pod);
    }
    until("all pods are gone", || (shown(&daemon).len() == 1).then_some(()));
}

/// A process in a cgroup and a network namespace of its choice; ended when dropped.
struct Visitor(Child);

impl Visitor {
    fn new(container: &Running, enter: &[&str]) -> Visitor {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let script =
            format!("echo 0 > {}{path}/cgroup.procs; exec \"$@\"", unified.split(' ').nth(4).unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).args(enter).args(["sleep", "1000"]);
        let visitor = Visitor(command.spawn().unwrap());
        let comm = format!("/proc/{}/comm", visitor.0.id());
        until("it is inside", || (std::fs::read_to_string(&comm).ok()?.trim() == "sleep").then_some(()));
        visitor
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Agents and debuggers enter the namespaces of others; what a container makes itself is its own.
fn visitors_change_no_names(daemon: &Daemon, cart: &Pod, proxy: &Pod, before: &BTreeSet<(String, String)>) {
    let agent = &proxy.containers[0];
    let into_pod = format!("--net=/proc/{}/ns/net", cart.pid);
    let pod = Visitor::new(agent, &["nsenter", &into_pod]);
    let blue = Visitor::new(agent, &["nsenter", "--net=/run/netns/blue"]);
    until("both have been seen", || {
        let entities = daemon.entities().entities;
        let processes =
            |name: &str| entities.iter().find(|entity| entity.id.name == name).map(|e| e.processes);
        assert_eq!(&shown(daemon), before);
        (processes("blue") == Some(1) && processes("shop/cart") > Some(3)).then_some(())
    });
    drop((pod, blue));
    let own = Visitor::new(agent, &["unshare", "-n"]);
    let inode = std::fs::metadata(format!("/proc/{}/ns/net", own.0.id())).unwrap();
    let name = format!("kube-system/proxy~{}", std::os::unix::fs::MetadataExt::ino(&inode));
    assert_eq!(named(daemon, &name).id.pod.as_deref(), Some("proxy"));
    assert!(named(daemon, "kube-system/proxy").host_network);
    drop(own);
    until("it is gone", || (&shown(daemon) == before).then_some(()));
}

/// A reset that a pod's own namespace sends has no socket; the one that a container receives has.
fn events_name_pods_containers_and_peers(
    daemon: &Daemon,
    containerd: &Containerd,
    cart: &Pod,
    db: &Pod,
    proxy: &Pod,
) {
    let here = ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap());
    for (at, address) in (0..).zip(here) {
        let sidecar = &cart.containers[1];
        refused(containerd, sidecar, address, 7100 + at);
        event(daemon, "TCP_RESET_NOSOCK", 7100 + at, |event| name_of(event) == Some("shop/cart"));
        let received = event(daemon, "TCP_RESET_RECEIVE", 7100 + at, |e| name_of(e) == Some("shop/cart"));
        assert_eq!((received.container.as_deref(), received.peer), (Some("sidecar"), None));

        let main = &proxy.containers[0];
        refused(containerd, main, address, 7200 + at);
        let received =
            event(daemon, "TCP_RESET_RECEIVE", 7200 + at, |e| name_of(e) == Some("kube-system/proxy"));
        assert_eq!(received.container.as_deref(), Some("main"));
    }
    for (at, address) in (0..).zip(&db.addresses) {
        // The first packet waits until its neighbour is found. What a timer sends then is in an interrupt, and there are machines
        // on which programs do not run in each of them.
        refused(containerd, &cart.containers[0], *address, 7299);
        refused(containerd, &cart.containers[0], *address, 7300 + at);
        let peer = |event: &Event| event.peer.as_ref().map(|peer| peer.name.clone());
        let is_named = |event: &Event, own: &str, other: &str| {
            name_of(event) == Some(own) && peer(event).as_deref() == Some(other)
        };
        event(daemon, "TCP_RESET_RECEIVE", 7300 + at, |event| {
            event.entity.as_ref().is_some_and(|entity| entity.netns == cart.netns)
                && is_named(event, "shop/cart", "shop/db")
        });
        event(daemon, "TCP_RESET_NOSOCK", 7300 + at, |event| is_named(event, "shop/db", "shop/cart"));
    }
}

/// How many pods come and go, and how many at a time.
const PODS: u32 = 200;
const AT_ONCE: u32 = 8;

/// What pod number `n` sends: no two neighbours send the same.
fn packets(n: u32) -> u32 {
    1 + n * 7919 % 997
}

/// Sends that many packets to where nobody listens, and one connection that is refused.
fn make_traffic(pod: &Pod, n: u32) {
    inside(pod.pid, || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..packets(n) {
            socket.send_to(b"x", "127.0.0.1:9").unwrap();
        }
        let port = u16::try_from(10_000 + n).unwrap();
        let refused = std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

/// Value of a pod's series, by pod number, for all of them that a scrape shows.
fn sent(metrics: &str) -> BTreeMap<u32, u32> {
    let family = "netskoop_udp_no_ports_total{";
    let mut found = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(family) && line.contains("ipv4")) {
        let Some((_, rest)) = line.split_once("name=\"load/p") else { continue };
        let (n, _) = rest.split_once('"').unwrap();
        let (_, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let n = n.parse().unwrap_or_else(|_| panic!("a name that nobody has: {line}"));
        assert!(found.insert(n, value as u32).is_none(), "twice: {line}");
    }
    found
}

/// Runs pods until there are none left to run; each has its own counters and its own event, and leaves nothing behind.
fn run_pods(daemon: &Daemon, containerd: &Containerd, next: &AtomicU32, quiet: &Mutex<()>) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= PODS {
            return;
        }
        let name = format!("p{n}");
        let pod = containerd.run_pod(&PodPlan::new("load", &name));
        {
            // A scrape sees all of it or nothing.
            let _quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
            make_traffic(&pod, n);
        }
        until("its counters are its own", || {
            let value = sent(&daemon.scrape("/metrics?collect[]=udp")).get(&n).copied()?;
            assert!([0, packets(n)].contains(&value), "{name} shows {value}, it sent {}", packets(n));
            (value == packets(n)).then_some(())
        });
        containerd.remove_pod(&pod);
    }
}

#[test]
fn two_hundred_pods_come_and_go_and_no_name_is_ever_wrong() {
    own_node!(Pids::Shared);
    let _alone = exclusive();
    let Some(containerd) = Containerd::start() else { return };
    // Scrapes share nothing, so that each shows what is now.
    let daemon = Setup::on_node().set("events", "history = 100000").start();
    containerd_state(&daemon, |source| source.connected_seconds.is_some());
    let (next, done, quiet) = (AtomicU32::new(0), AtomicBool::new(false), Mutex::new(()));
    let scrapes = std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let mut scrapes = 0;
            while !done.load(Ordering::Relaxed) {
                let text = {
                    let _quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
                    daemon.scrape("/metrics?collect[]=udp")
                };
                for (n, value) in sent(&text) {
                    assert!([0, packets(n)].contains(&value), "p{n} shows {value}, not {}", packets(n));
                }
                let made_up = text.lines().find(|line| line.contains("name=\"cni-"));
                assert_eq!(made_up, None, "a pod under the name of its mount");
                scrapes += 1;
            }
            scrapes
        });
        let runners: Vec<_> =
            (0..AT_ONCE).map(|_| scope.spawn(|| run_pods(&daemon, &containerd, &next, &quiet))).collect();
        let ended: Vec<_> = runners.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        let scrapes = scraper.join();
        ended.into_iter().for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        scrapes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(scrapes > 20, "{scrapes} scrapes");
    until("no cable of a pod is left", || {
        let links = std::fs::read_to_string("/proc/net/dev").unwrap();
        (!links.contains("veth")).then_some(())
    });
    until("no pod is shown any more", || {
        daemon.entities().entities.iter().all(|e| e.id.namespace.as_deref() != Some("load")).then_some(())
    });
    let text = daemon.ask("/v1/events").text();
    let mut named = 0;
    for event in text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap()) {
        let port = event.net.as_ref().map_or(0, |net| u32::from(net.sport));
        if event.kind == "TCP_RESET_NOSOCK" && (10_000..10_000 + PODS).contains(&port) {
            let n = port - 10_000;
            assert_eq!(name_of(&event), Some(format!("load/p{n}").as_str()), "{event:#?}");
            named += 1;
        }
    }
    assert_eq!(named, PODS, "each pod has its event");
}

/// Name, kind, containers in it, whether it is in the node's namespace, and who names it.
fn summary(daemon: &Daemon, name: &str) -> (Kind, Vec<String>, bool, String) {
    let entity = named(daemon, name);
    let containers = entity.containers.into_iter().map(|container| container.name).collect();
    (entity.id.kind, containers, entity.host_network, entity.sources[0].clone())
}

#[test]
fn containers_of_docker_have_the_names_that_docker_gives_them() {
    own_node!(Pids::Shared);
    let Some(docker) = Docker::start() else { return };
    let daemon = Setup::on_node().start();
    let web = docker.run("web", &["--label", "tier=front"]);
    docker.run("helper", &["--network", "container:web"]);
    docker.run("agent", &["--network", "host"]);
    until("both are in one namespace", || (named(&daemon, "web").containers.len() == 2).then_some(()));
    let containers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let from = "docker".to_owned();
    let shared = (Kind::Container, containers(&["web", "helper"]), false, from.clone());
    assert_eq!(summary(&daemon, "web"), shared);
    assert_eq!(summary(&daemon, "agent"), (Kind::Container, containers(&["agent"]), true, from));
    let entity: Entity = daemon.json(&format!("/v1/entities/{}", &web[..12]));
    assert_eq!(
        (entity.id.name.as_str(), entity.labels.get("tier").map(String::as_str)),
        ("web", Some("front"))
    );
    assert!(daemon.scrape("/metrics").contains(&format!("{OPENS}{{kind=\"container\",name=\"web\"}} ")));

    docker.docker(&[
        "exec",
        "agent",
        "/bin/busybox",
        "sh",
        "-c",
        "/bin/busybox nc -w 5 127.0.0.1 7400; true",
    ]);
    let received = event(&daemon, "TCP_RESET_RECEIVE", 7400, |event| name_of(event) == Some("agent"));
    assert_eq!(received.entity.unwrap().kind, Kind::Container);

    docker.docker(&["rename", "web", "shop"]);
    named(&daemon, "shop");
    let text = daemon.scrape("/metrics");
    assert!(
        text.contains(&format!("{OPENS}{{kind=\"container\",name=\"shop\"}} "))
            && !text.contains("name=\"web\"")
    );
    docker.docker(&["rm", "-f", "helper", "shop"]);
    until("it is gone", || (daemon.ask("/v1/entities/shop").status == 404).then_some(()));
}

#[test]
fn containers_and_pods_of_podman_have_their_names_with_its_service_or_without() {
    own_node!(Pids::Shared);
    let Some(mut podman) = Podman::start() else { return };
    let daemon = Setup::on_node().start();
    podman.run("web", &[]);
    podman.pod("duo");
    podman.run("left", &["--pod", "duo"]);
    assert_eq!(summary(&daemon, "web").0, Kind::Container);
    let in_pod = until("both are in the pod", || {
        Some(named(&daemon, "duo")).filter(|entity| entity.containers.len() == 2)
    });
    assert_eq!(
        (in_pod.id.kind, in_pod.id.pod.as_deref(), in_pod.id.namespace),
        (Kind::Pod, Some("duo"), None)
    );
    assert_eq!((in_pod.containers[0].sandbox, in_pod.containers[1].name.as_str()), (true, "left"));
    let ours = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with(OPENS));
        lines.filter(|l| ["\"web\"", "\"duo\""].iter().any(|n| l.contains(n))).count()
    };
    assert_eq!(ours(&daemon.scrape("/metrics")), 2);

    podman.serve();
    let reread = daemon.restart();
    assert_eq!((summary(&reread, "web").0, summary(&reread, "duo").0), (Kind::Container, Kind::Pod));
    until("by its API now", || {
        let podman = reread.status().sources.into_iter().find(|source| source.name == "podman");
        podman.filter(|source| source.state.contains("connected"))
    });
    assert_eq!(ours(&reread.scrape("/metrics")), 2);
}

#[test]
fn a_program_that_another_takes_the_place_of_gives_its_name_up() {
    own_node!(Pids::Shared);
    let daemon = Setup::on_node().start();
    // The namespace is looked at soon after it was found, when the shell is still there, and once more later.
    let job = Process::start(Command::new("unshare").args(["-n", "sh", "-c", "sleep 1.5; exec sleep 1000"]));
    let called = |name: &str| {
        let name = format!("{name}[{}]", job.pid());
        daemon.entities_until(&name, |now| now.entities.iter().any(|entity| entity.id.name == name));
    };
    called("sh");
    called("sleep");
}
