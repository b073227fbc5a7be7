//! YAML as far as configurations need it, as JSON: mappings, lists, scalars. What refers to another place is refused, so
//! that a small text stays small.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// How deep a text may be nested.
const MAX_DEPTH: usize = 32;

/// What is being read: a list, or a mapping and the key whose value comes next.
enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

/// Reads the first document. A mistake is told with its line.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("it is no YAML: {error}"))?;
        let at = |what: &str| format!("line {}: {what}", span.start.line());
        let done = match event {
            Event::Scalar(text, style, ..) => Some(scalar(&text, style)),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|open| match open {
                Open::List(list) => Value::Array(list),
                Open::Map(map, _) => Value::Object(map),
            }),
            Event::Alias(_) => return Err(at("references (*name) are not understood; write the value out")),
            _ => None,
        };
        if open.len() > MAX_DEPTH {
            return Err(at("it is nested too deeply"));
        }
        if let Some(value) = done
            && let Some(value) = put(&mut open, value).map_err(|message| at(&message))?
        {
            return Ok(value);
        }
    }
    Err("it is empty".to_owned())
}

/// Puts a value where it belongs; what belongs nowhere is the document.
fn put(open: &mut [Open], value: Value) -> Result<Option<Value>, String> {
    match open.last_mut() {
        None => return Ok(Some(value)),
        Some(Open::List(list)) => list.push(value),
        Some(Open::Map(map, key)) => match (key.take(), value) {
            (Some(key), value) => {
                if map.insert(key.clone(), value).is_some() {
                    return Err(format!("'{key}' is there twice"));
                }
            }
            (None, Value::String(text)) => *key = Some(text),
            (None, Value::Array(_) | Value::Object(_)) => return Err("a key must be a word".to_owned()),
            (None, other) => *key = Some(other.to_string()),
        },
    }
    Ok(None)
}

/// What stands there without quotes may be a number or a truth, as the older programs read it.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if !matches!(style, ScalarStyle::Plain) {
        return Value::String(text.to_owned());
    }
    match text {
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => text.parse::<i64>().map_or_else(|_| Value::String(text.to_owned()), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_configurations_have_is_read() {
        let text =
            "# c\na: 1\nb: [x, 'true', true, -7]\nc:\n- name: y\n  args: {k: \"v\"}\n- ~\nd: |\n  in: 1\n";
        let wanted = json!({"a": 1, "b": ["x", "true", true, -7], "c": [{"name": "y", "args": {"k": "v"}}, null],
            "d": "in: 1\n"});
        assert_eq!(parse(text), Ok(wanted));
        assert_eq!(parse("---\nx: 1\n---\ny: 2\n"), Ok(json!({"x": 1})));
        assert_eq!(parse("1: 2\n"), Ok(json!({"1": 2})));
    }

    #[test]
    fn mistakes_have_a_sentence() {
        for (text, said) in [
            ("", "it is empty"),
            ("a: &x 1\nb: *x\n", "line 2: references"),
            ("a: 1\na: 2\n", "line 2: 'a' is there twice"),
            ("a: [", "it is no YAML"),
            ("? [a]\n: 1\n", "a key must be a word"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(parse(&deep).unwrap_err().contains("nested too deeply"));
    }
}
