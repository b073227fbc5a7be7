//! What the kernel offers: files, namespaces, BPF objects, symbols. Knows no metric name.

pub mod bpf;
pub mod buckets;
mod cgroup_hooks;
pub mod cgroup_mounts;
pub mod default_route;
pub mod drop_reasons;
pub mod features;
mod load;
pub mod netlink;
pub mod netns_cookie;
pub mod netns_watch;
pub mod parts;
pub mod procfs;
pub mod record;
mod refused;
pub mod ring;
pub mod rooms;
mod settings;
mod sweep;
pub mod symbols;
pub mod tasks;
pub mod tc;
pub mod ways;

#[cfg(test)]
mod root;
