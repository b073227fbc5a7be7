//! The processes of a namespace and whose cgroups they are in. A process is read when it is first seen and once more when it
//! has settled: what starts a container is on its way from one cgroup to another. After that it is not read again.

use crate::resolve::cgroup::{self, CgroupOwner};
use crate::resolve::scan;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A process that is so old stays in its cgroup.
const SETTLES: Duration = Duration::from_secs(2);
/// Processes of one namespace that are remembered, and owners that are told apart.
const MAX_PIDS: usize = 16_384;
const MAX_OWNERS: usize = 4096;

/// Cgroups that are remembered for a round: those of the processes of one namespace or two.
const MAX_REMEMBERED: usize = 16;

/// Reads the cgroups of processes. Those who look at a namespace ask for the same ones several times.
pub(super) struct Cgroups {
    proc: PathBuf,
    last: RefCell<Vec<(i32, Option<String>)>>,
}

impl Cgroups {
    pub(super) fn new(proc: PathBuf) -> Cgroups {
        Cgroups { proc, last: RefCell::default() }
    }

    /// The cgroup of a process, as it was when it was first asked for in this round.
    pub(super) fn of(&self, pid: i32) -> Option<String> {
        let mut last = self.last.borrow_mut();
        if let Some((_, path)) = last.iter().find(|(known, _)| *known == pid) {
            return path.clone();
        }
        let path = scan::cgroup(&self.proc, pid);
        if last.len() >= MAX_REMEMBERED {
            last.clear();
        }
        last.push((pid, path.clone()));
        path
    }

    /// Another round begins: what was read may be different by now.
    pub(super) fn forget(&self) {
        self.last.borrow_mut().clear();
    }
}

struct Member {
    /// Index in `owners`; `None` for a cgroup that is nobody's.
    owner: Option<usize>,
    born: Instant,
    is_final: bool,
}

/// The processes of one namespace.
#[derive(Default)]
pub(super) struct Crowd {
    members: FxHashMap<i32, Member>,
    owners: Vec<CgroupOwner>,
}

impl Crowd {
    /// These are all processes now.
    pub(super) fn set(&mut self, cgroups: &Cgroups, pids: &[i32]) {
        if self.members.len() > pids.len() || pids.iter().any(|pid| !self.members.contains_key(pid)) {
            let mut left = std::mem::take(&mut self.members);
            let kept = pids.iter().filter_map(|pid| Some((*pid, left.remove(pid)?)));
            self.members = kept.collect();
            if self.members.is_empty() {
                self.owners.clear();
            }
        }
        pids.iter().for_each(|pid| self.add(cgroups, *pid));
    }

    /// This is one of them.
    pub(super) fn add(&mut self, cgroups: &Cgroups, pid: i32) {
        let born = match self.members.get(&pid) {
            Some(member) if member.is_final => return,
            Some(member) => member.born,
            None if self.members.len() >= MAX_PIDS => return,
            None => Instant::now(),
        };
        let owner = cgroups.of(pid).as_deref().and_then(cgroup::owner);
        let owner = owner.and_then(|owner| self.index(owner));
        self.members.insert(pid, Member { owner, born, is_final: born.elapsed() >= SETTLES });
    }

    fn index(&mut self, owner: CgroupOwner) -> Option<usize> {
        let known = self.owners.iter().position(|known| *known == owner);
        known.or_else(|| {
            (self.owners.len() < MAX_OWNERS).then(|| {
                self.owners.push(owner);
                self.owners.len() - 1
            })
        })
    }

    /// All processes that were there at the last look.
    pub(super) fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        self.members.keys().copied()
    }

    /// Number of processes at the last look.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whose they are: the leader's owner first, the others as they were met.
    pub(super) fn owners(&self, leader: Option<i32>) -> Vec<CgroupOwner> {
        let of = |member: &Member| member.owner;
        let first = leader.and_then(|pid| self.members.get(&pid)).and_then(of);
        let mut present = vec![false; self.owners.len()];
        self.members.values().filter_map(of).for_each(|at| present[at] = true);
        let rest = (0..self.owners.len()).filter(|at| present[*at] && Some(*at) != first);
        first.into_iter().chain(rest).map(|at| self.owners[at].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &std::path::Path, pid: i32, cgroup: &str) {
        let dir = proc.join(pid.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
    }

    fn unit(name: &str) -> CgroupOwner {
        CgroupOwner::Unit(name.into())
    }

    #[test]
    fn owners_come_and_go_with_their_processes() {
        let proc = std::env::temp_dir().join(format!("netskoop-crowd-{}", std::process::id()));
        process(&proc, 1, "/system.slice/a.service");
        process(&proc, 2, "/system.slice/b.service");
        process(&proc, 3, "/");
        let cgroups = Cgroups::new(proc.clone());
        let mut crowd = Crowd::default();
        crowd.set(&cgroups, &[1, 2, 3]);
        assert_eq!(crowd.owners(Some(2)), [unit("b.service"), unit("a.service")]);
        crowd.set(&cgroups, &[2, 3]);
        assert_eq!((crowd.owners(None), crowd.len()), (vec![unit("b.service")], 2));
        // It is young, so it is read again.
        process(&proc, 3, "/system.slice/c.service");
        cgroups.forget();
        crowd.add(&cgroups, 3);
        assert_eq!(crowd.owners(None), [unit("b.service"), unit("c.service")]);
        std::fs::remove_dir_all(&proc).unwrap();
    }
}
