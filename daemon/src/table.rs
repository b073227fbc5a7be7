//! Rows of numbers: what a source hands over and what the writer shows. Reused between passes, so that a pass in the
//! steady state allocates nothing.

use crate::declare::TableDecl;

/// Slot in the engine's registry: [`Subject::NODE`], or a network namespace with its generation, or a tenant of the node's
/// own namespace. Sources speak of subjects and never see names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(pub u32);

impl Subject {
    /// The node as a whole.
    pub const NODE: Subject = Subject(0);
    /// The first of the groups of what is gone.
    const FIRST_GROUP: Subject = Subject(0xf000_0000);
    /// What the kernel counted without telling a namespace.
    pub const UNATTRIBUTED: Subject = Subject(u32::MAX);
    /// All that found no room under their own names.
    pub const OTHER: Subject = Subject(u32::MAX - 1);

    /// A group of what is gone.
    pub fn group(number: usize) -> Subject {
        Subject(Subject::FIRST_GROUP.0.saturating_add(u32::try_from(number).unwrap_or(0)))
    }

    /// Which group it is; `None` if it is none.
    pub fn group_number(self) -> Option<usize> {
        let is_group = self < Subject::OTHER;
        self.0.checked_sub(Subject::FIRST_GROUP.0).filter(|_| is_group).map(|number| number as usize)
    }

    /// The first of those that share the node's own namespace and are known by their processes only.
    pub const FIRST_TENANT: Subject = Subject(1 << 31);

    /// Whether it is one that has no namespace of its own.
    pub fn is_tenant(self) -> bool {
        (Subject::FIRST_TENANT..Subject::FIRST_GROUP).contains(&self)
    }
}

/// This kernel or namespace lacks the field: the series is left out.
pub const ABSENT: u64 = u64::MAX;

/// The rows of one table.
#[derive(Debug)]
pub struct Table {
    decl: &'static TableDecl,
    subjects: Vec<Subject>,
    key_ends: Vec<u32>,
    text: Vec<u8>,
    cells: Vec<u64>,
    max_rows: usize,
    over_budget: u64,
}

impl Table {
    /// An empty table of at most `max_rows` rows.
    pub fn new(decl: &'static TableDecl, max_rows: usize) -> Table {
        Table {
            decl,
            subjects: Vec::new(),
            key_ends: Vec::new(),
            text: Vec::new(),
            cells: Vec::new(),
            max_rows,
            over_budget: 0,
        }
    }

    /// Its declaration.
    pub fn decl(&self) -> &'static TableDecl {
        self.decl
    }

    /// Forgets the rows and keeps the memory.
    pub fn clear(&mut self) {
        self.subjects.clear();
        self.key_ends.clear();
        self.text.clear();
        self.cells.clear();
        self.over_budget = 0;
    }

    /// Adds a row and hands out its cells, all [`ABSENT`]; `None` if the table is full, which is counted. The rows of
    /// one subject must follow each other.
    pub fn row(&mut self, subject: Subject, keys: &[&[u8]]) -> Option<&mut [u64]> {
        debug_assert_eq!(keys.len(), self.decl.keys.len(), "keys of {}", self.decl.name);
        if self.subjects.len() >= self.max_rows {
            self.over_budget += 1;
            return None;
        }
        for key in keys {
            escape(&mut self.text, key);
            self.key_ends.push(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        }
        let start = self.cells.len();
        self.subjects.push(subject);
        self.cells.resize(start + self.decl.columns.len(), ABSENT);
        Some(&mut self.cells[start..])
    }

    /// Takes back the rows of `subject` at the end of the table: its namespace vanished while it was read.
    pub fn retract(&mut self, subject: Subject) {
        while self.subjects.last() == Some(&subject) {
            self.subjects.pop();
            self.cells.truncate(self.subjects.len() * self.decl.columns.len());
            self.key_ends.truncate(self.subjects.len() * self.decl.keys.len());
            self.text.truncate(self.key_ends.last().map_or(0, |end| *end as usize));
        }
    }

    /// Adds the rows of another table of the same declaration.
    pub fn append(&mut self, other: &Table) {
        debug_assert!(std::ptr::eq(self.decl, other.decl), "tables differ");
        let base = self.text.len() as u32;
        let room = self.max_rows.saturating_sub(self.subjects.len()).min(other.len());
        let keys = room * self.decl.keys.len();
        let text = if keys == 0 { 0 } else { other.key_ends[keys - 1] as usize };
        self.subjects.extend_from_slice(&other.subjects[..room]);
        self.cells.extend_from_slice(&other.cells[..room * self.decl.columns.len()]);
        self.key_ends.extend(other.key_ends[..keys].iter().map(|end| end + base));
        self.text.extend_from_slice(&other.text[..text]);
        self.over_budget += other.over_budget + (other.len() - room) as u64;
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.subjects.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// Rows that found no room.
    pub fn over_budget(&self) -> u64 {
        self.over_budget
    }

    /// Subject of a row.
    pub fn subject(&self, row: usize) -> Subject {
        self.subjects[row]
    }

    /// A key of a row, escaped as a label value.
    pub fn key(&self, row: usize, index: usize) -> &[u8] {
        let at = row * self.decl.keys.len() + index;
        let start = if at == 0 { 0 } else { self.key_ends[at - 1] as usize };
        &self.text[start..self.key_ends[at] as usize]
    }

    /// A cell, or `None` where the kernel has no such field.
    pub fn cell(&self, row: usize, column: u16) -> Option<u64> {
        let value = self.cells[row * self.decl.columns.len() + usize::from(column)];
        (value != ABSENT).then_some(value)
    }
}

/// Writes a label value with the escapes of the text format. Bytes that are not UTF-8 become `\u{fffd}`, since a scrape
/// with one bad byte is refused as a whole.
pub fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'"' => out.extend_from_slice(b"\\\""),
                b'\n' => out.extend_from_slice(b"\\n"),
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::{Column, Kind};

    static DECL: TableDecl = TableDecl {
        name: "t",
        keys: &["device"],
        columns: &[Column { key: "a", kind: Kind::Counter }, Column { key: "b", kind: Kind::Gauge }],
        node: false,
    };

    fn filled(rows: &[(u32, &str, u64)], max: usize) -> Table {
        let mut table = Table::new(&DECL, max);
        for (subject, device, value) in rows {
            if let Some(cells) = table.row(Subject(*subject), &[device.as_bytes()]) {
                cells[0] = *value;
            }
        }
        table
    }

    #[test]
    fn rows_keep_keys_and_absent_cells() {
        let table = filled(&[(1, "eth0", 7), (2, "we\"ird\n", 8)], 10);
        assert_eq!(table.key(0, 0), b"eth0");
        assert_eq!(table.key(1, 0), b"we\\\"ird\\n");
        assert_eq!((table.cell(1, 0), table.cell(1, 1)), (Some(8), None));
    }

    #[test]
    fn a_full_table_counts_what_it_refuses() {
        let mut table = filled(&[(1, "a", 1), (1, "b", 2), (1, "c", 3)], 2);
        assert_eq!((table.len(), table.over_budget()), (2, 1));
        table.append(&filled(&[(3, "d", 1)], 9));
        assert_eq!((table.len(), table.over_budget()), (2, 2));
    }

    #[test]
    fn retract_takes_back_one_subject_only() {
        let mut table = filled(&[(1, "eth0", 1), (2, "eth0", 2), (2, "eth1", 3)], 9);
        table.retract(Subject(2));
        assert_eq!((table.len(), table.key(0, 0)), (1, &b"eth0"[..]));
        table.append(&filled(&[(5, "x", 4), (5, "yy", 5)], 9));
        assert_eq!((table.key(1, 0), table.key(2, 0), table.cell(2, 0)), (&b"x"[..], &b"yy"[..], Some(5)));
    }

    #[test]
    fn escape_makes_any_bytes_a_label_value() {
        let mut out = Vec::new();
        escape(&mut out, b"a\xff\\b");
        assert_eq!(out, "a\u{fffd}\\\\b".as_bytes());
    }
}
