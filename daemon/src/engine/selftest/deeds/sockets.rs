//! Sockets in the two namespaces.

use super::super::stage::{Role, Stage};
use super::{LIMIT, Scene};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

/// Both ends of a connection.
pub(super) struct Pair {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Pair {
    pub(super) fn new(stage: &mut Stage, scene: &Scene) -> io::Result<Pair> {
        let listener = listen(stage, scene.to)?;
        let client = connect(stage, scene.from, scene.to)?;
        Pair::accept(client, &listener)
    }

    /// The other end of a connection that is there.
    pub(super) fn accept(client: TcpStream, listener: &TcpListener) -> io::Result<Pair> {
        await_it(listener, PollFlags::IN)?;
        let (server, _) = listener.accept()?;
        Ok(Pair { client, server })
    }
}

pub(super) fn listen(stage: &Stage, at: SocketAddr) -> io::Result<TcpListener> {
    stage.room(Role::Server).within(move || TcpListener::bind(at))?
}

pub(super) fn datagrams(stage: &Stage, role: Role, address: SocketAddr) -> io::Result<UdpSocket> {
    stage.room(role).within(move || UdpSocket::bind(address))?
}

/// A connection of the client's, from its own point of view.
pub(super) fn connect(stage: &mut Stage, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let client = begin(stage, from, to)?;
    finish(stage, &client)?;
    Ok(client)
}

/// Begins to connect, and does not wait.
pub(super) fn begin(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = move || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family(to), SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &from)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    stage.room(Role::Client).within(connect)?
}

/// Waits until it is connected, or refused.
pub(super) fn finish(stage: &mut Stage, client: &TcpStream) -> io::Result<()> {
    await_it(client, PollFlags::OUT)?;
    client.take_error()?.map_or(Ok(()), Err)?;
    stage.connections += 1;
    Ok(())
}

pub(super) fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

pub(super) fn await_it(socket: impl AsFd, what: PollFlags) -> io::Result<()> {
    let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&socket, what)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)))? {
        0 => Err(io::Error::new(ErrorKind::TimedOut, format!("nothing came within {LIMIT:?}"))),
        _ => Ok(()),
    }
}
