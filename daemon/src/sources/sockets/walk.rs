//! What is counted while the kernel lists the connections of a namespace: the same few numbers, however many there are.

use crate::kernel::netlink::sock_diag::{ESTABLISHED, STATES, Socket};

/// Bytes in the two queues of sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) send: u64,
    pub(super) receive: u64,
}

/// Sums over the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Connections by state, in the order of [`STATES`].
    pub(super) states: [u64; STATES.len()],
    /// Of those that are established.
    pub(super) established: Queues,
    /// Of all the others.
    pub(super) others: Queues,
    pub(super) retransmitting: u64,
    pub(super) probing: u64,
}

impl Totals {
    fn add(&mut self, socket: &Socket<'_>) {
        let state = socket.state();
        if let Some(count) = self.states.get_mut(usize::from(state).wrapping_sub(1)) {
            *count += 1;
        }
        let queues = if state == ESTABLISHED { &mut self.established } else { &mut self.others };
        queues.send += u64::from(socket.send_queue());
        queues.receive += u64::from(socket.receive_queue());
        self.retransmitting += u64::from(socket.retransmits());
        self.probing += u64::from(socket.probes_window());
    }
}

/// Ports from which the kernel takes one for a connection that names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortRange {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl PortRange {
    /// Reads `ip_local_port_range`.
    pub(super) fn parse(text: &[u8]) -> Option<PortRange> {
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace().map(str::parse);
        let (first, last) = (words.next()?.ok()?, words.next()?.ok()?);
        (first <= last).then_some(PortRange { first, last })
    }

    /// How many there are.
    pub(super) fn size(self) -> u64 {
        u64::from(self.last) - u64::from(self.first) + 1
    }
}

/// One bit for each port.
#[derive(Debug)]
struct Ports(Box<[u64; 1024]>);

impl Default for Ports {
    fn default() -> Ports {
        Ports(Box::new([0; 1024]))
    }
}

impl Ports {
    fn insert(&mut self, port: u16) {
        self.0[usize::from(port) / 64] |= 1 << (port % 64);
    }

    fn count(&self, range: PortRange) -> u64 {
        let inside = |port: &u16| self.0[usize::from(*port) / 64] >> (port % 64) & 1 == 1;
        (range.first..=range.last).filter(inside).count() as u64
    }
}

/// A walk through the connections of one namespace. Its memory is used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) totals: Totals,
    /// What the first list found, as soon as there is a second one.
    before: Option<Totals>,
    ports: Ports,
    range: Option<PortRange>,
}

impl Walk {
    /// Begins with a namespace. With a range the ports in it are looked at.
    pub(super) fn begin(&mut self, range: Option<PortRange>) {
        (self.totals, self.before, self.range) = (Totals::default(), None, range);
        if range.is_some() {
            self.ports.0.fill(0);
        }
    }

    /// A list begins, perhaps anew. The first of them is number 0.
    pub(super) fn list(&mut self, number: usize) {
        match number {
            0 => self.begin(self.range),
            _ => self.totals = *self.before.get_or_insert(self.totals),
        }
    }

    /// One more connection.
    pub(super) fn add(&mut self, socket: &Socket<'_>) {
        self.totals.add(socket);
        if self.range.is_some() {
            self.ports.insert(socket.port());
        }
    }

    /// Millionths of the ports of the range that connections have as their own.
    pub(super) fn ports_used(&self) -> Option<u64> {
        let range = self.range?;
        Some(self.ports.count(range) * 1_000_000 / range.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::sock_diag::testing::{body, message};

    fn add(walk: &mut Walk, state: u8, port: u16, queues: (u32, u32)) {
        walk.add(&Socket::parse(&message(&body(state, port, 1, queues, None))).unwrap());
    }

    #[test]
    fn connections_are_counted_by_state_and_their_queues_added_up() {
        let mut walk = Walk::default();
        walk.begin(None);
        walk.list(0);
        add(&mut walk, ESTABLISHED, 1, (u32::MAX, 7));
        add(&mut walk, ESTABLISHED, 1, (u32::MAX, 1));
        add(&mut walk, 8, 2, (5, 0));
        let totals = walk.totals;
        assert_eq!((totals.states[0], totals.states[7], totals.states.iter().sum()), (2, 1, 3));
        assert_eq!(totals.established, Queues { send: 8, receive: 2 * u64::from(u32::MAX) });
        assert_eq!(totals.others, Queues { send: 0, receive: 5 });
        assert_eq!(walk.ports_used(), None);
    }

    #[test]
    fn a_list_that_begins_anew_is_counted_once() {
        let mut walk = Walk::default();
        walk.begin(Some(PortRange { first: 1, last: 10 }));
        for (number, port) in [(0, 9), (0, 1), (1, 2), (1, 3)] {
            walk.list(number);
            add(&mut walk, 1, port, (1, 0));
        }
        assert_eq!((walk.totals.states[0], walk.totals.established.receive), (2, 2));
    }

    #[test]
    fn ports_of_the_range_count_once() {
        let mut walk = Walk::default();
        walk.begin(Some(PortRange { first: 1000, last: 1003 }));
        for port in [999, 1000, 1000, 1003, 1004, 0, 65535] {
            add(&mut walk, 1, port, (0, 0));
        }
        assert_eq!(walk.ports_used(), Some(500_000));
        walk.begin(Some(PortRange { first: 0, last: u16::MAX }));
        assert_eq!(walk.ports_used(), Some(0));
    }

    #[test]
    fn the_range_is_read_as_the_kernel_writes_it() {
        assert_eq!(PortRange::parse(b"32768\t60999\n"), Some(PortRange { first: 32768, last: 60999 }));
        for bad in [&b""[..], b"1", b"2 1", b"1 65536", b"a b", b"\xff 1"] {
            assert_eq!(PortRange::parse(bad), None, "{bad:?}");
        }
    }
}
