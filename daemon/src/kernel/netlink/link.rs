//! What it takes to join two namespaces of the daemon's own: a pair of interfaces, addresses, neighbours, a queue (rtnetlink(7),
//! veth(4), tc-pfifo(8)).
//! The messages that change something are for such namespaces only.

use super::message::{attribute, put, text, u32_at};
use super::{Netlink, NetlinkError};
use std::net::IpAddr;

/// `RTM_NEWLINK`, `RTM_NEWADDR`, `RTM_NEWNEIGH`, `RTM_NEWQDISC` and `RTM_SETNEIGHTBL`.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_NEIGHBOUR: u16 = 28;
const NEW_QUEUE: u16 = 36;
const SET_NEIGHBOUR_TABLE: u16 = 67;
/// `RTM_GETLINK`.
const GET_LINK: u16 = 18;
/// `NLM_F_REPLACE`, `NLM_F_EXCL` and `NLM_F_CREATE`.
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// A hardware address.
pub type Mac = [u8; 6];

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its hardware address, for good: it is never asked for.
    At(Mac),
    /// It is being asked for, and nobody asks: what is sent to it waits until something else is known.
    Awaited,
}

/// One end of a pair of interfaces.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
}

/// The interfaces of the socket's namespace: number and name.
pub fn list(netlink: &mut Netlink) -> Result<Vec<(u32, String)>, NetlinkError> {
    const NAME: u16 = 3;
    /// Length of `struct ifinfomsg`.
    const HEAD: usize = 16;
    netlink.dump(GET_LINK, &[0; HEAD], &mut Vec::new(), Vec::new, |found, message| {
        let index = u32_at(message.body, 4);
        let name = message.body.get(HEAD..).and_then(|rest| attribute(rest, NAME)).map(text);
        // A name that is no text fits no pattern.
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        found.extend(index.zip(name.map(str::to_owned)));
    })
}

/// Makes a pair of interfaces: one in the namespace of the socket, the other in that of a thread.
pub fn make_pair(
    netlink: &mut Netlink,
    near: End<'_>,
    far: End<'_>,
    thread: i32,
) -> Result<(), NetlinkError> {
    netlink.change(NEW_LINK, CREATE | EXCLUSIVE, &pair(near, far, thread), &mut Vec::new())
}

/// Switches an interface on.
pub fn set_up(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    /// `IFF_UP`, which is the only flag that changes.
    const UP: u32 = 1;
    netlink.change(NEW_LINK, 0, &interface(index, UP, UP), &mut Vec::new())
}

/// Gives an interface an address, which works at once.
pub fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), NetlinkError> {
    netlink.change(NEW_ADDRESS, CREATE | EXCLUSIVE, &address_message(index, address, prefix), &mut Vec::new())
}

/// Says what is known of a neighbour, whatever was known before.
pub fn set_neighbour(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    known: Neighbour,
) -> Result<(), NetlinkError> {
    let body = neighbour_message(index, address, known);
    netlink.change(NEW_NEIGHBOUR, CREATE | REPLACE, &body, &mut Vec::new())
}

/// Lets an interface give up a neighbour of one version of IP at its first silence, and that after so long.
pub fn set_patience(
    netlink: &mut Netlink,
    index: u32,
    is_ipv4: bool,
    milliseconds: u64,
) -> Result<(), NetlinkError> {
    let body = patience_message(index, is_ipv4, milliseconds);
    netlink.change(SET_NEIGHBOUR_TABLE, 0, &body, &mut Vec::new())
}

/// Puts a queue for so many packets in front of an interface, or changes how many they are.
pub fn set_queue(netlink: &mut Netlink, index: u32, packets: u32) -> Result<(), NetlinkError> {
    netlink.change(NEW_QUEUE, CREATE | REPLACE, &queue_message(index, packets), &mut Vec::new())
}

/// `struct ifinfomsg`.
fn interface(index: u32, flags: u32, changed: u32) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend([index, flags, changed].map(u32::to_ne_bytes).concat());
    out
}

fn pair(near: End<'_>, far: End<'_>, thread: i32) -> Vec<u8> {
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const INFO: u16 = 18;
    const NAMESPACE_OF: u16 = 19;
    /// Within `IFLA_LINKINFO`.
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    /// `VETH_INFO_PEER`.
    const PEER: u16 = 1;
    let begin = |end: End<'_>| {
        let mut out = interface(0, 0, 0);
        put(&mut out, NAME, &[end.name.as_bytes(), &[0]].concat());
        put(&mut out, ADDRESS, &end.mac);
        out
    };
    let mut peer = begin(far);
    put(&mut peer, NAMESPACE_OF, &thread.to_ne_bytes());
    let (mut data, mut info, mut out) = (Vec::new(), Vec::new(), begin(near));
    put(&mut data, PEER, &peer);
    put(&mut info, KIND, b"veth\0");
    put(&mut info, DATA, &data);
    put(&mut out, INFO, &info);
    out
}

/// `AF_INET` or `AF_INET6`, and the address.
fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (super::neigh::IPV4, address.octets().to_vec()),
        IpAddr::V6(address) => (super::neigh::IPV6, address.octets().to_vec()),
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    /// `IFA_F_NODAD`: nobody else can have it.
    const AT_ONCE: u8 = 2;
    let (family, bytes) = octets(address);
    let mut out = vec![family, prefix, AT_ONCE, 0];
    out.extend(index.to_ne_bytes());
    put(&mut out, LOCAL, &bytes);
    put(&mut out, ADDRESS, &bytes);
    out
}

fn neighbour_message(index: u32, address: IpAddr, known: Neighbour) -> Vec<u8> {
    const DESTINATION: u16 = 1;
    const LINK_ADDRESS: u16 = 2;
    /// `NUD_INCOMPLETE` and `NUD_PERMANENT`.
    const INCOMPLETE: u16 = 1;
    const PERMANENT: u16 = 0x80;
    let (family, bytes) = octets(address);
    let state = if known == Neighbour::Awaited { INCOMPLETE } else { PERMANENT };
    let mut out = vec![family, 0, 0, 0];
    out.extend(index.to_ne_bytes());
    out.extend(state.to_ne_bytes());
    out.extend([0, 0]);
    put(&mut out, DESTINATION, &bytes);
    if let Neighbour::At(mac) = known {
        put(&mut out, LINK_ADDRESS, &mac);
    }
    out
}

fn patience_message(index: u32, is_ipv4: bool, milliseconds: u64) -> Vec<u8> {
    const NAME: u16 = 1;
    const PARAMETERS: u16 = 6;
    /// Within `NDTA_PARMS`.
    const INTERFACE: u16 = 1;
    const PAUSE: u16 = 5;
    const QUESTIONS: u16 = 11;
    let (family, name): (u8, &[u8]) = match is_ipv4 {
        true => (super::neigh::IPV4, b"arp_cache\0"),
        false => (super::neigh::IPV6, b"ndisc_cache\0"),
    };
    let mut parameters = Vec::new();
    put(&mut parameters, INTERFACE, &index.to_ne_bytes());
    put(&mut parameters, PAUSE, &milliseconds.to_ne_bytes());
    put(&mut parameters, QUESTIONS, &1_u32.to_ne_bytes());
    let mut out = vec![family, 0, 0, 0];
    put(&mut out, NAME, name);
    put(&mut out, PARAMETERS, &parameters);
    out
}

/// The simplest queue, which is part of every kernel that has queues at all: nothing is loaded for it.
fn queue_message(index: u32, packets: u32) -> Vec<u8> {
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    /// `TC_H_ROOT`.
    const ROOT: u32 = u32::MAX;
    // The kernel chooses the handle.
    let mut out = vec![0; 4];
    out.extend([index, 0, ROOT, 0].map(u32::to_ne_bytes).concat());
    put(&mut out, KIND, b"pfifo\0");
    put(&mut out, OPTIONS, &packets.to_ne_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::super::message::attribute;
    use super::*;

    #[test]
    fn only_the_interface_that_is_named_loses_its_patience() {
        for (is_ipv4, family, name) in [(true, 2, &b"arp_cache\0"[..]), (false, 10, b"ndisc_cache\0")] {
            let body = patience_message(7, is_ipv4, 20);
            assert_eq!((body[0], attribute(&body[4..], 1)), (family, Some(name)));
            let parameters = attribute(&body[4..], 6).unwrap();
            assert_eq!(attribute(parameters, 1), Some(&7_u32.to_ne_bytes()[..]));
            assert_eq!(attribute(parameters, 5), Some(&20_u64.to_ne_bytes()[..]));
        }
    }

    #[test]
    fn a_queue_is_in_front_of_one_interface() {
        let body = queue_message(7, 0);
        assert_eq!(u32_at(&body, 4), Some(7));
        assert_eq!(attribute(&body[20..], 1), Some(&b"pfifo\0"[..]));
        assert_eq!(attribute(&body[20..], 2), Some(&[0; 4][..]));
    }

    #[test]
    fn a_pair_says_where_its_other_end_is_to_be() {
        let (near, far) = (End { name: "a", mac: [2, 0, 0, 0, 0, 1] }, End { name: "b", mac: [3; 6] });
        let body = pair(near, far, 77);
        let info = attribute(&body[16..], 18).unwrap();
        assert_eq!(attribute(info, 1), Some(&b"veth\0"[..]));
        let peer = attribute(attribute(info, 2).unwrap(), 1).unwrap();
        assert_eq!(attribute(&peer[16..], 19), Some(&77_i32.to_ne_bytes()[..]));
        assert_eq!(
            (attribute(&body[16..], 3), attribute(&peer[16..], 3)),
            (Some(&b"a\0"[..]), Some(&b"b\0"[..]))
        );
        assert_eq!(attribute(&peer[16..], 1), Some(&[3; 6][..]));
    }

    #[test]
    fn an_awaited_neighbour_has_no_hardware_address() {
        let address = "2001:db8::2".parse().unwrap();
        let body = neighbour_message(5, address, Neighbour::Awaited);
        assert_eq!((body[0], body[8], attribute(&body[12..], 2)), (10, 1, None));
        let body = neighbour_message(5, address, Neighbour::At([7; 6]));
        assert_eq!((body[8], attribute(&body[12..], 2)), (0x80, Some(&[7; 6][..])));
    }
}
