//! Everything that answers: HTTP on TCP for metrics, HTTP on the Unix socket for control.

mod answer;
mod connection;
pub mod control;
pub mod exposition;
pub mod listen;
pub mod metrics;
mod query;
mod stall;

pub use connection::serve;
