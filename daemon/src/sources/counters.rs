//! Reads the counters that BPF programs keep, one source per probe with hooks.

use super::{ReadError, Report, Scratch, Source, Want};
use crate::declare::{Probe, TableDecl};
use crate::hooks::{HookTable, Hooks};
use crate::kernel::bpf::same_cookie;
use crate::table::{Subject, Table};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// The counters map of one probe.
pub struct CounterSource {
    probe: &'static Probe,
    hooks: &'static Hooks,
    running: Arc<dyn HookTable>,
}

impl CounterSource {
    /// The source of a probe; `None` if it has no hooks.
    pub fn new(probe: &'static Probe, running: Arc<dyn HookTable>) -> Option<CounterSource> {
        Some(CounterSource { probe, hooks: probe.hooks.as_ref()?, running })
    }
}

impl Source for CounterSource {
    fn name(&self) -> &'static str {
        self.probe.name
    }

    fn tables(&self) -> &'static [&'static TableDecl] {
        std::slice::from_ref(&self.hooks.table)
    }

    fn whole(&self) -> bool {
        true
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
        let result = self.running.fill(self.probe, &subject, &mut out[0]);
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
