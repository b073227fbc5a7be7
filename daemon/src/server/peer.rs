//! Who is at the other end of the control socket: the kernel's word, taken when the connection was made.

#![allow(unsafe_code, reason = "a socket option that rustix does not know")]

use crate::engine::Peer;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use std::io;

/// Groups of one process at most (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// User, process and all groups, the supplementary ones too.
pub(super) fn of(stream: &tokio::net::UnixStream) -> io::Result<Peer> {
    let cred = stream.peer_cred()?;
    let mut groups = supplementary(stream.as_fd())?;
    groups.push(cred.gid());
    Ok(Peer { uid: cred.uid(), pid: cred.pid().unwrap_or(0), groups: groups.into() })
}

/// `SO_PEERGROUPS` of unix(7). Looking into `/proc` instead would be fooled by who ends and lets another have the number.
fn supplementary(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut size = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes, which `groups` has.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        let count = usize::try_from(size).unwrap_or(0) / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // It says how much room it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_groups_of_the_other_end_are_known() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        let peer = of(&one).unwrap();
        let mut own: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        own.push(rustix::process::getegid().as_raw());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(&*peer.groups, own);
    }
}
