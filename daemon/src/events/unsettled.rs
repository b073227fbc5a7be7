//! Events that were delivered before their names were known for sure. When the picture of the namespaces changes they are
//! named again, in the history, so that those who read it later see the right names.

use super::history::History;
use super::names::{Names, Place, Socket};
use crate::hooks::Tuple;
use crate::resolve::cgroup_tree::CgroupTree;
use crate::resolve::directory::Directory;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Events remembered, and for how long.
const MOST: usize = 4096;
const LONGEST: Duration = Duration::from_secs(60);
/// How often it is looked whether there are new names.
const LOOK: Duration = Duration::from_millis(250);

/// Those events, oldest first.
#[derive(Default)]
pub struct Unsettled {
    events: VecDeque<Remembered>,
    /// Of the directory that was looked at last.
    generation: u64,
    next_look: Option<Instant>,
}

struct Remembered {
    until: Instant,
    seq: u64,
    place: Place,
    tuple: Option<Tuple>,
    names: Names,
}

impl Unsettled {
    /// Keeps in mind that an event may get better names than these.
    pub fn remember(&mut self, seq: u64, place: Place, tuple: Option<Tuple>, names: Names, now: Instant) {
        // Without a cookie the namespace's inode may be another's in a moment; only the node's own is never.
        if place.cookie == 0 && !names.in_host {
            return;
        }
        if self.events.len() >= MOST {
            self.events.pop_front();
        }
        self.events.push_back(Remembered { until: now + LONGEST, seq, place, tuple, names });
        self.next_look.get_or_insert(now + LOOK);
    }

    /// When to look again; `None` while there is nothing to look for.
    pub fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// Names those again that have new names; how many those were.
    pub fn look(
        &mut self,
        directory: &Directory,
        tree: &mut CgroupTree,
        history: &History,
        now: Instant,
    ) -> u64 {
        let changed = directory.generation() != self.generation;
        self.generation = directory.generation();
        let mut named = 0;
        self.events.retain_mut(|event| {
            let asked = matches!(event.place.socket, Socket::Later(_));
            event.place.socket.resolve(tree);
            if changed || asked {
                named += u64::from(event.name_again(directory, history));
            }
            event.until > now && !event.names.settled
        });
        self.next_look = (!self.events.is_empty()).then_some(now + LOOK);
        named
    }
}

impl Remembered {
    /// Whether it has other names now. A namespace may be gone and forgotten by now: the name that it had stays.
    fn name_again(&mut self, directory: &Directory, history: &History) -> bool {
        let names = Names::find(directory, &self.place, self.tuple.as_ref());
        if names.entity.is_none() || names == self.names {
            return false;
        }
        let netns = self.place.netns;
        history.change(self.seq, |event| names.put(event, netns));
        self.names = names;
        true
    }
}
