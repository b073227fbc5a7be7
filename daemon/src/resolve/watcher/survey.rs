//! Takes stock: looks at every process and every mount, gives namespaces their slots and names, and publishes the picture.

use super::again::Again;
use super::mounts::Mounts;
use super::{GRACE, SHORT_GRACE, Worker};
use crate::kernel::bpf::same_cookie;
use crate::kernel::procfs::addresses;
use crate::resolve::cgroup::CgroupOwner;
use crate::resolve::directory::{Directory, Namespace, Taken};
use crate::resolve::identity::{self, Facts, Identity};
use crate::resolve::scan;
use crate::sources::Access;
use crate::table::Subject;
use netskoop_api::Kind;
use rustc_hash::FxHashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long, and how many, namespaces that are gone are remembered for events that are still on their way.
const DEPARTED_TIME: Duration = Duration::from_secs(10);
const DEPARTED_MAX: usize = 512;
/// Addresses are configured a moment after a namespace is made.
const ADDRESSES_COME: Duration = Duration::from_secs(10);
/// Before that, one that has no process yet has no address either.
const ADDRESSES_FIRST: Duration = Duration::from_millis(500);
/// Namespaces whose addresses one scan looks at.
const ADDRESSES_AT_ONCE: usize = 64;
/// Time between looks for counts that belong to nobody.
const SWEEP: Duration = Duration::from_secs(60);

impl Worker {
    /// Looks at every process and every mount, and publishes the picture if it changed.
    pub(super) fn full_scan(&mut self) {
        (self.scan_at, self.missing) = (None, 0);
        self.last_scan = Instant::now();
        self.host = scan::host_namespace(&self.roots.proc);
        // Armed before the look: an exit during the scan is then told, and looked at afterwards.
        self.namespaces.values().for_each(|ns| self.rearm(ns));
        let scan::Processes { members, hidden } = match scan::processes(&self.roots.proc) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(path = %self.roots.proc.display(), %error, "cannot list the processes");
                self.health().error = Some(format!("{}: {error}", self.roots.proc.display()));
                return;
            }
        };
        let mut files = scan::mounts(&self.roots.netns);
        files.extend(scan::all_mounts(&self.roots.proc));
        self.mounts = Mounts::new(files);
        let mut health = self.health();
        (health.error, health.last_scan, health.hidden) = (None, Some(self.last_scan), hidden);
        drop(health);
        self.see_guests_off();
        self.changed |= self.remove_vanished(&members);
        for (inode, found) in &members {
            self.crowds.entry(*inode).or_default().set(&self.cgroups, &found.pids);
        }
        self.crowds.retain(|inode, _| members.contains_key(inode));
        self.at_home = self.owners_at_home();
        self.displace_ended();
        self.join_changed();
        let guests = self.guests.iter().map(|guest| guest.inode);
        let mut inodes: Vec<u32> =
            members.keys().copied().chain(self.mounts.inodes()).chain(guests).collect();
        inodes.sort_unstable();
        inodes.dedup();
        (self.doubtful, self.scanning) = (true, true);
        for inode in inodes {
            let pids = members.get(&inode).map_or(&[][..], |members| &members.pids);
            let old = self.namespaces.get(&inode).and_then(|ns| ns.facts.leader);
            let guest = || self.guest(inode).map(|guest| guest.thread);
            let leader = old.filter(|pid| pids.contains(pid)).or(pids.iter().min().copied()).or_else(guest);
            // One that went a moment ago is told by its own going, which starts the next scan.
            self.changed |= self.look(inode, leader);
        }
        (self.doubtful, self.scanning) = (false, false);
        self.addresses_of_some();
        self.sweep();
        self.scan_time = self.last_scan.elapsed();
        if self.changed {
            self.publish();
        }
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

    /// Owners of processes in the node's own namespace.
    fn owners_at_home(&self) -> Vec<CgroupOwner> {
        let host = self.host.and_then(|inode| self.crowds.get(&inode));
        host.map(|crowd| crowd.owners(None)).unwrap_or_default()
    }

    fn remove_vanished(&mut self, members: &FxHashMap<u32, scan::Members>) -> bool {
        let is_guest = |inode: u32| self.guests.iter().any(|guest| guest.inode == inode);
        let lives = |inode: &u32| {
            members.contains_key(inode) || !self.mounts.of(*inode).is_empty() || is_guest(*inode)
        };
        let gone: Vec<u32> = self.namespaces.keys().copied().filter(|inode| !lives(inode)).collect();
        gone.iter().for_each(|inode| self.remove(*inode));
        !gone.is_empty()
    }

    /// A namespace is gone: its slot is free, and its name is kept for events that are still on their way.
    fn remove(&mut self, inode: u32) {
        let Some(ns) = self.namespaces.remove(&inode) else { return };
        self.touched.insert(inode);
        self.free.push(ns.subject.0);
        self.places.set_owners(inode, &[]);
        self.crowds.remove(&inode);
        self.displace(inode);
        // The published picture may still show the one that had this inode before.
        let published = self.directory.load();
        let same = published.by_inode(inode).filter(|entry| entry.namespace.birth == ns.birth);
        let id = same.map_or_else(|| Arc::new(ns.identity.entity_ref(inode)), |entry| Arc::clone(&entry.id));
        self.departed.push_back((Instant::now(), ns.facts.cookie, id));
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

    /// Somebody tells of a namespace. The news may be late: then the one that is there now has got the inode after it.
    pub(super) fn hear_of(&mut self, inode: u32, cookie: u64) {
        if !self.is_still_there(inode) {
            self.replace(inode, cookie);
        }
    }

    /// Whether an inode is still that of the namespace that is known to have it.
    fn is_still_there(&self, inode: u32) -> bool {
        let Some(known) = self.namespaces.get(&inode).map(|ns| ns.facts.cookie) else { return false };
        known != 0 && self.cookie(inode, self.living_member(inode), self.mounts.of(inode)) == Some(known)
    }

    /// Looks at a namespace: gathers what is known of it, names it, and keeps that. True if anything that shows changed.
    pub(super) fn look(&mut self, inode: u32, leader: Option<i32>) -> bool {
        let Some(mut facts) = self.facts(inode, leader) else { return false };
        self.replace(inode, facts.cookie);
        let mut owners = self.crowds.get(&inode).map(|crowd| crowd.owners(leader)).unwrap_or_default();
        // A unit with a process in the node's own namespace owns no other one (`ip netns exec` from a service or a login),
        // and the owners of the node's own processes say nothing of it.
        let stays_home =
            |owner: &CgroupOwner| matches!(owner, CgroupOwner::Unit(_)) && self.at_home.contains(owner);
        owners.retain(|owner| !facts.host && !stays_home(owner));
        self.places.set_owners(inode, &owners);
        let said = self.said(inode, &owners, !facts.mounts.is_empty());
        self.ask_for(&owners);
        owners.retain(|owner| !said.visitors.contains(owner));
        (facts.owners, facts.claims) = (owners, said.claims);
        self.put(facts, said.secondary)
    }

    /// Adds or updates a namespace; true if anything that shows changed.
    pub(super) fn put(&mut self, facts: Facts, secondary: bool) -> bool {
        let inode = facts.inode;
        let processes =
            self.crowds.get(&inode).map_or(0, |crowd| u32::try_from(crowd.len()).unwrap_or(u32::MAX));
        let old = self.namespaces.get(&inode).cloned();
        let seen = old.as_ref().map_or_else(Instant::now, |old| old.seen);
        let (identity, sources, lost) = named(&facts, old.as_deref());
        let settled = self.is_settled(&identity, seen)
            || old.as_ref().is_some_and(|old| old.settled && old.identity == identity);
        let addresses = self.addresses(&facts, old.as_deref());
        if let Some(old) = &old {
            let same = old.facts == facts && old.processes == processes && old.secondary == secondary;
            let same = same && old.identity == identity && old.lost == lost;
            if same && old.settled == settled && old.addresses == addresses {
                return false;
            }
        }
        let same_leader = old.as_ref().filter(|old| old.facts.leader == facts.leader);
        let led = same_leader.map_or_else(Instant::now, |old| old.led);
        // Who says so, and of which container a pod or another owner is known, may change while what is shown does not.
        let shown = identity.entity_ref(inode);
        let same_name = old.as_ref().filter(|old| old.identity.entity_ref(inode) == shown);
        let subject = old.as_ref().map_or_else(|| self.slot(), |old| old.subject);
        // What a scan finds is not among those that are said to be made after it began.
        self.missing -= i64::from(old.is_none() && !self.scanning);
        let birth = same_name.map_or(self.births + 1, |old| old.birth);
        let since = old.as_ref().map_or_else(|| jiff::Timestamp::now().to_string(), |old| old.since.clone());
        self.births = self.births.max(birth);
        let access = self.access(&facts);
        let waits = (!settled).then(|| seen + grace(&identity)).or(lost.map(|lost| lost + GRACE));
        self.look_later(inode, old.is_none().then_some(&identity), waits);
        let ns = Arc::new(Namespace {
            subject,
            facts,
            processes,
            identity,
            settled,
            secondary,
            sources,
            addresses,
            access,
            since,
            seen,
            lost,
            led,
            birth,
        });
        self.namespaces.insert(inode, Arc::clone(&ns));
        self.touched.insert(inode);
        self.tell_known(&ns);
        if same_leader.is_none() {
            self.mind_leader(&ns);
        }
        true
    }

    /// The way into a namespace.
    fn access(&self, facts: &Facts) -> Access {
        match (facts.leader, facts.mount.clone()) {
            (Some(pid), None) => Access::Process(pid),
            (Some(pid), Some(path)) => Access::Either(pid, path),
            (None, path) => Access::Mount(path.unwrap_or_else(|| self.roots.netns.clone())),
        }
    }

    /// Only from now on the end of this leader is told: one that has ended already is looked for again.
    fn mind_leader(&mut self, ns: &Namespace) {
        let Some(pid) = ns.facts.leader.filter(|_| self.is_told()) else { return };
        let inode = ns.facts.inode;
        if scan::namespace_of(&self.roots.proc, pid) == Some(inode) {
            return self.await_end(inode, pid, 0);
        }
        match ns.facts.mount {
            Some(_) => self.again.push((Instant::now(), Again::Namespace { inode })),
            None => self.scan_soon(),
        }
    }

    /// Whether to show a namespace under this name, or to wait for a better one.
    fn is_settled(&self, identity: &Identity, seen: Instant) -> bool {
        !identity.awaited || seen.elapsed() >= grace(identity) || !self.book.is_attended()
    }

    /// Addresses inside, looked at anew while the namespace is young.
    fn addresses(&self, facts: &Facts, old: Option<&Namespace>) -> Vec<IpAddr> {
        match old {
            Some(old) if old.seen.elapsed() > ADDRESSES_COME => old.addresses.clone(),
            // One without a process has just been made. It is looked at again.
            _ if facts.leader.is_none() && !self.scanning && is_new(old) => {
                old.map(|old| old.addresses.clone()).unwrap_or_default()
            }
            _ => self.look_up_addresses(facts),
        }
    }

    fn look_up_addresses(&self, facts: &Facts) -> Vec<IpAddr> {
        match (facts.leader, &facts.mount) {
            (Some(pid), _) => addresses::of_process(&self.roots.proc, pid),
            (None, Some(file)) => addresses::behind(&self.roots.proc, file, facts.inode),
            (None, None) => Vec::new(),
        }
    }

    /// Addresses seldom change: each scan looks at some of the namespaces, in turn.
    fn addresses_of_some(&mut self) {
        let mut oldest: Vec<u32> = self.namespaces.keys().copied().collect();
        oldest.sort_unstable();
        let turn = oldest.len().min(ADDRESSES_AT_ONCE);
        let start = self.turn % oldest.len().max(1);
        self.turn = start + turn;
        for inode in oldest.iter().cycle().skip(start).take(turn) {
            let Some(ns) = self.namespaces.get(inode) else { continue };
            let addresses = self.look_up_addresses(&ns.facts);
            if addresses != ns.addresses {
                let ns = Namespace { addresses, ..(**ns).clone() };
                self.namespaces.insert(*inode, Arc::new(ns));
                self.touched.insert(*inode);
                self.changed = true;
            }
        }
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
        let old = |at: &Instant| at.elapsed() > DEPARTED_TIME;
        while self.departed.len() > DEPARTED_MAX || self.departed.front().is_some_and(|(at, ..)| old(at)) {
            self.departed.pop_front();
        }
        let departed: Vec<_> =
            self.departed.iter().map(|(_, cookie, id)| (*cookie, Arc::clone(id))).collect();
        let before = self.directory.load_full();
        let changes = self.touched.iter().map(|inode| (*inode, self.namespaces.get(inode)));
        let patched = before.patched(&mut self.taken, generation, changes, &departed, &self.labels);
        let picture = patched.unwrap_or_else(|| {
            let namespaces: Vec<Arc<Namespace>> = self.namespaces.values().cloned().collect();
            self.taken = Taken::of(&namespaces);
            Directory::build(&before, generation, &namespaces, departed, &self.labels)
        });
        self.touched.clear();
        self.labels.changed = false;
        self.directory.store(Arc::new(picture));
        if grown > 0 {
            // Receivers may all be gone while the daemon stops.
            let _ = self.publish.send(generation);
            self.followers.wake();
        }
    }
}

/// Whose a namespace is, who says so, and since when it is without the good name that it still goes by.
fn named(facts: &Facts, old: Option<&Namespace>) -> (Identity, Vec<Arc<str>>, Option<Instant>) {
    let (identity, sources) = identity::identify(facts);
    match old {
        // It is most likely going, and until then it is whose it was.
        Some(old) if lately_lost(old, &identity) => {
            (old.identity.clone(), old.sources.clone(), Some(old.lost.unwrap_or_else(Instant::now)))
        }
        _ => (identity, sources, None),
    }
}

/// Whether a namespace lost its good name a moment ago: the runtime has forgotten the container before the namespace is gone.
fn lately_lost(old: &Namespace, now: &Identity) -> bool {
    let had_better = now.awaited && !old.identity.awaited;
    had_better && old.lost.is_none_or(|lost| lost.elapsed() < GRACE)
}

/// Whether a namespace was only just found.
fn is_new(old: Option<&Namespace>) -> bool {
    old.is_none_or(|old| old.seen.elapsed() < ADDRESSES_FIRST)
}

/// How long a namespace without a settled name waits for one.
fn grace(identity: &Identity) -> Duration {
    if identity.kind == Kind::Unknown { SHORT_GRACE } else { GRACE }
}

pub(super) fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
