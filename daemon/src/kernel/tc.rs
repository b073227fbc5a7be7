//! Two programs on each of some interfaces, one for each way through it. On kernels that have them they hang on links, which
//! end with the thread (tcx); else on filters, which are removed.

#![allow(unsafe_code, reason = "libbpf-rs has no call to attach a program this way")]

use super::bpf::Refused;
use super::default_route;
use super::netlink::filters::{self, Direction};
use super::netlink::{Family, Netlink, NetlinkError, link};
use super::parts::{CLS_BPF, SCH_INGRESS};
use crate::declare::matches_pattern;
use libbpf_rs::libbpf_sys::bpf_program__attach_tcx;
use libbpf_rs::{AsRawLibbpf, Link, Object, ProgramMut};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

/// Interfaces with programs at most.
pub const MAX_DEVICES: usize = 512;
/// The interface that every namespace has.
const LOOPBACK: u32 = 1;

/// Interfaces that are attached to or let go of before others have their turn: for each the kernel waits until no CPU
/// runs what was there before, some milliseconds.
const AT_ONCE: usize = 16;
/// How soon an interface that refused is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What was done.
#[derive(Debug)]
pub struct Followed {
    /// Interfaces that may have been counted and are not any more: those that were let go, and those of which only one way
    /// could be attached to, as of one that is deleted meanwhile.
    pub gone: Vec<u32>,
    /// How soon there is more to do, even if nothing changes.
    pub again: Option<Duration>,
}

/// What hangs on an interface.
enum Attached {
    /// It ends when this is dropped.
    Links { _in: Link, _out: Link },
    /// It is removed.
    Filters,
}

/// Programs of an object on interfaces of the calling thread's namespace.
pub struct Taps {
    netlink: Netlink,
    /// Told when interfaces or routes come and go.
    changes: OwnedFd,
    has_links: bool,
    attached: BTreeMap<u32, (String, Attached)>,
    /// Interfaces that refused, which is said once.
    refused: BTreeMap<u32, String>,
}

impl Taps {
    /// Finds out which way the programs can be attached here. Filters that an earlier daemon left are removed.
    pub fn new(object: &Object, names: [&str; 2], proc: &Path) -> Result<Taps, Refused> {
        let failed = |doing: &str, error: &dyn std::fmt::Display| Refused::Failed {
            doing: doing.to_owned(),
            cause: error.to_string(),
        };
        let netlink = Netlink::open(Family::Route).map_err(|error| failed("open netlink", &error))?;
        let changes = listen().map_err(|error| failed("listen for interfaces", &error))?;
        // A link on the loopback interface tells, and ends at once.
        let trial = attach_link(object, names[0], LOOPBACK);
        let has_links = trial.is_ok();
        let missing = [SCH_INGRESS, CLS_BPF].into_iter().find(|part| !part.is_here(proc));
        if let (Err(error), Some(part)) = (trial, missing) {
            let why =
                format!("this kernel attaches no program to an interface ({error}), and {}", part.absence());
            return Err(Refused::NotHere(why));
        }
        if let Err(error) = filters::remove_all() {
            tracing::warn!(%error, "cannot look for filters that an earlier daemon left");
        }
        Ok(Taps { netlink, changes, has_links, attached: BTreeMap::new(), refused: BTreeMap::new() })
    }

    /// How programs are attached.
    pub fn via(&self) -> &'static str {
        if self.has_links { "tcx" } else { "clsact" }
    }

    /// Interfaces with programs.
    pub fn len(&self) -> usize {
        self.attached.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.attached.is_empty()
    }

    /// Whether interfaces or routes have changed since the last call.
    pub fn changed(&self) -> bool {
        let mut changed = false;
        let mut buffer = [0_u8; 64];
        // What is told is of no interest, only that something is; if some of it was lost, there was something.
        loop {
            match rustix::net::recv(&self.changes, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => changed = true,
                Err(_) => return changed,
            }
        }
    }

    /// Attaches to interfaces that fit a pattern (without patterns: to those of the default routes), and lets go of all
    /// others: of so many at once that it does not take long.
    pub fn follow(
        &mut self,
        object: &Object,
        names: [&str; 2],
        patterns: &[String],
        proc: &Path,
    ) -> io::Result<Followed> {
        let links = link::list(&mut self.netlink)?;
        let routes = if patterns.is_empty() { default_route::interfaces(proc)? } else { Vec::new() };
        let is_wanted = |name: &str| {
            routes.iter().any(|route| route == name)
                || patterns.iter().any(|pattern| matches_pattern(pattern.as_bytes(), name.as_bytes()))
        };
        let wanted: BTreeMap<u32, String> =
            links.into_iter().filter(|(_, name)| is_wanted(name)).take(MAX_DEVICES).collect();
        self.refused.retain(|index, _| wanted.contains_key(index));
        let mut gone: Vec<u32> =
            self.attached.keys().copied().filter(|index| !wanted.contains_key(index)).collect();
        let mut new: Vec<(u32, String)> =
            wanted.into_iter().filter(|(index, _)| !self.attached.contains_key(index)).collect();
        // Those that refused take no turn of others.
        new.sort_by_key(|(index, _)| self.refused.contains_key(index));
        let fresh = new.iter().filter(|(index, _)| !self.refused.contains_key(index)).count();
        let is_more = gone.len() + fresh > AT_ONCE;
        gone.truncate(AT_ONCE);
        new.truncate(AT_ONCE - gone.len());
        gone.iter().for_each(|index| self.detach(*index));
        for (index, name) in new {
            if !self.attach(object, names, index, name) {
                gone.push(index);
            }
        }
        let again = match is_more {
            true => Some(Duration::ZERO),
            false => (!self.refused.is_empty()).then_some(ASK_AGAIN),
        };
        Ok(Followed { gone, again })
    }

    /// Whether both programs are on it now.
    fn attach(&mut self, object: &Object, names: [&str; 2], index: u32, name: String) -> bool {
        let attached = match self.has_links {
            true => attach_links(object, names, index),
            false => self.attach_filters(object, names, index),
        };
        match attached {
            Ok(attached) => {
                tracing::debug!(interface = name, "it is counted what goes through it");
                self.refused.remove(&index);
                self.attached.insert(index, (name, attached));
                true
            }
            Err(error) => {
                let sentence = error.to_string();
                if self.refused.get(&index) != Some(&sentence) {
                    tracing::warn!(interface = name, %error, "cannot count what goes through it");
                }
                self.refused.insert(index, sentence);
                false
            }
        }
    }

    fn attach_filters(&mut self, object: &Object, names: [&str; 2], index: u32) -> io::Result<Attached> {
        let [into, out] = names.map(|name| program(object, name));
        let (into, out) = (into?, out?);
        let programs = [(Direction::In, fd(&into)), (Direction::Out, fd(&out))];
        filters::add(&mut self.netlink, index, programs)?;
        Ok(Attached::Filters)
    }

    fn detach(&mut self, index: u32) {
        if let Some((name, Attached::Filters)) = self.attached.remove(&index)
            && let Err(error) = filters::remove(&mut self.netlink, index)
        {
            tracing::warn!(interface = name, %error, "cannot remove the filters of this daemon");
        }
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        let all: Vec<u32> = self.attached.keys().copied().collect();
        all.into_iter().for_each(|index| self.detach(index));
    }
}

/// Removes filters that a daemon left which was killed, from the interfaces of the calling thread's namespace. How many had
/// some.
pub fn clean_up(proc: &Path) -> Result<usize, NetlinkError> {
    // Without these there can be none, and to ask would load them.
    if !SCH_INGRESS.is_here(proc) || !CLS_BPF.is_here(proc) {
        return Ok(0);
    }
    filters::remove_all().map(|had| had.len())
}

/// A socket that is told of interfaces and routes.
fn listen() -> Result<OwnedFd, rustix::io::Errno> {
    /// `RTMGRP_LINK`, `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE`.
    const GROUPS: u32 = 0x1 | 0x40 | 0x400;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

fn program<'o>(object: &'o Object, name: &str) -> io::Result<ProgramMut<'o>> {
    let found = object.progs_mut().find(|program| program.name() == name);
    found.ok_or_else(|| io::Error::other(format!("there is no program {name}")))
}

fn fd<'p>(program: &'p ProgramMut<'_>) -> BorrowedFd<'p> {
    program.as_fd()
}

fn attach_links(object: &Object, names: [&str; 2], index: u32) -> io::Result<Attached> {
    let [into, out] = names.map(|name| attach_link(object, name, index));
    Ok(Attached::Links { _in: into?, _out: out? })
}

fn attach_link(object: &Object, name: &str, index: u32) -> io::Result<Link> {
    let program = program(object, name)?;
    let index = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the program is loaded and lives as long as the object; no options stand for the usual ones.
    let link =
        unsafe { bpf_program__attach_tcx(program.as_libbpf_object().as_ptr(), index, std::ptr::null()) };
    let link = NonNull::new(link).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the link is new, and nobody else knows it.
    Ok(unsafe { Link::from_ptr(link) })
}
