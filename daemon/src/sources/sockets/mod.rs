//! Source `sockets`: the TCP sockets of each namespace, over sock_diag(7).
//!
//! The kernel has one table of connections for all namespaces, and walks through the whole of it for each list, also if
//! nothing of the namespace is in it. So both IP versions are listed together, and connections are listed only where there
//! are some: `net/sockstat` tells how many sockets listen or are connected, and the sockets that listen have a short table of
//! their own. What these numbers do not tell of is connections that are being accepted; where there is nothing else, they are
//! looked for every [`TURNS`] passes, and in each as soon as there are some.

mod budget;
mod listeners;
mod walk;

use super::each::{Visit, each};
use super::enter::failed;
use super::lock;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{ColumnSet, TableDecl, counter, gauge};
use crate::hooks::Options;
use crate::kernel::netlink::sock_diag::{LISTEN, STATES, Socket, Which, list};
use crate::kernel::netlink::{Family, NetlinkError};
use crate::kernel::parts::{Part, TCP_DIAG};
use crate::kernel::procfs::sockstat;
use crate::table::{Subject, Table};
use budget::Budget;
use listeners::{Listener, Listeners, MAX_KEPT, Sums};
use netskoop_api::OptionValue;
use rustix::fs::{Mode, OFlags};
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use walk::{PortRange, Totals, Walk};

/// Connections and listening sockets of a namespace. The first columns are those of [`STATES`].
pub static TCP_SOCKETS: TableDecl = TableDecl {
    name: "tcp_sockets",
    keys: &[],
    columns: &[
        gauge(STATES[0]),
        gauge(STATES[1]),
        gauge(STATES[2]),
        gauge(STATES[3]),
        gauge(STATES[4]),
        gauge(STATES[5]),
        gauge(STATES[6]),
        gauge(STATES[7]),
        gauge(STATES[8]),
        gauge(STATES[9]),
        gauge(STATES[10]),
        gauge("established.tx_queue"),
        gauge("established.rx_queue"),
        gauge("tx_queue"),
        gauge("rx_queue"),
        gauge("retransmitting"),
        gauge("zero_window_probes"),
    ],
    node: false,
};

/// What listening sockets have: all of a namespace together.
pub static LISTEN_SOCKETS: TableDecl = TableDecl {
    name: "tcp_listen_sockets",
    keys: &[],
    columns: &[gauge("sockets"), gauge("backlog"), gauge("backlog_limit"), counter("drops")],
    node: false,
};

/// The same by address, at most 32 of a namespace; the others are row `other`.
pub static LISTENERS: TableDecl =
    TableDecl { name: "tcp_listeners", keys: &["listener"], columns: LISTEN_SOCKETS.columns, node: false };

/// How full the fullest accept queue of a namespace is, in millionths.
pub static LISTEN_LIMIT: TableDecl =
    TableDecl { name: "tcp_listen_limit", keys: &[], columns: &[gauge("used_ppm")], node: false };

/// How many of the ports that the kernel chooses from for connections are their own port of some, in millionths. It is a
/// bound: one port may serve for connections to several destinations, so connections to another one may go on to succeed.
pub static PORTS_LIMIT: TableDecl =
    TableDecl { name: "tcp_ports_limit", keys: &[], columns: &[gauge("used_ppm")], node: false };

static TABLES: [&TableDecl; 5] = [&TCP_SOCKETS, &LISTEN_SOCKETS, &LISTENERS, &LISTEN_LIMIT, &PORTS_LIMIT];
const SOCKETS: usize = 0;
const SUMS: usize = 1;
const SPLIT: usize = 2;
const FULLEST: usize = 3;
const PORTS: usize = 4;

/// Listening sockets of one namespace that are looked at; 50 bytes each.
const MAX_LISTENERS: usize = 4096;
/// A namespace with nothing but listening sockets is looked through in one of so many passes.
const TURNS: u32 = 8;
/// Time for the sockets of one namespace, unless the option says otherwise.
pub const MILLISECONDS: u64 = 250;
/// Time for the connections of all namespaces.
pub const TOTAL_MILLISECONDS: u64 = 1000;

/// Asks for TCP sockets.
pub struct Sockets {
    /// Without it the kernel would load a module to answer.
    part: Part,
    files: Files,
    proc: PathBuf,
    milliseconds: AtomicU64,
    total_milliseconds: AtomicU64,
    budget: Mutex<Budget>,
    listeners: Mutex<Listeners>,
    /// Memory of lanes, for the next job.
    spare: Mutex<Vec<Memory>>,
}

#[derive(Default)]
struct Memory {
    walk: Walk,
    listeners: Vec<Listener>,
    text: Vec<u8>,
}

/// Which tables somebody shows.
#[derive(Clone, Copy)]
struct Wish([bool; TABLES.len()]);

impl Wish {
    fn of(columns: &[ColumnSet]) -> Wish {
        Wish(std::array::from_fn(|table| columns.get(table).is_some_and(|set| !set.is_empty())))
    }

    fn connections(self) -> bool {
        self.0[SOCKETS] || self.0[PORTS]
    }
}

/// What is read before, inside the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Before {
    /// Sockets that listen or are connected, but in TIME_WAIT.
    in_use: Option<u64>,
    time_wait: Option<u64>,
    range: Option<PortRange>,
}

/// What there may be in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connections, as far as anybody knows.
    Connections,
    /// Sockets that listen, and perhaps connections that are being accepted.
    Listeners,
    /// Nothing at all.
    Empty,
}

impl Before {
    fn state(&self, listening: u64) -> State {
        match (self.in_use, self.time_wait) {
            (Some(0), Some(0)) => State::Empty,
            (Some(in_use), Some(0)) if in_use == listening => State::Listeners,
            _ => State::Connections,
        }
    }
}

/// Files that show the namespace of whoever opens them.
struct Files {
    sockstat: PathBuf,
    sockstat6: PathBuf,
    range: PathBuf,
}

/// Calls `parse` with the beginning of a file; `None` if there is none.
fn short<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let mut text = [0; 1024];
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::read(&file, &mut text[..]).ok()?;
    parse(text.get(..length)?)
}

/// `inuse` and `tw` of a protocol.
fn in_use(text: &[u8], protocol: &[u8]) -> Option<(u64, u64)> {
    let mut found = [None; 2];
    let find = |line: &[u8], name: &[u8]| match name {
        b"inuse" if line == protocol => Some(0),
        b"tw" if line == protocol => Some(1),
        _ => None,
    };
    sockstat::parse(text, find, |at, value| found[usize::from(at)] = Some(value)).ok()?;
    Some((found[0]?, found[1].unwrap_or(0)))
}

impl Files {
    fn new(proc: &Path) -> Files {
        let net = proc.join("thread-self/net");
        Files {
            sockstat: net.join("sockstat"),
            sockstat6: net.join("sockstat6"),
            range: proc.join("sys/net/ipv4/ip_local_port_range"),
        }
    }

    fn read(&self, wish: Wish) -> Before {
        let v4 = short(&self.sockstat, |text| in_use(text, b"TCP"));
        // A kernel without IPv6 has no such file.
        let v6 = short(&self.sockstat6, |text| in_use(text, b"TCP6")).unwrap_or_default().0;
        Before {
            in_use: v4.map(|(in_use, _)| in_use + v6),
            time_wait: v4.map(|(_, time_wait)| time_wait),
            range: wish.0[PORTS].then(|| short(&self.range, PortRange::parse)).flatten(),
        }
    }
}

fn cannot(error: NetlinkError) -> ReadError {
    match error {
        NetlinkError::Late => ReadError::Late,
        error => failed("list", "TCP sockets".to_owned(), error),
    }
}

/// Sockets that listen, as they are listed.
struct Listening<'a> {
    found: &'a mut Vec<Listener>,
    /// How many there are, which may be more than are looked at.
    count: u64,
    /// What the first list found, as soon as there is a second one.
    first: Option<(usize, u64)>,
}

impl Listening<'_> {
    /// A list begins, perhaps anew. The first of them is number 0.
    fn list(&mut self, number: usize) {
        let (kept, count) = match number {
            0 => (0, 0),
            _ => *self.first.get_or_insert((self.found.len(), self.count)),
        };
        self.found.truncate(kept);
        self.count = count;
    }

    fn add(&mut self, socket: &Socket<'_>) {
        self.count += 1;
        if self.found.len() < MAX_LISTENERS {
            self.found.push(Listener::new(socket));
        }
    }
}

/// Lists the sockets that listen; how many there are.
fn listening(visit: &mut Visit<'_>, found: &mut Vec<Listener>) -> Result<u64, ReadError> {
    let all = RefCell::new(Listening { found, count: 0, first: None });
    let start = |number| all.borrow_mut().list(number);
    list(visit.netlink, visit.bytes, Which::Listening, start, |socket| all.borrow_mut().add(socket))
        .map_err(cannot)?;
    Ok(all.into_inner().count)
}

/// Lists the connections; false if the time was too short.
fn walk_through(visit: &mut Visit<'_>, walk: &mut Walk) -> Result<bool, ReadError> {
    let walk = RefCell::new(walk);
    let start = |number| walk.borrow_mut().list(number);
    let add = |socket: &Socket<'_>| walk.borrow_mut().add(socket);
    match list(visit.netlink, visit.bytes, Which::Connected, start, add) {
        Err(NetlinkError::Late) => Ok(false),
        listed => listed.map(|()| true).map_err(cannot),
    }
}

impl Sockets {
    /// The source; namespaces are entered through the processes of this procfs.
    pub fn new(proc: &Path) -> Sockets {
        Sockets {
            part: TCP_DIAG,
            files: Files::new(proc),
            proc: proc.to_owned(),
            milliseconds: AtomicU64::new(MILLISECONDS),
            total_milliseconds: AtomicU64::new(TOTAL_MILLISECONDS),
            budget: Mutex::default(),
            listeners: Mutex::new(Listeners::new(MAX_KEPT)),
            spare: Mutex::new(Vec::with_capacity(2)),
        }
    }

    /// Whether the connections of a namespace are to be walked through.
    fn walks(&self, subject: Subject, wish: Wish, state: State) -> bool {
        match state {
            _ if !wish.connections() => false,
            State::Connections => true,
            State::Listeners => lock(&self.listeners).turn(subject, TURNS),
            State::Empty => false,
        }
    }

    /// Walks through the connections; false if there is no time for it, or too little.
    fn walk(&self, visit: &mut Visit<'_>, walk: &mut Walk, deadline: Instant) -> Result<bool, ReadError> {
        let most = Duration::from_millis(self.total_milliseconds.load(Ordering::Relaxed));
        let walked = |listeners: &mut Listeners| {
            lock(&self.budget).allows(deadline, most, listeners.walked(visit.target.subject))
        };
        if !walked(&mut lock(&self.listeners)) {
            return Ok(false);
        }
        let begin = Instant::now();
        let done = walk_through(visit, walk);
        lock(&self.budget).spend(begin.elapsed());
        done
    }

    /// Reads one namespace. What listens is shown also where there was no time for the connections, which is told.
    fn subject(
        &self,
        mut visit: Visit<'_>,
        job: &mut Job<'_>,
        before: Before,
        out: &mut [Table],
    ) -> Result<(), ReadError> {
        let Memory { walk, listeners, text } = &mut job.memory;
        let (subject, wish) = (visit.target.subject, job.wish);
        visit.netlink.stop_at(job.deadline.min(Instant::now() + job.budget));
        let ticket = lock(&self.listeners).draw();
        let nothing = before.in_use == Some(0);
        listeners.clear();
        let count = if nothing { 0 } else { listening(&mut visit, listeners)? };
        walk.begin(before.range);
        let state = before.state(count);
        let whole = !self.walks(subject, wish, state) || self.walk(&mut visit, walk, job.deadline)?;
        if state == State::Listeners && walk.totals != Totals::default() {
            lock(&self.listeners).hurry(subject, TURNS);
        }
        let outcome = lock(&self.listeners).take(subject, ticket, listeners, |address, sums| {
            if wish.0[SPLIT] {
                text.clear();
                // Writing to memory does not fail.
                let _ = write!(text, "{address}");
                show(&mut out[SPLIT], subject, &[text], sums);
            }
        });
        // A later reading is there already.
        let Some(outcome) = outcome else { return Err(ReadError::Vanished) };
        let unseen = count.saturating_sub(listeners.len() as u64);
        job.forgotten += outcome.forgotten + u32::try_from(unseen).unwrap_or(u32::MAX);
        if let (true, Some(other)) = (wish.0[SPLIT], &outcome.other) {
            show(&mut out[SPLIT], subject, &[b"other"], other);
        }
        if wish.0[SUMS] {
            show(&mut out[SUMS], subject, &[], &outcome.all);
        }
        if wish.0[FULLEST] {
            put(&mut out[FULLEST], subject, listeners.iter().map(Listener::used).max().unwrap_or(0));
        }
        if wish.0[SOCKETS]
            && let Some(cells) = out[SOCKETS].row(subject, &[])
        {
            cells[usize::from(LISTEN) - 1] = count;
            if whole {
                connections(&walk.totals, count, cells);
            }
        }
        if let (true, Some(used)) = (wish.0[PORTS] && whole, walk.ports_used()) {
            put(&mut out[PORTS], subject, used);
        }
        job.late += u32::from(!whole);
        Ok(())
    }
}

/// What a job goes with.
struct Job<'a> {
    memory: &'a mut Memory,
    wish: Wish,
    deadline: Instant,
    /// Time for one namespace.
    budget: Duration,
    /// Namespaces whose connections did not fit into it.
    late: u32,
    /// Listening sockets that found no room: what they have and drop is in no sum, or may fall.
    forgotten: u32,
}

/// Writes a row of [`LISTEN_SOCKETS`] or [`LISTENERS`].
fn show(table: &mut Table, subject: Subject, keys: &[&[u8]], sums: &Sums) {
    if let Some(cells) = table.row(subject, keys) {
        cells.copy_from_slice(&[sums.sockets, sums.backlog, sums.limit, sums.drops]);
    }
}

/// Writes a row of one cell.
fn put(table: &mut Table, subject: Subject, value: u64) {
    if let Some(cell) = table.row(subject, &[]).and_then(<[u64]>::first_mut) {
        *cell = value;
    }
}

/// Writes a row of [`TCP_SOCKETS`].
fn connections(totals: &Totals, listening: u64, cells: &mut [u64]) {
    let (states, rest) = cells.split_at_mut(STATES.len());
    states.copy_from_slice(&totals.states);
    states[usize::from(LISTEN) - 1] = listening;
    let (first, others) = (totals.established, totals.others);
    rest.copy_from_slice(&[
        first.send,
        first.receive,
        first.send + others.send,
        first.receive + others.receive,
        totals.retransmitting,
        totals.probing,
    ]);
}

impl Source for Sockets {
    fn name(&self) -> &'static str {
        "sockets"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        if !self.part.is_here(&self.proc) {
            return Report { not_here: Some(self.part.absence()), ..Report::default() };
        }
        let wish = Wish::of(want.columns);
        let mut memory = lock(&self.spare).pop().unwrap_or_default();
        let budget = Duration::from_millis(self.milliseconds.load(Ordering::Relaxed));
        let mut job =
            Job { memory: &mut memory, wish, deadline: want.deadline, budget, late: 0, forgotten: 0 };
        let prepare = || Ok(self.files.read(wish));
        let read = |visit: Visit<'_>, before, out: &mut [Table]| self.subject(visit, &mut job, before, out);
        let mut report = each(&self.proc, Family::SockDiag, want, scratch, out, prepare, read);
        report.done -= job.late;
        report.late += job.late;
        report.over_budget += job.forgotten;
        let mut spare = lock(&self.spare);
        // There are two lanes.
        if spare.len() < 2 {
            spare.push(memory);
        }
        report
    }

    fn forget(&self, subject: Subject) {
        lock(&self.listeners).forget(subject);
    }

    fn configure(&self, probe: &str, options: &Options) {
        let numbers =
            [("max_milliseconds", &self.milliseconds), ("max_total_milliseconds", &self.total_milliseconds)];
        for (name, number) in numbers.into_iter().filter(|_| probe == "tcpsummary") {
            if let Some(OptionValue::Integer(milliseconds)) = options.get(name) {
                number.store(*milliseconds, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
