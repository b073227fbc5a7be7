//! What sources are told of owners: whose namespaces, processes and cgroups are, by number.

use super::{Directory, Spot};
use crate::resolve::cgroup::{self, CgroupOwner};
use crate::resolve::identity::Claimed;
use crate::resolve::workload::{Role, Workload};
use crate::sources::Owners;
use crate::table::Subject;
use std::sync::Arc;

impl Owners for Directory {
    fn node_netns(&self) -> u32 {
        self.entry(Subject::NODE).map_or(0, |entry| entry.namespace.facts.inode)
    }

    fn of_netns(&self, inode: u32) -> Option<Subject> {
        self.subject(inode)
    }

    fn of_cgroup(&self, text: &str) -> Option<Subject> {
        let CgroupOwner::Container(containers) = cgroup::owner(cgroup::path(text)?)? else { return None };
        let spot = |id: &Arc<str>| self.index().container(id).map(|(_, spot)| spot);
        match containers.known_ids().find_map(spot)? {
            Spot::Tenant(at) => Some(self.tenants().get(at)?.subject),
            Spot::Namespace(subject) => Some(subject),
        }
    }

    fn has_tenants(&self) -> bool {
        !self.tenants().is_empty()
    }

    fn cgroups(&self, each: &mut dyn FnMut(Subject, i32, &str)) {
        for ns in self.entries().map(|entry| &entry.namespace).filter(|ns| !ns.facts.host && !ns.secondary) {
            let mut containers =
                ns.facts.claims.iter().map(Claimed::workload).filter(|workload| is_cgroup(workload));
            let mut any = false;
            containers.by_ref().for_each(|workload| {
                any = true;
                each(ns.subject, workload.pid.unwrap_or_default(), &workload.id);
            });
            let own = ns.facts.owners.first().filter(|_| !any);
            let name = match own {
                Some(CgroupOwner::Container(containers)) => containers.own_id(),
                Some(CgroupOwner::Unit(name)) => name,
                Some(CgroupOwner::Machine(_)) | None => continue,
            };
            if let Some(leader) = ns.facts.leader {
                each(ns.subject, leader, name);
            }
        }
        Owners::tenants(self, &mut |id, pid, subject| each(subject, pid, id));
    }

    fn tenants(&self, each: &mut dyn FnMut(&str, i32, Subject)) {
        for tenant in self.tenants() {
            for workload in tenant.claims.iter().map(Claimed::workload) {
                if let Some(pid) = workload.pid {
                    each(&workload.id, pid, tenant.subject);
                }
            }
        }
    }
}

/// Whether a workload has a cgroup that is found by its process and id.
fn is_cgroup(workload: &Workload) -> bool {
    matches!(workload.role, Role::Container | Role::Sandbox) && workload.pid.is_some()
}
