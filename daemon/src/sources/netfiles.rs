//! Source `procfs`: the per-namespace files under `net/`, each read once per pass however many probes show it.
//!
//! A namespace is read through `/proc/<pid>` of a member, and its inode number is looked at again afterwards: the
//! process may have ended, its number may belong to another by now, or it may have moved. Where no process is left the
//! lane enters the namespace. Nothing is open when the next namespace's turn comes: an open file would keep the
//! namespace alive.

use super::columns::{
    DEV, DEV_SHOWN, Finder, ICMP_TYPES, IN_IPEXT, IN_SNMP, IN_SNMP6, IN_SOCKSTAT, IN_SOCKSTAT6, NETSTAT,
    SNMP, SOCKSTAT, TCPEXT_FIELDS,
};
use super::devices::{Devices, MAX_DEVICES, Name, Outcome, Reading};
use super::enter::{End, failed, visit};
use super::icmp_types::Types;
use super::lock;
use super::{ReadError, Report, Scratch, Source, Target, Want};
use crate::declare::{ColumnSet, TableDecl};
use crate::hooks::Options;
use crate::kernel::procfs::dev::Values;
use crate::kernel::procfs::{Malformed, Shape, dev, read_whole, snmp, snmp6, sockstat};
use crate::table::{ABSENT, Subject, Table};
use netskoop_api::OptionValue;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

static TABLES: [&TableDecl; 7] = [&SNMP, &NETSTAT, &TCPEXT_FIELDS, &DEV, &DEV_SHOWN, &SOCKSTAT, &ICMP_TYPES];

/// Memory of lanes that is kept for the next job; there are two lanes.
const MAX_SPARE: usize = 4;

/// The per-namespace files of one procfs.
pub struct NetFiles {
    proc: PathBuf,
    devices: Mutex<Devices>,
    spare: Mutex<Vec<Memory>>,
}

/// What a job remembers of earlier ones: the layouts of the files.
#[derive(Default)]
struct Memory {
    snmp: snmp::Layout,
    netstat: snmp::Layout,
    dev: dev::Layout,
    readings: Vec<Reading>,
    types: Types,
    /// Whether `readings` are those of the namespace at hand; after a failure they are not, and must not be taken for
    /// a namespace without interfaces.
    fresh: bool,
}

/// A file that is read.
#[derive(Clone, Copy)]
struct File {
    path: &'static CStr,
    name: &'static str,
    shape: Shape,
    /// Whether the kernel may have been built or booted without it.
    optional: bool,
}

const fn file(path: &'static CStr, name: &'static str) -> File {
    File { path, name, shape: Shape::OnePiece, optional: false }
}

const NET_SNMP: File = file(c"net/snmp", "net/snmp");
const NET_NETSTAT: File = file(c"net/netstat", "net/netstat");
const NET_SNMP6: File = File { optional: true, ..file(c"net/snmp6", "net/snmp6") };
const NET_DEV: File = File { shape: Shape::Records, ..file(c"net/dev", "net/dev") };
const NET_SOCKSTAT: File = file(c"net/sockstat", "net/sockstat");
const NET_SOCKSTAT6: File = File { optional: true, ..file(c"net/sockstat6", "net/sockstat6") };

/// Which columns of which table somebody shows.
struct Wanted<'a> {
    snmp: &'a ColumnSet,
    netstat: &'a ColumnSet,
    fields: bool,
    dev: &'a ColumnSet,
    shown: &'a ColumnSet,
    sockstat: &'a ColumnSet,
    types: &'a ColumnSet,
}

/// The rows of one namespace, where there was room and somebody shows one of their columns.
struct Rows<'a> {
    snmp: Option<&'a mut [u64]>,
    netstat: Option<&'a mut [u64]>,
    sockstat: Option<&'a mut [u64]>,
}

/// One pass over some namespaces.
struct Job<'a> {
    want: &'a Want<'a>,
    wanted: Wanted<'a>,
    memory: &'a mut Memory,
    bytes: &'a mut Vec<u8>,
    error: Option<ReadError>,
}

impl NetFiles {
    /// The files under `proc`, which is `/proc` or a copy of some of it.
    pub fn new(proc: &Path) -> NetFiles {
        NetFiles {
            proc: proc.to_owned(),
            devices: Mutex::new(Devices::new(MAX_DEVICES)),
            spare: Mutex::new(Vec::with_capacity(MAX_SPARE)),
        }
    }

    /// Reads one namespace into the tables; rows of what could not be read are taken back.
    fn subject(
        &self,
        job: &mut Job<'_>,
        root: BorrowedFd<'_>,
        target: &Target,
        home: Option<BorrowedFd<'_>>,
        out: &mut [Table; TABLES.len()],
    ) -> Result<u32, End> {
        let ticket = if job.wanted.devices() { lock(&self.devices).draw() } else { 0 };
        let beacon = job.want.beacon;
        let mut again = false;
        visit(root, target, home, beacon, |directory| {
            // What a process gave that ended meanwhile is not to be trusted.
            if std::mem::replace(&mut again, true) {
                job.error = None;
                retract(out, target.subject);
            }
            job.files(directory, target, out);
        })?;
        if !job.memory.fresh {
            return Ok(0);
        }
        self.take(job, ticket, target.subject, out)
    }

    /// Brings the interfaces that were read into the tables.
    fn take(
        &self,
        job: &mut Job<'_>,
        ticket: u64,
        subject: Subject,
        out: &mut [Table; TABLES.len()],
    ) -> Result<u32, End> {
        let [_, _, _, dev, shown, _, _] = out;
        let Job { wanted, memory, .. } = job;
        let split = !wanted.shown.is_empty();
        let put = |table: &mut Table, columns: &ColumnSet, name: &[u8], values: &Values| {
            if !columns.is_empty()
                && let Some(cells) = table.row(subject, &[name])
            {
                fill(cells, columns, values);
            }
        };
        let refused = (dev.over_budget(), shown.over_budget());
        let outcome = lock(&self.devices).take(subject, ticket, &memory.readings, split, |reading| {
            put(shown, wanted.shown, reading.name.as_bytes(), &reading.values);
        });
        let Outcome { retired, other, forgotten } = outcome.ok_or(End::Late)?;
        for reading in &memory.readings {
            put(dev, wanted.dev, reading.name.as_bytes(), &reading.values);
        }
        if let Some(retired) = retired {
            put(dev, wanted.dev, b"", &retired);
        }
        if let Some(other) = other {
            put(shown, wanted.shown, b"other", &other);
        }
        // A sum over some of the interfaces would be a wrong number.
        if dev.over_budget() > refused.0 {
            dev.retract(subject);
        }
        if shown.over_budget() > refused.1 {
            shown.retract(subject);
        }
        Ok(forgotten)
    }
}

impl Source for NetFiles {
    fn name(&self) -> &'static str {
        "procfs"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let (Ok(out), [snmp, netstat, fields, dev, shown, sockstat, types]) =
            (<&mut [Table; TABLES.len()]>::try_from(out), want.columns)
        else {
            debug_assert!(false, "tables of another source");
            return Report::default();
        };
        let wanted = Wanted { snmp, netstat, fields: !fields.is_empty(), dev, shown, sockstat, types };
        let mut memory = lock(&self.spare).pop().unwrap_or_default();
        let home = scratch.home.clone();
        let mut job = Job { want, wanted, memory: &mut memory, bytes: &mut scratch.bytes, error: None };
        let (report, lost) = self.all(&mut job, home.as_ref().map(AsFd::as_fd), out);
        want.beacon.leave();
        scratch.lost |= lost;
        let mut spare = lock(&self.spare);
        if spare.len() < MAX_SPARE {
            spare.push(memory);
        }
        report
    }

    fn forget(&self, subject: Subject) {
        lock(&self.devices).forget(subject);
    }

    fn configure(&self, probe: &str, options: &Options) {
        if probe == "netdev"
            && let Some(OptionValue::List(patterns)) = options.get("interfaces")
        {
            lock(&self.devices).show(patterns);
        }
    }
}

impl NetFiles {
    /// Reads the namespaces one after the other. The second value says that the lane is lost.
    fn all(
        &self,
        job: &mut Job<'_>,
        home: Option<BorrowedFd<'_>>,
        out: &mut [Table; TABLES.len()],
    ) -> (Report, bool) {
        let mut report = Report::default();
        if job.wanted.nothing() {
            return (report, false);
        }
        let total = u32::try_from(job.want.targets.len()).unwrap_or(u32::MAX);
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(&self.proc, directory, Mode::empty()) {
            Ok(root) => root,
            Err(error) => {
                let error = failed("open", self.proc.display().to_string(), error);
                return (Report { failed: total, error: Some(error), ..report }, false);
            }
        };
        for (index, target) in (0..total).zip(job.want.targets) {
            if Instant::now() >= job.want.deadline {
                report.late += total - index;
                break;
            }
            match self.subject(job, root.as_fd(), target, home, out) {
                Ok(forgotten) => {
                    report.over_budget += forgotten;
                    match job.error.take() {
                        None => report.done += 1,
                        Some(error) => report.fail(error),
                    }
                    continue;
                }
                Err(End::Vanished) => report.vanished += 1,
                Err(End::Late) => report.late += 1,
                Err(End::Failed(error)) => report.fail(error),
                Err(End::Lost(error)) => {
                    report.fail(error);
                    report.late += total - index - 1;
                    retract(out, target.subject);
                    return (report, true);
                }
            }
            job.error = None;
            retract(out, target.subject);
        }
        (report, false)
    }
}

fn retract(out: &mut [Table; TABLES.len()], subject: Subject) {
    out.iter_mut().for_each(|table| table.retract(subject));
}

impl Wanted<'_> {
    fn devices(&self) -> bool {
        !self.dev.is_empty() || !self.shown.is_empty()
    }

    fn nothing(&self) -> bool {
        self.snmp.is_empty()
            && self.netstat.is_empty()
            && !self.fields
            && !self.devices()
            && self.sockstat.is_empty()
            && self.types.is_empty()
    }
}

fn any(columns: &ColumnSet, range: Range<usize>) -> bool {
    range.into_iter().any(|column| columns.contains(column as u16))
}

impl Job<'_> {
    /// Reads every file of which a column is wanted. What is wrong with one of them does not touch the others.
    fn files(&mut self, directory: BorrowedFd<'_>, target: &Target, out: &mut [Table; TABLES.len()]) {
        let subject = target.subject;
        let [snmp, netstat, fields, _, _, sockstat, types] = out;
        let row = |table, columns: &ColumnSet| row(table, columns, subject);
        let mut rows = Rows {
            snmp: row(snmp, self.wanted.snmp),
            netstat: row(netstat, self.wanted.netstat),
            sockstat: row(sockstat, self.wanted.sockstat),
        };
        let by_type = !self.wanted.types.is_empty();
        if (any(self.wanted.snmp, IN_SNMP) || by_type) && self.open(directory, subject, NET_SNMP) {
            let parsed = self.snmp(&mut rows);
            self.put_types(b"ipv4", subject, types, parsed.is_ok());
            self.note(parsed, NET_SNMP);
        }
        let netstat = any(self.wanted.snmp, IN_IPEXT) || rows.netstat.is_some() || self.wanted.fields;
        if netstat && self.open(directory, subject, NET_NETSTAT) {
            let parsed = self.netstat(&mut rows, fields, subject);
            self.note(parsed, NET_NETSTAT);
        }
        if (any(self.wanted.snmp, IN_SNMP6) || by_type) && self.open(directory, subject, NET_SNMP6) {
            let parsed = self.snmp6(&mut rows);
            self.put_types(b"ipv6", subject, types, parsed.is_ok());
            self.note(parsed, NET_SNMP6);
        }
        self.memory.fresh = false;
        if self.wanted.devices() && self.open(directory, subject, NET_DEV) {
            let parsed = self.dev();
            self.note(parsed, NET_DEV);
        }
        for (file, columns) in [(NET_SOCKSTAT, IN_SOCKSTAT), (NET_SOCKSTAT6, IN_SOCKSTAT6)] {
            if any(self.wanted.sockstat, columns.clone()) && self.open(directory, subject, file) {
                let parsed = self.sockstat(&mut rows, columns);
                self.note(parsed, file);
            }
        }
    }

    /// Reads a file into the lane's buffer; false if it cannot be had, which is noted.
    fn open(&mut self, directory: BorrowedFd<'_>, subject: Subject, file: File) -> bool {
        self.want.beacon.enter(subject, file.name);
        let read = openat(directory, file.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|open| read_whole(open, file.shape, self.bytes));
        match read {
            Ok(()) => return true,
            // IPv6 may be off; and if the process is gone, that is found out afterwards.
            Err(Errno::NOENT) if file.optional => {}
            Err(Errno::NOENT) => {
                let sentence = format!("this kernel has no /proc/<pid>/{}", file.name);
                self.error.get_or_insert(ReadError::NotHere(sentence));
            }
            Err(error) => {
                self.error.get_or_insert_with(|| failed("read", file.name.to_owned(), error));
            }
        }
        false
    }

    fn note(&mut self, parsed: Result<(), Malformed>, file: File) {
        if let Err(malformed) = parsed {
            let cause = std::io::Error::new(std::io::ErrorKind::InvalidData, malformed);
            self.error.get_or_insert_with(|| failed("parse", file.name.to_owned(), cause));
        }
    }

    fn snmp(&mut self, rows: &mut Rows<'_>) -> Result<(), Malformed> {
        let mut none: [u64; 0] = [];
        let cells = rows.snmp.as_deref_mut().unwrap_or(&mut none);
        let Memory { snmp, types, .. } = &mut *self.memory;
        let find = |section: &[u8], name: &[u8]| match section {
            b"IcmpMsg" => Types::number(name).map(|number| number + SPLIT),
            _ => Finder::new(&SNMP, IN_SNMP).find(section, name),
        };
        let wanted = self.wanted.snmp;
        let parsed =
            snmp.parse(self.bytes, find, |column, value| put_or(types, cells, wanted, column, value));
        parsed.inspect_err(|_| cells.get_mut(IN_SNMP).unwrap_or_default().fill(ABSENT))
    }

    /// Moves the messages by type that a file told of into their table.
    fn put_types(&mut self, family: &[u8], subject: Subject, table: &mut Table, is_right: bool) {
        let wanted = self.wanted.types;
        self.memory.types.drain(|number, values| {
            let mut digits = itoa::Buffer::new();
            let keys: [&[u8]; 2] = [family, digits.format(number).as_bytes()];
            if is_right
                && !wanted.is_empty()
                && let Some(cells) = table.row(subject, &keys)
            {
                (0_u16..).zip(values).for_each(|(column, value)| put(cells, wanted, column, value));
            }
        });
    }

    /// `net/netstat` feeds two tables: columns from [`SPLIT`] on belong to [`NETSTAT`].
    fn netstat(
        &mut self,
        rows: &mut Rows<'_>,
        fields: &mut Table,
        subject: Subject,
    ) -> Result<(), Malformed> {
        let mut none: [u64; 0] = [];
        let mut none_either: [u64; 0] = [];
        let snmp = rows.snmp.as_deref_mut().unwrap_or(&mut none);
        let netstat = rows.netstat.as_deref_mut().unwrap_or(&mut none_either);
        let wanted = &self.wanted;
        let parsed = self.memory.netstat.parse(self.bytes, find_netstat, |column, value| {
            match column.checked_sub(SPLIT) {
                Some(column) if !netstat.is_empty() => put(netstat, wanted.netstat, column, value),
                None if !snmp.is_empty() => put(snmp, wanted.snmp, column, value),
                _ => {}
            }
        });
        if parsed.is_err() {
            netstat.fill(ABSENT);
            snmp.get_mut(IN_IPEXT).unwrap_or_default().fill(ABSENT);
        }
        parsed?;
        if wanted.fields {
            snmp::fields(self.bytes, b"TcpExt", |name, value| {
                if let Some(cells) = fields.row(subject, &[name]) {
                    cells[0] = value;
                }
            })?;
        }
        Ok(())
    }

    fn snmp6(&mut self, rows: &mut Rows<'_>) -> Result<(), Malformed> {
        let mut none: [u64; 0] = [];
        let cells = rows.snmp.as_deref_mut().unwrap_or(&mut none);
        let (wanted, mut finder) = (self.wanted.snmp, Finder::new(&SNMP, IN_SNMP6));
        let types = &mut self.memory.types;
        let find = |name: &[u8]| {
            // These appear once such a message was seen.
            let number = name.strip_prefix(b"Icmp6").and_then(Types::number);
            number.map(|number| number + SPLIT).or_else(|| finder.find(b"", name))
        };
        let parsed =
            snmp6::parse(self.bytes, find, |column, value| put_or(types, cells, wanted, column, value));
        parsed.inspect_err(|_| cells.get_mut(IN_SNMP6).unwrap_or_default().fill(ABSENT))
    }

    fn sockstat(&mut self, rows: &mut Rows<'_>, columns: Range<usize>) -> Result<(), Malformed> {
        let Some(cells) = rows.sockstat.as_deref_mut() else { return Ok(()) };
        let (wanted, mut finder) = (self.wanted.sockstat, Finder::new(&SOCKSTAT, columns.clone()));
        let find = |protocol: &[u8], name: &[u8]| finder.find(protocol, name);
        let parsed = sockstat::parse(self.bytes, find, |column, value| put(cells, wanted, column, value));
        clear_if(parsed, cells, columns)
    }

    fn dev(&mut self) -> Result<(), Malformed> {
        let Memory { dev, readings, fresh, .. } = &mut *self.memory;
        readings.clear();
        let parsed = dev.parse(self.bytes, |name, values| {
            readings.push(Reading { name: Name::new(name), values: *values });
        });
        *fresh = parsed.is_ok();
        parsed
    }
}

/// First number that stands for something else than a column of [`SNMP`]: for one of [`NETSTAT`] in the layout of
/// `net/netstat`, for a type of ICMP messages in the others.
const SPLIT: u16 = crate::declare::MAX_COLUMNS as u16;

fn find_netstat(section: &[u8], name: &[u8]) -> Option<u16> {
    let netstat = || Finder::new(&NETSTAT, 0..NETSTAT.columns.len()).find(section, name);
    match section {
        b"IpExt" => Finder::new(&SNMP, IN_IPEXT).find(section, name),
        _ => netstat().map(|column| column + SPLIT),
    }
}

#[inline]
fn put(cells: &mut [u64], wanted: &ColumnSet, column: u16, value: u64) {
    if wanted.contains(column) {
        cells[usize::from(column)] = value;
    }
}

/// Puts a value where it belongs: in a column, or under its type.
#[inline]
fn put_or(types: &mut Types, cells: &mut [u64], wanted: &ColumnSet, column: u16, value: u64) {
    match column.checked_sub(SPLIT) {
        Some(number) => types.put(number, value),
        None if cells.is_empty() => {}
        None => put(cells, wanted, column, value),
    }
}

/// Takes back what a file gave before it turned out to be malformed.
fn clear_if(parsed: Result<(), Malformed>, cells: &mut [u64], range: Range<usize>) -> Result<(), Malformed> {
    parsed.inspect_err(|_| cells[range].fill(ABSENT))
}

fn row<'a>(table: &'a mut Table, columns: &ColumnSet, subject: Subject) -> Option<&'a mut [u64]> {
    if columns.is_empty() { None } else { table.row(subject, &[]) }
}

fn fill(cells: &mut [u64], columns: &ColumnSet, values: &Values) {
    for (column, value) in (0_u16..).zip(values) {
        put(cells, columns, column, *value);
    }
}

#[cfg(test)]
mod tests;
