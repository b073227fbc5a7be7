//! Network namespaces as they come and go, told by BPF programs instead of looked for.

use super::bpf::{Handle, Loader, Refused, Session, Settings, io_error};
use super::record;
use libbpf_rs::{MapCore, MapFlags};
use netskoop_api::StreamCounts;
use netskoop_bpf::netns::{NetnsSkel, NetnsSkelBuilder, types};
use std::io;
use std::mem::MaybeUninit;

/// Records per second, of all namespaces together: a node that makes more finds the rest by scanning.
const RATE: u32 = 2000;
const BURST: u32 = 4000;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsEvent {
    /// A process in a namespace that was not known.
    Seen {
        /// Inode of the namespace.
        inum: u32,
        /// The process, by the node's pids.
        pid: u32,
        /// Its command name.
        comm: String,
        /// Cookie of the namespace; 0 if it has none.
        cookie: u64,
    },
    /// A namespace is being made by a process, which may move into it; look at the process a little later.
    Created {
        /// The process, by the node's pids.
        pid: u32,
    },
    /// A thread in the namespace is ending, one of those that were asked for. Comes once until
    /// [`NetnsWatch::clear_pending`].
    Exit {
        /// Inode of the namespace.
        inum: u32,
    },
}

/// Whose exits from a namespace are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exits {
    /// Every thread's.
    Any,
    /// That of this process's first thread, by the node's pids.
    Of(i32),
    /// None.
    None,
}

/// Decodes a record that carries the number given to [`NetnsWatch::start`]; `None` if it is malformed.
pub fn decode(bytes: &[u8]) -> Option<NetnsEvent> {
    let (head, _, _) = record::parse::<types::event_head>(bytes)?;
    match head.kind {
        0 => Some(NetnsEvent::Seen { inum: head.netns, pid: head.pid, comm: head.comm, cookie: head.cookie }),
        1 => Some(NetnsEvent::Created { pid: head.pid }),
        2 => Some(NetnsEvent::Exit { inum: head.netns }),
        _ => None,
    }
}

/// The programs that watch, while it lives.
#[derive(Debug)]
pub struct NetnsWatch(Handle);

impl NetnsWatch {
    /// Loads and attaches them. `number` is what their records carry as their probe.
    pub fn start(number: u16, loader: &Loader) -> Result<NetnsWatch, Refused> {
        let settings = Settings { rate: RATE, burst: BURST, ..Settings::default() };
        Ok(NetnsWatch(Handle::start("netns", number, run, loader, settings)?))
    }

    /// Tells that a namespace is known, so that it is not announced and its exits are.
    pub fn known_insert(&self, inum: u32, cookie: u64, exits: Exits) -> io::Result<()> {
        let idle = known(cookie, exits);
        self.0.counters(KNOWN)?.update(&inum.to_ne_bytes(), &idle, MapFlags::ANY).map_err(io_error)
    }

    /// Tells that a namespace is gone: its inode may be used again for another.
    pub fn known_remove(&self, inum: u32) -> io::Result<()> {
        match self.0.counters(KNOWN)?.delete(&inum.to_ne_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(io_error(error)),
            _ => Ok(()),
        }
    }

    /// Asks for the next exit again, **before** looking who is left: an exit in between is then told.
    pub fn clear_pending(&self, inum: u32, cookie: u64, exits: Exits) -> io::Result<()> {
        let idle = known(cookie, exits);
        match self.0.counters(KNOWN)?.update(&inum.to_ne_bytes(), &idle, MapFlags::EXIST) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(io_error(error)),
            _ => Ok(()),
        }
    }

    /// Where its records went.
    pub fn stream_counts(&self) -> io::Result<StreamCounts> {
        self.0.stream_counts()
    }

    /// The loaded object.
    pub fn handle(&self) -> &Handle {
        &self.0
    }

    /// Unloads them.
    pub fn stop(self) -> Result<(), String> {
        self.0.stop()
    }
}

/// The map of the namespaces that are known.
const KNOWN: &str = "known";

/// Value of a known namespace whose exits are to be told.
fn known(cookie: u64, exits: Exits) -> [u8; 16] {
    let leader = match exits {
        Exits::Any => 0,
        Exits::Of(pid) => pid.unsigned_abs(),
        // No process has this number.
        Exits::None => u32::MAX,
    };
    let mut value = [0; 16];
    value[..8].copy_from_slice(&cookie.to_ne_bytes());
    value[12..].copy_from_slice(&leader.to_ne_bytes());
    value
}

const _: () = assert!(size_of::<types::known_netns>() == 16, "the value that `known` makes");

fn run(session: Session) -> Result<(), Refused> {
    for tracepoint in ["task_newtask", "sched_process_exec", "sched_process_exit"] {
        session.tracepoint(tracepoint)?;
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = session.open(NetnsSkelBuilder::default(), &mut storage)?;
    if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
        rodata.probe = session.number();
        rodata.host_netns = session.host_netns();
        // 5.19 put the caller's address first, among others.
        rodata.size_argument =
            if session.tracepoint("percpu_alloc_percpu").is_ok_and(|n| n > 7) { 3 } else { 2 };
    }
    let created = session.tracepoint("percpu_alloc_percpu").is_ok();
    open.progs.on_percpu_alloc.set_autoload(created);
    if !created {
        session.limited(
            "a namespace made by a process that never starts another is found by the next scan only",
        );
    }
    let apply = |skel: &mut NetnsSkel<'_>, settings: &Settings| {
        if let Some(data) = skel.maps.bss_data.as_deref_mut() {
            (data.limit.interval_ns, data.limit.tolerance_ns) = settings.limit();
        }
    };
    session.run(open, apply, "tp_btf", &[KNOWN])
}
