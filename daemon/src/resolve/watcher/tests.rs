use super::*;
use crate::resolve::book::Told;
use crate::resolve::identity::Claimed;
use crate::resolve::workload::{Pod, Workload};
use jiff::Timestamp;
use std::path::Path;

const HOST: u32 = 100;
const UNIT: u32 = 200;
const NEW: u32 = 300;

/// The watcher's worker on a procfs of the test's making; the test is its thread.
struct Rig {
    worker: Worker,
    /// What holds the other ends of its channels.
    _watcher: Watcher,
    _inbox: mpsc::Sender<Command>,
    proc: Proc,
}

/// A directory that looks like procfs.
struct Proc(PathBuf);

impl Proc {
    fn new() -> Proc {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("netskoop-names-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Proc(path)
    }

    /// A process is in this namespace from now on.
    fn put(&self, pid: i32, inode: u32) {
        let directory = self.0.join(format!("{pid}/ns"));
        std::fs::create_dir_all(&directory).unwrap();
        let link = directory.join("net");
        if link.is_symlink() {
            std::fs::remove_file(&link).unwrap();
        }
        std::os::unix::fs::symlink(format!("net:[{inode}]"), link).unwrap();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the paths under a directory are that stands for the whole node.
fn roots(node: &Path) -> Roots {
    Roots { proc: node.into(), netns: node.join("netns") }
}

impl Rig {
    /// One that has not looked yet; process 1 is there.
    fn new() -> Rig {
        let proc = Proc::new();
        proc.put(1, HOST);
        // The thread of this one finds nothing.
        let watcher = Watcher::start(roots(&proc.0.join("none")), Labels::default()).unwrap();
        let ((publish, _), (sender, inbox)) = (watch::channel(0), mpsc::channel());
        let worker = Worker::new(roots(&proc.0), Labels::default(), &watcher, publish, inbox);
        Rig { worker, _watcher: watcher, _inbox: sender, proc }
    }

    /// Tells the worker of a namespace as it is now; which one in its slot it is then, and since when.
    fn tell(&mut self, facts: Facts) -> (u64, Instant) {
        let inode = facts.inode;
        self.worker.replace(inode, facts.cookie);
        self.worker.put(facts, false);
        let ns = &self.worker.namespaces[&inode];
        (ns.birth, ns.seen)
    }

    /// Lets the worker look again at what it put off, until it knows a namespace or has nothing more to look at soon.
    fn finds(&mut self, inode: u32) -> bool {
        let end = Instant::now() + 2 * again::LOOK_AGAIN.iter().sum::<Duration>();
        while !self.worker.namespaces.contains_key(&inode) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            self.worker.look_again();
        }
        self.worker.namespaces.contains_key(&inode)
    }
}

/// Nothing but its making tells of a namespace whose process neither forks nor becomes another program.
#[test]
fn a_namespace_that_is_made_after_a_scan_has_found_others_is_found_at_once() {
    let mut rig = Rig::new();
    rig.worker.full_scan();
    // What starts a unit is told of, but what it makes is found by a scan.
    rig.proc.put(50, UNIT);
    rig.worker.kernel_event(KernelEvent::Created { pid: 50 });
    rig.worker.full_scan();
    assert!(rig.worker.namespaces.contains_key(&UNIT));
    rig.proc.put(60, HOST);
    rig.worker.kernel_event(KernelEvent::Created { pid: 60 });
    rig.proc.put(60, NEW);
    assert!(rig.finds(NEW), "it waits for the next scan of everything");
    assert!(rig.worker.scan_at.is_none(), "no scan was needed for it");
}

/// What a source said of a container at this second; it is in a pod if one is given.
fn container(source: &str, id: &str, name: &str, pod: Option<&str>, second: i64) -> Claimed {
    let pod = pod.map(|name| Pod { namespace: "shop".into(), name: name.into(), uid: String::new() });
    let workload = Workload { id: id.into(), name: name.into(), pod, ..Workload::default() };
    let first = Timestamp::from_second(second).unwrap();
    Claimed { source: source.into(), told: Told { workload: Arc::new(workload), first, last: first } }
}

fn facts(cookie: u64, claims: Vec<Claimed>) -> Facts {
    Facts { inode: NEW, cookie, leader: Some(60), claims, ..Facts::default() }
}

/// All that remembers what a namespace had counted goes by this: as if it were another one, sums would fall.
#[test]
fn a_container_that_is_restarted_does_not_make_its_namespace_another_one() {
    let mut rig = Rig::new();
    let main = |source, id, second| container(source, id, "main", Some("cart"), second);
    let before = rig.tell(facts(7, vec![main("cri", "a", 1)]));
    // Where several sources tell of a pod, any of them may be the first to tell of what is started.
    assert_eq!(rig.tell(facts(7, vec![main("cri", "a", 1), main("containerd", "b", 2)])), before);
    assert_eq!(&*rig.worker.namespaces[&NEW].identity.source, "containerd");
    assert_eq!(rig.tell(facts(7, vec![main("cri", "b", 3)])), before);
    let other = rig.tell(facts(7, vec![container("cri", "c", "main", Some("db"), 4)]));
    assert!(other.0 > before.0 && other.1 == before.1, "it got another name: {before:?} {other:?}");
    let next = rig.tell(facts(8, vec![container("cri", "c", "main", Some("db"), 4)]));
    assert!(next.0 > other.0 && next.1 > other.1, "another one with the same inode: {other:?} {next:?}");
}

#[test]
fn a_container_that_is_made_anew_in_a_namespace_that_stays_does_not_make_it_another_one() {
    let mut rig = Rig::new();
    let web = |id| container("docker", id, "web", None, 1);
    let before = rig.tell(facts(7, vec![web("a")]));
    assert_eq!(rig.tell(facts(7, vec![web("b")])), before);
    assert_eq!(rig.worker.namespaces[&NEW].identity.container_id.as_deref(), Some("b"));
    assert!(rig.tell(facts(7, vec![container("docker", "b", "shop", None, 1)])).0 > before.0);
}
