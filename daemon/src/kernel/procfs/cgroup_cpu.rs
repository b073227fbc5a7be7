//! `cpu.stat` of a cgroup (v1 and v2), and `cpu.pressure` (v2), which looks like `/proc/pressure/cpu`.

use super::{Malformed, number};

/// Number of values.
pub const VALUES: usize = 5;

/// Periods, periods in which it was throttled, time throttled, time in which some and in which all tasks waited for a CPU.
/// Times are in nanoseconds.
pub type Values = [Option<u64>; VALUES];

/// What a line of `cpu.stat` is called, which value it is, and its unit in nanoseconds.
const STAT: [(&[u8], usize, u64); 4] = [
    (b"nr_periods ", 0, 1),
    (b"nr_throttled ", 1, 1),
    // v2 has microseconds, v1 nanoseconds.
    (b"throttled_usec ", 2, 1000),
    (b"throttled_time ", 2, 1),
];

/// Reads `cpu.stat`. Without a quota a cgroup of v2 has none of the lines.
pub fn parse_stat(text: &[u8], values: &mut Values) -> Result<(), Malformed> {
    each_line(text, |at, line| {
        for (name, value, unit) in STAT {
            if let Some(rest) = line.strip_prefix(name) {
                values[value] = Some(whole(rest, at)?.saturating_mul(unit));
            }
        }
        Ok(())
    })
}

/// Reads `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`, which older kernels do not write.
pub fn parse_pressure(text: &[u8], values: &mut Values) -> Result<(), Malformed> {
    each_line(text, |at, line| {
        let value = match line.split(|byte| *byte == b' ').next() {
            Some(b"some") => 3,
            Some(b"full") => 4,
            _ => return Ok(()),
        };
        let total = line.split(|byte| *byte == b' ').find_map(|word| word.strip_prefix(b"total="));
        let total = total.ok_or(Malformed { line: at, what: "no total" })?;
        values[value] = Some(whole(total, at)?.saturating_mul(1000));
        Ok(())
    })
}

fn each_line(
    text: &[u8],
    mut each: impl FnMut(usize, &[u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (1..).zip(lines).try_for_each(|(at, line)| each(at, line))
}

fn whole(text: &[u8], line: usize) -> Result<u64, Malformed> {
    let mut at = 0;
    let found = number(text, &mut at).filter(|_| at == text.len());
    found.ok_or(Malformed { line, what: "not a number" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(text: &str) -> Result<Values, Malformed> {
        let mut values = Values::default();
        parse_stat(text.as_bytes(), &mut values).map(|()| values)
    }

    #[test]
    fn both_versions_of_cpu_stat() {
        let v1 = "nr_periods 12\nnr_throttled 3\nthrottled_time 4500\nnr_bursts 0\nburst_time 0\n";
        assert_eq!(stat(v1), Ok([Some(12), Some(3), Some(4500), None, None]));
        let v2 =
            "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 12\nnr_throttled 3\nthrottled_usec 45\n";
        assert_eq!(stat(v2), Ok([Some(12), Some(3), Some(45_000), None, None]));
        assert_eq!(stat("usage_usec 9\nuser_usec 4\n"), Ok(Values::default()));
        assert_eq!(stat("nr_periods x\n").unwrap_err().to_string(), "line 1: not a number");
    }

    #[test]
    fn pressure() {
        let parse = |text: &str| {
            let mut values = Values::default();
            parse_pressure(text.as_bytes(), &mut values).map(|()| (values[3], values[4]))
        };
        let some = "some avg10=1.55 avg60=0.00 avg300=0.00 total=45\n";
        assert_eq!(parse(some), Ok((Some(45_000), None)));
        let full = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n");
        assert_eq!(parse(&full), Ok((Some(45_000), Some(7_000))));
        assert!(parse("some avg10=1.55\n").is_err() && parse("some total=-1\n").is_err());
        assert_eq!(parse("more total=1\n"), Ok((None, None)));
    }
}
