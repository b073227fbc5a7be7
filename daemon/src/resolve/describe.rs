//! Everything known of an entity, as the control socket shows it.

use super::cgroup::CgroupOwner;
use super::directory::{Entry, Namespace};
use super::identity::Claimed;
use super::pairs::Pairs;
use super::tenants::Tenant;
use super::workload::{Role, Workload};
use netskoop_api::{Claim, ContainerInfo, Entity, EntityRef};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Containers and units that are listed at most.
const MAX_LISTED: usize = 64;

/// A namespace with its final name.
pub(super) fn namespace(entry: &Entry) -> Entity {
    facts(&entry.id, &entry.namespace)
}

/// A namespace under some name.
pub(super) fn facts(id: &EntityRef, ns: &Namespace) -> Entity {
    let units = ns.facts.owners.iter().filter_map(|owner| match owner {
        CgroupOwner::Unit(unit) => Some(unit.to_string()),
        _ => None,
    });
    let mut addresses: Vec<IpAddr> = ns.addresses.clone();
    let host = ns.facts.host;
    // The node's own namespace has tenants; what is said of them is theirs.
    let claims: &[Claimed] = if host { &[] } else { &ns.facts.claims };
    add_addresses(&mut addresses, claims);
    Entity {
        processes: ns.processes,
        leader: ns.facts.leader,
        comm: ns.facts.comm.clone(),
        mounts: ns.facts.mounts.clone(),
        container_id: ns.identity.container_id.as_deref().map(str::to_owned),
        cgroup: ns.facts.cgroup.clone(),
        sources: ns.sources.iter().map(ToString::to_string).collect(),
        since: ns.since.clone(),
        units: if host { Vec::new() } else { units.take(MAX_LISTED).collect() },
        provisional: !ns.settled,
        ..claimed(id, claims, ns.identity.container_id.as_deref(), &addresses)
    }
}

/// Something that lives in the node's own namespace.
pub fn tenant(tenant: &Tenant) -> Entity {
    let mut addresses = Vec::new();
    add_addresses(&mut addresses, &tenant.claims);
    let mut sources: Vec<String> = tenant.claims.iter().map(|claimed| claimed.source.to_string()).collect();
    sources.dedup();
    let main = main_container(&tenant.claims, None);
    Entity {
        host_network: true,
        leader: main.and_then(|workload| workload.pid),
        container_id: main.filter(|w| !w.in_pod()).map(|workload| workload.id.to_string()),
        since: tenant.claims.iter().map(|c| c.told.first).min().unwrap_or_default().to_string(),
        sources,
        ..claimed(&tenant.id, &tenant.claims, None, &addresses)
    }
}

/// The pod's sandbox; of several containers without one, that by which they are named.
fn main_container<'a>(claims: &'a [Claimed], named_by: Option<&str>) -> Option<&'a Workload> {
    let workloads = || claims.iter().map(Claimed::workload);
    let sandbox = || workloads().find(|workload| workload.role == Role::Sandbox);
    let namesake = || workloads().find(|workload| Some(&*workload.id) == named_by);
    sandbox().or_else(namesake).or_else(|| workloads().next())
}

fn add_addresses(addresses: &mut Vec<IpAddr>, claims: &[Claimed]) {
    for address in claims.iter().flat_map(|claimed| &claimed.workload().addresses) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
}

/// What sources say, without what the kernel says.
fn claimed(id: &EntityRef, claims: &[Claimed], named_by: Option<&str>, addresses: &[IpAddr]) -> Entity {
    let main = main_container(claims, named_by);
    let pod = claims.iter().find_map(|claimed| claimed.workload().pod.as_ref());
    let described = claims.iter().map(Claimed::workload).find(|workload| !workload.description.is_empty());
    Entity {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        uid: pod.map(|pod| pod.uid.clone()).filter(|uid| !uid.is_empty()),
        containers: containers(claims, main),
        description: described.map(|workload| workload.description.clone()),
        labels: merged(main, claims, |workload| &workload.labels),
        annotations: merged(main, claims, |workload| &workload.annotations),
        claims: claims.iter().take(MAX_LISTED).map(claim).collect(),
        ..Entity::of(id.clone())
    }
}

/// Of the sandbox, where there is one; several sources may each know some of them.
fn merged(
    main: Option<&Workload>,
    claims: &[Claimed],
    part: fn(&Workload) -> &Pairs,
) -> BTreeMap<String, String> {
    let Some(main) = main else { return BTreeMap::new() };
    let same = claims.iter().map(Claimed::workload).filter(|workload| workload.id == main.id);
    same.flat_map(|workload| part(workload).iter()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Each container once, whoever told of it; the main one first, then by name.
fn containers(claims: &[Claimed], main: Option<&Workload>) -> Vec<ContainerInfo> {
    let mut found: BTreeMap<&str, ContainerInfo> = BTreeMap::new();
    for workload in claims.iter().map(Claimed::workload) {
        if !matches!(workload.role, Role::Container | Role::Sandbox) {
            continue;
        }
        let container = found.entry(&workload.id).or_insert_with(|| ContainerInfo {
            id: workload.id.to_string(),
            name: workload.name.clone(),
            image: String::new(),
            pid: None,
            sandbox: workload.role == Role::Sandbox,
        });
        // An id is all that containerd knows of Docker's containers.
        if workload.id.starts_with(&container.name) {
            container.name.clone_from(&workload.name);
        }
        if container.image.is_empty() {
            container.image.clone_from(&workload.image);
        }
        container.pid = container.pid.or(workload.pid);
    }
    let mut found: Vec<ContainerInfo> = found.into_values().collect();
    let is_main = |container: &ContainerInfo| main.is_some_and(|main| *main.id == *container.id);
    found.sort_by(|a, b| (!is_main(a), !a.sandbox, &a.name).cmp(&(!is_main(b), !b.sandbox, &b.name)));
    found.truncate(MAX_LISTED);
    found
}

fn claim(claimed: &Claimed) -> Claim {
    let workload = claimed.workload();
    let pod = workload.pod.as_ref().map(|pod| match pod.namespace.as_str() {
        "" => pod.name.clone(),
        namespace => format!("{namespace}/{}", pod.name),
    });
    let says = match (workload.role, pod) {
        (Role::Sandbox, Some(pod)) => format!("sandbox of {pod}"),
        (_, Some(pod)) => format!("container {} of {pod}", workload.name),
        (Role::Unit, None) => format!("unit {}", workload.name),
        (Role::Machine, None) => format!("machine {}", workload.name),
        (_, None) => format!("container {}", workload.name),
    };
    Claim {
        source: claimed.source.to_string(),
        says,
        since: claimed.told.first.to_string(),
        changed: claimed.told.last.to_string(),
    }
}
