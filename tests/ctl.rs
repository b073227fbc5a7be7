//! `netskoopctl` against a real daemon that runs in this process, and the rules of the source tree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "helpers of tests fail by panicking, run programs, and say why they skip"
)]

#[path = "ctl_cases/tidy.rs"]
mod tidy;
