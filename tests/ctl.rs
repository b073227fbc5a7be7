//! `netskoopctl` against a real daemon that runs in this process, and the rules of the source tree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "helpers of tests fail by panicking, run programs, and say why they skip"
)]

#[path = "ctl_cases/changes.rs"]
mod changes;
#[path = "ctl_cases/contract.rs"]
mod contract;
#[path = "ctl_cases/failures.rs"]
mod failures;
#[path = "ctl_cases/root.rs"]
mod root;
#[path = "ctl_cases/screens.rs"]
mod screens;
#[path = "ctl_cases/support.rs"]
mod support;
#[path = "ctl_cases/terminal.rs"]
mod terminal;
#[path = "ctl_cases/tidy.rs"]
mod tidy;
