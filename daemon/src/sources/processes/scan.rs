//! The calls: one directory of `/proc` at a time, without an allocation for any process.

use crate::kernel::procfs::{Shape, read_whole};
use crate::sources::enter::failed;
use crate::sources::{Beacon, Owners, ReadError};
use crate::table::Subject;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, openat, readlinkat_raw, statat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// So many descriptors are looked at between two looks at the clock.
const STEP: u64 = 128;

/// A look at all processes.
pub(super) struct Scan<'a> {
    /// `/proc`.
    pub(super) root: OwnedFd,
    /// For whole files.
    pub(super) text: &'a mut Vec<u8>,
    /// Whether the size of `/proc/<pid>/fd` tells the number of descriptors.
    pub(super) sized: bool,
    /// When to stop.
    pub(super) end: Instant,
    pub(super) beacon: &'a Beacon,
}

/// Where a process belongs.
pub(super) enum Place {
    Of(Subject),
    /// It must not be looked at; whose it is then is as its cgroup says.
    Hidden(Option<Subject>),
    /// It has ended, or its namespace is not known yet.
    Nowhere,
}

impl Scan<'_> {
    /// Calls `each` with every process. An error if there was no time for all of them: the numbers would not be whole.
    pub(super) fn processes(&mut self, mut each: impl FnMut(&mut Self, i32)) -> Result<(), ReadError> {
        // The list is read with a descriptor of its own, because `each` needs the scan.
        let list =
            openat(&self.root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let list = list.map_err(|error| failed("open", "/proc".to_owned(), error))?;
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut entries = RawDir::new(&list, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| failed("list", "/proc".to_owned(), error))?;
            let name = entry.file_name().to_str().ok();
            let Some(pid) = name.and_then(|name| name.parse::<i32>().ok()) else { continue };
            let now = Instant::now();
            if now >= self.end {
                return Err(failed("look at", "all processes in time".to_owned(), Errno::TIMEDOUT));
            }
            self.beacon.enter_at(Subject::NODE, "processes", now);
            each(self, pid);
        }
        Ok(())
    }

    /// Whose a process with descriptors is, and how many it has, or so (see [`Self::open`]): the second only if the first is
    /// known. `None` if it has none or has ended.
    pub(super) fn holder(&mut self, pid: i32, owners: &dyn Owners) -> Option<(Place, u64)> {
        // Where one call tells the number it comes first: for kernel threads, which have no descriptors, it is the only one.
        let open = if self.sized { Some(self.open(pid)?) } else { None };
        if open == Some(0) {
            return None;
        }
        let place = self.place(pid, owners);
        let open = match (open, &place) {
            (Some(open), _) => open,
            (None, Place::Of(_)) => self.open(pid).filter(|open| *open > 0)?,
            (None, _) => 0,
        };
        Some((place, open))
    }

    /// Whose a process is.
    fn place(&mut self, pid: i32, owners: &dyn Owners) -> Place {
        let mut link = [MaybeUninit::<u8>::uninit(); 64];
        let read = path(pid, "ns/net", |path| {
            readlinkat_raw(&self.root, path, &mut link[..]).map(|(link, _)| inode(link))
        });
        let inode = match read {
            Ok(Some(inode)) => inode,
            Err(Errno::ACCESS | Errno::PERM) => {
                let owner = self.file(pid, "cgroup").and_then(|text| owners.of_cgroup(text));
                return Place::Hidden(owner.or_else(|| owners.of_netns(owners.node_netns())));
            }
            // It ended, or is about to.
            Ok(None) | Err(_) => return Place::Nowhere,
        };
        let shared = inode == owners.node_netns() && owners.has_tenants();
        let tenant = match shared {
            true => self.file(pid, "cgroup").and_then(|text| owners.of_cgroup(text)),
            false => None,
        };
        // A container's process in the node's namespace is not in that of its pod.
        let tenant = tenant.filter(|subject| subject.is_tenant());
        tenant.or_else(|| owners.of_netns(inode)).map_or(Place::Nowhere, Place::Of)
    }

    /// How many descriptors it has open, or so: where the size of the directory tells, numbers are in it that a call such as
    /// accept() has taken and waits to use. `None` if it ended.
    fn open(&mut self, pid: i32) -> Option<u64> {
        if self.sized {
            let stat = path(pid, "fd", |path| statat(&self.root, path, AtFlags::empty())).ok()?;
            return u64::try_from(stat.st_size).ok();
        }
        let mut open = 0;
        self.descriptors(pid, |_, _| open += 1).then_some(open)
    }

    /// How many it has open indeed, and how many of them are sockets; `None` if there was no time for all. One that ended has
    /// none.
    pub(super) fn sockets(&mut self, pid: i32) -> Option<(u64, u64)> {
        let (mut sockets, mut seen, mut in_time) = (0, 0, Instant::now() < self.end);
        let (end, beacon) = (self.end, self.beacon);
        beacon.enter(Subject::NODE, "descriptors");
        self.descriptors(pid, |directory, name| {
            seen += 1;
            if seen % STEP == 0 {
                beacon.enter(Subject::NODE, "descriptors");
                in_time &= Instant::now() < end;
            }
            let mut link = [MaybeUninit::<u8>::uninit(); 16];
            let read = in_time.then(|| readlinkat_raw(directory, name, &mut link[..]));
            let is_socket = |link: &[u8]| link.starts_with(b"socket:[");
            sockets += u64::from(read.is_some_and(|read| read.is_ok_and(|(link, _)| is_socket(link))));
        });
        in_time.then_some((seen, sockets))
    }

    /// The soft limit of its descriptors.
    pub(super) fn limit(&mut self, pid: i32) -> Option<u64> {
        let text = self.file(pid, "limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Calls `each` with every descriptor; false if the process has ended.
    fn descriptors(&mut self, pid: i32, mut each: impl FnMut(&OwnedFd, &CStr)) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = path(pid, "fd", |path| openat(&self.root, path, flags, Mode::empty()));
        let Ok(directory) = directory else { return false };
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            if entry.file_name().to_bytes()[0] != b'.' {
                each(&directory, entry.file_name());
            }
        }
        true
    }

    /// The text of a small file of a process.
    fn file(&mut self, pid: i32, name: &str) -> Option<&str> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = path(pid, name, |path| openat(&self.root, path, flags, Mode::empty())).ok()?;
        read_whole(file, Shape::Records, self.text).ok()?;
        std::str::from_utf8(self.text).ok()
    }
}

/// `net:[4026531840]`.
fn inode(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Calls `then` with `<pid>/<name>`.
fn path<T>(pid: i32, name: &str, then: impl FnOnce(&CStr) -> Result<T, Errno>) -> Result<T, Errno> {
    let mut bytes = [0_u8; 40];
    let mut digits = itoa::Buffer::new();
    let mut at = 0;
    for part in [digits.format(pid), "/", name] {
        let room = bytes.get_mut(at..at + part.len()).ok_or(Errno::NAMETOOLONG)?;
        room.copy_from_slice(part.as_bytes());
        at += part.len();
    }
    then(CStr::from_bytes_until_nul(&bytes).map_err(|_| Errno::NAMETOOLONG)?)
}
