//! `sources.*`: which sockets of a source of names are used.

use super::keys::{Faults, describe, each, is_absolute, list, quoted, shortened};
use crate::resolve::runtimes::Choice;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::DeValue;

/// Sockets of one kind of source at most.
const MAX_SOCKETS: usize = 8;
/// Longest path of a socket, in bytes: `sun_path` less the zero behind it.
const MAX_PATH: usize = 107;

/// What the value of such a key may be.
pub(super) const EXPECTED: &str =
    "\"auto\", \"off\", or a list of sockets, e.g. [\"/run/containerd/containerd.sock\"]";

pub(super) fn choice(value: &Spanned<DeValue<'_>>) -> Result<Choice, Faults> {
    let fault = |message| vec![(value.span(), message)];
    match value.get_ref() {
        DeValue::String(word) if word == "auto" => Ok(Choice::Auto),
        DeValue::String(word) if word == "off" => Ok(Choice::Off),
        DeValue::String(path) if path.contains('/') => {
            let path = shortened(path);
            Err(fault(format!("write a list, e.g. [\"{path}\"]: expected {EXPECTED}")))
        }
        DeValue::Array(array) if array.iter().len() > MAX_SOCKETS => {
            Err(fault(format!("more than {MAX_SOCKETS} sockets; leave out those that are not used")))
        }
        DeValue::Array(array) if array.iter().len() > 0 => Ok(Choice::Paths(each(array, path)?)),
        other => Err(fault(format!("expected {EXPECTED}, found {}", describe(other)))),
    }
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let example = "write e.g. \"/run/containerd/containerd.sock\"";
    let text =
        value.as_str().ok_or_else(|| format!("expected a path, found {}; {example}", describe(value)))?;
    if let Some(path) = text.strip_prefix("unix://") {
        return Err(format!("write the path alone: \"{}\"", shortened(path)));
    }
    if !is_absolute(text) {
        return Err(format!("'{}' is not an absolute path; {example}", shortened(text)));
    }
    if text.len() > MAX_PATH {
        return Err(format!("the path is longer than {MAX_PATH} bytes, which no socket's path may be"));
    }
    Ok(text.into())
}

pub(super) fn show(choice: &Choice) -> String {
    match choice {
        Choice::Auto => quoted("auto"),
        Choice::Off => quoted("off"),
        Choice::Paths(paths) => list(paths.iter().map(|path| path.to_string_lossy().into_owned())),
    }
}
