//! JSON laid out anew without touching its tokens: numbers keep their digits, keys their order, unknown fields stay.

use crate::text::is_hostile;
use serde::de::IgnoredAny;
use std::fmt::Write as _;

/// The document with one value per line, ended by a newline.
pub(crate) fn pretty(document: &[u8]) -> Result<String, serde_json::Error> {
    lay_out(document, true)
}

/// The document on one line, ended by a newline.
pub(crate) fn compact(document: &[u8]) -> Result<String, serde_json::Error> {
    lay_out(document, false)
}

fn lay_out(document: &[u8], pretty: bool) -> Result<String, serde_json::Error> {
    let text: &str = match std::str::from_utf8(document) {
        Ok(text) => text,
        Err(_) => return Err(serde::de::Error::custom("it is not UTF-8")),
    };
    serde_json::from_str::<IgnoredAny>(text)?;
    let mut layout = Layout { out: String::with_capacity(text.len() * 2), depth: 0, pretty };
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => layout.string(&mut rest),
            '{' | '[' => {
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                match rest.next_if(|c| matches!(c, '}' | ']')) {
                    Some(close) => layout.out.extend([c, close]),
                    None => layout.open(c),
                }
            }
            '}' | ']' => layout.close(c),
            ',' => layout.comma(),
            ':' => layout.out.push_str(if pretty { ": " } else { ":" }),
            c if c.is_ascii_whitespace() => {}
            c => layout.out.push(c),
        }
    }
    layout.out.push('\n');
    Ok(layout.out)
}

/// What has been written, and how deep we are.
struct Layout {
    out: String,
    depth: usize,
    pretty: bool,
}

impl Layout {
    /// Copies a string whose opening quote has been read. Characters that may steer a terminal become `\u` escapes:
    /// to a JSON parser they are the same.
    fn string(&mut self, rest: &mut impl Iterator<Item = char>) {
        self.out.push('"');
        let mut escaped = false;
        for c in rest {
            if is_hostile(c) {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
            } else {
                self.out.push(c);
            }
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => break,
                _ => {}
            }
        }
    }

    fn open(&mut self, c: char) {
        self.out.push(c);
        self.depth += 1;
        self.new_line();
    }

    fn close(&mut self, c: char) {
        self.depth = self.depth.saturating_sub(1);
        self.new_line();
        self.out.push(c);
    }

    fn comma(&mut self) {
        self.out.push(',');
        self.new_line();
    }

    fn new_line(&mut self) {
        if self.pretty {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str("  ");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_as_they_are() {
        let document = br#" {"z":1.50,"a":[18446744073709551615,{ },[ ]],"s":"a\"b\\","t":true} "#;
        let expected = "{\n  \"z\": 1.50,\n  \"a\": [\n    18446744073709551615,\n    {},\n    []\n  ],\n  \"s\": \"a\\\"b\\\\\",\n  \"t\": true\n}\n";
        assert_eq!(pretty(document).unwrap(), expected);
        assert_eq!(
            compact(expected.as_bytes()).unwrap(),
            "{\"z\":1.50,\"a\":[18446744073709551615,{},[]],\"s\":\"a\\\"b\\\\\",\"t\":true}\n"
        );
    }

    #[test]
    fn hostile_characters_become_escapes_and_mean_the_same() {
        let document = "{\"comm\":\"a\u{9b}31m\u{202e}\u{e0001}b\u{7f}\"}";
        let shown = compact(document.as_bytes()).unwrap();
        assert_eq!(shown, "{\"comm\":\"a\\u009b31m\\u202e\\udb40\\udc01b\\u007f\"}\n");
        let meaning = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(meaning(document), meaning(&shown));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(pretty(b"<html>").is_err());
        assert!(pretty(b"{\"a\":\"\x1b\"}").is_err());
        assert!(pretty(b"\"\xff\"").is_err());
        assert!(pretty(b"").is_err());
        assert!(pretty("[".repeat(100_000).as_bytes()).is_err());
    }
}
