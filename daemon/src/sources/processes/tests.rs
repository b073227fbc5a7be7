use super::*;
use crate::declare::ColumnSet;
use crate::sources::Beacon;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;

/// Everything in the node's own namespace is the host's.
struct Host;

impl Owners for Host {
    fn node_netns(&self) -> u32 {
        u32::try_from(std::fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap()
    }
    fn of_netns(&self, inode: u32) -> Option<Subject> {
        (inode == self.node_netns()).then_some(Subject(1))
    }
    fn of_cgroup(&self, _: &str) -> Option<Subject> {
        None
    }
    fn has_tenants(&self) -> bool {
        false
    }
    fn cgroups(&self, _: &mut dyn FnMut(Subject, i32, &str)) {}
    fn tenants(&self, _: &mut dyn FnMut(&str, i32, Subject)) {}
}

/// A procfs in which there are only these processes.
struct Few(PathBuf);

impl Few {
    fn new(name: &str, pids: &[u32]) -> Few {
        let path = std::env::temp_dir().join(format!("netskoop-processes-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for pid in pids {
            let to = path.join(pid.to_string());
            std::os::unix::fs::symlink(format!("/proc/{pid}"), to).unwrap();
        }
        std::os::unix::fs::symlink("/proc/self", path.join("self")).unwrap();
        Few(path)
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(source: &Processes, deadline: Instant) -> (Report, [Table; 2]) {
    let mut tables = TABLES.map(|decl| Table::new(decl, 100));
    let report = read_into(source, deadline, &mut tables);
    (report, tables)
}

fn read_into(source: &Processes, deadline: Instant, tables: &mut [Table]) -> Report {
    let columns = TABLES.map(|decl| {
        let mut set = ColumnSet::default();
        (0..decl.columns.len()).for_each(|column| set.insert(column as u16));
        set
    });
    tables.iter_mut().for_each(Table::clear);
    let want = Want { targets: &[], columns: &columns, deadline, beacon: &Beacon::default() };
    source.read(&want, &mut Scratch::default(), tables)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn both_ways_of_counting_find_what_is_open() {
    let some = Few::new("both", &[std::process::id()]);
    let owners: Arc<dyn Owners> = Arc::new(Host);
    let mut sized = Processes::new(&some.0);
    sized.meet(&owners);
    let cells = |source: &Processes| {
        let (report, [fd, limit]) = read(source, later());
        assert!(report.error.is_none() && report.done == 1, "{report:?}");
        (fd.cell(0, 0).unwrap(), fd.cell(0, 1).unwrap(), limit.cell(0, 0).unwrap())
    };
    // Other tests of this process open and close files at the same time: many more than they do are told apart.
    let before = cells(&sized);
    let files: Vec<File> = (0..600).map(|_| File::open("/dev/null").unwrap()).collect();
    let sockets: Vec<UdpSocket> = (0..300).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let after = cells(&sized);
    assert!(after.0.abs_diff(before.0 + 900) < 200, "{before:?} {after:?}");
    assert!(after.1.abs_diff(before.1 + 300) < 100, "{before:?} {after:?}");
    assert!(after.2 > 0 && after.2 < 1_000_000, "{after:?}");
    sized.sized = false;
    let listed = cells(&sized);
    assert!(listed.0.abs_diff(after.0) < 200 && listed.1.abs_diff(after.1) < 100, "{after:?} {listed:?}");
    drop((files, sockets));
}

#[test]
fn what_does_not_fit_is_absent_and_counted() {
    let some = Few::new("fit", &[std::process::id()]);
    let owners: Arc<dyn Owners> = Arc::new(Host);
    let source = Processes::new(&some.0);
    assert!(read(&source, later()).1[0].is_empty(), "nobody has said whose they are");
    source.meet(&owners);
    let options = Options::from([("max_descriptors", OptionValue::Integer(1))]);
    source.configure("fd", &options);
    let (report, [fd, _]) = read(&source, later());
    assert_eq!((report.over_budget, report.failed, fd.cell(0, 1)), (1, 0, None));
    assert!(fd.cell(0, 0).unwrap() > 1);
    let (report, [fd, limit]) = read(&source, Instant::now());
    assert_eq!((report.failed, fd.len(), limit.len()), (1, 0, 0));
    assert!(report.error.unwrap().to_string().starts_with("look at all processes in time"));
}

#[test]
fn one_that_has_ended_is_nothing() {
    // No process has this number: it is above the limit of 64-bit kernels.
    let some = Few::new("ended", &[4_194_999]);
    let source = Processes::new(&some.0);
    source.meet(&(Arc::new(Host) as Arc<dyn Owners>));
    let (report, [fd, limit]) = read(&source, later());
    assert_eq!((report.failed, report.late, fd.len(), limit.len()), (0, 0, 0, 0), "{report:?}");
}

#[test]
fn a_pass_allocates_nothing_for_any_process() {
    let source = Processes::new(Path::new("/proc"));
    source.meet(&(Arc::new(Host) as Arc<dyn Owners>));
    let mut tables = TABLES.map(|decl| Table::new(decl, 100));
    for _ in 0..3 {
        read_into(&source, later(), &mut tables);
    }
    let before = crate::counting::allocations();
    let report = read_into(&source, later(), &mut tables);
    let allocations = crate::counting::allocations() - before;
    // One that may not be looked at makes an error, which is a text.
    assert!(report.error.is_some() || allocations <= 1, "{allocations}");
}

/// A call that waits for a connection has taken a number for it, which leads nowhere until then.
#[test]
fn numbers_that_are_only_reserved_are_not_open() {
    const WAITING: u64 = 400;
    let some = Few::new("reserved", &[std::process::id()]);
    let mut source = Processes::new(&some.0);
    source.meet(&(Arc::new(Host) as Arc<dyn Owners>));
    // Before Linux 6.2 there is a list only, and nothing tells how many wait.
    let waits_are_seen = source.sized;
    let reserved = || std::fs::metadata("/proc/self/fd").unwrap().len();
    let open = |source: &Processes| read(source, later()).1[0].cell(0, 0).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (before, numbers) = (open(&source), reserved());
    std::thread::scope(|scope| {
        for _ in 0..WAITING {
            let wait = || listener.accept();
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait).unwrap();
        }
        // Other tests of this process open and close files at the same time.
        while waits_are_seen && reserved() < numbers + WAITING - 100 {
            std::thread::yield_now();
        }
        let after = open(&source);
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert!(after.abs_diff(before) < WAITING / 2, "{before} {after}");
    });
    source.sized = false;
    assert!(open(&source).abs_diff(before) < WAITING / 2);
}
