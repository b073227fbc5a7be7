//! The last events, kept in memory. Those who follow the stream read from here by sequence number, so that history and
//! live join without gap or repeat, and a slow reader costs nothing but its own losses.

use netskoop_api::Event;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The ring of kept events.
pub struct History {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    capacity: AtomicU64,
    missed: AtomicU64,
    closed: AtomicBool,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    last_seq: u64,
}

/// A piece of the stream.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, oldest first.
    pub events: Vec<Arc<Event>>,
    /// Events after the asked-for one that are no longer kept.
    pub missed: u64,
    /// Where to go on.
    pub next_after: u64,
}

impl History {
    /// An empty history of at most `capacity` events.
    pub fn new(capacity: usize) -> History {
        History {
            ring: Mutex::default(),
            newest: watch::channel(0).0,
            capacity: AtomicU64::new(capacity as u64),
            missed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how many are kept.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity as u64, Ordering::Relaxed);
        self.shrink(&mut self.ring());
    }

    fn shrink(&self, ring: &mut Ring) {
        let capacity = usize::try_from(self.capacity.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let excess = ring.events.len().saturating_sub(capacity);
        ring.events.drain(..excess);
    }

    /// Numbers an event and keeps it; its number.
    pub fn push(&self, mut event: Event) -> u64 {
        let seq = {
            let mut ring = self.ring();
            ring.last_seq += 1;
            event.seq = ring.last_seq;
            ring.events.push_back(Arc::new(event));
            self.shrink(&mut ring);
            ring.last_seq
        };
        // Only those who follow are woken.
        self.newest.send_replace(seq);
        seq
    }

    /// Changes an event that is still kept. Those who follow the stream have had it as it was.
    pub fn change(&self, seq: u64, change: impl FnOnce(&mut Event)) {
        let mut ring = self.ring();
        let first = ring.last_seq + 1 - ring.events.len() as u64;
        let at = seq.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(event) = at.and_then(|at| ring.events.get_mut(at)) {
            change(Arc::make_mut(event));
        }
    }

    /// At most `limit` events after sequence number `after`.
    pub fn read(&self, after: u64, limit: usize) -> Batch {
        let ring = self.ring();
        let first = ring.last_seq + 1 - ring.events.len() as u64;
        // The number is the client's, so it may be any.
        let wanted = after.saturating_add(1);
        let start = wanted.max(first);
        let missed = start - wanted;
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        let events: Vec<_> = ring.events.iter().skip(skip).take(limit).cloned().collect();
        let next_after = (start - 1) + events.len() as u64;
        drop(ring);
        self.missed.fetch_add(missed, Ordering::Relaxed);
        Batch { events, missed, next_after }
    }

    /// Sequence number before the oldest event kept: reading from there misses nothing that is still here.
    pub fn before_oldest(&self) -> u64 {
        let ring = self.ring();
        ring.last_seq - ring.events.len() as u64
    }

    /// Number of the newest event; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.ring().last_seq
    }

    /// Events kept now.
    pub fn len(&self) -> usize {
        self.ring().events.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Follows the stream: tells the number of the newest event. `None` if `most` do so already.
    pub fn follow(&self, most: usize) -> Option<watch::Receiver<u64>> {
        // Looking and taking the place are one step, whoever else asks at the same time.
        let _ring = self.ring();
        (self.newest.receiver_count() < most).then(|| self.newest.subscribe())
    }

    /// How many follow the stream now.
    pub fn followers(&self) -> usize {
        self.newest.receiver_count()
    }

    /// Nothing comes any more: those who follow the stream are let go.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.newest.send_modify(|_| {});
    }

    /// Whether nothing comes any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Events that readers were told they missed.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(capacity: usize, pushed: u64) -> History {
        let history = History::new(capacity);
        for _ in 0..pushed {
            history.push(crate::events::bus::tests::event("TEST"));
        }
        history
    }

    fn seqs(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn reading_on_gives_each_event_once() {
        let history = history(10, 5);
        let first = history.read(0, 3);
        assert_eq!((seqs(&first), first.missed), (vec![1, 2, 3], 0));
        let second = history.read(first.next_after, 3);
        assert_eq!((seqs(&second), second.next_after), (vec![4, 5], 5));
        assert!(history.read(5, 3).events.is_empty());
    }

    #[test]
    fn an_event_that_is_kept_can_be_changed() {
        let history = history(3, 5);
        let before = history.read(0, 10);
        for seq in [0, 2, 4, 9, u64::MAX] {
            history.change(seq, |event| event.node = "changed".into());
        }
        let nodes = |batch: &Batch| batch.events.iter().map(|event| event.node.clone()).collect::<Vec<_>>();
        let after = history.read(0, 10);
        assert_eq!(
            (nodes(&after), seqs(&after)),
            (["n", "changed", "n"].map(str::to_owned).into(), vec![3, 4, 5])
        );
        assert_eq!(nodes(&before), ["n", "n", "n"], "who has read it keeps what was read");
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let history = history(3, 10);
        let batch = history.read(2, 100);
        assert_eq!((seqs(&batch), batch.missed, history.missed()), (vec![8, 9, 10], 5, 5));
        assert_eq!(history.before_oldest(), 7);
    }

    #[test]
    fn who_follows_has_a_place_from_the_first_moment() {
        let history = history(3, 2);
        let first = history.follow(2).unwrap();
        let second = history.follow(2).unwrap();
        assert_eq!((history.followers(), *second.borrow()), (2, 2));
        assert!(history.follow(2).is_none());
        drop(first);
        assert!(history.follow(2).is_some(), "the place is free again");
    }

    #[test]
    fn a_reader_from_the_future_waits() {
        let history = history(3, 2);
        for after in [7, u64::MAX - 1, u64::MAX] {
            let batch = history.read(after, 100);
            assert_eq!((batch.events.len(), batch.missed, history.missed()), (0, 0, 0), "{after}");
            assert!(batch.next_after >= 7, "it goes on waiting: {batch:?}");
        }
    }
}
