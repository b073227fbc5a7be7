//! Source `slab`: the kernel's caches of sockets. A source of its own, because the file takes the kernel a millisecond.

use super::columns::SLAB;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::TableDecl;
use crate::kernel::procfs::{Shape, read_whole, slabinfo};
use crate::table::{Subject, Table};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

static TABLES: [&TableDecl; 1] = [&SLAB];

/// The caches that are shown: sockets, requests for connections, sockets in TIME_WAIT, and what hangs on sockets.
const CACHES: [&str; 17] = [
    "TCP",
    "TCPv6",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "UDP",
    "UDPv6",
    "RAW",
    "RAWv6",
    "PING",
    "MPTCP",
    "MPTCPv6",
    "UNIX",
    "sock_inode_cache",
    "skbuff_head_cache",
    "nf_conntrack",
];

/// The caches of one procfs.
pub struct Slab {
    path: PathBuf,
    page: u64,
}

impl Slab {
    /// The file under `proc`.
    pub fn new(proc: &Path) -> Slab {
        Slab { path: proc.join("slabinfo"), page: rustix::param::page_size() as u64 }
    }

    fn fill(&self, bytes: &[u8], want: &Want<'_>, table: &mut Table) -> Result<(), ReadError> {
        let wanted = &want.columns[0];
        let parsed = slabinfo::parse(bytes, |name, values| {
            if !CACHES.iter().any(|cache| cache.as_bytes() == name) {
                return;
            }
            let Some(cells) = table.row(Subject::NODE, &[name]) else { return };
            let [.., pages] = *values;
            let values = values.iter().copied().chain([pages.saturating_mul(self.page)]);
            for (column, value) in (0_u16..).zip(values).filter(|(column, _)| wanted.contains(*column)) {
                cells[usize::from(column)] = value;
            }
        });
        parsed.map_err(|malformed| {
            table.clear();
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, malformed);
            ReadError::Failed { doing: "parse", what: "slabinfo".into(), source }
        })
    }
}

impl Source for Slab {
    fn name(&self) -> &'static str {
        "slab"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        want.beacon.enter(Subject::NODE, "slabinfo");
        let open = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let read = open.and_then(|file| read_whole(file, Shape::Records, &mut scratch.bytes));
        want.beacon.leave();
        match read {
            Err(Errno::NOENT) => report.not_here = Some("this kernel has no /proc/slabinfo".into()),
            Err(Errno::ACCESS | Errno::PERM) => {
                report.not_here = Some("/proc/slabinfo can be read by root only".into());
            }
            Err(error) => {
                let what = self.path.display().to_string();
                report.fail(ReadError::Failed { doing: "read", what, source: error.into() });
            }
            Ok(()) => match self.fill(&scratch.bytes, want, &mut out[0]) {
                Err(error) => report.fail(error),
                Ok(()) if out[0].is_empty() => {
                    let sentence =
                        "the kernel keeps sockets in caches merged with others, so that they are not counted";
                    report.not_here = Some(sentence.into());
                }
                Ok(()) => report.done = 1,
            },
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::{ColumnSet, column};
    use crate::sources::Beacon;
    use std::time::{Duration, Instant};

    fn run(slab: &Slab, table: &mut Table) -> Report {
        let mut columns = [ColumnSet::default()];
        (0..SLAB.columns.len()).for_each(|column| columns[0].insert(column as u16));
        let deadline = Instant::now() + Duration::from_secs(30);
        let want = Want { targets: &[], columns: &columns, deadline, beacon: &Beacon::default() };
        table.clear();
        slab.read(&want, &mut Scratch::default(), std::slice::from_mut(table))
    }

    #[test]
    fn the_caches_of_sockets_are_shown_and_others_not() {
        let directory = std::env::temp_dir().join(format!("netskoop-slab-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (slab, mut table) = (Slab::new(&directory), Table::new(&SLAB, 100));
        let report = run(&slab, &mut table);
        assert_eq!(report.not_here.unwrap(), "this kernel has no /proc/slabinfo");

        let write = |rows: &str| {
            std::fs::write(&slab.path, format!("slabinfo - version: 2.1\n# name <active_objs>\n{rows}"))
                .unwrap();
        };
        write("dentry 1 2 3 4 5 : tunables 0\nTCP 40 104 2368 13 8 : tunables 0\n");
        assert_eq!(run(&slab, &mut table).done, 1);
        assert_eq!((table.len(), table.key(0, 0)), (1, &b"TCP"[..]));
        assert_eq!(table.cell(0, column(&SLAB, "num_objs")), Some(104));
        assert_eq!(table.cell(0, column(&SLAB, "bytesperslab")), Some(8 * slab.page));

        write("dentry 1 2 3 4 5 : tunables 0\n");
        assert!(run(&slab, &mut table).not_here.unwrap().contains("merged"));
        write("TCP 40 104 2368 13 8\nTCP 1\n");
        let error = run(&slab, &mut table).error.unwrap().to_string();
        assert_eq!(error, "parse slabinfo: line 4: a column is missing or not a number");
        assert!(table.is_empty());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
