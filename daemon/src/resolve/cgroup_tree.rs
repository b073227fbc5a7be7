//! From a cgroup's id, as the kernel puts it into events, to its path in the unified hierarchy (cgroups(7)).
//!
//! The kernel gives every cgroup an id that it never gives again (kernfs), and shows it as the inode number of the
//! cgroup's directory. So one reading of the tree's directories, without a look at any file in them, answers for all of
//! them, and a path once learned stays true. The tree is read when an id is asked for that was not in it the last time.

use crate::kernel::cgroup_mounts::{Mount, Mounts};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Directories that one walk reads, and how deep it goes.
const MAX_DIRECTORIES: usize = 65_536;
const MAX_DEPTH: usize = 32;
/// Time between two walks: this many times what the last one took, so that they never take more than 2 % of a CPU,
const REST: u32 = 50;
/// and between these.
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// How long, and how many of those that are gone are remembered: their events may still be on their way.
const DEPARTED: Duration = Duration::from_secs(10);
const MAX_DEPARTED: usize = 8192;
/// Ids that a walk did not find. Such an id never comes into the tree, since it was given before it was asked for.
const MAX_MISSING: usize = 8192;

/// What is known of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The path, as in `/proc/<pid>/cgroup`: `/kubepods/pod1/abc`.
    Path(Arc<str>),
    /// No such cgroup, or none that can be seen from here.
    Missing,
    /// Not known yet, and the tree was walked just now: ask again.
    Later,
}

/// The tree as it was last seen.
#[derive(Debug)]
pub struct CgroupTree {
    proc_root: PathBuf,
    mount: Option<Mount>,
    known: FxHashMap<u64, Known>,
    missing: FxHashSet<u64>,
    walks: u64,
    /// Before this moment there is no further walk.
    next_walk: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    path: Arc<str>,
    /// The walk that last found it.
    walk: u64,
    /// When a walk first did not.
    departed: Option<Instant>,
}

impl CgroupTree {
    /// The tree that the mounts of this process show, with procfs at `proc_root`.
    pub fn new(proc_root: &Path) -> CgroupTree {
        CgroupTree {
            proc_root: proc_root.to_owned(),
            mount: find_mount(proc_root),
            known: FxHashMap::default(),
            missing: FxHashSet::default(),
            walks: 0,
            next_walk: None,
        }
    }

    /// Where the unified hierarchy is mounted; `None` if it is not, and then no id has a path.
    pub fn mount_point(&self) -> Option<&Path> {
        self.mount.as_ref().map(|mount| mount.point.as_path())
    }

    /// The path of a cgroup, also of one that has just gone if it was known before. An id that is not known makes the
    /// tree be read, which takes milliseconds where there are thousands of cgroups.
    pub fn path(&mut self, id: u64) -> Found {
        self.path_at(id, Instant::now())
    }

    fn path_at(&mut self, id: u64, now: Instant) -> Found {
        if let Some(known) = self.known.get(&id) {
            return Found::Path(Arc::clone(&known.path));
        }
        if id == 0 || self.missing.contains(&id) {
            return Found::Missing;
        }
        if self.next_walk.is_some_and(|next| now < next) {
            return Found::Later;
        }
        self.walk(now);
        if let Some(known) = self.known.get(&id) {
            return Found::Path(Arc::clone(&known.path));
        }
        if self.missing.len() >= MAX_MISSING {
            self.missing.clear();
        }
        self.missing.insert(id);
        Found::Missing
    }

    fn walk(&mut self, now: Instant) {
        let began = Instant::now();
        self.walks += 1;
        if self.mount.is_none() {
            self.mount = find_mount(&self.proc_root);
        }
        if let Some(mount) = self.mount.clone() {
            self.read_tree(&mount);
        }
        self.forget_departed(now);
        let rest = (began.elapsed() * REST).clamp(SHORTEST_REST, LONGEST_REST);
        self.next_walk = Some(now + rest);
    }

    /// Reads directory by directory. What cannot be read is left out: it has been removed, most likely.
    fn read_tree(&mut self, mount: &Mount) {
        let Ok(root) = open_dir(&rustix::fs::CWD, &mount.point) else { return };
        let own = rustix::fs::fstat(&root).map(|stat| stat.st_ino);
        if let Ok(id) = own {
            let path = if mount.prefix.is_empty() { "/" } else { &mount.prefix };
            self.note(id, path);
        }
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut left = vec![(String::new(), 0)];
        let mut seen = 1;
        while let Some((parent, depth)) = left.pop() {
            let dir = match parent.strip_prefix('/') {
                None => open_dir(&root, Path::new(".")),
                Some(relative) => open_dir(&root, Path::new(relative)),
            };
            let Ok(dir) = dir else { continue };
            let mut entries = RawDir::new(&dir, &mut buffer);
            while let Some(Ok(entry)) = entries.next() {
                let name = entry.file_name().to_bytes();
                if entry.file_type() != FileType::Directory || name == b"." || name == b".." {
                    continue;
                }
                // A name that is not text is nobody's whom a runtime or systemd made.
                let Ok(name) = std::str::from_utf8(name) else { continue };
                if seen >= MAX_DIRECTORIES {
                    return;
                }
                seen += 1;
                let path = format!("{parent}/{name}");
                self.note(entry.ino(), &format!("{}{path}", mount.prefix));
                if depth + 1 < MAX_DEPTH {
                    left.push((path, depth + 1));
                }
            }
        }
    }

    fn note(&mut self, id: u64, path: &str) {
        let walk = self.walks;
        let fresh = || Known { path: path.into(), walk, departed: None };
        let known = self.known.entry(id).or_insert_with(fresh);
        (known.walk, known.departed) = (walk, None);
    }

    /// Those that this walk did not find are kept a little longer, and not too many of them.
    fn forget_departed(&mut self, now: Instant) {
        let walk = self.walks;
        self.known.retain(|_, known| {
            if known.walk != walk {
                let since = *known.departed.get_or_insert(now);
                return now.saturating_duration_since(since) < DEPARTED;
            }
            true
        });
        let mut departed: Vec<(Instant, u64)> =
            self.known.iter().filter_map(|(id, known)| Some((known.departed?, *id))).collect();
        let excess = departed.len().saturating_sub(MAX_DEPARTED);
        if excess > 0 {
            departed.sort_unstable();
            departed[..excess].iter().for_each(|(_, id)| drop(self.known.remove(id)));
        }
    }
}

fn open_dir(at: &impl std::os::fd::AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn find_mount(proc_root: &Path) -> Option<Mount> {
    Mounts::read(proc_root).unified().cloned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernel::cgroup_mounts::unescape;
    use std::os::unix::fs::MetadataExt;

    /// A tree of plain directories, which have inode numbers as well, and a procfs that says it is the hierarchy.
    pub(crate) struct Tree(pub(crate) PathBuf);

    impl Tree {
        pub(crate) fn new(name: &str) -> Tree {
            let dir = std::env::temp_dir().join(format!("netskoop-cgroups-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(dir.join("proc/self")).unwrap();
            std::fs::create_dir_all(dir.join("tree")).unwrap();
            let line = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", dir.join("tree").display());
            std::fs::write(dir.join("proc/self/mountinfo"), line).unwrap();
            Tree(dir)
        }
        /// Makes a directory; its id.
        pub(crate) fn make(&self, path: &str) -> u64 {
            let dir = self.0.join("tree").join(path);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::metadata(dir).unwrap().ino()
        }
        pub(crate) fn proc(&self) -> PathBuf {
            self.0.join("proc")
        }
        fn open(&self) -> CgroupTree {
            CgroupTree::new(&self.proc())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn is(path: &str) -> Found {
        Found::Path(path.into())
    }

    #[test]
    fn ids_have_the_paths_that_processes_show() {
        let dirs = Tree::new("paths");
        let (root, pod) = (dirs.make("."), dirs.make("kubepods/pod1"));
        let container = dirs.make("kubepods/pod1/abc");
        std::fs::write(dirs.0.join("tree/kubepods/cgroup.procs"), "").unwrap();
        let file = std::fs::metadata(dirs.0.join("tree/kubepods/cgroup.procs")).unwrap().ino();
        let mut tree = dirs.open();
        assert_eq!(tree.path(container), is("/kubepods/pod1/abc"));
        assert_eq!((tree.path(pod), tree.path(root)), (is("/kubepods/pod1"), is("/")));
        assert_eq!((tree.walks, tree.path(0)), (1, Found::Missing));
        assert_eq!(tree.path_at(file, Instant::now() + LONGEST_REST), Found::Missing, "files are no cgroups");
    }

    #[test]
    fn the_real_hierarchy_tells_our_own() {
        let Ok(cgroups) = std::fs::read_to_string("/proc/self/cgroup") else { return };
        let mut tree = CgroupTree::new(Path::new("/proc"));
        let Some(point) = tree.mount_point().map(Path::to_owned) else { return };
        let Some(own) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
        // In a container our cgroup may be out of sight.
        let Ok(dir) = std::fs::metadata(point.join(own)) else { return };
        assert_eq!(tree.path(dir.ino()), is(&format!("/{own}")));
    }

    #[test]
    fn what_is_new_is_found_but_not_by_walking_all_the_time() {
        let dirs = Tree::new("new");
        let first = dirs.make("a");
        let mut tree = dirs.open();
        let start = Instant::now();
        assert_eq!(tree.path_at(first, start), is("/a"));
        let second = dirs.make("b");
        assert_eq!(tree.path_at(second, start), Found::Later);
        assert_eq!(tree.path_at(second, start + LONGEST_REST), is("/b"));
        let later = start + LONGEST_REST * 2;
        assert_eq!(tree.path_at(u64::MAX, later), Found::Missing);
        assert_eq!(tree.path_at(u64::MAX, later + LONGEST_REST), Found::Missing);
        assert_eq!(tree.walks, 3, "an id that a walk did not find never comes");
    }

    #[test]
    fn what_is_gone_is_remembered_for_a_while() {
        let dirs = Tree::new("gone");
        let (gone, other) = (dirs.make("gone"), dirs.make("other"));
        let mut tree = dirs.open();
        let start = Instant::now();
        assert_eq!(tree.path_at(gone, start), is("/gone"));
        std::fs::remove_dir(dirs.0.join("tree/gone")).unwrap();
        let second = start + LONGEST_REST;
        assert_eq!(tree.path_at(u64::MAX, second), Found::Missing);
        assert_eq!(tree.path_at(gone, second), is("/gone"));
        let third = second + DEPARTED;
        assert_eq!(tree.path_at(u64::MAX - 1, third), Found::Missing);
        assert_eq!((tree.path_at(gone, third), tree.path_at(other, third)), (Found::Later, is("/other")));
        assert_eq!(tree.walks, 3);
    }

    #[test]
    fn the_number_of_those_that_are_gone_is_bounded() {
        let mut tree = CgroupTree::new(Path::new("/nonexistent"));
        for id in 1..=MAX_DEPARTED as u64 + 100 {
            tree.note(id, "/x");
        }
        tree.walk(Instant::now());
        assert_eq!(tree.known.len(), MAX_DEPARTED);
    }

    #[test]
    fn the_walk_is_bounded() {
        let dirs = Tree::new("deep");
        let depth = |n: usize| vec!["d"; n].join("/");
        let (last, beyond) = (dirs.make(&depth(MAX_DEPTH)), dirs.make(&depth(MAX_DEPTH + 1)));
        let mut tree = dirs.open();
        let start = Instant::now();
        assert_eq!(tree.path_at(last, start), is(&format!("/{}", depth(MAX_DEPTH))));
        assert_eq!(tree.path_at(beyond, start + LONGEST_REST), Found::Missing);
    }

    #[test]
    fn without_the_hierarchy_no_id_has_a_path() {
        let mut tree = CgroupTree::new(Path::new("/nonexistent"));
        assert_eq!(tree.mount_point(), None);
        assert_eq!(tree.path(7), Found::Missing);
    }

    #[test]
    fn mounts_of_every_layout() {
        let shown = |mount: &Mount| (mount.point.display().to_string(), mount.prefix.clone());
        let parse = |text: &str| Mounts::parse(text).unified().map(shown);
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(hybrid), Some(("/sys/fs/cgroup/unified".into(), String::new())));
        let bound = "50 31 0:38 /kubepods /mnt/a\\040b rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(bound), Some(("/mnt/a b".into(), "/kubepods".into())));
        let both = format!("{bound}51 31 0:38 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(parse(&both), Some(("/host/cgroup".into(), String::new())));
        assert_eq!(parse("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\ngarbage\n - cgroup2\n"), None);
        assert_eq!(
            (unescape("\\04"), unescape("a\\134b"), unescape("\\999")),
            ("\\04".into(), "a\\b".into(), "\\999".into())
        );
    }

    /// Cost of a walk on a real hierarchy of 3000 cgroups.
    #[test]
    #[ignore = "measures; run it alone with --nocapture, as root"]
    #[allow(clippy::disallowed_macros, reason = "shows what it measured")]
    fn cost() {
        let mut tree = CgroupTree::new(Path::new("/proc"));
        let top = tree.mount_point().unwrap().join(format!("netskoop-cost-{}", std::process::id()));
        let paths: Vec<PathBuf> = (0..50)
            .flat_map(|pod| (0..60).map(move |c| format!("pod{pod}/{c:064}")))
            .map(|p| top.join(p))
            .collect();
        paths.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
        for _ in 0..5 {
            let began = Instant::now();
            tree.walk(began);
            eprintln!("{} cgroups in {:?}", tree.known.len(), began.elapsed());
        }
        paths.iter().for_each(|path| std::fs::remove_dir(path).unwrap());
        (0..50).for_each(|pod| std::fs::remove_dir(top.join(format!("pod{pod}"))).unwrap());
        std::fs::remove_dir(top).unwrap();
    }
}
