//! Text for people: neutralised, measured, styled; numbers and durations in words.

use std::borrow::Cow;
use std::fmt::Write as _;
use unicode_width::UnicodeWidthStr;

/// How a piece of text looks where colour is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Titles and names.
    Bold,
    /// What matters less.
    Dim,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Broken or lost.
    Bad,
}

impl Style {
    /// The parameters of the terminal's "select graphic rendition" sequence.
    pub(crate) fn sgr(self) -> Option<&'static str> {
        match self {
            Style::Plain => None,
            Style::Bold => Some("1"),
            Style::Dim => Some("2"),
            Style::Good => Some("32"),
            Style::Warn => Some("33"),
            Style::Bad => Some("31"),
        }
    }
}

/// One line of output. Whatever is added is neutralised, so that no text from the daemon (container names and process
/// names are chosen by strangers) can steer the terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    spans: Vec<(Style, String)>,
}

impl Line {
    /// An empty line.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds plain text.
    pub(crate) fn plain(self, text: &str) -> Self {
        self.styled(Style::Plain, text)
    }

    /// Adds text in a style.
    pub(crate) fn styled(mut self, style: Style, text: &str) -> Self {
        if !text.is_empty() {
            self.spans.push((style, clean(text).into_owned()));
        }
        self
    }

    /// Adds another line's text.
    pub(crate) fn join(mut self, other: Line) -> Self {
        self.spans.extend(other.spans);
        self
    }

    /// Adds spaces until the line is `width` columns wide.
    pub(crate) fn pad(mut self, width: usize) -> Self {
        let missing = width.saturating_sub(self.width());
        if missing > 0 {
            self.spans.push((Style::Plain, " ".repeat(missing)));
        }
        self
    }

    /// Columns it takes on a terminal.
    pub(crate) fn width(&self) -> usize {
        self.spans.iter().map(|(_, text)| text.width()).sum()
    }

    /// The pieces, neutralised.
    pub(crate) fn spans(&self) -> &[(Style, String)] {
        &self.spans
    }

    /// Shortens it to `width` columns, the last of which is `…`.
    pub(crate) fn truncate(self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut left = width.saturating_sub(1);
        let mut cut = Line::new();
        for (style, text) in self.spans {
            let end = fitting(&text, left);
            left -= text[..end].width();
            let complete = end == text.len();
            cut.spans.push((style, text[..end].to_owned()));
            if !complete {
                break;
            }
        }
        cut.styled(Style::Dim, "…")
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Line::new().plain(text)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Line::new().plain(&text)
    }
}

/// Length in bytes of the longest beginning that fits `width` columns.
fn fitting(text: &str, width: usize) -> usize {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    ends.take_while(|&end| text[..end].width() <= width).last().unwrap_or(0)
}

/// Whether a character may steer a terminal, reorder what is on it, or hide: control characters (C0, DEL, C1),
/// directional and other invisible formatting.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Shows hostile characters as escapes (`\u{1b}`).
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hostile(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// `1204` as `1,204`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A metric's value: whole numbers in groups of three, others with up to three decimals.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() || value.abs() >= 1e15 {
        return value.to_string();
    }
    // The tests above keep the value far inside the range of u64.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = value.abs().trunc() as u64;
    let sign = if value < 0.0 { "-" } else { "" };
    let fraction = format!("{:.3}", value.abs().fract());
    match fraction.strip_prefix("0.").map(|f| f.trim_end_matches('0')) {
        Some("") => format!("{sign}{}", thousands(whole)),
        Some(decimals) => format!("{sign}{}.{decimals}", thousands(whole)),
        // It was rounded up to one.
        None => format!("{sign}{}", thousands(whole + 1)),
    }
}

/// A number of seconds in its two largest units: `3d 4h`, `9m 57s`.
pub(crate) fn span(seconds: u64) -> String {
    let parts = [("d", seconds / 86_400), ("h", seconds / 3600 % 24), ("m", seconds / 60 % 60)];
    let mut out = String::new();
    let first = parts.iter().position(|(_, n)| *n > 0).unwrap_or(parts.len());
    for (unit, n) in parts.iter().copied().chain([("s", seconds % 60)]).skip(first).take(2) {
        if n > 0 || out.is_empty() {
            let _ = write!(out, "{}{n}{unit}", if out.is_empty() { "" } else { " " });
        }
    }
    out
}

/// A number of seconds in one unit: `1.2 s`, `5 min`, `1 h`.
pub(crate) fn roughly(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 && s.fract() != 0.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{:.0} min", (s / 60.0).floor()),
        s if s < 86_400.0 => format!("{:.0} h", (s / 3600.0).floor()),
        s => format!("{:.0} d", (s / 86_400.0).floor()),
    }
}

/// A number of nanoseconds in the unit that suits it: `160 ns`, `0.3 ms`, `182 ms`.
pub(crate) fn nanos(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..100_000 => format!("{} µs", ns / 1_000),
        100_000..10_000_000 => format!("{}.{} ms", ns / 1_000_000, ns / 100_000 % 10),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{}.{} s", thousands(ns / 1_000_000_000), ns / 100_000_000 % 10),
    }
}

/// Bytes on the wire: `3.1 MB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count, 1000, &["B", "kB", "MB", "GB", "TB"])
}

/// Bytes of memory: `14 MiB`.
pub(crate) fn memory(count: u64) -> String {
    scaled(count, 1024, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A count in the largest unit of which it has at least one, with a decimal below ten.
fn scaled(count: u64, step: u64, units: &[&str]) -> String {
    let mut divisor = 1;
    let mut unit = 0;
    while count / divisor >= step && unit + 1 < units.len() {
        divisor *= step;
        unit += 1;
    }
    let whole = count / divisor;
    let tenth = count % divisor * 10 / divisor;
    let unit = units.get(unit).copied().unwrap_or_default();
    if whole < 10 && divisor > 1 { format!("{whole}.{tenth} {unit}") } else { format!("{whole} {unit}") }
}

/// `1 pod`, `2 pods`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_neutralised() {
        assert_eq!(clean("nginx-1"), "nginx-1");
        assert_eq!(clean("a\x1b[2Jb\r\n\x07\x7f"), "a\\u{1b}[2Jb\\r\\n\\u{7}\\u{7f}");
        assert_eq!(
            clean("c1 \u{9b}31m rtl \u{202e} bom \u{feff}"),
            "c1 \\u{9b}31m rtl \\u{202e} bom \\u{feff}"
        );
        assert_eq!(clean("größe 名前"), "größe 名前");
        let line = Line::new().styled(Style::Bad, "x\x1b]0;title\x07");
        assert!(line.spans().iter().all(|(_, text)| !text.contains(char::is_control)));
    }

    #[test]
    fn widths_are_those_of_a_terminal() {
        assert_eq!(Line::from("名前").width(), 4);
        assert_eq!(Line::from("abc").pad(5).width(), 5);
        let cut = Line::from("名前と").truncate(4);
        assert_eq!(cut.spans(), [(Style::Plain, "名".into()), (Style::Dim, "…".into())]);
        assert_eq!(Line::from("abcdef").truncate(6).width(), 6);
        assert_eq!(Line::from("ab").styled(Style::Bold, "cdef").truncate(4).width(), 4);
        assert_eq!(Line::from("abc").truncate(0).width(), 1);
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, text) in [(0, "0"), (999, "999"), (1204, "1,204"), (1_000_000, "1,000,000")] {
            assert_eq!(thousands(value), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (31204.0, "31,204"),
            (-3.0, "-3"),
            (0.25, "0.25"),
            (1.9999, "2"),
            (1234.5, "1,234.5"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (597, "9m 57s"), (3600, "1h"), (273_600, "3d 4h"), (86_401, "1d")]
        {
            assert_eq!(span(seconds), text);
        }
        for (seconds, text) in [
            (1.2, "1.2 s"),
            (2.0, "2 s"),
            (12.7, "13 s"),
            (119.0, "1 min"),
            (3700.0, "1 h"),
            (260_000.0, "3 d"),
        ] {
            assert_eq!(roughly(seconds), text);
        }
        for (ns, text) in [
            (160, "160 ns"),
            (42_000, "42 µs"),
            (300_000, "0.3 ms"),
            (18_000_000, "18 ms"),
            (182_000_000, "182 ms"),
            (1_250_000_000, "1.2 s"),
        ] {
            assert_eq!(nanos(ns), text);
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes(3_100_000), "3.1 MB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(memory(14 << 20), "14 MiB");
        assert_eq!(memory(u64::MAX), "16777215 TiB");
        assert_eq!(counted(1, "pod"), "1 pod");
        assert_eq!(counted(1204, "pod"), "1,204 pods");
    }
}
