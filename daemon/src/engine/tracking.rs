//! Events of connection tracking. One thread hears what the kernel tells in all namespaces, over one socket; it filters,
//! holds each namespace to the rate, and hands over what is left. Nothing is open unless somebody wants to know.

use crate::config::Config;
use crate::events::bus::{Counts, Incoming, Intake};
use crate::hooks::{Options, RawEvent};
use crate::kernel::netlink::all_namespaces::Listener;
use crate::kernel::netlink::flows::{Change, Flow, flow};
use crate::kernel::netlink::message::messages;
use crate::kernel::netlink::nsid::{News, Numbers};
use crate::kernel::netlink::{Family, NetlinkError};
use crate::kernel::parts::CONNTRACK_NETLINK;
use crate::probes::conntrack::{self, protocol_number};
use crate::resolve::directory::{Directory, Entry};
use crate::sources::Access;
use crate::sources::conntrack::{DIRECTIONS, TCP_STATES};
use crate::table::Subject;
use crate::wake::{Followers, Wake};
use arc_swap::{ArcSwap, ArcSwapOption};
use netskoop_api::{EntityRef, OptionValue, StreamCounts, Value};
use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait in the socket, as the kernel counts them: some thousand events.
const ROOM: usize = 4 << 20;
/// After this time what could not be opened is tried again.
const RETRY: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// When a number is not known, all namespaces are asked for theirs, at most so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
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
    entities: Vec<String>,
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
            entities: words("event_entities").to_vec(),
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
        let means = |word: &String| id.name == *word || id.pod.as_deref() == Some(word);
        self.entities.is_empty() || self.entities.iter().any(means)
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

/// Which namespace a number means.
struct Spaces {
    numbers: Numbers,
    /// The namespace of this thread, whose events have no number.
    own: Space,
    /// Those whose number is not known.
    unknown: Space,
    /// By number; a number may mean another namespace by now than that of the slot which has noted it.
    known: FxHashMap<i32, (Subject, Space)>,
    by_subject: FxHashMap<Subject, i32>,
    picture: Arc<Directory>,
    looked: Instant,
    problem: Option<NetlinkError>,
}

/// A namespace.
#[derive(Clone, Debug, Default)]
struct Space {
    inode: u32,
    cookie: u64,
    wanted: bool,
    buckets: [Bucket; CHANGES.len()],
}

/// Holds events of one kind to the rate.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When the next is due if they come at exactly the rate.
    next: u64,
    suppressed: u64,
}

impl Bucket {
    /// How many were withheld since the last one; `None` if this one is withheld, too.
    fn take(&mut self, now: u64, interval: u64, tolerance: u64) -> Option<u64> {
        let due = self.next.max(now);
        if due - now > tolerance {
            self.suppressed += 1;
            return None;
        }
        self.next = due + interval;
        Some(std::mem::take(&mut self.suppressed))
    }
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
        let own = rustix::fs::stat("/proc/thread-self/ns/net").map_err(refused)?;
        let unknown = Space { wanted: wanted.entities.is_empty(), ..Space::default() };
        let own = Space { inode: u32::try_from(own.st_ino).unwrap_or(0), ..unknown.clone() };
        let mut spaces = Spaces {
            numbers: Numbers::open().map_err(refused)?,
            own,
            unknown,
            known: FxHashMap::default(),
            by_subject: FxHashMap::default(),
            picture: Arc::default(),
            looked: Instant::now(),
            problem: None,
        };
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

impl Spaces {
    /// Takes over what has changed in the picture: each new namespace gets a number, or tells the one that it has.
    fn look(&mut self, parts: &Parts, wanted: &Wanted) {
        self.hear_news();
        let picture = parts.directory.load_full();
        if Arc::ptr_eq(&picture, &self.picture) {
            return;
        }
        let before = std::mem::replace(&mut self.picture, Arc::clone(&picture));
        for subject in picture.changes(&before) {
            let number = self.by_subject.remove(&subject);
            let is_its = |number: &i32| self.known.get(number).is_some_and(|(owner, _)| *owner == subject);
            let known = number.filter(is_its).and_then(|number| self.known.remove(&number));
            if let Some(entry) = picture.entry(subject) {
                self.meet(entry, known.map(|(_, space)| space), parts, wanted);
            }
        }
    }

    fn meet(&mut self, entry: &Entry, known: Option<Space>, parts: &Parts, wanted: &Wanted) {
        let facts = &entry.namespace.facts;
        let same = |space: &Space| (space.inode, space.cookie) == (facts.inode, facts.cookie);
        let buckets = known.filter(same).map(|space| space.buckets).unwrap_or_default();
        let wanted = wanted.wants_of(&entry.id);
        let space = Space { inode: facts.inode, cookie: facts.cookie, wanted, buckets };
        let is_own = facts.inode == self.own.inode;
        if is_own {
            self.own = Space { buckets: self.own.buckets, ..space.clone() };
        }
        // It stays open until the number is noted: as long as it lives, the number is nobody else's.
        let Some(namespace) = open(&parts.proc, &entry.namespace.access, facts.inode) else { return };
        let number = match is_own {
            true => self.numbers.of(namespace.as_fd()),
            false => self.numbers.give(namespace.as_fd()),
        };
        self.hear_news();
        match number {
            Ok(Some(number)) => {
                let subject = entry.namespace.subject;
                self.known.insert(number, (subject, space));
                self.by_subject.insert(subject, number);
            }
            Ok(None) => {}
            Err(error) => self.complain(error),
        }
    }

    fn complain(&mut self, error: NetlinkError) {
        if self.problem != Some(error) {
            tracing::warn!(%error, "a namespace has no number, so its connections are not heard of");
            self.problem = Some(error);
        }
    }

    /// Forgets the numbers of namespaces that are gone.
    fn hear_news(&mut self) {
        let (known, by_subject, picture) = (&mut self.known, &mut self.by_subject, &mut self.picture);
        self.numbers.news(|news| match news {
            News::Gone(number) => drop(known.remove(&number)),
            News::Lost => {
                known.clear();
                by_subject.clear();
                *picture = Arc::default();
            }
        });
    }

    fn tell(
        &mut self,
        nsid: Option<i32>,
        flow: &Flow,
        wanted: &Wanted,
        now: u64,
        parts: &Parts,
        shared: &Shared,
    ) {
        let space = match nsid {
            None => &mut self.own,
            Some(nsid) => match self.known.get_mut(&nsid) {
                Some((_, space)) => space,
                None => {
                    if self.looked.elapsed() > LOOK_AGAIN {
                        (self.looked, self.picture) = (Instant::now(), Arc::default());
                    }
                    &mut self.unknown
                }
            },
        };
        if !space.wanted {
            return;
        }
        shared.seen.fetch_add(1, Ordering::Relaxed);
        let bucket = &mut space.buckets[flow.change as usize];
        let Some(suppressed) = bucket.take(now, wanted.interval, wanted.tolerance) else {
            shared.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let event = RawEvent {
            decl: &conntrack::PROBE.events[flow.change as usize],
            netns: space.inode,
            cookie: space.cookie,
            cgroup: 0,
            time: now,
            tuple: Some(flow.original),
            process: None,
            fields: fields(flow),
            stack: vec![],
            suppressed,
        };
        shared.submitted.fetch_add(1, Ordering::Relaxed);
        parts.counts.received.fetch_add(1, Ordering::Relaxed);
        parts.intake.put(Incoming { probe: conntrack::PROBE.name, event });
    }
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

/// Opens a namespace, if it is still that one.
fn open(proc: &Path, access: &Access, inode: u32) -> Option<OwnedFd> {
    let through = |path: PathBuf| {
        // A FIFO put there must not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_ino == u64::from(inode)).then_some(file)
    };
    let of_process = |pid: &i32| through(proc.join(pid.to_string()).join("ns/net"));
    match access {
        Access::Process(pid) => of_process(pid),
        Access::Either(pid, path) => of_process(pid).or_else(|| through(path.clone())),
        Access::Mount(path) => through(path.clone()),
        Access::Held(namespace) => namespace.try_clone().ok(),
    }
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
    fn a_bucket_holds_to_the_rate_and_tells_what_it_withheld() {
        let mut bucket = Bucket::default();
        let mut take = |now| bucket.take(now, 10, 20);
        assert_eq!([take(100), take(100), take(100)], [Some(0); 3]);
        assert_eq!([take(100), take(105)], [None; 2]);
        assert_eq!(take(110), Some(2));
        assert_eq!(take(1000), Some(0));
        let mut bucket = Bucket::default();
        assert!((0..1000).all(|_| bucket.take(1, 0, 0) == Some(0)), "no limit");
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
