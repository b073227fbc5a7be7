//! The cgroups of the tenants of the node's own namespace, by their ids in the unified hierarchy: by these the programs that
//! count by task tell tenants apart.

use super::Owners;
use crate::kernel::cgroup_mounts::{Mounts, path_in};
use crate::kernel::procfs::{Shape, read_whole};
use crate::kernel::tasks::Tenant;
use rustc_hash::FxHashMap;
use rustix::fs::{Mode, OFlags};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Tenants' containers at most: as many as the programs' map holds.
const MAX_TENANTS: usize = 4096;

/// What was found, kept as long as a container and its first process are the same.
#[derive(Debug)]
pub(super) struct TenantCgroups {
    proc: PathBuf,
    mounts: Mounts,
    known: FxHashMap<String, (i32, u64)>,
    found: Vec<Tenant>,
    bytes: Vec<u8>,
}

impl TenantCgroups {
    pub(super) fn new(proc: &Path) -> TenantCgroups {
        let (known, found) = (FxHashMap::default(), Vec::new());
        TenantCgroups { proc: proc.to_owned(), mounts: Mounts::read(proc), known, found, bytes: Vec::new() }
    }

    /// The cgroups of all tenants as they are now, sorted.
    pub(super) fn look(&mut self, owners: &dyn Owners) -> &[Tenant] {
        self.found.clear();
        let mut containers = 0;
        owners.tenants(&mut |id, pid, subject| {
            containers += 1;
            if let Some(cgroup) = self.cgroup(id, pid).filter(|_| containers <= MAX_TENANTS) {
                self.found.push((cgroup, subject.0));
            }
        });
        self.found.sort_unstable();
        self.found.dedup_by_key(|(cgroup, _)| *cgroup);
        // Several sources may know one container.
        if self.known.len() > 2 * containers + 64 {
            self.known.clear();
        }
        &self.found
    }

    fn cgroup(&mut self, id: &str, pid: i32) -> Option<u64> {
        if let Some((_, cgroup)) = self.known.get(id).filter(|(known, _)| *known == pid) {
            return Some(*cgroup);
        }
        let file = self.proc.join(format!("{pid}/cgroup"));
        let file = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        read_whole(file, Shape::Records, &mut self.bytes).ok()?;
        let text = std::str::from_utf8(&self.bytes).ok()?;
        let path = whole_container(path_in(text, "")?, id);
        // The root is everybody's.
        let path = Some(path).filter(|path| path.len() > 1)?;
        let cgroup = std::fs::metadata(self.mounts.unified()?.directory(path)?).ok()?.ino();
        self.known.insert(id.to_owned(), (pid, cgroup));
        Some(cgroup)
    }
}

/// The container's cgroup, where its first process is further down in it, as a systemd puts itself into `init.scope`.
fn whole_container<'a>(path: &'a str, id: &str) -> &'a str {
    own_part(path, id).unwrap_or(path)
}

/// A path up to the part that has this text in it; `None` if none has.
pub(super) fn own_part<'a>(path: &'a str, text: &str) -> Option<&'a str> {
    let after = path.find(text).filter(|_| !text.is_empty())? + text.len();
    Some(path[after..].find('/').map_or(path, |end| &path[..after + end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_all_below_its_cgroup() {
        let id = "0123456789abcdef";
        for (path, whole) in [
            ("/k/pod1/0123456789abcdef/init.scope/x", "/k/pod1/0123456789abcdef"),
            ("/k/docker-0123456789abcdef.scope/init.scope", "/k/docker-0123456789abcdef.scope"),
            ("/k/docker-0123456789abcdef.scope", "/k/docker-0123456789abcdef.scope"),
            ("/custom/name", "/custom/name"),
        ] {
            assert_eq!(whole_container(path, id), whole);
        }
    }
}
