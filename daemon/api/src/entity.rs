//! Who a network namespace belongs to.

use serde::{Deserialize, Serialize};

/// What sort of thing owns a namespace. Also the value of the `kind` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The node's own namespace, that of process 1.
    Host,
    /// A Kubernetes pod.
    Pod,
    /// A container that belongs to no pod.
    Container,
    /// A systemd unit with a namespace of its own.
    Unit,
    /// A machine registered with systemd-machined, or an nspawn container.
    Machine,
    /// A namespace named with `ip netns add`.
    Netns,
    /// Nobody is known to own it. An old client also takes kinds that it does not know for this.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// The word used in labels, JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Host => "host",
            Kind::Pod => "pod",
            Kind::Container => "container",
            Kind::Unit => "unit",
            Kind::Machine => "machine",
            Kind::Netns => "netns",
            Kind::Unknown => "unknown",
        }
    }
}

/// The short form of an entity that events carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityRef {
    /// What sort of thing it is.
    pub kind: Kind,
    /// Unique name at the time of the event: `kube-system/coredns-abc`, `nginx.service`, `blue`, `host`.
    pub name: String,
    /// Kubernetes namespace, for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod name, for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Inode number of the network namespace.
    pub netns: u32,
}

/// Everything known of an entity: `/v1/entities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    /// Identity, as in events.
    #[serde(flatten)]
    pub id: EntityRef,
    /// Number of live processes seen in the namespace at the last scan.
    pub processes: u32,
    /// Process whose `/proc/<pid>/net` is read; absent when only a mount holds the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<i32>,
    /// `comm` of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Names under `/run/netns` that point at the namespace.
    #[serde(default)]
    pub mounts: Vec<String>,
    /// Container id from the cgroup path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// cgroup path of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Addresses configured inside, without loopback and link-local ones.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Which sources named it, strongest first: `cgroup`, `/run/netns`, `process`.
    #[serde(default)]
    pub sources: Vec<String>,
    /// When the daemon first saw it (RFC 3339).
    pub since: String,
}

/// Answer of `GET /v1/entities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entities {
    /// Grows with every change; pass it as `?after=` to wait for the next one.
    pub generation: u64,
    /// All entities, the host first, then by kind and name.
    pub entities: Vec<Entity>,
}
