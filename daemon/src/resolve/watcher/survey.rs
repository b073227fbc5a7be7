//! Takes stock: looks at every process and every mount, gives namespaces their slots and names, and publishes the picture.

use super::Worker;
use crate::kernel::bpf::same_cookie;
use crate::resolve::directory::{Directory, Namespace};
use crate::resolve::identity::{self, Facts};
use crate::resolve::{cgroup, scan};
use crate::sources::Access;
use crate::table::Subject;
use rustc_hash::FxHashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long, and how many, namespaces that are gone are remembered for events that are still on their way.
const DEPARTED_TIME: Duration = Duration::from_secs(10);
const DEPARTED_MAX: usize = 512;
/// Time between looks for counts that belong to nobody.
const SWEEP: Duration = Duration::from_secs(60);

impl Worker {
    /// Looks at every process and every mount, and publishes the picture if it changed.
    pub(super) fn full_scan(&mut self) {
        self.scan_at = None;
        self.last_scan = Instant::now();
        // Armed before the look: an exit during the scan is then told, and looked at afterwards.
        if let Some(hooks) = &self.hooks {
            self.namespaces.values().for_each(|ns| hooks.rearm(ns.facts.inode, ns.facts.cookie));
        }
        let scan::Processes { members, hidden } = match scan::processes(&self.roots.proc) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(path = %self.roots.proc.display(), %error, "cannot list the processes");
                self.health().error = Some(format!("{}: {error}", self.roots.proc.display()));
                return;
            }
        };
        let mut mounts: FxHashMap<u32, Vec<PathBuf>> = FxHashMap::default();
        for (inode, path) in scan::mounts(&self.roots.netns).files {
            mounts.entry(inode).or_default().push(path);
        }
        let mut health = self.health();
        (health.error, health.last_scan, health.hidden) = (None, Some(self.last_scan), hidden);
        drop(health);
        let mut changed =
            self.remove_vanished(|inode| members.contains_key(&inode) || mounts.contains_key(&inode));
        let mut units = None;
        let mut inodes: Vec<u32> = members.keys().chain(mounts.keys()).copied().collect();
        inodes.sort_unstable();
        inodes.dedup();
        for inode in inodes {
            let pids = members.get(&inode).map_or(&[][..], |members| &members.pids);
            let mounts = mounts.remove(&inode).unwrap_or_default();
            // One that went a moment ago is told by its own going, which starts the next scan.
            let Some(facts) = self.gather(inode, pids, &mounts, &members, &mut units) else { continue };
            changed |= self.put(facts, u32::try_from(pids.len()).unwrap_or(u32::MAX));
        }
        if changed {
            self.changed = true;
            self.publish();
        }
        self.sweep();
    }

    /// Now and then: counts that came for a namespace after it was forgotten, while the kernel took it apart.
    fn sweep(&mut self) {
        if self.last_sweep.elapsed() < SWEEP {
            return;
        }
        self.last_sweep = Instant::now();
        if let Some(hooks) = &self.hooks {
            hooks.retain(&self.namespaces.values().map(|ns| (ns.facts.inode, ns.facts.cookie)).collect());
        }
    }

    fn gather(
        &self,
        inode: u32,
        pids: &[i32],
        mounts: &[PathBuf],
        members: &FxHashMap<u32, scan::Members>,
        units: &mut Option<Vec<String>>,
    ) -> Option<Facts> {
        let old_namespace = self.namespaces.get(&inode);
        let leader = old_namespace
            .map(|ns| &ns.facts)
            .and_then(|facts| facts.leader)
            .filter(|pid| pids.contains(pid))
            .or(pids.iter().min().copied());
        // The name and cgroup of a leader seldom change once somebody else than itself has given it a name. Before, it is
        // on its way: a shell or a container runtime that has still to become what it starts.
        let settled = |ns: &&Arc<Namespace>| {
            let known = ns.identity.kind != netskoop_api::Kind::Unknown;
            known && ns.facts.leader == leader && leader.is_some()
        };
        let mut facts = match old_namespace.filter(settled) {
            Some(old) => Facts {
                mount: mounts.first().cloned(),
                mounts: mounts.iter().map(|path| file_name(path)).collect(),
                ..old.facts.clone()
            },
            None => self.facts(inode, leader, mounts)?,
        };
        let owner = facts.cgroup.as_deref().filter(|_| !facts.host).and_then(cgroup::owner);
        if let Some(cgroup::CgroupOwner::Unit(unit)) = owner {
            let units = units.get_or_insert_with(|| self.host_units(members));
            facts.cgroup_is_shared = units.contains(&unit);
        }
        Some(facts)
    }

    /// Units that have a process in the node's own namespace: they do not own another one.
    fn host_units(&self, members: &FxHashMap<u32, scan::Members>) -> Vec<String> {
        let host = scan::host_namespace(&self.roots.proc).and_then(|inode| members.get(&inode));
        let mut units: Vec<String> = host
            .iter()
            .flat_map(|host| &host.pids)
            .filter_map(|pid| match cgroup::owner(&scan::cgroup(&self.roots.proc, *pid)?)? {
                cgroup::CgroupOwner::Unit(unit) => Some(unit),
                _ => None,
            })
            .collect();
        units.sort();
        units.dedup();
        units
    }

    fn remove_vanished(&mut self, lives: impl Fn(u32) -> bool) -> bool {
        let gone: Vec<u32> = self.namespaces.keys().copied().filter(|inode| !lives(*inode)).collect();
        gone.iter().for_each(|inode| self.remove(*inode));
        !gone.is_empty()
    }

    /// A namespace is gone: its slot is free, and its name is kept for events that are still on their way.
    fn remove(&mut self, inode: u32) {
        let Some(ns) = self.namespaces.remove(&inode) else { return };
        self.free.push(ns.subject.0);
        let id = self.directory.load().by_inode(inode).map(|entry| entry.id.clone());
        self.departed.extend(id.map(|id| (Instant::now(), ns.facts.cookie, id)));
        if let Some(hooks) = &self.hooks {
            hooks.forget(inode, ns.facts.cookie);
        }
        self.changed = true;
    }

    /// Removes what had this inode if it was another namespace.
    pub(super) fn replace(&mut self, inode: u32, cookie: u64) {
        if self.namespaces.get(&inode).is_some_and(|old| !same_cookie(old.facts.cookie, cookie)) {
            self.remove(inode);
        }
    }

    /// Adds or updates a namespace; true if anything that shows changed.
    pub(super) fn put(&mut self, facts: Facts, processes: u32) -> bool {
        let inode = facts.inode;
        self.replace(inode, facts.cookie);
        let old = self.namespaces.get(&inode);
        if old.is_some_and(|old| old.facts == facts && old.processes == processes) {
            return false;
        }
        let (identity, sources) = identity::identify(&self.resolvers, &facts);
        let same = old.filter(|old| old.identity == identity);
        let (subject, birth, since) = match (same, old) {
            (Some(old), _) => (old.subject, old.birth, old.since.clone()),
            (None, Some(old)) => (old.subject, self.births + 1, old.since.clone()),
            (None, None) => (self.slot(), self.births + 1, jiff::Timestamp::now().to_string()),
        };
        self.births = self.births.max(birth);
        let access = match (facts.leader, facts.mount.clone()) {
            (Some(pid), None) => Access::Process(pid),
            (Some(pid), Some(path)) => Access::Either(pid, path),
            (None, path) => Access::Mount(path.unwrap_or_else(|| self.roots.netns.clone())),
        };
        let cookie = facts.cookie;
        let ns = Namespace { subject, facts, processes, identity, sources, access, since, birth };
        self.namespaces.insert(inode, Arc::new(ns));
        if let Some(hooks) = &self.hooks {
            hooks.known(inode, cookie);
        }
        true
    }

    /// A slot for a new namespace: the lowest that was given back before the last picture, else a new one.
    fn slot(&mut self) -> Subject {
        let next = u32::try_from(self.namespaces.len() + self.free.len() + 1).unwrap_or(u32::MAX);
        Subject(self.free.pop().unwrap_or(next))
    }

    /// Publishes the picture. Its generation grows only if the living changed: what departed matters to events alone.
    pub(super) fn publish(&mut self) {
        let grown = u64::from(std::mem::take(&mut self.changed));
        let generation = self.directory.load().generation() + grown;
        let namespaces: Vec<Arc<Namespace>> = self.namespaces.values().cloned().collect();
        let old = |at: &Instant| at.elapsed() > DEPARTED_TIME;
        while self.departed.len() > DEPARTED_MAX || self.departed.front().is_some_and(|(at, ..)| old(at)) {
            self.departed.pop_front();
        }
        let departed = self.departed.iter().map(|(_, cookie, id)| (*cookie, id.clone())).collect();
        self.directory.store(Arc::new(Directory::build(generation, &namespaces, departed, &self.node)));
        if grown > 0 {
            // Receivers may all be gone while the daemon stops.
            let _ = self.publish.send(generation);
        }
    }
}

pub(super) fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
