//! The way into a namespace and back. Nothing stays open afterwards: an open file would keep the namespace alive.

use super::{Access, Beacon, ReadError, Target};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Why a namespace was not read.
pub(super) enum End {
    /// It is gone.
    Vanished,
    /// What was read is older than what is known.
    Late,
    /// An error.
    Failed(ReadError),
    /// The lane is in a foreign namespace and cannot leave it.
    Lost(ReadError),
}

/// An error with what was being done.
pub(super) fn failed(doing: &'static str, what: String, source: impl Into<std::io::Error>) -> ReadError {
    ReadError::Failed { doing, what, source: source.into() }
}

/// Whether the kernel means that process or namespace is gone: `ENXIO` is what files of a dying namespace give.
fn gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH | Errno::NXIO)
}

/// Calls `read` with a directory below which `net/` is that of the namespace, and makes sure that it was.
pub(super) fn visit(
    root: BorrowedFd<'_>,
    target: &Target,
    home: Option<BorrowedFd<'_>>,
    beacon: &Beacon,
    mut read: impl FnMut(BorrowedFd<'_>),
) -> Result<(), End> {
    match &target.access {
        Access::Process(pid) => process(root, *pid, target, read),
        Access::Either(pid, path) => match process(root, *pid, target, &mut read) {
            Err(End::Vanished) => {
                beacon.enter(target.subject, "setns");
                mount(root, path, target, home, read)
            }
            result => result,
        },
        Access::Mount(path) => {
            beacon.enter(target.subject, "setns");
            mount(root, path, target, home, read)
        }
        Access::Held(namespace) => {
            beacon.enter(target.subject, "setns");
            let own = || own_files(root, read);
            within(namespace.as_fd(), home, || "a namespace that is held".to_owned(), own)?
        }
    }
}

/// Reads through `/proc/<pid>`.
fn process(
    root: BorrowedFd<'_>,
    pid: i32,
    target: &Target,
    read: impl FnOnce(BorrowedFd<'_>),
) -> Result<(), End> {
    let mut digits = itoa::Buffer::new();
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = openat(root, digits.format(pid), directory, Mode::empty());
    let directory = open.map_err(|error| match gone(error) {
        true => End::Vanished,
        false => End::Failed(failed("open", format!("/proc/{pid}"), error)),
    })?;
    read(directory.as_fd());
    // Only now it is sure whose files these were.
    match inode(directory.as_fd()) {
        Ok(inode) if inode == target.inode => Ok(()),
        Ok(_) => Err(End::Vanished),
        Err(error) if gone(error) => Err(End::Vanished),
        Err(error) => Err(End::Failed(failed("read", format!("/proc/{pid}/ns/net"), error))),
    }
}

/// Enters the namespace, reads its files as the calling thread sees them, and comes back.
fn mount(
    root: BorrowedFd<'_>,
    path: &Path,
    target: &Target,
    home: Option<BorrowedFd<'_>>,
    read: impl FnOnce(BorrowedFd<'_>),
) -> Result<(), End> {
    through(root, path, target, home, || own_files(root, read))?
}

/// Reads the files of the namespace in which the calling thread is.
fn own_files(root: BorrowedFd<'_>, read: impl FnOnce(BorrowedFd<'_>)) -> Result<(), End> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = openat(root, c"thread-self", directory, Mode::empty());
    let directory =
        open.map_err(|error| End::Failed(failed("open", "/proc/thread-self".to_owned(), error)))?;
    read(directory.as_fd());
    Ok(())
}

/// Calls `work` inside the namespace, for what belongs to the namespace of whoever makes or opens it: sockets, and the
/// files under `/proc/sys/net`.
pub(super) fn inside<T>(
    root: BorrowedFd<'_>,
    target: &Target,
    home: Option<BorrowedFd<'_>>,
    beacon: &Beacon,
    mut work: impl FnMut() -> T,
) -> Result<T, End> {
    beacon.enter(target.subject, "setns");
    let (pid, mount) = match &target.access {
        Access::Process(pid) => (Some(*pid), None),
        Access::Either(pid, path) => (Some(*pid), Some(path)),
        Access::Mount(path) => (None, Some(path)),
        Access::Held(namespace) => {
            return within(namespace.as_fd(), home, || "a namespace that is held".to_owned(), work);
        }
    };
    if let Some(pid) = pid {
        match through(root, namespace_file(pid, &mut [0; 32]), target, home, &mut work) {
            Err(End::Vanished) if mount.is_some() => {}
            result => return result,
        }
    }
    mount.map_or(Err(End::Vanished), |path| through(root, path, target, home, work))
}

/// `<pid>/ns/net`, below procfs.
fn namespace_file(pid: i32, text: &mut [u8; 32]) -> &Path {
    let room = text.len();
    let mut rest = &mut text[..];
    // Eleven digits and eight letters fit.
    let _ = write!(rest, "{pid}/ns/net");
    let length = room - rest.len();
    Path::new(OsStr::from_bytes(&text[..length]))
}

/// Enters a namespace through a file of it, which is open for that time only, and comes back.
fn through<T>(
    root: BorrowedFd<'_>,
    path: &Path,
    target: &Target,
    home: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> T,
) -> Result<T, End> {
    let what = || path.display().to_string();
    let namespace = open_namespace(root, path, target.inode)
        .map_err(|error| error.map_or(End::Vanished, |error| End::Failed(failed("open", what(), error))))?;
    within(namespace.as_fd(), home, what, work)
}

/// Enters a namespace and comes back.
fn within<T>(
    namespace: BorrowedFd<'_>,
    home: Option<BorrowedFd<'_>>,
    what: impl Fn() -> String,
    work: impl FnOnce() -> T,
) -> Result<T, End> {
    let no_home = || std::io::Error::other("the lane does not know its own namespace");
    let home = home.ok_or_else(|| End::Failed(failed("enter", what(), no_home())))?;
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace, network)
        .map_err(|error| End::Failed(failed("enter", what(), error)))?;
    let done = work();
    move_into_link_name_space(home, network).map_err(|error| End::Lost(failed("leave", what(), error)))?;
    Ok(done)
}

/// Inode of the network namespace of a process.
fn inode(directory: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut buffer = [0_u8; 64];
    let length = rustix::fs::readlinkat_raw(directory, c"ns/net", &mut buffer)?;
    let number = buffer[..length].strip_prefix(b"net:[").and_then(|rest| rest.strip_suffix(b"]"));
    let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or(Errno::INVAL)
}

/// Opens a namespace file, below procfs unless the path is absolute; `Err(None)` if it is another namespace by now, or none.
fn open_namespace(root: BorrowedFd<'_>, path: &Path, inode: u32) -> Result<OwnedFd, Option<Errno>> {
    // A FIFO put there must not block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let vanished = |error| if gone(error) { None } else { Some(error) };
    let file = openat(root, path, flags, Mode::empty()).map_err(vanished)?;
    let stat = rustix::fs::fstat(&file).map_err(vanished)?;
    if stat.st_ino == u64::from(inode) { Ok(file) } else { Err(None) }
}
