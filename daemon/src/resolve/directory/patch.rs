//! A picture that differs from the one before in a few namespaces is made from it: nothing is named or rendered anew but
//! these. It must be the same as one that is built; where that is not sure it is not made.

use super::{Departed, Directory, Entry, Namespace};
use crate::resolve::extra::Guard;
use crate::resolve::labels::{self, Labels};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

/// More changes than that are not few.
const FEW: usize = 64;

/// How many namespaces have a name, and how many a pod, by their hashes. Two that share a hash are taken for one name:
/// then a picture is built that could have been patched.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    names: FxHashMap<u64, u32>,
    pods: FxHashMap<u64, u32>,
}

fn hashes(ns: &Namespace) -> (u64, u64) {
    let pod = (ns.identity.namespace.as_deref(), labels::pod_name(&ns.identity));
    (FxBuildHasher.hash_one(ns.identity.name.as_str()), FxBuildHasher.hash_one(pod))
}

impl Taken {
    /// Of a picture with these namespaces.
    pub(crate) fn of(namespaces: &[Arc<Namespace>]) -> Taken {
        let map = || FxHashMap::with_capacity_and_hasher(namespaces.len() + FEW, FxBuildHasher);
        let mut taken = Taken { names: map(), pods: map() };
        // What belongs to nobody is shown under these names.
        for name in [labels::UNATTRIBUTED, labels::OTHER] {
            taken.names.insert(FxBuildHasher.hash_one(name), 1);
            taken.pods.insert(FxBuildHasher.hash_one((None::<&str>, name)), 1);
        }
        for (name, pod) in namespaces.iter().map(|ns| hashes(ns)) {
            *taken.names.entry(name).or_default() += 1;
            *taken.pods.entry(pod).or_default() += 1;
        }
        taken
    }

    /// Gives back the names of a namespace; nothing if it is not the only one that has them.
    fn give_back(&mut self, ns: &Namespace) -> Option<()> {
        let (name, pod) = hashes(ns);
        (self.names.remove(&name)? == 1 && self.pods.remove(&pod)? == 1).then_some(())
    }

    /// Takes the names of a namespace; nothing if another has one of them.
    fn take(&mut self, ns: &Namespace) -> Option<()> {
        let (name, pod) = hashes(ns);
        let is_free = self.names.insert(name, 1).is_none() && self.pods.insert(pod, 1).is_none();
        is_free.then_some(())
    }
}

impl Directory {
    /// This picture with what is different in these namespaces, if that can be told from them alone. Of each its inode is
    /// given, and what it is now. `taken` is of this picture, and then of the one that is made; if none is, of neither.
    pub(crate) fn patched<'a>(
        &self,
        taken: &mut Taken,
        generation: u64,
        changes: impl ExactSizeIterator<Item = (u32, Option<&'a Arc<Namespace>>)> + Clone,
        departed: &[Departed],
        labels: &Labels,
    ) -> Option<Directory> {
        let entities = self.by_inode.len() + changes.len() + self.tenants().len();
        let mut guard = Guard::new(&labels.extra, entities);
        let is_limited = guard.is_needed() || self.limited.iter().any(|(_, count)| *count > 0);
        if labels.changed || is_limited || self.host.is_none() || changes.len() > FEW {
            return None;
        }
        let old = changes.clone().filter_map(|(inode, _)| self.by_inode(inode));
        let new = changes.filter_map(|(_, now)| now);
        let mut all = old.clone().map(|entry| &entry.namespace).chain(new.clone());
        if all.any(|ns| ns.facts.host || ns.secondary || self.names_tenant(&ns.identity.name)) {
            return None;
        }
        old.clone().try_for_each(|entry| taken.give_back(&entry.namespace))?;
        new.clone().try_for_each(|ns| taken.take(ns))?;
        let mut by_inode = Arc::clone(&self.by_inode);
        let place = |ns: &Arc<Namespace>| (ns.facts.inode, ns.subject);
        let before = old.clone().map(|entry| place(&entry.namespace));
        if before.clone().ne(new.clone().map(place)) {
            let by_inode = Arc::make_mut(&mut by_inode);
            for (inode, _) in before {
                by_inode.remove(&inode);
            }
            by_inode.extend(new.clone().map(place));
        }
        let mut slots = self.slots.clone();
        old.for_each(|entry| slots.set(entry.namespace.subject, None));
        for ns in new {
            let shown = self.known(ns, labels).map(|old| &*old.extra).unwrap_or_default();
            slots.set(ns.subject, Some(Arc::new(Entry::new(ns, true, true, labels, &mut guard, shown))));
        }
        Some(Directory {
            generation,
            slots,
            by_inode,
            host: self.host,
            nobodys: Arc::clone(&self.nobodys),
            departed: departed.to_vec(),
            tenants: Arc::clone(&self.tenants),
            limited: self.limited.clone(),
            ..Directory::default()
        })
    }

    /// Whether a tenant has this name, or had it if it were free.
    fn names_tenant(&self, name: &str) -> bool {
        let like = |tenant: &str| {
            tenant.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
        };
        self.tenants().iter().any(|tenant| like(&tenant.id.name))
    }
}
