//! `/proc/<pid>/net/ip_vs_stats`: what IPVS did in a namespace, hexadecimal. Two lines of heads, then conns, inpkts, outpkts,
//! inbytes and outbytes; rates follow, which are left out.

use super::Malformed;

/// How many counters there are.
pub const COUNTERS: usize = 5;

/// The five counters.
pub fn parse(text: &[u8]) -> Result<[u64; COUNTERS], Malformed> {
    const LINE: usize = 3;
    let malformed = |what| Malformed { line: LINE, what };
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines.nth(LINE - 1).ok_or(malformed("the file is empty or cut off"))?;
    // A line without an end has been cut off.
    lines.next().ok_or(malformed("the file is empty or cut off"))?;
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut counters = [0; COUNTERS];
    for counter in &mut counters {
        let word = words.next().ok_or(malformed("fewer columns than any kernel writes"))?;
        let number = std::str::from_utf8(word).ok().filter(|word| !word.starts_with('+'));
        *counter = number
            .and_then(|word| u64::from_str_radix(word, 16).ok())
            .ok_or(malformed("a value that is not hexadecimal"))?;
    }
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "   Total Incoming Outgoing         Incoming         Outgoing\n   Conns  Packets  Packets            Bytes            Bytes\n     3E8     7D00     5DC0           1E8480     123456789ABC\n\n Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n       0        0        0                0                0\n";

    #[test]
    fn counters_are_hexadecimal() {
        assert_eq!(parse(TEXT.as_bytes()), Ok([1000, 32_000, 24_000, 2_000_000, 0x1234_5678_9abc]));
    }

    #[test]
    fn every_truncation_is_refused() {
        let end = TEXT.match_indices('\n').nth(2).unwrap().0;
        for length in 0..=end {
            assert!(parse(&TEXT.as_bytes()[..length]).is_err(), "{length} bytes");
        }
        let bad = TEXT.replace("7D00", "7G00");
        assert_eq!(
            parse(bad.as_bytes()),
            Err(Malformed { line: 3, what: "a value that is not hexadecimal" })
        );
    }
}
