//! The thread between the ring buffer and the history: it gives events their names. It takes over what the pump has
//! copied, so that the ring is emptied however long naming takes.

use super::history::History;
use super::names::{Names, Place, Socket};
use super::unsettled::Unsettled;
use crate::filter::Entities;
use crate::hooks::{Known, Options, RawEvent, Tuple};
use crate::resolve::cgroup_tree::CgroupTree;
use crate::resolve::directory::Directory;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use netskoop_api::{EVENT_SCHEMA, Event, Net, Process};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Events that may wait between the pump and this thread.
const QUEUE: usize = 4096;
/// How long an event waits until it is known for sure whose it is.
const NAMING: Duration = Duration::from_millis(300);
/// How often waiting events are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Counts of the stages between the ring buffer and the history.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records taken from the ring.
    pub received: AtomicU64,
    /// Records that could not be decoded.
    pub malformed: AtomicU64,
    /// Events put into the history.
    pub delivered: AtomicU64,
    /// Events given up because the queue to this thread was full.
    pub overrun: AtomicU64,
    /// Events left out because nobody wants those of their entity.
    pub filtered_by_entity: AtomicU64,
    /// Times that an event in the history was named again.
    pub relabelled: AtomicU64,
    /// Whether cgroups cannot be looked up: then nobody can tell whose a socket in the node's own namespace is.
    pub without_cgroups: AtomicBool,
}

/// What this thread needs.
pub struct Bus {
    /// Where events go.
    pub history: Arc<History>,
    /// Counts of all stages.
    pub counts: Arc<Counts>,
    /// Names of the namespaces.
    pub directory: Arc<ArcSwap<Directory>>,
    /// Symbols and drop reasons.
    pub known: Arc<Known>,
    /// Name of the node.
    pub node: String,
    /// Identifies this run.
    pub boot: String,
    /// procfs, which tells where the cgroups are.
    pub proc: PathBuf,
}

/// A decoded event and the probe it comes from.
pub struct Incoming {
    /// Name of the probe.
    pub probe: &'static str,
    /// The event.
    pub event: RawEvent,
}

/// Where the pump puts events.
#[derive(Clone)]
pub struct Intake {
    /// Of boxes: the room for all that may wait is taken at once.
    queue: mpsc::SyncSender<Box<Incoming>>,
    counts: Arc<Counts>,
    chosen: Arc<ArcSwap<Chosen>>,
}

/// The entities whose events are wanted, of probes of which not all are.
type Chosen = FxHashMap<&'static str, Entities>;

impl Intake {
    /// Tells which entities' events of a probe are wanted from now on.
    pub fn choose(&self, probe: &'static str, options: &Options) {
        let entities = Some(Entities::new(options)).filter(|entities| !entities.are_all());
        if self.chosen.load().get(probe) == entities.as_ref() {
            return;
        }
        self.chosen.rcu(|chosen| {
            let mut chosen = Chosen::clone(chosen);
            match &entities {
                Some(entities) => drop(chosen.insert(probe, entities.clone())),
                None => drop(chosen.remove(probe)),
            }
            chosen
        });
    }

    /// Hands over what did not come through the ring.
    pub fn found(&self, probe: &'static str, event: RawEvent) {
        self.counts.received.fetch_add(1, Ordering::Relaxed);
        self.put(Incoming { probe, event });
    }

    /// Hands an event over, or counts it as lost.
    pub fn put(&self, incoming: Incoming) {
        if self.queue.try_send(Box::new(incoming)).is_err() {
            self.counts.overrun.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Bus {
    /// Starts the thread. It ends when the last intake is dropped.
    pub fn start(self) -> std::io::Result<(Intake, std::thread::JoinHandle<()>)> {
        let (queue, inbox) = mpsc::sync_channel(QUEUE);
        let counts = Arc::clone(&self.counts);
        let chosen = Arc::new(ArcSwap::default());
        let intake = Intake { queue, counts, chosen: Arc::clone(&chosen) };
        let thread = std::thread::Builder::new().name("netskoop-events".into());
        let thread = thread.spawn(move || Naming::new(self, chosen).run(&inbox))?;
        Ok((intake, thread))
    }

    fn event(&self, probe: &'static str, raw: RawEvent) -> Event {
        Event {
            schema: EVENT_SCHEMA,
            boot: self.boot.clone(),
            seq: 0,
            time: wall_time(raw.time).to_string(),
            kind: raw.decl.name.to_owned(),
            probe: probe.to_owned(),
            node: self.node.clone(),
            entity: None,
            container: None,
            peer: None,
            net: raw.tuple.map(net),
            process: raw.process.map(|(pid, comm)| Process { pid, comm }),
            fields: raw.fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            stack: without_hooks(self.known.symbols.names(&raw.stack)),
            suppressed: raw.suppressed,
        }
    }
}

/// An event that waits for its turn.
struct Waiting {
    until: Instant,
    place: Place,
    incoming: Incoming,
}

/// What the thread works with. The tree of cgroups is here, since reading it takes milliseconds.
struct Naming {
    bus: Bus,
    chosen: Arc<ArcSwap<Chosen>>,
    tree: CgroupTree,
    waiting: VecDeque<Waiting>,
    unsettled: Unsettled,
    /// Places whose events have waited in vain: those that follow do not, until something has changed.
    in_vain: FxHashSet<Place>,
    generation: u64,
}

impl Naming {
    fn new(bus: Bus, chosen: Arc<ArcSwap<Chosen>>) -> Naming {
        let tree = CgroupTree::new(&bus.proc);
        bus.counts.without_cgroups.store(tree.mount_point().is_none(), Ordering::Relaxed);
        Naming {
            tree,
            bus,
            chosen,
            waiting: VecDeque::new(),
            unsettled: Unsettled::default(),
            in_vain: FxHashSet::default(),
            generation: 0,
        }
    }

    fn run(mut self, inbox: &mpsc::Receiver<Box<Incoming>>) {
        loop {
            match self.next(inbox) {
                Ok(incoming) => self.accept(incoming),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.waiting.iter_mut().for_each(|waiting| waiting.until = Instant::now());
                    self.deliver_named();
                    return;
                }
            }
            self.deliver_named();
            let now = Instant::now();
            if self.unsettled.next_look().is_some_and(|at| at <= now) {
                let directory = self.bus.directory.load();
                let named = self.unsettled.look(&directory, &mut self.tree, &self.bus.history, now);
                self.bus.counts.relabelled.fetch_add(named, Ordering::Relaxed);
            }
        }
    }

    /// The next event; at rest it sleeps until there is one.
    fn next(&self, inbox: &mpsc::Receiver<Box<Incoming>>) -> Result<Incoming, mpsc::RecvTimeoutError> {
        let look = self.unsettled.next_look().map(|at| at.saturating_duration_since(Instant::now()));
        let waiting = (!self.waiting.is_empty()).then_some(LOOK);
        let next = match waiting.into_iter().chain(look).min() {
            Some(limit) => inbox.recv_timeout(limit),
            None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        next.map(|incoming| *incoming)
    }

    fn accept(&mut self, incoming: Incoming) {
        let RawEvent { netns, cookie, cgroup, .. } = incoming.event;
        let place = Place { netns, cookie, socket: Socket::of(cgroup, &mut self.tree) };
        self.waiting.push_back(Waiting { until: Instant::now() + NAMING, place, incoming });
    }

    /// Delivers in order of arrival; the first one that still waits for its name holds up those behind it, for at most
    /// [`NAMING`], so that the stream stays in the order of time.
    fn deliver_named(&mut self) {
        let directory = self.bus.directory.load_full();
        if self.generation != directory.generation() {
            self.generation = directory.generation();
            self.in_vain.clear();
        }
        let now = Instant::now();
        while let Some(Waiting { until, mut place, incoming }) = self.waiting.pop_front() {
            place.socket.resolve(&mut self.tree);
            let names = Names::find(&directory, &place, incoming.event.tuple.as_ref());
            let full = self.waiting.len() + 1 >= QUEUE;
            if !names.settled && until > now && !full && !self.in_vain.contains(&place) {
                self.waiting.push_front(Waiting { until, place, incoming });
                return;
            }
            self.deliver(place, incoming, names, now);
        }
    }

    fn deliver(&mut self, place: Place, incoming: Incoming, names: Names, now: Instant) {
        let Incoming { probe, event: raw } = incoming;
        // Who is not known for sure may turn out to be wanted.
        if names.settled && self.chosen.load().get(probe).is_some_and(|of| !of.have(names.entity.as_ref())) {
            self.bus.counts.filtered_by_entity.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let tuple = raw.tuple;
        let mut event = self.bus.event(probe, raw);
        names.put(&mut event, place.netns);
        let seq = self.bus.history.push(event);
        self.bus.counts.delivered.fetch_add(1, Ordering::Relaxed);
        if !names.settled {
            if self.in_vain.len() >= QUEUE {
                self.in_vain.clear();
            }
            self.in_vain.insert(place.clone());
            self.unsettled.remember(seq, place, tuple, names, now);
        }
    }
}

/// Leaves out the innermost frames that are the hook itself: the BPF program, which has no symbol unless the kernel is told
/// to give it one, and what calls it.
fn without_hooks(mut stack: Vec<String>) -> Vec<String> {
    let hook = |frame: &String| {
        ["0x", "bpf_", "__bpf_", "__traceiter_"].iter().any(|prefix| frame.starts_with(prefix))
    };
    let first = stack.iter().position(|frame| !hook(frame)).unwrap_or(0);
    stack.drain(..first);
    stack
}

fn net(tuple: Tuple) -> Net {
    let proto = match tuple.proto {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmp6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    };
    let end = |address: IpAddr, port| match tuple.proto {
        // Nobody sends from there: a UDP socket that is not connected has no other peer to tell of.
        6 | 17 | 136 if address.is_unspecified() && port == 0 => "*".to_owned(),
        _ => address.to_string(),
    };
    Net {
        proto,
        src: end(tuple.src, tuple.sport),
        sport: tuple.sport,
        dst: end(tuple.dst, tuple.dport),
        dport: tuple.dport,
    }
}

/// The date of a moment on the kernel's monotonic clock.
fn wall_time(monotonic: u64) -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    let ago = now - i128::from(monotonic);
    let nanoseconds = Timestamp::now().as_nanosecond() - ago;
    Timestamp::from_nanosecond(nanoseconds).unwrap_or_else(|_| Timestamp::now())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An event of some type.
    pub(crate) fn event(kind: &str) -> Event {
        Event {
            schema: EVENT_SCHEMA,
            boot: "b".into(),
            seq: 0,
            time: "2026-01-01T00:00:00Z".into(),
            kind: kind.into(),
            probe: "test".into(),
            node: "n".into(),
            entity: None,
            container: None,
            peer: None,
            net: None,
            process: None,
            fields: std::collections::BTreeMap::new(),
            stack: vec![],
            suppressed: 0,
        }
    }

    #[test]
    fn monotonic_now_is_wall_now() {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap();
        let apart = wall_time(now).duration_since(Timestamp::now()).as_millis().abs();
        assert!(apart < 5_000, "{apart} ms apart");
    }

    #[test]
    fn a_stack_begins_where_the_hook_was_called() {
        let of = |frames: &[&str]| without_hooks(frames.iter().map(|f| (*f).to_owned()).collect());
        let stack = of(&[
            "0xffffffffc002a7d4",
            "bpf_trace_run4+0x8c",
            "__traceiter_kfree_skb+0x40",
            "tcp_v4_rcv+0x91",
        ]);
        assert_eq!(stack, ["tcp_v4_rcv+0x91"]);
        assert_eq!(of(&["0x1", "0x2"]), ["0x1", "0x2"], "without symbols everything stays");
    }

    #[test]
    fn protocols_have_their_usual_names() {
        let tuple = |proto| Tuple {
            proto,
            src: "::1".parse().unwrap(),
            sport: 1,
            dst: "::2".parse().unwrap(),
            dport: 2,
        };
        assert_eq!(net(tuple(6)).proto, "tcp");
        assert_eq!(net(tuple(89)).proto, "89");
    }

    #[test]
    fn a_peer_that_is_not_known_has_no_address() {
        let from = |proto, src: &str, sport| {
            net(Tuple { proto, src: src.parse().unwrap(), sport, dst: "0.0.0.0".parse().unwrap(), dport: 53 })
        };
        assert_eq!((&*from(17, "0.0.0.0", 0).src, &*from(17, "::", 0).src), ("*", "*"));
        assert_eq!(from(17, "0.0.0.0", 0).dst, "0.0.0.0", "the port is that of a socket for all addresses");
        assert_eq!(from(17, "0.0.0.0", 68).src, "0.0.0.0", "who asks for an address has none");
        assert_eq!(from(58, "::", 0).src, "::", "and asks whether another has it");
    }
}
