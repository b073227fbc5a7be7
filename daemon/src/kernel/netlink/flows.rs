//! What connection tracking tells as it happens (`linux/netfilter/nfnetlink_conntrack.h`): connections that are new, changed
//! or gone.

use super::message::{Message, attribute, attributes, be16_at, be32_at, be64_at};
use crate::hooks::Tuple;
use std::net::IpAddr;

/// `NLM_F_CREATE`, by which a new connection is told from one that has changed.
const CREATE: u16 = 0x400;
/// `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
const NEW: u16 = 1 << 8;
const DELETE: u16 = NEW | 2;
/// Length of `struct nfgenmsg`.
const HEAD: usize = 4;

/// What has happened to a connection. The groups of the kernel have the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its first packet has come through.
    New,
    /// Something about it is not as it was.
    Update,
    /// It is not tracked any more.
    Destroy,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is told of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What has happened.
    pub change: Change,
    /// As its first packet was.
    pub original: Tuple,
    /// As answers are expected; where it is not the reverse, addresses or ports are translated.
    pub reply: Tuple,
    /// State of a TCP connection, a number of `enum tcp_conntrack`, if it is told.
    pub state: Option<u8>,
    /// `IPS_*` bits.
    pub status: u32,
    /// What went each way, where it is counted (`net.netfilter.nf_conntrack_acct`).
    pub volumes: Option<[Volume; 2]>,
}

impl Flow {
    /// Whom the packets are sent to in truth, if that is not whom they were addressed to.
    pub fn new_receiver(&self) -> Option<(IpAddr, u16)> {
        let (was, is) = (self.original, self.reply);
        ((is.src, is.sport) != (was.dst, was.dport)).then_some((is.src, is.sport))
    }

    /// Whom the packets seem to come from, if that is not who sent them.
    pub fn new_sender(&self) -> Option<(IpAddr, u16)> {
        let (was, is) = (self.original, self.reply);
        ((is.dst, is.dport) != (was.src, was.sport)).then_some((is.dst, is.dport))
    }

    /// 0 if nobody has answered, 1 if somebody has, 2 if it is kept when the table is full.
    pub fn direction(&self) -> usize {
        match self.status {
            status if status & 4 != 0 => 2,
            status => usize::from(status & 2 != 0),
        }
    }
}

/// Reads a message; `None` if it is not one of these, or lacks what each of them has.
pub fn flow(message: Message<'_>) -> Option<Flow> {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const STATUS: u16 = 3;
    const PROTOINFO: u16 = 4;
    const SENT: u16 = 9;
    const ANSWERED: u16 = 10;
    let change = match message.kind {
        NEW if message.flags & CREATE != 0 => Change::New,
        NEW => Change::Update,
        DELETE => Change::Destroy,
        _ => return None,
    };
    let (mut original, mut reply, mut state, mut status) = (None, None, None, 0);
    let (mut sent, mut answered) = (None, None);
    for (kind, content) in attributes(message.body.get(HEAD..)?) {
        match kind {
            ORIGINAL => original = tuple(content),
            REPLY => reply = tuple(content),
            STATUS => status = be32_at(content, 0)?,
            PROTOINFO => state = tcp_state(content),
            SENT => sent = volume(content),
            ANSWERED => answered = volume(content),
            _ => {}
        }
    }
    let volumes = sent.zip(answered).map(|(sent, answered)| [sent, answered]);
    Some(Flow { change, original: original?, reply: reply?, state, status, volumes })
}

/// `CTA_PROTOINFO_TCP` and in it `CTA_PROTOINFO_TCP_STATE`.
fn tcp_state(content: &[u8]) -> Option<u8> {
    attribute(attribute(content, 1)?, 1)?.first().copied()
}

/// `CTA_COUNTERS_PACKETS` and `CTA_COUNTERS_BYTES`.
fn volume(content: &[u8]) -> Option<Volume> {
    let number = |kind| be64_at(attribute(content, kind)?, 0);
    Some(Volume { packets: number(1)?, bytes: number(2)? })
}

/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`. What has no ports has zeros.
fn tuple(content: &[u8]) -> Option<Tuple> {
    let (addresses, protocol) = (attribute(content, 1)?, attribute(content, 2)?);
    let port = |kind| attribute(protocol, kind).and_then(|port| be16_at(port, 0)).unwrap_or(0);
    Some(Tuple {
        proto: *attribute(protocol, 1)?.first()?,
        src: address(addresses, 1, 3)?,
        sport: port(2),
        dst: address(addresses, 2, 4)?,
        dport: port(3),
    })
}

/// One of the attributes of the two IP versions.
fn address(addresses: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(bytes) = attribute(addresses, v4) {
        return Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;

    fn nest(parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = vec![];
        parts.iter().for_each(|(kind, content)| put(&mut out, *kind, content));
        out
    }

    fn end(src: &[u8], dst: &[u8], proto: u8, ports: [u16; 2]) -> Vec<u8> {
        let first = if src.len() == 4 { 1 } else { 3 };
        let [sport, dport] = ports.map(u16::to_be_bytes);
        let addresses = nest(&[(first, src), (first + 1, dst)]);
        nest(&[(1, &addresses), (2, &nest(&[(1, &[proto]), (2, &sport), (3, &dport)]))])
    }

    fn read(kind: u16, flags: u16, parts: &[(u16, &[u8])]) -> Option<Flow> {
        let mut body = vec![0; HEAD];
        body.extend(nest(parts));
        flow(Message { kind, flags, sequence: 0, body: &body })
    }

    #[test]
    fn a_connection_with_another_receiver_is_read() {
        let there = end(&[10, 0, 0, 1], &[10, 0, 0, 9], 6, [4000, 80]);
        let back = end(&[10, 0, 0, 2], &[10, 0, 0, 1], 6, [8080, 4000]);
        let state = nest(&[(1, &nest(&[(1, &[3])]))]);
        let counted = nest(&[(1, &7_u64.to_be_bytes()), (2, &700_u64.to_be_bytes())]);
        let parts: [(u16, &[u8]); 6] =
            [(1, &there), (2, &back), (3, &[0, 0, 0, 0x26]), (4, &state), (9, &counted), (10, &counted)];
        let flow = read(NEW, CREATE, &parts).unwrap();
        assert_eq!((flow.change, flow.state, flow.direction()), (Change::New, Some(3), 2));
        assert_eq!(flow.new_receiver(), Some(("10.0.0.2".parse().unwrap(), 8080)));
        assert_eq!(flow.new_sender(), None);
        assert_eq!(flow.volumes, Some([Volume { packets: 7, bytes: 700 }; 2]));
        assert_eq!(read(NEW, 0, &parts).unwrap().change, Change::Update);
        assert_eq!(read(DELETE, 0, &parts).unwrap().change, Change::Destroy);
        assert_eq!(read(NEW | 1, 0, &parts), None);
        assert_eq!(read(NEW, 0, &parts[1..]), None);
    }

    #[test]
    fn a_connection_over_ipv6_with_another_sender_is_read() {
        let (near, far, mask) = ([1; 16], [2; 16], [3; 16]);
        let there = end(&near, &far, 17, [53, 54]);
        let back = end(&far, &mask, 17, [54, 55]);
        let flow = read(NEW, 0, &[(1, &there), (2, &back)]).unwrap();
        assert_eq!((flow.state, flow.direction(), flow.volumes), (None, 0, None));
        assert_eq!(flow.new_sender(), Some((IpAddr::from(mask), 55)));
        assert_eq!(flow.new_receiver(), None);
        assert_eq!(read(NEW, 0, &[(1, &there[..20]), (2, &back)]), None);
    }
}
