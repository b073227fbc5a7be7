//! `/proc/slabinfo`: the kernel's caches of objects, a line each. Root only. Caches may be merged with others of the same
//! size, and then have no line of their own.

use super::{Malformed, blanks, line_at, number};

/// The columns of a line in the kernel's order: active objects, objects, size of one, objects in a slab, pages of a slab.
pub const COLUMNS: usize = 5;

/// First words of the file, whatever its version.
const HEAD: &[u8] = b"slabinfo - version: 2.";

/// Hands every cache to `row`.
pub fn parse<'a>(text: &'a [u8], mut row: impl FnMut(&'a [u8], &[u64; COLUMNS])) -> Result<(), Malformed> {
    if !text.starts_with(HEAD) {
        return Err(Malformed { line: 1, what: "not the head of a version that is known" });
    }
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let bad = |what| Malformed { line, what };
        let whole = line_at(text, at).ok_or(bad("the line is cut off"))?;
        // The second line names the columns.
        if line > 1 && !whole.starts_with(b"#") {
            let mut end = whole.iter().position(|byte| *byte == b' ').ok_or(bad("no columns"))?;
            let (name, mut values) = (&whole[..end], [0; COLUMNS]);
            for value in &mut values {
                blanks(whole, &mut end);
                *value = number(whole, &mut end).ok_or(bad("a column is missing or not a number"))?;
            }
            row(name, &values);
        }
        at += whole.len() + 1;
        line += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
                        UDP                   61    132   1344   12    4 : tunables    0    0    0 : slabdata     11     11      0\n\
                        TCP                   40    104   2368   13    8 : tunables    0    0    0 : slabdata      8      8      0\n";

    fn run(text: &str) -> Result<Vec<(String, [u64; COLUMNS])>, Malformed> {
        let mut got = Vec::new();
        parse(text.as_bytes(), |name, values| got.push((String::from_utf8_lossy(name).into(), *values)))?;
        Ok(got)
    }

    #[test]
    fn every_cache_is_handed_out() {
        let expected = [("UDP".into(), [61, 132, 1344, 12, 4]), ("TCP".into(), [40, 104, 2368, 13, 8])];
        assert_eq!(run(TEXT).unwrap(), expected);
    }

    #[test]
    fn malformed_files_are_refused() {
        let head = "slabinfo - version: 2.1\n";
        for (text, line) in [
            ("", 1),
            ("slabinfo - version: 3.0\n", 1),
            (&format!("{head}TCP 1 2 3 4 5"), 2),
            (&format!("{head}TCP\n"), 2),
            (&format!("{head}TCP 1 2 3 4\n"), 2),
            (&format!("{head}TCP 1 2 3 four 5\n"), 2),
            (&format!("{head}\n"), 2),
        ] {
            assert_eq!(run(text).map_err(|bad| bad.line), Err(line), "{text:?}");
        }
    }
}
