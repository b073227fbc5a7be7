//! Brings together what the sources of identity say and the namespaces that the kernel shows: where each workload lives.

use super::Worker;
use crate::resolve::book::{Key, Told, Wanted};
use crate::resolve::cgroup::{self, CgroupOwner};
use crate::resolve::identity::Claimed;
use crate::resolve::scan;
use crate::resolve::workload::{Role, Workload};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that nobody knew is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Questions that are remembered at most.
const MAX_ASKED: usize = 4096;
/// Namespaces that get another name in one picture, about: at the first full list all of the node's do.
const AT_ONCE: usize = 48;
/// Claims on one namespace at most; only the node's own has many.
const MAX_CLAIMS: usize = 4096;

/// Where workloads live.
#[derive(Default)]
pub(super) struct Places {
    /// Namespace of each workload that has one, and the process that proves it.
    placed: FxHashMap<Key, Place>,
    /// The other way round.
    by_netns: FxHashMap<u32, Vec<Key>>,
    /// Namespaces by the ids of those who own processes in them, as their cgroups say.
    by_cgroup: FxHashMap<Arc<str>, Vec<u32>>,
    /// The other way round.
    owners: FxHashMap<u32, Vec<CgroupOwner>>,
    /// What the sources were asked, and when.
    asked: FxHashMap<Arc<str>, Instant>,
}

/// A workload's namespace.
#[derive(Clone, Copy)]
struct Place {
    inode: u32,
    /// Its process and when that started, so that another one with the same pid is not taken for it.
    process: Option<(i32, u64)>,
}

impl Places {
    /// Whether a workload is known to live in another namespace than this one.
    fn lives_elsewhere(&self, key: &Key, inode: u32) -> bool {
        self.placed.get(key).is_some_and(|place| place.inode != inode)
    }

    fn take(&mut self, key: &Key) -> Option<Place> {
        let place = self.placed.remove(key)?;
        if let Some(keys) = self.by_netns.get_mut(&place.inode) {
            keys.retain(|known| known != key);
            if keys.is_empty() {
                self.by_netns.remove(&place.inode);
            }
        }
        Some(place)
    }

    fn put(&mut self, key: Key, place: Place) {
        let keys = self.by_netns.entry(place.inode).or_default();
        // There are a thousand of these lists, and hardly one of them grows beyond a few.
        keys.reserve_exact(1);
        keys.push(key.clone());
        self.placed.insert(key, place);
    }

    /// Whose cgroups the members of a namespace are in.
    pub(super) fn set_owners(&mut self, inode: u32, owners: &[CgroupOwner]) {
        let old = self.owners.get(&inode).map(Vec::as_slice).unwrap_or_default();
        if old == owners {
            return;
        }
        for id in old.iter().flat_map(ids) {
            if let Some(inodes) = self.by_cgroup.get_mut(id) {
                inodes.retain(|known| *known != inode);
                if inodes.is_empty() {
                    self.by_cgroup.remove(id);
                }
            }
        }
        for id in owners.iter().flat_map(ids) {
            self.by_cgroup.entry(Arc::clone(id)).or_default().push(inode);
        }
        match owners.is_empty() {
            true => drop(self.owners.remove(&inode)),
            false => drop(self.owners.insert(inode, owners.to_vec())),
        }
    }
}

/// What the sources say of a namespace.
pub(super) struct Said {
    pub(super) claims: Vec<Claimed>,
    /// Owners of processes inside that are only visitors.
    pub(super) visitors: Vec<CgroupOwner>,
    /// Whether it belongs to somebody who has another one that is more his own.
    pub(super) secondary: bool,
}

/// What a source may call an owner, the most trustworthy first.
fn ids(owner: &CgroupOwner) -> Vec<&Arc<str>> {
    match owner {
        CgroupOwner::Container(containers) => containers.known_ids().collect(),
        CgroupOwner::Unit(name) | CgroupOwner::Machine(name) => vec![name],
    }
}

/// Whether a workload is of the owner's sort, not only of its name.
fn is_of(owner: &CgroupOwner, role: Role) -> bool {
    match owner {
        CgroupOwner::Container(_) => matches!(role, Role::Container | Role::Sandbox),
        CgroupOwner::Unit(_) => role == Role::Unit,
        CgroupOwner::Machine(_) => role == Role::Machine,
    }
}

impl Worker {
    /// Takes in what the sources have said since the last time.
    pub(super) fn join_changed(&mut self) {
        if self.book.take_connected() {
            self.places.asked.clear();
            let all: Vec<_> = self.namespaces.values().cloned().collect();
            all.iter().for_each(|ns| self.ask_for(&ns.facts.owners));
        }
        let mut touched = FxHashSet::default();
        for key in self.book.take_changed() {
            self.rejoin(&key, &mut touched);
        }
        for key in std::mem::take(&mut self.displaced) {
            self.rejoin(&key, &mut touched);
        }
        for inode in touched {
            // A picture now and then, so that what gets a name is not kept twice for all of the node.
            if self.touched.len() >= AT_ONCE {
                self.publish();
            }
            self.refresh(inode);
        }
    }

    /// Finds where a workload lives now, and notes the namespaces for which that makes a difference.
    fn rejoin(&mut self, key: &Key, touched: &mut FxHashSet<u32>) {
        let before = self.places.take(key);
        touched.extend(before.map(|place| place.inode));
        touched.extend(self.places.by_cgroup.get(&key.1).into_iter().flatten());
        let Some(told) = self.book.told(key) else { return };
        let proof = before.and_then(|place| place.process);
        if let Some(place) = self.place(&told.workload, proof) {
            touched.insert(place.inode);
            self.places.put(key.clone(), place);
        }
    }

    fn place(&self, workload: &Workload, proof: Option<(i32, u64)>) -> Option<Place> {
        let by_process = workload.pid.and_then(|pid| {
            let start = scan::start_time(&self.roots.proc, pid)?;
            let is_another = proof.is_some_and(|(known, at)| known == pid && at != start);
            let inode = scan::namespace_of(&self.roots.proc, pid)?;
            let is_it = !is_another && !self.contradicts(workload, pid);
            is_it.then_some(Place { inode, process: Some((pid, start)) })
        });
        let by_file = || {
            // A path through a process says no more than its pid, which proves nothing.
            let file = workload.netns.as_deref().filter(|path| !path.starts_with(&self.roots.proc))?;
            let inode = scan::nsfs_inode(file)?;
            Some(Place { inode, process: None })
        };
        by_process.or_else(by_file)
    }

    /// Whether the cgroup of a process says that it belongs to another container: then the pid was used again.
    fn contradicts(&self, workload: &Workload, pid: i32) -> bool {
        let is_container = matches!(workload.role, Role::Container | Role::Sandbox);
        let path = self.cgroups.of(pid).filter(|_| is_container);
        path.is_some_and(|path| match cgroup::owner(&path) {
            Some(CgroupOwner::Container(containers)) => !containers.has(&workload.id),
            _ => false,
        })
    }

    /// What the sources say of a namespace. A container that lives elsewhere is a visitor where somebody else lives or the
    /// namespace has a name: agents and debuggers enter the namespaces of others. Where nobody else is, it is its own making.
    pub(super) fn said(&self, inode: u32, owners: &[CgroupOwner], mounted: bool) -> Said {
        let placed = self.places.by_netns.get(&inode).into_iter().flatten();
        let mut found: Vec<(Key, Told)> =
            placed.filter_map(|key| Some((key.clone(), self.book.told(key)?))).collect();
        let (somebodys, mut visitors, mut secondary) = (mounted || !found.is_empty(), Vec::new(), false);
        for owner in owners {
            let told = self.told_of(owner);
            let elsewhere = match told.is_empty() {
                true => self.at_home.contains(owner),
                false => told.iter().any(|(key, _)| self.places.lives_elsewhere(key, inode)),
            };
            if elsewhere && somebodys {
                visitors.push(owner.clone());
                continue;
            }
            secondary |= elsewhere;
            for (key, told) in told {
                if !found.iter().any(|(known, _)| *known == key) {
                    found.push((key, told));
                }
            }
        }
        // The same order each time, so that nothing seems to change.
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.truncate(MAX_CLAIMS);
        let claim = |(key, told): (Key, Told)| Claimed { source: self.book.name(key.0), told };
        // Kept as long as the namespace, so not in the larger memory of what it is made from.
        let mut claims = Vec::with_capacity(found.len());
        claims.extend(found.into_iter().map(claim));
        Said { claims, visitors, secondary }
    }

    /// What the sources say of an owner, by the first of its ids that any of them knows.
    fn told_of(&self, owner: &CgroupOwner) -> Vec<(Key, Told)> {
        let of_id = |id: &Arc<str>| -> Vec<(Key, Told)> {
            let told = self.book.by_id(id).into_iter();
            let told = told.filter(|(_, told)| is_of(owner, told.workload.role));
            told.map(|(source, told)| ((source, Arc::clone(id)), told)).collect()
        };
        ids(owner).into_iter().map(of_id).find(|told| !told.is_empty()).unwrap_or_default()
    }

    /// Asks the sources for owners that none of them has told of.
    pub(super) fn ask_for(&mut self, owners: &[CgroupOwner]) {
        for owner in owners {
            if self.told_of(owner).is_empty() {
                ids(owner).into_iter().for_each(|id| self.ask_about(owner, id));
            }
        }
    }

    fn ask_about(&mut self, owner: &CgroupOwner, id: &Arc<str>) {
        if self.places.asked.get(id).is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return;
        }
        if self.places.asked.len() >= MAX_ASKED {
            self.places.asked.clear();
        }
        self.places.asked.insert(Arc::clone(id), Instant::now());
        self.book.ask(&match owner {
            CgroupOwner::Container(_) => Wanted::Container(id.to_string()),
            CgroupOwner::Unit(_) => Wanted::Unit(id.to_string()),
            CgroupOwner::Machine(_) => Wanted::Machine(id.to_string()),
        });
    }

    /// A process of the namespace that is there now: the leader, another one that was seen, or a container's first.
    pub(super) fn living_member(&self, inode: u32) -> Option<i32> {
        let inside = |pid: &i32| scan::namespace_of(&self.roots.proc, *pid) == Some(inode);
        let namespace = self.namespaces.get(&inode);
        let leader = namespace.and_then(|ns| ns.facts.leader);
        let crowd = || self.crowds.get(&inode).into_iter().flat_map(super::crowd::Crowd::pids);
        let placed = self.places.by_netns.get(&inode).into_iter().flatten();
        let processes = placed.filter_map(|key| self.places.placed.get(key)?.process);
        leader
            .filter(inside)
            .or_else(|| processes.map(|(pid, _)| pid).find(inside))
            .or_else(|| crowd().filter(inside).min())
    }

    /// Workloads in the node's own namespace, which never goes: those whose process has ended are looked for again. Their
    /// runtime may be gone, and then nobody tells.
    pub(super) fn displace_ended(&mut self) {
        let Some(host) = self.host else { return };
        let keys = self.places.by_netns.get(&host).cloned().unwrap_or_default();
        let ended = |key: &Key| {
            let process = self.places.placed.get(key).and_then(|place| place.process);
            process.is_some_and(|(pid, start)| scan::start_time(&self.roots.proc, pid) != Some(start))
        };
        let ended: Vec<Key> = keys.into_iter().filter(ended).collect();
        self.displaced.extend(ended);
    }

    /// A namespace is gone, or another one has its inode: whoever lived there is looked for again.
    pub(super) fn displace(&mut self, inode: u32) {
        let keys = self.places.by_netns.get(&inode).cloned().unwrap_or_default();
        self.displaced.extend(keys);
    }
}
