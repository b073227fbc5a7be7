//! Everything that answers: HTTP on TCP for metrics, HTTP on the Unix socket for control.

pub mod exposition;
