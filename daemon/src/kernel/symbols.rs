//! Kernel symbols.
/// The table of kernel symbols.
pub struct Symbols;
