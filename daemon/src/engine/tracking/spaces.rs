//! Whose a connection is that the kernel tells of: it gives namespaces numbers, and which means which has to be known. Each
//! namespace is held to the rate here.

use super::{CHANGES, Parts, Shared, Wanted, fields};
use crate::hooks::RawEvent;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::netlink::flows::Flow;
use crate::kernel::netlink::nsid::{News, Numbers};
use crate::probes::conntrack;
use crate::resolve::directory::{Directory, Entry};
use crate::sources::Access;
use crate::table::Subject;
use rustc_hash::FxHashMap;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// When a number is not known, all namespaces are asked for theirs, at most so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which namespace a number means.
pub(super) struct Spaces {
    pub(super) numbers: Numbers,
    /// The namespace of this thread, whose events have no number.
    own: Space,
    /// Those whose number is not known.
    unknown: Space,
    /// By number; a number may mean another namespace by now than that of the slot which has noted it.
    known: FxHashMap<i32, (Subject, Space)>,
    by_subject: FxHashMap<Subject, i32>,
    picture: Arc<Directory>,
    looked: Instant,
    problem: Option<NetlinkError>,
}

/// A namespace.
#[derive(Clone, Debug, Default)]
struct Space {
    inode: u32,
    cookie: u64,
    wanted: bool,
    buckets: [Bucket; CHANGES.len()],
}

/// Holds events of one kind to the rate.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When the next is due if they come at exactly the rate.
    next: u64,
    suppressed: u64,
}

impl Bucket {
    /// How many were withheld since the last one; `None` if this one is withheld, too.
    fn take(&mut self, now: u64, interval: u64, tolerance: u64) -> Option<u64> {
        let due = self.next.max(now);
        if due - now > tolerance {
            self.suppressed += 1;
            return None;
        }
        self.next = due + interval;
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Spaces {
    /// None is known yet; the calling thread stays in the namespace in which it is.
    pub(super) fn open(wanted: &Wanted) -> Result<Spaces, Errno> {
        let own = rustix::fs::stat("/proc/thread-self/ns/net")?;
        let unknown = Space { wanted: wanted.entities.are_all(), ..Space::default() };
        let own = Space { inode: u32::try_from(own.st_ino).unwrap_or(0), ..unknown.clone() };
        Ok(Spaces {
            numbers: Numbers::open()?,
            own,
            unknown,
            known: FxHashMap::default(),
            by_subject: FxHashMap::default(),
            picture: Arc::default(),
            looked: Instant::now(),
            problem: None,
        })
    }

    /// Takes over what has changed in the picture: each new namespace gets a number, or tells the one that it has.
    pub(super) fn look(&mut self, parts: &Parts, wanted: &Wanted) {
        self.hear_news();
        let picture = parts.directory.load_full();
        if Arc::ptr_eq(&picture, &self.picture) {
            return;
        }
        let before = std::mem::replace(&mut self.picture, Arc::clone(&picture));
        for subject in picture.changes(&before) {
            let number = self.by_subject.remove(&subject);
            let is_its = |number: &i32| self.known.get(number).is_some_and(|(owner, _)| *owner == subject);
            let known = number.filter(is_its).and_then(|number| self.known.remove(&number));
            if let Some(entry) = picture.entry(subject) {
                self.meet(entry, known.map(|(_, space)| space), parts, wanted);
            }
        }
    }

    fn meet(&mut self, entry: &Entry, known: Option<Space>, parts: &Parts, wanted: &Wanted) {
        let facts = &entry.namespace.facts;
        let same = |space: &Space| (space.inode, space.cookie) == (facts.inode, facts.cookie);
        let buckets = known.filter(same).map(|space| space.buckets).unwrap_or_default();
        let wanted = wanted.wants_of(&entry.id);
        let space = Space { inode: facts.inode, cookie: facts.cookie, wanted, buckets };
        let is_own = facts.inode == self.own.inode;
        if is_own {
            self.own = Space { buckets: self.own.buckets, ..space.clone() };
        }
        // It stays open until the number is noted: as long as it lives, the number is nobody else's.
        let Some(namespace) = open(&parts.proc, &entry.namespace.access, facts.inode) else { return };
        let number = match is_own {
            true => self.numbers.of(namespace.as_fd()),
            false => self.numbers.give(namespace.as_fd()),
        };
        self.hear_news();
        match number {
            Ok(Some(number)) => {
                let subject = entry.namespace.subject;
                self.known.insert(number, (subject, space));
                self.by_subject.insert(subject, number);
            }
            Ok(None) => {}
            Err(error) => self.complain(error),
        }
    }

    fn complain(&mut self, error: NetlinkError) {
        if self.problem != Some(error) {
            tracing::warn!(%error, "a namespace has no number, so its connections are not heard of");
            self.problem = Some(error);
        }
    }

    /// Forgets the numbers of namespaces that are gone.
    pub(super) fn hear_news(&mut self) {
        let (known, by_subject, picture) = (&mut self.known, &mut self.by_subject, &mut self.picture);
        self.numbers.news(|news| match news {
            News::Gone(number) => drop(known.remove(&number)),
            News::Lost => {
                known.clear();
                by_subject.clear();
                *picture = Arc::default();
            }
        });
    }

    /// Hands over what happened in the namespace that the number means, if it is wanted and the rate allows it.
    pub(super) fn tell(
        &mut self,
        nsid: Option<i32>,
        flow: &Flow,
        wanted: &Wanted,
        now: u64,
        parts: &Parts,
        shared: &Shared,
    ) {
        let space = match nsid {
            None => &mut self.own,
            Some(nsid) => match self.known.get_mut(&nsid) {
                Some((_, space)) => space,
                None => {
                    if self.looked.elapsed() > LOOK_AGAIN {
                        (self.looked, self.picture) = (Instant::now(), Arc::default());
                    }
                    &mut self.unknown
                }
            },
        };
        if !space.wanted {
            return;
        }
        shared.seen.fetch_add(1, Ordering::Relaxed);
        let bucket = &mut space.buckets[flow.change as usize];
        let Some(suppressed) = bucket.take(now, wanted.interval, wanted.tolerance) else {
            shared.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let event = RawEvent {
            decl: &conntrack::PROBE.events[flow.change as usize],
            netns: space.inode,
            cookie: space.cookie,
            cgroup: 0,
            time: now,
            tuple: Some(flow.original),
            process: None,
            fields: fields(flow),
            stack: vec![],
            suppressed,
        };
        shared.submitted.fetch_add(1, Ordering::Relaxed);
        parts.intake.found(conntrack::PROBE.name, event);
    }
}

/// Opens a namespace, if it is still that one.
fn open(proc: &Path, access: &Access, inode: u32) -> Option<OwnedFd> {
    let through = |path: PathBuf| {
        // A FIFO put there must not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_ino == u64::from(inode)).then_some(file)
    };
    let of_process = |pid: &i32| through(proc.join(pid.to_string()).join("ns/net"));
    match access {
        Access::Process(pid) => of_process(pid),
        Access::Either(pid, path) => of_process(pid).or_else(|| through(path.clone())),
        Access::Mount(path) => through(path.clone()),
        Access::Held(namespace) => namespace.try_clone().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_to_the_rate_and_tells_what_it_withheld() {
        let mut bucket = Bucket::default();
        let mut take = |now| bucket.take(now, 10, 20);
        assert_eq!([take(100), take(100), take(100)], [Some(0); 3]);
        assert_eq!([take(100), take(105)], [None; 2]);
        assert_eq!(take(110), Some(2));
        assert_eq!(take(1000), Some(0));
        let mut bucket = Bucket::default();
        assert!((0..1000).all(|_| bucket.take(1, 0, 0) == Some(0)), "no limit");
    }
}
