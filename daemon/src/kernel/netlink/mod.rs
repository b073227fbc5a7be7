//! Questions to the kernel over netlink (netlink(7)). A socket belongs to the namespace in which it was made.

pub mod all_namespaces;
pub mod conntrack;
pub mod filters;
pub mod flows;
pub mod ipvs;
pub mod link;
pub mod message;
pub mod neigh;
pub mod nsid;
pub mod qdisc;
pub mod rdma;
pub mod sock_diag;

use message::{HEADER, Message, messages, u32_at};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netdevice::{self, InlinedName};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::time::Instant;

/// The parts of the kernel that are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, queueing disciplines, neighbours (rtnetlink(7)).
    Route,
    /// Sockets (sock_diag(7)).
    SockDiag,
    /// Connection tracking.
    Netfilter,
    /// Families with numbers given at run time.
    Generic,
    /// Remote memory access.
    Rdma,
}

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const RECEIPT: u16 = 4;
/// `NLM_F_DUMP`: root and match.
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
const INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// Length of the largest piece that the kernel sends of a dump.
const PIECE: usize = 64 * 1024;
/// Times that an interrupted question is asked.
const TRIES: u32 = 4;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the question.
    #[error("the kernel answers: {0}")]
    Refused(Errno),
    /// The socket does not work.
    #[error("{0}")]
    Socket(Errno),
    /// What was asked for changed each time it was asked.
    #[error("it changed while it was listed, {TRIES} times in a row")]
    Restless,
    /// The list was not at its end in time.
    #[error("it could not be listed in the time that it was given")]
    Late,
    /// The answer makes no sense.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}

impl From<NetlinkError> for std::io::Error {
    fn from(error: NetlinkError) -> std::io::Error {
        match error {
            NetlinkError::Refused(errno) | NetlinkError::Socket(errno) => errno.into(),
            NetlinkError::Late => std::io::Error::new(std::io::ErrorKind::TimedOut, error),
            other => std::io::Error::new(std::io::ErrorKind::InvalidData, other),
        }
    }
}

/// A socket for questions.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    retries: u32,
    deadline: Option<Instant>,
}

/// One try of a dump.
enum Round<T> {
    Whole(T),
    Again,
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    pub fn open(family: Family) -> Result<Netlink, Errno> {
        let socket = socket(family)?;
        // The kernel's address. Once connected, nothing that another process sends comes through.
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0, retries: 0, deadline: None })
    }

    /// Times that something was asked again since the last call.
    pub fn take_retries(&mut self) -> u32 {
        std::mem::take(&mut self.retries)
    }

    /// A list that is not at its end by then is given up with [`NetlinkError::Late`]. The rest of it stays in the socket, so
    /// that the kernel takes no other question for a list.
    pub fn stop_at(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Asks for a list. `start` makes what `each` collects in; where the list changed while the kernel wrote it, or some of
    /// it was lost, all is thrown away and asked again. Memory of `buffer` is used again from call to call.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        buffer: &mut Vec<u8>,
        mut start: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, Message<'_>),
    ) -> Result<T, NetlinkError> {
        for _ in 0..TRIES {
            self.send(kind, DUMP, body)?;
            match self.receive(buffer, start(), &mut each)? {
                Round::Whole(found) => return Ok(found),
                Round::Again => self.retries += 1,
            }
        }
        Err(NetlinkError::Restless)
    }

    /// Asks for a list of which only the beginning matters: what `pick` finds in its first piece. The socket ends here, since
    /// the rest of the list is left unread.
    pub fn first<T>(
        mut self,
        kind: u16,
        body: &[u8],
        buffer: &mut Vec<u8>,
        pick: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        self.send(kind, DUMP, body)?;
        let Some(length) = self.piece(buffer)? else { return Err(NetlinkError::Restless) };
        for message in messages(&buffer[..length]) {
            let message = message.map_err(NetlinkError::Malformed)?;
            match (message.kind, code(message.body)) {
                (DONE | ERROR, Some(0) | None) => return Ok(None),
                (DONE | ERROR, Some(error)) => return Err(refused(error)),
                _ => {}
            }
            if let Some(found) = pick(message) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Asks for one thing; `each` gets the answer, if there is one beside the kernel's receipt.
    pub fn ask<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        buffer: &mut Vec<u8>,
        found: T,
        mut each: impl FnMut(&mut T, Message<'_>),
    ) -> Result<T, NetlinkError> {
        self.send(kind, RECEIPT, body)?;
        match self.receive(buffer, found, &mut each)? {
            Round::Whole(found) => Ok(found),
            Round::Again => Err(NetlinkError::Restless),
        }
    }

    /// Asks for a change, with these flags beside the usual ones. Only for namespaces of the daemon's own.
    pub fn change(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), NetlinkError> {
        self.send(kind, RECEIPT | flags, body)?;
        match self.receive(buffer, (), &mut |(), _| ())? {
            Round::Whole(()) => Ok(()),
            Round::Again => Err(NetlinkError::Restless),
        }
    }

    /// Number of an interface of this namespace.
    pub fn interface_index(&self, name: &str) -> Result<u32, Errno> {
        netdevice::name_to_index(&self.socket, name)
    }

    /// Name of an interface of this namespace; `None` if it is gone.
    pub fn interface_name(&self, index: u32) -> Option<InlinedName> {
        netdevice::index_to_name_inlined(&self.socket, index).ok()
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = [0_u8; 256];
        let length = HEADER + body.len();
        let parts = request.get_mut(..length).and_then(|whole| whole.split_at_mut_checked(HEADER));
        let (head, rest) = parts.ok_or(NetlinkError::Malformed("the question is too long"))?;
        head[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_ne_bytes());
        head[4..6].copy_from_slice(&kind.to_ne_bytes());
        head[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        head[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        rest.copy_from_slice(body);
        rustix::net::send(&self.socket, &request[..length], SendFlags::empty())
            .map_err(NetlinkError::Socket)?;
        Ok(())
    }

    /// Reads the next piece of an answer, its length; `None` if some of it was lost.
    fn piece(&self, buffer: &mut Vec<u8>) -> Result<Option<usize>, NetlinkError> {
        if buffer.len() < PIECE {
            buffer.resize(PIECE, 0);
        }
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        match rustix::net::recv(&self.socket, &mut buffer[..], flags) {
            Ok((length, whole)) if whole <= length => Ok(Some(length)),
            Ok(_) => Err(NetlinkError::Malformed("a piece that is longer than any the kernel sends")),
            // What is left of it in the queue is told by its number.
            Err(Errno::NOBUFS) => Ok(None),
            Err(error) => Err(NetlinkError::Socket(error)),
        }
    }

    /// Reads pieces until the end of the list. The kernel writes each before it is read, so nothing is waited for.
    fn receive<T>(
        &self,
        buffer: &mut Vec<u8>,
        mut found: T,
        each: &mut impl FnMut(&mut T, Message<'_>),
    ) -> Result<Round<T>, NetlinkError> {
        let mut interrupted = false;
        loop {
            let Some(length) = self.piece(buffer)? else { return Ok(Round::Again) };
            for message in messages(&buffer[..length]) {
                let message = message.map_err(NetlinkError::Malformed)?;
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & INTERRUPTED != 0;
                match (message.kind, code(message.body)) {
                    (DONE, Some(0) | None) if interrupted => return Ok(Round::Again),
                    (DONE, Some(0) | None) | (ERROR, Some(0)) => return Ok(Round::Whole(found)),
                    (DONE | ERROR, Some(error)) => return Err(refused(error)),
                    (ERROR, None) => return Err(NetlinkError::Malformed("an error without a number")),
                    _ => each(&mut found, message),
                }
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(NetlinkError::Late);
            }
        }
    }
}

/// A socket in the namespace of the calling thread.
fn socket(family: Family) -> Result<OwnedFd, Errno> {
    let protocol = match family {
        Family::Route => None,
        Family::SockDiag => Some(netlink::SOCK_DIAG),
        Family::Netfilter => Some(netlink::NETFILTER),
        Family::Generic => Some(netlink::GENERIC),
        Family::Rdma => Some(netlink::RDMA),
    };
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, protocol)
}

/// The number at the beginning of the last message of a dump, or of an error.
fn code(body: &[u8]) -> Option<i32> {
    u32_at(body, 0).map(u32::cast_signed)
}

fn refused(code: i32) -> NetlinkError {
    NetlinkError::Refused(Errno::from_raw_os_error(code.wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use super::message::{attribute, text};
    use super::*;

    /// `RTM_GETLINK` of rtnetlink(7), and the attribute with the name.
    const GET_LINK: u16 = 18;
    const NAME: u16 = 3;

    fn names(body: &[u8]) -> Result<Vec<String>, NetlinkError> {
        let mut netlink = Netlink::open(Family::Route).unwrap();
        let mut buffer = Vec::new();
        netlink.dump(GET_LINK, body, &mut buffer, Vec::new, |names, message| {
            let name = attribute(&message.body[16..], NAME).map(text).unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
        })
    }

    #[test]
    fn links_are_listed() {
        assert!(names(&[0; 16]).unwrap().contains(&"lo".to_owned()));
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let mut netlink = Netlink::open(Family::Route).unwrap();
        let answer = netlink.dump(0xffff, &[0; 16], &mut Vec::new(), || (), |(), _| ());
        assert_eq!(answer, Err(NetlinkError::Refused(Errno::OPNOTSUPP)));
        // The socket is as good as before.
        assert!(netlink.dump(GET_LINK, &[0; 16], &mut Vec::new(), || (), |(), _| ()).is_ok());
        let mut loopback = [0; 16];
        loopback[4] = 1;
        let answer = netlink.ask(GET_LINK, &loopback, &mut Vec::new(), 0, |count, _| *count += 1);
        assert_eq!(answer, Ok(1));
        let answer = netlink.dump(GET_LINK, &[0; 300], &mut Vec::new(), || (), |(), _| ());
        assert_eq!(answer, Err(NetlinkError::Malformed("the question is too long")));
    }
}
