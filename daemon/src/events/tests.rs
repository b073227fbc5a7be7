//! The thread that names events, with a real picture of namespaces, a real history, and directories for cgroups.

use super::bus::{Bus, Counts, Incoming, Intake};
use super::history::History;
use crate::declare::EventDecl;
use crate::hooks::{Known, Options, RawEvent, Tuple};
use crate::kernel::features::Features;
use crate::kernel::ring::wait_until;
use crate::resolve::book::Told;
use crate::resolve::cgroup_tree::tests::Tree;
use crate::resolve::directory::testing::{build, namespace};
use crate::resolve::directory::{Directory, Namespace};
use crate::resolve::identity::{Claimed, Facts};
use crate::resolve::workload::{Pod, Workload};
use arc_swap::ArcSwap;
use netskoop_api::{Event, Kind, OptionValue, Value};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const HOST: u32 = 1;
const BLUE: u32 = 2;

static DECL: EventDecl = EventDecl { name: "TEST", aliases: &[], fields: &[], help: "A test." };

/// The thread and its surroundings.
struct World {
    directory: Arc<ArcSwap<Directory>>,
    history: Arc<History>,
    counts: Arc<Counts>,
    intake: Intake,
    tree: Tree,
}

impl World {
    /// Knows the node's own namespace only.
    fn new(name: &str) -> World {
        let tree = Tree::new(name);
        let directory = Arc::new(ArcSwap::from_pointee(picture(1, &[HOST])));
        let history = Arc::new(History::new(100));
        let counts = Arc::new(Counts::default());
        let bus = Bus {
            history: Arc::clone(&history),
            counts: Arc::clone(&counts),
            directory: Arc::clone(&directory),
            known: Arc::new(Known::new(Path::new("/nonexistent"), &Features::default())),
            node: "n".into(),
            boot: "b".into(),
            proc: tree.proc(),
        };
        let (intake, _) = bus.start().unwrap();
        World { directory, history, counts, intake, tree }
    }

    fn put(&self, netns: u32, cookie: u64, cgroup: u64) {
        self.put_packet(netns, cookie, cgroup, None);
    }

    /// Source and destination are the last digits of the addresses.
    fn put_packet(&self, netns: u32, cookie: u64, cgroup: u64, ends: Option<(u8, u8)>) {
        let tuple = ends.map(|(src, dst)| {
            let (src, dst) = (address(src), address(dst));
            Tuple { proto: 6, src, sport: 1, dst, dport: 2 }
        });
        let event = RawEvent {
            decl: &DECL,
            netns,
            cookie,
            cgroup,
            time: 0,
            tuple,
            process: None,
            fields: vec![],
            stack: vec![],
            suppressed: 0,
        };
        self.intake.put(Incoming { probe: "test", event });
    }

    /// Waits for an event, and until it is as wanted.
    fn wait(&self, seq: u64, wanted: impl Fn(&Event) -> bool) -> Arc<Event> {
        let event = || self.history.read(seq - 1, 1).events.into_iter().next();
        let good = || event().is_some_and(|event| wanted(&event));
        assert!(wait_until(LIMIT, good), "{:?}", event());
        event().unwrap()
    }
}

fn picture(generation: u64, inodes: &[u32]) -> Directory {
    let namespaces: Vec<_> = inodes.iter().map(|inode| netns(*inode)).collect();
    build(generation, &namespaces, "n")
}

fn netns(inode: u32) -> Arc<Namespace> {
    let host = inode == HOST;
    let facts = Facts { inode, cookie: inode.into(), host, mounts: vec!["blue".into()], ..Facts::default() };
    namespace(inode, facts, inode.into())
}

/// A container of a pod, as a source tells of it.
fn claimed(id: &str, pod: &str, name: &str) -> Claimed {
    let pod = Pod { namespace: "shop".into(), name: pod.into(), uid: String::new() };
    let workload = Workload { id: id.into(), name: name.into(), pod: Some(pod), ..Workload::default() };
    let now = jiff::Timestamp::now();
    Claimed { source: "test".into(), told: Told { workload: Arc::new(workload), first: now, last: now } }
}

fn with_address(mut namespace: Arc<Namespace>, last: u8) -> Arc<Namespace> {
    Arc::make_mut(&mut namespace).addresses = vec![address(last)];
    namespace
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn name(event: &Event) -> Option<(Kind, &str)> {
    event.entity.as_ref().map(|entity| (entity.kind, entity.name.as_str()))
}

#[test]
fn a_socket_in_the_nodes_namespace_names_its_container_or_unit() {
    let world = World::new("names");
    let container = world.tree.make(&format!("kubepods/pod1/{ID}"));
    let unit = world.tree.make("system.slice/nginx.service");
    let nobody = world.tree.make("user.slice");
    for cgroup in [container, unit, nobody, 0] {
        world.put(HOST, HOST.into(), cgroup);
    }
    assert_eq!(name(&world.wait(1, |_| true)), Some((Kind::Container, &ID[..12])));
    let of_unit = world.wait(2, |_| true);
    assert_eq!(name(&of_unit), Some((Kind::Host, "host")));
    assert_eq!(of_unit.fields.get("unit"), Some(&Value::Text("nginx.service".into())));
    for seq in [3, 4] {
        let event = world.wait(seq, |_| true);
        assert_eq!((name(&event), event.fields.len()), (Some((Kind::Host, "host")), 0));
    }
}

#[test]
fn an_event_that_came_before_its_name_gets_it_later() {
    let world = World::new("later");
    world.put(BLUE, BLUE.into(), 0);
    world.put(HOST, HOST.into(), 0);
    // The one behind it comes after it, so both are delivered now.
    assert_eq!(name(&world.wait(2, |_| true)), Some((Kind::Host, "host")));
    let first = world.wait(1, |_| true);
    assert_eq!((name(&first), first.fields.get("netns")), (None, Some(&Value::Number(BLUE.into()))));
    world.directory.store(Arc::new(picture(2, &[HOST, BLUE])));
    let named = world.wait(1, |event| event.entity.is_some());
    assert_eq!((name(&named), named.seq, named.fields.len()), (Some((Kind::Netns, "blue")), 1, 0));
}

#[test]
fn without_a_cookie_a_late_name_may_be_anothers() {
    let world = World::new("cookie");
    world.put(BLUE, 0, 0);
    world.put(BLUE, BLUE.into(), 0);
    world.wait(2, |_| true);
    world.directory.store(Arc::new(picture(2, &[HOST, BLUE])));
    assert_eq!(name(&world.wait(2, |event| event.entity.is_some())), Some((Kind::Netns, "blue")));
    assert_eq!(name(&world.wait(1, |_| true)), None);
}

#[test]
fn a_name_that_was_given_is_not_taken_away() {
    let world = World::new("kept");
    let container = world.tree.make(&format!("docker/{ID}"));
    world.put(HOST, HOST.into(), container);
    world.wait(1, |_| true);
    world.put(BLUE, BLUE.into(), 0);
    world.wait(2, |_| true);
    // The node's namespace is not in this picture, but the mark is.
    world.directory.store(Arc::new(picture(2, &[BLUE])));
    world.wait(2, |event| event.entity.is_some());
    assert_eq!(name(&world.wait(1, |_| true)), Some((Kind::Container, &ID[..12])));
}

#[test]
fn a_cgroup_made_after_the_last_look_is_found_by_the_next() {
    let world = World::new("walk");
    let first = world.tree.make(&format!("docker/{ID}"));
    world.put(HOST, HOST.into(), first);
    world.wait(1, |_| true);
    let unit = world.tree.make("system.slice/late.service");
    world.put(HOST, HOST.into(), unit);
    // Whether it waited, or was named again later.
    world.wait(2, |event| event.fields.get("unit") == Some(&Value::Text("late.service".into())));
}

#[test]
fn a_host_network_pod_is_named_when_its_source_tells() {
    let world = World::new("pod");
    let container = world.tree.make(&format!("kubepods/pod1/{ID}"));
    world.put(HOST, HOST.into(), container);
    assert_eq!(name(&world.wait(1, |_| true)), Some((Kind::Container, &ID[..12])));
    // Its end is known by then, and the cgroup gone.
    std::fs::remove_dir(world.tree.0.join("tree/kubepods/pod1").join(ID)).unwrap();
    let host = Facts { claims: vec![claimed(ID, "proxy", "main")], ..netns(HOST).facts.clone() };
    world.directory.store(Arc::new(build(2, &[namespace(HOST, host, 1)], "n")));
    let named = world.wait(1, |event| event.container.is_some());
    assert_eq!((name(&named), named.container.as_deref()), (Some((Kind::Pod, "shop/proxy")), Some("main")));
    assert_eq!(named.entity.as_ref().map(|entity| entity.netns), Some(HOST));
    world.put(HOST, HOST.into(), container);
    assert_eq!(name(&world.wait(2, |_| true)), Some((Kind::Pod, "shop/proxy")));
}

#[test]
fn both_ends_of_a_connection_are_told() {
    let world = World::new("peer");
    let container = world.tree.make(&format!("kubepods/pod1/{ID}"));
    let pod = |inode: u32, name: &str, id: &str| {
        let facts =
            Facts { inode, cookie: inode.into(), claims: vec![claimed(id, name, "app")], ..Facts::default() };
        with_address(namespace(inode, facts, 1), inode as u8)
    };
    let host = with_address(netns(HOST), 1);
    world.directory.store(Arc::new(build(2, &[host, pod(5, "cart", ID), pod(6, "redis", "other")], "n")));
    world.put_packet(5, 5, container, Some((5, 6)));
    world.put_packet(5, 5, 0, Some((6, 5)));
    world.put_packet(5, 5, 0, Some((5, 99)));
    world.put_packet(5, 5, 0, Some((1, 5)));
    world.put_packet(HOST, HOST.into(), 0, Some((5, 6)));
    world.put_packet(HOST, HOST.into(), 0, Some((5, 99)));
    world.put_packet(HOST, HOST.into(), 0, Some((1, 99)));
    let (cart, redis, host) = (Some("shop/cart"), Some("shop/redis"), Some("host"));
    let wanted = [
        (cart, redis, Some("app")),
        (cart, redis, None),
        (cart, None, None),
        (cart, host, None),
        (host, redis, None),
        (host, cart, None),
        (host, None, None),
    ];
    for (seq, wanted) in (1..).zip(wanted) {
        let event = world.wait(seq, |_| true);
        let name =
            |entity: &Option<netskoop_api::EntityRef>| entity.as_ref().map(|entity| entity.name.clone());
        let (own, peer) = (name(&event.entity), name(&event.peer));
        assert_eq!((own.as_deref(), peer.as_deref(), event.container.as_deref()), wanted, "{event:#?}");
    }
}

#[test]
fn events_of_entities_that_nobody_wants_are_left_out_and_counted() {
    let world = World::new("filter");
    world.directory.store(Arc::new(picture(2, &[HOST, BLUE])));
    let choose = |key, word: &str| {
        let options = Options::from([(key, OptionValue::List(vec![word.to_owned()]))]);
        world.intake.choose("test", &options);
    };
    let filtered = || world.counts.filtered_by_entity.load(std::sync::atomic::Ordering::Relaxed);
    choose("ignore_entities", "netns/*");
    world.put(BLUE, BLUE.into(), 0);
    world.put(HOST, HOST.into(), 0);
    assert_eq!((name(&world.wait(1, |_| true)), filtered()), (Some((Kind::Host, "host")), 1));
    choose("entities", "blue");
    world.put(HOST, HOST.into(), 0);
    world.put(BLUE, BLUE.into(), 0);
    assert_eq!((name(&world.wait(2, |_| true)), filtered()), (Some((Kind::Netns, "blue")), 2));
    // Whose this is may be told later; where the kernel tells of no namespace nobody ever will be.
    choose("entities", "nobody");
    world.put(99, 99, 0);
    world.put(0, 0, 0);
    world.put(98, 98, 0);
    let netns = |seq| world.wait(seq, |_| true).fields.get("netns").cloned();
    assert_eq!((netns(3), netns(4), filtered()), (Some(Value::Number(99)), Some(Value::Number(98)), 3));
    world.intake.choose("test", &Options::new());
    world.put(HOST, HOST.into(), 0);
    assert_eq!((name(&world.wait(5, |_| true)), filtered()), (Some((Kind::Host, "host")), 3));
}
