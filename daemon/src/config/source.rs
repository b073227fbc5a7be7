//! Configuration files as they lie on disk: which there are, their bounded text, their syntax, and line and column of a place.

use super::errors::ConfigError;
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::DeTable;

/// Size of a file at most. A mistaken `--config /var/log/syslog` must not fill the memory.
pub(super) const MAX_SIZE: u64 = 1 << 20;

/// Drop-ins at most.
const MAX_FILES: usize = 256;

/// The text of a file that is known to be small, regular and UTF-8.
pub(super) struct Source {
    /// Where it was read.
    pub(super) file: PathBuf,
    /// Its text.
    pub(super) text: String,
}

impl Source {
    /// Reads a file; `None` if there is none.
    pub(super) fn read(file: &Path) -> Result<Option<Source>, ConfigError> {
        let bytes = match read_bounded(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ConfigError::file(file, format!("cannot be read: {error}"))),
        };
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(Source { file: file.into(), text })),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let start = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
                let at = Some(position(&start, valid));
                let message = "the file is not UTF-8 text here".to_owned();
                Err(ConfigError { file: file.into(), at, key: String::new(), message })
            }
        }
    }

    /// Its syntax tree, or all its syntax errors.
    pub(super) fn parse(&self) -> Result<Spanned<DeTable<'_>>, Vec<ConfigError>> {
        let (tree, errors) = DeTable::parse_recoverable(&self.text);
        if errors.is_empty() {
            return Ok(tree);
        }
        let mut found: Vec<ConfigError> = errors.iter().map(|error| self.syntax_error(error)).collect();
        found.sort_by_key(|error| error.at);
        // What follows on the same line is mostly the parser stumbling on.
        found.dedup_by_key(|error| error.at.map(|(line, _)| line));
        Err(found)
    }

    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message().replace('\n', "; ");
        let span = error.span().unwrap_or(0..0);
        self.error(&span, "", format!("not valid TOML: {message}"))
    }

    /// An error about a place in this file.
    pub(super) fn error(&self, span: &Range<usize>, key: &str, message: impl Into<String>) -> ConfigError {
        let at = Some(position(&self.text, span.start));
        ConfigError { file: self.file.clone(), at, key: key.to_owned(), message: message.into() }
    }

    /// Line and column of a place.
    pub(super) fn position(&self, span: &Range<usize>) -> (usize, usize) {
        position(&self.text, span.start)
    }
}

/// Line and column, both from 1; columns are characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (line, before[start..].chars().count() + 1)
}

/// Reads a regular file of bounded size. Never blocks on a FIFO and never touches a device.
pub(super) fn read_bounded(file: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(file, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}

/// The drop-ins of a directory in name order. A missing directory has none; hidden files and other endings are not drop-ins.
pub(super) fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |error: io::Error| ConfigError::file(dir, format!("cannot be listed: {error}"));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        if is_drop_in(&name) {
            files.push(dir.join(name));
        }
        if files.len() > MAX_FILES {
            return Err(ConfigError::file(dir, format!("holds more than {MAX_FILES} drop-ins")));
        }
    }
    files.sort();
    Ok(files)
}

fn is_drop_in(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_in_characters_from_one() {
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("ab\ncd", 4), (2, 2));
        assert_eq!(position("é = 1", 3), (1, 3));
        assert_eq!(position("é", 1), (1, 1), "inside a character");
        assert_eq!(position("ab\n", 99), (2, 1));
    }
}
