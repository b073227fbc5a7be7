//! Sockets that the service manager has opened and hands to the daemon (sd_listen_fds(3)).

#![allow(unsafe_code, reason = "a descriptor that was inherited is only a number")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// The name of the control socket in netskoopd.socket.
const CONTROL: &str = "control";

/// The control socket, if there is one among them. To be called once, before any other thread runs.
///
/// Further ones are left alone; they end with the process.
pub fn control() -> io::Result<Option<UnixListener>> {
    let mut found = None;
    for (descriptor, name) in sd_notify::listen_fds_with_names()? {
        if name != CONTROL || found.is_some() {
            tracing::warn!(
                name,
                "a socket was handed over that nobody knows; netskoopd takes one '{CONTROL}'"
            );
            continue;
        }
        // SAFETY: the service manager promises this descriptor to this process, and nobody else here takes it.
        found = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }
    let Some(descriptor) = found else { return Ok(None) };
    let is_unix = rustix::net::sockopt::socket_domain(&descriptor)? == rustix::net::AddressFamily::UNIX;
    if !is_unix || !rustix::net::sockopt::socket_acceptconn(&descriptor)? {
        return Err(io::Error::other("it is no Unix socket that listens"));
    }
    let listener = UnixListener::from(descriptor);
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
