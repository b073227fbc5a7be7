//! netskoopd: watches every network namespace of a node at once.
//!
//! [`run`] is the program: it takes a configuration, open sockets and a signal to stop, and returns when everything it
//! held is released. The binary only opens what it is given.

pub mod args;
pub mod config;
#[cfg(test)]
mod counting;
pub mod declare;
pub mod duration;
pub mod engine;
pub mod events;
pub mod facts;
pub mod filter;
pub mod flows;
#[cfg(test)]
mod gates;
pub mod hooks;
pub mod kernel;
#[cfg(test)]
mod older_names;
pub mod probes;
pub mod render;
pub mod resolve;
pub mod retired;
pub mod server;
pub mod sources;
mod start;
pub mod table;
mod wake;

pub use start::{Listeners, Notice, RunError, Signals, clean_up, run};
