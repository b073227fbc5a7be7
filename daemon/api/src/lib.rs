//! The contract of netskoopd's control socket and event stream: owned, serialisable data and nothing else.
//!
//! Requests refuse unknown fields, so that a misspelt key is an error. Answers only ever gain fields, so that an old
//! `netskoopctl` understands a new daemon. Nothing in this crate does I/O.

mod control;
mod entity;
mod event;
mod probe;

pub use control::*;
pub use entity::*;
pub use event::*;
pub use probe::*;

/// Where the daemon listens for control requests unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/netskoop/netskoopd.sock";

/// Version of the answers under `/v1/`; it changes only together with that prefix.
pub const API_VERSION: u32 = 1;
