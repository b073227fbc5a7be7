//! Where containers and addresses are in a picture, for those who ask by id or address.

use super::Directory;
use crate::resolve::identity::{Claimed, is_called};
use crate::resolve::workload::{Role, Workload};
use crate::table::Subject;
use rustc_hash::FxHashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Where something is in a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    Namespace(Subject),
    Tenant(usize),
}

/// Where containers and addresses are.
#[derive(Debug, Default)]
pub(super) struct Index {
    containers: FxHashMap<ById, Spot>,
    /// `None` for an address that several namespaces have.
    by_address: FxHashMap<IpAddr, Option<Subject>>,
}

/// A workload that is found by its id.
#[derive(Debug)]
struct ById(Arc<Workload>);

impl std::borrow::Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl std::hash::Hash for ById {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Index {
    /// Of all that is in a picture.
    pub(super) fn of(directory: &Directory) -> Index {
        let mut index = Index::default();
        for entry in directory.entries() {
            let ns = &entry.namespace;
            // A container is where it lives, not where it has made itself another namespace.
            if !ns.secondary && !ns.facts.host {
                index.add(&ns.facts.claims, Spot::Namespace(ns.subject));
            }
            for address in &ns.addresses {
                let shared = index.by_address.contains_key(address);
                index.by_address.insert(*address, (!shared).then_some(ns.subject));
            }
        }
        for (at, tenant) in directory.tenants().iter().enumerate() {
            index.add(&tenant.claims, Spot::Tenant(at));
        }
        index
    }

    /// A container by its full id.
    pub(super) fn container(&self, id: &str) -> Option<(&Workload, Spot)> {
        let (ById(workload), spot) = self.containers.get_key_value(id)?;
        Some((workload, *spot))
    }

    /// The only namespace with this address.
    pub(super) fn address(&self, address: IpAddr) -> Option<Subject> {
        *self.by_address.get(&address)?
    }

    /// Of two sources that know a container, the one that has a name for it counts.
    fn add(&mut self, claims: &[Claimed], spot: Spot) {
        for workload in claims.iter().map(|claimed| &claimed.told.workload) {
            let is_container = matches!(workload.role, Role::Container | Role::Sandbox);
            if is_container && (is_called(workload) || !self.containers.contains_key(&*workload.id)) {
                self.containers.remove(&*workload.id);
                self.containers.insert(ById(Arc::clone(workload)), spot);
            }
        }
    }
}
