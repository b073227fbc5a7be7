use super::*;
use crate::kernel::parts::MISSING;
use crate::sources::{Access, Beacon, Target};
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// The source with tables, all columns wanted, and the test's own namespace.
struct Rig {
    source: Sockets,
    out: Vec<Table>,
    columns: Vec<ColumnSet>,
    scratch: Scratch,
    beacon: Beacon,
    inode: u32,
}

impl Rig {
    fn new() -> Rig {
        let columns = TABLES.map(|decl| {
            let mut set = ColumnSet::default();
            (0..decl.columns.len()).for_each(|column| set.insert(column as u16));
            set
        });
        let home = File::open("/proc/self/ns/net").unwrap();
        let inode = u32::try_from(home.metadata().unwrap().ino()).unwrap();
        Rig {
            source: Sockets::new(Path::new("/proc")),
            out: TABLES.map(|decl| Table::new(decl, 10_000)).into(),
            columns: columns.into(),
            scratch: Scratch { home: Some(Arc::new(home.into())), ..Scratch::default() },
            beacon: Beacon::default(),
            inode,
        }
    }

    /// The same namespace as so many subjects.
    fn targets(&self, count: u32) -> Vec<Target> {
        let access = Access::Process(i32::try_from(std::process::id()).unwrap());
        let target = |number| Target {
            subject: Subject(number),
            inode: self.inode,
            cookie: 0,
            access: access.clone(),
        };
        (1..=count).map(target).collect()
    }

    fn read(&mut self, targets: &[Target]) -> Report {
        self.out.iter_mut().for_each(Table::clear);
        let deadline = Instant::now() + Duration::from_secs(30);
        let want = Want { targets, columns: &self.columns, deadline, beacon: &self.beacon };
        self.source.read(&want, &mut self.scratch, &mut self.out)
    }
}

/// Namespaces are entered, and the kernel must have the part that answers.
fn can(test: &str) -> bool {
    let why = match TCP_DIAG.is_here(Path::new("/proc")) {
        _ if !rustix::process::geteuid().is_root() => "needs root",
        false => "tcp_diag is not here",
        true => return true,
    };
    crate::gates::skip(test, why);
    false
}

#[test]
fn without_its_part_of_the_kernel_nothing_is_asked() {
    let mut rig = Rig::new();
    rig.source.part = MISSING;
    let report = rig.read(&rig.targets(2));
    let sentence = report.not_here.unwrap();
    assert_eq!(sentence, "the kernel module no_such_module is not loaded, and the daemon loads none");
    assert_eq!((report.done, report.failed, rig.out[SOCKETS].len()), (0, 0, 0));
}

#[test]
fn a_pass_in_the_steady_state_allocates_nothing_per_namespace() {
    if !can("sources::sockets::tests::a_pass_in_the_steady_state_allocates_nothing_per_namespace") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut rig = Rig::new();
    let mut count = |namespaces| {
        let targets = rig.targets(namespaces);
        rig.read(&targets);
        rig.read(&targets);
        let before = crate::counting::allocations();
        let report = rig.read(&targets);
        let allocations = crate::counting::allocations() - before;
        assert_eq!((report.done, report.failed), (namespaces, 0), "{:?}", report.error);
        assert!(rig.out.iter().all(|table| table.len() >= namespaces as usize));
        allocations
    };
    let (one, many) = (count(1), count(20));
    assert_eq!(one, many);
    // To look for the module.
    assert!(one <= 2, "{one}");
}

#[test]
fn what_does_not_fit_into_the_time_is_left_out_and_told() {
    if !can("sources::sockets::tests::what_does_not_fit_into_the_time_is_left_out_and_told") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let clients: Vec<_> =
        (0..100).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
    let mut rig = Rig::new();
    let mut rows = |milliseconds| {
        let options = [("max_milliseconds", OptionValue::Integer(milliseconds))];
        rig.source.configure("tcpsummary", &options.into());
        let report = rig.read(&rig.targets(1));
        let table = &rig.out[SOCKETS];
        let established = (table.len() == 1).then(|| table.cell(0, 0)).flatten();
        (report.done, report.late, established)
    };
    let (done, late, established) = rows(900);
    assert_eq!((done, late), (1, 0));
    assert!(established >= Some(clients.len() as u64), "{established:?}");
    // Not even the listening sockets fit.
    assert_eq!(rows(0), (0, 1, None));
}

#[test]
fn the_state_of_a_namespace_follows_from_what_is_read_before() {
    let state = |in_use, time_wait, listening| {
        Before { in_use: Some(in_use), time_wait: Some(time_wait), range: None }.state(listening)
    };
    assert_eq!(
        (state(0, 0, 0), state(3, 0, 3), state(3, 1, 3)),
        (State::Empty, State::Listeners, State::Connections)
    );
    assert_eq!((state(0, 1, 0), state(4, 0, 3)), (State::Connections, State::Connections));
    // Where nothing is known everything is looked at.
    assert_eq!(Before::default().state(0), State::Connections);
    let text = b"sockets: used 9\nTCP: inuse 4 orphan 0 tw 2 alloc 6 mem 1\nUDP: inuse 1 mem 0\n";
    assert_eq!((in_use(text, b"TCP"), in_use(b"TCP6: inuse 3\n", b"TCP6")), (Some((4, 2)), Some((3, 0))));
    assert_eq!((in_use(text, b"TCP6"), in_use(b"TCP: inuse", b"TCP")), (None, None));
}
