//! Who a namespace belongs to, from all that is known of it.

use super::book::Told;
use super::cgroup::CgroupOwner;
use super::workload::{Role, SHORT_ID, Workload};
use netskoop_api::{EntityRef, Kind};
use std::path::PathBuf;
use std::sync::Arc;

/// What a source says of a workload, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The source.
    pub source: Arc<str>,
    /// What it says.
    pub told: Told,
}

impl Claimed {
    /// The workload.
    pub fn workload(&self) -> &Workload {
        &self.told.workload
    }
}

/// What is known of a namespace before it has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Inode number.
    pub inode: u32,
    /// Cookie of the namespace, which tells it from an earlier one with the same inode; 0 if it cannot be had.
    pub cookie: u64,
    /// Whether it is the node's own.
    pub host: bool,
    /// A live member, the one with the lowest pid.
    pub leader: Option<i32>,
    /// Its command name.
    pub comm: Option<String>,
    /// Its cgroup path.
    pub cgroup: Option<String>,
    /// Owners of the members' cgroups, the leader's first. A unit with processes in the node's own namespace is not among
    /// them: it does not own this one (`ip netns exec` from a service or a login).
    pub owners: Vec<CgroupOwner>,
    /// Names under `/run/netns`.
    pub mounts: Vec<String>,
    /// The file of the first of them, whose name need not be text.
    pub mount: Option<PathBuf>,
    /// What the sources say of workloads in it.
    pub claims: Vec<Claimed>,
    /// What the daemon calls it, if it is one of its own.
    pub guest: Option<Arc<str>>,
}

impl Facts {
    fn container(&self) -> Option<&str> {
        self.owners.iter().find_map(|owner| match owner {
            CgroupOwner::Container(containers) => Some(containers.own_id()),
            _ => None,
        })
    }
}

/// A name, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What sort of owner.
    pub kind: Kind,
    /// Its name; made unique later.
    pub name: String,
    /// Kubernetes namespace, for pods.
    pub namespace: Option<String>,
    /// Pod name, for pods.
    pub pod: Option<String>,
    /// Container id, where there is one.
    pub container_id: Option<Arc<str>>,
    /// Who says so: `containerd`, `cgroup`, `/run/netns`, `process`.
    pub source: Arc<str>,
    /// Whether a container runtime is likely to know a better name in a moment.
    pub awaited: bool,
}

impl Identity {
    fn new(kind: Kind, name: String, source: impl Into<Arc<str>>) -> Identity {
        let source = source.into();
        Identity { kind, name, namespace: None, pod: None, container_id: None, source, awaited: false }
    }

    /// The same as events carry it, before it is made unique.
    pub fn entity_ref(&self, netns: u32) -> EntityRef {
        let Identity { kind, name, namespace, pod, .. } = self.clone();
        EntityRef { kind, name, namespace, pod, netns }
    }

    /// The identity of a container or pod, by what its runtime says.
    fn of_workload(claimed: &Claimed) -> Identity {
        let (workload, source) = (claimed.workload(), Arc::clone(&claimed.source));
        let container_id = (workload.role == Role::Container).then(|| workload.id.clone());
        let Some(pod) = &workload.pod else {
            let awaited = !is_called(workload);
            let name = Identity::new(Kind::Container, workload.name.clone(), source);
            return Identity { container_id, awaited, ..name };
        };
        let (name, namespace) = match pod.namespace.as_str() {
            "" => (pod.name.clone(), None),
            namespace => (format!("{namespace}/{}", pod.name), Some(namespace.to_owned())),
        };
        Identity { namespace, pod: Some(pod.name.clone()), ..Identity::new(Kind::Pod, name, source) }
    }
}

/// Whether a container has a name: Docker's containers are known to containerd by their ids only.
pub(super) fn is_called(workload: &Workload) -> bool {
    !(workload.id.len() == 64 && workload.id.starts_with(&workload.name))
}

/// Asks all that can name it; the strongest kind wins (pod, container, unit, machine, netns file), the rest are named as
/// further sources.
pub fn identify(facts: &Facts) -> (Identity, Vec<Arc<str>>) {
    const ALL: [fn(&Facts) -> Option<Identity>; 5] = [by_runtime, host, by_cgroup, by_mount, by_process];
    if let Some(name) = &facts.guest {
        let source: Arc<str> = "self-test".into();
        return (Identity::new(Kind::Netns, name.to_string(), Arc::clone(&source)), vec![source]);
    }
    let mut found: Vec<Identity> = ALL.iter().filter_map(|name| name(facts)).collect();
    found.sort_by_key(|identity| (rank(identity.kind), identity.awaited));
    let mut sources: Vec<Arc<str>> = Vec::new();
    let claims = facts.claims.iter().filter(|_| !facts.host).map(|claimed| &claimed.source);
    for source in found
        .iter()
        .map(|identity| &identity.source)
        .take(1)
        .chain(claims)
        .chain(found.iter().map(|i| &i.source))
    {
        if !source.is_empty() && !sources.contains(source) {
            sources.push(Arc::clone(source));
        }
    }
    let best = found.into_iter().next();
    (best.unwrap_or_else(|| Identity::new(Kind::Unknown, format!("netns-{}", facts.inode), "")), sources)
}

fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Host => 0,
        Kind::Pod => 1,
        Kind::Container => 2,
        Kind::Unit => 3,
        Kind::Machine => 4,
        Kind::Netns => 5,
        Kind::Unknown => 6,
    }
}

fn host(facts: &Facts) -> Option<Identity> {
    facts.host.then(|| Identity::new(Kind::Host, "host".into(), "process 1"))
}

/// The pod or container that a runtime says is inside. Of several pods (which the kernel's numbers must have confused) the
/// one told of last; of several containers the one whose name is known, that joined nobody else's namespace, and that was
/// there first.
fn by_runtime(facts: &Facts) -> Option<Identity> {
    let inside = || facts.claims.iter().filter(|_| !facts.host);
    if let Some(newest) = inside().filter(|c| c.workload().in_pod()).max_by_key(|c| c.told.first) {
        return Some(Identity::of_workload(newest));
    }
    let containers = inside().filter(|c| matches!(c.workload().role, Role::Container | Role::Sandbox));
    let order = |claimed: &&Claimed| {
        let workload = claimed.workload();
        (!is_called(workload), !workload.joins.is_empty(), workload.pid.unwrap_or(i32::MAX))
    };
    containers.min_by_key(order).map(Identity::of_workload)
}

fn by_cgroup(facts: &Facts) -> Option<Identity> {
    let owners = || facts.owners.iter().filter(|_| !facts.host);
    let best = owners().min_by_key(|owner| match owner {
        CgroupOwner::Container(_) => 0,
        CgroupOwner::Unit(_) => 1,
        CgroupOwner::Machine(_) => 2,
    })?;
    Some(match best {
        CgroupOwner::Container(containers) => {
            let id = containers.own_id();
            let name = id.get(..SHORT_ID).unwrap_or(id).to_owned();
            let short = Identity::new(Kind::Container, name, "cgroup");
            Identity { container_id: Some(id.into()), awaited: true, ..short }
        }
        CgroupOwner::Unit(name) => Identity::new(Kind::Unit, name.to_string(), "cgroup"),
        CgroupOwner::Machine(name) => Identity::new(Kind::Machine, name.to_string(), "cgroup"),
    })
}

fn by_mount(facts: &Facts) -> Option<Identity> {
    let name = facts.mounts.first().filter(|_| !facts.host)?;
    let awaited = made_by_runtime(name) || facts.container().is_some();
    Some(Identity { awaited, ..Identity::new(Kind::Netns, name.clone(), "/run/netns") })
}

/// Whether a name under `/run/netns` is one that container runtimes make up: containerd's and CRI-O's `cni-<uuid>`,
/// podman's `netns-<uuid>`, CRI-O's older bare uuid, Docker's twelve digits.
fn made_by_runtime(name: &str) -> bool {
    let name = name.strip_prefix("cni-").or(name.strip_prefix("netns-")).unwrap_or(name);
    let is_uuid = name.len() == 36 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let is_id = matches!(name.len(), SHORT_ID | 64) && name.bytes().all(|b| b.is_ascii_hexdigit());
    is_uuid || is_id
}

fn by_process(facts: &Facts) -> Option<Identity> {
    let (pid, comm) = (facts.leader.filter(|_| !facts.host)?, facts.comm.as_deref()?);
    Some(Identity { awaited: true, ..Identity::new(Kind::Unknown, format!("{comm}[{pid}]"), "process") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::workload::Pod;
    use jiff::Timestamp;

    fn named(facts: &Facts) -> (Kind, String) {
        let (identity, _) = identify(facts);
        (identity.kind, identity.name)
    }

    fn facts() -> Facts {
        Facts { inode: 7, leader: Some(42), comm: Some("sleep".into()), ..Facts::default() }
    }

    fn claimed(source: &str, second: i64, workload: Workload) -> Claimed {
        let first = Timestamp::from_second(second).unwrap();
        Claimed { source: source.into(), told: Told { workload: Arc::new(workload), first, last: first } }
    }

    fn pod(name: &str) -> Workload {
        let pod = Pod { namespace: "shop".into(), name: name.into(), uid: String::new() };
        Workload {
            id: format!("{name}-id").into(),
            pod: Some(pod),
            role: Role::Sandbox,
            ..Workload::default()
        }
    }

    fn container(id: &str, name: &str, pid: i32) -> Workload {
        Workload { id: id.into(), name: name.into(), pid: Some(pid), ..Workload::default() }
    }

    #[test]
    fn the_strongest_source_names_it() {
        let unit = CgroupOwner::Unit("a.service".into());
        let unit = Facts { owners: vec![unit], mounts: vec!["blue".into()], ..facts() };
        assert_eq!(named(&unit), (Kind::Unit, "a.service".into()));
        let borrowed = Facts { owners: vec![], ..unit.clone() };
        assert_eq!(named(&borrowed), (Kind::Netns, "blue".into()));
        assert_eq!(named(&facts()), (Kind::Unknown, "sleep[42]".into()));
        assert_eq!(named(&Facts { inode: 7, ..Facts::default() }), (Kind::Unknown, "netns-7".into()));
        let inside = Facts { claims: vec![claimed("containerd", 1, pod("cart"))], ..unit };
        let (identity, sources) = identify(&inside);
        assert_eq!((identity.kind, &*identity.name), (Kind::Pod, "shop/cart"));
        assert_eq!(
            sources.iter().map(|s| &**s).collect::<Vec<_>>(),
            ["containerd", "cgroup", "/run/netns", "process"]
        );
    }

    #[test]
    fn the_host_is_the_host_whatever_else_is_known() {
        let host = Facts {
            host: true,
            mounts: vec!["x".into()],
            owners: vec![CgroupOwner::Unit("a.service".into())],
            claims: vec![claimed("containerd", 1, pod("proxy"))],
            ..facts()
        };
        assert_eq!(named(&host), (Kind::Host, "host".into()));
    }

    #[test]
    fn of_two_pods_the_newer() {
        let claims = vec![claimed("cri", 2, pod("new")), claimed("cri", 1, pod("old"))];
        assert_eq!(named(&Facts { claims, ..facts() }), (Kind::Pod, "shop/new".into()));
    }

    #[test]
    fn of_two_containers_the_one_that_made_the_namespace() {
        let joined = Workload { joins: vec!["x".into()], ..container("j", "sidecar", 5) };
        let claims = vec![claimed("docker", 1, joined), claimed("docker", 2, container("w", "web", 9))];
        assert_eq!(named(&Facts { claims, ..facts() }), (Kind::Container, "web".into()));
    }

    #[test]
    fn a_name_of_docker_is_better_than_an_id_of_containerd() {
        let id = "0123456789ab".repeat(6)[..64].to_owned();
        let bare = claimed("containerd", 1, container(&id, &id[..12], 9));
        let alone = identify(&Facts { claims: vec![bare.clone()], ..facts() }).0;
        assert!(alone.awaited, "{alone:?}");
        let claims = vec![bare, claimed("docker", 2, container(&id, "web", 9))];
        let both = identify(&Facts { claims, ..facts() }).0;
        assert_eq!((both.name.as_str(), &*both.source, both.awaited), ("web", "docker", false));
    }

    #[test]
    fn names_that_a_runtime_may_better() {
        let awaited = |facts: Facts| identify(&facts).0.awaited;
        let mount = |name: &str| Facts { mounts: vec![name.into()], ..Facts::default() };
        assert!(awaited(mount("cni-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f")));
        assert!(awaited(mount("netns-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f")));
        assert!(!awaited(mount("blue")) && !awaited(mount("cni-lab")));
        assert!(awaited(facts()));
        assert!(!awaited(Facts { claims: vec![claimed("cri", 1, pod("cart"))], ..facts() }));
    }
}
