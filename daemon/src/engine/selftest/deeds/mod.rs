//! What goes wrong on purpose in a self-test, with ordinary sockets.

mod at_once;
mod beside;
mod held;
mod question;
mod sockets;

pub(super) use beside::{BLOCK, WORK};

use super::stage::{Role, Stage, Version, nobody, second};
use jiff::Timestamp;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

/// What does not happen by then does not happen.
const LIMIT: Duration = Duration::from_secs(5);
/// Ports that each has on the client's side.
const OWN_PORTS: u16 = 4;

/// Something that goes wrong, or only happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
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
    /// A connection for which its listener has no room.
    Full,
    /// A question to a name server that it fails to answer.
    Unanswered,
    /// A connection to a neighbour that there is not.
    Nowhere,
    /// Datagrams for which a queue has no room.
    Dropped,
    /// A datagram of UDP-Lite.
    Lite,
    /// Sockets that are open to the end.
    Kept,
    /// A thread that works and waits.
    Worked,
    /// Blocks that are read from a disk.
    Read,
    /// Data that is read as late as it is told to.
    Unread,
    /// Data that is sent so late, since more seems to come.
    Unsent,
    /// A connection that is accepted so late.
    Unaccepted,
    /// A question for a name that there is not, which is answered so late.
    Nameless,
    /// A handshake that takes so long.
    Slow,
}

impl Deed {
    /// All, in the order in which they are done. Those that take time take it together, at the end.
    pub(super) const ALL: [Deed; 19] = [
        Deed::Refused,
        Deed::Aborted,
        Deed::Lost,
        Deed::Overflow,
        Deed::Unheard,
        Deed::Late,
        Deed::Full,
        Deed::Unanswered,
        Deed::Nowhere,
        Deed::Dropped,
        Deed::Lite,
        Deed::Kept,
        Deed::Worked,
        Deed::Read,
        Deed::Unread,
        Deed::Unsent,
        Deed::Unaccepted,
        Deed::Nameless,
        Deed::Slow,
    ];

    /// Whether it takes as long as it is told to.
    pub(super) fn is_held(self) -> bool {
        matches!(self, Deed::Unread | Deed::Unsent | Deed::Unaccepted | Deed::Nameless | Deed::Slow)
    }

    /// How long it can take at most: TCP tries a handshake again after a second, and waits for more data for a fifth of one.
    pub(super) fn longest(self) -> Duration {
        Duration::from_millis(if self == Deed::Unsent { 190 } else { 950 })
    }

    /// Whether it has nothing to do with the network, and so is done once.
    fn is_beside(self) -> bool {
        matches!(self, Deed::Worked | Deed::Read)
    }

    /// What could not be made to happen.
    fn what(self) -> &'static str {
        match self {
            Deed::Refused => "a refused connection",
            Deed::Aborted => "a connection closed with unread data",
            Deed::Lost => "a lost segment",
            Deed::Overflow => "a full socket buffer",
            Deed::Unheard => "a datagram that nobody wants",
            Deed::Late => "data for a closed connection",
            Deed::Full => "a full accept queue",
            Deed::Unanswered => "a failure of a name server",
            Deed::Nowhere => "a silent neighbour",
            Deed::Dropped => "a full queue",
            Deed::Lite => "a datagram of UDP-Lite",
            Deed::Kept => "an open socket",
            Deed::Worked => "work of a thread",
            Deed::Read => "a request to a disk",
            Deed::Unread => "data that is read late",
            Deed::Unsent => "data that is sent late",
            Deed::Unaccepted => "a connection that is accepted late",
            Deed::Nameless => "an answer of a name server that is late",
            Deed::Slow => "a slow handshake",
        }
    }

    /// Ports that only it uses, on the client's side.
    fn port(self) -> u16 {
        let at = Deed::ALL.iter().position(|deed| *deed == self).unwrap_or_default();
        u16::try_from(at).unwrap_or_default() * OWN_PORTS
    }
}

/// Ports of the server, which are the same for many deeds.
const ACCEPTED: u16 = 1;
const QUEUED: u16 = 2;
const CLOSED: u16 = 3;
const RECEIVED: u16 = 4;

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// In the order of [`Deed::ALL`].
    pub(super) deeds: Vec<Deed>,
    /// How long those take that take as long as they are told to.
    pub(super) held: Duration,
    /// Port of name servers.
    pub(super) dns_port: u16,
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

/// Why it did not: a sentence.
#[derive(Clone, Debug)]
pub(super) enum Undone {
    /// It cannot be done here.
    Impossible(String),
    /// It should have been possible.
    Failed(String),
}

/// What was done, or why not.
pub(super) type Attempt = Result<Done, (Deed, Undone)>;

/// What has begun, on its way to its end: how often it was done.
type Rest = Box<dyn FnOnce(&mut Stage) -> io::Result<u64>>;

/// A deed over one version of IP.
#[derive(Clone, Copy)]
struct Scene {
    deed: Deed,
    version: Version,
    from: SocketAddr,
    to: SocketAddr,
}

impl Scene {
    fn new(stage: &Stage, order: &Order, deed: Deed, version: Version) -> Scene {
        let server = |port| stage.at(Role::Server, version, port);
        let to = match deed {
            Deed::Refused | Deed::Unheard | Deed::Dropped => server(CLOSED),
            Deed::Full | Deed::Unaccepted => server(QUEUED),
            Deed::Overflow | Deed::Lite => server(RECEIVED),
            Deed::Unanswered | Deed::Nameless => {
                SocketAddr::new(Role::Server.address(version), order.dns_port)
            }
            Deed::Slow => SocketAddr::new(second(version), server(ACCEPTED).port()),
            Deed::Nowhere => SocketAddr::new(nobody(version), server(CLOSED).port()),
            _ => server(ACCEPTED),
        };
        Scene { deed, version, from: stage.at(Role::Client, version, deed.port()), to }
    }

    /// Another address of the client's.
    fn other(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.from.ip(), self.from.port() + number % OWN_PORTS)
    }

    fn end(self, began: Timestamp, times: io::Result<u64>) -> Attempt {
        let Scene { deed, version, from, to } = self;
        let done = |times| Done { deed, version, began, ends: [from, to], times };
        times.map(done).map_err(|error| (deed, self.undone(&error)))
    }

    fn undone(&self, error: &io::Error) -> Undone {
        // Not what a system call says, but what was found out.
        if error.kind() == ErrorKind::Unsupported && error.raw_os_error().is_none() {
            return Undone::Impossible(error.to_string());
        }
        let over = if self.deed.is_beside() { "" } else { self.version.over() };
        Undone::Failed(format!("{} could not be made{over}: {error}", self.deed.what()))
    }
}

/// It cannot be done here, for this reason.
fn impossible(why: &str) -> io::Error {
    io::Error::new(ErrorKind::Unsupported, why)
}

/// Does what is wanted over all versions of IP.
pub(super) fn all(stage: &mut Stage, order: &Order) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    for deed in &order.deeds {
        let versions = if deed.is_beside() { vec![Version::Four] } else { stage.versions.clone() };
        let scenes = versions.into_iter().map(|version| Scene::new(stage, order, *deed, version));
        match deed.is_held() {
            true => held.extend(scenes),
            false => scenes.collect::<Vec<_>>().into_iter().for_each(|scene| {
                let began = Timestamp::now();
                let times = at_once::play(stage, scene);
                attempts.push(scene.end(began, times));
            }),
        }
    }
    for scene in held {
        let began = Timestamp::now();
        match held::begin(stage, scene) {
            Ok(rest) => waiting.push((scene, began, rest)),
            Err(error) => attempts.push(scene.end(began, Err(error))),
        }
    }
    if !waiting.is_empty() {
        std::thread::sleep(order.held);
    }
    // What began last has the least time left: TCP tries handshakes again.
    for (scene, began, rest) in waiting.into_iter().rev() {
        let times = rest(stage);
        attempts.push(scene.end(began, times));
    }
    attempts.sort_by_key(|attempt| attempt.as_ref().map_or(0, |done| u8::from(done.version == Version::Six)));
    attempts
}
