//! Loads, runs and unloads BPF objects, and pumps the event ring.
/// Why a probe cannot run.
#[derive(Debug)]
pub struct Refused;
/// What an object needs while it is loaded.
pub struct Session;
