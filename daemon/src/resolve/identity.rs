//! The seam for everything that can name a namespace, and the resolvers that need nothing but the kernel.

use super::cgroup::{self, CgroupOwner};
use netskoop_api::Kind;
use std::path::PathBuf;

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
    /// Whether processes of the same cgroup live in the node's own namespace: then the cgroup does not own this one
    /// (`ip netns exec` from a service or a login).
    pub cgroup_is_shared: bool,
    /// Names under `/run/netns`.
    pub mounts: Vec<String>,
    /// The file of the first of them, whose name need not be text.
    pub mount: Option<PathBuf>,
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
    pub container_id: Option<String>,
    /// Who says so: `cgroup`, `/run/netns`, `process`.
    pub source: &'static str,
}

impl Identity {
    fn plain(kind: Kind, name: String, source: &'static str) -> Identity {
        Identity { kind, name, namespace: None, pod: None, container_id: None, source }
    }
}

/// Something that can name namespaces. Resolvers that ask other programs keep a cache and answer from it.
pub trait Resolver: Send {
    /// Names the namespace if it can.
    fn identify(&self, facts: &Facts) -> Option<Identity>;
}

/// The resolvers in use.
pub fn resolvers() -> Vec<Box<dyn Resolver>> {
    vec![Box::new(Host), Box::new(Cgroup), Box::new(NetnsFile), Box::new(Process)]
}

/// Asks all resolvers; the strongest kind wins (pod, container, unit, machine, netns file), the rest are named as further
/// sources.
pub fn identify(resolvers: &[Box<dyn Resolver>], facts: &Facts) -> (Identity, Vec<&'static str>) {
    let mut found: Vec<Identity> = resolvers.iter().filter_map(|r| r.identify(facts)).collect();
    found.sort_by_key(|identity| rank(identity.kind));
    let sources = found.iter().map(|identity| identity.source).filter(|source| !source.is_empty()).collect();
    let best = found.into_iter().next();
    (best.unwrap_or_else(|| Identity::plain(Kind::Unknown, format!("netns-{}", facts.inode), "")), sources)
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

struct Host;

impl Resolver for Host {
    fn identify(&self, facts: &Facts) -> Option<Identity> {
        facts.host.then(|| Identity::plain(Kind::Host, "host".into(), "process 1"))
    }
}

struct Cgroup;

impl Resolver for Cgroup {
    fn identify(&self, facts: &Facts) -> Option<Identity> {
        if facts.host || facts.cgroup_is_shared {
            return None;
        }
        Some(match cgroup::owner(facts.cgroup.as_deref()?)? {
            CgroupOwner::Container(id) => {
                let name = id[..12].to_owned();
                Identity { container_id: Some(id), ..Identity::plain(Kind::Container, name, "cgroup") }
            }
            CgroupOwner::Unit(name) => Identity::plain(Kind::Unit, name, "cgroup"),
            CgroupOwner::Machine(name) => Identity::plain(Kind::Machine, name, "cgroup"),
        })
    }
}

struct NetnsFile;

impl Resolver for NetnsFile {
    fn identify(&self, facts: &Facts) -> Option<Identity> {
        let name = facts.mounts.first().filter(|_| !facts.host)?;
        Some(Identity::plain(Kind::Netns, name.clone(), "/run/netns"))
    }
}

struct Process;

impl Resolver for Process {
    fn identify(&self, facts: &Facts) -> Option<Identity> {
        let (pid, comm) = (facts.leader.filter(|_| !facts.host)?, facts.comm.as_deref()?);
        Some(Identity::plain(Kind::Unknown, format!("{comm}[{pid}]"), "process"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(facts: &Facts) -> (Kind, String) {
        let (identity, _) = identify(&resolvers(), facts);
        (identity.kind, identity.name)
    }

    fn facts() -> Facts {
        Facts { inode: 7, leader: Some(42), comm: Some("sleep".into()), ..Facts::default() }
    }

    #[test]
    fn the_strongest_source_names_it() {
        let unit =
            Facts { cgroup: Some("/system.slice/a.service".into()), mounts: vec!["blue".into()], ..facts() };
        assert_eq!(named(&unit), (Kind::Unit, "a.service".into()));
        let borrowed = Facts { cgroup_is_shared: true, ..unit };
        assert_eq!(named(&borrowed), (Kind::Netns, "blue".into()));
        assert_eq!(named(&facts()), (Kind::Unknown, "sleep[42]".into()));
        assert_eq!(named(&Facts { inode: 7, ..Facts::default() }), (Kind::Unknown, "netns-7".into()));
    }

    #[test]
    fn the_host_is_the_host_whatever_else_is_known() {
        let host =
            Facts { host: true, mounts: vec!["x".into()], cgroup: Some("/a.service".into()), ..facts() };
        assert_eq!(named(&host), (Kind::Host, "host".into()));
        let (_, sources) = identify(&resolvers(), &host);
        assert_eq!(sources, ["process 1"]);
    }
}
