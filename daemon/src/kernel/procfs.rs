//! Parsers of procfs files.
