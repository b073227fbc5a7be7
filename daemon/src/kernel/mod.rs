//! What the kernel offers: files, namespaces, BPF objects, symbols. Knows no metric name.

pub mod bpf;
pub mod drop_reasons;
pub mod features;
pub mod netlink;
pub mod netns_cookie;
pub mod netns_watch;
pub mod parts;
pub mod procfs;
pub mod record;
pub mod ring;
pub mod symbols;

#[cfg(test)]
mod root;
