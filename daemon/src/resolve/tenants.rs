//! Pods and containers in the node's own network namespace. They share its counters with everything else there, so they
//! have no series of their own; what is known by process or cgroup is theirs.

use super::describe;
use super::directory::Namespace;
use super::identity::Claimed;
use super::labels;
use super::workload::{Role, Workload};
use netskoop_api::{EntityRef, Kind};
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One of them.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its unique name; `netns` is the node's own.
    pub id: Arc<EntityRef>,
    /// What the sources say of its containers, the sandbox first.
    pub claims: Vec<Claimed>,
    /// Labels of `netskoop_entity_info`.
    pub(super) info: Box<str>,
}

/// What makes containers one: their pod, or each for itself.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
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

/// The tenants of the node's own namespace. Names that are taken get the beginning of the uid or id appended.
pub(super) fn of<'a>(host: &'a Namespace, names: &mut FxHashSet<&'a str>) -> Vec<Tenant> {
    let mut groups: BTreeMap<Together<'_>, Vec<&Claimed>> = BTreeMap::new();
    for claimed in &host.facts.claims {
        if matches!(claimed.workload().role, Role::Container | Role::Sandbox) {
            groups.entry(together(claimed.workload())).or_default().push(claimed);
        }
    }
    let mut newest_first: Vec<Vec<&Claimed>> = groups.into_values().collect();
    newest_first.sort_by_key(|claims| std::cmp::Reverse(claims.iter().map(|c| c.told.first).min()));
    let mut taken: FxHashSet<String> = FxHashSet::default();
    let mut tenants = Vec::new();
    for mut claims in newest_first {
        // The sandbox first, and a name before an id that only stands for one.
        claims.sort_by_key(|c| {
            (c.workload().role != Role::Sandbox, c.workload().id.starts_with(&c.workload().name))
        });
        let Some(first) = claims.first() else { continue };
        let mut id = entity_ref(first.workload(), host.facts.inode);
        if names.contains(id.name.as_str()) || !taken.insert(id.name.clone()) {
            id.name = format!("{}~{}", id.name, tag(first.workload()));
        }
        let claims = claims.into_iter().cloned().collect();
        let mut tenant = Tenant { id: Arc::new(id), claims, info: Box::default() };
        tenant.info = labels::info_of(&describe::tenant(&tenant));
        tenants.push(tenant);
    }
    tenants
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
