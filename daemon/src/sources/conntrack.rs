//! Source `conntrack`: the counters, entries and limit of connection tracking in each namespace, over netlink. The cost does
//! not depend on the size of the table, unless entries by state are asked for.

use super::each::{Visit, each};
use super::enter::failed;
use super::{ReadError, Report, Scratch, Source, Target, Want};
use crate::declare::{TableDecl, column, counter, gauge};
use crate::hooks::Options;
use crate::kernel::netlink::conntrack::{
    ANY, COUNTERS, Counters, Entry, Fill, GET, GET_STATS, GET_STATS_CPU, Protocol, add_cpu, entry, fill,
};
use crate::kernel::netlink::{Family, Netlink, NetlinkError};
use crate::kernel::parts::CONNTRACK_NETLINK;
use crate::table::{Subject, Table};
use netskoop_api::OptionValue;
use rustc_hash::FxHashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One row per namespace. The counters come first, in the order of [`Counters`].
pub static CONNTRACK: TableDecl = TableDecl {
    name: "conntrack",
    keys: &[],
    columns: &[
        counter("found"),
        counter("invalid"),
        counter("ignore"),
        counter("insert"),
        counter("insert_failed"),
        counter("drop"),
        counter("early_drop"),
        counter("error"),
        counter("search_restart"),
        counter("clash_resolve"),
        counter("chain_toolong"),
        gauge("entries"),
        gauge("max_entries"),
        // Millionths of the limit; absent if there is none.
        gauge("used_ppm"),
    ],
    node: false,
};

/// Entries by protocol and state.
pub static CONNTRACK_STATES: TableDecl = TableDecl {
    name: "conntrack_states",
    keys: &["protocol", "state"],
    columns: &[gauge("entries")],
    node: false,
};

static TABLES: [&TableDecl; 2] = [&CONNTRACK, &CONNTRACK_STATES];

const ENTRIES: usize = column(&CONNTRACK, "entries") as usize;
const MAX_ENTRIES: usize = column(&CONNTRACK, "max_entries") as usize;
const USED: usize = column(&CONNTRACK, "used_ppm") as usize;

/// Namespaces whose counters are remembered at most: 150 bytes each.
const MAX_KNOWN: usize = 65_536;
/// Entries of a namespace that are looked at, unless an option says otherwise.
pub const WALK_LIMIT: u32 = 100_000;

/// Names of `enum tcp_conntrack`.
pub const TCP_STATES: [&str; 10] = [
    "none",
    "syn_sent",
    "syn_recv",
    "established",
    "fin_wait",
    "close_wait",
    "last_ack",
    "time_wait",
    "close",
    "syn_sent2",
];
/// Protocols without states of their own.
const OTHERS: [&str; 3] = ["udp", "icmp", "other"];
/// What is known of entries of those.
pub const DIRECTIONS: [&str; 3] = ["unreplied", "replied", "assured"];

/// Counters of connection tracking.
pub struct Conntrack {
    proc: PathBuf,
    known: Mutex<Known>,
    walk_limit: AtomicU32,
}

impl Conntrack {
    /// The source; namespaces are entered through `proc`.
    pub fn new(proc: &Path) -> Conntrack {
        let (known, walk_limit) = (Mutex::new(Known::default()), AtomicU32::new(WALK_LIMIT));
        Conntrack { proc: proc.to_owned(), known, walk_limit }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one namespace.
    fn visit(&self, visit: Visit<'_>, want: &Want<'_>, out: &mut [Table]) -> Result<Missing, ReadError> {
        let mut missing = Missing::default();
        let ([numbers, states], [wanted, split]) = (out, want.columns) else {
            debug_assert!(false, "tables of another source");
            return Ok(missing);
        };
        let Visit { target, netlink, bytes } = visit;
        let mut counted = Counters::default();
        if (0..COUNTERS).any(|column| wanted.contains(column as u16)) {
            let ticket = self.known().draw();
            let sums = counters(netlink, bytes).map_err(asking("counters"))?;
            let (wide, room) = self.known().widen(target, ticket, sums);
            (counted, missing.forgotten) = (wide, !room);
        }
        let fill = ask_fill(netlink, bytes).map_err(asking("entries"))?;
        if !wanted.is_empty()
            && let Some(cells) = numbers.row(target.subject, &[])
        {
            put(cells, &counted, fill);
        }
        let entries = fill.entries.unwrap_or(u32::MAX);
        if !split.is_empty() && (1..=self.walk_limit.load(Ordering::Relaxed)).contains(&entries) {
            netlink.stop_at(want.deadline);
            match walk(netlink, bytes) {
                Ok(census) => census.put(states, target.subject),
                // Half of them would look like connections that have ended.
                Err(NetlinkError::Late) => missing.states = true,
                Err(error) => return Err(asking("entries")(error)),
            }
        }
        Ok(missing)
    }
}

/// What is not there of a namespace although it was read.
#[derive(Default)]
struct Missing {
    /// Its counters found no room in the memory.
    forgotten: bool,
    /// Its entries could not be walked in time.
    states: bool,
}

fn asking(what: &'static str) -> impl FnOnce(NetlinkError) -> ReadError {
    move |error| failed("ask for", format!("conntrack {what}"), error)
}

fn counters(netlink: &mut Netlink, bytes: &mut Vec<u8>) -> Result<Counters, NetlinkError> {
    netlink.dump(GET_STATS_CPU, &ANY, bytes, Counters::default, add_cpu)
}

fn ask_fill(netlink: &mut Netlink, bytes: &mut Vec<u8>) -> Result<Fill, NetlinkError> {
    netlink.ask(GET_STATS, &ANY, bytes, Fill::default(), |found, message| *found = fill(message))
}

fn put(cells: &mut [u64], counters: &Counters, fill: Fill) {
    for (cell, value) in cells.iter_mut().zip(counters) {
        if let Some(value) = value {
            *cell = *value;
        }
    }
    let Some(entries) = fill.entries.map(u64::from) else { return };
    cells[ENTRIES] = entries;
    let Some(max) = fill.max.map(u64::from) else { return };
    cells[MAX_ENTRIES] = max;
    if let Some(used) = (entries * 1_000_000).checked_div(max) {
        cells[USED] = used;
    }
}

/// Entries by protocol and state.
#[derive(Debug, Default)]
struct Census {
    tcp: [u64; TCP_STATES.len()],
    others: [[u64; DIRECTIONS.len()]; OTHERS.len()],
}

impl Census {
    fn add(&mut self, entry: Entry) {
        let other = match entry.protocol {
            Protocol::Tcp(state) => {
                // A state that a later kernel invents is none that is known.
                let state = usize::from(state);
                self.tcp[if state < TCP_STATES.len() { state } else { 0 }] += 1;
                return;
            }
            Protocol::Udp => 0,
            Protocol::Icmp => 1,
            Protocol::Other => 2,
        };
        let direction = if entry.assured { 2 } else { usize::from(entry.replied) };
        self.others[other][direction] += 1;
    }

    fn put(&self, table: &mut Table, subject: Subject) {
        let tcp = TCP_STATES.iter().zip(self.tcp).map(|(state, count)| ("tcp", *state, count));
        let others = OTHERS.iter().zip(&self.others).flat_map(|(protocol, counts)| {
            DIRECTIONS.iter().zip(counts).map(|(state, count)| (*protocol, *state, *count))
        });
        for (protocol, state, count) in tcp.chain(others) {
            if let Some(cells) = table.row(subject, &[protocol.as_bytes(), state.as_bytes()]) {
                cells[0] = count;
            }
        }
    }
}

fn walk(netlink: &mut Netlink, bytes: &mut Vec<u8>) -> Result<Census, NetlinkError> {
    netlink.dump(GET, &ANY, bytes, Census::default, |census, message| {
        if let Some(entry) = entry(message) {
            census.add(entry);
        }
    })
}

impl Source for Conntrack {
    fn name(&self) -> &'static str {
        "conntrack"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        // Asked for what is not there, the kernel would load a module.
        if !CONNTRACK_NETLINK.is_here(&self.proc) {
            return Report { not_here: Some(CONNTRACK_NETLINK.absence()), ..Report::default() };
        }
        let (mut over_budget, mut late) = (0, 0);
        let visit = |visit: Visit<'_>, (), out: &mut [Table]| {
            let missing = self.visit(visit, want, out)?;
            over_budget += u32::from(missing.forgotten);
            late += u32::from(missing.states);
            Ok(())
        };
        let report = each(&self.proc, Family::Netfilter, want, scratch, out, || Ok(()), visit);
        Report { over_budget, late: report.late + late, ..report }
    }

    fn forget(&self, subject: Subject) {
        self.known().totals.remove(&subject);
    }

    fn configure(&self, probe: &str, options: &Options) {
        if probe == "conntrack"
            && let Some(OptionValue::Integer(limit)) = options.get("walk_limit")
        {
            self.walk_limit.store(u32::try_from(*limit).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }
}

/// The kernel counts with 32 bits on each CPU. The sum over the CPUs is known modulo 2^32 whatever wraps, so that it can be
/// made 64 bits wide: it goes on when it wraps between two passes. One that wraps twice in between cannot be told from one
/// that wraps once.
#[derive(Debug, Default)]
struct Known {
    totals: FxHashMap<Subject, Total>,
    ticket: u64,
}

#[derive(Debug)]
struct Total {
    /// Whose they are: a slot may have a new owner while a late reading of the old one is on its way.
    owner: (u32, u64),
    ticket: u64,
    last: [u32; COUNTERS],
    total: Counters,
}

impl Known {
    /// A number to draw before reading: a reading that was overtaken would look like a wrap.
    fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// The counters widened, and whether there was room to remember them.
    fn widen(&mut self, target: &Target, ticket: u64, sums: Counters) -> (Counters, bool) {
        let owner = (target.inode, target.cookie);
        let room = self.totals.len() < MAX_KNOWN;
        let last = sums.map(|sum| sum.unwrap_or(0) as u32);
        match self.totals.get_mut(&target.subject) {
            Some(known) if known.ticket > ticket => {
                (if known.owner == owner { known.total } else { sums }, true)
            }
            Some(known) if known.owner == owner => {
                known.go_on(ticket, &sums);
                (known.total, true)
            }
            Some(known) => {
                *known = Total { owner, ticket, last, total: sums };
                (sums, true)
            }
            None => {
                if room {
                    self.totals.insert(target.subject, Total { owner, ticket, last, total: sums });
                }
                (sums, room)
            }
        }
    }
}

impl Total {
    fn go_on(&mut self, ticket: u64, sums: &Counters) {
        self.ticket = ticket;
        for ((total, last), sum) in self.total.iter_mut().zip(&mut self.last).zip(sums) {
            let Some(sum) = sum else { continue };
            *total.get_or_insert(0) += u64::from((*sum as u32).wrapping_sub(*last));
            *last = *sum as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Access;
    use crate::table::ABSENT;

    fn target(subject: u32, inode: u32) -> Target {
        Target { subject: Subject(subject), inode, cookie: 7, access: Access::Process(1) }
    }

    fn sums(value: u64) -> Counters {
        let mut sums = Counters::default();
        sums[4] = Some(value);
        sums
    }

    #[test]
    fn a_counter_that_wraps_on_any_cpu_goes_on() {
        let mut known = Known::default();
        let mut step = |value| {
            let ticket = known.draw();
            known.widen(&target(1, 5), ticket, sums(value)).0[4]
        };
        let two_cpus = 2 * u64::from(u32::MAX);
        assert_eq!(step(two_cpus), Some(two_cpus));
        // One of them wraps: the sum falls by 2^32.
        assert_eq!(step(two_cpus - (1 << 32) + 3), Some(two_cpus + 3));
        assert_eq!(step(two_cpus - (1 << 32) + 3), Some(two_cpus + 3));
        assert_eq!(step(5), Some(two_cpus + 7), "and the other");
    }

    #[test]
    fn readings_that_were_overtaken_and_those_of_another_owner_move_nothing() {
        let mut known = Known::default();
        let (early, late) = (known.draw(), known.draw());
        let value = |(counters, _): (Counters, bool)| counters[4];
        assert_eq!(value(known.widen(&target(1, 5), late, sums(9))), Some(9));
        assert_eq!(value(known.widen(&target(1, 5), early, sums(8))), Some(9));
        assert_eq!(value(known.widen(&target(1, 6), early, sums(8))), Some(8));
        let ticket = known.draw();
        assert_eq!(value(known.widen(&target(1, 6), ticket, sums(2))), Some(2), "it begins anew");
        assert_eq!(known.totals.len(), 1);
    }

    #[test]
    fn the_share_of_the_limit_is_absent_without_one() {
        let row = |entries, max| {
            let mut cells = [ABSENT; 14];
            put(&mut cells, &Counters::default(), Fill { entries, max });
            (cells[0], cells[ENTRIES], cells[MAX_ENTRIES], cells[USED])
        };
        assert_eq!(row(Some(65_536), Some(262_144)), (ABSENT, 65_536, 262_144, 250_000));
        assert_eq!(row(Some(u32::MAX), Some(1)), (ABSENT, 0xffff_ffff, 1, 0xffff_ffff * 1_000_000));
        assert_eq!(row(Some(5), Some(0)), (ABSENT, 5, 0, ABSENT));
        assert_eq!(row(Some(5), None), (ABSENT, 5, ABSENT, ABSENT));
        assert_eq!(row(None, Some(9)), (ABSENT, ABSENT, ABSENT, ABSENT));
    }

    #[test]
    fn entries_are_counted_by_state() {
        let mut census = Census::default();
        let all = [(Protocol::Tcp(3), true, true), (Protocol::Tcp(200), false, false)];
        let more =
            [(Protocol::Udp, true, false), (Protocol::Icmp, false, false), (Protocol::Udp, true, true)];
        for (protocol, replied, assured) in all.into_iter().chain(more) {
            census.add(Entry { protocol, replied, assured });
        }
        let mut table = Table::new(&CONNTRACK_STATES, 100);
        census.put(&mut table, Subject(4));
        let rows = (0..table.len()).filter(|row| table.cell(*row, 0) == Some(1)).map(|row| {
            let key = |at| String::from_utf8_lossy(table.key(row, at)).into_owned();
            format!("{} {}", key(0), key(1))
        });
        let wanted = ["tcp none", "tcp established", "udp replied", "udp assured", "icmp unreplied"];
        assert_eq!(rows.collect::<Vec<_>>(), wanted);
        assert_eq!(table.len(), 19);
    }
}
