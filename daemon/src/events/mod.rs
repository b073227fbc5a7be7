//! Events from the kernel to those who read them: named, numbered, kept for a while, and every loss counted.

pub mod bus;
pub mod history;
pub mod names;
pub mod unsettled;

#[cfg(test)]
mod tests;
