//! Neighbours (ARP and NDISC) as rtnetlink(7) tells of them: the two tables of the node, and the entries of a namespace.

use super::message::{Message, attributes, text, u16_at, u32_at, u64_at};

/// `RTM_GETNEIGH`: the entries of a namespace.
pub const GET: u16 = 30;
/// `struct ndmsg` of a question about all entries.
pub const ALL: [u8; 12] = [0; 12];
/// `RTM_GETNEIGHTBL`: the tables and, one by one, the interfaces that use them.
pub const GET_TABLE: u16 = 66;
/// `AF_INET`, the family of ARP.
pub const IPV4: u8 = 2;
/// `AF_INET6`, the family of NDISC.
pub const IPV6: u8 = 10;

/// `struct ndtmsg` of a question about the table of a family.
pub fn of(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Names of the fields of `struct ndt_stats`, in its order.
pub const STATS: [&str; 11] = [
    "allocs",
    "destroys",
    "hash_grows",
    "res_failed",
    "lookups",
    "hits",
    "rcv_probes_mcast",
    "rcv_probes_ucast",
    "periodic_gc_runs",
    "forced_gc_runs",
    "table_fulls",
];

/// What is told of a table, which all namespaces share; `None` for what this kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighTable {
    /// Entries of all namespaces.
    pub entries: Option<u32>,
    /// `gc_thresh1`, `gc_thresh2` and `gc_thresh3`: where old entries begin to be thrown out, and how many there may be.
    pub thresholds: [Option<u32>; 3],
    /// The counters, in the order of [`STATS`].
    pub stats: [Option<u64>; STATS.len()],
}

impl NeighTable {
    /// Reads a message; `None` if it is about the interface of a table.
    pub fn parse(message: Message<'_>) -> Option<NeighTable> {
        const NAME: u16 = 1;
        const THRESH1: u16 = 2;
        const THRESH3: u16 = 4;
        const CONFIG: u16 = 5;
        const PARMS: u16 = 6;
        const STATS_OF_IT: u16 = 7;
        /// `NDTPA_IFINDEX`, of an interface.
        const INTERFACE: u16 = 1;
        /// Where `struct ndt_config` has the entries.
        const ENTRIES: usize = 4;
        let (mut table, mut named) = (NeighTable::default(), false);
        for (kind, content) in attributes(message.body.get(4..)?) {
            match kind {
                NAME => named = !text(content).is_empty(),
                THRESH1..=THRESH3 => table.thresholds[usize::from(kind - THRESH1)] = u32_at(content, 0),
                CONFIG => table.entries = u32_at(content, ENTRIES),
                PARMS if attributes(content).any(|(kind, _)| kind == INTERFACE) => return None,
                STATS_OF_IT => {
                    table.stats.iter_mut().enumerate().for_each(|(at, stat)| *stat = u64_at(content, 8 * at));
                }
                _ => {}
            }
        }
        named.then_some(table)
    }
}

/// Names of the states of entries, from the lowest bit of `ndm_state` on.
pub const STATES: [&str; 8] =
    ["incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"];

/// Family and state of an entry, the state as an index into [`STATES`]; `None` if it has none.
pub fn entry(message: Message<'_>) -> Option<(u8, usize)> {
    let state = usize::try_from(u16_at(message.body, 8)?.trailing_zeros()).ok()?;
    (state < STATES.len()).then_some((*message.body.first()?, state))
}

#[cfg(test)]
mod tests {
    use super::super::message::put;
    use super::*;

    fn message(body: &[u8]) -> Message<'_> {
        Message { kind: 64, flags: 0, sequence: 0, body }
    }

    fn table(attributes: &[(u16, &[u8])]) -> Option<NeighTable> {
        let mut body = of(IPV4).to_vec();
        attributes.iter().for_each(|(kind, content)| put(&mut body, *kind, content));
        NeighTable::parse(message(&body))
    }

    #[test]
    fn a_table_tells_what_it_has() {
        let config = [&[4, 0, 80, 1][..], &7_u32.to_ne_bytes(), &[0; 24]].concat();
        let stats: Vec<u8> = (1_u64..=10).flat_map(u64::to_ne_bytes).collect();
        let mut of_all = vec![];
        put(&mut of_all, 2, &[0; 4]);
        let thresholds = [128_u32, 512, 1024].map(u32::to_ne_bytes);
        let found = table(&[
            (1, b"arp_cache\0"),
            (2, &thresholds[0]),
            (3, &thresholds[1]),
            (4, &thresholds[2]),
            (5, &config),
            (6, &of_all),
            (7, &stats),
        ])
        .unwrap();
        assert_eq!((found.entries, found.thresholds), (Some(7), [Some(128), Some(512), Some(1024)]));
        // One counter fewer than kernels of today have.
        let (last, stats) = found.stats.split_last().unwrap();
        assert_eq!((last, stats[0], stats[9]), (&None, Some(1), Some(10)));
    }

    #[test]
    fn interfaces_of_a_table_are_none() {
        let mut of_one = vec![];
        put(&mut of_one, 1, &[3, 0, 0, 0]);
        assert_eq!(table(&[(1, b"arp_cache\0"), (6, &of_one)]), None);
        assert_eq!(table(&[]), None);
        assert_eq!(NeighTable::parse(message(&[2])), None);
    }

    #[test]
    fn entries_have_a_state() {
        let of = |state: u8| [&[IPV6, 0, 0, 0, 2, 0, 0, 0, state, 0, 0, 1][..], &[0; 8]].concat();
        let states = [(1, 0), (2, 1), (32, 5), (128, 7)];
        states.iter().for_each(|(bit, at)| assert_eq!(entry(message(&of(*bit))), Some((IPV6, *at))));
        assert_eq!(entry(message(&of(0))), None);
        assert_eq!(entry(message(&[IPV6; 9])), None);
    }
}
