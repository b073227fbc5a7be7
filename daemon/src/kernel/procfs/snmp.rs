//! `/proc/<pid>/net/snmp` and `/proc/<pid>/net/netstat`: pairs of lines, names above values.
//!
//! `snmp` has the sections `Ip`, `Icmp`, `IcmpMsg`, `Tcp`, `Udp` and (until the protocol was removed) `UdpLite`; all of
//! them are IPv4, except `Tcp`, which counts both versions. `netstat` has `TcpExt` (both versions), `IpExt` (IPv4) and,
//! if the kernel has it, `MPTcpExt`. All are kept per namespace; each value is a sum over the possible CPUs, made while
//! the file is read. Newer kernels append or insert names, so only the names say what a value is. `IcmpMsg` names what
//! has happened so far, hence its line differs between namespaces and grows. Values are unsigned, but `Tcp.MaxConn`,
//! which is -1 where there is no limit.

use super::{Malformed, line_at, number};

/// A value nobody wants.
const SKIP: u16 = u16::MAX;

/// Sections remembered at most; kernels have six.
const MAX_SECTIONS: usize = 16;

/// Where the values of a file belong, remembered from the last time: comparing a line of names with the remembered one
/// is much cheaper than looking a hundred names up.
#[derive(Debug, Default)]
pub struct Layout {
    sections: Vec<Section>,
}

#[derive(Debug, Default)]
struct Section {
    /// The whole line of names with its newline.
    names: Vec<u8>,
    /// Length of `Tcp:` at its start.
    prefix: usize,
    columns: Vec<u16>,
}

impl Layout {
    /// Hands every value whose name `find` knows to `put`, as `find` numbered it. `find` gets section and name and is
    /// asked once per layout. Negative values are left out: a cell cannot hold them, and the only one the kernel writes
    /// means that there is no limit.
    #[inline]
    pub fn parse(
        &mut self,
        text: &[u8],
        find: impl Fn(&[u8], &[u8]) -> Option<u16>,
        mut put: impl FnMut(u16, u64),
    ) -> Result<(), Malformed> {
        if text.is_empty() {
            return Err(Malformed { line: 1, what: "the file is empty" });
        }
        let (mut at, mut line, mut next) = (0, 1, 0);
        while at < text.len() {
            let index = self.section(text, at, next, line, &find)?;
            let section = &self.sections[index];
            at += section.names.len();
            at = values(text, at, section, &mut put).map_err(|what| Malformed { line: line + 1, what })?;
            line += 2;
            next = index + 1;
        }
        Ok(())
    }

    /// Index of the section whose line of names starts at `at`; the one at `next` most of the time.
    fn section(
        &mut self,
        text: &[u8],
        at: usize,
        next: usize,
        line: usize,
        find: &impl Fn(&[u8], &[u8]) -> Option<u16>,
    ) -> Result<usize, Malformed> {
        let rest = &text[at..];
        if self.sections.get(next).is_some_and(|section| rest.starts_with(&section.names)) {
            return Ok(next);
        }
        if let Some(index) = self.sections.iter().position(|section| rest.starts_with(&section.names)) {
            return Ok(index);
        }
        let bad = |what| Malformed { line, what };
        let names = line_at(text, at).ok_or(bad("the line of names is cut off"))?;
        if !names.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
            return Err(bad("the line of names is not plain text"));
        }
        let (name, _) = split(names).map_err(bad)?;
        let prefix = &names[..=name.len()];
        let known = self.sections.iter().position(|section| section.names.starts_with(prefix));
        let index = known.unwrap_or_else(|| {
            if self.sections.len() >= MAX_SECTIONS {
                self.sections.clear();
            }
            self.sections.push(Section::default());
            self.sections.len() - 1
        });
        self.sections[index].learn(&text[at..=at + names.len()], find).map_err(bad)?;
        Ok(index)
    }
}

impl Section {
    /// Takes over a line of names. The memory is used again: `IcmpMsg` differs from namespace to namespace.
    fn learn(
        &mut self,
        line: &[u8],
        find: &impl Fn(&[u8], &[u8]) -> Option<u16>,
    ) -> Result<(), &'static str> {
        let (section, names) = split(&line[..line.len() - 1])?;
        self.columns.clear();
        self.columns.extend(names.map(|name| find(section, name).unwrap_or(SKIP)));
        self.prefix = section.len() + 1;
        self.names.clear();
        self.names.extend_from_slice(line);
        Ok(())
    }
}

/// Section and names of a line.
fn split(line: &[u8]) -> Result<(&[u8], impl Iterator<Item = &[u8]>), &'static str> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a section without a colon")?;
    let names = line[colon + 1..].split(|byte| *byte == b' ').filter(|name| !name.is_empty());
    Ok((&line[..colon], names))
}

/// Reads the line of values at `at`; returns where the next line starts.
#[inline]
fn values(
    text: &[u8],
    mut at: usize,
    section: &Section,
    put: &mut impl FnMut(u16, u64),
) -> Result<usize, &'static str> {
    if !text[at..].starts_with(&section.names[..section.prefix]) {
        return Err("values of another section than the names above");
    }
    at += section.prefix;
    for column in &section.columns {
        if text.get(at) != Some(&b' ') {
            return Err("fewer values than names, or a value that is not a number");
        }
        at += 1;
        let negative = text.get(at) == Some(&b'-');
        at += usize::from(negative);
        let value = number(text, &mut at).ok_or("a value that is not a number")?;
        if *column != SKIP && !negative {
            put(*column, value);
        }
    }
    match text.get(at) {
        Some(b'\n') => Ok(at + 1),
        Some(b' ') => Err("more values than names"),
        Some(_) => Err("a value that is not a number"),
        None => Err("the line of values is cut off"),
    }
}

/// Hands every name and value of one section to `put`: for what no table declares. The text has been parsed before.
pub fn fields<'a>(
    text: &'a [u8],
    section: &[u8],
    mut put: impl FnMut(&'a [u8], u64),
) -> Result<(), Malformed> {
    let (mut at, mut line) = (0, 1);
    while let Some(names) = line_at(text, at) {
        at += names.len() + 1;
        let values = line_at(text, at).ok_or(Malformed { line, what: "the line of values is cut off" })?;
        at += values.len() + 1;
        let bad = |what| Malformed { line, what };
        let ((found, names), (_, values)) = (split(names).map_err(bad)?, split(values).map_err(bad)?);
        if found == section {
            for (name, value) in names.zip(values) {
                let mut end = 0;
                match number(value, &mut end) {
                    Some(number) if end == value.len() => put(name, number),
                    _ => return Err(bad("a value that is not a number")),
                }
            }
        }
        line += 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["Ip.InReceives", "Tcp.ActiveOpens", "Tcp.MaxConn", "Tcp.CurrEstab"];

    fn find(section: &[u8], name: &[u8]) -> Option<u16> {
        let wanted = [section, b".", name].concat();
        KNOWN.iter().position(|known| known.as_bytes() == wanted).map(|at| at as u16)
    }

    fn parse(layout: &mut Layout, text: &str) -> Result<Vec<(u16, u64)>, Malformed> {
        let mut got = Vec::new();
        layout.parse(text.as_bytes(), find, |column, value| got.push((column, value)))?;
        Ok(got)
    }

    #[test]
    fn names_decide_what_a_value_is() {
        let mut layout = Layout::default();
        let first = "Ip: InReceives Other\nIp: 5 9\nTcp: ActiveOpens CurrEstab\nTcp: 7 2\n";
        let second = "Ip: New InReceives\nIp: 9 5\nTcp: CurrEstab X ActiveOpens\nTcp: 2 0 7\n";
        for _ in 0..2 {
            assert_eq!(parse(&mut layout, first).unwrap(), [(0, 5), (1, 7), (3, 2)]);
            assert_eq!(parse(&mut layout, second).unwrap(), [(0, 5), (3, 2), (1, 7)]);
        }
        assert_eq!(layout.sections.len(), 2);
    }

    #[test]
    fn sections_may_come_and_go() {
        let mut layout = Layout::default();
        let tcp = "Tcp: ActiveOpens\nTcp: 7\n";
        assert_eq!(parse(&mut layout, tcp).unwrap(), [(1, 7)]);
        assert_eq!(parse(&mut layout, &format!("IcmpMsg: InType3\nIcmpMsg: 1\n{tcp}")).unwrap(), [(1, 7)]);
        assert_eq!(
            parse(&mut layout, &format!("IcmpMsg: InType3 OutType3\nIcmpMsg: 1 2\n{tcp}")).unwrap(),
            [(1, 7)]
        );
        assert_eq!(parse(&mut layout, "IcmpMsg:\nIcmpMsg:\n").unwrap(), []);
        assert_eq!(layout.sections.len(), 2);
    }

    #[test]
    fn minus_one_means_no_limit_and_is_left_out() {
        let got = parse(&mut Layout::default(), "Tcp: MaxConn ActiveOpens\nTcp: -1 3\n").unwrap();
        assert_eq!(got, [(1, 3)]);
    }

    #[test]
    fn a_malformed_file_is_an_error_that_names_the_line() {
        for (text, line, what) in [
            ("", 1, "the file is empty"),
            ("Tcp: ActiveOpens", 1, "the line of names is cut off"),
            ("Tcp ActiveOpens\nTcp 1\n", 1, "a section without a colon"),
            ("\n\n", 1, "a section without a colon"),
            ("Tcp: ActiveOpens\n", 2, "values of another section than the names above"),
            ("Tcp: ActiveOpens\nUdp: 1\n", 2, "values of another section than the names above"),
            ("Tcp: ActiveOpens\nTcp: 1", 2, "the line of values is cut off"),
            ("Tcp: ActiveOpens A\nTcp: 1\n", 2, "fewer values than names, or a value that is not a number"),
            ("Tcp: ActiveOpens\nTcp: 1 2\n", 2, "more values than names"),
            ("Tcp: ActiveOpens\nTcp: one\n", 2, "a value that is not a number"),
            ("Tcp: ActiveOpens\nTcp: 1x\n", 2, "a value that is not a number"),
            ("Tcp: ActiveOpens\nTcp: 99999999999999999999\n", 2, "a value that is not a number"),
            ("Ip: A\nIp: 1\nTcp: ActiveOpens\nTcp: -\n", 4, "a value that is not a number"),
        ] {
            assert_eq!(parse(&mut Layout::default(), text), Err(Malformed { line, what }), "{text:?}");
        }
        let raw = Layout::default().parse(b"Tcp: Act\xff\nTcp: 1\n", find, |_, _| {});
        assert_eq!(raw, Err(Malformed { line: 1, what: "the line of names is not plain text" }));
    }

    #[test]
    fn every_truncation_of_a_file_is_refused_or_ends_between_sections() {
        let text = "Ip: InReceives\nIp: 5\nTcp: ActiveOpens CurrEstab\nTcp: 71 2\n";
        for cut in 0..text.len() {
            let got = parse(&mut Layout::default(), &text[..cut]);
            assert_eq!(got.is_ok(), cut == "Ip: InReceives\nIp: 5\n".len(), "{:?}", &text[..cut]);
        }
    }

    #[test]
    fn fields_reach_what_nobody_declared() {
        let mut got = Vec::new();
        let text = b"TcpExt: A NewField\nTcpExt: 1 22\nIpExt: B\nIpExt: 3\n";
        fields(text, b"TcpExt", |name, value| got.push((String::from_utf8_lossy(name), value))).unwrap();
        assert_eq!(got, [("A".into(), 1), ("NewField".into(), 22)]);
    }
}
