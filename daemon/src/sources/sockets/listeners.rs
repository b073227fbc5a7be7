//! What the listening sockets of each namespace had dropped when they were last seen. Their sum must not fall when one is
//! closed, or `rate()` would take that for a restart; and the kernel counts with 32 bits.

use crate::kernel::netlink::sock_diag::{Address, Socket};
use crate::table::Subject;
use rustc_hash::FxHashMap;

/// Sockets remembered at most, all namespaces together: 24 bytes each.
pub(super) const MAX_KEPT: usize = 32 * 1024;
/// Addresses of a namespace shown one by one at most.
pub(super) const MAX_SHOWN: usize = 32;
/// [`Kept::place`] of what is not shown by itself.
const OTHER: usize = MAX_SHOWN;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: Address,
    pub(super) cookie: u64,
    /// Connections that wait for `accept`.
    pub(super) backlog: u32,
    /// How many may.
    pub(super) limit: u32,
    pub(super) drops: u32,
}

impl Listener {
    pub(super) fn new(socket: &Socket<'_>) -> Listener {
        Listener {
            address: socket.address(),
            cookie: socket.cookie(),
            backlog: socket.receive_queue(),
            limit: socket.send_queue(),
            drops: socket.drops(),
        }
    }

    /// Millionths of the queue that are used. The kernel refuses when there are more than the limit, so one more than that
    /// finds room.
    pub(super) fn used(&self) -> u64 {
        u64::from(self.backlog) * 1_000_000 / (u64::from(self.limit) + 1)
    }
}

/// Sums over listening sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) sockets: u64,
    pub(super) backlog: u64,
    pub(super) limit: u64,
    /// Closed ones included.
    pub(super) drops: u64,
}

impl Sums {
    fn add(&mut self, listener: &Listener, grown: u64) {
        self.sockets += 1;
        self.backlog += u64::from(listener.backlog);
        self.limit += u64::from(listener.limit);
        self.drops = self.drops.saturating_add(grown);
    }

    /// Forgets what is not a counter.
    fn begin(&mut self) {
        *self = Sums { drops: self.drops, ..Sums::default() };
    }
}

/// A socket that was seen.
#[derive(Debug)]
struct Kept {
    cookie: u64,
    seen: u64,
    drops: u32,
    /// Which of [`Known::shown`] it belongs to.
    place: u8,
}

#[derive(Debug, Default)]
struct Known {
    seen: u64,
    sockets: Vec<Kept>,
    all: Sums,
    /// Several sockets may share an address.
    shown: Vec<(Address, Sums)>,
    other: Sums,
    /// Passes in which the connections were not walked through.
    rested: u32,
    walked: u32,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Listeners {
    subjects: FxHashMap<Subject, Known>,
    held: usize,
    max: usize,
    ticket: u64,
}

/// What came of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) all: Sums,
    /// Those that are not shown one by one, if there are or were any.
    pub(super) other: Option<Sums>,
    /// Sockets that found no room: what they dropped is in no sum.
    pub(super) forgotten: u32,
}

impl Listeners {
    pub(super) fn new(max: usize) -> Listeners {
        Listeners { subjects: FxHashMap::default(), held: 0, max, ticket: 0 }
    }

    /// A number to draw before reading: a reading that was overtaken would look as if a counter had wrapped.
    pub(super) fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// The namespace is gone.
    pub(super) fn forget(&mut self, subject: Subject) {
        if let Some(known) = self.subjects.remove(&subject) {
            self.held -= known.sockets.len();
        }
    }

    /// Whether it is the turn of a namespace in which nothing hints at connections: every `turns` passes, not all namespaces
    /// in the same one.
    pub(super) fn turn(&mut self, subject: Subject, turns: u32) -> bool {
        let known = self.subjects.entry(subject).or_default();
        known.rested = known.rested.wrapping_add(1);
        known.rested.wrapping_add(subject.0).is_multiple_of(turns)
    }

    /// Number of the pass in which the connections of a namespace were last walked through.
    pub(super) fn walked(&mut self, subject: Subject) -> &mut u32 {
        &mut self.subjects.entry(subject).or_default().walked
    }

    /// The next turn comes with the next pass, however short it rested.
    pub(super) fn hurry(&mut self, subject: Subject, turns: u32) {
        if let Some(known) = self.subjects.get_mut(&subject) {
            let past = known.rested.wrapping_add(subject.0) % turns;
            known.rested = known.rested.wrapping_add(turns - 1 - past);
        }
    }

    /// Takes a whole reading of a namespace in. `show` gets the addresses that are shown one by one. `None` if a later one
    /// came first.
    pub(super) fn take(
        &mut self,
        subject: Subject,
        ticket: u64,
        listeners: &[Listener],
        mut show: impl FnMut(&Address, &Sums),
    ) -> Option<Outcome> {
        let known = self.subjects.entry(subject).or_default();
        if ticket < known.seen {
            return None;
        }
        known.seen = ticket;
        known.all.begin();
        known.other.begin();
        known.shown.iter_mut().for_each(|(_, sums)| sums.begin());
        let (mut next, mut forgotten) = (0, 0);
        for listener in listeners {
            let room = self.held < self.max;
            match known.add(listener, ticket, &mut next, room) {
                Added::Known => {}
                Added::New => self.held += 1,
                Added::NoRoom => forgotten += 1,
            }
        }
        let before = known.sockets.len();
        known.sockets.retain(|kept| kept.seen == ticket);
        self.held -= before - known.sockets.len();
        known
            .shown
            .iter()
            .filter(|(_, sums)| sums.sockets > 0)
            .for_each(|(address, sums)| show(address, sums));
        let other = (known.other != Sums::default()).then_some(known.other);
        Some(Outcome { all: known.all, other, forgotten })
    }
}

enum Added {
    Known,
    New,
    NoRoom,
}

impl Known {
    fn add(&mut self, listener: &Listener, ticket: u64, next: &mut usize, room: bool) -> Added {
        let count = self.sockets.len();
        // The kernel lists them in the same order each time.
        let mut places = (*next..count).chain(0..(*next).min(count));
        if let Some(at) = places.find(|at| self.sockets[*at].cookie == listener.cookie) {
            *next = at + 1;
            let kept = &mut self.sockets[at];
            let grown = u64::from(listener.drops.wrapping_sub(kept.drops));
            (kept.drops, kept.seen) = (listener.drops, ticket);
            let place = usize::from(kept.place);
            self.sum(place, listener, grown);
            return Added::Known;
        }
        let place = self.place(&listener.address);
        if !room {
            self.sum(place, listener, 0);
            return Added::NoRoom;
        }
        let (cookie, drops) = (listener.cookie, listener.drops);
        self.sockets.push(Kept { cookie, seen: ticket, drops, place: place as u8 });
        self.sum(place, listener, u64::from(drops));
        Added::New
    }

    fn sum(&mut self, place: usize, listener: &Listener, grown: u64) {
        self.all.add(listener, grown);
        let sums = self.shown.get_mut(place).map_or(&mut self.other, |(_, sums)| sums);
        sums.add(listener, grown);
    }

    /// Where an address is shown: by itself as long as there is room, and a place is free when nothing listens there any more.
    fn place(&mut self, address: &Address) -> usize {
        let found = self.shown.iter().position(|(known, _)| known == address);
        if let Some(at) = found {
            return at;
        }
        // Sockets of this reading have been added already; what has none of them may have some that come later.
        let used = |at: usize| self.sockets.iter().any(|kept| usize::from(kept.place) == at);
        let free = (0..self.shown.len()).find(|at| self.shown[*at].1.sockets == 0 && !used(*at));
        match free {
            Some(at) => {
                self.shown[at] = (*address, Sums::default());
                at
            }
            None if self.shown.len() < MAX_SHOWN => {
                self.shown.push((*address, Sums::default()));
                self.shown.len() - 1
            }
            None => OTHER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::sock_diag::testing::{body, message};

    const S: Subject = Subject(1);

    fn listener(port: u16, cookie: u64, drops: u32) -> Listener {
        Listener::new(&Socket::parse(&message(&body(10, port, cookie, (2, 7), Some(drops)))).unwrap())
    }

    /// Drops of all; port and drops of those that are shown; drops of the others.
    fn take(listeners: &mut Listeners, found: &[Listener]) -> (u64, Vec<(String, u64)>, Option<u64>) {
        let ticket = listeners.draw();
        let mut shown = Vec::new();
        let show = |address: &Address, sums: &Sums| shown.push((address.to_string(), sums.drops));
        let outcome = listeners.take(S, ticket, found, show).unwrap();
        assert_eq!((outcome.all.sockets, outcome.all.backlog), (found.len() as u64, 2 * found.len() as u64));
        (outcome.all.drops, shown, outcome.other.map(|sums| sums.drops))
    }

    #[test]
    fn drops_do_not_fall_when_a_listener_is_closed() {
        let mut listeners = Listeners::new(10);
        let text = |port: u16| format!("10.0.0.7:{port}");
        let found = take(&mut listeners, &[listener(1, 1, 5), listener(2, 2, 3)]);
        assert_eq!(found, (8, vec![(text(1), 5), (text(2), 3)], None));
        let found = take(&mut listeners, &[listener(2, 2, 4)]);
        assert_eq!(found, (9, vec![(text(2), 4)], None));
        // Another socket at an address that was shown before, and more at one that is shown.
        let found = take(&mut listeners, &[listener(2, 3, 1), listener(2, 2, 4), listener(1, 4, 0)]);
        assert_eq!(found, (10, vec![(text(1), 5), (text(2), 5)], None));
        assert_eq!(take(&mut listeners, &[]), (10, vec![], None));
        assert_eq!(listeners.held, 0);
    }

    #[test]
    fn a_counter_that_wraps_goes_on() {
        let mut listeners = Listeners::new(10);
        take(&mut listeners, &[listener(1, 1, u32::MAX)]);
        assert_eq!(take(&mut listeners, &[listener(1, 1, 1)]).0, u64::from(u32::MAX) + 2);
    }

    #[test]
    fn a_reading_that_was_overtaken_is_ignored() {
        let mut listeners = Listeners::new(10);
        let (early, late) = (listeners.draw(), listeners.draw());
        assert!(listeners.take(S, late, &[listener(1, 1, 9)], |_, _| ()).is_some());
        assert!(listeners.take(S, early, &[listener(1, 1, 3)], |_, _| ()).is_none());
        assert_eq!(take(&mut listeners, &[listener(1, 1, 9)]).0, 9);
    }

    #[test]
    fn addresses_beyond_the_limit_are_added_up() {
        let mut listeners = Listeners::new(1000);
        let mut all: Vec<_> = (0..40).map(|n| listener(n, u64::from(n), 1)).collect();
        let (drops, shown, other) = take(&mut listeners, &all);
        assert_eq!((drops, shown.len(), other), (40, MAX_SHOWN, Some(8)));
        // One that was among the others is closed, and one that was shown.
        all.remove(39);
        all.remove(0);
        let (drops, shown, other) = take(&mut listeners, &all);
        assert_eq!((drops, shown.len(), other), (40, MAX_SHOWN - 1, Some(8)));
        // Its place is taken by the next that comes.
        all.push(listener(100, 100, 2));
        let (drops, shown, other) = take(&mut listeners, &all);
        assert_eq!((drops, shown.len(), other), (42, MAX_SHOWN, Some(8)));
        assert_eq!(shown[0], ("10.0.0.7:100".to_owned(), 2));
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut listeners = Listeners::new(2);
        let all = [listener(1, 1, 1), listener(2, 2, 1), listener(3, 3, 1)];
        let ticket = listeners.draw();
        let outcome = listeners.take(S, ticket, &all, |_, _| ()).unwrap();
        assert_eq!((outcome.forgotten, outcome.all.drops, outcome.all.sockets), (1, 2, 3));
        listeners.forget(S);
        listeners.forget(S);
        assert_eq!((listeners.held, listeners.subjects.len()), (0, 0));
    }

    #[test]
    fn turns_are_spread_and_can_be_hurried() {
        let mut listeners = Listeners::new(1);
        let mut turns = |subject: u32| {
            let passes: Vec<u32> = (0..16).filter(|_| listeners.turn(Subject(subject), 8)).collect();
            assert_eq!(passes.len(), 2, "{passes:?}");
            passes[0]
        };
        assert_ne!(turns(1), turns(2));
        assert!(!listeners.turn(S, 8));
        listeners.hurry(S, 8);
        assert!(listeners.turn(S, 8));
        assert!(!listeners.turn(S, 8));
    }

    #[test]
    fn a_queue_is_full_when_there_is_one_more_than_the_limit() {
        let used = |backlog, limit| Listener { backlog, limit, ..listener(1, 1, 0) }.used();
        assert_eq!(
            (used(0, 0), used(1, 0), used(64, 127), used(128, 127)),
            (0, 1_000_000, 500_000, 1_000_000)
        );
        assert_eq!(used(u32::MAX, u32::MAX), 999_999);
    }
}
