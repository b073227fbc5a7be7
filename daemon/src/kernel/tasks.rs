//! Objects that count by task: whose the processes in the node's own namespace are (`bpf/include/whose.bpf.h`), and for what
//! each task uses (`bpf/include/tasks.bpf.h`) the walk over the living before each reading.

use super::bpf::{Entries, io_error};
use libbpf_rs::{Iter, Link, MapCore, MapFlags, MapHandle};
use netskoop_bpf::io::types;
use netskoop_bpf::plain;
use std::io::{self, Read};
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
