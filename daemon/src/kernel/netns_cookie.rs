//! The kernel's number for a network namespace that is never used again, unlike its inode, which the next one may get at
//! once.

#![allow(unsafe_code, reason = "one socket option that rustix does not know")]

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::path::Path;
use std::sync::OnceLock;

/// Cookie of the namespace with this inode behind a file: `/proc/<pid>/ns/net`, or one of `/run/netns`. 0 if this kernel
/// (before 5.14) or our privileges do not tell; `None` if that namespace is not there any more.
///
/// It is asked from inside: the calling thread goes there and comes back.
pub fn cookie(file: &Path, inode: u32) -> Option<u64> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let ask = || -> Result<u64, Errno> {
        let namespace = rustix::fs::open(file, flags, Mode::empty())?;
        if rustix::fs::fstat(&namespace)?.st_ino != u64::from(inode) {
            return Err(Errno::NOENT);
        }
        let home = home().ok_or(Errno::NOTSUP)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None);
        // What was allowed on the way there is allowed on the way back. If it fails all the same, the next question brings
        // the thread back, and until then it only keeps one namespace alive.
        if let Err(error) = move_into_link_name_space(home, Some(LinkNameSpaceType::Network)) {
            tracing::error!(%error, "cannot leave the network namespace of {}", file.display());
        }
        cookie_of(socket?.as_fd())
    };
    match ask() {
        Ok(cookie) => Some(cookie),
        Err(Errno::NOENT | Errno::SRCH | Errno::INVAL) => None,
        Err(_) => Some(0),
    }
}

/// The daemon's own namespace.
fn home() -> Option<BorrowedFd<'static>> {
    static HOME: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let open = || rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    HOME.get_or_init(open).as_ref().map(AsFd::as_fd)
}

/// `SO_NETNS_COOKIE` of socket(7).
fn cookie_of(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
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
    let error = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if result == 0 { Ok(cookie) } else { Err(Errno::from_raw_os_error(error())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_has_none() {
        assert_eq!(cookie(Path::new("/etc/passwd"), 1), None);
        assert_eq!(cookie(Path::new("/nonexistent"), 1), None);
    }
}
