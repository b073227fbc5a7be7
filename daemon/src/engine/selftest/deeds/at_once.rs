//! What is over as soon as it has begun.

use super::super::stage::{Role, Stage, Way};
use super::sockets::{self, Pair, await_it, connect, datagrams, family};
use super::{Deed, LIMIT, Scene, beside, impossible, question};
use rustix::event::PollFlags;
use rustix::net::{SocketFlags, SocketType, ipproto};
use std::io::{self, ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Datagrams that are sent to what has little room, or none.
const DATAGRAMS: u64 = 8;

/// How often it was done.
pub(super) fn play(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    match scene.deed {
        Deed::Refused => refused(stage, scene),
        Deed::Aborted => aborted(Pair::new(stage, &scene)?),
        Deed::Lost => lost(stage, scene),
        Deed::Overflow => overflow(stage, scene),
        Deed::Unheard => unheard(stage, scene),
        Deed::Late => late(Pair::new(stage, &scene)?),
        Deed::Full => full(stage, scene),
        Deed::Unanswered => question::unanswered(stage, scene),
        Deed::Nowhere => nowhere(stage, scene),
        Deed::Dropped => dropped(stage, scene),
        Deed::Lite => lite(stage, scene),
        Deed::Kept => kept(stage, scene),
        Deed::Worked => beside::worked(),
        Deed::Read => beside::read(),
        Deed::Unread | Deed::Unsent | Deed::Unaccepted | Deed::Nameless | Deed::Slow => {
            Err(io::Error::other("it takes time"))
        }
    }
}

fn refused(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    in_vain(stage, scene, ErrorKind::ConnectionRefused)
}

/// Nobody is asked for long.
fn nowhere(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    stage.lose_patience(scene.version)?;
    in_vain(stage, scene, ErrorKind::HostUnreachable)
}

/// Begins to connect, and is told why it does not work.
fn in_vain(stage: &mut Stage, scene: Scene, expected: ErrorKind) -> io::Result<u64> {
    let client = sockets::begin(stage, scene.from, scene.to)?;
    match sockets::finish(stage, &client) {
        Err(error) if error.kind() == expected => Ok(1),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("it was accepted")),
    }
}

/// The kernel sends a reset in place of the end, because data is lost.
fn aborted(mut pair: Pair) -> io::Result<u64> {
    pair.server.write_all(b"x")?;
    await_it(&pair.client, PollFlags::IN)?;
    drop(pair.client);
    await_it(&pair.server, PollFlags::IN)?;
    match pair.server.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(1),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("it ended in good order")),
    }
}

fn lost(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    let mut pair = Pair::new(stage, &scene)?;
    stage.set_way(scene.to.ip(), Way::Lost)?;
    // It is on its way when this returns, and the way is open again when TCP notices.
    let sent = pair.client.write_all(b"x");
    stage.set_way(scene.to.ip(), Way::Open)?;
    sent?;
    await_it(&pair.server, PollFlags::IN)?;
    pair.server.read_exact(&mut [0])?;
    Ok(1)
}

fn overflow(stage: &Stage, scene: Scene) -> io::Result<u64> {
    let client = datagrams(stage, Role::Client, scene.from)?;
    let server = datagrams(stage, Role::Server, scene.to)?;
    // With any port: it is only to tell that what was sent before has come.
    let marker = datagrams(stage, Role::Server, (scene.to.ip(), 0).into())?;
    // The kernel takes the least that it allows.
    rustix::net::sockopt::set_socket_recv_buffer_size(&server, 1)?;
    for _ in 0..DATAGRAMS {
        client.send_to(&[0; 1000], scene.to)?;
    }
    client.send_to(b"x", marker.local_addr()?)?;
    await_it(&marker, PollFlags::IN)?;
    server.set_nonblocking(true)?;
    let mut received = 0;
    while received < DATAGRAMS && server.recv(&mut [0; 1]).is_ok() {
        received += 1;
    }
    match DATAGRAMS - received {
        0 => Err(io::Error::other("it takes all")),
        dropped => Ok(dropped),
    }
}

fn unheard(stage: &Stage, scene: Scene) -> io::Result<u64> {
    let client = datagrams(stage, Role::Client, scene.from)?;
    client.connect(scene.to)?;
    client.send(b"x")?;
    await_it(&client, PollFlags::IN)?;
    match client.recv(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(1),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("there was an answer")),
    }
}

/// The server goes on sending when the client has closed.
fn late(mut pair: Pair) -> io::Result<u64> {
    // With this to close it waits until the other side has heard of it, or would answer in another state.
    rustix::net::sockopt::set_socket_linger(&pair.client, Some(LIMIT))?;
    drop(pair.client);
    await_it(&pair.server, PollFlags::IN)?;
    pair.server.write_all(b"x")?;
    await_it(&pair.server, PollFlags::HUP)?;
    Ok(1)
}

/// Two are let in where one should be; a third one is not.
fn full(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    let listen = move || {
        let socket =
            rustix::net::socket_with(family(scene.to), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &scene.to)?;
        rustix::net::listen(&socket, 1)?;
        io::Result::Ok(std::net::TcpListener::from(socket))
    };
    let listener = stage.room(Role::Server).within(listen)??;
    let mut waiting = Vec::new();
    for number in 1..=2 {
        waiting.push(connect(stage, scene.other(number), scene.to)?);
    }
    let before = overflows(stage)?;
    let third = sockets::begin(stage, scene.from, scene.to)?;
    // Nobody is told of a packet that is dropped.
    let end = Instant::now() + LIMIT;
    while overflows(stage)? == before {
        if Instant::now() > end {
            return Err(io::Error::other("there is room for more than was asked for"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // It would try again.
    drop(third);
    let times = overflows(stage)? - before;
    // Whoever waits is taken, or it would be reset.
    waiting.into_iter().try_for_each(|client| Pair::accept(client, &listener).map(drop))?;
    Ok(times)
}

/// `ListenOverflows` of the server's namespace.
fn overflows(stage: &Stage) -> io::Result<u64> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
    let text = stage.room(Role::Server).within(read)??;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut both = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    let value = both.find(|(name, _)| *name == "ListenOverflows").and_then(|(_, value)| value.parse().ok());
    value.ok_or_else(|| io::Error::other("/proc/net/netstat has no ListenOverflows"))
}

fn dropped(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    let client = datagrams(stage, Role::Client, scene.from)?;
    stage.set_queue(false)?;
    let sent = (0..DATAGRAMS).try_for_each(|_| client.send_to(b"x", scene.to).map(drop));
    stage.set_queue(true)?;
    sent.map(|()| DATAGRAMS)
}

/// The kernel has it, or it would look for a module.
fn lite(stage: &Stage, scene: Scene) -> io::Result<u64> {
    let name = if scene.to.is_ipv4() { "UDP-Lite" } else { "UDPLITEv6" };
    let protocols = std::fs::read_to_string("/proc/net/protocols")?;
    if !protocols.lines().any(|line| line.split_ascii_whitespace().next() == Some(name)) {
        return Err(impossible("this kernel has no UDP-Lite"));
    }
    let open = |role, at| {
        let open = move || {
            let (kind, protocol) = (SocketType::DGRAM, Some(ipproto::UDPLITE));
            let socket = rustix::net::socket_with(family(at), kind, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::bind(&socket, &at)?;
            io::Result::Ok(UdpSocket::from(socket))
        };
        stage.room(role).within(open)?
    };
    let (client, server) = (open(Role::Client, scene.from)?, open(Role::Server, scene.to)?);
    client.send_to(b"x", scene.to)?;
    await_it(&server, PollFlags::IN)?;
    // It counts as received when it is read.
    server.recv(&mut [0])?;
    Ok(1)
}

/// One of each kind.
fn kept(stage: &mut Stage, scene: Scene) -> io::Result<u64> {
    let pair = Pair::new(stage, &scene)?;
    let datagrams = datagrams(stage, Role::Server, scene.to)?;
    stage.kept.extend([pair.client.into(), pair.server.into(), OwnedFd::from(datagrams)]);
    Ok(1)
}
