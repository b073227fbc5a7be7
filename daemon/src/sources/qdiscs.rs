//! Source `qdiscs`: the queueing disciplines of each namespace, over rtnetlink(7).

use super::each::{Visit, each};
use super::enter::failed;
use super::kept::Kept;
use super::lock;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{Column, ColumnSet, Kind, TableDecl, counter, matches_pattern};
use crate::hooks::Options;
use crate::kernel::netlink::Family;
use crate::kernel::netlink::message::Message;
use crate::kernel::netlink::qdisc::{ALL, COUNTERS, GET, NARROW, Qdisc};
use crate::table::{Subject, Table};
use netskoop_api::OptionValue;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const COLUMNS: &[Column] = &[
    counter(COUNTERS[0]),
    counter(COUNTERS[1]),
    counter(COUNTERS[2]),
    counter(COUNTERS[3]),
    counter(COUNTERS[4]),
    Column { key: "qlen", kind: Kind::Gauge },
    Column { key: "backlog", kind: Kind::Gauge },
];

/// A row per root; and one with an empty device that has what vanished ones had counted, so that the sum of a namespace does
/// not fall.
pub static QDISC: TableDecl =
    TableDecl { name: "qdisc", keys: &["device", "qdisc"], columns: COLUMNS, node: false };

/// A row per queueing discipline that hangs on a class of another one.
pub static QDISC_CHILD: TableDecl =
    TableDecl { name: "qdisc_child", keys: &["device", "qdisc", "parent"], columns: COLUMNS, node: false };

static TABLES: [&TableDecl; 2] = [&QDISC, &QDISC_CHILD];

/// Queueing disciplines of one namespace at most; 200 bytes each.
const MAX_SHOWN: usize = 1024;
/// All namespaces together, remembered at most.
const MAX_KEPT: usize = 16 * 1024;

/// What makes a queueing discipline the same one as before.
type Key = (u32, u32, Option<u32>);

/// Asks for queueing disciplines.
pub struct Qdiscs {
    proc: PathBuf,
    roots: Mutex<Kept<Key, { COUNTERS.len() }>>,
    /// Apart, because what a child has counted its root has counted, too.
    children: Mutex<Kept<Key, { COUNTERS.len() }>>,
    patterns: Mutex<Vec<String>>,
    /// Memory of lanes, for the next job.
    spare: Mutex<Vec<Vec<Qdisc>>>,
}

impl Qdiscs {
    /// The source; namespaces are entered through the processes of this procfs.
    pub fn new(proc: &Path) -> Qdiscs {
        Qdiscs {
            proc: proc.to_owned(),
            roots: Mutex::new(Kept::new(NARROW, MAX_KEPT)),
            children: Mutex::new(Kept::new(NARROW, MAX_KEPT)),
            patterns: Mutex::new(vec!["*".to_owned()]),
            spare: Mutex::default(),
        }
    }

    fn subject(
        &self,
        mut visit: Visit<'_>,
        patterns: &[String],
        columns: &[ColumnSet],
        found: &mut Vec<Qdisc>,
        out: &mut [Table],
    ) -> Result<u32, ReadError> {
        let tickets = (lock(&self.roots).draw(), lock(&self.children).draw());
        let too_many = list(&mut visit, found, !columns[1].is_empty())?;
        let subject = visit.target.subject;
        found.sort_unstable_by_key(|qdisc| (qdisc.parent.is_some(), qdisc.interface));
        let middle = found.partition_point(|qdisc| qdisc.parent.is_none());
        let (roots, children) = found.split_at_mut(middle);
        let outcome = lock(&self.roots).take(subject, tickets.0, roots, counters);
        let below = lock(&self.children).take(subject, tickets.1, children, counters);
        let (Some(outcome), Some(below)) = (outcome, below) else { return Err(ReadError::Vanished) };
        let mut device = None;
        for qdisc in &*found {
            let (table, wanted) = if qdisc.parent.is_none() { (0, columns[0]) } else { (1, columns[1]) };
            if wanted.is_empty() {
                continue;
            }
            if device.as_ref().is_none_or(|(interface, _)| *interface != qdisc.interface) {
                device = visit.netlink.interface_name(qdisc.interface).map(|name| (qdisc.interface, name));
            }
            // An interface that has gone since is shown no more.
            let Some((_, name)) = &device else { continue };
            let name = name.as_bytes();
            if patterns.iter().any(|pattern| matches_pattern(pattern.as_bytes(), name)) {
                row(&mut out[table], subject, name, qdisc);
            }
        }
        if let (Some(retired), false) = (outcome.retired, columns[0].is_empty())
            && let Some(cells) = out[0].row(subject, &[b"", b""])
        {
            cells[..COUNTERS.len()].copy_from_slice(&retired);
        }
        Ok(outcome.forgotten + below.forgotten + too_many)
    }
}

fn counters(qdisc: &mut Qdisc) -> (Key, &mut [u64; COUNTERS.len()]) {
    ((qdisc.interface, qdisc.handle, qdisc.parent), &mut qdisc.counters)
}

/// Lists the roots of a namespace, and what hangs on them if that is shown; how many found no room.
fn list(visit: &mut Visit<'_>, found: &mut Vec<Qdisc>, children: bool) -> Result<u32, ReadError> {
    let found = std::cell::RefCell::new(found);
    let start = || {
        found.borrow_mut().clear();
        0
    };
    let each = |over: &mut u32, message: Message<'_>| {
        let qdisc = Qdisc::parse(&message).filter(|qdisc| children || qdisc.parent.is_none());
        let Some(qdisc) = qdisc else { return };
        let mut found = found.borrow_mut();
        if found.len() < MAX_SHOWN {
            found.push(qdisc);
        } else {
            *over += 1;
        }
    };
    let listed = visit.netlink.dump(GET, &ALL, visit.bytes, start, each);
    listed.map_err(|error| failed("list", "queueing disciplines".to_owned(), error))
}

fn row(table: &mut Table, subject: Subject, device: &[u8], qdisc: &Qdisc) {
    let mut text = [0; 16];
    let cells = match qdisc.parent {
        None => table.row(subject, &[device, qdisc.kind()]),
        Some(parent) => table.row(subject, &[device, qdisc.kind(), class(parent, &mut text)]),
    };
    let Some(cells) = cells else { return };
    cells[..COUNTERS.len()].copy_from_slice(&qdisc.counters);
    cells[COUNTERS.len()] = qdisc.length;
    cells[COUNTERS.len() + 1] = qdisc.backlog;
}

/// A class as `tc` writes it: `1:20`, hexadecimal.
fn class(class: u32, text: &mut [u8; 16]) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut text[..];
    // Nine digits and a colon fit.
    let _ = write!(rest, "{:x}:{:x}", class >> 16, class & 0xffff);
    let left = rest.len();
    &text[..16 - left]
}

impl Source for Qdiscs {
    fn name(&self) -> &'static str {
        "qdiscs"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let patterns = lock(&self.patterns).clone();
        let mut found = lock(&self.spare).pop().unwrap_or_default();
        let mut forgotten = 0;
        let mut report = each(
            &self.proc,
            Family::Route,
            want,
            scratch,
            out,
            || Ok(()),
            |visit, (), out| {
                forgotten += self.subject(visit, &patterns, want.columns, &mut found, out)?;
                Ok(())
            },
        );
        report.over_budget += forgotten;
        let mut spare = lock(&self.spare);
        // There are two lanes.
        if spare.len() < 2 {
            spare.push(found);
        }
        report
    }

    fn forget(&self, subject: Subject) {
        lock(&self.roots).forget(subject);
        lock(&self.children).forget(subject);
    }

    fn configure(&self, probe: &str, options: &Options) {
        if probe == "qdisc"
            && let Some(OptionValue::List(patterns)) = options.get("interfaces")
        {
            lock(&self.patterns).clone_from(patterns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_written_as_tc_writes_them() {
        for (number, text) in [(0x1_0020, "1:20"), (0x8001_0000, "8001:0"), (u32::MAX, "ffff:ffff")] {
            assert_eq!(class(number, &mut [0; 16]), text.as_bytes());
        }
    }
}
