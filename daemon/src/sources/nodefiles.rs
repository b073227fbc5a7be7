//! Source `node`: what procfs says about the node as a whole, read once per pass. `net/softnet_stat` is the same in every
//! namespace, and so are some fields of `net/sockstat`.

use super::columns::{Finder, SOCKSTAT_NODE, SOFTNET};
use super::{ReadError, Report, Scratch, Source, Want, sysctl};
use crate::declare::{ColumnSet, TableDecl};
use crate::kernel::procfs::softnet_stat::{COUNTERS, Values};
use crate::kernel::procfs::{Malformed, Shape, read_whole, sockstat, softnet_stat};
use crate::table::{ABSENT, Subject, Table};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

static TABLES: [&TableDecl; 2] = [&SOFTNET, &SOCKSTAT_NODE];

/// CPUs remembered at most.
const MAX_CPUS: usize = 8192;

/// The node-wide files of one procfs.
pub struct NodeFiles {
    softnet: Places,
    sockstat: Places,
    /// The settings `tcp_mem`, `udp_mem`, `tcp_max_orphans`.
    settings: [PathBuf; 3],
    cpus: Mutex<Cpus>,
    page: u64,
}

/// Where a file may be. `net` is a link to `self/net`, which does not exist where our own process is not in that procfs.
struct Places([PathBuf; 2]);

impl Places {
    fn new(proc: &Path, name: &str) -> Places {
        Places([proc.join("1/net").join(name), proc.join("net").join(name)])
    }
}

impl NodeFiles {
    /// The files under `proc`.
    pub fn new(proc: &Path) -> NodeFiles {
        NodeFiles {
            softnet: Places::new(proc, "softnet_stat"),
            sockstat: Places::new(proc, "sockstat"),
            settings: ["tcp_mem", "udp_mem", "tcp_max_orphans"]
                .map(|name| proc.join("sys/net/ipv4").join(name)),
            cpus: Mutex::new(Cpus::default()),
            page: rustix::param::page_size() as u64,
        }
    }

    fn softnet(
        &self,
        bytes: &[u8],
        ticket: u64,
        wanted: &ColumnSet,
        table: &mut Table,
    ) -> Result<(), Malformed> {
        // Once for the check alone: a file that turns out to be malformed must not have moved any counter.
        softnet_stat::parse(bytes, |_, _| {})?;
        let mut cpus = self.cpus.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket < cpus.seen {
            return Ok(());
        }
        cpus.seen = ticket;
        softnet_stat::parse(bytes, |cpu, values| {
            let totals = cpus.widen(cpu, values);
            let mut digits = itoa::Buffer::new();
            let Some(cells) = table.row(Subject::NODE, &[digits.format(cpu).as_bytes()]) else { return };
            for (column, value) in (0_u16..).zip(totals) {
                if let Some(value) = value.filter(|_| wanted.contains(column)) {
                    cells[usize::from(column)] = value;
                }
            }
        })
    }

    fn sockstat(&self, bytes: &mut Vec<u8>, limits: bool, table: &mut Table) -> Result<(), Malformed> {
        let mut cells = [ABSENT; SOCKSTAT_NODE.columns.len()];
        let mut finder = Finder::new(&SOCKSTAT_NODE, 0..TCP.bytes);
        sockstat::parse(
            bytes,
            |protocol, name| finder.find(protocol, name),
            |column, value| cells[usize::from(column)] = value,
        )?;
        for Memory { pages, bytes, .. } in [TCP, UDP] {
            cells[bytes] = self.in_bytes(cells[pages]);
        }
        if limits {
            self.limits(bytes, &mut cells);
        }
        if let Some(row) = table.row(Subject::NODE, &[]) {
            row.copy_from_slice(&cells);
        }
        Ok(())
    }

    fn in_bytes(&self, pages: u64) -> u64 {
        if pages == ABSENT { ABSENT } else { pages.saturating_mul(self.page) }
    }

    /// Adds the limits, and how much of them is used. They are settings of the first network namespace: where that is
    /// not the daemon's own they are not to be seen, and left out.
    fn limits(&self, bytes: &mut Vec<u8>, cells: &mut [u64]) {
        let [tcp, udp, orphans] = &self.settings;
        for (memory, setting) in [(TCP, tcp), (UDP, udp)] {
            if let Some(pages) = sysctl::read::<3>(setting, bytes) {
                let limits = pages.map(|pages| self.in_bytes(pages));
                cells[memory.limits..][..3].copy_from_slice(&limits);
                cells[memory.used] = millionths(cells[memory.bytes], limits[2]);
            }
        }
        if let Some([most]) = sysctl::read(orphans, bytes) {
            cells[MAX_ORPHANS] = most;
            cells[ORPHANS_USED] = millionths(cells[ORPHANS], most);
        }
    }
}

/// What is used of a limit, in millionths.
fn millionths(used: u64, limit: u64) -> u64 {
    if used == ABSENT || limit == 0 { ABSENT } else { used.saturating_mul(1_000_000) / limit }
}

/// The columns for the memory of a protocol.
#[derive(Clone, Copy)]
struct Memory {
    /// Used, in pages and in bytes.
    pages: usize,
    bytes: usize,
    /// The first of the columns of its three limits, and what is used of the last.
    limits: usize,
    used: usize,
}

const TCP: Memory = Memory {
    pages: at("TCP.mem"),
    bytes: at("TCP.mem_bytes"),
    limits: at("tcp_mem.min"),
    used: at("tcp_mem.used_ppm"),
};
const UDP: Memory = Memory {
    pages: at("UDP.mem"),
    bytes: at("UDP.mem_bytes"),
    limits: at("udp_mem.min"),
    used: at("udp_mem.used_ppm"),
};
const ORPHANS: usize = at("TCP.orphan");
const MAX_ORPHANS: usize = at("tcp_max_orphans");
const ORPHANS_USED: usize = at("tcp_max_orphans.used_ppm");

/// Columns for which the settings are read.
const LIMITS: std::ops::Range<usize> = at("tcp_mem.min")..SOCKSTAT_NODE.columns.len();

const fn at(key: &str) -> usize {
    crate::declare::column(&SOCKSTAT_NODE, key) as usize
}

fn any(columns: &ColumnSet, range: std::ops::Range<usize>) -> bool {
    range.into_iter().any(|column| columns.contains(column as u16))
}

impl Source for NodeFiles {
    fn name(&self) -> &'static str {
        "node"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        let ([softnet, sockstat], [softnet_wanted, sockstat_wanted]) = (out, want.columns) else {
            debug_assert!(false, "tables of another source");
            return report;
        };
        if Instant::now() >= want.deadline {
            report.late += 1;
            return report;
        }
        let bytes = &mut scratch.bytes;
        if !softnet_wanted.is_empty() {
            let ticket = self.cpus.lock().unwrap_or_else(PoisonError::into_inner).draw();
            want.beacon.enter(Subject::NODE, "net/softnet_stat");
            let read = read(&self.softnet, "net/softnet_stat", Shape::Records, bytes).and_then(|()| {
                self.softnet(bytes, ticket, softnet_wanted, softnet)
                    .map_err(|bad| parse("net/softnet_stat", bad))
            });
            read.unwrap_or_else(|error| report.fail(error));
        }
        if !sockstat_wanted.is_empty() {
            want.beacon.enter(Subject::NODE, "net/sockstat");
            let read = read(&self.sockstat, "net/sockstat", Shape::OnePiece, bytes).and_then(|()| {
                self.sockstat(bytes, any(sockstat_wanted, LIMITS), sockstat)
                    .map_err(|bad| parse("net/sockstat", bad))
            });
            read.unwrap_or_else(|error| report.fail(error));
        }
        want.beacon.leave();
        report.done = u32::from(report.failed == 0);
        report
    }
}

fn parse(what: &str, malformed: Malformed) -> ReadError {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, malformed);
    ReadError::Failed { doing: "parse", what: what.to_owned(), source }
}

fn read(places: &Places, name: &str, shape: Shape, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
    for place in &places.0 {
        let open = rustix::fs::open(place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        match open.and_then(|file| read_whole(file, shape, bytes)) {
            Err(Errno::NOENT) => {}
            Err(error) => {
                let what = place.display().to_string();
                return Err(ReadError::Failed { doing: "read", what, source: error.into() });
            }
            Ok(()) => return Ok(()),
        }
    }
    Err(ReadError::NotHere(format!("this kernel has no /proc/{name}")))
}

/// The 32-bit counters of the CPUs, made 64 bits wide: a counter that wraps between two passes goes on. One that wraps
/// twice in between cannot be told from one that wraps once.
#[derive(Debug, Default)]
struct Cpus {
    known: Vec<Cpu>,
    ticket: u64,
    seen: u64,
}

#[derive(Clone, Debug)]
struct Cpu {
    number: u32,
    last: [u32; COUNTERS],
    total: [u64; COUNTERS],
}

impl Cpus {
    /// A number to draw before reading: a reading that was overtaken would look like a wrap.
    fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// The values of a CPU, its counters widened.
    fn widen(&mut self, number: u32, values: &Values) -> [Option<u64>; softnet_stat::FIELDS.len()] {
        let mut wide = values.map(|value| value.map(u64::from));
        let found = self.known.iter().position(|cpu| cpu.number == number);
        let at = match found {
            Some(at) => at,
            None if self.known.len() < MAX_CPUS => {
                self.known.push(Cpu { number, last: [0; COUNTERS], total: [0; COUNTERS] });
                self.known.len() - 1
            }
            None => return wide,
        };
        let cpu = &mut self.known[at];
        for (field, wide) in wide.iter_mut().enumerate().take(COUNTERS) {
            let Some(value) = values[field] else { continue };
            cpu.total[field] += u64::from(value.wrapping_sub(cpu.last[field]));
            cpu.last[field] = value;
            *wide = Some(cpu.total[field]);
        }
        wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::column;
    use crate::sources::Beacon;
    use std::time::Duration;

    fn fixture(name: &str) -> NodeFiles {
        NodeFiles::new(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).join("proc"),
        )
    }

    fn run(source: &NodeFiles, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let columns = TABLES.map(|decl| {
            let mut set = ColumnSet::default();
            (0..decl.columns.len()).for_each(|column| set.insert(column as u16));
            set
        });
        out.iter_mut().for_each(Table::clear);
        let deadline = Instant::now() + Duration::from_secs(30);
        let want = Want { targets: &[], columns: &columns, deadline, beacon: &Beacon::default() };
        source.read(&want, scratch, out)
    }

    fn tables() -> [Table; 2] {
        TABLES.map(|decl| Table::new(decl, 100))
    }

    #[test]
    fn the_node_has_a_row_per_cpu_and_one_of_sockets() {
        let (source, mut out, mut scratch) = (fixture("healthy"), tables(), Scratch::default());
        for _ in 0..2 {
            assert_eq!(run(&source, &mut scratch, &mut out).done, 1);
            let [softnet, sockstat] = &out;
            assert_eq!((softnet.len(), softnet.key(1, 0)), (2, &b"1"[..]));
            assert_eq!(softnet.cell(0, column(&SOFTNET, "processed")), Some(0x3_bb3d));
            assert_eq!(softnet.cell(1, column(&SOFTNET, "process_qlen")), Some(0));
            assert_eq!(softnet.subject(0), Subject::NODE);
            assert_eq!(sockstat.cell(0, column(&SOCKSTAT_NODE, "TCP.alloc")), Some(3));
            let pages = sockstat.cell(0, column(&SOCKSTAT_NODE, "TCP.mem"));
            let bytes = sockstat.cell(0, column(&SOCKSTAT_NODE, "TCP.mem_bytes"));
            assert_eq!((pages, bytes), (Some(343), Some(343 * source.page)));
            let limit = sockstat.cell(0, column(&SOCKSTAT_NODE, "tcp_mem.max"));
            let used = sockstat.cell(0, column(&SOCKSTAT_NODE, "tcp_mem.used_ppm"));
            assert_eq!((limit, used), (Some(575_796 * source.page), Some(343 * 1_000_000 / 575_796)));
            assert_eq!(sockstat.cell(0, column(&SOCKSTAT_NODE, "tcp_max_orphans")), Some(131_072));
        }
        let before = crate::counting::allocations();
        run(&source, &mut scratch, &mut out);
        assert_eq!(crate::counting::allocations() - before, 0);
    }

    #[test]
    fn kernels_differ_in_columns() {
        for (name, qlen) in [("old_kernel", None), ("extra_columns", Some(0))] {
            let mut out = tables();
            assert_eq!(run(&fixture(name), &mut Scratch::default(), &mut out).done, 1, "{name}");
            assert_eq!(out[0].cell(0, column(&SOFTNET, "processed")), Some(0x3_bb3d));
            assert_eq!(out[0].cell(0, column(&SOFTNET, "backlog_len")), qlen, "{name}");
            assert_eq!(out[0].key(1, 0), b"1");
            let used = out[1].cell(0, column(&SOCKSTAT_NODE, "tcp_max_orphans.used_ppm"));
            assert_eq!(used.is_some(), name == "extra_columns", "{name}: settings of another namespace");
        }
    }

    #[test]
    fn a_procfs_without_process_1_is_read_through_its_link() {
        let directory = std::env::temp_dir().join(format!("netskoop-node-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("net")).unwrap();
        let mut out = tables();
        std::fs::write(directory.join("net/softnet_stat"), "00000001 00000002 00000003\n").unwrap();
        let report = run(&NodeFiles::new(&directory), &mut Scratch::default(), &mut out);
        assert_eq!(out[0].cell(0, column(&SOFTNET, "time_squeeze")), Some(3));
        assert_eq!(report.error.unwrap().to_string(), "this kernel has no /proc/net/sockstat");
        std::fs::write(directory.join("net/softnet_stat"), "00000001 00000002\n").unwrap();
        let report = run(&NodeFiles::new(&directory), &mut Scratch::default(), &mut out);
        let text = report.error.unwrap().to_string();
        assert_eq!(text, "parse net/softnet_stat: line 1: fewer columns than any kernel writes");
        assert!(out[0].is_empty());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_reading_that_was_overtaken_is_ignored() {
        let (source, mut table) = (fixture("healthy"), Table::new(&SOFTNET, 9));
        let mut wanted = ColumnSet::default();
        wanted.insert(0);
        let early = source.cpus.lock().unwrap().draw();
        let late = source.cpus.lock().unwrap().draw();
        source.softnet(b"00000009 00000000 00000000\n", late, &wanted, &mut table).unwrap();
        source.softnet(b"00000008 00000000 00000000\n", early, &wanted, &mut table).unwrap();
        assert_eq!((table.len(), table.cell(0, 0)), (1, Some(9)));
    }

    #[test]
    fn a_counter_that_wraps_goes_on() {
        let mut cpus = Cpus::default();
        let mut values = Values::default();
        let mut step = |value| {
            values[0] = Some(value);
            cpus.widen(3, &values)[0]
        };
        assert_eq!(step(u32::MAX - 1), Some(u64::from(u32::MAX) - 1));
        assert_eq!(step(4), Some(u64::from(u32::MAX) + 5));
        assert_eq!(step(4), Some(u64::from(u32::MAX) + 5));
    }
}
