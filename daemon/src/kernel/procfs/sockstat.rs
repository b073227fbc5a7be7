//! `/proc/<pid>/net/sockstat` and `/proc/<pid>/net/sockstat6`: a protocol per line, then names and values in turn.
//!
//! Some of it is kept per namespace: `sockets: used`, `inuse` of every protocol, `TCP: tw` and `FRAG: memory` (bytes).
//! `TCP: orphan`, `alloc` and `mem` and `UDP: mem` are one number for the node, shown in every namespace; `mem` counts
//! pages. IPv6 sockets are in `sockstat6` (missing where the kernel has no IPv6), except that `TCP: tw` has both versions.

use super::{Malformed, blanks, number};

/// Hands every value whose protocol and name `find` knows to `put`. `find` is asked in the kernel's order.
pub fn parse(
    text: &[u8],
    mut find: impl FnMut(&[u8], &[u8]) -> Option<u16>,
    mut put: impl FnMut(u16, u64),
) -> Result<(), Malformed> {
    if text.is_empty() {
        return Err(Malformed { line: 1, what: "the file is empty" });
    }
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let bad = |what| Malformed { line, what };
        let protocol = word(text, &mut at);
        let protocol = protocol.strip_suffix(b":").ok_or(bad("no protocol"))?;
        loop {
            blanks(text, &mut at);
            if text.get(at) == Some(&b'\n') {
                break;
            }
            let name = word(text, &mut at);
            blanks(text, &mut at);
            let value = number(text, &mut at).filter(|_| matches!(text.get(at), Some(b' ' | b'\n')));
            let value = value.ok_or(bad("a value is missing or not a number"))?;
            if let Some(column) = find(protocol, name) {
                put(column, value);
            }
        }
        at += 1;
        line += 1;
    }
    Ok(())
}

/// The word at `at`.
fn word<'a>(text: &'a [u8], at: &mut usize) -> &'a [u8] {
    let start = *at;
    while text.get(*at).is_some_and(u8::is_ascii_graphic) {
        *at += 1;
    }
    &text[start..*at]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &[u8]) -> Result<Vec<(u16, u64)>, Malformed> {
        let known: [(&[u8], &[u8]); 3] = [(b"sockets", b"used"), (b"TCP", b"inuse"), (b"TCP", b"tw")];
        let mut got = Vec::new();
        let find = |a: &[u8], b: &[u8]| known.iter().position(|k| *k == (a, b)).map(|at| at as u16);
        parse(text, find, |column, value| got.push((column, value)))?;
        Ok(got)
    }

    #[test]
    fn names_come_with_their_protocol() {
        let text = b"sockets: used 13\nTCP: inuse 1 orphan 0 tw 4 new 5\nUDP: inuse 9 mem 0\nX:\n";
        assert_eq!(run(text).unwrap(), [(0, 13), (1, 1), (2, 4)]);
    }

    #[test]
    fn malformed_files_are_refused() {
        for (text, line) in [
            (&b""[..], 1),
            (b"sockets used 1\n", 1),
            (b"TCP: inuse\n", 1),
            (b"TCP: inuse 1", 1),
            (b"TCP: inuse 1x\n", 1),
            (b"TCP: inuse -1\n", 1),
            (b"sockets: used 1\nTCP: inuse one\n", 2),
            (b"TCP: \xff 1\n", 1),
            (b"\n", 1),
        ] {
            assert_eq!(run(text).map_err(|bad| bad.line), Err(line), "{text:?}");
        }
    }
}
