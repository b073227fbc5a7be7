//! What may not grow unnoticed: counts, because times differ from machine to machine and counts do not.
//!
//! A gate that fails names the number. If the growth is wanted, raise the limit in the same change and say why there; if
//! it falls well below, lower the limit, so that the gain stays.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs itself and strace, and says why it skips"
)]

use crate::declare::Names;
use crate::engine::pass::{Collector, Sources};
use crate::engine::select::{Active, Contents, Exposition, Selection, wants};
use crate::engine::self_metrics::ENTITY_INFO;
use crate::hooks::{Counters, Known, Memory, Options};
use crate::kernel::bpf::{Entries, Handle, Loader, Refused, Settings};
use crate::kernel::buckets::Buckets;
use crate::kernel::drop_reasons::ENUMS;
use crate::kernel::features::Features;
use crate::kernel::netns_watch::{Exits, NetnsWatch};
use crate::kernel::ring::Ring;
use crate::probes::PROBES;
use crate::resolve::directory::testing::namespace;
use crate::resolve::directory::{Directory, Taken};
use crate::resolve::identity::Facts;
use crate::resolve::labels::Labels;
use crate::resolve::watcher::{KernelWatch, Roots, Watcher};
use crate::server::exposition::{Budget, Whose, write_family, write_infos};
use crate::sources::{self, Beacon, Scratch, Want};
use crate::table::{Subject, Table};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Allocations of a whole collection and its answer, whatever the number of namespaces and series: tasks, channels, the
/// lists of jobs and targets, and the growth of the pieces of the answer.
const ALLOCATIONS_PER_PASS: u64 = 22;
/// Allocations more for a hundred namespaces more: their jobs (one for 64) and pieces of the answer. None per series.
const ALLOCATIONS_PER_100_NAMESPACES: u64 = 20;
/// Allocations for a new picture of the node in which one namespace is different, whatever the number of the others.
const ALLOCATIONS_PER_PICTURE: u64 = 34;
/// System calls about files for each namespace more: two to look at its identity, three for each file.
const SYSCALLS_PER_NAMESPACE: u64 = 24;
/// The same for what is read once for the node: three for each file and setting.
const SYSCALLS_PER_PASS: u64 = 18;
/// Series of one entity in the default set, with every cause of resets and two reasons of drops (design §4).
const SERIES_PER_ENTITY: usize = 60;
/// Of these, room for the probes whose tables the fixture cannot fill: conntrack, qdisc, tcpsummary and their limits.
const SERIES_RESERVED: usize = 20;
/// Bytes of the answer for the three namespaces of the fixture, default set, and per series of it.
const BYTES_OF_THE_FIXTURE: usize = 16_000;
const BYTES_PER_SERIES: usize = 105;

/// Instructions that the verifier walks through, and that are in the program. About a tenth above what clang 14 makes
/// and Linux 6.18 counts. Both grow with the cost of every event; a verifier that walks much further also comes closer
/// to the limit of older kernels (a million). Of a program that tells of connections some ninety are the filter in front of
/// each event (`filter.bpf.h`), which are run where there would be one.
const INSTRUCTIONS: [(&str, u32, u32); 52] = [
    ("tcpreset/on_send_reset", 6205, 1055),
    ("tcpreset/on_receive_reset", 1385, 480),
    // The addresses are read for an event or for a flow, and both ways are walked through. They are inlined: a program of
    // several functions can bring 5.10 down. A packet of a storm is counted by each CPU in a place of its own.
    ("packetloss/on_kfree_skb", 25100, 2000),
    ("tcpretrans/on_retransmit", 2375, 655),
    ("tcpretrans/on_retransmit_synack", 1825, 580),
    ("tcptwrcv/on_kfree_skb", 1545, 930),
    // It tells the programs at the end of connect(), where there are any, what it has counted; and it looks whether a first
    // packet was made, because without one the port was taken.
    ("tcpconnect/on_state", 5280, 1200),
    ("tcprtt/on_segment", 1845, 575),
    ("tcprtt/on_state", 1820, 545),
    // What is for other hooks than this kernel's is left out.
    ("listen/on_sys_exit", 1400, 635),
    ("listen/on_state", 740, 520),
    ("listen/on_sweep", 60, 50),
    ("softirq/on_raise", 65, 60),
    ("softirq/on_switch", 150, 110),
    ("softirq/on_entry", 1440, 550),
    ("softirq/on_exit", 1080, 400),
    ("flow/netskoop_in", 950, 615),
    ("flow/netskoop_out", 950, 620),
    ("tasklatency/on_wakeup", 45, 60),
    ("tasklatency/on_wakeup_new", 45, 60),
    ("tasklatency/on_switch", 1340, 570),
    ("biolatency/on_getrq", 1300, 655),
    ("biolatency/on_complete", 2200, 490),
    ("biolatency/on_walk", 350, 270),
    ("netiftxlat/on_queue", 320, 240),
    ("netiftxlat/on_start", 630, 245),
    // It may make the counters of an interface, within the share of its namespace, or take those of the rest.
    ("netiftxlat/on_xmit", 5200, 2005),
    ("netiftxlat/on_sweep", 55, 50),
    ("socketlatency/on_ready", 170, 90),
    ("socketlatency/on_tcp_read", 2100, 645),
    ("socketlatency/on_udp_read", 2120, 655),
    ("socketlatency/on_written", 85, 55),
    ("socketlatency/on_queue", 2075, 700),
    // It runs for a socket every two seconds and not for packets; of a datagram it reads the headers.
    ("socketlatency/on_sweep", 4000, 940),
    // As they are where only tracepoints can be had.
    ("kernellatency/on_receive", 32, 40),
    ("kernellatency/on_segment", 2040, 1045),
    ("kernellatency/on_queue_tcp", 1940, 1045),
    ("dns/on_egress", 1590, 1190),
    ("dns/on_ingress", 2480, 1520),
    ("dns/on_sweep", 1040, 700),
    ("netanomaly/on_timer", 440, 285),
    ("netanomaly/on_create", 490, 330),
    ("netanomaly/on_exceed", 830, 410),
    // Some four hundred are the socket's numbers, each read by itself; four blocks of acknowledged data are compared.
    ("netanomaly/on_retransmit", 1585, 735),
    ("cpu/on_exit", 400, 300),
    ("cpu/on_walk", 400, 300),
    ("io/on_exit", 470, 345),
    ("io/on_walk", 470, 350),
    ("netns/on_newtask", 270, 240),
    ("netns/on_exec", 270, 240),
    ("netns/on_exit", 255, 210),
    ("netns/on_percpu_alloc", 190, 180),
];

/// What `child` is told.
const PROC: &str = "NETSKOOP_GATE_PROC";
const PASSES: &str = "NETSKOOP_GATE_PASSES";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/healthy/proc")
}

/// A node with so many namespaces, the host's among them; removed when dropped.
struct Node(PathBuf);

impl Node {
    fn new(namespaces: u32) -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = format!("netskoop-gates-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(own);
        for number in 0..namespaces {
            let (pid, from) = if number == 0 { (1, "1") } else { (1000 + number, "100") };
            let (to, from) = (path.join(pid.to_string()), fixture().join(from));
            std::fs::create_dir_all(to.join("net")).unwrap();
            std::fs::create_dir(to.join("ns")).unwrap();
            std::os::unix::fs::symlink(format!("net:[{}]", 4_026_531_840 + number), to.join("ns/net"))
                .unwrap();
            for file in std::fs::read_dir(from.join("net")).unwrap().flatten() {
                std::fs::copy(file.path(), to.join("net").join(file.file_name())).unwrap();
            }
            for file in ["comm", "stat", "status"] {
                let text = std::fs::read_to_string(from.join(file)).unwrap();
                std::fs::write(to.join(file), text.replace("100", &pid.to_string())).unwrap();
            }
            std::fs::write(to.join("cgroup"), format!("0::/system.slice/u{number}.service\n")).unwrap();
        }
        let settings = path.join("sys/net/ipv4");
        std::fs::create_dir_all(&settings).unwrap();
        for file in std::fs::read_dir(fixture().join("sys/net/ipv4")).unwrap().flatten() {
            std::fs::copy(file.path(), settings.join(file.file_name())).unwrap();
        }
        std::os::unix::fs::symlink("1", path.join("self")).unwrap();
        std::os::unix::fs::symlink("self/net", path.join("net")).unwrap();
        Node(path)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The default set of the native names.
fn selection() -> Selection {
    Selection { names: vec![Names::Netskoop], target: false, full: false, probes: None }
}

fn active(hooks: bool) -> Vec<Active> {
    let wanted = PROBES.iter().filter(|probe| probe.default_on && (hooks || probe.hooks.is_none()));
    wanted.map(|probe| (*probe, Options::new())).collect()
}

/// Hooks that say nothing: the watcher need not look for itself.
struct Silent;

impl KernelWatch for Silent {
    fn watches(&self) -> bool {
        true
    }
    fn announce_again(&self, _inode: u32) {}
    fn known(&self, _: u32, _: u64, _: Exits) {}
    fn forget(&self, _: u32, _: u64) {}
    fn retain(&self, _: &rustc_hash::FxHashMap<u32, u64>) {}
    fn rearm(&self, _: u32, _: u64, _: Exits) {}
}

fn watcher(proc: &Path) -> Watcher {
    Watcher::start(
        Roots { proc: proc.into(), netns: proc.join("none") },
        Labels { node: "w".into(), ..Labels::default() },
    )
    .unwrap()
}

/// Not a test: collects and renders again and again in a process of its own, which is counted from outside or inside.
#[test]
#[ignore = "run by the gates"]
fn child() {
    let (Some(proc), Ok(passes)) = (std::env::var_os(PROC), std::env::var(PASSES)) else { return };
    let (proc, passes) = (PathBuf::from(proc), passes.parse::<u64>().unwrap());
    let watcher = Arc::new(watcher(&proc));
    watcher.set_hooks(Some(Arc::new(Silent)));
    while !watcher.hooked() {
        std::thread::yield_now();
    }
    let sources = Arc::new(Sources::new(sources::files(&proc)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (collector, task) = Collector::new(Arc::clone(&sources), watcher, None, None);
    let chosen = selection().choose(&active(false), &sources);
    let wanted = wants(&chosen, &sources);
    let once = async || {
        let deadline = Instant::now() + Duration::from_secs(60);
        let snapshot = collector.collect(wanted.clone(), Duration::ZERO, deadline).await.unwrap();
        assert!(snapshot.reports.iter().all(|report| report.success() || !report.ran));
        let contents = Contents { chosen: chosen.clone(), summed: Vec::new(), target: false, infos: true };
        Exposition::new(snapshot, contents, u64::MAX, vec![], |_, _| ())
            .map(|piece| piece.len())
            .sum::<usize>()
    };
    runtime.block_on(async {
        tokio::spawn(task);
        // Buffers grow to what they need.
        for _ in 0..4 {
            once().await;
        }
        let before = crate::counting::all_allocations();
        let mut bytes = 0;
        for _ in 0..passes {
            bytes += once().await;
        }
        let allocations = crate::counting::all_allocations() - before;
        println!("\ngate {allocations} {bytes}");
    });
}

/// The child, started through other programs if any.
fn start(through: &[&str], node: &Node, passes: u64) -> String {
    let own = std::env::current_exe().unwrap();
    let mut words: Vec<&std::ffi::OsStr> = through.iter().map(std::ffi::OsStr::new).collect();
    words.push(own.as_os_str());
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["--exact", "gates::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(PROC, &node.0)
        .env(PASSES, passes.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// At most the limit, and the limit is not far above.
fn gate(what: &str, found: u64, limit: u64) {
    assert!(
        found <= limit,
        "{what}: {found}, at most {limit}. See the head of daemon/src/gates.rs for what to do."
    );
    assert!(found * 3 / 2 + 2 >= limit, "{what}: only {found} by now, so lower the limit from {limit}");
}

pub(crate) fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("NETSKOOP_NO_SKIP").is_none(), "{test}: {why}");
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("NETSKOOP_SKIPS") {
        writeln!(std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap(), "{test}: {why}")
            .unwrap();
    }
}

#[test]
fn allocations_do_not_depend_on_the_number_of_series() {
    const MANY: u64 = 20;
    let count = |namespaces| {
        let node = Node::new(namespaces);
        let text = start(&[], &node, MANY);
        let line =
            text.lines().find_map(|line| line.strip_prefix("gate ")).unwrap_or_else(|| panic!("{text}"));
        line.split(' ').next().unwrap().parse::<u64>().unwrap() / MANY
    };
    let (few, many) = (count(3), count(103));
    gate("allocations per pass", few, ALLOCATIONS_PER_PASS);
    gate("allocations for 100 namespaces more", many - few, ALLOCATIONS_PER_100_NAMESPACES);
}

/// Allocations of one reading by a source, after the first ones, of so many namespaces; all of them are the test's own.
fn allocations_of_reading(source: &dyn sources::Source, namespaces: u32) -> u64 {
    let home =
        rustix::fs::open("/proc/thread-self/ns/net", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let home = Arc::new(home.unwrap());
    let inode = u32::try_from(rustix::fs::fstat(&home).unwrap().st_ino).unwrap();
    let access = sources::Access::Process(i32::try_from(std::process::id()).unwrap());
    let target =
        |subject| sources::Target { subject: Subject(subject), inode, cookie: 0, access: access.clone() };
    let targets: Vec<_> = (1..=namespaces).map(target).collect();
    let mut columns = vec![crate::declare::ColumnSet::default(); source.tables().len()];
    for (set, decl) in columns.iter_mut().zip(source.tables()) {
        (0..decl.columns.len()).for_each(|column| set.insert(u16::try_from(column).unwrap()));
    }
    let mut tables: Vec<Table> = source.tables().iter().map(|decl| Table::new(decl, 10_000)).collect();
    let mut scratch = Scratch { home: Some(home), ..Scratch::default() };
    let mut read = || {
        tables.iter_mut().for_each(Table::clear);
        let deadline = Instant::now() + Duration::from_secs(60);
        let want = Want { targets: &targets, columns: &columns, deadline, beacon: &Beacon::default() };
        let before = crate::counting::allocations();
        let report = source.read(&want, &mut scratch, &mut tables);
        assert!(report.error.is_none() && report.late == 0, "{}: {report:?}", source.name());
        crate::counting::allocations() - before
    };
    // Buffers grow to what they need.
    (0..5).map(|_| read()).last().unwrap()
}

#[test]
fn what_is_asked_over_netlink_allocates_nothing_for_a_namespace() {
    if !rustix::process::geteuid().is_root() {
        return skip("gates::what_is_asked_over_netlink_allocates_nothing_for_a_namespace", "needs root");
    }
    let own = sources::all(Path::new("/proc"), Path::new("/sys"));
    for name in ["qdiscs", "conntrack", "neighbours", "sockets"] {
        let source = own.iter().find(|source| source.name() == name).unwrap();
        let (few, many) = (allocations_of_reading(&**source, 3), allocations_of_reading(&**source, 103));
        assert!(few <= 4, "{name}: {few} allocations in one reading");
        assert_eq!(many, few, "{name}: allocations of 103 namespaces and of 3");
    }
}

#[test]
fn a_change_of_one_name_costs_the_same_among_many() {
    let count = |namespaces: u32| {
        let one = |number: u32, name: String| {
            let host = (number == 1).then_some(1);
            let facts = Facts {
                inode: number,
                host: host.is_some(),
                leader: host,
                mounts: vec![name],
                ..Facts::default()
            };
            namespace(number, facts, u64::from(number))
        };
        let mut all: Vec<_> = (1..=namespaces).map(|number| one(number, format!("n{number}"))).collect();
        let labels = Labels::default();
        let before = Directory::build(&Directory::default(), 1, &all, vec![], &labels);
        let mut taken = Taken::of(&all);
        all[1] = one(2, "new".into());
        let start = crate::counting::allocations();
        let changes = [(2, Some(&all[1]))];
        let picture = before.patched(&mut taken, 2, changes.into_iter(), &[], &labels).unwrap();
        let allocations = crate::counting::allocations() - start;
        assert_eq!(picture.by_inode(2).unwrap().id.name, "new");
        allocations
    };
    let (few, many) = (count(10), count(1000));
    gate("allocations for a picture", many, ALLOCATIONS_PER_PICTURE);
    assert_eq!(few, many, "it depends on the number of namespaces");
}

#[test]
fn system_calls_per_namespace() {
    const CALLS: &str = "trace=open,openat,openat2,read,pread64,readlinkat,close,lseek,fstat,newfstatat,statx,getdents64,setns";
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("gates::system_calls_per_namespace", "strace is not installed");
    }
    let count = |namespaces| {
        let node = Node::new(namespaces);
        let calls = |passes: u64| {
            let file = node.0.with_extension(passes.to_string());
            start(&["strace", "-f", "-qq", "-c", "-o", file.to_str().unwrap(), "-e", CALLS], &node, passes);
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::remove_file(file).unwrap();
            let total =
                text.lines().find(|line| line.ends_with(" total")).unwrap_or_else(|| panic!("{text}"));
            // % time, seconds, usecs/call, calls
            total.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
        };
        (calls(11) - calls(1)) / 10
    };
    let (few, many) = (count(3), count(103));
    let each = (many - few).div_ceil(100);
    gate("system calls per namespace", each, SYSCALLS_PER_NAMESPACE);
    gate("system calls per pass", few - 3 * each, SYSCALLS_PER_PASS);
}

/// Counters of every probe with hooks for one namespace, as its programs would have filled them.
fn hooked_entries(probe: &str, netns: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
    match probe {
        "tcpreset" => {
            (0..6).map(|cause| (bytes(&[netns, cause, 0, 0]), 7_u64.to_ne_bytes().to_vec())).collect()
        }
        "packetloss" => {
            (3..5).map(|reason| (bytes(&[netns, reason, 0, 0, 0, 0]), bytes(&[7, 0, 7, 0]))).collect()
        }
        "tcpretrans" => {
            (0..3).map(|kind| (bytes(&[netns, kind, 0, 0]), bytes(&[7, 0, 7, 0, 0, 0]))).collect()
        }
        // They are off unless somebody wants them.
        other if PROBES.iter().any(|probe| probe.name == other && !probe.default_on) => vec![],
        other => panic!("{other} is new: say here which counters it has in a namespace with some trouble"),
    }
}

/// The default set for the fixture, with the counters of the probes with hooks.
fn answer(directory: &Directory) -> (String, u64) {
    let all = sources::files(&fixture());
    let mut tables: Vec<Table> = Vec::new();
    let targets = directory.targets();
    for source in &all {
        let mut columns = vec![crate::declare::ColumnSet::default(); source.tables().len()];
        for (set, decl) in columns.iter_mut().zip(source.tables()) {
            (0..decl.columns.len()).for_each(|column| set.insert(u16::try_from(column).unwrap()));
        }
        let first = tables.len();
        tables.extend(source.tables().iter().map(|decl| Table::new(decl, 10_000)));
        let deadline = Instant::now() + Duration::from_secs(60);
        let want = Want { targets: &targets, columns: &columns, deadline, beacon: &Beacon::default() };
        source.read(&want, &mut Scratch::default(), &mut tables[first..]);
    }
    let known = Known::new(Path::new("/nonexistent"), &Features::default());
    for (probe, hooks) in PROBES.iter().filter_map(|probe| Some((probe, probe.hooks.as_ref()?))) {
        let pairs: Vec<_> =
            targets.iter().flat_map(|target| hooked_entries(probe.name, target.inode)).collect();
        let (entries, memory) = (Entries::from_pairs(&pairs), Memory::default());
        let subject =
            |inode, _| targets.iter().find(|target| target.inode == inode).map(|target| target.subject);
        let options = Options::new();
        let counters = Counters::new(&entries, &subject, &options, &memory);
        // The first map is the one with the metrics that are always shown.
        let map = &hooks.maps[0];
        let mut table = Table::new(map.table, 10_000);
        (map.fill)(&counters, &known, &mut table);
        tables.push(table);
    }
    let whose = Whose { directory, groups: &[], target: false, hidden: None };
    let (mut out, mut budget, mut titled) = (Vec::new(), Budget::new(u64::MAX), "");
    for (probe, _) in active(true) {
        for family in probe.families().filter(|f| f.names == Names::Netskoop && f.core && f.option.is_none())
        {
            let table = tables.iter().find(|table| std::ptr::eq(table.decl(), family.table));
            // What is asked over netlink is not in a copy of files.
            let Some(table) = table else { continue };
            write_family(&mut out, family, table, &whose, &mut budget, &mut titled);
        }
    }
    write_infos(&mut out, ENTITY_INFO, directory.infos(), 0, usize::MAX, &mut budget);
    (String::from_utf8(out).unwrap(), budget.written)
}

#[test]
fn series_per_entity_and_bytes() {
    let directory = watcher(&fixture()).directory();
    let (text, written) = answer(&directory);
    let mut entities: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (_, name) = line.split_once(",name=\"").unwrap();
        *entities.entry(name.split_once('"').unwrap().0).or_default() += 1;
    }
    assert_eq!(entities.values().sum::<usize>() as u64, written);
    assert_eq!(entities.len(), 3, "{entities:?}");
    let most = *entities.values().max().unwrap();
    assert!(
        most + SERIES_RESERVED <= SERIES_PER_ENTITY,
        "{entities:?}: the default set has at most {SERIES_PER_ENTITY} series per entity, of which {SERIES_RESERVED} are reserved"
    );
    gate("series per entity", (most + SERIES_RESERVED) as u64, SERIES_PER_ENTITY as u64);
    gate("bytes of the fixture's answer", text.len() as u64, BYTES_OF_THE_FIXTURE as u64);
    let series: usize = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.len() + 1).sum();
    gate("bytes per series", series as u64 / written, BYTES_PER_SERIES as u64);
}

#[test]
fn instructions_of_the_programs() {
    const NAME: &str = "gates::instructions_of_the_programs";
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "needs root");
    }
    let features = match Features::load(None, ENUMS) {
        Ok(features) => features,
        Err(refused) => return skip(NAME, &refused.to_string()),
    };
    let known = Arc::new(Known::new(Path::new("/proc"), &features));
    let host_netns = crate::resolve::scan::host_namespace(Path::new("/proc")).unwrap();
    let (ring, buckets) = (Ring::new(1 << 16).unwrap(), Buckets::new(0).unwrap());
    let loader = Loader { ring, buckets, features: Arc::new(features), known, host_netns, namespaces: 0 };
    let mut found = Vec::new();
    for probe in PROBES {
        let Some(hooks) = &probe.hooks else { continue };
        let handle = match Handle::start(probe.name, 0, hooks.run, &loader, Settings::default()) {
            // Those of the list have to be there.
            Err(Refused::NotHere(_)) => continue,
            started => started.unwrap(),
        };
        found.extend(handle.infos().into_iter().map(|info| (format!("{}/{}", probe.name, info.name), info)));
        handle.stop().unwrap();
    }
    let watch = NetnsWatch::start(0, &loader).unwrap();
    found.extend(watch.handle().infos().into_iter().map(|info| (format!("netns/{}", info.name), info)));
    watch.stop().unwrap();
    let mut wrong = Vec::new();
    for (name, info) in &found {
        let known = INSTRUCTIONS.iter().find(|(known, ..)| known == name);
        let (verified, translated) =
            known.map_or((0, 0), |(_, verified, translated)| (*verified, *translated));
        // Kernels before 5.16 do not tell what they walked through.
        if info.verified_instructions > verified || info.instructions > translated {
            let (walked, length) = (info.verified_instructions, info.instructions);
            wrong.push(format!(
                "{name}: {walked} walked through (limit {verified}), {length} long (limit {translated})"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}\nSee the head of daemon/src/gates.rs for what to do.", wrong.join("\n"));
    for (name, ..) in INSTRUCTIONS {
        assert!(found.iter().any(|(found, _)| found == name), "{name} is gone: remove its limit");
    }
}
