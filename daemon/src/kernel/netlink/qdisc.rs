//! Queueing disciplines, as `RTM_GETQDISC` of rtnetlink(7) lists them (`tc -s qdisc`).

use super::message::{Message, attribute, attributes, text, u32_at, u64_at};

/// `RTM_GETQDISC`.
pub const GET: u16 = 38;
/// `struct tcmsg` with nothing said: all interfaces.
pub const ALL: [u8; TCMSG] = [0; TCMSG];
const TCMSG: usize = 20;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// `TCA_KIND`, `TCA_STATS`, `TCA_STATS2`.
const KIND: u16 = 1;
const STATS: u16 = 3;
const STATS2: u16 = 7;
/// `TCA_STATS_BASIC`, `TCA_STATS_QUEUE`, `TCA_STATS_PKT64`, inside `TCA_STATS2`.
const BASIC: u16 = 1;
const QUEUE: u16 = 3;
const PACKETS64: u16 = 8;

/// Longest name of a kind (`IFNAMSIZ`).
pub const MAX_KIND: usize = 16;

/// One queueing discipline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the interface.
    pub interface: u32,
    /// Its number on that interface, major and minor.
    pub handle: u32,
    /// The class it hangs on; `None` if it is the root.
    pub parent: Option<u32>,
    kind: [u8; MAX_KIND],
    /// What it has counted, in the order of [`COUNTERS`].
    pub counters: [u64; COUNTERS.len()],
    /// Packets in it now.
    pub length: u64,
    /// Bytes in it now.
    pub backlog: u64,
}

/// What is counted, as `tc -s` calls it.
pub const COUNTERS: [&str; 5] = ["bytes", "packets", "drops", "overlimits", "requeues"];
/// Which of [`COUNTERS`] the kernel keeps in 32 bits.
pub const NARROW: [bool; COUNTERS.len()] = [false, true, true, true, true];

impl Qdisc {
    /// `fq_codel`, `htb`.
    pub fn kind(&self) -> &[u8] {
        text(&self.kind)
    }

    /// What a message of the list says; `None` if it is malformed, or of an interface that has none: `noqueue` and `noop`
    /// stand for that.
    pub fn parse(message: &Message<'_>) -> Option<Qdisc> {
        let (head, rest) = message.body.split_at_checked(TCMSG)?;
        let name = text(attribute(rest, KIND)?);
        if matches!(name, b"noqueue" | b"noop" | b"") {
            return None;
        }
        let parent = u32_at(head, 12)?;
        let mut qdisc = Qdisc {
            interface: u32_at(head, 4)?,
            handle: u32_at(head, 8)?,
            parent: (parent != ROOT).then_some(parent),
            ..Qdisc::default()
        };
        let length = name.len().min(MAX_KIND);
        qdisc.kind[..length].copy_from_slice(&name[..length]);
        match attribute(rest, STATS2) {
            Some(stats) => qdisc.stats2(stats)?,
            None => qdisc.stats(attribute(rest, STATS)?)?,
        }
        Some(qdisc)
    }

    fn stats2(&mut self, stats: &[u8]) -> Option<()> {
        let [bytes, packets, drops, overlimits, requeues] = &mut self.counters;
        for (kind, content) in attributes(stats) {
            let narrow = |at| u32_at(content, at).map(u64::from);
            match kind {
                BASIC => (*bytes, *packets) = (u64_at(content, 0)?, narrow(8)?),
                QUEUE => {
                    (self.length, self.backlog) = (narrow(0)?, narrow(4)?);
                    (*drops, *requeues, *overlimits) = (narrow(8)?, narrow(12)?, narrow(16)?);
                }
                // Beyond 32 bits the whole number is here, and its lower half is what it was without.
                PACKETS64 => *packets = u64_at(content, 0)?,
                _ => {}
            }
        }
        Some(())
    }

    /// `struct tc_stats`, of what has no `TCA_STATS2`.
    fn stats(&mut self, stats: &[u8]) -> Option<()> {
        let narrow = |at| u32_at(stats, at).map(u64::from);
        self.counters = [u64_at(stats, 0)?, narrow(8)?, narrow(12)?, narrow(16)?, 0];
        (self.length, self.backlog) = (narrow(28)?, narrow(32)?);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;

    fn body(kind: &[u8], parent: u32, stats: &[u8]) -> Vec<u8> {
        let mut body = vec![0; TCMSG];
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&0x1_0000_u32.to_ne_bytes());
        body[12..16].copy_from_slice(&parent.to_ne_bytes());
        put(&mut body, KIND, kind);
        put(&mut body, STATS2, stats);
        body
    }

    fn parse(body: &[u8]) -> Option<Qdisc> {
        Qdisc::parse(&Message { kind: 36, flags: 2, sequence: 1, body })
    }

    fn stats() -> Vec<u8> {
        let mut basic = 5_000_000_000_u64.to_ne_bytes().to_vec();
        basic.extend(12_u32.to_ne_bytes());
        let queue: Vec<u8> = [3_u32, 300, 4, 5, 6].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let mut stats = vec![];
        put(&mut stats, BASIC, &basic);
        put(&mut stats, QUEUE, &queue);
        stats
    }

    #[test]
    fn everything_that_tc_shows() {
        let qdisc = parse(&body(b"tbf\0", ROOT, &stats())).unwrap();
        assert_eq!((qdisc.interface, qdisc.handle, qdisc.parent), (7, 0x1_0000, None));
        assert_eq!((qdisc.kind(), qdisc.length, qdisc.backlog), (&b"tbf"[..], 3, 300));
        assert_eq!(qdisc.counters, [5_000_000_000, 12, 4, 6, 5]);
        let mut wide = stats();
        put(&mut wide, PACKETS64, &(1_u64 << 33).to_ne_bytes());
        let child = parse(&body(b"pfifo\0", 0x1_0001, &wide)).unwrap();
        assert_eq!((child.parent, child.counters[1]), (Some(0x1_0001), 1 << 33));
    }

    #[test]
    fn no_queue_is_no_qdisc_and_hostile_bytes_are_refused() {
        assert_eq!(parse(&body(b"noqueue\0", ROOT, &stats())), None);
        let whole = body(b"tbf\0", ROOT, &stats());
        for length in 0..whole.len() {
            // No assertion but that it comes back: a cut message is none, or one with fewer numbers.
            let _ = parse(&whole[..length]);
        }
        assert_eq!(
            parse(&body(b"tbf\0", ROOT, &stats()[..8])),
            Some(Qdisc {
                interface: 7,
                handle: 0x1_0000,
                kind: *b"tbf\0\0\0\0\0\0\0\0\0\0\0\0\0",
                ..Qdisc::default()
            })
        );
        let mut long = body(&[b'x'; 40], ROOT, &stats());
        assert_eq!(parse(&long).unwrap().kind().len(), MAX_KIND);
        long.truncate(TCMSG - 1);
        assert_eq!(parse(&long), None);
    }
}
