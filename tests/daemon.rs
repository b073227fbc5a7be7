//! The daemon as its users meet it: the real binary, started with a configuration file, spoken to through its sockets.

#![allow(clippy::disallowed_types, reason = "tests run other programs")]
#![allow(clippy::disallowed_macros, reason = "a skipped test must be seen")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

/// Anomalies that the probes with hooks must tell of; for root.
#[path = "cases/anomalies.rs"]
mod anomalies;
/// Pods of a real containerd: names, counters and events; for root.
#[path = "cases/attribution.rs"]
mod attribution;
/// Sources of names that behave badly.
#[path = "cases/bad_sources.rs"]
mod bad_sources;
/// A large containerd for the benchmark.
#[path = "cases/bench_runtime.rs"]
mod bench_runtime;
/// Connection tracking in real namespaces; for root.
#[path = "cases/conntrack.rs"]
mod conntrack;
/// The control API on the Unix socket.
#[path = "cases/control.rs"]
mod control;
/// Requests to disks; for root.
#[path = "cases/disks.rs"]
mod disks;
/// Questions to name servers; for root.
#[path = "cases/dns.rs"]
mod dns;
/// Docker's containers, as its API tells of them; for root. Each test has a Docker of its own.
#[path = "cases/docker.rs"]
mod docker;
/// Events that nobody wants; for root.
#[path = "cases/filters.rs"]
mod filters;
/// What goes through interfaces, by connection; for root.
#[path = "cases/flow.rs"]
mod flow;
/// Whole answers of `/metrics` for fixture trees, in the three generations of names.
#[path = "cases/golden.rs"]
mod golden;
/// What is told of namespaces that have ended; for root.
#[path = "cases/gone.rs"]
mod gone;
/// What runs inside each kernel of the lab.
#[path = "cases/lab/mod.rs"]
mod lab;
/// Labels that the configuration puts on series, and what is known of entities.
#[path = "cases/labels.rs"]
mod labels;
/// Time lost inside the kernel; for root.
#[path = "cases/latency.rs"]
mod latency;
/// What is left of probes that were switched off, and of a daemon that was killed; for root.
#[path = "cases/leftovers.rs"]
mod leftovers;
/// Start and stop: bad configuration, taken sockets, crashes, missing privileges, nothing left behind.
#[path = "cases/lifecycle.rs"]
mod lifecycle;
/// Connections that wait for accept; for root.
#[path = "cases/listen.rs"]
mod listen;
/// Neighbours of real namespaces, and the tables that they share; for root.
#[path = "cases/neigh.rs"]
mod neigh;
/// Rare things that break networks; for root.
#[path = "cases/netanomaly.rs"]
mod netanomaly;
/// The Debian package, installed from a repository on a little node with systemd; for root.
#[path = "cases/packages.rs"]
mod packages;
/// The RPM package, installed with dnf on a little Debian that has it; for root and `make test-packages`.
#[path = "cases/packages_rpm.rs"]
mod packages_rpm;
/// Paths that large packets do not fit through, and peers out of reach; for root.
#[path = "cases/path_mtu.rs"]
mod path_mtu;
/// Podman's containers and pods, by its files and by its socket; for root. Each test has a podman of its own.
#[path = "cases/podman.rs"]
mod podman;
/// What is counted by process: in namespaces, and of pods in the node's own; for root.
#[path = "cases/processes.rs"]
mod processes;
/// A real Prometheus scrapes the three generations of names for a minute; for root.
#[path = "cases/prometheus.rs"]
mod prometheus;
/// Queueing disciplines, compared with `tc`; for root.
#[path = "cases/qdisc.rs"]
mod qdisc;
/// RDMA devices, and load balancing, which the machines of tests do not have.
#[path = "cases/rdma.rs"]
mod rdma;
/// Real namespaces, traffic and BPF; for root. Each runs on a little node of its own.
#[path = "cases/root.rs"]
mod root;
/// Sources of identity that are large, old, slow or hostile.
#[path = "cases/runtimes.rs"]
mod runtimes;
/// What real container runtimes say of real containers; for root. Each test runs on a little node of its own.
#[path = "cases/runtimes_root.rs"]
mod runtimes_root;
/// More flows than there is room for; for root.
#[path = "cases/scans.rs"]
mod scans;
/// The proof that probes work on this kernel; for root.
#[path = "cases/selftest.rs"]
mod selftest;
/// What a scraper meets on the TCP port, and what bad clients do to others.
#[path = "cases/serving.rs"]
mod serving;
/// Whose a socket in the node's own namespace is, by its cgroup; for root.
#[path = "cases/sockets.rs"]
mod sockets;
/// Packets dropped as fast as the machine can; for root.
#[path = "cases/storms.rs"]
mod storms;
/// Units of a real systemd, booted in a container; for root.
#[path = "cases/systemd.rs"]
mod systemd;
/// Time that tasks lose; for root.
#[path = "cases/tasks.rs"]
mod tasks;
/// TCP connections, compared with `ss`; for root.
#[path = "cases/tcpsummary.rs"]
mod tcpsummary;
/// Reads that do not return.
#[path = "cases/transit.rs"]
mod transit;
/// Data that waits in sockets; for root.
#[path = "cases/waiting.rs"]
mod waiting;
#[path = "cases/wedged.rs"]
mod wedged;
