//! Several ways to see the same thing in the kernel, of which the best that works here is taken: a BTF tracepoint, else a
//! function's entry or exit (fentry, fexit), else a kprobe. What works is found out by trying, never by the version.

use super::bpf::{Refused, Session, is_walk, refused};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{OpenObject, ProgramMut};
use std::mem::MaybeUninit;

/// One way: the programs that are needed for it.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How they are attached: `fentry`.
    pub via: &'static str,
    /// Their names in the object.
    pub programs: &'static [&'static str],
}

impl Way {
    /// A way with these programs.
    pub const fn new(via: &'static str, programs: &'static [&'static str]) -> Way {
        Way { via, programs }
    }
}

/// The ways that were chosen, as `probes list` shows them: `tp_btf`, or `tp_btf+kprobe` if they differ.
pub fn via(chosen: &[&Way]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for way in chosen {
        if !words.contains(&way.via) {
            words.push(way.via);
        }
    }
    words.join("+")
}

/// Lets only the programs of these ways be loaded with an object.
pub fn load_only(object: &mut OpenObject, chosen: &[&Way]) {
    for mut program in object.progs_mut() {
        let wanted = chosen.iter().flat_map(|way| way.programs).any(|name| program.name() == *name);
        program.set_autoload(wanted);
    }
}

impl Session {
    /// The first of some ways that works here. Each is loaded and attached by itself, and taken back at once. If none
    /// works, the answer says why each does not.
    pub fn choose<B>(&self, ways: &[&'static Way]) -> Result<&'static Way, Refused>
    where
        B: Default + for<'o> SkelBuilder<'o>,
    {
        let mut causes = Vec::new();
        for way in ways {
            match self.try_way::<B>(way) {
                Ok(()) => return Ok(way),
                Err(Refused::Failed { cause, .. }) => causes.push(format!("{}: {cause}", way.via)),
                // Privileges are missing, which no other way does without.
                Err(refused @ Refused::NotHere(_)) => return Err(refused),
            }
        }
        Err(Refused::NotHere(format!(
            "this kernel takes none of the hooks that could see it ({})",
            causes.join("; ")
        )))
    }

    fn try_way<B>(&self, way: &Way) -> Result<(), Refused>
    where
        B: Default + for<'o> SkelBuilder<'o>,
    {
        let mut storage = MaybeUninit::uninit();
        let mut open = self.open(B::default(), &mut storage)?;
        load_only(open.open_object_mut(), &[way]);
        let skel = self.load(open)?;
        // What walks over a map is attached to that, and works if it could be loaded.
        let hooks = |program: &ProgramMut<'_>| program.autoload() && !is_walk(&program.attach_type());
        for program in skel.object().progs_mut().filter(hooks) {
            // The link ends with this step.
            let attached = program.attach().map(drop);
            attached
                .map_err(|error| refused(&format!("attach {}", program.name().to_string_lossy()), &error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_named_once() {
        let (a, b) = (Way::new("tp_btf", &["x"]), Way::new("kprobe", &["y"]));
        assert_eq!(via(&[&a, &a]), "tp_btf");
        assert_eq!(via(&[&a, &b, &a]), "tp_btf+kprobe");
    }
}
