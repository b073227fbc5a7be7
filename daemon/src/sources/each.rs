//! The namespaces of a job, one after the other, for sources that ask over netlink.

use super::enter::{End, failed, inside};
use super::{ReadError, Report, Scratch, Target, Want};
use crate::kernel::netlink::{Family, Netlink};
use crate::table::Table;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use std::path::Path;
use std::time::Instant;

/// What a source reads with in one namespace.
pub(super) struct Visit<'a> {
    /// The namespace.
    pub(super) target: &'a Target,
    /// A socket that was made inside.
    pub(super) netlink: &'a mut Netlink,
    /// Memory for what the kernel sends.
    pub(super) bytes: &'a mut Vec<u8>,
}

/// Calls `read` for each namespace of the job, with a socket made inside. `prepare` is called inside before, for files that
/// show the namespace of whoever opens them; where it finds nothing to ask for, no socket is made. What was put into the
/// tables is taken back where one of them fails.
pub(super) fn each<T>(
    proc: &Path,
    family: Family,
    want: &Want<'_>,
    scratch: &mut Scratch,
    out: &mut [Table],
    mut prepare: impl FnMut() -> Result<T, ReadError>,
    mut read: impl FnMut(Visit<'_>, T, &mut [Table]) -> Result<(), ReadError>,
) -> Report {
    let mut report = Report::default();
    let total = u32::try_from(want.targets.len()).unwrap_or(u32::MAX);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(proc, flags, Mode::empty()) {
        Ok(root) => root,
        Err(error) => {
            let error = Some(failed("open", proc.display().to_string(), error));
            return Report { failed: total, error, ..report };
        }
    };
    let home = scratch.home.clone();
    let home = home.as_ref().map(AsFd::as_fd);
    for (index, target) in (0..total).zip(want.targets) {
        if Instant::now() >= want.deadline {
            report.late += total - index;
            break;
        }
        let make = || {
            let prepared = prepare()?;
            let netlink = Netlink::open(family);
            Ok((prepared, netlink.map_err(|error| failed("open", "a netlink socket".into(), error))?))
        };
        let made = inside(root.as_fd(), target, home, want.beacon, make);
        let done = made.and_then(|made| {
            let (prepared, mut netlink) = made.map_err(why)?;
            want.beacon.enter(target.subject, "netlink");
            let bytes = &mut scratch.bytes;
            let visit = Visit { target, netlink: &mut netlink, bytes };
            let done = read(visit, prepared, out);
            report.retries += netlink.take_retries();
            done.map_err(why)
        });
        let Err(end) = done else {
            report.done += 1;
            continue;
        };
        out.iter_mut().for_each(|table| table.retract(target.subject));
        match end {
            End::Vanished => report.vanished += 1,
            End::Late => report.late += 1,
            End::Failed(error) => report.fail(error),
            End::Lost(error) => {
                report.fail(error);
                report.late += total - index - 1;
                scratch.lost = true;
                break;
            }
        }
    }
    want.beacon.leave();
    report
}

fn why(error: ReadError) -> End {
    match error {
        ReadError::Vanished => End::Vanished,
        ReadError::Late => End::Late,
        error => End::Failed(error),
    }
}
