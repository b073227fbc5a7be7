//! From the text of an object to one that is in the kernel and attached, within the thread that owns it.

use super::bpf::{Refused, Session, Settings, quiet, refused};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, Object, OpenMapMut, OpenObject, ProgramAttachType, ProgramMut};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

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

    /// Gives a map room for so many entries of each CPU that there may be.
    pub fn room_by_cpu(&self, map: &mut OpenMapMut<'_>, each: usize) -> Result<(), Refused> {
        let cpus = libbpf_rs::num_possible_cpus();
        let room = cpus.map(|cpus| u32::try_from(cpus.saturating_mul(each)).unwrap_or(u32::MAX));
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

    /// Loads it into the kernel. It writes to the ring that all share.
    pub fn load<'o, O: OpenSkel<'o>>(&self, mut open: O) -> Result<O::Output, Refused> {
        let events = open.open_object_mut().maps_mut().find(|map| map.name() == "events");
        let mut events = events.ok_or_else(|| self.failed("find a map", "events"))?;
        let shared = events.reuse_fd(self.loader.ring.map().as_fd());
        shared.map_err(|error| refused("share the event ring", &error))?;
        self.load_apart(open)
    }

    /// The same with a ring of its own, that nobody reads.
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
