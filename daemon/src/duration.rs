//! Durations as people write them: `500ms`, `10m`, `1h30m`.

use std::time::Duration;

/// Units, the largest first, in nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads `10m`, `1h30m` or `500ms`. The error is a sentence that names the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(not_a_duration(text));
    }
    while !rest.is_empty() {
        let (nanos, tail) = one_part(rest, text)?;
        total = total.checked_add(nanos).ok_or_else(|| format!("'{text}' is too long a duration"))?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total))
}

/// Reads one number with its unit; the second value is what follows.
fn one_part<'a>(rest: &'a str, text: &str) -> Result<(u64, &'a str), String> {
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (number, tail) = rest.split_at(digits);
    let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
    let (unit, tail) = tail.split_at(letters);
    if number.is_empty() {
        return Err(not_a_duration(text));
    }
    if unit.is_empty() && tail.is_empty() && digits == text.trim().len() {
        return Err(format!("'{text}' has no unit; write e.g. \"{number}s\" or \"{number}m\""));
    }
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(not_a_duration(text));
    };
    let nanos = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*scale));
    nanos.map(|nanos| (nanos, tail)).ok_or_else(|| format!("'{text}' is too long a duration"))
}

fn not_a_duration(text: &str) -> String {
    format!("'{text}' is not a duration; write e.g. \"5s\" or \"1m\"")
}

/// Writes a duration so that [`parse_duration`] reads the same one.
pub fn format_duration(duration: Duration) -> String {
    let mut nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, scale) in UNITS {
        if nanos >= scale {
            text += &format!("{}{unit}", nanos / scale);
            nanos %= scale;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_durations() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
            (" 1m ", 60_000),
            ("1s500ms", 1_500),
        ] {
            let parsed = parse_duration(text).unwrap();
            assert_eq!(parsed, Duration::from_millis(millis), "{text}");
            assert_eq!(parse_duration(&format_duration(parsed)).unwrap(), parsed, "{text}");
        }
        assert_eq!(format_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(format_duration(Duration::from_micros(1_500)), "1ms500us");
    }

    #[test]
    fn bad_durations() {
        let not = |text: &str| format!("'{text}' is not a duration; write e.g. \"5s\" or \"1m\"");
        for text in ["", " ", "5 parsecs", "s", "-5s", "1.5s", "5x", "5s m", "5S", "٣s", "1h30"] {
            assert_eq!(parse_duration(text), Err(not(text)), "{text}");
        }
        assert_eq!(parse_duration("10"), Err("'10' has no unit; write e.g. \"10s\" or \"10m\"".to_owned()));
        for text in ["99999999999999999999s", "18446744073709551615s", "213503d200000h"] {
            assert_eq!(parse_duration(text), Err(format!("'{text}' is too long a duration")));
        }
    }
}
