//! What is wrong with the configuration: every finding with its place.

use std::fmt;
use std::path::{Path, PathBuf};

/// Findings that are printed; a file of rubbish would fill the journal.
const SHOWN: usize = 50;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File, or directory of drop-ins.
    pub file: PathBuf,
    /// Line and column, from 1; `None` if the file could not be read.
    pub at: Option<(usize, usize)>,
    /// The key, `metrics.min_interval`; empty if it is not about one.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl ConfigError {
    /// An error that concerns a whole file.
    pub(crate) fn file(file: &Path, message: impl Into<String>) -> ConfigError {
        ConfigError { file: file.into(), at: None, key: String::new(), message: message.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Everything that is wrong, in the order of the files and of their lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "\n" })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more errors"),
        }
    }
}

impl std::error::Error for ConfigErrors {}
