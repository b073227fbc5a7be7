//! What passes between the watcher and the hooks in the kernel.

use crate::kernel::netns_watch::Exits;
use rustc_hash::FxHashMap;

/// What the kernel's hooks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A process was seen in a namespace that was not known.
    Seen {
        /// The namespace.
        inode: u32,
        /// The process, in the node's pid namespace.
        pid: i32,
        /// Its command name then.
        comm: String,
        /// Cookie of the namespace; 0 if it has none.
        cookie: u64,
    },
    /// A process is making a namespace.
    Created {
        /// The process.
        pid: i32,
    },
    /// A process of the namespace ended, whose end was asked for.
    Exit {
        /// The namespace.
        inode: u32,
    },
}

/// The hooks' memory of namespaces, kept by us.
pub trait KernelWatch: Send + Sync {
    /// Whether new namespaces are told; if not, there are only counters to be deleted.
    fn watches(&self) -> bool;
    /// Do not announce this one, and tell of the next of these exits.
    fn known(&self, inode: u32, cookie: u64, exits: Exits);
    /// It is gone: announce it if it comes again.
    fn forget(&self, inode: u32, cookie: u64);
    /// These are all that live: what is counted for others goes.
    fn retain(&self, live: &FxHashMap<u32, u64>);
    /// It was not found: announce it if it is seen again. What is counted for it stays, since it may live.
    fn announce_again(&self, inode: u32);
    /// The exit from this one is about to be looked at: tell of the next.
    fn rearm(&self, inode: u32, cookie: u64, exits: Exits);
}
