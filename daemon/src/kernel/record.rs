//! What every record of the event ring begins with, and what may follow its body: a kernel stack.

use crate::declare::EventDecl;
use crate::hooks::{RawEvent, Tuple};
use netskoop_api::Value;
use netskoop_bpf::netns::types::event_head;
use netskoop_bpf::plain::{self, Plain};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

// Every object has its own copy of the shared types; they come from one header.
const _: () = assert!(size_of::<event_head>() == size_of::<netskoop_bpf::tcpreset::types::event_head>());
const _: () = assert!(size_of::<event_head>() == size_of::<netskoop_bpf::packetloss::types::event_head>());

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// Namespace inode; 0 if the kernel context did not tell.
    pub netns: u32,
    /// Cookie of the namespace; 0 if the kernel gives it none.
    pub cookie: u64,
    /// Id of the cgroup whose socket it was, in the unified hierarchy; 0 if the kernel context did not tell.
    pub cgroup: u64,
    /// Number of the probe that wrote it.
    pub probe: u16,
    /// Which of the probe's events.
    pub kind: u16,
    /// Events of this kind and namespace withheld since the last one.
    pub suppressed: u32,
    /// Thread group id; 0 where the context does not tell.
    pub pid: u32,
    /// Command name; empty where the context does not tell.
    pub comm: String,
}

impl Head {
    /// The event that the record tells of.
    pub fn event(
        self,
        decl: &'static EventDecl,
        tuple: Option<Tuple>,
        fields: Vec<(&'static str, Value)>,
        stack: Vec<u64>,
    ) -> RawEvent {
        let process = self.process();
        RawEvent {
            decl,
            netns: self.netns,
            cookie: self.cookie,
            cgroup: self.cgroup,
            time: self.time,
            tuple,
            process,
            fields,
            stack,
            suppressed: self.suppressed.into(),
        }
    }

    /// The process, if the context told.
    pub fn process(&self) -> Option<(u32, String)> {
        (self.pid != 0).then(|| (self.pid, self.comm.clone()))
    }
}

/// Names of the states of TCP sockets, by the kernel's numbers.
const STATES: [&str; 13] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];

/// The field `state` of an event about a TCP socket; `None` if there was no socket.
pub fn state(number: u8) -> Option<(&'static str, Value)> {
    let name = STATES.get(usize::from(number)).filter(|name| !name.is_empty())?;
    Some(("state", Value::Text((*name).to_owned())))
}

/// Number of the probe that wrote a record; `None` if it is too short to be one.
pub fn probe(record: &[u8]) -> Option<u16> {
    plain::read::<event_head>(record).map(|head| head.probe)
}

/// Takes a record apart: its head, its body (which includes the head) and the stack. `None` if it is malformed.
pub fn parse<T: Plain>(record: &[u8]) -> Option<(Head, T, Vec<u64>)> {
    let head: event_head = plain::read(record)?;
    let body: T = plain::read(record)?;
    let tail = record.get(size_of::<T>()..)?;
    // A failed stack walk leaves an error number there.
    let stack = tail.get(..usize::try_from(head.stack_bytes).unwrap_or(0))?;
    let stack = stack.chunks_exact(8).filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)));
    let stack = stack.take_while(|address| *address != 0).collect();
    let head = Head {
        time: head.time,
        netns: head.netns,
        cookie: head.cookie,
        cgroup: head.cgroup,
        probe: head.probe,
        kind: head.kind,
        suppressed: head.suppressed,
        pid: head.pid,
        comm: text(&head.comm),
    };
    Some((head, body, stack))
}

/// A name that the kernel keeps in a fixed number of bytes.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A five-tuple from its parts; `None` if the program could not read the addresses. Addresses are in network order,
/// an IPv4 address in the first word. An IPv4 address in IPv6 clothes is shown as what it is.
pub fn tuple(
    family: u8,
    proto: u8,
    (saddr, sport): ([u32; 4], u16),
    (daddr, dport): ([u32; 4], u16),
) -> Option<Tuple> {
    let address = |words: [u32; 4]| match family {
        4 => Some(IpAddr::V4(Ipv4Addr::from(words[0].to_ne_bytes()))),
        6 => {
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    };
    Some(Tuple { proto, src: address(saddr)?, sport, dst: address(daddr)?, dport })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(netns: u32, stack_bytes: i32, tail: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(7u64.to_ne_bytes());
        out.extend(77u64.to_ne_bytes());
        out.extend(777u64.to_ne_bytes());
        out.extend(netns.to_ne_bytes());
        out.extend(3u16.to_ne_bytes());
        out.extend(1u16.to_ne_bytes());
        out.extend(9u32.to_ne_bytes());
        out.extend(42u32.to_ne_bytes());
        out.extend(b"curl\0garbage\0\0\0\0");
        out.extend(stack_bytes.to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(tail.iter().flat_map(|word| word.to_ne_bytes()));
        out
    }

    #[test]
    fn a_record_is_taken_apart() {
        let (head, _, stack) = parse::<event_head>(&bytes(5, 16, &[1, 2, 3])).unwrap();
        assert_eq!((head.cookie, head.cgroup), (77, 777));
        assert_eq!((head.time, head.netns, head.probe, head.kind, head.suppressed), (7, 5, 3, 1, 9));
        assert_eq!(head.process(), Some((42, "curl".to_owned())));
        assert_eq!(stack, [1, 2]);
        assert_eq!(probe(&bytes(5, 0, &[])), Some(3));
    }

    #[test]
    fn malformed_records_are_refused() {
        let whole = bytes(5, 0, &[]);
        for length in 0..whole.len() {
            assert!(parse::<event_head>(&whole[..length]).is_none(), "{length} bytes");
        }
        assert!(parse::<event_head>(&bytes(5, 800, &[1])).is_none(), "stack longer than the record");
        let (_, _, stack) = parse::<event_head>(&bytes(5, -14, &[1])).unwrap();
        assert!(stack.is_empty(), "a failed stack walk has no stack");
    }

    #[test]
    fn addresses_in_both_families() {
        let v4 = [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0];
        let mapped = [0, 0, u32::from_ne_bytes([0, 0, 255, 255]), u32::from_ne_bytes([192, 0, 2, 1])];
        let v6 = [u32::from_ne_bytes([0xfd, 0, 0, 0]), 0, 0, u32::from_ne_bytes([0, 0, 0, 1])];
        assert_eq!(tuple(4, 6, (v4, 1), (v4, 2)).unwrap().src.to_string(), "192.0.2.1");
        assert_eq!(tuple(6, 6, (mapped, 1), (v6, 2)).unwrap().src.to_string(), "192.0.2.1");
        assert_eq!(tuple(6, 6, (mapped, 1), (v6, 2)).unwrap().dst.to_string(), "fd00::1");
        assert_eq!(tuple(0, 6, (v4, 1), (v4, 2)), None);
    }
}
