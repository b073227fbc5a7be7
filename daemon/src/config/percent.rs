//! Parts of a whole as people write them: `2%`, `0.5%`. Kept in hundredths of a percent.

/// Reads `2%` or `0.25%`, at most `100%`. The error is a sentence that names the text.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let not = || format!("'{text}' is not a part of a CPU; write e.g. \"2%\" or \"0.5%\"");
    let number = text.trim().strip_suffix('%').ok_or_else(not)?.trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits =
        |word: &str| !word.is_empty() && word.len() <= 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(not());
    }
    let whole: u32 = whole.parse().map_err(|_| not())?;
    let hundredths: u32 = format!("{part:0<2}").parse().map_err(|_| not())?;
    let value = whole * 100 + hundredths;
    if value > 10_000 { Err(format!("{text} is out of range; expected at most \"100%\"")) } else { Ok(value) }
}

/// Writes hundredths of a percent so that [`parse_percent`] reads the same.
pub fn format_percent(hundredths: u32) -> String {
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match part {
        0 => format!("{whole}%"),
        part if part % 10 == 0 => format!("{whole}.{}%", part / 10),
        part => format!("{whole}.{part:02}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_read_as_they_are_written() {
        for (text, hundredths) in
            [("0%", 0), ("2%", 200), ("0.5%", 50), ("0.05%", 5), ("12.34%", 1234), ("100%", 10_000)]
        {
            assert_eq!(parse_percent(text), Ok(hundredths));
            assert_eq!(format_percent(hundredths), text);
        }
        assert_eq!(parse_percent("0.50 %"), Ok(50));
        for bad in ["", "2", "%", "-1%", "1.%", "1.234%", "1e2%", "99999%", "two%"] {
            assert!(parse_percent(bad).unwrap_err().contains("write e.g."), "{bad}");
        }
        assert!(parse_percent("100.01%").unwrap_err().contains("out of range"));
    }
}
