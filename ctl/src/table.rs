//! Aligned columns.

use crate::error::Error;
use crate::output::{Look, Screen};
use crate::text::{Line, Style};

/// Columns between two columns of a table.
const GAP: usize = 2;

/// No column is cut shorter than this: a narrower one says nothing.
const LEAST: usize = 8;

/// Where there is no room for all, the last column, which explains, keeps as much as this.
const EXPLAINED: usize = 40;

/// Which side of its column a cell clings to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// A table: all rows are kept until it is rendered, because the widest cell decides.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Line>>,
    indent: usize,
}

impl Table {
    /// A table with these titles; a title that begins with `>` is that of a column of numbers.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('>') {
            Some(title) => (title, Align::Right),
            None => (*title, Align::Left),
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new(), indent: 0 }
    }

    /// Moves the table to the right.
    pub(crate) fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Line>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines of the table: titles if they are wanted, then the rows.
    pub(crate) fn lines(&self, look: Look) -> Vec<Line> {
        let titles: Vec<Line> =
            self.columns.iter().map(|(title, _)| Line::new().styled(Style::Bold, title)).collect();
        let titled = look.headers && self.columns.iter().any(|(title, _)| !title.is_empty());
        let rows: Vec<&Vec<Line>> = titled.then_some(&titles).into_iter().chain(&self.rows).collect();
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|at| rows.iter().filter_map(|row| row.get(at)).map(Line::width).max().unwrap_or(0))
            .collect();
        self.narrow(&mut widths, look);
        rows.into_iter().map(|row| self.lay_out(row, &widths, look)).collect()
    }

    /// Writes the table.
    pub(crate) fn render(&self, screen: &mut Screen<'_>) -> Result<(), Error> {
        self.lines(screen.look()).iter().try_for_each(|line| screen.line(line))
    }

    /// Takes from the widest columns what the last one needs on a terminal. The first, by which rows are found, stays.
    fn narrow(&self, widths: &mut [usize], look: Look) {
        let (Some(size), Some((last, before))) = (look.size, widths.split_last_mut()) else { return };
        let rest = (*last).min(EXPLAINED) + self.indent + GAP * before.len();
        let room = size.columns.saturating_sub(rest);
        while before.iter().sum::<usize>() > room {
            // A number without its end is another number.
            let may =
                before.iter_mut().zip(&self.columns).skip(1).filter(|(_, (_, align))| *align == Align::Left);
            match may.map(|(width, _)| width).max().filter(|widest| **widest > LEAST) {
                Some(widest) => *widest -= 1,
                None => return,
            }
        }
    }

    fn lay_out(&self, row: &[Line], widths: &[usize], look: Look) -> Line {
        let mut line = Line::new();
        let mut start = self.indent;
        let last = widths.len().saturating_sub(1);
        for (at, (cell, (&width, (_, align)))) in row.iter().zip(widths.iter().zip(&self.columns)).enumerate()
        {
            let room = match look.size {
                Some(size) if at == last => size.columns.saturating_sub(start).max(LEAST),
                _ => width,
            };
            let push = if *align == Align::Right { width.saturating_sub(cell.width()) } else { 0 };
            // Padding comes before a cell and not after it, so that no line ends with spaces.
            if cell.width() > 0 {
                line = line.pad(start + push).join(cell.clone().truncate(room));
            }
            start += width + GAP;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Size;

    fn rendered(table: &Table, look: Look) -> String {
        let mut out = Vec::new();
        table.render(&mut Screen::to(&mut out, look)).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", ">COUNT", "SUMMARY"]);
        table.row(["tcp".into(), "7".into(), "TCP counters of each namespace".into()]);
        table.row(["packetloss".into(), "1,204".into(), "drops".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let expected = "\
NAME        COUNT  SUMMARY
tcp             7  TCP counters of each namespace
packetloss  1,204  drops
";
        assert_eq!(rendered(&sample(), Look { headers: true, ..Look::default() }), expected);
        let without: String = expected.lines().skip(1).map(|line| format!("{line}\n")).collect();
        assert_eq!(rendered(&sample(), Look::default()), without);
    }

    #[test]
    fn only_a_terminal_cuts_and_the_last_column_first() {
        let narrow = Look { size: Some(Size { columns: 30, rows: 24 }), ..Look::default() };
        assert_eq!(rendered(&sample(), narrow), "tcp             7  TCP counte…\npacketloss  1,204  drops\n");
        let tiny = Look { size: Some(Size { columns: 5, rows: 24 }), ..Look::default() };
        assert_eq!(rendered(&sample(), tiny), "tcp             7  TCP cou…\npacketloss  1,204  drops\n");
    }

    #[test]
    fn wide_columns_give_way_to_the_last_one() {
        let mut table = Table::new(&["NAME", "VALUE", "KIND", "MEANING"]);
        let value = "a,".repeat(40);
        table.row(["ignore_reasons".into(), value.as_str().into(), "list".into(), "Not these".into()]);
        let narrow = Look { size: Some(Size { columns: 60, rows: 24 }), ..Look::default() };
        let shown = rendered(&table, narrow);
        assert_eq!(shown, "ignore_reasons  a,a,a,a,a,a,a,a,a,a,a,a,a,…  list  Not these\n");
        assert_eq!(rendered(&table, Look::default()), format!("ignore_reasons  {value}  list  Not these\n"));
    }

    #[test]
    fn short_rows_and_hostile_cells_do_no_harm() {
        let mut table = Table::new(&["A", "B"]).indented(2);
        table.row(["x\x1b[31m\ny".into()]);
        table.row(["z".into(), "b".into()]);
        assert_eq!(rendered(&table, Look::default()).lines().count(), 2);
        assert!(!rendered(&table, Look::default()).contains('\x1b'));
        assert_eq!(rendered(&Table::new(&["A"]), Look { headers: true, ..Look::default() }), "A\n");
    }
}
