//! Sources `neighbour tables` and `neighbours`, over rtnetlink(7). There is one table for IPv4 (ARP) and one for IPv6 (NDISC)
//! on a node; all namespaces share them, their counters and their limits.

use super::each::{Visit, each};
use super::enter::failed;
use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{TableDecl, column, counter, gauge};
use crate::kernel::netlink::neigh::{ALL, GET, GET_TABLE, IPV4, IPV6, NeighTable, STATES, STATS, entry, of};
use crate::kernel::netlink::{Family, Netlink};
use crate::table::{Subject, Table};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The tables of the node: one row, with the columns of IPv4 first. `used_ppm` are millionths of `gc_thresh3`.
pub static NEIGH_TABLES: TableDecl = TableDecl {
    name: "neigh_tables",
    keys: &[],
    columns: &[
        counter("ipv4.allocs"),
        counter("ipv4.destroys"),
        counter("ipv4.hash_grows"),
        counter("ipv4.res_failed"),
        counter("ipv4.lookups"),
        counter("ipv4.hits"),
        counter("ipv4.rcv_probes_mcast"),
        counter("ipv4.rcv_probes_ucast"),
        counter("ipv4.periodic_gc_runs"),
        counter("ipv4.forced_gc_runs"),
        counter("ipv4.table_fulls"),
        gauge("ipv4.gc_thresh1"),
        gauge("ipv4.gc_thresh2"),
        gauge("ipv4.gc_thresh3"),
        gauge("ipv4.entries"),
        gauge("ipv4.used_ppm"),
        counter("ipv6.allocs"),
        counter("ipv6.destroys"),
        counter("ipv6.hash_grows"),
        counter("ipv6.res_failed"),
        counter("ipv6.lookups"),
        counter("ipv6.hits"),
        counter("ipv6.rcv_probes_mcast"),
        counter("ipv6.rcv_probes_ucast"),
        counter("ipv6.periodic_gc_runs"),
        counter("ipv6.forced_gc_runs"),
        counter("ipv6.table_fulls"),
        gauge("ipv6.gc_thresh1"),
        gauge("ipv6.gc_thresh2"),
        gauge("ipv6.gc_thresh3"),
        gauge("ipv6.entries"),
        gauge("ipv6.used_ppm"),
    ],
    node: true,
};

/// Columns of one family.
const PER_FAMILY: usize = column(&NEIGH_TABLES, "ipv6.allocs") as usize;
const THRESHOLDS: usize = STATS.len();
const ENTRIES: usize = column(&NEIGH_TABLES, "ipv4.entries") as usize;
const USED: usize = column(&NEIGH_TABLES, "ipv4.used_ppm") as usize;

/// The neighbours of a namespace by state, a row per IP version.
pub static NEIGH: TableDecl = TableDecl {
    name: "neigh",
    keys: &["family"],
    columns: &[
        gauge(STATES[0]),
        gauge(STATES[1]),
        gauge(STATES[2]),
        gauge(STATES[3]),
        gauge(STATES[4]),
        gauge(STATES[5]),
        gauge(STATES[6]),
        gauge(STATES[7]),
    ],
    node: false,
};

/// The tables of the node.
pub struct NeighTables;

impl Source for NeighTables {
    fn name(&self) -> &'static str {
        "neighbour tables"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        static TABLES: [&TableDecl; 1] = [&NEIGH_TABLES];
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        let mut report = Report::default();
        if Instant::now() >= want.deadline {
            report.late += 1;
            return report;
        }
        want.beacon.enter(Subject::NODE, "netlink");
        if let Some(cells) = out[0].row(Subject::NODE, &[]) {
            for (family, cells) in [IPV4, IPV6].into_iter().zip(cells.chunks_mut(PER_FAMILY)) {
                match table(family, &mut scratch.bytes) {
                    Ok(Some(table)) => put(cells, &table),
                    // A kernel without IPv6.
                    Ok(None) => {}
                    Err(error) => report.fail(error),
                }
            }
        }
        want.beacon.leave();
        report.done = u32::from(report.failed == 0);
        report
    }
}

/// Any namespace tells the same of the tables themselves, so that none has to be entered.
fn table(family: u8, bytes: &mut Vec<u8>) -> Result<Option<NeighTable>, ReadError> {
    let netlink =
        Netlink::open(Family::Route).map_err(|error| failed("open", "a netlink socket".into(), error))?;
    // What follows are the interfaces, of which a node has thousands.
    let found = netlink.first(GET_TABLE, &of(family), bytes, NeighTable::parse);
    found.map_err(|error| failed("ask for", "the neighbour tables".into(), error))
}

fn put(cells: &mut [u64], table: &NeighTable) {
    let stats = table.stats.iter().copied();
    let thresholds = table.thresholds.iter().map(|threshold| threshold.map(u64::from));
    for (cell, value) in cells.iter_mut().zip(stats.chain(thresholds)) {
        if let Some(value) = value {
            *cell = value;
        }
    }
    let Some(entries) = table.entries.map(u64::from) else { return };
    cells[ENTRIES] = entries;
    let max = table.thresholds[2].map_or(0, u64::from);
    if let Some(used) = (entries * 1_000_000).checked_div(max) {
        cells[USED] = used;
    }
}

const _: () = assert!(ENTRIES == THRESHOLDS + 3 && USED + 1 == PER_FAMILY);

/// The neighbours of each namespace.
pub struct Neighbours {
    proc: PathBuf,
}

impl Neighbours {
    /// The source; namespaces are entered through `proc`.
    pub fn new(proc: &Path) -> Neighbours {
        Neighbours { proc: proc.to_owned() }
    }
}

type Census = [[u64; STATES.len()]; 2];

fn count(census: &mut Census, family: u8, state: usize) {
    let family = match family {
        IPV4 => 0,
        IPV6 => 1,
        _ => return,
    };
    census[family][state] += 1;
}

fn census(visit: &mut Visit<'_>, out: &mut [Table]) -> Result<(), ReadError> {
    let listed = visit.netlink.dump(GET, &ALL, visit.bytes, Census::default, |census, message| {
        if let Some((family, state)) = entry(message) {
            count(census, family, state);
        }
    });
    let census = listed.map_err(|error| failed("list", "neighbours".into(), error))?;
    for (family, states) in ["ipv4", "ipv6"].iter().zip(&census) {
        if let Some(cells) = out[0].row(visit.target.subject, &[family.as_bytes()]) {
            cells.copy_from_slice(states);
        }
    }
    Ok(())
}

impl Source for Neighbours {
    fn name(&self) -> &'static str {
        "neighbours"
    }

    fn via(&self) -> &'static str {
        "netlink"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        static TABLES: [&TableDecl; 1] = [&NEIGH];
        &TABLES
    }

    fn read(&self, want: &Want<'_>, scratch: &mut Scratch, out: &mut [Table]) -> Report {
        each(
            &self.proc,
            Family::Route,
            want,
            scratch,
            out,
            || Ok(()),
            |mut visit, (), out| {
                visit.netlink.stop_at(want.deadline);
                census(&mut visit, out)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::ColumnSet;
    use crate::sources::Beacon;
    use crate::table::ABSENT;
    use std::time::Duration;

    #[test]
    fn columns_stand_where_they_are_put() {
        for (at, name) in STATS.iter().enumerate() {
            for (family, offset) in [("ipv4", 0), ("ipv6", PER_FAMILY)] {
                assert_eq!(NEIGH_TABLES.columns[offset + at].key, format!("{family}.{name}"));
            }
        }
        let table = NeighTable {
            entries: Some(512),
            thresholds: [Some(128), None, Some(1024)],
            stats: [Some(3); STATS.len()],
        };
        let mut cells = [ABSENT; PER_FAMILY];
        put(&mut cells, &table);
        assert_eq!(cells[THRESHOLDS - 1..], [3, 128, ABSENT, 1024, 512, 500_000]);
        let mut cells = [ABSENT; PER_FAMILY];
        put(&mut cells, &NeighTable { thresholds: [None; 3], ..table });
        assert_eq!(cells[THRESHOLDS - 1..], [3, ABSENT, ABSENT, ABSENT, 512, ABSENT]);
    }

    #[test]
    fn this_node_has_both_tables() {
        let mut columns = ColumnSet::default();
        columns.insert(0);
        let mut out = [Table::new(&NEIGH_TABLES, 9)];
        let deadline = Instant::now() + Duration::from_secs(30);
        let (beacon, columns) = (Beacon::default(), [columns]);
        let want = Want { targets: &[], columns: &columns, deadline, beacon: &beacon };
        let report = NeighTables.read(&want, &mut Scratch::default(), &mut out);
        assert_eq!((report.done, out[0].len(), out[0].subject(0)), (1, 1, Subject::NODE));
        let cell = |name| out[0].cell(0, column(&NEIGH_TABLES, name));
        assert!(cell("ipv4.allocs") >= Some(1) && cell("ipv4.gc_thresh3") >= Some(1));
        assert!(cell("ipv4.allocs") >= cell("ipv4.destroys"));
    }

    #[test]
    fn only_neighbours_of_ip_are_counted() {
        let mut census = Census::default();
        [(IPV4, 5), (IPV6, 1), (7, 0)]
            .into_iter()
            .for_each(|(family, state)| count(&mut census, family, state));
        assert_eq!((census[0][5], census[1][1], census.iter().flatten().sum::<u64>()), (1, 1, 2));
    }
}
