//! Values of probe options: read from text or configuration, checked against their declaration.

use crate::declare::{OptionDecl, OptionType};
use crate::duration::{format_duration, parse_duration};
use netskoop_api::OptionValue;

/// Reads an option value as the control API sends it: text, lists separated by commas.
pub fn parse_option(decl: &OptionDecl, text: &str) -> Result<OptionValue, String> {
    let word = text.trim();
    let value = match decl.kind {
        OptionType::Bool { .. } => match word {
            "true" | "yes" | "on" => OptionValue::Bool(true),
            "false" | "no" | "off" => OptionValue::Bool(false),
            _ => return Err(format!("'{word}' is not {}", expected(decl))),
        },
        OptionType::Integer { .. } => match word.parse() {
            Ok(number) => OptionValue::Integer(number),
            Err(_) => return Err(format!("'{word}' is not {}", expected(decl))),
        },
        OptionType::Duration { .. } => OptionValue::Text(word.to_owned()),
        OptionType::List { .. } => {
            let words = word.split(',').map(str::trim).filter(|word| !word.is_empty());
            let words: Vec<String> = words.map(str::to_owned).collect();
            let twice = words.iter().enumerate().find(|(at, word)| words[..*at].contains(word));
            if let Some((_, word)) = twice {
                return Err(format!("'{word}' is in the list twice"));
            }
            OptionValue::List(words)
        }
    };
    check_option(decl, &value)?;
    Ok(value)
}

/// Whether a value has the declared type and range; the error is a sentence.
pub fn check_option(decl: &OptionDecl, value: &OptionValue) -> Result<(), String> {
    match (decl.kind, value) {
        (OptionType::Bool { .. }, OptionValue::Bool(_)) => Ok(()),
        (OptionType::Integer { min, max, .. }, OptionValue::Integer(number)) => {
            if (min..=max).contains(number) {
                return Ok(());
            }
            Err(format!("{number} is out of range; expected {}", expected(decl)))
        }
        (OptionType::Duration { min, max, .. }, OptionValue::Text(text)) => {
            if (min..=max).contains(&parse_duration(text)?) {
                return Ok(());
            }
            Err(format!("{text} is out of range; expected {}", expected(decl)))
        }
        (OptionType::List { max, what, check, .. }, OptionValue::List(words)) => {
            if words.len() > max {
                return Err(format!("{} words are too many; at most {max} are allowed", words.len()));
            }
            let bad = words.iter().find(|word| !check(word));
            bad.map_or(Ok(()), |word| Err(format!("'{word}' is not {what}")))
        }
        _ => Err(format!("expected {}", expected(decl))),
    }
}

/// What a value of the option looks like, in words.
pub fn expected(decl: &OptionDecl) -> String {
    match decl.kind {
        OptionType::Bool { .. } => "true or false".to_owned(),
        OptionType::Integer { .. } => format!("a whole number {}", option_range(decl)),
        OptionType::Duration { .. } => format!("a duration {}", option_range(decl)),
        OptionType::List { what, .. } => format!("a list of words, each {what}"),
    }
}

/// Word for the type of an option.
pub fn option_kind(decl: &OptionDecl) -> &'static str {
    match decl.kind {
        OptionType::Bool { .. } => "bool",
        OptionType::Integer { .. } => "integer",
        OptionType::Duration { .. } => "duration",
        OptionType::List { .. } => "list",
    }
}

/// Range of an option in words; empty if any value of the type will do.
pub fn option_range(decl: &OptionDecl) -> String {
    match decl.kind {
        OptionType::Bool { .. } => String::new(),
        OptionType::Integer { min, max: u64::MAX, .. } => format!("of at least {min}"),
        OptionType::Integer { min, max, .. } => format!("from {min} to {max}"),
        OptionType::Duration { min, max, .. } => {
            format!("from {} to {}", format_duration(min), format_duration(max))
        }
        OptionType::List { max, what, .. } => format!("at most {max}, each {what}"),
    }
}

/// Value of an option when nothing says otherwise.
pub fn option_default(decl: &OptionDecl) -> OptionValue {
    match decl.kind {
        OptionType::Bool { default } => OptionValue::Bool(default),
        OptionType::Integer { default, .. } => OptionValue::Integer(default),
        OptionType::Duration { default, .. } => OptionValue::Text(format_duration(default)),
        OptionType::List { default, .. } => {
            OptionValue::List(default.iter().map(|word| (*word).to_owned()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DEVICES, LIMIT, STACK};
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_have_a_range() {
        let kind = OptionType::Duration {
            default: Duration::from_millis(100),
            min: Duration::from_millis(1),
            max: Duration::from_secs(60),
        };
        let decl = OptionDecl { name: "threshold", kind, help: "A threshold." };
        assert_eq!(option_default(&decl), OptionValue::Text("100ms".to_owned()));
        assert_eq!(parse_option(&decl, "2s"), Ok(OptionValue::Text("2s".to_owned())));
        for (bad, message) in [
            ("2m", "2m is out of range; expected a duration from 1ms to 1m"),
            ("5", "'5' has no unit; write e.g. \"5s\" or \"5m\""),
        ] {
            assert_eq!(parse_option(&decl, bad), Err(message.to_owned()));
        }
        assert_eq!(
            check_option(&decl, &OptionValue::Integer(5)),
            Err("expected a duration from 1ms to 1m".to_owned())
        );
    }

    fn list(words: &[&str]) -> OptionValue {
        OptionValue::List(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn text_becomes_values() {
        assert_eq!(parse_option(&STACK, "true"), Ok(OptionValue::Bool(true)));
        assert_eq!(parse_option(&STACK, " off "), Ok(OptionValue::Bool(false)));
        assert_eq!(parse_option(&LIMIT, "12"), Ok(OptionValue::Integer(12)));
        assert_eq!(parse_option(&DEVICES, "eth0, veth*,"), Ok(list(&["eth0", "veth*"])));
        assert_eq!(parse_option(&DEVICES, ""), Ok(list(&[])));
        assert_eq!(parse_option(&DEVICES, "a, b,a"), Err("'a' is in the list twice".to_owned()));
    }

    #[test]
    fn bad_text_is_explained() {
        let message = |decl, text| parse_option(decl, text).unwrap_err();
        assert_eq!(message(&STACK, "maybe"), "'maybe' is not true or false");
        assert_eq!(message(&LIMIT, "many"), "'many' is not a whole number from 1 to 100");
        assert_eq!(message(&LIMIT, "-1"), "'-1' is not a whole number from 1 to 100");
        assert_eq!(message(&LIMIT, "0"), "0 is out of range; expected a whole number from 1 to 100");
        assert_eq!(
            message(&LIMIT, "99999999999999999999"),
            "'99999999999999999999' is not a whole number from 1 to 100"
        );
        assert_eq!(message(&DEVICES, "eth0,e/0"), "'e/0' is not an interface name");
        assert_eq!(message(&DEVICES, "a,b,c,d"), "4 words are too many; at most 3 are allowed");
        assert_eq!(check_option(&STACK, &OptionValue::Integer(1)), Err("expected true or false".to_owned()));
        assert_eq!(
            check_option(&DEVICES, &OptionValue::Text("a".into())),
            Err("expected a list of words, each an interface name".to_owned())
        );
    }

    #[test]
    fn defaults_are_within_their_own_range() {
        for decl in crate::probes::PROBES.iter().flat_map(|probe| probe.options) {
            assert_eq!(check_option(decl, &option_default(decl)), Ok(()), "{}", decl.name);
        }
    }
}
