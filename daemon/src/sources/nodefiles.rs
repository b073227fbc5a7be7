//! Source `node`: what procfs says about the node as a whole, read once per pass. `net/softnet_stat` is the same in every
//! namespace, and so are some fields of `net/sockstat`.

use super::columns::{Finder, SOCKSTAT_NODE, SOFTNET};
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{ColumnSet, TableDecl};
use crate::kernel::procfs::softnet_stat::{COUNTERS, Values};
use crate::kernel::procfs::{Malformed, Shape, read_whole, sockstat, softnet_stat};
use crate::table::{Subject, Table};
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

    fn sockstat(&self, bytes: &[u8], wanted: &ColumnSet, table: &mut Table) -> Result<(), Malformed> {
        let Some(cells) = table.row(Subject::NODE, &[]) else { return Ok(()) };
        let mut finder = Finder::new(&SOCKSTAT_NODE, 0..PAGES[0].1);
        let parsed = sockstat::parse(
            bytes,
            |protocol, name| finder.find(protocol, name),
            |column, value| {
                let column = usize::from(column);
                let in_bytes = PAGES.iter().find(|(pages, _)| *pages == column);
                let (bytes, sum) = (in_bytes.map(|(_, bytes)| *bytes), value.saturating_mul(self.page));
                for (column, value) in [(Some(column), value), (bytes, sum)] {
                    if let Some(column) = column.filter(|column| wanted.contains(*column as u16)) {
                        cells[column] = value;
                    }
                }
            },
        );
        parsed.inspect_err(|_| table.clear())
    }
}

/// Columns that count pages, and those that say the same in bytes.
const PAGES: [(usize, usize); 2] = [pages("TCP.mem", "TCP.mem_bytes"), pages("UDP.mem", "UDP.mem_bytes")];

const fn pages(pages: &str, bytes: &str) -> (usize, usize) {
    (
        crate::declare::column(&SOCKSTAT_NODE, pages) as usize,
        crate::declare::column(&SOCKSTAT_NODE, bytes) as usize,
    )
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
                self.sockstat(bytes, sockstat_wanted, sockstat).map_err(|bad| parse("net/sockstat", bad))
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
