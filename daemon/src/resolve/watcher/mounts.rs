//! Files that lead to namespaces.

use rustc_hash::{FxBuildHasher, FxHashMap};
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};

/// Which file leads where, at the last look.
#[derive(Default)]
pub(super) struct Mounts {
    /// The files of each namespace, in the order of their names.
    files: FxHashMap<u32, Vec<PathBuf>>,
    /// The namespace by a hash of the file: comparing with a thousand files would be most of the work for a new one. What
    /// is found is compared, so that of two files with one hash the older is only looked for in vain, until the next scan.
    inodes: FxHashMap<u64, u32>,
}

impl Mounts {
    /// These are all.
    pub(super) fn new(mut found: Vec<(u32, PathBuf)>) -> Mounts {
        found.sort();
        found.dedup();
        let mut mounts = Mounts::default();
        for (inode, file) in found {
            mounts.inodes.insert(hash(&file), inode);
            mounts.files.entry(inode).or_default().push(file);
        }
        mounts
    }

    /// The files of a namespace.
    pub(super) fn of(&self, inode: u32) -> &[PathBuf] {
        self.files.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Namespaces with a file.
    pub(super) fn inodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.files.keys().copied()
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.values().flatten()
    }

    /// Where a file leads.
    pub(super) fn inode(&self, file: &Path) -> Option<u32> {
        let inode = *self.inodes.get(&hash(file))?;
        self.of(inode).iter().any(|known| known.as_os_str() == file.as_os_str()).then_some(inode)
    }

    /// A file leads to this namespace now, or nowhere.
    pub(super) fn set(&mut self, file: PathBuf, inode: Option<u32>) {
        if let Some(before) = self.inode(&file)
            && let Some(files) = self.files.get_mut(&before)
        {
            files.retain(|known| *known != file);
            if files.is_empty() {
                self.files.remove(&before);
            }
            self.inodes.remove(&hash(&file));
        }
        if let Some(inode) = inode {
            self.inodes.insert(hash(&file), inode);
            let files = self.files.entry(inode).or_default();
            files.push(file);
            files.sort_unstable();
        }
    }
}

fn hash(file: &Path) -> u64 {
    // Not the hash of a path, which looks at each of its parts.
    FxBuildHasher.hash_one(file.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_go_and_lead_elsewhere() {
        let file = |name: &str| PathBuf::from("/run/netns").join(name);
        let mut mounts = Mounts::new(vec![(2, file("b")), (1, file("a")), (2, file("aa")), (1, file("a"))]);
        assert_eq!(mounts.of(2), [file("aa"), file("b")]);
        assert_eq!((mounts.inode(&file("a")), mounts.inode(&file("c"))), (Some(1), None));
        mounts.set(file("a"), Some(2));
        assert_eq!((mounts.of(1).len(), mounts.of(2).len(), mounts.inode(&file("a"))), (0, 3, Some(2)));
        mounts.set(file("a"), None);
        mounts.set(file("c"), None);
        assert_eq!((mounts.inode(&file("a")), mounts.of(2)), (None, &[file("aa"), file("b")][..]));
        assert_eq!((mounts.inodes().collect::<Vec<_>>(), mounts.files().count()), (vec![2], 2));
    }
}
