//! Who is it: finds every network namespace of the node, names it, and keeps the names current.

pub mod book;
pub mod cgroup;
pub mod cgroup_tree;
pub mod describe;
pub mod directory;
pub mod extra;
pub mod identity;
pub mod labels;
pub mod pairs;
pub mod runtimes;
pub mod scan;
pub mod tenants;
pub mod watcher;
pub mod workload;
