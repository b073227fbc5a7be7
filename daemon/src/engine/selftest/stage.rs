//! Where a self-test plays: two namespaces of the daemon's own with a cable between them. Neighbours are told and never
//! asked for, so that a word is enough to have packets wait, or get lost.

use crate::kernel::netlink::link::{self, End, Mac, Neighbour};
use crate::kernel::netlink::{Family, Netlink, NetlinkError};
use crate::kernel::parts::VETH;
use crate::kernel::rooms::Room;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Name of both ends of the cable.
const CABLE: &str = "selftest";
/// Ports of one self-test.
pub(super) const PORTS: u16 = 100;
/// The server's are the same each time: a probe that shows each port by itself has room for a few of them, once and for all.
const SERVER_PORTS: u16 = 9900;
/// A neighbour that does not answer is given up after so many milliseconds, where nobody is to wait for it.
const PATIENCE: u64 = 10;
/// Packets that find room in a queue that is meant to have some.
const ROOM: u32 = 1000;

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl Version {
    /// Both.
    pub(super) const ALL: [Version; 2] = [Version::Four, Version::Six];

    /// As results have it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Version::Four => "v4",
            Version::Six => "v6",
        }
    }

    /// At the end of a sentence.
    pub(super) fn over(self) -> &'static str {
        match self {
            Version::Four => " over v4",
            Version::Six => " over v6",
        }
    }
}

/// Which of the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The one that connects.
    Client,
    /// The one that is connected to.
    Server,
}

impl Role {
    /// Both.
    pub(super) const ALL: [Role; 2] = [Role::Client, Role::Server];

    /// What its namespace is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Client => "netskoop-selftest-client",
            Role::Server => "netskoop-selftest-server",
        }
    }

    /// The last byte of its addresses, from ranges that are kept for documentation.
    fn number(self) -> u8 {
        match self {
            Role::Client => 1,
            Role::Server => 2,
        }
    }

    /// Its address.
    pub(super) fn address(self, version: Version) -> IpAddr {
        let number = self.number();
        match version {
            Version::Four => IpAddr::from([192, 0, 2, number]),
            Version::Six => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
        }
    }

    /// Hardware address of its end of the cable; one that is administered locally.
    fn mac(self) -> Mac {
        [2, 0, 0, 0, 0, self.number()]
    }
}

/// A second address of the server, so that what is sent there can wait and nothing else.
pub(super) fn second(version: Version) -> IpAddr {
    match version {
        Version::Four => IpAddr::from([192, 0, 2, 3]),
        Version::Six => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 3]),
    }
}

/// An address on the cable that nobody has.
pub(super) fn nobody(version: Version) -> IpAddr {
    match version {
        Version::Four => IpAddr::from([192, 0, 2, 9]),
        Version::Six => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
    }
}

/// What becomes of what the client sends to an address of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It arrives.
    Open,
    /// It arrives nowhere.
    Lost,
    /// It waits until the way is open again.
    Held,
}

/// One of the two.
struct Side {
    room: Room,
    netlink: Netlink,
    index: u32,
}

/// The two namespaces. They end when this is dropped.
pub(super) struct Stage {
    client: Side,
    server: Side,
    /// The versions of IP that there are.
    pub(super) versions: Vec<Version>,
    /// Connections that were made here.
    pub(super) connections: u64,
    /// Sockets that stay open as long as this stands.
    pub(super) kept: Vec<OwnedFd>,
    /// The first of the client's ports.
    base: u16,
}

impl Stage {
    /// Makes it; a sentence if it cannot be made.
    pub(super) fn build(proc: &Path) -> Result<Stage, String> {
        // To ask for it would load it.
        if !VETH.is_here(proc) {
            return Err(format!("{}; after modprobe veth it can be tried", VETH.absence()));
        }
        let open = |name| {
            Room::open(name).map_err(|error| format!("cannot make a network namespace of its own: {error}"))
        };
        let (client, server) = (open("selftest-client")?, open("selftest-server")?);
        let is_shown = std::fs::metadata(proc.join(client.id.to_string()).join("ns/net"));
        if is_shown.map_or(true, |file| file.ino() != u64::from(client.inode)) {
            return Err(format!(
                "{} does not show the threads of the daemon, so nothing would be found",
                proc.display()
            ));
        }
        let joined = Stage::join(client, server);
        joined.map_err(|(doing, error)| format!("cannot {doing} in a network namespace of its own: {error}"))
    }

    fn join(client: Room, server: Room) -> Result<Stage, (&'static str, io::Error)> {
        let doing = |what: &'static str| move |error: NetlinkError| (what, io::Error::from(error));
        let mut near = netlink(&client).map_err(|error| ("open netlink", error))?;
        let mut far = netlink(&server).map_err(|error| ("open netlink", error))?;
        let end = |role: Role| End { name: CABLE, mac: role.mac() };
        link::make_pair(&mut near, end(Role::Client), end(Role::Server), server.id)
            .map_err(doing("make a pair of interfaces"))?;
        let index = |netlink: &Netlink| {
            netlink.interface_index(CABLE).map_err(|error| ("find an interface", io::Error::from(error)))
        };
        let (near_index, far_index) = (index(&near)?, index(&far)?);
        let mut sides = [(&mut near, near_index), (&mut far, far_index)];
        let mut versions = Vec::new();
        for (netlink, index) in &mut sides {
            /// The loopback interface is the first of every namespace.
            const LOOPBACK: u32 = 1;
            link::set_up(netlink, LOOPBACK).map_err(doing("switch an interface on"))?;
            link::set_up(netlink, *index).map_err(doing("switch an interface on"))?;
        }
        for version in Version::ALL {
            match settle(&mut sides, version) {
                Ok(()) => versions.push(version),
                // A node without IPv6 is tested without.
                Err(error) if version == Version::Six => {
                    tracing::debug!(%error, "the self-test goes without IPv6");
                }
                Err(error) => return Err(doing("add an address")(error)),
            }
        }
        Ok(Stage {
            client: Side { room: client, netlink: near, index: near_index },
            server: Side { room: server, netlink: far, index: far_index },
            versions,
            connections: 0,
            kept: Vec::new(),
            base: base(),
        })
    }

    /// The namespace of one side.
    pub(super) fn room(&self, role: Role) -> &Room {
        match role {
            Role::Client => &self.client.room,
            Role::Server => &self.server.room,
        }
    }

    /// An address with one of its ports. Those of the client are other ones each time.
    pub(super) fn at(&self, role: Role, version: Version, port: u16) -> SocketAddr {
        let first = if role == Role::Client { self.base } else { SERVER_PORTS };
        SocketAddr::new(role.address(version), first + port % PORTS)
    }

    /// Decides what becomes of what the client sends to one of the server's addresses.
    pub(super) fn set_way(&mut self, to: IpAddr, path: Way) -> io::Result<()> {
        /// Neither of the two.
        const NOBODY: Mac = [2, 0, 0, 0, 0, 9];
        let known = match path {
            Way::Open => Neighbour::At(Role::Server.mac()),
            Way::Lost => Neighbour::At(NOBODY),
            Way::Held => Neighbour::Awaited,
        };
        let (netlink, index) = (&mut self.client.netlink, self.client.index);
        Ok(link::set_neighbour(netlink, index, to, known)?)
    }

    /// What is sent to nobody is given up soon. Neighbours that are told are not concerned.
    pub(super) fn lose_patience(&mut self, version: Version) -> io::Result<()> {
        let (netlink, index) = (&mut self.client.netlink, self.client.index);
        Ok(link::set_patience(netlink, index, version == Version::Four, PATIENCE)?)
    }

    /// Puts a queue in front of the client's end, with room or without any. It stays, for what it has counted goes with it.
    pub(super) fn set_queue(&mut self, has_room: bool) -> io::Result<()> {
        let packets = if has_room { ROOM } else { 0 };
        Ok(link::set_queue(&mut self.client.netlink, self.client.index, packets)?)
    }

    /// Whether the server's end is there; for its number is of no use otherwise.
    pub(super) fn is_whole(&self) -> bool {
        self.server.netlink.interface_name(self.server.index).is_some()
    }
}

/// A netlink socket inside.
fn netlink(room: &Room) -> io::Result<Netlink> {
    Ok(room.within(|| Netlink::open(Family::Route))??)
}

/// Gives both sides their addresses of a version, and tells each where the other is.
fn settle(sides: &mut [(&mut Netlink, u32); 2], version: Version) -> Result<(), NetlinkError> {
    let prefix = if version == Version::Four { 24 } else { 64 };
    for ((netlink, index), (own, other)) in
        sides.iter_mut().zip([(Role::Client, Role::Server), (Role::Server, Role::Client)])
    {
        link::add_address(netlink, *index, own.address(version), prefix)?;
        let known = Neighbour::At(other.mac());
        link::set_neighbour(netlink, *index, other.address(version), known)?;
    }
    let [(near, near_index), (far, far_index)] = sides;
    link::add_address(far, *far_index, second(version), prefix)?;
    link::set_neighbour(near, *near_index, second(version), Neighbour::At(Role::Server.mac()))
}

/// Another one each time: events of an earlier self-test, or of another daemon's, must not be taken for this one's.
fn base() -> u16 {
    let mut random = [0; 2];
    // Without it the port is the same each time, and everything else works.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    10_000 + (u16::from_ne_bytes(random) % 400) * PORTS
}
