//! What the kernel offers: files, namespaces, BPF objects, symbols. Knows no metric name.

pub mod bpf;
pub mod drop_reasons;
pub mod features;
pub mod procfs;
pub mod symbols;
