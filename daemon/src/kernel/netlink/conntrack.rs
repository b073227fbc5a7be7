//! Connection tracking as the kernel tells of it over netlink (`linux/netfilter/nfnetlink_conntrack.h`): counters, limits and
//! entries.

use super::message::{Message, attribute, attributes, be32_at};

/// `NFNL_SUBSYS_CTNETLINK`, where the type of a message has it.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`: as a dump, all entries.
pub const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`: the counters of each CPU.
pub const GET_STATS_CPU: u16 = SUBSYSTEM | 4;
/// `IPCTNL_MSG_CT_GET_STATS`: how many entries there are and may be.
pub const GET_STATS: u16 = SUBSYSTEM | 5;
/// `struct nfgenmsg` of a question about all IP versions.
pub const ANY: [u8; 4] = [0; 4];
/// Length of that structure, which every message begins with.
const HEAD: usize = ANY.len();

/// How many counters there are.
pub const COUNTERS: usize = 11;

/// `CTA_STATS_*` of the counters, in the order in which the kernel tells them: found, invalid, ignore, insert,
/// insert_failed, drop, early_drop, error, search_restart, clash_resolve, chain_toolong.
const ATTRIBUTES: [u16; COUNTERS] = [2, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
/// `CTA_STATS_GLOBAL_ENTRIES`.
const ENTRIES: u16 = 1;
/// `CTA_STATS_GLOBAL_MAX_ENTRIES`.
const MAX_ENTRIES: u16 = 2;

/// The counters, sums over the CPUs; `None` for one that this kernel does not have.
pub type Counters = [Option<u64>; COUNTERS];

/// Adds the counters of a CPU.
pub fn add_cpu(sums: &mut Counters, message: Message<'_>) {
    for (kind, content) in attributes(message.body.get(HEAD..).unwrap_or_default()) {
        let place = ATTRIBUTES.iter().position(|counter| *counter == kind);
        if let (Some(at), Some(value)) = (place, be32_at(content, 0)) {
            *sums[at].get_or_insert(0) += u64::from(value);
        }
    }
}

/// How many entries a namespace has and may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries now.
    pub entries: Option<u32>,
    /// Entries at most; 0 if there is no limit.
    pub max: Option<u32>,
}

/// Reads the answer to [`GET_STATS`].
pub fn fill(message: Message<'_>) -> Fill {
    let attributes = message.body.get(HEAD..).unwrap_or_default();
    let number = |kind| attribute(attributes, kind).and_then(|content| be32_at(content, 0));
    Fill { entries: number(ENTRIES), max: number(MAX_ENTRIES) }
}

/// Protocols that entries are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, whose state is a number of the kernel's `enum tcp_conntrack`.
    Tcp(u8),
    /// UDP and UDP-Lite.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Anything else.
    Other,
}

/// What is told of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its protocol, and its state if that has states.
    pub protocol: Protocol,
    /// Whether packets were seen both ways (`IPS_SEEN_REPLY`).
    pub replied: bool,
    /// Whether it is kept when the table is full (`IPS_ASSURED`).
    pub assured: bool,
}

/// Reads one entry of the dump; `None` if it lacks what every entry has.
pub fn entry(message: Message<'_>) -> Option<Entry> {
    const TUPLE_ORIG: u16 = 1;
    const TUPLE_PROTO: u16 = 2;
    const PROTO_NUM: u16 = 1;
    const STATUS: u16 = 3;
    const PROTOINFO: u16 = 4;
    const PROTOINFO_TCP: u16 = 1;
    const TCP_STATE: u16 = 1;
    let (mut number, mut state, mut status) = (None, None, None);
    for (kind, content) in attributes(message.body.get(HEAD..)?) {
        match kind {
            TUPLE_ORIG => {
                let tuple = attribute(content, TUPLE_PROTO)?;
                number = attribute(tuple, PROTO_NUM)?.first().copied();
            }
            STATUS => status = be32_at(content, 0),
            PROTOINFO => {
                let tcp = attribute(content, PROTOINFO_TCP);
                state = tcp.and_then(|tcp| attribute(tcp, TCP_STATE)?.first().copied());
            }
            _ => {}
        }
    }
    let protocol = match number? {
        6 => Protocol::Tcp(state?),
        17 | 136 => Protocol::Udp,
        1 | 58 => Protocol::Icmp,
        _ => Protocol::Other,
    };
    Some(Entry { protocol, replied: status? & 2 != 0, assured: status? & 4 != 0 })
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;

    fn message(body: &[u8]) -> Message<'_> {
        Message { kind: GET_STATS_CPU, flags: 0, sequence: 0, body }
    }

    fn body(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = ANY.to_vec();
        attributes.iter().for_each(|(kind, content)| put(&mut out, *kind, content));
        out
    }

    #[test]
    fn counters_of_the_cpus_are_added_up() {
        let mut sums = Counters::default();
        // The second CPU belongs to a kernel of the future: another order, an unknown attribute and one cut short.
        let first = body(&[(2, &[0, 0, 0, 7]), (4, &[255; 4]), (15, &[0, 0, 0, 1])]);
        let second = body(&[(77, &[1; 8]), (4, &[255; 4]), (2, &[0, 0, 1, 0]), (10, &[1, 2])]);
        add_cpu(&mut sums, message(&first));
        add_cpu(&mut sums, message(&second));
        let mut wanted = Counters::default();
        (wanted[0], wanted[1], wanted[10]) = (Some(263), Some(2 * u64::from(u32::MAX)), Some(1));
        assert_eq!(sums, wanted);
        add_cpu(&mut sums, message(&[1, 2]));
        assert_eq!(sums, wanted);
    }

    #[test]
    fn a_kernel_may_not_tell_its_limit() {
        let both = body(&[(1, &[0, 0, 0, 9]), (2, &[0, 4, 0, 0])]);
        assert_eq!(fill(message(&both)), Fill { entries: Some(9), max: Some(0x4_0000) });
        let one = body(&[(1, &[0, 0, 0, 9])]);
        assert_eq!(fill(message(&one)), Fill { entries: Some(9), max: None });
        assert_eq!(fill(message(&[])), Fill::default());
    }

    fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        put(&mut out, kind, content);
        out
    }

    #[test]
    fn entries_are_told_apart() {
        let tuple = |number: u8| nested(2, &nested(1, &[number]));
        let of = |number: u8, status: u8, more: &[(u16, &[u8])]| {
            let (tuple, status) = (tuple(number), [0, 0, 0, status]);
            let mut all: Vec<(u16, &[u8])> = vec![(1, &tuple), (3, &status)];
            all.extend(more);
            entry(message(&body(&all)))
        };
        let state = nested(1, &nested(1, &[3]));
        let tcp = Entry { protocol: Protocol::Tcp(3), replied: true, assured: true };
        assert_eq!(of(6, 0x0e, &[(4, &state)]), Some(tcp));
        assert_eq!(of(6, 0x0e, &[]), None, "TCP has a state");
        let udp = Entry { protocol: Protocol::Udp, replied: true, assured: false };
        assert_eq!(of(17, 0x0a, &[]), Some(udp));
        assert_eq!(of(58, 8, &[]).unwrap().protocol, Protocol::Icmp);
        assert_eq!(of(47, 8, &[]).unwrap().protocol, Protocol::Other);
        assert_eq!(entry(message(&body(&[(3, &[0; 4])]))), None);
        assert_eq!(entry(message(&[])), None);
    }
}
