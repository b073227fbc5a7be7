//! Pods and containers in the node's own network namespace. They share its counters with everything else there; what is
//! known by process or cgroup is theirs, and for that each has a subject.

use super::describe;
use super::directory::Namespace;
use super::extra::{About, Guard, Shown};
use super::identity::{Claimed, is_called};
use super::labels::{self, Labels};
use super::workload::{Role, Workload};
use crate::declare::Names;
use crate::table::Subject;
use netskoop_api::{EntityRef, Kind};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// So long the series of a container that has no name yet are withheld: one runtime knows it by its id, and another may
/// tell its name in a moment.
const GRACE: Duration = Duration::from_secs(3);

/// One of them.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its number, the same from picture to picture as long as it lives.
    pub subject: Subject,
    /// Its unique name; `netns` is the node's own.
    pub id: Arc<EntityRef>,
    /// What the sources say of its containers, the sandbox first.
    pub claims: Vec<Claimed>,
    /// When a picture first showed it.
    seen: Instant,
    labels: [Box<str>; 3],
    /// Values of the extra labels.
    pub(super) extra: Box<[Shown]>,
    /// Labels of `netskoop_entity_info`, made when the first scrape asks.
    info: OnceLock<Box<str>>,
}

impl Tenant {
    /// Labels of `netskoop_entity_info`.
    pub(super) fn info(&self) -> &str {
        self.info.get_or_init(|| labels::info(&describe::tenant(self)))
    }

    /// Labels of its series; `None` while a better name is waited for.
    pub(super) fn labels(&self, names: Names) -> Option<&str> {
        let has_name = |claimed: &Claimed| claimed.workload().in_pod() || is_called(claimed.workload());
        let settled = self.claims.iter().any(has_name) || self.seen.elapsed() >= GRACE;
        settled.then(|| &*self.labels[names as usize])
    }
}

/// All of one picture.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    /// The newest first.
    all: Vec<Tenant>,
    /// Where each is, sorted.
    places: Vec<(Subject, usize)>,
    /// How many subjects were ever given.
    given: u32,
}

impl Tenants {
    pub(super) fn all(&self) -> &[Tenant] {
        &self.all
    }

    pub(super) fn place(&self, subject: Subject) -> Option<usize> {
        let at = self.places.binary_search_by_key(&subject, |(known, _)| *known).ok()?;
        Some(self.places[at].1)
    }

    /// A subject that nobody has.
    fn give(&mut self, before: &Tenants) -> Subject {
        loop {
            let subject = Subject(Subject::FIRST_TENANT.0 | self.given);
            self.given = (self.given + 1) % Subject::FIRST_TENANT.0;
            let in_use = before.place(subject).is_some() || self.all.iter().any(|t| t.subject == subject);
            if subject.is_tenant() && !in_use {
                return subject;
            }
        }
    }
}

/// What is taken already in a picture.
pub(super) struct Given<'s, 'a> {
    /// Names of entities.
    pub(super) names: &'s mut FxHashSet<&'a str>,
    /// Namespaces and names of pods, by which the older generations of names know an entity.
    pub(super) pods: &'s mut FxHashSet<(Option<&'a str>, &'a str)>,
}

/// What makes containers one: their pod, or each for itself.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Together<'a> {
    Pod(&'a str, &'a str, &'a str),
    Container(&'a str),
}

fn together(workload: &Workload) -> Together<'_> {
    match &workload.pod {
        Some(pod) => Together::Pod(&pod.namespace, &pod.name, &pod.uid),
        None => Together::Container(&workload.id),
    }
}

/// The tenants of the node's own namespace. Names that are taken get the beginning of the uid or id appended. What was in
/// the picture before keeps its subject.
pub(super) fn of<'a>(
    host: &'a Namespace,
    taken: &mut Given<'_, 'a>,
    before: &Tenants,
    with: &Labels,
    guard: &mut Guard<'_>,
) -> Tenants {
    let known: FxHashMap<Together<'_>, &Tenant> = before
        .all
        .iter()
        .filter_map(|tenant| Some((together(tenant.claims.first()?.workload()), tenant)))
        .collect();
    let mut tenants = Tenants { given: before.given, ..Tenants::default() };
    let mut names: FxHashSet<String> = FxHashSet::default();
    for claims in groups(host) {
        let Some(first) = claims.first().map(|claimed| claimed.workload()) else { continue };
        let mut id = entity_ref(first, host.facts.inode);
        if taken.names.contains(id.name.as_str()) || !names.insert(id.name.clone()) {
            id.name = format!("{}~{}", id.name, tag(first));
        }
        let (namespace, pod) = match &first.pod {
            Some(pod) => (Some(pod.namespace.as_str()).filter(|name| !name.is_empty()), pod.name.as_str()),
            None => (None, first.name.as_str()),
        };
        let pod = match taken.pods.insert((namespace, pod)) {
            true => pod.to_owned(),
            false => format!("{pod}~{}", tag(first)),
        };
        let old = known.get(&together(first));
        let mut tenant = Tenant {
            subject: old.map_or_else(|| tenants.give(before), |old| old.subject),
            id: Arc::new(id),
            claims: claims.into_iter().cloned().collect(),
            seen: old.map_or_else(Instant::now, |old| old.seen),
            labels: Default::default(),
            extra: Box::default(),
            info: OnceLock::new(),
        };
        let shown = old.filter(|_| !with.changed).map(|old| &*old.extra).unwrap_or_default();
        render(&mut tenant, &pod, with, guard, shown);
        tenants.all.push(tenant);
    }
    tenants.places = tenants.all.iter().enumerate().map(|(at, tenant)| (tenant.subject, at)).collect();
    tenants.places.sort_unstable();
    tenants
}

fn render(tenant: &mut Tenant, pod: &str, with: &Labels, guard: &mut Guard<'_>, before: &[Shown]) {
    if !with.extra.labels.is_empty() {
        let entity = describe::tenant(tenant);
        let about = About { entity: &entity, claims: &tenant.claims, node: &with.node };
        tenant.extra = guard.admit(&about, before);
    }
    tenant.labels = labels::of_tenant(&tenant.id, pod, with, &tenant.extra);
}

/// What belongs together, the newest first; of each the sandbox first, and a name before an id that only stands for one.
fn groups(host: &Namespace) -> Vec<Vec<&Claimed>> {
    let mut groups: BTreeMap<Together<'_>, Vec<&Claimed>> = BTreeMap::new();
    for claimed in &host.facts.claims {
        if matches!(claimed.workload().role, Role::Container | Role::Sandbox) {
            groups.entry(together(claimed.workload())).or_default().push(claimed);
        }
    }
    let mut groups: Vec<Vec<&Claimed>> = groups.into_values().collect();
    groups.sort_by_key(|claims| std::cmp::Reverse(claims.iter().map(|c| c.told.first).min()));
    for claims in &mut groups {
        claims.sort_by_key(|c| {
            (c.workload().role != Role::Sandbox, c.workload().id.starts_with(&c.workload().name))
        });
    }
    groups
}

fn entity_ref(workload: &Workload, netns: u32) -> EntityRef {
    match &workload.pod {
        Some(pod) if !pod.namespace.is_empty() => EntityRef {
            kind: Kind::Pod,
            name: format!("{}/{}", pod.namespace, pod.name),
            namespace: Some(pod.namespace.clone()),
            pod: Some(pod.name.clone()),
            netns,
        },
        Some(pod) => EntityRef {
            kind: Kind::Pod,
            name: pod.name.clone(),
            namespace: None,
            pod: Some(pod.name.clone()),
            netns,
        },
        None => EntityRef {
            kind: Kind::Container,
            name: workload.name.clone(),
            namespace: None,
            pod: None,
            netns,
        },
    }
}

/// Tells two of one name apart.
fn tag(workload: &Workload) -> &str {
    let uid = workload.pod.as_ref().map(|pod| pod.uid.as_str()).filter(|uid| !uid.is_empty());
    let whole = uid.unwrap_or(&workload.id);
    whole.get(..8).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::book::Told;
    use crate::resolve::directory::Directory;
    use crate::resolve::directory::testing::namespace;
    use crate::resolve::identity::Facts;
    use crate::resolve::workload::Pod;
    use crate::sources::Owners;
    use jiff::Timestamp;

    fn claimed(id: &str, pod: Option<&str>, pid: i32) -> Claimed {
        let pod = pod.map(|name| Pod { namespace: "shop".into(), name: name.into(), uid: "u-1".into() });
        let (id, name) = (id.repeat(64), format!("c-{id}"));
        let workload = Workload { id: id.into(), name, pod, pid: Some(pid), ..Workload::default() };
        let first = Timestamp::from_second(i64::from(pid)).unwrap();
        Claimed { source: "test".into(), told: Told { workload: Arc::new(workload), first, last: first } }
    }

    fn picture(before: &Directory, claims: Vec<Claimed>) -> Directory {
        let host = Facts { inode: 1, host: true, leader: Some(1), claims, ..Facts::default() };
        let red = Facts { inode: 2, mounts: vec!["c-b".into()], ..Facts::default() };
        let all = [namespace(1, host, 1), namespace(2, red, 2)];
        let labels = Labels { node: "w7".into(), ..Labels::default() };
        Directory::build(before, before.generation() + 1, &all, vec![], &labels)
    }

    fn subject(directory: &Directory, name: &str) -> Subject {
        directory.find_tenant(name).unwrap().subject
    }

    #[test]
    fn a_tenant_keeps_its_subject_and_nobody_else_gets_it() {
        let first =
            picture(&Directory::default(), vec![claimed("a", Some("web"), 10), claimed("b", None, 11)]);
        let (web, other) = (subject(&first, "shop/web"), subject(&first, "c-b~bbbbbbbb"));
        assert!(web.is_tenant() && other.is_tenant() && web != other);
        let second = picture(&first, vec![claimed("c", None, 12), claimed("b", None, 11)]);
        assert_eq!(subject(&second, "c-b~bbbbbbbb"), other);
        assert!(![web, other].contains(&subject(&second, "c-c")));
        assert!(second.labels(web, Names::Netskoop).is_none(), "it is gone");
        let third = picture(&second, vec![claimed("a", Some("web"), 10)]);
        assert!(![web, other, subject(&second, "c-c")].contains(&subject(&third, "shop/web")));
        assert!(!Subject::UNATTRIBUTED.is_tenant() && !Subject::NODE.is_tenant());
    }

    #[test]
    fn tenants_have_labels_of_their_own_in_every_generation() {
        let directory =
            picture(&Directory::default(), vec![claimed("a", Some("web"), 10), claimed("b", None, 11)]);
        let of = |name: &str, names| directory.labels(subject(&directory, name), names).unwrap();
        assert_eq!(
            of("shop/web", Names::Netskoop),
            "kind=\"pod\",name=\"shop/web\",namespace=\"shop\",pod=\"web\""
        );
        assert_eq!(
            of("shop/web", Names::Kubeskoop),
            "k8s_node=\"w7\",k8s_namespace=\"shop\",k8s_pod=\"web\""
        );
        assert_eq!(
            of("shop/web", Names::Inspector),
            "namespace=\"shop\",pod=\"web\",node=\"w7\",netns=\"ns0\""
        );
        // A namespace has the plain name already.
        let both = |names| (of("c-b~bbbbbbbb", names), directory.labels(Subject(2), names).unwrap());
        for names in Names::ALL {
            assert_ne!(both(names).0, both(names).1);
        }
        assert_eq!(both(Names::Kubeskoop).0, "k8s_node=\"w7\",k8s_namespace=\"\",k8s_pod=\"c-b~bbbbbbbb\"");
    }

    #[test]
    fn a_process_is_known_by_its_cgroup_in_any_layout() {
        let directory = picture(&Directory::default(), vec![claimed("a", Some("web"), 10)]);
        let (id, web) = ("a".repeat(64), subject(&directory, "shop/web"));
        let unified = format!("0::/kubepods.slice/cri-containerd-{id}.scope\n");
        let hybrid = format!("9:name=systemd:/\n4:memory:/kubepods/pod1/{id}\n0::/\n");
        let old = format!("4:memory:/docker/{id}\n2:cpu,cpuacct:/docker/{id}\n");
        for text in [unified, hybrid, old] {
            assert_eq!(directory.of_cgroup(&text), Some(web), "{text}");
        }
        let stranger = format!("0::/docker/{}\n", "e".repeat(64));
        for text in [stranger.as_str(), "0::/system.slice/a.service\n", "0::/\n", ""] {
            assert_eq!(directory.of_cgroup(text), None, "{text}");
        }
        let mut told = Vec::new();
        Owners::tenants(&directory, &mut |id, pid, subject| told.push((id.len(), pid, subject)));
        assert_eq!(
            (told, directory.node_netns(), directory.of_netns(2)),
            (vec![(64, 10, web)], 1, Some(Subject(2)))
        );
    }

    #[test]
    fn a_container_without_a_name_waits_for_one() {
        let mut nameless = claimed("d", None, 10);
        let workload = Workload { name: "dddddddddddd".into(), ..nameless.workload().clone() };
        nameless.told.workload = Arc::new(workload);
        let directory = picture(&Directory::default(), vec![nameless]);
        let found = subject(&directory, "dddddddddddd");
        assert_eq!(directory.labels(found, Names::Netskoop), None);
        let mut later = directory.tenant(found).unwrap().clone();
        later.seen = Instant::now().checked_sub(GRACE).unwrap();
        assert!(later.labels(Names::Netskoop).is_some());
    }
}
