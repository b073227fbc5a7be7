//! Programs that look at the packets of sockets: they are attached to the root of the unified hierarchy of cgroups, beside
//! those of others.

use super::bpf::{Refused, Session, refused};
use super::cgroup_mounts::Mounts;
use libbpf_rs::{Link, Object, ProgramType};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Number of the directory of a hierarchy's root.
const ROOT: u64 = 1;

impl Session {
    /// Attaches the programs of an object that look at packets. They stay as long as the links live.
    pub fn attach_to_root_cgroup(&self, object: &Object) -> Result<Vec<Link>, Refused> {
        let mounts = Mounts::read(Path::new("/proc"));
        let Some(mount) = mounts.unified() else {
            return Err(Refused::NotHere(
                "the unified hierarchy of cgroups (version 2) is not mounted, whose root programs for packets hang on"
                    .to_owned(),
            ));
        };
        let doing = || format!("look at packets from {}", mount.point.display());
        let opened = File::open(&mount.point).and_then(|root| Ok((root.metadata()?.ino(), root)));
        let (number, root) =
            opened.map_err(|error| Refused::Failed { doing: doing(), cause: error.to_string() })?;
        if number != ROOT {
            self.limited(format!(
                "only sockets below the cgroup at {} are seen: the root is out of sight",
                mount.point.display()
            ));
        }
        let packets = |program: &libbpf_rs::ProgramMut<'_>| program.prog_type() == ProgramType::CgroupSkb;
        let attached = object.progs_mut().filter(packets).map(|program| {
            program.attach_cgroup(root.as_raw_fd()).map_err(|error| refused(&doing(), &error))
        });
        attached.collect()
    }
}
