//! `/proc/net/softnet_stat`: one line of hexadecimal columns per online CPU; the same file in every namespace.
//!
//! There is no header; the number of columns tells the kernel. 0 `processed` (packets taken off a backlog or a NAPI
//! poll), 1 `dropped` (the CPU's backlog was full: `net.core.netdev_max_backlog`), 2 `time_squeeze` (the softirq ran out
//! of budget or time with work left), 3 to 7 always 0, 8 was `cpu_collision` and is always 0 by now, 9 `received_rps`
//! (woken up by another CPU), 10 `flow_limit_count`; since 5.10 also 11 `backlog_len` and 12 the number of the CPU; on
//! newer kernels also 13 `input_qlen` and 14 `process_qlen`, the two parts of `backlog_len`. All values are 32 bits wide: the
//! counters wrap. Before 5.10 a line does not say which CPU it is; with CPUs offline the number of the line is not the
//! number of the CPU.

use super::Malformed;

/// The columns that mean something, with their place in the line.
pub const FIELDS: [(&str, usize); 8] = [
    ("processed", 0),
    ("dropped", 1),
    ("time_squeeze", 2),
    ("received_rps", 9),
    ("flow_limit_count", 10),
    ("backlog_len", 11),
    ("input_qlen", 13),
    ("process_qlen", 14),
];

/// The first so many of [`FIELDS`] are counters.
pub const COUNTERS: usize = 5;

/// Values of one CPU, in the order of [`FIELDS`].
pub type Values = [Option<u32>; FIELDS.len()];

/// Place of the number of the CPU.
const CPU: usize = 12;

/// Columns read at most; kernels have 15.
const MAX_COLUMNS: usize = 32;

/// Hands CPU number and values of every line to `put`.
pub fn parse(text: &[u8], mut put: impl FnMut(u32, &Values)) -> Result<(), Malformed> {
    let Some(body) = text.strip_suffix(b"\n") else {
        return Err(Malformed { line: 1, what: "the file is empty or cut off" });
    };
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let (cpu, values) = cpu_line(line).map_err(|what| Malformed { line: index + 1, what })?;
        put(cpu.unwrap_or(index as u32), &values);
    }
    Ok(())
}

fn cpu_line(line: &[u8]) -> Result<(Option<u32>, Values), &'static str> {
    let mut columns = [0_u32; MAX_COLUMNS];
    let mut count = 0;
    for word in line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
        *columns.get_mut(count).ok_or("too many columns")? =
            hex(word).ok_or("a value that is not hexadecimal")?;
        count += 1;
    }
    if count < 3 {
        return Err("fewer columns than any kernel writes");
    }
    let at = |index: usize| (index < count).then(|| columns[index]);
    Ok((at(CPU), FIELDS.map(|(_, index)| at(index))))
}

/// A number of exactly eight hexadecimal digits, as the kernel writes them.
fn hex(word: &[u8]) -> Option<u32> {
    if word.len() != 8 {
        return None;
    }
    word.iter().try_fold(0_u32, |value, byte| Some(value << 4 | char::from(*byte).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<Vec<(u32, Values)>, Malformed> {
        let mut got = Vec::new();
        parse(text.as_bytes(), |cpu, values| got.push((cpu, *values)))?;
        Ok(got)
    }

    fn line(columns: &[u32]) -> String {
        columns.iter().map(|value| format!("{value:08x} ")).collect::<String>().trim_end().to_owned() + "\n"
    }

    #[test]
    fn the_cpu_is_told_since_5_10_and_the_line_number_before() {
        let new = line(&[1, 2, 3, 0, 0, 0, 0, 0, 0, 9, 10, 11, 6, 13, 14]);
        let expected = [1, 2, 3, 9, 10, 11, 13, 14].map(Some);
        assert_eq!(run(&new).unwrap(), [(6, expected)]);
        let old = line(&[1, 2, 3, 0, 0, 0, 0, 0, 0, 9, 10]);
        let got = run(&format!("{old}{old}")).unwrap();
        assert_eq!(got[1], (1, [Some(1), Some(2), Some(3), Some(9), Some(10), None, None, None]));
    }

    #[test]
    fn malformed_files_are_refused() {
        for (text, at) in [
            ("", 1),
            ("00000001 00000002", 1),
            ("00000001 00000002\n", 1),
            ("00000001 00000002 0000000g\n", 1),
            ("00000001 00000002 1\n", 1),
            ("00000001 00000002 00000003\n\n00000001 00000002 00000003\n", 2),
            ("00000001 00000002 +0000003\n", 1),
        ] {
            assert_eq!(run(text).map_err(|bad| bad.line), Err(at), "{text:?}");
        }
        assert!(run(&line(&[1; 40])).is_err());
    }
}
