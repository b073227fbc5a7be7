//! Source `addresses`: the addresses configured in each namespace. It is read when entities are listed, not at scrapes.

use super::enter::{End, failed, visit};
use super::{Report, Scratch, Source, Want};
use crate::declare::{Column, Kind, TableDecl};
use crate::kernel::procfs::addresses::{local_v4, wide_v6};
use crate::kernel::procfs::{Shape, read_whole};
use crate::table::{Subject, Table};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags, openat};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One row per address.
pub static ADDRESSES: TableDecl = TableDecl {
    name: "addresses",
    keys: &["address"],
    columns: &[Column { key: "configured", kind: Kind::Gauge }],
    node: false,
};
static TABLES: [&TableDecl; 1] = [&ADDRESSES];

/// Addresses of one namespace that are shown at most.
const MAX_ADDRESSES: usize = 64;

/// Reads addresses from one procfs.
pub struct Addresses {
    proc: PathBuf,
}

impl Addresses {
    /// The source for a procfs, or a copy of some of it.
    pub fn new(proc: &Path) -> Addresses {
        Addresses { proc: proc.to_owned() }
    }
}

impl Source for Addresses {
    fn name(&self) -> &'static str {
        "addresses"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(&self.proc, directory, Mode::empty()) {
            Ok(root) => root,
            Err(error) => {
                report.fail(failed("open", self.proc.display().to_string(), error));
                return report;
            }
        };
        let home = scratch.home.clone();
        for (index, target) in want.targets.iter().enumerate() {
            if Instant::now() >= want.deadline {
                report.late += (want.targets.len() - index) as u32;
                break;
            }
            let mut found = Vec::new();
            let home = home.as_ref().map(AsFd::as_fd);
            let visited = visit(root.as_fd(), target, home, want.beacon, |directory| {
                found = addresses(directory, want, target.subject, &mut scratch.bytes);
            });
            match visited {
                Ok(()) => {
                    put(&mut out[0], target.subject, &found);
                    report.done += 1;
                }
                Err(End::Vanished) => report.vanished += 1,
                Err(End::Late) => report.late += 1,
                Err(End::Failed(error)) => report.fail(error),
                Err(End::Lost(error)) => {
                    report.fail(error);
                    scratch.lost = true;
                    break;
                }
            }
        }
        report
    }
}

fn addresses(
    directory: BorrowedFd<'_>,
    want: &Want<'_>,
    subject: Subject,
    bytes: &mut Vec<u8>,
) -> Vec<IpAddr> {
    let mut read = |path: &'static str| {
        want.beacon.enter(subject, path);
        let file = openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        // A kernel without IPv6, or a namespace that is going: no addresses then.
        let read = file.and_then(|file| read_whole(file, Shape::Records, bytes)).is_ok();
        if read { std::mem::take(bytes) } else { Vec::new() }
    };
    let v4 = local_v4(&read("net/fib_trie")).into_iter().map(IpAddr::from);
    v4.chain(wide_v6(&read("net/if_inet6")).into_iter().map(IpAddr::from)).take(MAX_ADDRESSES).collect()
}

fn put(table: &mut Table, subject: Subject, found: &[IpAddr]) {
    for address in found {
        if let Some(cells) = table.row(subject, &[address.to_string().as_bytes()]) {
            cells[0] = 1;
        }
    }
}
