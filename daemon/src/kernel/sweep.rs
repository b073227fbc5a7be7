//! Programs that walk over what an object remembers, again and again: what does not happen comes by no hook.

use super::bpf::{Refused, Session, refused};
use super::tasks::walk;
use libbpf_rs::{Link, MapCore, Object};
use std::os::fd::AsFd;

/// A program that runs for each entry of a map.
#[derive(Debug)]
pub struct Sweep(Link);

impl Sweep {
    /// Runs it for all entries. `what` is looked for, in case that this fails.
    pub fn run_or_say(&self, what: &str) {
        if let Err(error) = walk(&self.0) {
            tracing::debug!("cannot look for {what}: {error}");
        }
    }
}

impl Session {
    /// Makes a program that is to run for each entry of a map.
    pub fn sweep(&self, object: &Object, program: &str, map: &str) -> Result<Sweep, Refused> {
        let doing = || format!("walk over {map} with {program}");
        let missing = || Refused::Failed { doing: doing(), cause: "the object has none".to_owned() };
        let program = object.progs_mut().find(|found| found.name() == program).ok_or_else(missing)?;
        let map = object.maps().find(|found| found.name() == map).ok_or_else(missing)?;
        let link = program.attach_iter(map.as_fd()).map_err(|error| refused(&doing(), &error))?;
        Ok(Sweep(link))
    }
}
