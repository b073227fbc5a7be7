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
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    names: FxHashMap<u64, u32>,
    pods: FxHashMap<u64, u32>,
}

fn hashes(ns: &Namespace) -> (u64, u64) {
    let pod = (ns.identity.namespace.as_deref(), labels::pod_name(&ns.identity));
    (FxBuildHasher.hash_one(ns.identity.name.as_str()), FxBuildHasher.hash_one(pod))
}

impl Taken {
    pub(super) fn of(namespaces: &[Arc<Namespace>]) -> Taken {
        let map = || FxHashMap::with_capacity_and_hasher(namespaces.len() + FEW, FxBuildHasher);
        let mut taken = Taken { names: map(), pods: map() };
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
    /// This picture with what is different in these namespaces, if that can be told from them alone.
    pub(super) fn patched(
        &self,
        generation: u64,
        namespaces: &[Arc<Namespace>],
        departed: &[Departed],
        labels: &Labels,
    ) -> Option<Directory> {
        let mut guard = Guard::new(&labels.extra, namespaces.len());
        let is_limited = guard.is_needed() || self.limited.iter().any(|(_, count)| *count > 0);
        if labels.changed || is_limited || self.host.is_none() {
            return None;
        }
        let (old, new) = self.differences(namespaces)?;
        let changed = || old.iter().map(|entry| &entry.namespace).chain(new.iter().copied());
        if changed().any(|ns| ns.facts.host || self.names_tenant(&ns.identity.name)) {
            return None;
        }
        let mut taken = self.taken.clone();
        old.iter().try_for_each(|entry| taken.give_back(&entry.namespace))?;
        new.iter().try_for_each(|ns| taken.take(ns))?;
        let (mut slots, mut by_inode) = (self.slots.clone(), self.by_inode.clone());
        for ns in old.iter().map(|entry| &entry.namespace) {
            slots[ns.subject.0 as usize] = None;
            by_inode.remove(&ns.facts.inode);
        }
        for ns in new {
            let slot = ns.subject.0 as usize;
            if slot >= slots.len() {
                slots.resize_with(slot + 1, || None);
            }
            let shown = self.known(ns, labels).map(|old| &*old.extra).unwrap_or_default();
            slots[slot] = Some(Arc::new(Entry::new(ns, true, true, labels, &mut guard, shown)));
            by_inode.insert(ns.facts.inode, ns.subject);
        }
        Some(Directory {
            generation,
            slots,
            by_inode,
            taken,
            host: self.host,
            unattributed: self.unattributed.clone(),
            departed: departed.to_vec(),
            tenants: Arc::clone(&self.tenants),
            limited: self.limited.clone(),
            ..Directory::default()
        })
    }

    /// What is in this picture and not in the next, and the other way round; nothing if that is much.
    fn differences<'a>(
        &self,
        namespaces: &'a [Arc<Namespace>],
    ) -> Option<(Vec<&Entry>, Vec<&'a Arc<Namespace>>)> {
        let (mut old, mut new, mut same) = (Vec::new(), Vec::new(), 0);
        let at = |ns: &Namespace| self.slots.get(ns.subject.0 as usize)?.as_deref();
        for ns in namespaces {
            if at(ns).is_some_and(|entry| Arc::ptr_eq(&entry.namespace, ns)) {
                same += 1;
            } else if new.len() < FEW {
                new.push(ns);
            } else {
                return None;
            }
        }
        old.extend(new.iter().filter_map(|ns| at(ns)));
        let gone = self.by_inode.len().checked_sub(same + old.len())?;
        if gone > FEW {
            return None;
        }
        if gone > 0 {
            let mut lives = vec![false; self.slots.len()];
            let places = namespaces.iter().map(|ns| ns.subject.0 as usize);
            places.filter(|place| *place < self.slots.len()).for_each(|place| lives[place] = true);
            old.extend(self.entries().filter(|entry| !lives[entry.namespace.subject.0 as usize]));
        }
        // Otherwise two namespaces had one inode, or one slot.
        (self.by_inode.len() == same + old.len()).then_some((old, new))
    }

    /// Whether a tenant has this name, or had it if it were free.
    fn names_tenant(&self, name: &str) -> bool {
        let like = |tenant: &str| {
            tenant.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
        };
        self.tenants.iter().any(|tenant| like(&tenant.id.name))
    }
}
