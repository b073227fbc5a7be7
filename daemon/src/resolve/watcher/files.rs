//! Watches `/run/netns`: each file that comes, goes or gets its mount is looked at by itself.

use super::Worker;
use super::again::{Again, LOOK_AGAIN};
use crate::resolve::scan;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// With more files at once it is cheaper to read the directory.
const MANY: usize = 64;

impl Worker {
    /// Watches `/run/netns`, or `/run` for its coming.
    pub(super) fn watch_mounts(&mut self) {
        let Ok(fd) = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) else { return };
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::DELETE_SELF;
        let watching = inotify::add_watch(&fd, &self.roots.netns, flags).is_ok();
        if !watching {
            let parent = self.roots.netns.parent().unwrap_or(&self.roots.netns);
            // Without even that directory the safety net remains.
            let _ = inotify::add_watch(&fd, parent, WatchFlags::CREATE | WatchFlags::ONLYDIR);
        }
        self.health().watching = watching;
        self.inotify = Some(fd);
    }

    /// Looks at the files that were told of.
    pub(super) fn read_inotify(&mut self) {
        let Some(fd) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        let mut files: Vec<PathBuf> = Vec::new();
        let (mut told, mut gone, mut all) = (false, false, false);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                // Nothing more for now.
                Err(_) => break,
            };
            told = true;
            gone |= event.events().contains(ReadFlags::IGNORED);
            match event.file_name() {
                Some(name) => files.push(self.roots.netns.join(OsStr::from_bytes(name.to_bytes()))),
                // The queue was full, or the directory itself is meant.
                None => all = true,
            }
        }
        if !told {
            return;
        }
        let watching = self.health().watching;
        self.health().last_mount_event = Some(Instant::now());
        if gone || !watching {
            self.watch_mounts();
            all = true;
        }
        files.sort_unstable();
        files.dedup();
        if all || files.len() > MANY {
            files.extend(scan::files(&self.roots.netns));
            files.extend(self.mounts.files().filter(|file| file.starts_with(&self.roots.netns)).cloned());
            files.sort_unstable();
            files.dedup();
        }
        self.look_at_files(files, Some(0));
    }

    /// Looks at files of `/run/netns`, and again a little later at one that is there without its mount, unless `tries` is
    /// nothing. Namespaces whose names came or went are looked at; only one that lost its last name may have a process
    /// nobody knows of.
    pub(super) fn look_at_files(&mut self, files: Vec<PathBuf>, tries: Option<usize>) {
        let mut touched = Vec::new();
        for file in files {
            let now = scan::nsfs_inode(&file);
            self.unfinished.retain(|known| *known != file);
            if now.is_none() && file.is_file() {
                self.unfinished(&file, tries);
            }
            let before = self.mounts.inode(&file);
            touched.extend(before.into_iter().chain(now));
            if before != now {
                self.mounts.set(file, now);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        self.doubtful = true;
        for inode in touched {
            match self.living_member(inode) {
                None if self.mounts.of(inode).is_empty() => self.scan_soon(),
                _ => self.refresh(inode),
            }
        }
        self.doubtful = false;
    }

    /// A file that is not a namespace yet, or never.
    fn unfinished(&mut self, file: &Path, tries: Option<usize>) {
        let Some(tries) = tries else { return self.unfinished.push(file.into()) };
        if let Some(delay) = LOOK_AGAIN.get(tries) {
            self.unfinished.push(file.into());
            self.again.push((Instant::now() + *delay, Again::File { path: file.into(), tries }));
        }
    }
}
