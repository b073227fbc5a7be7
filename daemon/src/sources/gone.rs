//! Source `gone`: what namespaces had counted that are no more, added up by Kubernetes namespace or kind. Only what no
//! scrape has shown is added: a job that lived shorter than a scrape interval is seen here, and nothing is counted twice.

use super::columns::{DEV, NETSTAT, SNMP};
use super::{Report, Scratch, Source, Want};
use crate::declare::{Column, Kind, TableDecl};
use crate::table::{ABSENT, Subject, Table};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A row per group.
pub static GONE: TableDecl = TableDecl {
    name: "gone",
    keys: &[],
    columns: &[
        Column { key: "entities", kind: Kind::Counter },
        Column { key: "unread", kind: Kind::Counter },
    ],
    node: true,
};
static TABLES: [&TableDecl; 1] = [&GONE];

/// The tables whose counters are added up.
pub static ROLLED: [&TableDecl; 3] = [&SNMP, &NETSTAT, &DEV];

/// Groups at most; what comes later is in the last one.
const MAX_GROUPS: usize = 32;
const OTHER: Group<'static> = Group { kind: "other", namespace: None };

/// What one namespace had counted: a sum per column of each of [`ROLLED`], nothing where it was not read.
pub type Sums = [Vec<u64>; ROLLED.len()];

/// What namespaces are added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// Its kind, as in the labels.
    pub kind: &'a str,
    /// The Kubernetes namespace, of a pod.
    pub namespace: Option<&'a str>,
}

/// The sums.
#[derive(Debug, Default)]
pub struct Gone {
    enabled: AtomicBool,
    groups: Mutex<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    kind: String,
    namespace: Option<String>,
    /// Escaped, as the text format wants it.
    labels: String,
    sums: Sums,
    entities: u64,
    unread: u64,
}

impl Known {
    fn new(group: Group<'_>) -> Known {
        let mut labels = b"kind=\"gone\",name=\"".to_vec();
        crate::table::escape(&mut labels, group.namespace.unwrap_or(group.kind).as_bytes());
        if let Some(namespace) = group.namespace {
            labels.extend_from_slice(b"\",namespace=\"");
            crate::table::escape(&mut labels, namespace.as_bytes());
        }
        labels.push(b'"');
        Known {
            kind: group.kind.to_owned(),
            namespace: group.namespace.map(ToOwned::to_owned),
            labels: String::from_utf8_lossy(&labels).into_owned(),
            sums: Sums::default(),
            entities: 0,
            unread: 0,
        }
    }

    fn is(&self, group: Group<'_>) -> bool {
        self.kind == group.kind && self.namespace.as_deref() == group.namespace
    }
}

impl Gone {
    /// Whether somebody wants to know.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Adds what a namespace had counted since it was last shown; `None` if nobody could read it at its end.
    pub fn add(&self, group: Group<'_>, grown: Option<&Sums>) {
        let mut groups = self.lock();
        let at = groups.iter().position(|known| known.is(group)).unwrap_or_else(|| {
            // The last place is for all that find none.
            let group = if groups.len() + 1 < MAX_GROUPS { group } else { OTHER };
            groups.iter().position(|known| known.is(group)).unwrap_or_else(|| {
                groups.push(Known::new(group));
                groups.len() - 1
            })
        });
        let known = &mut groups[at];
        known.entities += 1;
        known.unread += u64::from(grown.is_none());
        for (sums, grown) in known.sums.iter_mut().zip(grown.into_iter().flatten()) {
            merge(sums, grown);
        }
    }

    /// Puts a row per group into the tables of [`ROLLED`].
    pub fn append<'a>(&self, tables: impl Iterator<Item = &'a mut Table>) {
        if !self.is_enabled() {
            return;
        }
        let groups = self.lock();
        for (at, table) in tables.enumerate() {
            for (number, known) in groups.iter().enumerate().filter(|(_, known)| !known.sums[at].is_empty()) {
                // The sum over interfaces that are no more has no name.
                let keys: &[&[u8]] = if table.decl().keys.is_empty() { &[] } else { &[b""] };
                if let Some(cells) = table.row(Subject::group(number), keys) {
                    cells.copy_from_slice(&known.sums[at]);
                }
            }
        }
    }

    /// Labels of each group.
    pub fn labels(&self) -> Vec<String> {
        self.lock().iter().map(|known| known.labels.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds column by column.
pub fn merge(sums: &mut Vec<u64>, grown: &[u64]) {
    if sums.is_empty() {
        sums.resize(grown.len(), ABSENT);
    }
    for (sum, value) in sums.iter_mut().zip(grown).filter(|(_, value)| **value != ABSENT) {
        *sum = if *sum == ABSENT { *value } else { sum.saturating_add(*value) };
    }
}

/// What a namespace had counted, from the tables of [`ROLLED`]. Of gauges nothing is left when it is gone.
pub fn sums<'a>(tables: impl Iterator<Item = &'a Table>, subject: Subject) -> Sums {
    let mut all = Sums::default();
    for (sums, table) in all.iter_mut().zip(tables) {
        let counts = |row: &usize| table.subject(*row) == subject && !is_loopback(table, *row);
        for row in (0..table.len()).filter(counts) {
            let cell = |(at, column): (usize, &Column)| match column.kind {
                Kind::Counter => table.cell(row, at as u16).unwrap_or(ABSENT),
                Kind::Gauge => ABSENT,
            };
            let cells: Vec<u64> = table.decl().columns.iter().enumerate().map(cell).collect();
            merge(sums, &cells);
        }
    }
    all
}

/// The sums over interfaces leave it out.
fn is_loopback(table: &Table, row: usize) -> bool {
    !table.decl().keys.is_empty() && table.key(row, 0) == b"lo"
}

impl Source for Gone {
    fn name(&self) -> &'static str {
        "gone"
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        &TABLES
    }

    fn read(&self, _: &Want<'_>, _: &mut Scratch, out: &mut [Table]) -> Report {
        for (number, known) in self.lock().iter().enumerate() {
            if let Some(cells) = out[0].row(Subject::group(number), &[]) {
                cells.copy_from_slice(&[known.entities, known.unread]);
            }
        }
        Report::default()
    }

    fn enable(&self, probe: &str, enabled: bool) {
        if probe == "gone" {
            self.enabled.store(enabled, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: Group<'_> = Group { kind: "pod", namespace: Some("shop") };

    fn table(subject: Subject, rows: &[(&str, u64)]) -> [Table; 3] {
        let mut tables = ROLLED.map(|decl| Table::new(decl, 99));
        tables[0].row(subject, &[]).unwrap().fill(7);
        for (device, value) in rows {
            tables[2].row(subject, &[device.as_bytes()]).unwrap().fill(*value);
        }
        tables
    }

    #[test]
    fn sums_have_counters_only_and_no_loopback() {
        let tables = table(Subject(3), &[("lo", 100), ("eth0", 5), ("", 1)]);
        let [snmp, netstat, dev] = sums(tables.iter(), Subject(3));
        let gauge = SNMP.columns.iter().position(|column| column.kind == Kind::Gauge).unwrap();
        let counter = SNMP.columns.iter().position(|column| column.kind == Kind::Counter).unwrap();
        assert_eq!((snmp[gauge], snmp[counter], netstat.len(), dev[0]), (ABSENT, 7, 0, 6));
        assert_eq!(sums(tables.iter(), Subject(4)), Sums::default());
    }

    #[test]
    fn groups_are_rows_of_their_own() {
        let gone = Gone::default();
        gone.enable("gone", true);
        let tables = table(Subject(3), &[("eth0", 5)]);
        let grown = sums(tables.iter(), Subject(3));
        gone.add(SHOP, Some(&grown));
        gone.add(SHOP, Some(&grown));
        gone.add(Group { kind: "netns", namespace: None }, None);
        let mut tables = table(Subject(1), &[]);
        gone.append(tables.iter_mut());
        assert_eq!(
            (tables[2].len(), tables[2].subject(0), tables[2].cell(0, 0)),
            (1, Subject::group(0), Some(10))
        );
        let labels = ["kind=\"gone\",name=\"shop\",namespace=\"shop\"", "kind=\"gone\",name=\"netns\""];
        assert_eq!(gone.labels(), labels);
        gone.enable("gone", false);
        let mut tables = table(Subject(1), &[]);
        gone.append(tables.iter_mut());
        assert!(tables[2].is_empty(), "nobody asks");
    }

    #[test]
    fn there_is_a_limit_of_groups() {
        let gone = Gone::default();
        for number in 0..100 {
            gone.add(Group { kind: "pod", namespace: Some(&number.to_string()) }, None);
        }
        let groups = gone.lock();
        assert_eq!((groups.len(), groups[31].kind.as_str(), groups[31].entities), (32, "other", 69));
    }
}
