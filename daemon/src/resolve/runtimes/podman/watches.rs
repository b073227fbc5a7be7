//! inotify on podman's files: what was touched, in the words of who reads them.

use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// The places that are watched.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The list of containers, and a directory for each: `/var/lib/containers/storage/overlay-containers`.
    pub(super) storage: PathBuf,
    /// What lasts until the next boot: `/run/containers/storage/overlay-containers`.
    pub(super) run: PathBuf,
    /// Where conmon notes the ends of containers: `/run/libpod/exits`.
    pub(super) exits: PathBuf,
}

/// What was touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// The list of containers.
    pub(super) list: bool,
    /// These containers started or ended.
    pub(super) containers: FxHashSet<String>,
    /// Something was lost: everything is to be looked at.
    pub(super) all: bool,
    /// Directories may be on their way that are not there yet.
    pub(super) growing: bool,
}

enum What {
    Storage,
    Run,
    Exits,
    /// A directory above one of them that does not exist yet.
    Above,
    Container(String),
}

/// The watches.
pub(super) struct Watches {
    fd: AsyncFd<OwnedFd>,
    places: Places,
    watched: FxHashMap<i32, What>,
    containers: FxHashSet<String>,
}

impl Watches {
    #[allow(
        deprecated,
        reason = "its successor wants a promise that types keep their descriptor; this one does"
    )]
    pub(super) fn new(places: &Places) -> std::io::Result<Watches> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let fd = AsyncFd::new(fd)?;
        let mut watches = Watches {
            fd,
            places: places.clone(),
            watched: FxHashMap::default(),
            containers: FxHashSet::default(),
        };
        let storage = places.storage.clone();
        watches.add(&storage, What::Storage)?;
        watches.place();
        Ok(watches)
    }

    fn add(&mut self, path: &Path, what: What) -> Result<(), Errno> {
        let flags = match what {
            // A file is written, or written beside and moved over the old one.
            What::Storage | What::Container(_) | What::Exits => {
                WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO
            }
            What::Run | What::Above => WatchFlags::CREATE | WatchFlags::MOVED_TO,
        };
        let watch = inotify::add_watch(self.fd.get_ref(), path, flags | WatchFlags::ONLYDIR)?;
        self.watched.insert(watch, what);
        Ok(())
    }

    /// Watches the two directories that podman makes when it is first used after a boot, or what is above them.
    fn place(&mut self) {
        self.watched.retain(|_, what| !matches!(what, What::Above));
        let has = |watched: &FxHashMap<i32, What>, run: bool| {
            let same =
                |what: &What| if run { matches!(what, What::Run) } else { matches!(what, What::Exits) };
            watched.values().any(same)
        };
        for (path, run) in [(self.places.run.clone(), true), (self.places.exits.clone(), false)] {
            if has(&self.watched, run) {
                continue;
            }
            for path in path.ancestors() {
                let is_it = path == self.places.run || path == self.places.exits;
                let what = match (is_it, run) {
                    (false, _) => What::Above,
                    (true, true) => What::Run,
                    (true, false) => What::Exits,
                };
                // What does not exist is waited for further up; what cannot be watched is looked at every minute.
                if !self.add(path, what).is_err_and(|error| error == Errno::NOENT) {
                    break;
                }
            }
        }
    }

    /// Watches the pid file of a container, and says whether it could: before it was first started, there is no
    /// directory for it.
    pub(super) fn container(&mut self, id: &str) -> Result<bool, Errno> {
        if self.containers.contains(id) {
            return Ok(true);
        }
        let path = self.places.run.join(id).join("userdata");
        match self.add(&path, What::Container(id.to_owned())) {
            Ok(()) => {
                self.containers.insert(id.to_owned());
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until something was touched. May be given up at any time.
    pub(super) async fn touched(&mut self) -> std::io::Result<Touched> {
        let mut touched = Touched { growing: true, ..Touched::default() };
        let mut guard = self.fd.readable_mut().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(guard.get_inner(), &mut buffer);
        let mut place = false;
        let mut events = 0;
        // What the kernel still has after so many is read the next time.
        while events < 1000 || !reader.is_buffer_empty() {
            events += 1;
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                touched.all = true;
            }
            let ended = event.events().contains(ReadFlags::IGNORED);
            match self.watched.get(&event.wd()) {
                Some(What::Storage) if ended => touched.all = true,
                Some(What::Storage) => touched.list |= name == "containers.json",
                Some(What::Run | What::Exits | What::Above) if ended => place = true,
                Some(What::Above) => place = true,
                Some(What::Run | What::Exits) => drop(touched.containers.insert(name.into_owned())),
                Some(What::Container(id)) if ended => drop(self.containers.remove(id)),
                Some(What::Container(id)) if name == "pidfile" => {
                    touched.containers.insert(id.clone());
                }
                Some(What::Container(_)) | None => {}
            }
            if ended {
                self.watched.remove(&event.wd());
            }
        }
        if place {
            self.place();
            touched.all = true;
        }
        Ok(touched)
    }
}
