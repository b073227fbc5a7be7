//! Events of connection tracking. One thread hears what the kernel tells in all namespaces, over one socket; it filters,
//! holds each namespace to the rate, and hands over what is left. Nothing is open unless somebody wants to know.

mod spaces;

use crate::config::Config;
use crate::events::bus::{Counts, Intake};
use crate::filter::{Entities, protocol_number};
use crate::hooks::Options;
use crate::kernel::netlink::Family;
use crate::kernel::netlink::all_namespaces::Listener;
use crate::kernel::netlink::flows::{Change, Flow, flow};
use crate::kernel::netlink::message::messages;
use crate::kernel::parts::CONNTRACK_NETLINK;
use crate::probes::conntrack;
use crate::resolve::directory::Directory;
use crate::sources::conntrack::{DIRECTIONS, TCP_STATES};
use crate::wake::{Followers, Wake};
use arc_swap::{ArcSwap, ArcSwapOption};
use netskoop_api::{EntityRef, OptionValue, StreamCounts, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use spaces::Spaces;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that may wait in the socket, as the kernel counts them: some thousand events.
const ROOM: usize = 4 << 20;
/// After this time what could not be opened is tried again.
const RETRY: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
const CHANGES: [(&str, Change); 3] =
    [("new", Change::New), ("update", Change::Update), ("destroy", Change::Destroy)];

/// What the thread needs.
pub struct Parts {
    /// Names of the namespaces.
    pub directory: Arc<ArcSwap<Directory>>,
    /// Where events go.
    pub intake: Intake,
    /// Counts of the stages of events.
    pub counts: Arc<Counts>,
    /// procfs.
    pub proc: PathBuf,
    /// Who is woken when there is another picture.
    pub followers: Arc<Followers>,
}

/// Handle of the thread, which ends after this is dropped.
pub struct Tracking {
    shared: Arc<Shared>,
    followers: Arc<Followers>,
    thread: std::thread::JoinHandle<()>,
}

struct Shared {
    wake: Arc<Wake>,
    stop: AtomicBool,
    wanted: ArcSwapOption<Wanted>,
    standing: Mutex<Standing>,
    seen: AtomicU64,
    submitted: AtomicU64,
    suppressed: AtomicU64,
    missed: AtomicU64,
}

/// How it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    listens: bool,
    problem: Option<String>,
}

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// A bit for each change, as the kernel's groups are.
    groups: u32,
    /// None: all.
    protocols: Vec<u8>,
    states: Vec<String>,
    entities: Entities,
    /// Nanoseconds between events of one kind and namespace, and by how much they may come early.
    interval: u64,
    tolerance: u64,
}

impl Wanted {
    fn new(options: &Options, (rate, burst): (u32, u32)) -> Option<Wanted> {
        let words = |name: &str| match options.get(name) {
            Some(OptionValue::List(words)) => words.as_slice(),
            _ => &[],
        };
        if options.get("events") != Some(&OptionValue::Bool(true)) {
            return None;
        }
        let types = words("event_types");
        let wanted = |(at, (name, _)): (usize, &(&str, Change))| {
            (types.is_empty() || types.iter().any(|word| word == name)).then_some(1 << at)
        };
        let interval = 1_000_000_000_u64.checked_div(rate.into()).map_or(0, |interval| interval.max(1));
        Some(Wanted {
            groups: CHANGES.iter().enumerate().filter_map(wanted).sum(),
            protocols: words("event_protocols").iter().filter_map(|word| protocol_number(word)).collect(),
            states: words("event_states").to_vec(),
            entities: Entities::only(words("event_entities").to_vec()),
            interval,
            tolerance: interval * u64::from(burst.max(1) - 1),
        })
    }

    fn wants(&self, flow: &Flow) -> bool {
        let state = state(flow);
        (self.protocols.is_empty() || self.protocols.contains(&flow.original.proto))
            && (self.states.is_empty()
                || self.states.iter().any(|word| state.is_some_and(|state| word == state)))
    }

    fn wants_of(&self, id: &EntityRef) -> bool {
        self.entities.have(Some(id))
    }
}

/// The state as the metric of entries by state has it; `None` if a change of a TCP connection does not tell.
fn state(flow: &Flow) -> Option<&'static str> {
    match flow.original.proto {
        6 => TCP_STATES.get(usize::from(flow.state?)).copied(),
        _ => Some(DIRECTIONS[flow.direction()]),
    }
}

impl Tracking {
    /// Starts the thread.
    pub fn start(parts: Parts) -> io::Result<Tracking> {
        let shared = Arc::new(Shared {
            wake: Wake::new()?,
            stop: AtomicBool::new(false),
            wanted: ArcSwapOption::empty(),
            standing: Mutex::default(),
            seen: AtomicU64::new(0),
            submitted: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        });
        let followers = Arc::clone(&parts.followers);
        let worker = Worker { parts, shared: Arc::clone(&shared), ears: None };
        let thread = std::thread::Builder::new().name("netskoop-tracks".into());
        let thread = thread.spawn(move || worker.run())?;
        Ok(Tracking { shared, followers, thread })
    }

    /// Tells it what is wanted now.
    pub fn configure(&self, enabled: bool, options: &Options, config: &Config) {
        let rate = (config.event_rate, config.event_burst);
        let wanted = Wanted::new(options, rate).filter(|_| enabled);
        if self.shared.wanted.load().as_deref() != wanted.as_ref() {
            match wanted {
                Some(_) => self.followers.add(&self.shared.wake),
                None => self.followers.remove(&self.shared.wake),
            }
            self.shared.wanted.store(wanted.map(Arc::new));
            self.shared.wake.wake();
        }
    }

    /// Whether the thread is still there.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Counts since the start, while it listens.
    pub fn stream(&self) -> Option<StreamCounts> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let shared = &*self.shared;
        shared.standing().listens.then(|| StreamCounts {
            missed: count(&shared.missed),
            seen: count(&shared.seen),
            submitted: count(&shared.submitted),
            suppressed: count(&shared.suppressed),
            ..StreamCounts::default()
        })
    }

    /// Why it does not listen although somebody wants to know.
    pub fn problem(&self) -> Option<String> {
        self.shared.standing().problem.clone()
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.wake();
    }
}

impl Shared {
    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands(&self, now: Standing) {
        let mut standing = self.standing();
        if let Some(problem) = now.problem.as_ref().filter(|_| standing.problem != now.problem) {
            tracing::warn!(probe = conntrack::PROBE.name, "{problem}");
        }
        *standing = now;
    }
}

struct Worker {
    parts: Parts,
    shared: Arc<Shared>,
    ears: Option<Ears>,
}

/// What is open while somebody wants to know.
struct Ears {
    wanted: Arc<Wanted>,
    listener: Listener,
    dropped: u32,
    spaces: Spaces,
}

impl Worker {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.follow();
            let more = self.ears.as_mut().is_some_and(|ears| ears.hear(&self.parts, &self.shared));
            if !more && let Err(error) = self.wait() {
                tracing::error!(%error, "events of connection tracking are not seen any more");
                return;
            }
        }
    }

    /// Opens and closes the socket as it is wanted, and looks at the picture.
    fn follow(&mut self) {
        let wanted = self.shared.wanted.load_full();
        if self.ears.as_ref().map(|ears| &ears.wanted) != wanted.as_ref() {
            self.ears = None;
        }
        let standing = match (wanted, &mut self.ears) {
            (None, _) => Standing::default(),
            (Some(_), Some(ears)) => {
                ears.spaces.look(&self.parts, &ears.wanted);
                return;
            }
            (Some(wanted), ears) => match Ears::open(&self.parts, wanted) {
                Ok(open) => {
                    *ears = Some(open);
                    Standing { listens: true, problem: None }
                }
                Err(problem) => Standing { listens: false, problem: Some(problem) },
            },
        };
        self.shared.stands(standing);
    }

    fn wait(&self) -> io::Result<()> {
        let wake = PollFd::new(&*self.shared.wake, PollFlags::IN);
        let ready = match &self.ears {
            Some(ears) => {
                let mut all = [
                    wake,
                    PollFd::new(&ears.listener, PollFlags::IN),
                    PollFd::new(&ears.spaces.numbers, PollFlags::IN),
                ];
                poll(&mut all, None)
            }
            None if self.shared.standing().problem.is_some() => poll(&mut [wake], Some(&RETRY)),
            None => poll(&mut [wake], None),
        };
        self.shared.wake.clear();
        match ready {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Ears {
    fn open(parts: &Parts, wanted: Arc<Wanted>) -> Result<Ears, String> {
        let refused = |error: Errno| {
            let missing =
                if error == Errno::PERM { "; it needs CAP_NET_ADMIN and CAP_NET_BROADCAST" } else { "" };
            format!("cannot listen to connection tracking for events: {error}{missing}")
        };
        // Asked for what is not there, the kernel would load a module.
        if !CONNTRACK_NETLINK.is_here(&parts.proc) {
            return Err(CONNTRACK_NETLINK.absence());
        }
        let mut spaces = Spaces::open(&wanted).map_err(refused)?;
        let listener = Listener::open(Family::Netfilter, wanted.groups, ROOM).map_err(refused)?;
        spaces.look(parts, &wanted);
        Ok(Ears { wanted, listener, dropped: 0, spaces })
    }

    /// Takes what has come, at most one batch; whether there may be more.
    fn hear(&mut self, parts: &Parts, shared: &Shared) -> bool {
        match self.listener.receive() {
            Ok(true) => {}
            Ok(false) => {
                self.note_drops(shared);
                return false;
            }
            // Some found no room; what did is still there. Any other error shows again as there is nothing to read.
            Err(error) => {
                self.note_drops(shared);
                return error == Errno::NOBUFS;
            }
        }
        // A number that was given again since is not taken for the namespace that had it before.
        self.spaces.hear_news();
        let now = now();
        for piece in self.listener.pieces() {
            let Some(bytes) = piece.bytes else {
                malformed(parts, shared);
                continue;
            };
            for message in messages(bytes) {
                let Some(flow) = message.ok().and_then(flow) else {
                    malformed(parts, shared);
                    continue;
                };
                if self.wanted.wants(&flow) {
                    self.spaces.tell(piece.nsid, &flow, &self.wanted, now, parts, shared);
                }
            }
        }
        true
    }

    fn note_drops(&mut self, shared: &Shared) {
        let drops = self.listener.drops();
        let more = drops.wrapping_sub(self.dropped);
        self.dropped = drops;
        shared.missed.fetch_add(more.into(), Ordering::Relaxed);
    }
}

fn malformed(parts: &Parts, shared: &Shared) {
    for count in [&shared.seen, &shared.submitted, &parts.counts.received, &parts.counts.malformed] {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn fields(flow: &Flow) -> Vec<(&'static str, Value)> {
    let mut fields = Vec::with_capacity(10);
    if let Some(state) = state(flow) {
        fields.push(("state", Value::Text(state.to_owned())));
    }
    fields.push(("status", Value::Text(DIRECTIONS[flow.direction()].to_owned())));
    let translated =
        [("nat_src", "nat_sport", flow.new_sender()), ("nat_dst", "nat_dport", flow.new_receiver())];
    for (address, port, end) in translated {
        if let Some((ip, number)) = end {
            fields.push((address, Value::Text(ip.to_string())));
            fields.push((port, Value::Number(number.into())));
        }
    }
    if let Some([sent, answered]) = flow.volumes {
        fields.push(("packets", Value::Number(sent.packets)));
        fields.push(("bytes", Value::Number(sent.bytes)));
        fields.push(("reply_packets", Value::Number(answered.packets)));
        fields.push(("reply_bytes", Value::Number(answered.bytes)));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::option_default;
    use crate::hooks::Tuple;

    fn options(changes: &[(&'static str, OptionValue)]) -> Options {
        let defaults = conntrack::PROBE.options.iter().map(|decl| (decl.name, option_default(decl)));
        defaults.chain(changes.iter().cloned()).collect()
    }

    #[test]
    fn nothing_is_wanted_unless_it_is_said() {
        assert_eq!(Wanted::new(&options(&[]), (50, 200)), None);
        let on = ("events", OptionValue::Bool(true));
        let all = Wanted::new(&options(std::slice::from_ref(&on)), (50, 200)).unwrap();
        assert_eq!((all.groups, all.interval, all.tolerance), (7, 20_000_000, 199 * 20_000_000));
        let list = |words: &[&str]| OptionValue::List(words.iter().map(|word| (*word).into()).collect());
        let some =
            options(&[on, ("event_types", list(&["destroy"])), ("event_protocols", list(&["udp", "132"]))]);
        let some = Wanted::new(&some, (0, 0)).unwrap();
        assert_eq!((some.groups, some.interval, some.protocols), (4, 0, vec![17, 132]));
    }

    #[test]
    fn only_what_tells_a_wanted_state_passes() {
        let end = |port| Tuple {
            proto: 6,
            src: [10, 0, 0, 1].into(),
            sport: port,
            dst: [10, 0, 0, 2].into(),
            dport: port,
        };
        let tcp = Flow {
            change: Change::Update,
            original: end(1),
            reply: end(1),
            state: Some(3),
            status: 2,
            volumes: None,
        };
        let udp = Flow { original: Tuple { proto: 17, ..end(1) }, state: None, ..tcp };
        let states = OptionValue::List(vec!["established".into(), "replied".into()]);
        let options = options(&[("events", OptionValue::Bool(true)), ("event_states", states)]);
        let wanted = Wanted::new(&options, (1, 1)).unwrap();
        let passes = |flow| wanted.wants(&flow);
        assert!(passes(tcp) && passes(udp));
        assert!(!passes(Flow { state: Some(1), ..tcp }) && !passes(Flow { state: Some(200), ..tcp }));
        assert!(!passes(Flow { state: None, ..tcp }) && !passes(Flow { status: 6, ..udp }));
    }
}
