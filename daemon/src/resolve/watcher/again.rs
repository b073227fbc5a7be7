//! What is looked at again after a moment, because nothing tells when it is finished.

use super::{GRACE, Worker};
use crate::resolve::identity::Identity;
use crate::resolve::scan;
use netskoop_api::Kind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// When to look again at what is not finished yet: a file of `/run/netns` before its mount, a process before its switch.
pub(super) const LOOK_AGAIN: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(30),
    Duration::from_millis(150),
    Duration::from_millis(600),
];

/// When a new namespace that goes by the name of its process is looked at for the last time: on a busy node it takes seconds
/// until a process has become another program. After [`GRACE`] the name is not read again.
const LAST_LOOK: Duration = Duration::from_secs(4);
const _: () = assert!(LAST_LOOK.as_nanos() < GRACE.as_nanos());

/// Something to look at again.
pub(super) enum Again {
    Process {
        pid: i32,
        tries: usize,
    },
    File {
        path: PathBuf,
        tries: usize,
    },
    Namespace {
        inode: u32,
    },
    /// One whose leader has begun to end.
    Ending {
        inode: u32,
        tries: usize,
    },
}

impl Worker {
    /// A process that is making a namespace: it moves there in a moment.
    pub(super) fn again_process(&mut self, pid: i32, tries: usize) {
        if let Some(delay) = LOOK_AGAIN.get(tries) {
            self.again.push((Instant::now() + *delay, Again::Process { pid, tries }));
        } else if self.missing > 0 {
            self.scan_soon();
        }
    }

    /// Whether there is still a reason to look. What made namespaces that were all found since is of no interest.
    pub(super) fn is_needed(&self, what: &Again) -> bool {
        !matches!(what, Again::Process { .. }) || self.missing > 0
    }

    /// Looks at what is due.
    pub(super) fn look_again(&mut self) {
        let now = Instant::now();
        let mut all = std::mem::take(&mut self.again);
        all.retain(|(_, what)| self.is_needed(what));
        let (due, later) = all.into_iter().partition(|(at, _)| *at <= now);
        self.again = later;
        let due: Vec<(Instant, Again)> = due;
        for (_, what) in due {
            match what {
                Again::Process { pid, tries } => match scan::namespace_of(&self.roots.proc, pid) {
                    Some(inode) if !self.namespaces.contains_key(&inode) => self.add_member(inode, pid),
                    _ => self.again_process(pid, tries + 1),
                },
                Again::Namespace { inode } => self.refresh(inode),
                Again::Ending { inode, tries } => self.look_at_end(inode, tries),
                Again::File { path, tries } => self.look_at_files(vec![path], Some(tries + 1)),
            }
        }
        // A storm of short-lived creators must not grow this list: one scan tells as much. Not of what is about to end, of
        // which there is one for each namespace at most.
        let is_end = |(_, what): &(Instant, Again)| matches!(what, Again::Ending { .. });
        if self.again.iter().filter(|what| !is_end(what)).count() > 256 {
            self.again.retain(is_end);
            self.unfinished.clear();
            self.scan_soon();
        }
    }

    /// Has a namespace looked at again: if it is `new`, and when it has waited long enough for its name.
    pub(super) fn look_later(&mut self, inode: u32, new: Option<&Identity>, waits: Option<Instant>) {
        let now = Instant::now();
        if new.is_some() && !self.scanning {
            // It was seen as it began: its process may have become another program by then, and addresses come.
            self.again.push((now + LOOK_AGAIN[LOOK_AGAIN.len() - 1], Again::Namespace { inode }));
        }
        // Those that were there before the daemon have become what they are.
        let is_first_scan = self.directory.load().generation() == 0;
        if new.is_some_and(|identity| identity.kind == Kind::Unknown) && !is_first_scan {
            self.again.push((now + LAST_LOOK, Again::Namespace { inode }));
        }
        if let Some(end) = waits {
            self.again.push((end + Duration::from_millis(10), Again::Namespace { inode }));
        }
    }

    /// The kernel tells of an exit as it begins, and until it is over the process seems to be in its namespace. It is told
    /// only once, so a leader that ends is looked at until it has.
    pub(super) fn await_end(&mut self, inode: u32, leader: i32, tries: usize) {
        let same = |(_, what): &(Instant, Again)| matches!(what, Again::Ending { inode: other, .. } if *other == inode);
        if !self.again.iter().any(same) && scan::is_ending(&self.roots.proc, leader) {
            let delay = LOOK_AGAIN[tries.min(LOOK_AGAIN.len() - 1)];
            self.again.push((Instant::now() + delay, Again::Ending { inode, tries }));
        }
    }

    /// Looks whether the leader has ended by now.
    fn look_at_end(&mut self, inode: u32, tries: usize) {
        let leader = self.namespaces.get(&inode).and_then(|ns| ns.facts.leader);
        match leader.filter(|pid| self.is_inside(*pid, inode) && scan::is_ending(&self.roots.proc, *pid)) {
            Some(pid) => self.await_end(inode, pid, tries + 1),
            None if self.namespaces.contains_key(&inode) => self.check_leader(inode),
            None => {}
        }
    }
}
