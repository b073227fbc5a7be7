//! Reads procfs and `/run/netns` for namespaces. Never opens a namespace or one of its files, so nothing is pinned.

use crate::kernel::cgroup_mounts::unescape;
use rustc_hash::FxHashMap;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Magic number of nsfs, from `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Longest file that is read here; `comm` and `cgroup` are far below it.
const MAX_FILE: usize = 16 * 1024;
/// A node with a thousand pods has some megabytes of it.
const MAX_MOUNTINFO: usize = 16 * 1024 * 1024;

/// Processes of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// All of them, in the order of `/proc`.
    pub pids: Vec<i32>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Processes {
    /// Processes by the inode of their namespace.
    pub members: FxHashMap<u32, Members>,
    /// Processes that must not be looked at: CAP_SYS_PTRACE is missing.
    pub hidden: u32,
}

/// Namespaces by inode, with their processes. One `readlink` per process.
pub fn processes(proc_root: &Path) -> io::Result<Processes> {
    let dir = open_dir(proc_root)?;
    let mut found = Processes::default();
    let mut buffer = Vec::with_capacity(64);
    for entry in rustix::fs::Dir::read_from(&dir)?.flatten() {
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        match read_inode(&dir, pid, &mut buffer) {
            Ok(inode) => found.members.entry(inode).or_default().pids.push(pid),
            Err(Errno::ACCESS | Errno::PERM) => found.hidden += 1,
            // It ended, or is about to.
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Namespace of a process; `None` if it is gone or hidden.
pub fn namespace_of(proc_root: &Path, pid: i32) -> Option<u32> {
    let link = rustix::fs::readlink(proc_root.join(format!("{pid}/ns/net")), Vec::with_capacity(64)).ok()?;
    parse_link(link.as_bytes())
}

/// Namespace of the node: that of process 1, or our own where process 1 may not be looked at.
pub fn host_namespace(proc_root: &Path) -> Option<u32> {
    namespace_of(proc_root, 1).or_else(|| {
        let link = std::fs::read_link(proc_root.join("self/ns/net")).ok()?;
        parse_link(link.to_str()?.as_bytes())
    })
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn read_inode(dir: &OwnedFd, pid: i32, buffer: &mut Vec<u8>) -> Result<u32, Errno> {
    use std::io::Write;
    let mut path = [0_u8; 32];
    let mut cursor = &mut path[..];
    write!(cursor, "{pid}/ns/net").map_err(|_| Errno::NAMETOOLONG)?;
    let left = cursor.len();
    let name = std::str::from_utf8(&path[..32 - left]).map_err(|_| Errno::INVAL)?;
    let link = rustix::fs::readlinkat(dir, name, std::mem::take(buffer))?;
    let inode = parse_link(link.as_bytes());
    *buffer = link.into_bytes();
    buffer.clear();
    inode.ok_or(Errno::INVAL)
}

/// `net:[4026531840]`.
fn parse_link(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Whether our pids are those of the node. The inode of its pid namespace is fixed (`PROC_PID_INIT_INO` of the kernel).
pub fn in_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// Command name of a process.
pub fn comm(proc_root: &Path, pid: i32) -> Option<String> {
    let text = read_small(&proc_root.join(pid.to_string()).join("comm"))?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// When a process started, in clock ticks since the boot: field 22 of `/proc/<pid>/stat`. Together with the pid it is
/// never used again.
pub fn start_time(proc_root: &Path, pid: i32) -> Option<u64> {
    stat_field(proc_root, pid, 22)
}

/// Whether a process has begun to end: `PF_EXITING` among its flags, field 9 of `/proc/<pid>/stat`. Until its memory is
/// given back, which takes a while if that is much, its links lead on to where it lived.
pub fn is_ending(proc_root: &Path, pid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    stat_field(proc_root, pid, 9).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// A number of `/proc/<pid>/stat`, counted as proc_pid_stat(5) counts.
fn stat_field(proc_root: &Path, pid: i32, number: usize) -> Option<u64> {
    let text = read_small(&proc_root.join(pid.to_string()).join("stat"))?;
    // The command name, which is the second, may contain anything, also parentheses.
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Mounts of namespaces anywhere, from `mountinfo` (proc_pid_mountinfo(5)), whose fourth field is then `net:[<inode>]`.
pub fn all_mounts(proc_root: &Path) -> Vec<(u32, PathBuf)> {
    let Some(text) = read_up_to(&proc_root.join("self/mountinfo"), MAX_MOUNTINFO) else { return Vec::new() };
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let inode = parse_link(words.nth(3)?.as_bytes())?;
        Some((inode, PathBuf::from(unescape(words.next()?))))
    };
    let mut found: Vec<(u32, PathBuf)> = text.lines().filter_map(parse).collect();
    found.sort();
    found.dedup();
    found
}

/// cgroup path of a process.
pub fn cgroup(proc_root: &Path, pid: i32) -> Option<String> {
    let text = read_small(&proc_root.join(pid.to_string()).join("cgroup"))?;
    super::cgroup::path(&text).map(ToOwned::to_owned)
}

/// Most of these are shorter than this: one read then.
const USUAL: usize = 1024;

/// A file that procfs makes in one piece: a read that leaves room has found its end.
fn read_small(path: &Path) -> Option<String> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (mut bytes, mut filled) = (vec![0; USUAL], 0);
    loop {
        filled += rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut bytes[filled..])).ok()?;
        if filled < bytes.len() || bytes.len() >= MAX_FILE {
            break;
        }
        bytes.resize(2 * bytes.len(), 0);
    }
    Some(String::from_utf8_lossy(&bytes[..filled]).into_owned())
}

fn read_up_to(path: &Path, most: usize) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(most as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Files of `/run/netns` that lead to namespaces, with their inodes, sorted by name.
pub fn mounts(dir: &Path) -> Vec<(u32, PathBuf)> {
    let mut found: Vec<_> =
        files(dir).into_iter().filter_map(|path| Some((nsfs_inode(&path)?, path))).collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}

/// Everything in a directory. A missing one is empty: nobody has used `ip netns` yet.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir);
    entries.map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// Inode of the namespace that a file leads to; `None` if it leads to none.
pub fn nsfs_inode(path: &Path) -> Option<u32> {
    let fs = rustix::fs::statfs(path).ok()?;
    if u64::try_from(fs.f_type).ok()? != NSFS_MAGIC {
        return None;
    }
    let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty()).ok()?;
    u32::try_from(stat.st_ino).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_namespaces() {
        assert_eq!(parse_link(b"net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(parse_link(b"net:[99999999999]"), None);
        assert_eq!(parse_link(b"mnt:[1]"), None);
        assert_eq!(parse_link(b"net:[1"), None);
    }

    #[test]
    fn mounts_of_namespaces_anywhere() {
        let proc = std::env::temp_dir().join(format!("netskoop-mountinfo-{}", std::process::id()));
        std::fs::create_dir_all(proc.join("self")).unwrap();
        let text = "36 25 0:4 net:[4026532201] /run/docker/a\\040b rw shared:1 - nsfs nsfs rw\n\
                    37 25 0:4 mnt:[4026532202] /run/x rw - nsfs nsfs rw\n38 25 0:5 / /proc rw - proc proc rw\n";
        std::fs::write(proc.join("self/mountinfo"), text).unwrap();
        assert_eq!(all_mounts(&proc), [(4_026_532_201, PathBuf::from("/run/docker/a b"))]);
        std::fs::remove_dir_all(&proc).unwrap();
    }

    #[test]
    fn our_own_process_is_found() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = processes(Path::new("/proc")).unwrap();
        let ours = namespace_of(Path::new("/proc"), pid).unwrap();
        assert!(found.members[&ours].pids.contains(&pid));
        assert!(start_time(Path::new("/proc"), pid).unwrap() > 0);
    }

    #[test]
    #[allow(clippy::disallowed_types, reason = "a process that ends is needed")]
    fn a_process_that_ends_is_told_from_one_that_lives() {
        let proc = Path::new("/proc");
        assert!(!is_ending(proc, i32::try_from(std::process::id()).unwrap()));
        // Nobody has asked yet how it ended, so its number is still its own.
        let mut child =
            std::process::Command::new("true").stdout(std::process::Stdio::piped()).spawn().unwrap();
        io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut Vec::new()).unwrap();
        assert!(is_ending(proc, i32::try_from(child.id()).unwrap()));
        child.wait().unwrap();
        assert!(!is_ending(proc, 4_194_999), "there is none of this number");
    }

    #[test]
    fn a_plain_file_leads_to_no_namespace() {
        let dir = std::env::temp_dir().join(format!("netskoop-mounts-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("blue"), "").unwrap();
        assert_eq!((mounts(&dir), files(&dir).len()), (vec![], 1));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!((mounts(&dir), files(&dir).len()), (vec![], 0));
    }
}
