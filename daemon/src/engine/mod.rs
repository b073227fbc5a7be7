//! The engine: passes, lanes, probe states, leases. The only place where probes, sources, identity and events meet.

pub mod lanes;
pub mod pass;
