//! Names of the packet drop reasons.
/// Number to name.
pub struct DropReasons;
