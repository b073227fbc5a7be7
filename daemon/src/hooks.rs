//! The seam between a probe with eBPF hooks and the engine: how its object is run, its records decoded, its counters read.

use crate::declare::{EventDecl, HISTOGRAM, Probe, TableDecl};
use crate::kernel::bpf::{Entries, Refused, Session};
use crate::kernel::drop_reasons::{DropReasons, ResetReasons};
use crate::kernel::features::Features;
use crate::kernel::symbols::Symbols;
use crate::kernel::tasks;
use crate::table::{ABSENT, Subject, Table};
use netskoop_api::{OptionValue, Value};
use netskoop_bpf::plain;
use netskoop_bpf::tcpconnect::types::{histogram, histogram_key};
use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

// The kernel's histograms and the columns of the tables that show them are alike.
const _: () = assert!(size_of::<histogram>() == HISTOGRAM.len() * size_of::<u64>());

/// What a probe with hooks adds to its declaration.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Loads and attaches the object, then serves the session until it is told to stop. Runs on a thread of its own,
    /// which owns the object's memory, skeleton and links.
    pub run: fn(Session) -> Result<(), Refused>,
    /// Turns a record of the event ring into an event; `None` if the record is malformed.
    pub decode: fn(&[u8], &Known) -> Option<RawEvent>,
    /// The maps that its programs count in.
    pub maps: &'static [CountersMap],
    /// Whether the probe has something to show where its object cannot be loaded.
    pub optional: bool,
}

/// A map that programs count in, and the table that it fills. Its keys begin with the namespace's inode and end with its
/// cookie, so that what a namespace has counted goes with it.
#[derive(Clone, Copy, Debug)]
pub struct CountersMap {
    /// Its name in the object.
    pub name: &'static str,
    /// The table that it fills.
    pub table: &'static TableDecl,
    /// Adds its entries to the table.
    pub fill: fn(&Counters<'_>, &Known, &mut Table),
}

/// What the running kernel told about itself; decoders look names up here.
#[derive(Debug)]
pub struct Known {
    /// Kernel symbols.
    pub symbols: Arc<Symbols>,
    /// Names of the packet drop reasons.
    pub drop_reasons: DropReasons,
    /// Names of the reasons for TCP resets.
    pub reset_reasons: ResetReasons,
}

impl Known {
    /// What the running kernel tells, with its procfs at `proc`.
    pub fn new(proc: &Path, features: &Features) -> Known {
        Known {
            symbols: Arc::new(Symbols::new(proc)),
            drop_reasons: DropReasons::new(features),
            reset_reasons: ResetReasons::new(features),
        }
    }
}

/// Entries of a counters map, and the subjects that are alive.
pub struct Counters<'a> {
    /// Keys and values, as the kernel keeps them.
    pub entries: &'a Entries,
    /// Subject of a namespace inode; `None` if it is not known. Inode 0 stands for what no namespace could be named for.
    pub subject: &'a dyn Fn(u32, u64) -> Option<Subject>,
    /// Options in force.
    pub options: &'a Options,
    /// What the probe must remember from one filling to the next, for as long as its object is loaded.
    pub memory: &'a Memory,
    /// Entries that the filling has found to be too old: they are deleted after it.
    pub expired: RefCell<Vec<Expired>>,
    /// Reads another map that the object counts in.
    pub beside: Option<&'a Beside<'a>>,
    /// When the reading of the entries had not begun yet.
    pub began: Instant,
}

/// An entry that is to be deleted: the name of its map, and its key.
pub type Expired = (&'static str, Box<[u8]>);

/// Reads a map by its name.
pub type Beside<'a> = dyn Fn(&str) -> Option<Entries> + 'a;

impl<'a> Counters<'a> {
    /// Nothing has expired yet.
    pub fn new(
        entries: &'a Entries,
        subject: &'a dyn Fn(u32, u64) -> Option<Subject>,
        options: &'a Options,
        memory: &'a Memory,
    ) -> Counters<'a> {
        let began = Instant::now();
        Counters { entries, subject, options, memory, expired: RefCell::default(), beside: None, began }
    }

    /// Whose an entry is that is counted by task: a tenant's of the node's own namespace, or a namespace's.
    pub fn owner(&self, netns: u32, tenant: u32, cookie: u64) -> Option<Subject> {
        if tenant == 0 { (self.subject)(netns, cookie) } else { Some(Subject(tenant)) }
    }

    /// An integer option in force.
    pub fn integer(&self, name: &str) -> Option<usize> {
        match self.options.get(name) {
            Some(OptionValue::Integer(value)) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Fills a table with the columns [`HISTOGRAM`] or [`LATENCY`](crate::declare::LATENCY). Each of `kinds` is the row key of
    /// the histograms of that number; a table without row keys has one kind.
    pub fn fill_histograms(&self, kinds: &[&str], table: &mut Table) {
        let mut rows: Vec<(Subject, usize, &[u8])> = self
            .entries
            .iter()
            .filter_map(|(key, value)| {
                let key: histogram_key = plain::read(key)?;
                let kind = usize::try_from(key.kind).ok()?;
                let known = kind < kinds.len() || (kinds.is_empty() && kind == 0);
                Some(((self.subject)(key.netns, key.cookie).filter(|_| known)?, kind, value))
            })
            .collect();
        rows.sort_unstable();
        for (subject, kind, value) in rows {
            let keys: &[&[u8]] = &[kinds.get(kind).map_or(&[], |kind| kind.as_bytes())];
            let keys = if kinds.is_empty() { &[] } else { keys };
            if let Some(cells) = table.row(subject, keys) {
                copy_words(value, cells);
            }
        }
    }

    /// Fills a table whose columns are the numbers of the values, in their order. `row` tells which row a key and its value belong
    /// to, if any; those of one row are added up, see [`add_up`].
    pub fn fill_rows<const N: usize>(
        &self,
        table: &mut Table,
        row: impl Fn(&'a [u8], &'a [u8]) -> Option<RawRow<'a, N>>,
    ) {
        add_up(table, self.entries.iter().filter_map(|(key, value)| row(key, value)).collect());
    }

    /// Fills a table whose columns are what tasks have used, for an object that counts by task.
    pub fn fill_usage<const N: usize>(&self, table: &mut Table) {
        let mut uses: Vec<(Subject, [u64; N])> = Vec::with_capacity(self.entries.len());
        for usage in tasks::usage::<N>(self.entries) {
            let subject = self.owner(usage.netns, usage.tenant, usage.cookie);
            uses.extend(subject.map(|subject| (subject, usage.values)));
        }
        uses.sort_unstable_by_key(|(subject, _)| *subject);
        for of_one in uses.chunk_by(|one, other| one.0 == other.0) {
            let Some(cells) = table.row(of_one[0].0, &[]) else { return };
            for (at, cell) in cells.iter_mut().enumerate().take(N) {
                *cell = of_one.iter().fold(0, |sum, (_, values)| sum.wrapping_add(values[at]));
            }
        }
    }
}

/// An entry as the row that it belongs to: whose it is, its keys, and its value as the kernel keeps it.
pub type RawRow<'a, const N: usize> = (Subject, [Cow<'a, str>; N], &'a [u8]);

/// Adds rows to a table whose columns are the numbers of the values, in their order. What belongs to one row is added up; a number
/// that no entry of a row has stays absent.
pub fn add_up<const N: usize>(table: &mut Table, mut rows: Vec<RawRow<'_, N>>) {
    rows.sort_unstable();
    for group in rows.chunk_by(|one, other| (one.0, &one.1) == (other.0, &other.1)) {
        let Some(cells) = table.row(group[0].0, &group[0].1.each_ref().map(|key| key.as_bytes())) else {
            return;
        };
        for (at, cell) in cells.iter_mut().enumerate() {
            let numbers = group.iter().filter_map(|row| row.2.as_chunks().0.get(at));
            let numbers = numbers.map(|word| u64::from_ne_bytes(*word)).filter(|number| *number != ABSENT);
            *cell = numbers.reduce(u64::wrapping_add).unwrap_or(ABSENT);
        }
    }
}

/// Copies the numbers of a map's value into the cells of a row.
pub fn copy_words(value: &[u8], cells: &mut [u64]) {
    for (cell, word) in cells.iter_mut().zip(value.as_chunks().0) {
        *cell = u64::from_ne_bytes(*word);
    }
}

/// What a probe remembers between fillings: which row keys are shown (`true`) and which belong to `other` for good.
#[derive(Debug, Default)]
pub struct Memory {
    admitted: Mutex<BTreeMap<(u8, u64), bool>>,
    own: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Memory {
    /// Uses what a probe keeps there that is of its own kind; the first time it is empty.
    pub fn own<T: Default + Send + 'static, R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        let mut kept = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = kept.take().and_then(|own| own.downcast::<T>().ok()).unwrap_or_default();
        let result = use_it(&mut own);
        *kept = Some(own);
        result
    }

    /// Whether `key` has a row of its own. The first `limit` keys of a set get one and keep it; a later one stays in
    /// `other` even if the limit is raised, since a sum that loses a part looks like a counter that was reset.
    pub fn admit(&self, set: u8, key: u64, limit: usize) -> bool {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = admitted.range((set, 0)..=(set, u64::MAX)).filter(|(_, shown)| **shown).count();
        // Bounded, whatever keys may come.
        match admitted.get(&(set, key)) {
            Some(shown) => *shown,
            None if admitted.len() >= 4096 => false,
            None => *admitted.entry((set, key)).or_insert(shown < limit),
        }
    }

    /// Whoever of a set is counted no more has no row either, and leaves its place to others.
    pub fn dismiss_others(&self, set: u8, there: &BTreeSet<u64>) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.retain(|(of, key), _| *of != set || there.contains(key));
    }
}

/// What a counters source needs of the loaded objects.
pub trait HookTable: Send + Sync {
    /// Adds what a probe has counted in a map to its table; nothing if the probe is not loaded.
    fn fill(
        &self,
        probe: &Probe,
        map: &CountersMap,
        subject: &dyn Fn(u32, u64) -> Option<Subject>,
        table: &mut Table,
    ) -> io::Result<()>;
    /// Whether the object of a probe is loaded and counts by task.
    fn counts_tasks(&self, probe: &Probe) -> bool;
    /// Tells the object of a probe, if it counts by task, whose the cgroups of the node's own namespace are.
    fn set_tenants(&self, probe: &Probe, tenants: &[tasks::Tenant]) -> io::Result<()>;
    /// Drops what it has counted for a tenant that is gone.
    fn forget_tenant(&self, probe: &Probe, tenant: Subject);
}

/// An event as decoded from its record, before it is known whose it is.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEvent {
    /// Its type.
    pub decl: &'static EventDecl,
    /// Namespace inode; 0 if the kernel context did not tell.
    pub netns: u32,
    /// Its cookie; 0 if the kernel has none.
    pub cookie: u64,
    /// Id of the cgroup whose socket it was, in the unified hierarchy; 0 if the kernel context did not tell.
    pub cgroup: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// Five-tuple from the packet's point of view.
    pub tuple: Option<Tuple>,
    /// Process, only where the context makes it true.
    pub process: Option<(u32, String)>,
    /// Fields named in the declaration.
    pub fields: Vec<(&'static str, Value)>,
    /// Kernel stack addresses, innermost first.
    pub stack: Vec<u64>,
    /// Events of the same type and namespace withheld since the last one.
    pub suppressed: u64,
}

impl RawEvent {
    /// What the daemon itself has found, now.
    pub fn found(
        decl: &'static EventDecl,
        (netns, cookie): (u32, u64),
        fields: Vec<(&'static str, Value)>,
    ) -> RawEvent {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        RawEvent {
            decl,
            netns,
            cookie,
            cgroup: 0,
            time: now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned(),
            tuple: None,
            process: None,
            fields,
            stack: vec![],
            suppressed: 0,
        }
    }
}

/// For probes whose programs only count.
pub fn no_events(_: &[u8], _: &Known) -> Option<RawEvent> {
    None
}

/// A five-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// IP protocol number.
    pub proto: u8,
    /// Sender.
    pub src: IpAddr,
    /// Sender's port.
    pub sport: u16,
    /// Receiver.
    pub dst: IpAddr,
    /// Receiver's port.
    pub dport: u16,
}

/// Values of a probe's options in force, by name.
pub type Options = BTreeMap<&'static str, OptionValue>;
