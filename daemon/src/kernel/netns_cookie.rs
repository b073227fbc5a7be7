//! The kernel's number for a network namespace that is never used again, unlike its inode, which the next one may get at
//! once.

#![allow(unsafe_code, reason = "one socket option that rustix does not know")]

use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io;
use std::path::Path;

/// Cookie of the namespace behind a file: `/proc/<pid>/ns/net`, or one of `/run/netns`. 0 if it cannot be had: no right to
/// enter, a kernel before 5.14, or no namespace there.
///
/// It is asked from inside, by a thread made for it: that one ends there, so nobody has to find the way back.
pub fn cookie(file: &Path) -> u64 {
    let ask = || {
        let namespace = rustix::fs::open(
            file,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        )?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        cookie_of(socket.as_fd())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netskoop-cookie".into()).stack_size(64 * 1024);
        let asked = thread.spawn_scoped(scope, ask).ok().and_then(|thread| thread.join().ok());
        asked.and_then(Result::ok).unwrap_or(0)
    })
}

/// `SO_NETNS_COOKIE` of socket(7).
fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_has_none() {
        assert_eq!(cookie(Path::new("/etc/passwd")), 0);
        assert_eq!(cookie(Path::new("/nonexistent")), 0);
    }
}
