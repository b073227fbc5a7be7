//! Namespaces of the daemon's own, for a self-test: a thread lives in each, and no list of processes shows threads. So it says
//! itself which they are and what they are called. All else is found out about them as about any other.

use super::{Command, Watcher, Worker};
use crate::resolve::scan;
use std::sync::Arc;

/// A namespace in which a thread of the daemon lives. It is one for as long as the thread is there.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Inode number of the namespace.
    pub inode: u32,
    /// Number of the thread among the processes.
    pub thread: i32,
    /// What it is called.
    pub name: Arc<str>,
}

impl Watcher {
    /// Takes note of a namespace.
    pub fn welcome(&self, guest: Guest) {
        self.send(Command::Guest(guest));
    }
}

impl Worker {
    pub(super) fn welcome(&mut self, guest: Guest) {
        let (inode, thread) = (guest.inode, guest.thread);
        self.guests.push(guest);
        self.changed |= self.look(inode, Some(thread));
    }

    /// Forgets those whose thread has ended.
    pub(super) fn see_guests_off(&mut self) {
        let proc = &self.roots.proc;
        self.guests.retain(|guest| scan::namespace_of(proc, guest.thread) == Some(guest.inode));
    }

    /// The guest with this namespace, if its thread is there.
    pub(super) fn guest(&self, inode: u32) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.inode == inode && self.is_inside(guest.thread, inode))
    }
}
