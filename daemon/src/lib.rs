//! netskoopd: watches every network namespace of a node at once.

pub mod config;
#[cfg(test)]
mod counting;
pub mod declare;
pub mod facts;
pub mod hooks;
pub mod kernel;
pub mod probes;
pub mod sources;
pub mod table;
