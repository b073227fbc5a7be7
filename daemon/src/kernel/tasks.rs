//! Objects that count by task: whose the processes in the node's own namespace are (`bpf/include/whose.bpf.h`), and for what
//! each task uses (`bpf/include/tasks.bpf.h`) the walk over the living before each reading.

use super::bpf::{Entries, Refused, Session, io_error};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Iter, Link, MapCore, MapFlags, MapHandle, OpenObject};
use netskoop_bpf::io::types;
use netskoop_bpf::plain;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

/// A cgroup of the unified hierarchy, by its id, and the number of the tenant whose it is.
pub type Tenant = (u64, u32);

/// What such an object has beside its hooks.
#[derive(Debug)]
pub struct Tasks {
    walk: Option<Mutex<Link>>,
    tenants: MapHandle,
    /// What the kernel was told, sorted.
    told: Mutex<Vec<Tenant>>,
}

/// Runs a program for everything that it walks over.
pub(super) fn walk(link: &Link) -> io::Result<()> {
    let mut walk = Iter::new(link).map_err(io_error)?;
    // It writes nothing; a read that returns has walked to the end, unless it was interrupted.
    let mut nothing = [0; 64];
    loop {
        match walk.read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Tasks {
    pub(super) fn new(walk: Option<Link>, tenants: MapHandle) -> Tasks {
        Tasks { walk: walk.map(Mutex::new), tenants, told: Mutex::default() }
    }

    /// Runs the object's program for every living task, if it has one.
    pub(super) fn walk(&self) -> io::Result<()> {
        let Some(link) = &self.walk else { return Ok(()) };
        walk(&link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_tenants(&self, tenants: &[Tenant]) -> io::Result<()> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == tenants {
            return Ok(());
        }
        for gone in told.iter().filter(|old| !tenants.iter().any(|(id, _)| *id == old.0)) {
            // Gone already is as good.
            let _ = self.tenants.delete(&gone.0.to_ne_bytes());
        }
        told.clear();
        for tenant in tenants {
            let (id, number) = (tenant.0.to_ne_bytes(), tenant.1.to_ne_bytes());
            self.tenants.update(&id, &number, MapFlags::ANY).map_err(io_error)?;
            told.push(*tenant);
        }
        Ok(())
    }
}

/// What an object that counts by task is told.
pub struct TaskSettings {
    /// Number that its records carry.
    pub probe: u16,
    /// Inode of the host's network namespace.
    pub host_netns: u32,
    /// Process id of the daemon, whose threads visit other namespaces.
    pub daemon: u32,
}

impl Session {
    /// Runs an object that counts by task, and nothing else, until it is to be unloaded. `settle` puts what it is told into
    /// its read-only data, whose type is its own.
    pub fn count_tasks<'o, B: SkelBuilder<'o>>(
        self,
        builder: B,
        storage: &'o mut MaybeUninit<OpenObject>,
        settle: impl FnOnce(&mut B::Output, &TaskSettings),
    ) -> Result<(), Refused> {
        self.tracepoint("sched_process_exit")?;
        self.task_storage()?;
        let mut open = self.open(builder, storage)?;
        let (probe, host_netns, daemon) = (self.number(), self.host_netns(), std::process::id());
        settle(&mut open, &TaskSettings { probe, host_netns, daemon });
        let events = open.open_object_mut().maps_mut().find(|map| map.name() == "events");
        self.share_ring(&mut events.ok_or_else(|| self.failed("find a map", "events"))?)?;
        let skel = self.load(open)?;
        let _links = self.attach(skel.object())?;
        self.ready(skel.object(), "tp_btf", &["counters"])?;
        self.serve(|_| {});
        Ok(())
    }
}

/// Whether the key of a counter is a tenant's.
pub(super) fn is_of(key: &[u8], tenant: u32) -> bool {
    plain::read::<types::owner>(key).is_some_and(|key| key.tenant == tenant)
}

/// What the tasks of one place have used: N values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage<const N: usize> {
    /// Inode of the namespace.
    pub netns: u32,
    /// Its cookie; 0 if it has none.
    pub cookie: u64,
    /// Number of the tenant; 0 if it is none's.
    pub tenant: u32,
    /// The values, in the order of the program.
    pub values: [u64; N],
}

/// What entries of a counters map say.
pub fn usage<const N: usize>(entries: &Entries) -> impl Iterator<Item = Usage<N>> {
    entries.iter().filter_map(|(key, value)| {
        let key: types::owner = plain::read(key)?;
        let mut values = [0; N];
        for (value, bytes) in values.iter_mut().zip(value.as_chunks::<8>().0) {
            *value = u64::from_ne_bytes(*bytes);
        }
        Some(Usage { netns: key.netns, cookie: key.cookie, tenant: key.tenant, values })
    })
}
