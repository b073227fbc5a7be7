//! netskoop's BPF programs: one module per `*.bpf.c`, with the skeleton that loads it and the types it shares with
//! user space, as `build.rs` generates them.

pub mod plain;

pub use skeletons::*;

mod skeletons {
    #![allow(missing_docs, unsafe_code, unreachable_pub, unused_qualifications, reason = "generated code")]
    #![allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/skeletons.rs"));
}
