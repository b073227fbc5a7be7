//! The Prometheus text format, written family by family as the client takes it, so that an answer of any size costs the
//! memory of one family.

use crate::declare::{Family, Names, Only, Points, Scope, Shape, histogram};
use crate::resolve::directory::Directory;
use crate::resolve::labels::write_target;
use crate::table::{ABSENT, Subject, Table};
use rustc_hash::FxHashSet;

/// The content type of the text format; Prometheus 3 refuses a scrape without it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One value of a family.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Whose it is.
    pub subject: Subject,
    /// The row whose keys are shown.
    pub row: usize,
    /// What tells it from the others of the row.
    pub shape: Shape,
    /// Number of the cell among the points of the family.
    pub cell: usize,
    /// The value.
    pub value: u64,
}

/// Calls `emit` for every value of a family, in the order of the table's rows.
pub fn points(family: &Family, table: &Table, mut emit: impl FnMut(Point)) {
    let mut row = 0;
    while row < table.len() {
        let first = row;
        let subject = table.subject(row);
        row += 1;
        while family.fold && row < table.len() && table.subject(row) == subject {
            row += 1;
        }
        for leader in first..row {
            if shown(family.only.as_ref(), table, leader) && leads(family, table, first, leader) {
                emit_row(family, table, leader, row, &mut emit);
            }
        }
    }
}

/// Whether no earlier row of the subject has the same shown keys: each group of rows is emitted once.
fn leads(family: &Family, table: &Table, first: usize, row: usize) -> bool {
    !(first..row)
        .any(|earlier| shown(family.only.as_ref(), table, earlier) && same_keys(family, table, earlier, row))
}

fn same_keys(family: &Family, table: &Table, a: usize, b: usize) -> bool {
    family.keys.iter().all(|(_, key)| table.key(a, *key) == table.key(b, *key))
}

fn shown(only: Option<&Only>, table: &Table, row: usize) -> bool {
    only.is_none_or(|only| {
        only.values.iter().any(|value| value.as_bytes() == table.key(row, only.key)) == only.include
    })
}

fn emit_row(family: &Family, table: &Table, leader: usize, end: usize, emit: &mut impl FnMut(Point)) {
    let total = |column: u16| {
        let mut sum = table.cell(leader, column);
        for row in leader + 1..end {
            if shown(family.only.as_ref(), table, row)
                && same_keys(family, table, leader, row)
                && let Some(value) = table.cell(row, column)
            {
                sum = Some(sum.map_or(value, |sum| family.add(sum, value)));
            }
        }
        sum
    };
    let subject = table.subject(leader);
    let mut emit = |cell: usize, value: u64| {
        emit(Point { subject, row: leader, shape: family.points.shape(cell), cell, value });
    };
    match family.points {
        Points::Cells(cells) => {
            for (cell, (_, column)) in cells.iter().enumerate() {
                if let Some(value) = total(*column) {
                    emit(cell, value);
                }
            }
        }
        Points::Sum(columns) => {
            let value = columns.iter().filter_map(|c| total(*c)).reduce(|sum, value| family.add(sum, value));
            if let Some(value) = value {
                emit(0, value);
            }
        }
        Points::Histogram(buckets) => histogram::points(buckets, total, emit),
        Points::Slots => histogram::slots(total, emit),
    }
}

/// Series that an answer may still have.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// How many more.
    pub left: u64,
    /// Written.
    pub written: u64,
    /// Left out for lack of room.
    pub over: u64,
}

impl Budget {
    /// Room for `max` series.
    pub fn new(max: u64) -> Budget {
        Budget { left: max, written: 0, over: 0 }
    }
    fn take(&mut self) -> bool {
        let room = self.left > 0;
        if room {
            self.left -= 1;
            self.written += 1;
        } else {
            self.over += 1;
        }
        room
    }
}

/// Where labels are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// Names of what lives.
    pub directory: &'a Directory,
    /// Labels of the groups of what is gone.
    pub groups: &'a [String],
    /// Whether the inspector's names have the labels of its release 0.1.
    pub target: bool,
    /// Whose series are added up instead of shown.
    pub hidden: Option<&'a FxHashSet<Subject>>,
}

impl Whose<'_> {
    /// Labels of a subject; `None` if it has none (yet) in this generation of names.
    pub fn labels(&self, subject: Subject, names: Names) -> Option<&str> {
        match subject.group_number() {
            // The older generations knew no such thing.
            Some(number) => self.groups.get(number).filter(|_| names == Names::Netskoop).map(String::as_str),
            None => self.directory.labels(subject, names),
        }
    }
}

/// Writes one family: HELP, TYPE and its series; nothing at all if it has none. `titled` is the metric whose title was
/// written last: one that is made of several families has one title.
pub fn write_family(
    out: &mut Vec<u8>,
    family: &Family,
    table: &Table,
    whose: &Whose<'_>,
    budget: &mut Budget,
    titled: &mut &'static str,
) {
    points(family, table, |point| {
        let mut series = |subject: Subject| {
            if whose.hidden.is_some_and(|hidden| hidden.contains(&subject)) {
                return;
            }
            let Some(labels) = whose.labels(subject, family.names) else { return };
            if !budget.take() {
                return;
            }
            if std::mem::replace(titled, family.name) != family.name {
                write_head(out, family);
            }
            let target =
                (whose.target && family.names == Names::Inspector).then(|| !whose.directory.is_only(subject));
            write_series(out, family, table, point, (labels, target));
        };
        match family.scope {
            Scope::Own => series(point.subject),
            Scope::HostOnly => {
                if point.subject == Subject::NODE || point.subject == whose.directory.host() {
                    series(whose.directory.host());
                }
            }
            Scope::Repeat => whose.directory.subjects().for_each(series),
        }
    });
}

/// Writes what was added up of a family, one series for each of its points.
pub fn write_sums(
    out: &mut Vec<u8>,
    family: &Family,
    sums: &[u64],
    whose: &Whose<'_>,
    budget: &mut Budget,
    titled: &mut &'static str,
) {
    let Some(labels) = whose.labels(Subject::OTHER, family.names) else { return };
    let target = (whose.target && family.names == Names::Inspector).then_some(false);
    for (cell, value) in sums.iter().enumerate().filter(|(_, value)| **value != ABSENT) {
        if !budget.take() {
            continue;
        }
        if std::mem::replace(titled, family.name) != family.name {
            write_head(out, family);
        }
        let shape = family.points.shape(cell);
        write_labels(out, family, (labels, target), |_| b"other", shape);
        write_value(out, *value, decimals(family, shape));
        out.push(b'\n');
    }
}

/// Writes series with the value 1 from the one with this number on, until `out` is full. Answers with the number of the
/// next one, if there is one.
pub fn write_infos<'a>(
    out: &mut Vec<u8>,
    (name, help): (&str, &str),
    infos: impl Iterator<Item = &'a str>,
    from: usize,
    full: usize,
    budget: &mut Budget,
) -> Option<usize> {
    for (number, labels) in infos.enumerate().skip(from) {
        if out.len() >= full {
            return Some(number);
        }
        if !budget.take() {
            continue;
        }
        if number == 0 {
            write_title(out, name, help, "gauge");
        }
        for part in [name, "{", labels, "} 1\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    None
}

fn write_head(out: &mut Vec<u8>, family: &Family) {
    write_title(out, family.name, family.help, family.type_name());
}

fn write_title(out: &mut Vec<u8>, name: &str, help: &str, kind: &str) {
    for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// A number of which so many places stand behind the point.
fn write_value(out: &mut Vec<u8>, value: u64, decimals: u8) {
    let mut digits = itoa::Buffer::new();
    let unit = 10_u64.pow(u32::from(decimals));
    out.extend_from_slice(digits.format(value / unit).as_bytes());
    if !value.is_multiple_of(unit) {
        out.push(b'.');
        // The unit in front keeps the zeros behind the point.
        out.extend_from_slice(&digits.format(unit + value % unit).as_bytes()[1..]);
    }
}

/// Of the labels of the entity the second part says that they are written as the first release had them, and whether
/// then the namespace must be told.
fn write_series(
    out: &mut Vec<u8>,
    family: &Family,
    table: &Table,
    point: Point,
    labels: (&str, Option<bool>),
) {
    write_labels(out, family, labels, |key| table.key(point.row, key), point.shape);
    write_value(out, point.value, decimals(family, point.shape));
    out.push(b'\n');
}

fn decimals(family: &Family, shape: Shape) -> u8 {
    if shape.is_count { 0 } else { family.decimals }
}

fn write_labels<'a>(
    out: &mut Vec<u8>,
    family: &Family,
    (labels, target): (&str, Option<bool>),
    row_key: impl Fn(usize) -> &'a [u8],
    shape: Shape,
) {
    out.extend_from_slice(family.name.as_bytes());
    out.extend_from_slice(shape.suffix.as_bytes());
    let mut separator = b'{';
    if let Some(netns) = target {
        out.push(b'{');
        write_target(out, labels, netns);
        separator = b',';
    } else {
        write_part(out, &mut separator, labels.as_bytes());
    }
    for (name, key) in family.keys {
        write_part(out, &mut separator, name.as_bytes());
        out.extend_from_slice(b"=\"");
        out.extend_from_slice(row_key(*key));
        out.push(b'"');
    }
    write_part(out, &mut separator, shape.label.as_bytes());
    if separator == b',' {
        out.push(b'}');
    }
    out.push(b' ');
}

fn write_part(out: &mut Vec<u8>, separator: &mut u8, text: &[u8]) {
    if !text.is_empty() {
        out.push(std::mem::replace(separator, b','));
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::write_value;

    #[test]
    fn places_behind_the_point() {
        for (value, decimals, text) in [
            (0, 3, "0"),
            (7, 3, "0.007"),
            (1000, 3, "1"),
            (61_250, 3, "61.250"),
            (61_250, 0, "61250"),
            (u64::MAX - 1, 18, "18.446744073709551614"),
        ] {
            let mut out = Vec::new();
            write_value(&mut out, value, decimals);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
