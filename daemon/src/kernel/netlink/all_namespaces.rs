//! A socket that hears what the kernel tells in every network namespace to which the socket's own has given a number
//! (`NETLINK_LISTEN_ALL_NSID` of netlink(7)).

#![allow(unsafe_code, reason = "rustix knows neither the option nor the control message with the number")]

use super::Family;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use std::mem::zeroed;

/// Messages that are read with one call.
const BATCH: usize = 64;
/// Room for each; what is longer is cut, and told as such.
const PIECE: usize = 4096;
/// Room for the control message with a number, in words that are aligned as the kernel wants it.
const CONTROL: usize = 4;
/// `SOL_NETLINK` and `NETLINK_LISTEN_ALL_NSID`.
const LEVEL: libc::c_int = 270;
const LISTEN_ALL_NSID: libc::c_int = 8;
/// `SO_MEMINFO`, and where in it the number of messages is that found no room (`SK_MEMINFO_DROPS`).
const MEMINFO: libc::c_int = 55;
const DROPS: usize = 8;

/// The socket, and what was read from it last.
pub struct Listener {
    socket: OwnedFd,
    bytes: Vec<u8>,
    heads: Vec<Head>,
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    cut: bool,
    nsid: Option<i32>,
}

/// One thing the kernel has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The number of the namespace; `None` for the socket's own.
    pub nsid: Option<i32>,
    /// The messages; `None` if there was no room for them.
    pub bytes: Option<&'a [u8]>,
}

impl Listener {
    /// Joins groups, a bit for each, for all namespaces. `room` is how many bytes may wait in the socket.
    pub fn open(family: Family, groups: u32, room: usize) -> Result<Listener, Errno> {
        let socket = super::socket(family)?;
        // Without the privilege it is as large as everybody's.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, room);
        listen_everywhere(socket.as_fd())?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Listener { socket, bytes: vec![0; BATCH * PIECE], heads: Vec::with_capacity(BATCH) })
    }

    /// Reads what is there, at most [`BATCH`] pieces; `false` if there was nothing. [`Errno::NOBUFS`] says that something
    /// found no room.
    pub fn receive(&mut self) -> Result<bool, Errno> {
        self.heads.clear();
        match receive(self.socket.as_fd(), &mut self.bytes, &mut self.heads) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What was read last.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.heads.iter().zip(self.bytes.chunks_exact(PIECE)).map(|(head, bytes)| Piece {
            nsid: head.nsid,
            bytes: bytes.get(..head.length).filter(|_| !head.cut),
        })
    }

    /// How many messages have found no room since the socket was made; it begins again after 2^32.
    pub fn drops(&self) -> u32 {
        let mut info = [0_u32; DROPS + 1];
        let mut size = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
        // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, the size of `info`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if result == 0 { info[DROPS] } else { 0 }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn listen_everywhere(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let yes: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&yes)).unwrap_or(0);
    // SAFETY: the descriptor is open, and the kernel reads `size` bytes, the size of `yes`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), LEVEL, LISTEN_ALL_NSID, (&raw const yes).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Fills the pieces of `bytes`, and a head for each of them.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], heads: &mut Vec<Head>) -> Result<(), Errno> {
    let mut controls = [[0_u64; CONTROL]; BATCH];
    let mut pieces = bytes.chunks_exact_mut(PIECE);
    let mut parts: [libc::iovec; BATCH] = std::array::from_fn(|_| {
        let piece = pieces.next().unwrap_or_default();
        libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() }
    });
    // SAFETY: both are plain structures, for which zeros mean no address, no buffers and no length.
    let (mut senders, mut messages): ([libc::sockaddr_nl; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (zeroed(), zeroed()) };
    for (at, message) in messages.iter_mut().enumerate() {
        let head = &mut message.msg_hdr;
        head.msg_name = (&raw mut senders[at]).cast();
        head.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or(0);
        head.msg_iov = &raw mut parts[at];
        head.msg_iovlen = 1;
        head.msg_control = controls[at].as_mut_ptr().cast();
        head.msg_controllen = size_of_val(&controls[at]) as _;
    }
    // SAFETY: the descriptor is open; each message has the addresses and lengths of an address, of a piece and of a control
    // buffer of its own, all of which outlive the call.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            BATCH as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let count = usize::try_from(count).map_err(|_| last_error())?;
    for ((message, control), sender) in messages.iter().zip(&controls).zip(&senders).take(count) {
        let head = &message.msg_hdr;
        let nsid = nsid(control, head.msg_controllen);
        let cut = head.msg_flags & libc::MSG_TRUNC != 0;
        // Who is not the kernel may send to the groups of a namespace of his own, and what he says is not so.
        let length = if sender.nl_pid == 0 { message.msg_len as usize } else { 0 };
        heads.push(Head { length, cut: cut && sender.nl_pid == 0, nsid });
    }
    Ok(())
}

/// The number of the namespace: `struct cmsghdr` is a length, a level and a type, and the number follows.
fn nsid(control: &[u64; CONTROL], length: usize) -> Option<i32> {
    const HEAD: usize = size_of::<usize>() + 8;
    let mut bytes = [0; CONTROL * 8];
    for (to, word) in bytes.chunks_exact_mut(8).zip(control) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let bytes = bytes.get(..length)?;
    let number = |at: usize| Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let is_ours = number(HEAD - 8)? == LEVEL && number(HEAD - 4)? == LISTEN_ALL_NSID;
    number(HEAD).filter(|nsid| is_ours && *nsid >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_the_control_message() {
        let word = |low: i32, high: i32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&low.to_ne_bytes());
            bytes[4..].copy_from_slice(&high.to_ne_bytes());
            u64::from_ne_bytes(bytes)
        };
        if cfg!(target_pointer_width = "64") {
            let of = |level, number, length| nsid(&[20, word(level, 8), word(number, 0), 0], length);
            assert_eq!(of(270, 7, 24), Some(7));
            assert_eq!(of(270, -1, 24), None, "the socket's own");
            assert_eq!(of(1, 7, 24), None, "another control message");
            assert_eq!(of(270, 7, 16), None, "cut short");
        }
        assert_eq!(nsid(&[0; CONTROL], 0), None);
    }
}
