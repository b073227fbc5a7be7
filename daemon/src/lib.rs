//! netskoopd: watches every network namespace of a node at once.

pub mod config;
pub mod declare;
pub mod engine;
pub mod events;
pub mod facts;
pub mod hooks;
pub mod kernel;
pub mod probes;
pub mod resolve;
pub mod server;
pub mod sources;
pub mod table;
