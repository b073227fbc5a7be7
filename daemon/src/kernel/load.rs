//! From the text of an object to one that is in the kernel and attached, within the thread that owns it.

use super::bpf::{Refused, Session, Settings, quiet, refused};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapHandle, MapType, Object, OpenMapMut, OpenObject, ProgramAttachType, ProgramMut};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

/// For how many namespaces the sizes of maps are that the sources name, with room for two or four times as many of them, or for
/// more of what is counted in each.
const NAMESPACES: usize = 256;
/// How much memory a machine has where there are not going to be more. All of a map is taken at once.
const MEMORY: u64 = 32 << 30;
/// The most times that maps are larger on a larger node.
const MOST_TIMES: u64 = 16;

/// How many times larger maps are to be on this machine, with so many namespaces.
pub(super) fn times_larger(namespaces: usize) -> u32 {
    let system = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "its width is that of the machine's words")]
    let memory = u64::from(system.totalram).saturating_mul(system.mem_unit.into());
    times(namespaces, memory)
}

fn times(namespaces: usize, memory: u64) -> u32 {
    let needed = (namespaces.div_ceil(NAMESPACES) as u64).max(memory.div_ceil(MEMORY));
    needed.clamp(1, MOST_TIMES).next_power_of_two() as u32
}

/// Whether a map holds something for each namespace, or each of what namespaces have.
fn grows(map: &OpenMapMut<'_>) -> bool {
    map.map_type() == MapType::Hash
}

impl Session {
    /// Opens an object, with the type information that was configured.
    pub fn open<'o, B: SkelBuilder<'o>>(
        &self,
        mut builder: B,
        storage: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<B::Output, Refused> {
        quiet();
        let doing = format!("open {}", self.name);
        if let Some(path) = self.loader.features.path() {
            let chosen = builder.object_builder_mut().btf_custom_path(path);
            chosen.map_err(|error| refused(&doing, &error))?;
        }
        builder.open(storage).map_err(|error| refused(&doing, &error))
    }

    /// Gives a map room for so many entries of each CPU that there may be, and for `least` in all.
    pub fn room_by_cpu(&self, map: &mut OpenMapMut<'_>, each: usize, least: usize) -> Result<(), Refused> {
        let cpus = libbpf_rs::num_possible_cpus();
        let room = cpus.map(|cpus| u32::try_from(cpus.saturating_mul(each).max(least)).unwrap_or(u32::MAX));
        let sized = room.and_then(|room| map.set_max_entries(room));
        sized.map_err(|error| refused(&format!("size a map of {}", self.name), &error))
    }

    /// Loads it, tells it the settings to begin with, and attaches it.
    pub fn hook<'o, O: OpenSkel<'o>>(
        &self,
        open: O,
        apply: impl FnOnce(&mut O::Output, &Settings),
    ) -> Result<(O::Output, Vec<Link>), Refused> {
        let mut skel = self.load(open)?;
        apply(&mut skel, self.settings());
        let links = self.attach(skel.object(), |_| true)?;
        Ok((skel, links))
    }

    /// Loads it into the kernel. It has the ring and the token buckets that all share.
    pub fn load<'o, O: OpenSkel<'o>>(&self, mut open: O) -> Result<O::Output, Refused> {
        let times = times_larger(self.loader.namespaces);
        for mut map in open.open_object_mut().maps_mut().filter(grows) {
            let room = map.max_entries().saturating_mul(times);
            let sized = map.set_max_entries(room);
            sized.map_err(|error| refused(&format!("size a map of {}", self.name), &error))?;
        }
        self.share(&mut open, "events", self.loader.ring.map())?;
        self.share(&mut open, "buckets", self.loader.buckets.map())?;
        self.load_apart(open)
    }

    /// Gives it a map that others have too.
    fn share<'o, O: OpenSkel<'o>>(&self, open: &mut O, name: &str, map: &MapHandle) -> Result<(), Refused> {
        let own = open.open_object_mut().maps_mut().find(|own| own.name() == name);
        let mut own = own.ok_or_else(|| self.failed("find a map", name))?;
        let shared = own.reuse_fd(map.as_fd());
        shared.map_err(|error| refused(&format!("share the map {name}"), &error))
    }

    /// The same with a ring of its own, that nobody reads, and without room for what it counts.
    pub(super) fn load_apart<'o, O: OpenSkel<'o>>(&self, open: O) -> Result<O::Output, Refused> {
        let features = &self.loader.features;
        open.load().map_err(|error| features.explained(refused(&format!("load {}", self.name), &error)))
    }

    /// Attaches those of the programs that were loaded whose names are wanted. They stay attached as long as the links live.
    /// Those that walk what the kernel has are for [`Session::ready`].
    pub(super) fn attach(
        &self,
        object: &Object,
        wanted: impl Fn(&OsStr) -> bool,
    ) -> Result<Vec<Link>, Refused> {
        let mut links = Vec::new();
        let hooks = |program: &ProgramMut<'_>| {
            program.autoload() && !is_walk(&program.attach_type()) && wanted(program.name())
        };
        for program in object.progs_mut().filter(hooks) {
            let doing = || format!("attach {} of {}", program.name().display(), self.name);
            links.push(program.attach().map_err(|error| refused(&doing(), &error))?);
        }
        Ok(links)
    }

    /// Runs an object that needs nothing of its own any more, until it is to be unloaded. `apply` tells it settings, for the
    /// first time before it is attached; `via` and `counters` are for [`Session::ready`].
    pub fn run<'o, O: OpenSkel<'o>>(
        self,
        open: O,
        mut apply: impl FnMut(&mut O::Output, &Settings),
        via: &str,
        counters: &[&str],
    ) -> Result<(), Refused> {
        let (mut skel, _links) = self.hook(open, &mut apply)?;
        self.ready(skel.object(), via, counters)?;
        self.serve(|settings| apply(&mut skel, settings));
        Ok(())
    }
}

/// Whether a program runs for each of something that the kernel has, when it is asked.
pub(super) fn is_walk(kind: &ProgramAttachType) -> bool {
    matches!(kind, ProgramAttachType::TraceIter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_grow_with_the_node() {
        let small = [0, 1, 256, 257, 512, 513, 1000, 1_000_000].map(|namespaces| times(namespaces, 8 << 30));
        assert_eq!(small, [1, 1, 1, 2, 2, 4, 4, 16]);
        let empty = [1, 32, 33, 64, 65, 512, 100_000].map(|gib| times(3, gib << 30));
        assert_eq!(empty, [1, 1, 2, 2, 4, 16, 16]);
        assert_eq!(times(1000, 64 << 30), 4);
    }
}
