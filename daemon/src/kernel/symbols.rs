//! Kernel symbols.
/// The table of kernel symbols.
pub struct Symbols;

impl Symbols {
    /// Placeholder.
    pub fn name(&self, address: u64) -> String {
        format!("{address:#x}")
    }
}
