//! `/proc/<pid>/net/dev`: one line per interface of a namespace.
//!
//! The second line names the columns, receive left of the last bar, transmit right of it. They are 64-bit counters that
//! `dev_get_stats` makes of several: `drop` of receive adds `rx_missed_errors`, `frame` adds length, overrun, CRC and
//! frame errors, `carrier` adds aborted, window and heartbeat errors. The kernel hands the file out a page at a time, so
//! interfaces that come or go between two reads of one pass may be missed. A name has at most 15 bytes, none of
//! which is a blank, a slash or a colon; it need not be UTF-8.

use super::{Malformed, blanks, line_at, number};

/// The columns, in the kernel's order.
pub const FIELDS: [&str; 16] = [
    "rx.bytes",
    "rx.packets",
    "rx.errs",
    "rx.drop",
    "rx.fifo",
    "rx.frame",
    "rx.compressed",
    "rx.multicast",
    "tx.bytes",
    "tx.packets",
    "tx.errs",
    "tx.drop",
    "tx.fifo",
    "tx.colls",
    "tx.carrier",
    "tx.compressed",
];

/// Values of one interface, in the order of [`FIELDS`]; `u64::MAX` where the kernel has no such column.
pub type Values = [u64; FIELDS.len()];

/// Longest name of an interface.
pub const MAX_NAME: usize = 15;

/// Which column of the file is which, remembered from the last time.
#[derive(Debug, Default)]
pub struct Layout {
    header: Vec<u8>,
    columns: Vec<Option<usize>>,
}

impl Layout {
    /// Hands name and values of every interface to `put`.
    pub fn parse(&mut self, text: &[u8], mut put: impl FnMut(&[u8], &Values)) -> Result<(), Malformed> {
        if self.header.is_empty() || !text.starts_with(&self.header) {
            self.learn(text)?;
        }
        let (mut at, mut line) = (self.header.len(), 3);
        while at < text.len() {
            at = self.interface(text, at, &mut put).map_err(|what| Malformed { line, what })?;
            line += 1;
        }
        Ok(())
    }

    fn interface(
        &self,
        text: &[u8],
        mut at: usize,
        put: &mut impl FnMut(&[u8], &Values),
    ) -> Result<usize, &'static str> {
        blanks(text, &mut at);
        let length = text[at..].iter().take(MAX_NAME + 1).position(|byte| *byte == b':');
        let name = &text[at..at + length.filter(|length| *length > 0).ok_or("no name of an interface")?];
        if name.iter().any(u8::is_ascii_whitespace) {
            return Err("no name of an interface");
        }
        at += name.len() + 1;
        let mut values = [u64::MAX; FIELDS.len()];
        for column in &self.columns {
            blanks(text, &mut at);
            let value = number(text, &mut at).ok_or("a value is missing or not a number")?;
            if let Some(field) = column {
                values[*field] = value;
            }
            if !matches!(text.get(at), Some(b' ' | b'\n')) {
                return Err("a value that is not a number, or the line is cut off");
            }
        }
        blanks(text, &mut at);
        if text.get(at) != Some(&b'\n') {
            return Err("more values than columns");
        }
        put(name, &values);
        Ok(at + 1)
    }

    fn learn(&mut self, text: &[u8]) -> Result<(), Malformed> {
        if text.is_empty() {
            return Err(Malformed { line: 1, what: "the file is empty" });
        }
        let bad = Malformed { line: 2, what: "not the usual header" };
        let first = line_at(text, 0).ok_or(bad)?.len() + 1;
        let second = line_at(text, first).ok_or(bad)?;
        let mut parts = second.split(|byte| *byte == b'|');
        let (Some(_face), Some(receive), Some(transmit), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad);
        };
        let columns: Vec<_> = fields_of("rx", receive).chain(fields_of("tx", transmit)).collect();
        if columns.iter().all(Option::is_none) {
            return Err(bad);
        }
        self.columns = columns;
        self.header = text[..first + second.len() + 1].to_vec();
        Ok(())
    }
}

/// The fields that one half of the header names.
fn fields_of(side: &'static str, names: &[u8]) -> impl Iterator<Item = Option<usize>> {
    names.split(u8::is_ascii_whitespace).filter(|name| !name.is_empty()).map(move |name| {
        FIELDS.iter().position(|field| {
            field.strip_prefix(side).is_some_and(|rest| rest.as_bytes().strip_prefix(b".") == Some(name))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";

    fn run(text: &[u8]) -> Result<Vec<(String, Values)>, Malformed> {
        let mut got = Vec::new();
        let mut layout = Layout::default();
        layout.parse(text, |name, values| got.push((String::from_utf8_lossy(name).into(), *values)))?;
        Ok(got)
    }

    #[test]
    fn values_go_where_the_header_says() {
        let text = format!(
            "{HEADER}    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nveth0123456789a:0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7\n"
        );
        let got = run(text.as_bytes()).unwrap();
        assert_eq!(got[0], ("lo".into(), std::array::from_fn(|i| i as u64 + 1)));
        assert_eq!((got[1].0.as_str(), got[1].1[15]), ("veth0123456789a", 7));
    }

    #[test]
    fn other_columns_are_fine() {
        let text = b"Inter-| Receive | Transmit\n face |packets new bytes|drop bytes\n eth0: 1 2 3 4 5\n";
        let (_, values) = &run(text).unwrap()[0];
        assert_eq!((values[0], values[1], values[8], values[11], values[2]), (3, 1, 5, 4, u64::MAX));
    }

    #[test]
    fn odd_names_are_kept_as_bytes() {
        let mut text = HEADER.as_bytes().to_vec();
        text.extend(b"  \xffe\"0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
        let mut names = Vec::new();
        Layout::default().parse(&text, |name, _| names.push(name.to_vec())).unwrap();
        assert_eq!(names, [b"\xffe\"0".to_vec()]);
    }

    #[test]
    fn malformed_files_are_refused() {
        assert_eq!(run(b"").map_err(|bad| bad.line), Err(1));
        assert_eq!(run(b"Inter-|\n face bytes\n").map_err(|bad| bad.line), Err(2));
        for line in [
            "eth0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
            "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n",
            "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n",
            "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
            "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 x\n",
            "eth0: -1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
            ": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
            "averyveryverylongname: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
            "\n",
        ] {
            assert_eq!(run(format!("{HEADER}{line}").as_bytes()).map_err(|bad| bad.line), Err(3), "{line:?}");
        }
    }
}
