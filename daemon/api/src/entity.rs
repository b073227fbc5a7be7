//! Who a network namespace belongs to.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Which sources named it, strongest first: `containerd`, `cgroup`, `/run/netns`, `process`.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Uid of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Whether it lives in the node's own network namespace. It then has no counters of its own, but events do name it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// Its containers, the pod's sandbox first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerInfo>,
    /// systemd units with processes in the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// What the unit says of itself (`Description=`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels of the pod, or of the container if it is in none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What each program that was asked says of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    /// Whether a better name may still come. Its series are withheld for that moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub provisional: bool,
    /// When the daemon first saw it (RFC 3339).
    pub since: String,
}

impl Entity {
    /// An entity of which nothing but its name is known.
    pub fn of(id: EntityRef) -> Entity {
        Entity {
            id,
            processes: 0,
            leader: None,
            comm: None,
            mounts: Vec::new(),
            container_id: None,
            cgroup: None,
            addresses: Vec::new(),
            sources: Vec::new(),
            uid: None,
            host_network: false,
            containers: Vec::new(),
            units: Vec::new(),
            description: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            claims: Vec::new(),
            provisional: false,
            since: String::new(),
        }
    }
}

/// A container of an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Full id.
    pub id: String,
    /// Name within the pod, or the runtime's name for it.
    pub name: String,
    /// Image, as the runtime names it; empty if it has none.
    #[serde(default)]
    pub image: String,
    /// First process, by the node's own pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Whether it only holds the pod's namespaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
}

/// What a source says of an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The source: `containerd`, `systemd`.
    pub source: String,
    /// What it says, a few words: `sandbox of kube-system/coredns-abc`.
    pub says: String,
    /// When it was first said (RFC 3339).
    pub since: String,
    /// When something of it last changed.
    pub changed: String,
}

/// Answer of `GET /v1/entities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entities {
    /// Grows with every change; pass it as `?after=` to wait for the next one.
    pub generation: u64,
    /// All entities, the host first, then by kind and name.
    pub entities: Vec<Entity>,
}
