//! TCP sockets, as sock_diag(7) lists them (`ss -tan`).

use super::message::{Message, attribute, u32_at};
use super::{Netlink, NetlinkError};
use rustix::io::Errno;

/// States by the kernel's numbers, the first of which is 1. The kernel tells of a connection that is being accepted as
/// `syn_recv`, whether it has a socket already or not.
pub const STATES: [&str; 11] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];
/// Number of [`STATES`] for connections that both sides have agreed on.
pub const ESTABLISHED: u8 = 1;
/// Number of [`STATES`] for sockets that wait for connections.
pub const LISTEN: u8 = 10;

/// Bits for all states: 0 is none, and 12 is that of connections that are being accepted and have no socket yet. The next one
/// would make the kernel walk through the sockets that are bound only.
const ALL: u32 = (1 << 13) - 2;

/// `TCPDIAG_GETSOCK`: the older question, which is the only one that is answered for both IP versions with one walk through
/// the kernel's table of sockets.
const BOTH: u16 = 18;
/// `SOCK_DIAG_BY_FAMILY`: the newer question, for one IP version.
const BY_FAMILY: u16 = 20;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
/// `INET_DIAG_SKMEMINFO`, and where the drops are in what it says.
const MEMORY: u16 = 7;
const MEMORY_DROPS: usize = 8 * 4;
/// Length of `struct inet_diag_msg`.
const HEAD: usize = 72;
/// Numbers of `idiag_timer`.
const TIMER_RETRANSMIT: u8 = 1;
const TIMER_PROBE: u8 = 4;

/// Which sockets are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that listen, with their drops; the kernel need not walk through the connections for that.
    Listening,
    /// All others.
    Connected,
}

/// What is sent.
struct Question {
    kind: u16,
    body: [u8; 60],
    length: usize,
}

impl Question {
    fn new(which: Which, family: Option<u8>) -> Question {
        let listening = 1_u32 << LISTEN;
        let (states, extensions) = match which {
            Which::Listening => (listening, 1_u8 << (MEMORY - 1)),
            Which::Connected => (ALL & !listening, 0),
        };
        let mut body = [0; 60];
        match family {
            None => {
                body[3] = extensions;
                body[52..56].copy_from_slice(&states.to_ne_bytes());
                Question { kind: BOTH, body, length: 60 }
            }
            Some(family) => {
                body[..3].copy_from_slice(&[family, TCP, extensions]);
                body[4..8].copy_from_slice(&states.to_ne_bytes());
                Question { kind: BY_FAMILY, body, length: 56 }
            }
        }
    }
}

/// One socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    head: &'a [u8; HEAD],
    rest: &'a [u8],
}

impl<'a> Socket<'a> {
    /// What a message of the list says; `None` if it is none, too short, or of a state that nobody knows.
    pub fn parse(message: &Message<'a>) -> Option<Socket<'a>> {
        let (head, rest) = message.body.split_first_chunk()?;
        let socket = Socket { head, rest };
        let known = (1..=STATES.len()).contains(&usize::from(socket.state()));
        (known && matches!(message.kind, BOTH | BY_FAMILY)).then_some(socket)
    }

    /// Number of its state; [`STATES`] begins with 1.
    pub fn state(&self) -> u8 {
        self.head[1]
    }

    /// Whether it has sent something again that the other side has not acknowledged yet.
    pub fn retransmits(&self) -> bool {
        self.head[2] == TIMER_RETRANSMIT && self.head[3] > 0
    }

    /// Whether it asks from time to time if the other side has room again.
    pub fn probes_window(&self) -> bool {
        self.head[2] == TIMER_PROBE
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.head[4], self.head[5]])
    }

    /// Its own address and port.
    pub fn address(&self) -> Address {
        let mut bytes = [0; 16];
        let v6 = self.head[0] == INET6;
        let length = if v6 { 16 } else { 4 };
        bytes[..length].copy_from_slice(&self.head[8..8 + length]);
        Address { bytes, v6, port: self.port() }
    }

    /// A number that no other socket has had since the boot.
    pub fn cookie(&self) -> u64 {
        u64::from(self.number(44)) | u64::from(self.number(48)) << 32
    }

    /// Bytes received that nobody has read; of one that listens, connections that wait for `accept`.
    pub fn receive_queue(&self) -> u32 {
        self.number(56)
    }

    /// Bytes written that the other side has not acknowledged; of one that listens, how many connections may wait.
    pub fn send_queue(&self) -> u32 {
        self.number(60)
    }

    /// What it dropped; 0 if the kernel does not say.
    pub fn drops(&self) -> u32 {
        attribute(self.rest, MEMORY).and_then(|bytes| u32_at(bytes, MEMORY_DROPS)).unwrap_or(0)
    }

    fn number(&self, at: usize) -> u32 {
        u32_at(self.head, at).unwrap_or(0)
    }
}

/// Address and port of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    bytes: [u8; 16],
    v6: bool,
    port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.v6 {
            return write!(out, "[{}]:{}", std::net::Ipv6Addr::from(self.bytes), self.port);
        }
        let [a, b, c, d, ..] = self.bytes;
        write!(out, "{a}.{b}.{c}.{d}:{}", self.port)
    }
}

/// Lists the sockets of both IP versions. `start` is told of each list that begins or begins anew, with its number; what came
/// of that one before is void.
pub fn list(
    netlink: &mut Netlink,
    buffer: &mut Vec<u8>,
    which: Which,
    mut start: impl FnMut(usize),
    mut each: impl FnMut(&Socket<'_>),
) -> Result<(), NetlinkError> {
    let mut ask = |family: Option<u8>, number: usize| {
        let question = Question::new(which, family);
        let body = &question.body[..question.length];
        netlink.dump(
            question.kind,
            body,
            buffer,
            || start(number),
            |(), message| {
                if let Some(socket) = Socket::parse(&message) {
                    each(&socket);
                }
            },
        )
    };
    match ask(None, 0) {
        // A kernel without the older question.
        Err(NetlinkError::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => {
            ask(Some(INET), 0)?;
            ask(Some(INET6), 1)
        }
        answer => answer,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The body of a message as the kernel writes it.
    pub(crate) fn body(state: u8, port: u16, cookie: u64, queues: (u32, u32), drops: Option<u32>) -> Vec<u8> {
        let mut body = vec![0; HEAD];
        (body[0], body[1]) = (INET, state);
        body[4..6].copy_from_slice(&port.to_be_bytes());
        body[8..12].copy_from_slice(&[10, 0, 0, 7]);
        body[44..52].copy_from_slice(&cookie.to_ne_bytes());
        body[56..60].copy_from_slice(&queues.0.to_ne_bytes());
        body[60..64].copy_from_slice(&queues.1.to_ne_bytes());
        if let Some(drops) = drops {
            let mut memory = vec![0; MEMORY_DROPS];
            memory.extend(drops.to_ne_bytes());
            super::super::message::put(&mut body, 15, &[0; 4]);
            super::super::message::put(&mut body, MEMORY, &memory);
        }
        body
    }

    pub(crate) fn message(body: &[u8]) -> Message<'_> {
        Message { kind: BOTH, flags: 2, sequence: 1, body }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{body, message};
    use super::*;
    use crate::kernel::netlink::Family;
    use std::net::{Ipv6Addr, TcpListener};

    #[test]
    fn a_message_of_the_kernel_is_read() {
        let bytes = body(LISTEN, 8080, 7 << 32 | 5, (3, 128), Some(9));
        let socket = Socket::parse(&message(&bytes)).unwrap();
        assert_eq!((socket.state(), socket.port(), socket.cookie()), (LISTEN, 8080, 7 << 32 | 5));
        assert_eq!((socket.receive_queue(), socket.send_queue(), socket.drops()), (3, 128, 9));
        assert_eq!(socket.address().to_string(), "10.0.0.7:8080");
        assert!(!socket.retransmits() && !socket.probes_window());
    }

    #[test]
    fn an_address_of_ipv6_stands_in_brackets() {
        let mut bytes = body(LISTEN, 80, 1, (0, 0), None);
        bytes[0] = INET6;
        bytes[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        assert_eq!(Socket::parse(&message(&bytes)).unwrap().address().to_string(), "[::1]:80");
    }

    #[test]
    fn timers_tell_what_hangs() {
        let timer = |timer, count| {
            let mut bytes = body(ESTABLISHED, 1, 1, (0, 1), None);
            bytes[2..4].copy_from_slice(&[timer, count]);
            let socket = Socket::parse(&message(&bytes)).map(|s| (s.retransmits(), s.probes_window()));
            socket.unwrap()
        };
        // The timer runs whenever something is under way.
        assert_eq!((timer(1, 0), timer(1, 2)), ((false, false), (true, false)));
        assert_eq!(
            (timer(4, 0), timer(3, 1), timer(255, 255)),
            ((false, true), (false, false), (false, false))
        );
    }

    #[test]
    fn what_is_no_socket_is_passed_over() {
        let whole = body(ESTABLISHED, 1, 1, (0, 0), Some(1));
        for length in 0..HEAD {
            assert!(Socket::parse(&message(&whole[..length])).is_none(), "{length}");
        }
        // Attributes that are cut say nothing.
        for length in HEAD..whole.len() {
            assert_eq!(Socket::parse(&message(&whole[..length])).unwrap().drops(), 0, "{length}");
        }
        for state in [0, 12, 13, 255] {
            assert!(Socket::parse(&message(&body(state, 1, 1, (0, 0), None))).is_none(), "{state}");
        }
        assert!(Socket::parse(&Message { kind: 4, ..message(&whole) }).is_none());
        let mut lying = whole.clone();
        lying[HEAD..HEAD + 2].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(Socket::parse(&message(&lying)).unwrap().drops(), 0);
    }

    #[test]
    fn a_list_that_is_not_at_its_end_in_time_is_given_up() {
        let _one = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut netlink = Netlink::open(Family::SockDiag).unwrap();
        netlink.stop_at(std::time::Instant::now());
        let answer = list(&mut netlink, &mut vec![], Which::Listening, |_| (), |_| ());
        assert_eq!(answer, Err(NetlinkError::Late));
    }

    /// Needs no privileges: these are the sockets of the test's own namespace.
    #[test]
    fn the_kernel_answers_for_both_versions_at_once_and_for_each() {
        let (v4, v6) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").ok());
        let mut expected = vec![v4.local_addr().unwrap().to_string()];
        expected.extend(v6.iter().map(|v6| v6.local_addr().unwrap().to_string()));
        let mut netlink = Netlink::open(Family::SockDiag).unwrap();
        let found = std::cell::RefCell::new(Vec::new());
        let each = |socket: &Socket<'_>| {
            assert_eq!(socket.state(), LISTEN);
            found.borrow_mut().push(socket.address().to_string());
        };
        list(&mut netlink, &mut vec![], Which::Listening, |_| found.borrow_mut().clear(), each).unwrap();
        assert!(expected.iter().all(|address| found.borrow().contains(address)), "{expected:?} {found:?}");
        found.borrow_mut().clear();
        for family in [INET, INET6] {
            let question = Question::new(Which::Listening, Some(family));
            let body = &question.body[..question.length];
            let each = |(): &mut (), message: Message<'_>| {
                found.borrow_mut().extend(Socket::parse(&message).map(|s| s.address().to_string()));
            };
            netlink.dump(question.kind, body, &mut vec![], || (), each).unwrap();
        }
        assert!(expected.iter().all(|address| found.borrow().contains(address)), "{expected:?} {found:?}");
    }
}
