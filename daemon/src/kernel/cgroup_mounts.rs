//! Where the hierarchies of cgroups are mounted, from `mountinfo` (proc_pid_mountinfo(5)), and which cgroup a process is in
//! (cgroups(7)).

use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest `/proc/self/mountinfo` that is read.
const MAX_MOUNTINFO: u64 = 16 << 20;

/// Where a hierarchy can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory.
    pub point: PathBuf,
    /// What comes before the paths below it.
    pub prefix: String,
}

impl Mount {
    /// The directory of a cgroup, by its path as in `/proc/<pid>/cgroup`; `None` if it is out of sight.
    pub fn directory(&self, path: &str) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.prefix)?;
        (below.is_empty() || below.starts_with('/')).then(|| self.point.join(below.trim_start_matches('/')))
    }
}

/// The mounts of hierarchies, as the mounts of this process show them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<(String, Mount)>);

impl Mounts {
    /// Reads them, with procfs at `proc_root`.
    pub fn read(proc_root: &Path) -> Mounts {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(proc_root.join("self/mountinfo"));
        let read = file.and_then(|file| file.take(MAX_MOUNTINFO).read_to_end(&mut bytes));
        read.map(|_| Mounts::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
    }

    /// Those in a text of `mountinfo`. Of several of one hierarchy the one that shows most of it comes first.
    pub fn parse(text: &str) -> Mounts {
        let mut found: Vec<(usize, (String, Mount))> = text.lines().filter_map(line).collect();
        found.sort_by_key(|(rank, _)| *rank);
        Mounts(found.into_iter().map(|(_, mount)| mount).collect())
    }

    /// The unified hierarchy.
    pub fn unified(&self) -> Option<&Mount> {
        self.of("")
    }

    /// The hierarchy of a controller of cgroup v1.
    pub fn controller(&self, name: &str) -> Option<&Mount> {
        self.of(name).filter(|_| !name.is_empty())
    }

    fn of(&self, name: &str) -> Option<&Mount> {
        let has = |controllers: &str| controllers.split(',').any(|controller| controller == name);
        self.0.iter().find(|(controllers, _)| has(controllers)).map(|(_, mount)| mount)
    }
}

fn line(line: &str) -> Option<(usize, (String, Mount))> {
    let (before, after) = line.split_once(" - ")?;
    let mut parts = before.split(' ').skip(3);
    let (root, point) = (unescape(parts.next()?), unescape(parts.next()?));
    let mut after = after.split(' ');
    let controllers = match after.next()? {
        "cgroup2" => String::new(),
        // The options of the file system name its controllers, among others.
        "cgroup" => after.nth(1)?.to_owned(),
        _ => return None,
    };
    // A mount made outside of our cgroup namespace has a root like `/../..`: it shows more than we would see.
    let rank = if root == "/" || root.starts_with("/..") { 0 } else { root.len() };
    let prefix = if rank == 0 { String::new() } else { root };
    Some((rank, (controllers, Mount { point: point.into(), prefix })))
}

/// The cgroup of a process in a hierarchy, from the text of its `/proc/<pid>/cgroup`: that of a controller of cgroup v1, or
/// the unified one for an empty name.
pub fn path_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = controllers == controller || controllers.split(',').any(|name| name == controller);
        (is_it && path.starts_with('/')).then_some(path)
    })
}

/// Undoes the `\040` of `mountinfo`.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = (first == b'\\').then(|| tail.get(..3)).flatten();
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                          31 25 0:27 / /sys/fs/cgroup/my\\040acct rw shared:9 - cgroup cgroup rw,memory,cpuacct\n\
                          32 25 0:28 /inner /mnt rw - cgroup2 cgroup2 rw\n\
                          33 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                          34 25 0:5 / /proc rw - proc proc rw\n";

    #[test]
    fn hierarchies_are_found() {
        let mounts = Mounts::parse(HYBRID);
        let point = |mount: Option<&Mount>| mount.map(|mount| mount.point.display().to_string());
        assert_eq!(point(mounts.unified()).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(point(mounts.controller("cpu")).as_deref(), Some("/sys/fs/cgroup/cpu"));
        assert_eq!(point(mounts.controller("cpuacct")).as_deref(), Some("/sys/fs/cgroup/my acct"));
        assert_eq!((mounts.controller("pids"), mounts.controller("")), (None, None));
    }

    #[test]
    fn a_mount_of_a_part_shows_that_part() {
        let mount = Mount { point: "/mnt".into(), prefix: "/inner".into() };
        assert_eq!(mount.directory("/inner/a"), Some("/mnt/a".into()));
        assert_eq!(mount.directory("/inner"), Some("/mnt".into()));
        assert_eq!((mount.directory("/innermost"), mount.directory("/a")), (None, None));
        let whole = Mount { point: "/c".into(), prefix: String::new() };
        assert_eq!(
            (whole.directory("/"), whole.directory("/a/b")),
            (Some("/c".into()), Some("/c/a/b".into()))
        );
    }

    #[test]
    fn the_cgroup_of_a_process_in_each_hierarchy() {
        let text = "4:memory:/m\n2:cpuacct,cpu:/c:d\n1:name=systemd:/\n0::/u\n";
        assert_eq!((path_in(text, "cpu"), path_in(text, "")), (Some("/c:d"), Some("/u")));
        assert_eq!((path_in(text, "pids"), path_in("garbage", "")), (None, None));
    }
}
