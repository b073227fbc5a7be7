use super::*;
use crate::declare::column;
use crate::sources::Beacon;
use std::time::Duration;

const ID: &str = "5f0000000000000000000000000000000000000000000000000000000000aaaa";

/// Entities with the cgroups of these processes.
struct Owned(Mutex<Vec<(Subject, i32, String)>>);

impl Owners for Owned {
    fn node_netns(&self) -> u32 {
        1
    }
    fn of_netns(&self, inode: u32) -> Option<Subject> {
        (inode == 1).then_some(Subject(1))
    }
    fn of_cgroup(&self, _: &str) -> Option<Subject> {
        None
    }
    fn has_tenants(&self) -> bool {
        false
    }
    fn cgroups(&self, each: &mut dyn FnMut(Subject, i32, &str)) {
        lock(&self.0).iter().for_each(|(subject, pid, name)| each(*subject, *pid, name));
    }
    fn tenants(&self, _: &mut dyn FnMut(&str, i32, Subject)) {}
}

/// A node of files: hierarchies and processes in them.
struct Node {
    dir: PathBuf,
    owned: Arc<Owned>,
}

impl Node {
    fn new(name: &str, hierarchies: &[(&str, &str)]) -> Node {
        let dir = std::env::temp_dir().join(format!("netskoop-cgroup-cpu-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("proc/self")).unwrap();
        let line = |(mount, kind): &(&str, &str)| {
            std::fs::create_dir_all(dir.join(mount)).unwrap();
            format!("31 30 0:26 / {} rw - {kind}\n", dir.join(mount).display())
        };
        let text: String = hierarchies.iter().map(line).collect();
        std::fs::write(dir.join("proc/self/mountinfo"), text).unwrap();
        Node { dir, owned: Arc::new(Owned(Mutex::default())) }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn own(&self, cgroups: &[(u32, i32, &str)]) {
        let own = |(subject, pid, name): &(u32, i32, &str)| (Subject(*subject), *pid, (*name).to_owned());
        *lock(&self.owned.0) = cgroups.iter().map(own).collect();
    }

    fn source(&self) -> Cgroups {
        let source = Cgroups::new(&self.dir.join("proc"));
        source.meet(&(Arc::clone(&self.owned) as Arc<dyn Owners>));
        source
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The values by subject.
fn run(source: &Cgroups) -> (Report, FxHashMap<u32, Values>) {
    let mut all = ColumnSet::default();
    (0..CGROUP_CPU.columns.len()).for_each(|column| all.insert(column as u16));
    let mut out = [Table::new(&CGROUP_CPU, 100)];
    let deadline = Instant::now() + Duration::from_secs(30);
    let want = Want { targets: &[], columns: &[all], deadline, beacon: &Beacon::default() };
    let report = source.read(&want, &mut Scratch::default(), &mut out);
    let cells = |row| std::array::from_fn(|column| out[0].cell(row, column as u16));
    let rows = (0..out[0].len()).map(|row| (out[0].subject(row).0, cells(row))).collect();
    (report, rows)
}

const STAT: &str = "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 25\n";
const PRESSURE: &str =
    "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n";

#[test]
fn the_unified_hierarchy() {
    let node = Node::new("v2", &[("v2", "cgroup2 cgroup2 rw")]);
    let (one, two) = (format!("/pods/pod1/cri-{ID}.scope"), "/pods/pod1/second");
    node.write("proc/10/cgroup", &format!("0::{one}/init.scope\n"));
    node.write("proc/11/cgroup", &format!("0::{two}\n"));
    node.write(&format!("v2{one}/cpu.stat"), STAT);
    node.write(&format!("v2{one}/cpu.pressure"), PRESSURE);
    node.write(&format!("v2{two}/cpu.stat"), STAT);
    node.write("proc/pressure/cpu", PRESSURE);
    // One container twice, as two sources tell of it.
    node.own(&[(5, 10, ID), (5, 10, ID), (5, 11, "second"), (6, 10, "elsewhere"), (6, 77, ID)]);
    let source = node.source();
    for _ in 0..2 {
        let (report, rows) = run(&source);
        assert!(report.error.is_none(), "{report:?}");
        assert_eq!(rows[&5], [Some(20), Some(8), Some(50_000), Some(7_000), Some(2_000)]);
        assert_eq!(rows[&1], [None, None, None, Some(7_000), Some(2_000)], "the node itself");
        assert_eq!(rows.len(), 2, "a process in another's cgroup, and one that is gone");
    }
    // A container is started anew, in a cgroup of its own.
    let third = format!("/pods/pod1/third-{ID}");
    node.write("proc/12/cgroup", &format!("0::{third}\n"));
    node.write(&format!("v2{third}/cpu.stat"), "nr_periods 1\nnr_throttled 1\nthrottled_usec 1\n");
    node.own(&[(5, 12, ID)]);
    assert_eq!(run(&source).1[&5][..3], [Some(21), Some(9), Some(51_000)]);
    assert_eq!(run(&source).1[&5][..3], [Some(21), Some(9), Some(51_000)], "what is gone counts once");
    source.forget(Subject(5));
    assert_eq!(run(&source).1[&5][..3], [Some(1), Some(1), Some(1_000)]);
}

#[test]
fn hierarchies_of_their_own() {
    let mounts = [("cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct"), ("unified", "cgroup2 cgroup2 rw")];
    let node = Node::new("v1", &mounts);
    node.write(
        "proc/10/cgroup",
        &format!("4:cpu,cpuacct:/docker/{ID}\n1:name=systemd:/x\n0::/docker/{ID}\n"),
    );
    node.write(
        &format!("cpu,cpuacct/docker/{ID}/cpu.stat"),
        "nr_periods 3\nnr_throttled 2\nthrottled_time 99\n",
    );
    node.write(&format!("unified/docker/{ID}/cpu.pressure"), PRESSURE);
    node.own(&[(5, 10, ID)]);
    let (report, rows) = run(&node.source());
    assert_eq!((report.failed, rows.len()), (0, 1));
    assert_eq!(rows[&5], [Some(3), Some(2), Some(99), Some(7_000), Some(2_000)]);
    assert_eq!(usize::from(column(&CGROUP_CPU, "pressure_full_ns")), VALUES - 1);
}

#[test]
fn rubbish_is_an_error_and_no_number() {
    let node = Node::new("bad", &[("v2", "cgroup2 cgroup2 rw")]);
    node.write("proc/10/cgroup", &format!("0::/{ID}\n"));
    node.write(&format!("v2/{ID}/cpu.stat"), "nr_periods many\n");
    node.own(&[(5, 10, ID)]);
    let (report, rows) = run(&node.source());
    assert!(report.error.unwrap().to_string().ends_with("line 1: not a number") && rows.is_empty());
}
