//! What goes wrong on purpose in a self-test, with ordinary sockets.

use super::stage::{Role, Stage, Version, Way};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What does not happen by then does not happen.
const LIMIT: Duration = Duration::from_secs(5);
/// Datagrams that are sent to a socket with little room.
const DATAGRAMS: u64 = 8;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// A handshake that takes as long as it is told to.
    Slow,
    /// A connection to a port that nobody listens on.
    Refused,
    /// A connection that the client closes with unread data.
    Aborted,
    /// A segment that is lost once.
    Lost,
    /// More datagrams than a socket has room for.
    Overflow,
    /// A datagram to a port that nobody listens on.
    Unheard,
    /// Data for a connection that is closed already.
    Late,
    /// Data that is read as late as it is told to.
    Unread,
}

impl Deed {
    /// All, in the order in which they are done.
    pub(super) const ALL: [Deed; 8] = [
        Deed::Slow,
        Deed::Refused,
        Deed::Aborted,
        Deed::Lost,
        Deed::Overflow,
        Deed::Unheard,
        Deed::Late,
        Deed::Unread,
    ];

    /// Whether it takes as long as it is told to.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Deed::Slow | Deed::Unread)
    }

    /// What could not be made to happen.
    fn what(self) -> &'static str {
        match self {
            Deed::Slow => "a slow handshake",
            Deed::Refused => "a refused connection",
            Deed::Aborted => "a connection closed with unread data",
            Deed::Lost => "a lost segment",
            Deed::Overflow => "a full socket buffer",
            Deed::Unheard => "a datagram that nobody wants",
            Deed::Late => "data for a closed connection",
            Deed::Unread => "data that is read late",
        }
    }

    /// The ports that only it uses.
    fn port(self) -> u16 {
        match self {
            Deed::Slow => 10,
            Deed::Refused => 20,
            Deed::Aborted => 30,
            Deed::Lost => 40,
            Deed::Overflow => 50,
            Deed::Unheard => 60,
            Deed::Late => 70,
            Deed::Unread => 80,
        }
    }
}

/// Something that went wrong as it should.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// What.
    pub(super) deed: Deed,
    /// Over which version of IP.
    pub(super) version: Version,
    /// When it began.
    pub(super) began: Timestamp,
    /// The client's and the server's address.
    pub(super) ends: [SocketAddr; 2],
    /// How often, where it is not once.
    pub(super) times: u64,
}

/// Does what is wanted over both versions of IP, and as slowly as is wanted, where that can be said; `Err` with a sentence about
/// what does not go wrong as it should.
pub(super) fn all(stage: &mut Stage, wanted: &[(Deed, Duration)]) -> Vec<Result<Done, (Deed, String)>> {
    let mut results = Vec::new();
    for (deed, held) in wanted {
        let told = |version: Version, error: io::Error| {
            (*deed, format!("{} could not be made over {}: {error}", deed.what(), version.as_str()))
        };
        if *deed == Deed::Slow {
            let versions = stage.versions.clone();
            let done = slow(stage, &versions, *held);
            results.extend(done.into_iter().map(|(version, done)| done.map_err(|e| told(version, e))));
            continue;
        }
        for version in stage.versions.clone() {
            results.push(one(stage, *deed, version, *held).map_err(|error| told(version, error)));
        }
    }
    results
}

fn ends(stage: &Stage, deed: Deed, version: Version) -> [SocketAddr; 2] {
    [stage.at(Role::Client, version, deed.port() + 1), stage.at(Role::Server, version, deed.port())]
}

fn one(stage: &mut Stage, deed: Deed, version: Version, held: Duration) -> io::Result<Done> {
    let [from, to] = ends(stage, deed, version);
    let began = Timestamp::now();
    let times = match deed {
        Deed::Refused => refused(stage, from, to)?,
        Deed::Aborted => aborted(Pair::new(stage, from, to)?)?,
        Deed::Lost => lost(stage, version, from, to)?,
        Deed::Overflow => overflow(stage, from, to)?,
        Deed::Unheard => unheard(stage, from, to)?,
        Deed::Late => late(stage, from, to)?,
        Deed::Unread => unread(Pair::new(stage, from, to)?, held)?,
        // It is done over all versions at once.
        Deed::Slow => return Err(ErrorKind::Unsupported.into()),
    };
    Ok(Done { deed, version, began, ends: [from, to], times })
}

fn refused(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<u64> {
    let client = begin(stage, from, to)?;
    match finish(&client) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(1),
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

fn lost(stage: &mut Stage, version: Version, from: SocketAddr, to: SocketAddr) -> io::Result<u64> {
    let mut pair = Pair::new(stage, from, to)?;
    stage.set_way(version, Way::Lost)?;
    // It is on its way when this returns, and the way is open again when TCP notices.
    let sent = pair.client.write_all(b"x");
    stage.set_way(version, Way::Open)?;
    sent?;
    await_it(&pair.server, PollFlags::IN)?;
    pair.server.read_exact(&mut [0])?;
    Ok(1)
}

fn overflow(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<u64> {
    let client = datagrams(stage, Role::Client, from)?;
    let server = datagrams(stage, Role::Server, to)?;
    // The kernel takes the least that it allows.
    rustix::net::sockopt::set_socket_recv_buffer_size(&server, 1)?;
    for _ in 0..DATAGRAMS {
        client.send_to(&[0; 1000], to)?;
    }
    await_it(&server, PollFlags::IN)?;
    // The last one may come a moment after it was sent.
    std::thread::sleep(Duration::from_millis(20));
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

fn unheard(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<u64> {
    let client = datagrams(stage, Role::Client, from)?;
    client.connect(to)?;
    client.send(b"x")?;
    await_it(&client, PollFlags::IN)?;
    match client.recv(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(1),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("there was an answer")),
    }
}

/// The server goes on sending when the client has closed.
fn late(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<u64> {
    let mut pair = Pair::new(stage, from, to)?;
    drop(pair.client);
    await_it(&pair.server, PollFlags::IN)?;
    // The client must have heard that its end has come through, or it answers in another state.
    let end = Instant::now() + LIMIT;
    while !waits_for_the_end(stage, from)? {
        if Instant::now() > end {
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    pair.server.write_all(b"x")?;
    Ok(1)
}

fn unread(mut pair: Pair, held: Duration) -> io::Result<u64> {
    pair.client.write_all(b"x")?;
    await_it(&pair.server, PollFlags::IN)?;
    std::thread::sleep(held);
    pair.server.read_exact(&mut [0])?;
    Ok(1)
}

/// Whether a connection is in FIN_WAIT2, by the kernel's list.
fn waits_for_the_end(stage: &Stage, from: SocketAddr) -> io::Result<bool> {
    const FIN_WAIT2: &str = "05";
    let file = if from.is_ipv4() { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    let text = stage.room(Role::Client).within(move || std::fs::read_to_string(file))??;
    let port = format!(":{:04X}", from.port());
    Ok(text.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some(FIN_WAIT2)
    }))
}

/// Handshakes whose first segment waits in front of the interface.
fn slow(stage: &mut Stage, versions: &[Version], held: Duration) -> Vec<(Version, io::Result<Done>)> {
    let mut begun = Vec::new();
    for version in versions {
        let [from, to] = ends(stage, Deed::Slow, *version);
        let start = |stage: &mut Stage| {
            let listener = stage.room(Role::Server).within(move || TcpListener::bind(to))??;
            stage.set_way(*version, Way::Held)?;
            let began = Timestamp::now();
            Ok((listener, begin(stage, from, to)?, began))
        };
        begun.push((*version, start(stage)));
    }
    std::thread::sleep(held);
    let mut results = Vec::new();
    for (version, begun) in begun {
        let opened = stage.set_way(version, Way::Open);
        let done = begun.and_then(|(listener, client, began)| {
            opened?;
            let mut pair = Pair::finish(client, &listener)?;
            // A round-trip time is looked at when something comes.
            pair.server.write_all(b"x")?;
            await_it(&pair.client, PollFlags::IN)?;
            pair.client.read_exact(&mut [0])?;
            pair.client.write_all(b"x")?;
            await_it(&pair.server, PollFlags::IN)?;
            pair.server.read_exact(&mut [0])?;
            let ends = ends(stage, Deed::Slow, version);
            Ok(Done { deed: Deed::Slow, version, began, ends, times: 1 })
        });
        results.push((version, done));
    }
    results
}

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<Pair> {
        let listener = stage.room(Role::Server).within(move || TcpListener::bind(to))??;
        Pair::finish(begin(stage, from, to)?, &listener)
    }

    fn finish(client: TcpStream, listener: &TcpListener) -> io::Result<Pair> {
        finish(&client)?;
        await_it(listener, PollFlags::IN)?;
        let (server, _) = listener.accept()?;
        Ok(Pair { client, server })
    }
}

fn datagrams(stage: &Stage, role: Role, address: SocketAddr) -> io::Result<UdpSocket> {
    stage.room(role).within(move || UdpSocket::bind(address))?
}

/// Begins to connect, and does not wait.
fn begin(stage: &Stage, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = move || {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &from)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    stage.room(Role::Client).within(connect)?
}

/// Waits until it is connected, or refused.
fn finish(client: &TcpStream) -> io::Result<()> {
    await_it(client, PollFlags::OUT)?;
    client.take_error()?.map_or(Ok(()), Err)
}

fn await_it(socket: impl AsFd, what: PollFlags) -> io::Result<()> {
    let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&socket, what)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)))? {
        0 => Err(io::Error::new(ErrorKind::TimedOut, format!("nothing came within {LIMIT:?}"))),
        _ => Ok(()),
    }
}
