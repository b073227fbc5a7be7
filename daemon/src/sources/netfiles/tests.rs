use super::super::{Beacon, Scratch};
use super::*;
use crate::sources::Access;
use std::collections::BTreeMap;
use std::time::Duration;

/// A source with tables, all columns wanted.
struct Rig {
    source: NetFiles,
    out: Vec<Table>,
    columns: Vec<ColumnSet>,
    scratch: Scratch,
    beacon: Beacon,
}

impl Rig {
    fn new(proc: &Path) -> Rig {
        let columns = TABLES.map(|decl| {
            let mut set = ColumnSet::default();
            (0..decl.columns.len()).for_each(|column| set.insert(column as u16));
            set
        });
        Rig {
            source: NetFiles::new(proc),
            out: TABLES.map(|decl| Table::new(decl, 10_000)).into(),
            columns: columns.into(),
            scratch: Scratch::default(),
            beacon: Beacon::default(),
        }
    }

    fn fixture(name: &str) -> Rig {
        Rig::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).join("proc"))
    }

    fn read(&mut self, targets: &[Target]) -> Report {
        self.read_within(targets, Duration::from_secs(30))
    }

    fn read_within(&mut self, targets: &[Target], time: Duration) -> Report {
        self.out.iter_mut().for_each(Table::clear);
        let deadline = Instant::now() + time;
        let want = Want { targets, columns: &self.columns, deadline, beacon: &self.beacon };
        self.source.read(&want, &mut self.scratch, &mut self.out)
    }

    /// The cell of a table without keys, or of the row with that key.
    fn cell(&self, decl: &'static TableDecl, subject: u32, device: Option<&str>, key: &str) -> Option<u64> {
        let table = self.out.iter().find(|table| std::ptr::eq(table.decl(), decl)).unwrap();
        let is = |row: &usize| {
            table.subject(*row) == Subject(subject)
                && device.is_none_or(|device| table.key(*row, 0) == device.as_bytes())
        };
        let row = (0..table.len()).find(is)?;
        table.cell(row, crate::declare::column(decl, key))
    }

    fn rows(&self) -> usize {
        self.out.iter().map(Table::len).sum()
    }
}

const HOST: u32 = 4_026_531_840;
const NGINX: u32 = 4_026_532_201;
const COREDNS: u32 = 4_026_532_302;

fn process(subject: u32, pid: i32, inode: u32) -> Target {
    Target { subject: Subject(subject), inode, cookie: 0, access: Access::Process(pid) }
}

fn copy_of(name: &str) -> (tempdir::TempDir, Rig) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).join("proc/100");
    let to = tempdir::TempDir::new();
    let pid = to.0.join("100");
    std::fs::create_dir_all(pid.join("net")).unwrap();
    std::fs::create_dir_all(pid.join("ns")).unwrap();
    std::os::unix::fs::symlink(format!("net:[{NGINX}]"), pid.join("ns/net")).unwrap();
    for file in std::fs::read_dir(from.join("net")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), pid.join("net").join(file.file_name())).unwrap();
    }
    let rig = Rig::new(&to.0);
    (to, rig)
}

mod tempdir {
    use std::sync::atomic::{AtomicU32, Ordering};
    pub(super) struct TempDir(pub(super) std::path::PathBuf);
    impl TempDir {
        pub(super) fn new() -> TempDir {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("netskoop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            TempDir(path)
        }
    }
    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[test]
fn every_file_of_every_namespace_is_read() {
    let mut rig = Rig::fixture("healthy");
    let targets = [process(1, 1, HOST), process(2, 100, NGINX), process(3, 200, COREDNS)];
    for _ in 0..2 {
        let report = rig.read(&targets);
        assert_eq!((report.done, report.failed, report.vanished), (3, 0, 0), "{report:?}");
        for (subject, key, value) in [
            (1, "Tcp.ActiveOpens", 63),
            (2, "Tcp.ActiveOpens", 18),
            (2, "Tcp.AttemptFails", 8),
            (2, "Tcp.InSegs", 75),
            (2, "Tcp.InCsumErrors", 0),
            (2, "Ip.OutTransmits", 57),
            (2, "Icmp.InDestUnreachs", 6),
            (2, "Udp.OutDatagrams", 11),
            (2, "Ip6InReceives", 32),
            (2, "Ip6OutTransmits", 32),
            (2, "Icmp6OutMLDv2Reports", 3),
            (2, "Udp6OutDatagrams", 3),
            (2, "UdpLite6MemErrors", 0),
            (2, "IpExt.InOctets", 2972),
            (2, "IpExt.OutOctets", 283_163),
            (3, "Tcp.PassiveOpens", 10),
            (3, "Tcp.OutRsts", 17),
            (3, "Udp.NoPorts", 6),
        ] {
            assert_eq!(rig.cell(&SNMP, subject, None, key), Some(value), "{subject} {key}");
        }
        assert_eq!(rig.cell(&SNMP, 2, None, "Tcp.MaxConn"), None);
        assert_eq!(rig.cell(&NETSTAT, 2, None, "TcpExt.TCPPureAcks"), Some(12));
        assert_eq!(rig.cell(&NETSTAT, 2, None, "TcpExt.TCPAODroppedIcmps"), Some(0));
        assert_eq!(rig.cell(&NETSTAT, 2, None, "MPTcpExt.MPCurrEstab"), Some(0));
        assert_eq!(rig.cell(&TCPEXT_FIELDS, 2, Some("TCPOrigDataSent"), "value"), Some(273));
        assert_eq!(rig.cell(&DEV, 2, Some("eth0"), "tx.bytes"), Some(393_930));
        assert_eq!(rig.cell(&DEV, 1, Some("lo"), "rx.packets"), Some(29));
        assert_eq!(rig.cell(&DEV_SHOWN, 1, Some("eth0"), "rx.bytes"), Some(128_389_688));
        assert_eq!(rig.cell(&DEV_SHOWN, 1, Some("lo"), "rx.bytes"), None);
        assert_eq!(rig.cell(&SOCKSTAT, 3, None, "TCP.tw"), Some(2));
        assert_eq!(rig.cell(&SOCKSTAT, 3, None, "FRAG6.memory"), Some(0));
    }
}

#[test]
fn without_ipv6_its_cells_are_absent_and_nothing_failed() {
    let mut rig = Rig::fixture("no_ipv6");
    let report = rig.read(&[process(1, 1, HOST), process(2, 100, NGINX)]);
    assert_eq!((report.done, report.failed), (2, 0), "{report:?}");
    assert_eq!(rig.cell(&SNMP, 2, None, "Tcp.ActiveOpens"), Some(18));
    assert_eq!(rig.cell(&SNMP, 2, None, "Ip6InReceives"), None);
    assert_eq!(rig.cell(&SOCKSTAT, 2, None, "TCP.tw"), Some(1));
    assert_eq!(rig.cell(&SOCKSTAT, 2, None, "TCP6.inuse"), None);
}

#[test]
fn older_and_newer_kernels_are_read_by_name() {
    let mut old = Rig::fixture("old_kernel");
    assert_eq!(old.read(&[process(2, 100, NGINX)]).done, 1);
    assert_eq!(old.cell(&SNMP, 2, None, "Ip.InReceives"), Some(56));
    assert_eq!(old.cell(&SNMP, 2, None, "Ip.OutTransmits"), None);
    assert_eq!(old.cell(&NETSTAT, 2, None, "TcpExt.TCPDelivered"), Some(183));
    assert_eq!(old.cell(&NETSTAT, 2, None, "TcpExt.TCPAOBad"), None);
    let mut new = Rig::fixture("extra_columns");
    assert_eq!(new.read(&[process(2, 100, NGINX)]).done, 1);
    assert_eq!(new.cell(&SNMP, 2, None, "Ip.InReceives"), Some(56));
    assert_eq!(new.cell(&SNMP, 2, None, "Ip6InReceives"), Some(32));
    assert_eq!(new.cell(&NETSTAT, 2, None, "TcpExt.TCPDelivered"), Some(183));
    assert_eq!(new.cell(&TCPEXT_FIELDS, 2, Some("TCPFutureThing"), "value"), Some(77));
    assert_eq!(new.cell(&DEV, 2, Some("eth0"), "tx.bytes"), Some(393_930));
    assert_eq!(new.cell(&SOCKSTAT, 2, None, "TCP.tw"), Some(1));
}

#[test]
fn a_namespace_that_is_another_by_now_leaves_no_rows() {
    let mut rig = Rig::fixture("healthy");
    let targets = [process(1, 1, HOST), process(2, 100, NGINX + 1), process(3, 999, COREDNS)];
    let report = rig.read(&targets);
    assert_eq!((report.done, report.vanished, report.failed), (1, 2, 0), "{report:?}");
    assert!(rig.out.iter().all(|table| (0..table.len()).all(|row| table.subject(row) == Subject(1))));
}

#[test]
fn a_malformed_file_costs_only_what_it_holds() {
    let (dir, mut rig) = copy_of("healthy");
    std::fs::write(dir.0.join("100/net/netstat"), "TcpExt: TW ListenDrops\nTcpExt: 5 x\n").unwrap();
    let report = rig.read(&[process(2, 100, NGINX)]);
    assert_eq!((report.done, report.failed), (0, 1));
    assert_eq!(report.error.unwrap().to_string(), "parse net/netstat: line 2: a value that is not a number");
    assert_eq!(rig.cell(&NETSTAT, 2, None, "TcpExt.TW"), None);
    assert_eq!(rig.cell(&SNMP, 2, None, "Tcp.ActiveOpens"), Some(18));
    assert_eq!(rig.cell(&DEV, 2, Some("eth0"), "rx.bytes"), Some(6667));
    std::fs::remove_file(dir.0.join("100/net/netstat")).unwrap();
    let report = rig.read(&[process(2, 100, NGINX)]);
    assert_eq!(report.error.unwrap().to_string(), "this kernel has no /proc/<pid>/net/netstat");
}

#[test]
fn what_nobody_wants_is_not_read() {
    let (dir, mut rig) = copy_of("healthy");
    for file in ["netstat", "dev", "sockstat", "snmp6"] {
        std::fs::write(dir.0.join("100/net").join(file), "nonsense").unwrap();
    }
    rig.columns.iter_mut().for_each(|set| *set = ColumnSet::default());
    assert_eq!(rig.read(&[process(2, 100, NGINX)]).done, 0);
    rig.columns[0].insert(crate::declare::column(&SNMP, "Tcp.ActiveOpens"));
    let report = rig.read(&[process(2, 100, NGINX)]);
    assert_eq!((report.done, report.failed, rig.rows()), (1, 0, 1), "{report:?}");
    assert_eq!(rig.cell(&SNMP, 2, None, "Tcp.ActiveOpens"), Some(18));
    assert_eq!(rig.cell(&SNMP, 2, None, "Tcp.InSegs"), None);
}

#[test]
fn after_the_deadline_nothing_is_read() {
    let mut rig = Rig::fixture("healthy");
    let targets = [process(1, 1, HOST), process(2, 100, NGINX)];
    let report = rig.read_within(&targets, Duration::ZERO);
    assert_eq!((report.late, report.done, rig.rows()), (2, 0, 0));
    assert!(rig.beacon.look().is_none());
}

#[test]
fn a_full_table_never_fills_the_row_of_another() {
    let mut rig = Rig::fixture("healthy");
    rig.out = TABLES.map(|decl| Table::new(decl, 1)).into();
    rig.read(&[process(1, 1, HOST), process(2, 100, NGINX)]);
    assert_eq!(rig.cell(&SNMP, 1, None, "Tcp.ActiveOpens"), Some(63));
    assert_eq!((rig.out[0].len(), rig.out[0].over_budget()), (1, 1));
    // Four interfaces do not fit, and three of them would make a wrong sum.
    assert!(rig.out[3].is_empty() && rig.out[3].over_budget() > 0);
}

#[test]
fn interfaces_that_vanish_are_carried_on() {
    let (dir, mut rig) = copy_of("healthy");
    let target = [process(2, 100, NGINX)];
    let path = dir.0.join("100/net/dev");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(rig.read(&target).done, 1);
    let without: String =
        text.lines().filter(|line| !line.contains("eth0")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, without).unwrap();
    rig.read(&target);
    assert_eq!(rig.cell(&DEV, 2, Some(""), "tx.bytes"), Some(393_930));
    assert_eq!(rig.cell(&DEV_SHOWN, 2, Some("eth0"), "tx.bytes"), None);
    rig.source.forget(Subject(2));
    rig.read(&target);
    assert_eq!(rig.cell(&DEV, 2, Some(""), "tx.bytes"), None);
}

#[test]
fn a_file_that_cannot_be_read_is_not_a_namespace_without_interfaces() {
    let (dir, mut rig) = copy_of("healthy");
    let target = [process(2, 100, NGINX)];
    let path = dir.0.join("100/net/dev");
    let text = std::fs::read_to_string(&path).unwrap();
    rig.read(&target);
    for _ in 0..3 {
        std::fs::write(&path, "nonsense").unwrap();
        assert_eq!((rig.read(&target).failed, rig.out[3].len()), (1, 0));
    }
    std::fs::write(&path, text).unwrap();
    rig.read(&target);
    assert_eq!(rig.cell(&DEV, 2, Some("eth0"), "tx.bytes"), Some(393_930));
    assert_eq!(rig.cell(&DEV, 2, Some(""), "tx.bytes"), None);
}

#[test]
fn options_choose_the_interfaces_that_are_shown() {
    let mut rig = Rig::fixture("healthy");
    let words = vec!["eth*".to_owned()];
    rig.source.configure("netdev", &[("interfaces", OptionValue::List(words))].into());
    rig.read(&[process(1, 1, HOST)]);
    assert_eq!(rig.out[4].len(), 2);
    assert_eq!(rig.cell(&DEV_SHOWN, 1, Some("other"), "rx.bytes"), Some(0));
}

#[test]
fn a_pass_in_the_steady_state_allocates_nothing() {
    let mut rig = Rig::fixture("healthy");
    let targets = [process(1, 1, HOST), process(2, 100, NGINX), process(3, 200, COREDNS)];
    rig.read(&targets);
    rig.read(&targets);
    let before = crate::counting::allocations();
    let report = rig.read(&targets);
    assert_eq!((crate::counting::allocations() - before, report.done), (0, 3));
}

/// Not a test of right or wrong: prints what a pass costs. `NETSKOOP_PODS` is the list that `mkns.sh` writes.
#[test]
#[ignore = "measures; run it in release with NETSKOOP_PODS set"]
#[allow(clippy::print_stdout, clippy::disallowed_macros, reason = "it is there to print")]
fn measure() {
    let Ok(list) = std::env::var("NETSKOOP_PODS") else { return };
    let targets: Vec<Target> = std::fs::read_to_string(list)
        .unwrap()
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let pid: i32 = line.split(' ').nth(1)?.parse().ok()?;
            let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
            let inode = link.to_str()?.trim_start_matches("net:[").trim_end_matches(']').parse().ok()?;
            Some(process(index as u32 + 1, pid, inode))
        })
        .collect();
    let mut rig = Rig::new(Path::new("/proc"));
    rig.columns[2] = ColumnSet::default();
    rig.columns[4] = ColumnSet::default();
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    for (what, tables) in
        [("snmp+snmp6+netstat+dev+sockstat*", [1, 1, 0, 1, 0, 1]), ("netstat", [0, 1, 0, 0, 0, 0])]
    {
        let all = rig.columns.clone();
        for (set, on) in rig.columns.iter_mut().zip(tables) {
            if on == 0 {
                *set = ColumnSet::default();
            }
        }
        let mut times: Vec<f64> = (0..30)
            .map(|_| {
                let start = cpu();
                let report = rig.read(&targets);
                assert_eq!(report.done as usize, targets.len(), "{report:?}");
                (cpu() - start) / targets.len() as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{what}: {} namespaces, {:.1} us CPU each (median; least {:.1})",
            targets.len(),
            times[15],
            times[0]
        );
        rig.columns = all;
    }
}

/// These make namespaces and need root.
mod root;
