//! `/proc/<pid>/net/snmp6`: one name and one value per line, for IPv6, ICMPv6, UDP and UDP-Lite over IPv6.
//!
//! The sections `Ip6`, `Icmp6`, `Udp6` and `UdpLite6` are prefixes of the names. All values are kept per namespace. Names
//! like `Icmp6InType135` appear once such a message was seen. The file is missing where the kernel has no IPv6. There is
//! no `Tcp6`: `Tcp` in `net/snmp` counts both versions.

use super::{Malformed, blanks, number};

/// Hands every value whose name `find` knows to `put`. `find` is asked for every name, in the kernel's order.
#[inline]
pub fn parse(
    text: &[u8],
    mut find: impl FnMut(&[u8]) -> Option<u16>,
    mut put: impl FnMut(u16, u64),
) -> Result<(), Malformed> {
    if text.is_empty() {
        return Err(Malformed { line: 1, what: "the file is empty" });
    }
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let start = at;
        while text.get(at).is_some_and(u8::is_ascii_graphic) {
            at += 1;
        }
        let name = &text[start..at];
        blanks(text, &mut at);
        let value = number(text, &mut at).ok_or(Malformed { line, what: "a value that is not a number" })?;
        if name.is_empty() || text.get(at) != Some(&b'\n') {
            return Err(Malformed { line, what: "not a name and a value" });
        }
        if let Some(column) = find(name) {
            put(column, value);
        }
        at += 1;
        line += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &[u8]) -> Result<Vec<(u16, u64)>, Malformed> {
        let mut got = Vec::new();
        let find = |name: &[u8]| ["Ip6InReceives", "Udp6NoPorts"].iter().position(|k| k.as_bytes() == name);
        parse(text, |name| find(name).map(|at| at as u16), |column, value| got.push((column, value)))?;
        Ok(got)
    }

    #[test]
    fn known_names_are_taken_and_others_left() {
        let text = b"Ip6InReceives                   \t12\nIcmp6InType135  \t1\nUdp6NoPorts\t3\n";
        assert_eq!(run(text).unwrap(), [(0, 12), (1, 3)]);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for (text, line) in [
            (&b""[..], 1),
            (b"Ip6InReceives\n", 1),
            (b"Ip6InReceives 1", 1),
            (b"Ip6InReceives 1\nUdp6NoPorts x\n", 2),
            (b"Ip6InReceives 1 2\n", 1),
            (b"Ip6InReceives -1\n", 1),
            (b" 1\n", 1),
            (b"\xff\xfe 1\n", 1),
            (b"Ip6InReceives 1\n\n", 2),
        ] {
            assert_eq!(run(text).map_err(|bad| bad.line), Err(line), "{text:?}");
        }
    }
}
