//! All namespaces of the node with their names and rendered labels, at one moment. Never changed, only replaced: readers
//! take an `Arc` and see one consistent picture however long they take.

mod index;
mod owners;
mod patch;
mod slots;

use super::book::Told;
use super::describe;
use super::extra::{About, Guard, Shown};
use super::identity::{Claimed, Facts, Identity};
use super::labels::{self, Labels, Nobodys};
use super::tenants::{self, Given, Tenant, Tenants};
use crate::declare::Names;
use crate::kernel::bpf::same_cookie;
use crate::sources::{Access, Target};
use crate::table::Subject;
use index::{Index, Spot};
use netskoop_api::{Entity, EntityRef, Kind};
pub(crate) use patch::Taken;
use rustc_hash::{FxHashMap, FxHashSet};
use slots::Slots;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

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
    /// Whether that name is the best that is to be had, or none better came in time.
    pub settled: bool,
    /// Whether it is not its owner's main namespace: a container may make itself another one.
    pub secondary: bool,
    /// Who names it, strongest first.
    pub sources: Vec<Arc<str>>,
    /// Addresses configured inside, when they were last looked at.
    pub addresses: Vec<IpAddr>,
    /// The way in.
    pub access: Access,
    /// When it was first seen (RFC 3339).
    pub since: String,
    /// The same on the clock that only goes forward.
    pub seen: Instant,
    /// Since when nobody says any more what its name says.
    pub lost: Option<Instant>,
    /// Since when its leader leads.
    pub led: Instant,
    /// Counts namespaces as they are found or get another name, so that the newer of two with one name is known. It tells one
    /// from others that had the slot, and from itself under the name it had before.
    pub birth: u64,
}

/// A namespace with its final name.
#[derive(Debug)]
pub struct Entry {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// Unique name and kind, as events carry it.
    pub id: Arc<EntityRef>,
    labels: [Box<str>; 3],
    /// Labels of `netskoop_entity_info`, made when the first scrape asks.
    info: OnceLock<Box<str>>,
    /// Values of the extra labels.
    extra: Box<[Shown]>,
    /// Whether no newer namespace has the same pod, or name: the labels depend on it.
    is_only: bool,
}

impl Entry {
    fn new(
        ns: &Arc<Namespace>,
        is_first: bool,
        is_only: bool,
        labels: &Labels,
        guard: &mut Guard<'_>,
        before: &[Shown],
    ) -> Entry {
        let id = entity_ref(ns, is_first);
        let extra = match labels.extra.labels.is_empty() {
            true => Box::default(),
            false => {
                let entity = describe::facts(&id, ns);
                // What is said of the tenants of the node's own namespace is theirs.
                let claims: &[Claimed] = if ns.facts.host { &[] } else { &ns.facts.claims };
                guard.admit(&About { entity: &entity, claims, node: &labels.node }, before)
            }
        };
        Entry {
            labels: labels::render(&id, ns, is_only, labels, &extra),
            info: OnceLock::new(),
            extra,
            namespace: Arc::clone(ns),
            id: Arc::new(id),
            is_only,
        }
    }

    /// Labels of `netskoop_entity_info`.
    fn info(&self) -> &str {
        self.info.get_or_init(|| labels::info(&self.describe()))
    }

    /// The full description.
    pub fn describe(&self) -> Entity {
        describe::namespace(self)
    }
}

/// Whose an event is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The entity.
    pub entity: &'a EntityRef,
    /// Whether that name will stay; else a better one may come in a moment.
    pub settled: bool,
}

/// A container that some source knows.
#[derive(Clone, Copy, Debug)]
pub struct ContainerRef<'a> {
    /// What it is part of: its pod, or what its namespace is called.
    pub entity: &'a EntityRef,
    /// Its name in there.
    pub name: &'a str,
}

/// A namespace that is gone: events that happened in it may still be on their way.
pub type Departed = (u64, Arc<EntityRef>);

/// The picture.
#[derive(Debug, Default)]
pub struct Directory {
    generation: u64,
    slots: Slots,
    by_inode: Arc<FxHashMap<u32, Subject>>,
    host: Option<Subject>,
    nobodys: Arc<Nobodys>,
    departed: Vec<Departed>,
    tenants: Arc<Tenants>,
    /// Made when the first event asks: most pictures are replaced before.
    index: OnceLock<Index>,
    /// How many namespaces have too many others beside them for each extra label.
    limited: Vec<(String, usize)>,
}

impl Directory {
    /// Names everything and renders the labels. What has not changed is taken over from the picture before.
    pub fn build(
        before: &Directory,
        generation: u64,
        namespaces: &[Arc<Namespace>],
        departed: Vec<Departed>,
        labels: &Labels,
    ) -> Directory {
        let mut directory = Directory {
            generation,
            by_inode: Arc::new(namespaces.iter().map(|ns| (ns.facts.inode, ns.subject)).collect()),
            host: namespaces.iter().find(|ns| ns.facts.host).map(|ns| ns.subject),
            nobodys: Arc::new(Nobodys::new(labels)),
            departed,
            ..Directory::default()
        };
        let mut newest_first: Vec<_> = namespaces.iter().collect();
        // The node keeps its name whatever others are called.
        newest_first.sort_by_key(|ns| (!ns.facts.host, ns.secondary, std::cmp::Reverse(ns.birth)));
        let (mut names, mut pods) = (FxHashSet::default(), FxHashSet::default());
        // What belongs to nobody is shown under these names.
        for name in [labels::UNATTRIBUTED, labels::OTHER] {
            names.insert(name);
            pods.insert((None, name));
        }
        let host = namespaces.iter().find(|ns| ns.facts.host);
        let tenants = host.map_or(0, |host| host.facts.claims.len());
        let mut guard = Guard::new(&labels.extra, namespaces.len() + tenants);
        if guard.is_needed() {
            let known = namespaces.iter().filter_map(|ns| before.known(ns, labels));
            known.for_each(|old| guard.keep(&old.extra));
            let tenants = before.tenants().iter().filter(|_| !labels.changed);
            tenants.for_each(|tenant| guard.keep(&tenant.extra));
        }
        for ns in newest_first {
            // One that its owner only made beside its own never has the plain name.
            let is_first = !ns.secondary && names.insert(ns.identity.name.as_str());
            let is_only = pods.insert((ns.identity.namespace.as_deref(), labels::pod_name(&ns.identity)));
            let entry = before.reuse(ns, is_first, is_only, labels).unwrap_or_else(|| {
                let old = before.known(ns, labels).map(|old| &*old.extra).unwrap_or_default();
                Arc::new(Entry::new(ns, is_first, is_only, labels, &mut guard, old))
            });
            directory.slots.set(ns.subject, Some(entry));
        }
        if let Some(host) = host {
            let mut given = Given { names: &mut names, pods: &mut pods };
            directory.tenants = tenants::of(host, &mut given, &before.tenants, labels, &mut guard).into();
        }
        directory.limited = directory.count_limited(labels);
        directory
    }

    /// The same namespace in the picture before, if the same labels are shown there.
    fn known(&self, ns: &Namespace, labels: &Labels) -> Option<&Entry> {
        let old = self.slots.get(ns.subject)?;
        let (is, was) = (ns, &*old.namespace);
        let same =
            (is.facts.inode, is.facts.cookie, is.seen) == (was.facts.inode, was.facts.cookie, was.seen);
        (same && !labels.changed).then_some(old)
    }

    fn count_limited(&self, labels: &Labels) -> Vec<(String, usize)> {
        let is_other = |entry: &&Entry, at: usize| entry.extra.get(at) == Some(&Shown::Other);
        let count = |at| self.entries().filter(|entry| is_other(entry, at)).count();
        let labels = labels.extra.labels.iter().enumerate();
        labels.map(|(at, label)| (label.name.clone(), count(at))).collect()
    }

    /// The extra labels, each with the number of namespaces for which it shows that there were too many values.
    pub fn limited(&self) -> &[(String, usize)] {
        &self.limited
    }

    /// The entry of the picture before, if nothing that shows in it has changed.
    fn reuse(
        &self,
        ns: &Arc<Namespace>,
        is_first: bool,
        is_only: bool,
        labels: &Labels,
    ) -> Option<Arc<Entry>> {
        let old = self.slots.get(ns.subject)?;
        let same_name = (old.id.name == ns.identity.name) == is_first;
        let same = Arc::ptr_eq(&old.namespace, ns) && same_name && old.is_only == is_only;
        (same && !labels.changed).then(|| Arc::clone(old))
    }

    /// Finds containers and addresses.
    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(self))
    }

    /// Whose an event in this namespace is: also of one that is gone already.
    /// One that has the same inode but not the same cookie is another one.
    pub fn event_owner(&self, inode: u32, cookie: u64) -> Option<Owner<'_>> {
        let living = self.by_inode(inode).filter(|entry| same_cookie(entry.namespace.facts.cookie, cookie));
        if let Some(entry) = living {
            return Some(Owner { entity: &entry.id, settled: entry.namespace.settled });
        }
        let same = |(known, entity): &&Departed| entity.netns == inode && same_cookie(*known, cookie);
        let departed = self.departed.iter().rev().find(same);
        departed.map(|(_, entity)| Owner { entity, settled: true })
    }

    /// A container that a source knows, by its full id.
    pub fn container(&self, id: &str) -> Option<ContainerRef<'_>> {
        let (workload, spot) = self.index().container(id)?;
        let entity: &EntityRef = match spot {
            Spot::Namespace(subject) => &self.entry(subject)?.id,
            Spot::Tenant(at) => &self.tenants().get(at)?.id,
        };
        Some(ContainerRef { entity, name: &workload.name })
    }

    /// Whose address this is; `None` if nobody's on this node, or several have it.
    pub fn by_address(&self, address: IpAddr) -> Option<&EntityRef> {
        Some(&self.entry(self.index().address(address)?)?.id)
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
        self.slots.get(subject).map(|entry| &**entry)
    }

    /// A namespace by inode.
    pub fn by_inode(&self, inode: u32) -> Option<&Entry> {
        self.entry(*self.by_inode.get(&inode)?)
    }

    /// Slot of an inode.
    pub fn subject(&self, inode: u32) -> Option<Subject> {
        self.by_inode.get(&inode).copied()
    }

    /// A namespace by name, by inode number, by pod name alone, by a name under `/run/netns`, or by a container's id or
    /// the beginning of one.
    pub fn find(&self, text: &str) -> Option<&Entry> {
        let entries = || self.entries();
        entries()
            .find(|entry| entry.id.name == text)
            .or_else(|| self.by_inode(text.parse().ok()?))
            .or_else(|| entries().find(|entry| entry.id.pod.as_deref() == Some(text)))
            .or_else(|| {
                entries().find(|entry| entry.namespace.facts.mounts.iter().any(|mount| mount == text))
            })
            .or_else(|| entries().find(|entry| is_container(&entry.namespace.facts.claims, text)))
    }

    /// A pod or container in the node's own namespace, by its name, its pod's name, or a container's id.
    pub fn find_tenant(&self, text: &str) -> Option<&Tenant> {
        let tenants = || self.tenants().iter();
        tenants()
            .find(|tenant| tenant.id.name == text)
            .or_else(|| tenants().find(|tenant| tenant.id.pod.as_deref() == Some(text)))
            .or_else(|| tenants().find(|tenant| is_container(&tenant.claims, text)))
    }

    /// Slots whose namespace, or what is shown of it, is not as it was in another picture.
    pub fn changes<'a>(&'a self, before: &'a Directory) -> impl Iterator<Item = Subject> + 'a {
        self.slots.changes(&before.slots)
    }

    /// All namespaces, by slot.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter()
    }

    /// Pods and containers that live in the node's own namespace.
    pub fn tenants(&self) -> &[Tenant] {
        self.tenants.all()
    }

    /// One of them by its subject.
    pub fn tenant(&self, subject: Subject) -> Option<&Tenant> {
        self.tenants().get(self.tenants.place(subject)?)
    }

    /// All slots in use.
    pub fn subjects(&self) -> impl Iterator<Item = Subject> + '_ {
        self.entries().map(|entry| entry.namespace.subject)
    }

    /// Rendered labels of a subject. Those of the node are the host's. `None` while a better name is waited for: a series
    /// that is missing for a moment is better than one with a wrong name.
    pub fn labels(&self, subject: Subject, names: Names) -> Option<&str> {
        match subject {
            Subject::UNATTRIBUTED => return Some(&self.nobodys.unattributed[names as usize]),
            Subject::OTHER => return Some(&self.nobodys.other[names as usize]),
            _ => {}
        }
        if subject.is_tenant() {
            return self.tenant(subject)?.labels(names);
        }
        let entry = self.entry(subject).filter(|entry| entry.namespace.settled)?;
        Some(&entry.labels[names as usize])
    }

    /// Whether no other namespace has the same pod or name, so that labels need not say which one it is.
    pub fn is_only(&self, subject: Subject) -> bool {
        self.entry(subject).is_none_or(|entry| entry.is_only)
    }

    /// Labels of `netskoop_entity_info`: of all namespaces with a settled name, and of what lives in the node's own.
    pub fn infos(&self) -> impl Iterator<Item = &str> {
        let settled = self.entries().filter(|entry| entry.namespace.settled).map(Entry::info);
        settled.chain(self.tenants().iter().map(Tenant::info))
    }

    /// How many of these there are at most.
    pub fn infos_at_most(&self) -> u64 {
        (self.entries().count() + self.tenants().len()) as u64
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

/// Whether a text is the name or id of one of the containers, or the beginning of an id that is long enough to mean it.
fn is_container(claims: &[Claimed], text: &str) -> bool {
    let means = |Told { workload, .. }: &Told| {
        let by_id = *workload.id == *text || (text.len() >= 8 && workload.id.starts_with(text));
        // In pods many containers have one name.
        by_id || (!workload.in_pod() && workload.name == text)
    };
    claims.iter().any(|claimed| means(&claimed.told))
}

/// The newest of several namespaces with one name keeps it; the others get their inode appended.
fn entity_ref(ns: &Namespace, is_first: bool) -> EntityRef {
    let mut id = ns.identity.entity_ref(ns.facts.inode);
    if !is_first {
        id.name = format!("{}~{}", id.name, ns.facts.inode);
    }
    id
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

/// Pictures for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::resolve::identity;

    /// A namespace of which that much is known.
    pub(crate) fn namespace(subject: u32, facts: Facts, birth: u64) -> Arc<Namespace> {
        let (identity, sources) = identity::identify(&facts);
        Arc::new(Namespace {
            subject: Subject(subject),
            processes: 1,
            identity,
            settled: true,
            secondary: false,
            sources,
            addresses: vec![],
            access: Access::Process(facts.leader.unwrap_or(1)),
            since: String::new(),
            seen: Instant::now(),
            lost: None,
            led: Instant::now(),
            birth,
            facts,
        })
    }

    /// A picture of them.
    pub(crate) fn build(generation: u64, namespaces: &[Arc<Namespace>], node: &str) -> Directory {
        let labels = Labels { node: node.into(), ..Labels::default() };
        Directory::build(&Directory::default(), generation, namespaces, vec![], &labels)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{build, namespace};
    use super::*;

    fn netns(subject: u32, inode: u32, name: &str, birth: u64) -> Arc<Namespace> {
        namespace(subject, Facts { inode, mounts: vec![name.into()], ..Facts::default() }, birth)
    }

    #[test]
    fn the_newest_of_two_with_one_name_keeps_it() {
        let directory = build(1, &[netns(1, 10, "a", 1), netns(2, 11, "a", 2)], "n");
        assert_eq!(directory.by_inode(11).unwrap().id.name, "a");
        assert_eq!(directory.by_inode(10).unwrap().id.name, "a~10");
        assert_eq!(directory.labels(Subject(1), Names::Netskoop), Some("kind=\"netns\",name=\"a~10\""));
    }

    #[test]
    fn nobody_takes_the_name_of_what_belongs_to_nobody() {
        for (name, nobody) in [("unattributed", Subject::UNATTRIBUTED), ("other", Subject::OTHER)] {
            let directory = build(1, &[netns(1, 10, name, 1)], "n");
            for names in Names::ALL {
                let (own, nobodys) = (directory.labels(Subject(1), names), directory.labels(nobody, names));
                assert!(own.is_some() && own != nobodys, "{own:?}");
            }
            assert!(!directory.is_only(Subject(1)) && directory.is_only(nobody));
        }
    }

    #[test]
    fn labels_of_the_three_generations() {
        let host = Facts { inode: 1, host: true, leader: Some(1), ..Facts::default() };
        let directory = build(1, &[namespace(1, host, 1), netns(2, 2, "we\"ird", 2)], "w7");
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
        let directory = build(1, &[netns(1, 10, "a", 1), netns(2, 11, "a", 2)], "n");
        assert_eq!(directory.find("10").map(|e| e.id.netns), Some(10));
        assert_eq!(directory.find("a").map(|e| e.id.netns), Some(11));
        assert!(directory.find("b").is_none());
    }

    /// A picture that is made from the one before is the one that would be built.
    #[test]
    fn a_patched_picture_is_as_good_as_a_built_one() {
        const NAMES: [&str; 7] = ["a", "b", "c", "host", "shop/web", "shop/web~7", "d"];
        let labels = Labels::default();
        let host = Facts { inode: 1, host: true, leader: Some(1), ..Facts::default() };
        let mut all = vec![namespace(1, host, 1)];
        let mut before = Directory::build(&Directory::default(), 1, &all, vec![], &labels);
        let (mut random, mut patched) = (7_u32, 0);
        let mut next = |below: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as usize % below
        };
        for birth in 2..500 {
            let was = all.clone();
            for _ in 0..=next(2) {
                let slot = 2 + u32::try_from(next(6)).unwrap();
                all.retain(|ns| ns.subject != Subject(slot));
                if next(3) > 0 {
                    all.push(netns(slot, slot + 10 * u32::try_from(next(2)).unwrap(), NAMES[next(7)], birth));
                }
            }
            let inode = |ns: &Arc<Namespace>| ns.facts.inode;
            let mut inodes: Vec<u32> = was.iter().chain(&all).map(inode).collect();
            let at = |all: &[Arc<Namespace>], inode| {
                all.iter().find(|ns| ns.facts.inode == inode).map(Arc::as_ptr)
            };
            inodes.retain(|inode| at(&was, *inode) != at(&all, *inode));
            inodes.sort_unstable();
            inodes.dedup();
            let now = |inode: &u32| (*inode, all.iter().find(|ns| ns.facts.inode == *inode));
            let built = Directory::build(&Directory::default(), birth, &all, vec![], &labels);
            let mut taken = Taken::of(&was);
            let next = before.patched(&mut taken, birth, inodes.iter().map(now), &[], &labels);
            patched += u32::from(next.is_some());
            before = next.unwrap_or_else(|| Directory::build(&before, birth, &all, vec![], &labels));
            let show = |picture: &Directory| -> Vec<String> {
                picture
                    .entries()
                    .map(|entry| format!("{:?} {:?} {:?}", entry.id, entry.labels, entry.is_only))
                    .collect()
            };
            assert_eq!(show(&before), show(&built));
            all.iter().for_each(|ns| assert_eq!(before.subject(ns.facts.inode), Some(ns.subject)));
            assert_eq!(before.by_inode.len(), built.by_inode.len());
        }
        assert!(patched > 50, "{patched}");
    }
}
