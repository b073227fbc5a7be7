//! Several ways to see the same thing in the kernel, of which the best that works here is taken: a BTF tracepoint, else a
//! function's entry or exit (fentry, fexit), else a kprobe. What works is found out by trying, never by the version.

use super::bpf::{Refused, Session, refused};
use super::load::is_walk;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, Object, OpenObject, ProgramMut};
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
    /// Attaches the programs of these ways, of all that were loaded.
    pub fn attach_ways(&self, object: &Object, chosen: &[&Way]) -> Result<Vec<Link>, Refused> {
        self.attach(object, |name| chosen.iter().flat_map(|way| way.programs).any(|known| name == *known))
    }

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
                Err(refused) => causes.push(cause(way, refused)?),
            }
        }
        Err(none_works(&causes))
    }

    /// Runs an object in the first of some ways that works here, for one that is large: it is not loaded twice. `run` gives
    /// the session back if it could not load or attach it.
    pub fn run_first(
        mut self,
        ways: &[&'static Way],
        run: impl Fn(Session, &'static Way) -> Result<(), Box<(Session, Refused)>>,
    ) -> Result<(), Refused> {
        let mut causes = Vec::new();
        for way in ways {
            match run(self, way) {
                Ok(()) => return Ok(()),
                Err(failed) => {
                    causes.push(cause(way, failed.1)?);
                    self = failed.0;
                }
            }
        }
        Err(none_works(&causes))
    }

    fn try_way<B>(&self, way: &Way) -> Result<(), Refused>
    where
        B: Default + for<'o> SkelBuilder<'o>,
    {
        let mut storage = MaybeUninit::uninit();
        let mut open = self.open(B::default(), &mut storage)?;
        load_only(open.open_object_mut(), &[way]);
        let skel = self.load_apart(open)?;
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

/// Why a way does not work. If privileges are missing, no other one does without them.
fn cause(way: &Way, refused: Refused) -> Result<String, Refused> {
    match refused {
        Refused::Failed { cause, .. } => Ok(format!("{}: {cause}", way.via)),
        refused @ Refused::NotHere(_) => Err(refused),
    }
}

fn none_works(causes: &[String]) -> Refused {
    Refused::NotHere(format!("this kernel takes none of the hooks that could see it ({})", causes.join("; ")))
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
