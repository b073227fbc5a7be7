//! Virtual services of IPVS and where they send their connections, over generic netlink (`linux/ip_vs.h`).

use super::message::{Message, attribute, attributes, be16_at, put, text, u16_at, u32_at, u64_at};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `GENL_ID_CTRL`: who tells the number of a family.
pub const CONTROL: u16 = 16;
/// Length of `struct genlmsghdr`, which every message begins with.
const HEAD: usize = 4;
/// `IPVS_CMD_ATTR_SERVICE`.
const SERVICE: u16 = 1;
/// `IPVS_CMD_ATTR_DEST`.
const DESTINATION: u16 = 2;
const IPV4: u16 = 2;
const IPV6: u16 = 10;

/// `IPVS_SVC_ATTR_*`
mod of_service {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDRESS: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const MARK: u16 = 5;
    pub(super) const SCHEDULER: u16 = 6;
    pub(super) const STATS: u16 = 10;
    pub(super) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`
mod of_destination {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const WEIGHT: u16 = 4;
    /// Established connections, others, and bound clients.
    pub(super) const CONNECTIONS: [u16; 3] = [7, 8, 9];
    pub(super) const STATS: u16 = 10;
    pub(super) const AF: u16 = 11;
    pub(super) const STATS64: u16 = 12;
}

/// The question for the number of the family, which the module got when it was loaded.
pub fn ask_family() -> Vec<u8> {
    const GET_FAMILY: u8 = 3;
    const FAMILY_NAME: u16 = 2;
    let mut body = vec![GET_FAMILY, 1, 0, 0];
    put(&mut body, FAMILY_NAME, b"IPVS\0");
    body
}

/// The number in the answer.
pub fn family(message: Message<'_>) -> Option<u16> {
    const FAMILY_ID: u16 = 1;
    u16_at(attribute(message.body.get(HEAD..)?, FAMILY_ID)?, 0)
}

/// `IPVS_CMD_GET_SERVICE`, as a dump: all services.
pub const ALL_SERVICES: [u8; 4] = [4, 1, 0, 0];

/// Names of the counters of services and destinations, in the order of `IPVS_STATS_ATTR_*`.
pub const COUNTERS: [&str; 5] = ["conns", "inpkts", "outpkts", "inbytes", "outbytes"];

/// Their values.
pub type Counters = [Option<u64>; COUNTERS.len()];

/// The first attributes of a service, which say what it is, are repeated in questions about its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtual {
    /// An address and port of a protocol.
    Address {
        /// IP protocol number.
        protocol: u16,
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
    },
    /// Packets that a firewall rule has marked.
    Mark {
        /// The mark.
        mark: u32,
        /// `AF_INET` or `AF_INET6`.
        family: u16,
    },
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it listens on.
    pub what: Virtual,
    /// Its scheduler: `rr`.
    pub scheduler: String,
    /// Its counters.
    pub counters: Counters,
}

impl Service {
    /// Reads a message; `None` if it lacks what every service has.
    pub fn parse(message: Message<'_>) -> Option<Service> {
        use of_service::{ADDRESS, AF, MARK, PORT, PROTOCOL, SCHEDULER, STATS, STATS64};
        let service = attribute(message.body.get(HEAD..)?, SERVICE)?;
        let get = |kind| attribute(service, kind);
        let family = u16_at(get(AF)?, 0)?;
        let what = match get(MARK).and_then(|mark| u32_at(mark, 0)) {
            Some(mark) => Virtual::Mark { mark, family },
            None => Virtual::Address {
                protocol: u16_at(get(PROTOCOL)?, 0)?,
                address: address(family, get(ADDRESS)?)?,
                port: be16_at(get(PORT)?, 0)?,
            },
        };
        let name = text(get(SCHEDULER).unwrap_or_default());
        let scheduler = String::from_utf8_lossy(name.get(..name.len().min(16))?).into_owned();
        Some(Service { what, scheduler, counters: counters(get(STATS64), get(STATS)) })
    }

    /// The question for its destinations, as a dump.
    pub fn ask_destinations(&self) -> Vec<u8> {
        use of_service::{ADDRESS, AF, MARK, PORT, PROTOCOL};
        const GET_DEST: u8 = 8;
        let mut service = vec![];
        match self.what {
            Virtual::Mark { mark, family } => {
                put(&mut service, AF, &family.to_ne_bytes());
                put(&mut service, MARK, &mark.to_ne_bytes());
            }
            Virtual::Address { protocol, address, port } => {
                let (family, mut bytes) = (if address.is_ipv4() { IPV4 } else { IPV6 }, [0; 16]);
                match address {
                    IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                    IpAddr::V6(address) => bytes = address.octets(),
                }
                put(&mut service, AF, &family.to_ne_bytes());
                put(&mut service, PROTOCOL, &protocol.to_ne_bytes());
                put(&mut service, ADDRESS, &bytes);
                put(&mut service, PORT, &port.to_be_bytes());
            }
        }
        let mut body = vec![GET_DEST, 1, 0, 0];
        // `NLA_F_NESTED`
        put(&mut body, 0x8000 | SERVICE, &service);
        body
    }

    fn family(&self) -> u16 {
        match self.what {
            Virtual::Mark { family, .. } => family,
            Virtual::Address { address, .. } if address.is_ipv4() => IPV4,
            Virtual::Address { .. } => IPV6,
        }
    }
}

/// Where a service sends connections to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight; 0 takes no new connections.
    pub weight: Option<u64>,
    /// Connections that are established, others, and clients that are bound to it.
    pub connections: [Option<u64>; 3],
    /// Its counters.
    pub counters: Counters,
}

impl Destination {
    /// Reads a message about a destination of a service; `None` if it lacks what every destination has.
    pub fn parse(service: &Service, message: Message<'_>) -> Option<Destination> {
        use of_destination::{ADDRESS, AF, CONNECTIONS, PORT, STATS, STATS64, WEIGHT};
        let destination = attribute(message.body.get(HEAD..)?, DESTINATION)?;
        let get = |kind| attribute(destination, kind);
        let number = |kind| get(kind).and_then(|bytes| u32_at(bytes, 0)).map(u64::from);
        // A service may send IPv6 to IPv4 in a tunnel.
        let family = get(AF).and_then(|bytes| u16_at(bytes, 0)).unwrap_or_else(|| service.family());
        Some(Destination {
            address: address(family, get(ADDRESS)?)?,
            port: be16_at(get(PORT)?, 0)?,
            weight: number(WEIGHT),
            connections: CONNECTIONS.map(number),
            counters: counters(get(STATS64), get(STATS)),
        })
    }
}

fn address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        IPV4 => Some(IpAddr::from(Ipv4Addr::from(*bytes.first_chunk::<4>()?))),
        IPV6 => Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?))),
        _ => None,
    }
}

/// All counters have 64 bits in the newer attribute; in the older one those of connections and packets have 32.
fn counters(wide: Option<&[u8]>, narrow: Option<&[u8]>) -> Counters {
    let mut counters = Counters::default();
    for (kind, content) in attributes(wide.or(narrow).unwrap_or_default()) {
        let place = usize::from(kind).checked_sub(1).and_then(|at| counters.get_mut(at));
        if let Some(counter) = place {
            *counter = u64_at(content, 0).or_else(|| u32_at(content, 0).map(u64::from));
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &[u8]) -> Message<'_> {
        Message { kind: 30, flags: 0, sequence: 0, body }
    }

    fn nested(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let (mut inside, mut out) = (vec![], vec![1, 1, 0, 0]);
        attributes.iter().for_each(|(kind, content)| put(&mut inside, *kind, content));
        put(&mut out, kind, &inside);
        out
    }

    fn stats(values: &[u64]) -> Vec<u8> {
        let mut out = vec![];
        (1..).zip(values).for_each(|(kind, value)| put(&mut out, kind, &value.to_ne_bytes()));
        out
    }

    const ADDRESS: [u8; 16] = [10, 96, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn service() -> Service {
        let wide = stats(&[1 << 40, 2, 3, 4, 5, 6, 7]);
        let body = nested(
            SERVICE,
            &[
                (1, &IPV4.to_ne_bytes()),
                (2, &6_u16.to_ne_bytes()),
                (3, &ADDRESS),
                (4, &[0, 53]),
                (6, b"rr\0"),
                (10, &[]),
                (12, &wide),
            ],
        );
        Service::parse(message(&body)).unwrap()
    }

    #[test]
    fn a_service_tells_where_it_listens_and_what_it_counted() {
        let service = service();
        let what = Virtual::Address { protocol: 6, address: "10.96.0.10".parse().unwrap(), port: 53 };
        assert_eq!((&service.what, &*service.scheduler), (&what, "rr"));
        assert_eq!(service.counters, [Some(1 << 40), Some(2), Some(3), Some(4), Some(5)]);
        let marked = nested(SERVICE, &[(1, &IPV6.to_ne_bytes()), (5, &7_u32.to_ne_bytes())]);
        let marked = Service::parse(message(&marked)).unwrap();
        assert_eq!(marked.what, Virtual::Mark { mark: 7, family: IPV6 });
        assert_eq!(marked.counters, Counters::default());
        for bad in [&[][..], &[1, 1, 0, 0], &nested(SERVICE, &[(1, &[2])]), &nested(DESTINATION, &[])] {
            assert_eq!(Service::parse(message(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn the_question_for_destinations_says_which_service() {
        let question = service().ask_destinations();
        let asked = attribute(&question[HEAD..], SERVICE).unwrap();
        let kinds: Vec<u16> = attributes(asked).map(|(kind, _)| kind).collect();
        assert_eq!((question[0], kinds), (8, vec![1, 2, 3, 4]));
        assert_eq!((attribute(asked, 3), attribute(asked, 4)), (Some(&ADDRESS[..]), Some(&[0, 53][..])));
    }

    #[test]
    fn a_destination_may_be_of_another_family_and_an_older_kernel() {
        let mut narrow = vec![];
        put(&mut narrow, 1, &9_u32.to_ne_bytes());
        put(&mut narrow, 4, &(1_u64 << 33).to_ne_bytes());
        let six = Ipv6Addr::LOCALHOST.octets();
        let all: [(u16, &[u8]); 7] = [
            (1, &six),
            (2, &[31, 144]),
            (4, &3_u32.to_ne_bytes()),
            (7, &11_u32.to_ne_bytes()),
            (8, &12_u32.to_ne_bytes()),
            (10, &narrow),
            (11, &IPV6.to_ne_bytes()),
        ];
        let found = Destination::parse(&service(), message(&nested(DESTINATION, &all))).unwrap();
        assert_eq!((found.address, found.port), (IpAddr::from(Ipv6Addr::LOCALHOST), 8080));
        assert_eq!((found.weight, found.connections), (Some(3), [Some(11), Some(12), None]));
        assert_eq!(found.counters, [Some(9), None, None, Some(1 << 33), None]);
        let like_its_service = nested(DESTINATION, &[(1, &ADDRESS), (2, &[0, 53])]);
        let found = Destination::parse(&service(), message(&like_its_service)).unwrap();
        assert_eq!(found.address, "10.96.0.10".parse::<IpAddr>().unwrap());
        assert_eq!(Destination::parse(&service(), message(&nested(DESTINATION, &[(1, &ADDRESS)]))), None);
    }

    #[test]
    fn the_number_of_the_family_is_in_the_answer() {
        let mut body = vec![1, 2, 0, 0];
        put(&mut body, 2, b"IPVS\0");
        put(&mut body, 1, &33_u16.to_ne_bytes());
        assert_eq!(family(message(&body)), Some(33));
        assert_eq!(family(message(&body[..12])), None);
    }
}
