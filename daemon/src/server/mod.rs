//! Everything that answers: HTTP on TCP for metrics, HTTP on the Unix socket for control.

pub mod answer;
pub mod connection;
pub mod control;
pub mod exposition;
pub mod handed;
pub mod listen;
pub mod metrics;
mod peer;
pub mod query;
pub mod refuse;
pub mod stall;
mod users;

pub use connection::serve;
