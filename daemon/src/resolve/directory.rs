//! All namespaces of the node with their names and rendered labels, at one moment. Never changed, only replaced: readers
//! take an `Arc` and see one consistent picture however long they take.

use super::identity::{Facts, Identity};
use crate::declare::Names;
use crate::kernel::bpf::same_cookie;
use crate::sources::{Access, Target};
use crate::table::{Subject, escape};
use netskoop_api::{Entity, EntityRef, Kind};
use rustc_hash::{FxHashMap, FxHashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// One namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its slot. Slots are used again only after the picture without the old owner was published.
    pub subject: Subject,
    /// What is known of it.
    pub facts: Facts,
    /// Number of processes at the last full scan.
    pub processes: u32,
    /// Its name.
    pub identity: Identity,
    /// Who names it, strongest first.
    pub sources: Vec<&'static str>,
    /// The way in.
    pub access: Access,
    /// When it was first seen (RFC 3339).
    pub since: String,
    /// Counts namespaces as they are found, so that the newer of two is known.
    pub birth: u64,
}

/// A namespace with its final name.
#[derive(Debug)]
pub struct Entry {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Unique name and kind, as events carry it.
    pub id: EntityRef,
    labels: [Box<str>; 3],
}

impl Entry {
    /// The full description.
    pub fn describe(&self) -> Entity {
        let ns = &self.namespace;
        Entity {
            id: self.id.clone(),
            processes: ns.processes,
            leader: ns.facts.leader,
            comm: ns.facts.comm.clone(),
            mounts: ns.facts.mounts.clone(),
            container_id: ns.identity.container_id.clone(),
            cgroup: ns.facts.cgroup.clone(),
            addresses: Vec::new(),
            sources: ns.sources.iter().map(|s| (*s).to_owned()).collect(),
            since: ns.since.clone(),
        }
    }
}

/// Whose an event is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The owner of the namespace.
    pub entity: &'a EntityRef,
    /// Whether that is its name for good; else a better one is on its way.
    pub settled: bool,
}

/// A container that some source knows.
#[derive(Clone, Copy, Debug)]
pub struct ContainerRef<'a> {
    /// What it belongs to: its pod, or itself.
    pub entity: &'a EntityRef,
    /// Its name, in its pod.
    pub name: &'a str,
}

/// The picture.
#[derive(Debug, Default)]
pub struct Directory {
    generation: u64,
    slots: Vec<Option<Entry>>,
    by_inode: FxHashMap<u32, Subject>,
    host: Option<Subject>,
    unattributed: [Box<str>; 3],
    /// Namespaces that are gone: events that happened in them may still be on their way.
    departed: Vec<(u64, EntityRef)>,
}

impl Directory {
    /// Names everything and renders the labels. `node` is the node's name for the older generations.
    pub fn build(
        generation: u64,
        namespaces: &[Arc<Namespace>],
        departed: Vec<(u64, EntityRef)>,
        node: &str,
    ) -> Directory {
        let size = namespaces.iter().map(|ns| ns.subject.0 as usize + 1).max().unwrap_or(0);
        let mut slots: Vec<Option<Entry>> = Vec::new();
        slots.resize_with(size.max(1), || None);
        let mut newest_first: Vec<_> = namespaces.iter().collect();
        // The node keeps its name whatever others are called.
        newest_first.sort_by_key(|ns| (!ns.facts.host, std::cmp::Reverse(ns.birth)));
        let (mut names, mut kubeskoop) = (FxHashSet::default(), FxHashSet::default());
        for ns in newest_first {
            let id = unique(ns, &mut names);
            let labels = render_labels(&id, ns.facts.host, node, &mut kubeskoop);
            slots[ns.subject.0 as usize] = Some(Entry { namespace: Arc::clone(ns), id, labels });
        }
        Directory {
            generation,
            slots,
            by_inode: namespaces.iter().map(|ns| (ns.facts.inode, ns.subject)).collect(),
            host: namespaces.iter().find(|ns| ns.facts.host).map(|ns| ns.subject),
            unattributed: unattributed_labels(node),
            departed,
        }
    }

    /// Whose an event in this namespace is: also of one that is gone already.
    /// One that has the same inode but not the same cookie is another one.
    pub fn event_owner(&self, inode: u32, cookie: u64) -> Option<Owner<'_>> {
        let living = self.by_inode(inode).filter(|entry| same_cookie(entry.namespace.facts.cookie, cookie));
        let same = |(known, entity): &&(u64, EntityRef)| entity.netns == inode && same_cookie(*known, cookie);
        let departed = || self.departed.iter().rev().find(same).map(|(_, entity)| entity);
        let entity = living.map(|entry| &entry.id).or_else(departed)?;
        Some(Owner { entity, settled: true })
    }

    /// A container that some source knows, by its full id.
    pub fn container(&self, _id: &str) -> Option<ContainerRef<'_>> {
        None
    }

    /// Whose an address is, if it is one of this node's.
    pub fn by_address(&self, _address: IpAddr) -> Option<&EntityRef> {
        None
    }

    /// Grows with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Slot of the node's own namespace.
    pub fn host(&self) -> Subject {
        self.host.unwrap_or(Subject::NODE)
    }

    /// A namespace by slot.
    pub fn entry(&self, subject: Subject) -> Option<&Entry> {
        let subject = if subject == Subject::NODE { self.host() } else { subject };
        self.slots.get(subject.0 as usize)?.as_ref()
    }

    /// A namespace by inode.
    pub fn by_inode(&self, inode: u32) -> Option<&Entry> {
        self.entry(*self.by_inode.get(&inode)?)
    }

    /// Slot of an inode.
    pub fn subject(&self, inode: u32) -> Option<Subject> {
        self.by_inode.get(&inode).copied()
    }

    /// A namespace by name, by pod name alone, or by inode number.
    pub fn find(&self, text: &str) -> Option<&Entry> {
        let entries = || self.entries();
        entries()
            .find(|entry| entry.id.name == text)
            .or_else(|| self.by_inode(text.parse().ok()?))
            .or_else(|| entries().find(|entry| entry.id.pod.as_deref() == Some(text)))
            .or_else(|| {
                entries().find(|entry| entry.namespace.facts.mounts.iter().any(|mount| mount == text))
            })
    }

    /// All namespaces, by slot.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    /// All slots in use.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> + '_ {
        self.entries().map(|entry| entry.namespace.subject)
    }

    /// Rendered labels of a subject. Those of the node are the host's.
    pub fn labels(&self, subject: Subject, names: Names) -> Option<&str> {
        if subject == Subject::UNATTRIBUTED {
            return Some(&self.unattributed[names as usize]);
        }
        Some(&self.entry(subject)?.labels[names as usize])
    }

    /// What sources need to read every namespace.
    pub fn targets(&self) -> Vec<Target> {
        self.entries()
            .map(|entry| Target {
                subject: entry.namespace.subject,
                inode: entry.namespace.facts.inode,
                cookie: entry.namespace.facts.cookie,
                access: entry.namespace.access.clone(),
            })
            .collect()
    }
}

/// The newest of several namespaces with one name keeps it; the others get their inode appended.
fn unique(ns: &Namespace, names: &mut FxHashSet<String>) -> EntityRef {
    let mut name = ns.identity.name.clone();
    if !names.insert(name.clone()) {
        name = format!("{name}~{}", ns.facts.inode);
        names.insert(name.clone());
    }
    EntityRef {
        kind: ns.identity.kind,
        name,
        namespace: ns.identity.namespace.clone(),
        pod: ns.identity.pod.clone(),
        netns: ns.facts.inode,
    }
}

fn render_labels(id: &EntityRef, host: bool, node: &str, kubeskoop: &mut FxHashSet<String>) -> [Box<str>; 3] {
    let mut native = labels(&[("kind", id.kind.as_str()), ("name", &id.name)]);
    if let (Some(namespace), Some(pod)) = (&id.namespace, &id.pod) {
        native.push(',');
        native.push_str(&labels(&[("namespace", namespace), ("pod", pod)]));
    }
    let (namespace, pod) = match (&id.namespace, &id.pod) {
        (Some(namespace), Some(pod)) => (namespace.as_str(), pod.as_str()),
        _ => ("", id.name.as_str()),
    };
    let inode = format!("ns{}", id.netns);
    let mut second = if host {
        labels(&[("k8s_node", node), ("k8s_namespace", ""), ("k8s_pod", "")])
    } else {
        labels(&[("k8s_node", node), ("k8s_namespace", namespace), ("k8s_pod", pod)])
    };
    if !kubeskoop.insert(second.clone()) {
        second.push(',');
        second.push_str(&labels(&[("netns", &inode)]));
    }
    let first = if host {
        labels(&[("namespace", "hostNetwork"), ("pod", "hostNetwork"), ("node", node), ("netns", "ns0")])
    } else {
        labels(&[("namespace", namespace), ("pod", pod), ("node", node), ("netns", &inode)])
    };
    [native.into(), second.into(), first.into()]
}

/// Labels of what the kernel counted without telling a namespace.
fn unattributed_labels(node: &str) -> [Box<str>; 3] {
    [
        labels(&[("kind", Kind::Unknown.as_str()), ("name", "unattributed")]).into(),
        labels(&[("k8s_node", node), ("k8s_namespace", ""), ("k8s_pod", "unattributed")]).into(),
        labels(&[("namespace", ""), ("pod", "unattributed"), ("node", node), ("netns", "")]).into(),
    ]
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = Vec::new();
    for (i, (name, value)) in pairs.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        escape(&mut out, value.as_bytes());
        out.push(b'"');
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Number of namespaces by kind, for the status.
pub fn count_kinds(directory: &Directory) -> Vec<netskoop_api::KindCount> {
    const KINDS: [Kind; 7] =
        [Kind::Host, Kind::Pod, Kind::Container, Kind::Unit, Kind::Machine, Kind::Netns, Kind::Unknown];
    let count = |kind| directory.entries().filter(|entry| entry.id.kind == kind).count();
    KINDS
        .into_iter()
        .map(|kind| netskoop_api::KindCount {
            kind: kind.as_str().into(),
            count: u32::try_from(count(kind)).unwrap_or(u32::MAX),
        })
        .filter(|entry| entry.count > 0 || entry.kind == "unknown")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::identity;

    fn namespace(subject: u32, facts: Facts, birth: u64) -> Arc<Namespace> {
        let (identity, sources) = identity::identify(&identity::resolvers(), &facts);
        Arc::new(Namespace {
            subject: Subject(subject),
            processes: 1,
            identity,
            sources,
            access: Access::Process(facts.leader.unwrap_or(1)),
            since: String::new(),
            birth,
            facts,
        })
    }

    fn netns(subject: u32, inode: u32, name: &str, birth: u64) -> Arc<Namespace> {
        namespace(subject, Facts { inode, mounts: vec![name.into()], ..Facts::default() }, birth)
    }

    #[test]
    fn the_newest_of_two_with_one_name_keeps_it() {
        let directory = Directory::build(1, &[netns(1, 10, "a", 1), netns(2, 11, "a", 2)], vec![], "n");
        assert_eq!(directory.by_inode(11).unwrap().id.name, "a");
        assert_eq!(directory.by_inode(10).unwrap().id.name, "a~10");
        assert_eq!(directory.labels(Subject(1), Names::Netskoop), Some("kind=\"netns\",name=\"a~10\""));
    }

    #[test]
    fn labels_of_the_three_generations() {
        let host = Facts { inode: 1, host: true, leader: Some(1), ..Facts::default() };
        let directory =
            Directory::build(1, &[namespace(1, host, 1), netns(2, 2, "we\"ird", 2)], vec![], "w7");
        let of = |subject, names| directory.labels(Subject(subject), names).unwrap();
        assert_eq!(of(1, Names::Netskoop), "kind=\"host\",name=\"host\"");
        assert_eq!(of(1, Names::Kubeskoop), "k8s_node=\"w7\",k8s_namespace=\"\",k8s_pod=\"\"");
        assert_eq!(
            of(1, Names::Inspector),
            "namespace=\"hostNetwork\",pod=\"hostNetwork\",node=\"w7\",netns=\"ns0\""
        );
        assert_eq!(of(2, Names::Kubeskoop), "k8s_node=\"w7\",k8s_namespace=\"\",k8s_pod=\"we\\\"ird\"");
        assert_eq!(of(2, Names::Inspector), "namespace=\"\",pod=\"we\\\"ird\",node=\"w7\",netns=\"ns2\"");
        assert_eq!(
            directory.labels(Subject::NODE, Names::Netskoop),
            directory.labels(Subject(1), Names::Netskoop)
        );
    }

    #[test]
    fn it_is_found_by_name_inode_and_mount() {
        let directory = Directory::build(1, &[netns(1, 10, "a", 1), netns(2, 11, "a", 2)], vec![], "n");
        assert_eq!(directory.find("10").map(|e| e.id.netns), Some(10));
        assert_eq!(directory.find("a").map(|e| e.id.netns), Some(11));
        assert!(directory.find("b").is_none());
    }
}
