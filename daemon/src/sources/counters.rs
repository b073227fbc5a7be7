//! Reads the counters that BPF programs keep, one source per map.

use super::lock;
use super::tenants::TenantCgroups;
use super::{Owners, ReadError, Report, Scratch, Source, Want};
use crate::declare::{Probe, TableDecl};
use crate::hooks::{CountersMap, HookTable};
use crate::kernel::bpf::same_cookie;
use crate::table::{Subject, Table};
use rustc_hash::FxHashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A counters map of a probe.
pub struct CounterSource {
    probe: &'static Probe,
    map: &'static CountersMap,
    running: Arc<dyn HookTable>,
    owners: Mutex<Option<Arc<dyn Owners>>>,
    tenants: Mutex<TenantCgroups>,
}

impl CounterSource {
    /// The sources of a probe, with procfs at `proc`; none if it has no hooks.
    pub fn all(
        probe: &'static Probe,
        running: &Arc<dyn HookTable>,
        proc: &Path,
    ) -> impl Iterator<Item = CounterSource> {
        probe.hooks.iter().flat_map(|hooks| hooks.maps).map(move |map| CounterSource {
            probe,
            map,
            running: Arc::clone(running),
            owners: Mutex::default(),
            tenants: Mutex::new(TenantCgroups::new(proc)),
        })
    }

    /// Tells the programs whose the cgroups of the node's own namespace are, if they want to know.
    fn tell_tenants(&self) -> std::io::Result<()> {
        let owners = lock(&self.owners).clone().filter(|_| self.running.counts_tasks(self.probe));
        let Some(owners) = owners else { return Ok(()) };
        self.running.set_tenants(self.probe, lock(&self.tenants).look(&*owners))
    }
}

impl Source for CounterSource {
    fn name(&self) -> &'static str {
        self.map.table.name
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        std::slice::from_ref(&self.map.table)
    }

    fn whole(&self) -> bool {
        true
    }

    fn meet(&self, owners: &Arc<dyn Owners>) {
        *lock(&self.owners) = Some(Arc::clone(owners));
    }

    fn forget(&self, subject: Subject) {
        // What is counted by namespace is dropped with the namespace.
        if subject.is_tenant() {
            self.running.forget_tenant(self.probe, subject);
        }
    }

    fn read(&self, want: &Want<'_>, _: &mut Scratch, out: &mut [Table]) -> Report {
        let subjects: FxHashMap<u32, (u64, Subject)> =
            want.targets.iter().map(|t| (t.inode, (t.cookie, t.subject))).collect();
        // What the kernel could not attribute is shown as such; what is not named yet is shown once it is.
        let subject = |inode: u32, cookie: u64| match subjects.get(&inode) {
            _ if inode == 0 => Some(Subject::UNATTRIBUTED),
            // The inode may have been another namespace's a moment ago.
            Some((known, subject)) if same_cookie(*known, cookie) => Some(*subject),
            _ => None,
        };
        want.beacon.enter(Subject::NODE, "counters map");
        let told = self.tell_tenants();
        let result = told.and_then(|()| self.running.fill(self.probe, self.map, &subject, &mut out[0]));
        want.beacon.leave();
        match result {
            Ok(()) => Report { done: want.targets.len() as u32, ..Report::default() },
            Err(source) => {
                let error =
                    ReadError::Failed { doing: "read the counters of", what: self.probe.name.into(), source };
                Report { failed: 1, error: Some(error), ..Report::default() }
            }
        }
    }
}
