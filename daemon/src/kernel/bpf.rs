//! Loads, runs and unloads BPF objects. One thread per loaded object owns its memory, programs and links, so that an
//! object is gone when its thread is; a [`Handle`] speaks to that thread.

#![allow(
    unsafe_code,
    reason = "four calls into libbpf for which libbpf-rs has no form that does not allocate"
)]

use super::buckets::Buckets;
use super::features::Features;
pub use super::refused::Refused;
pub use super::refused::io_error;
pub(super) use super::refused::{quiet, refused};
use super::ring::{Ring, ended, panic_text};
pub use super::settings::Settings;
use super::tasks::{Tasks, Tenant};
use crate::hooks::{Expired, Known};
use libbpf_rs::libbpf_sys::{
    BPF_STATS_RUN_TIME, bpf_enable_stats, bpf_map_lookup_batch, bpf_prog_get_info_by_fd, bpf_prog_info,
};
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object};
use netskoop_api::StreamCounts;
use netskoop_bpf::netns::types;
use netskoop_bpf::plain;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Loading takes milliseconds, and unloading as well; on a node that swaps, or has programs on hundreds of interfaces,
/// seconds.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// The owner thread waits for nothing but commands.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// What every object needs to be loaded.
#[derive(Clone, Debug)]
pub struct Loader {
    /// The ring they all write to.
    pub ring: Ring,
    /// The token buckets they all have.
    pub buckets: Buckets,
    /// What the kernel offers.
    pub features: Arc<Features>,
    /// Names that the kernel gives to its reasons and addresses.
    pub known: Arc<Known>,
    /// Inode of the host's network namespace.
    pub host_netns: u32,
    /// How many namespaces there are: maps have room for so many, and some more.
    pub namespaces: usize,
}

enum Command {
    Set(Settings, mpsc::SyncSender<()>),
    Stop,
}

/// What an object's thread tells when it works.
struct Attached {
    via: String,
    limits: Vec<String>,
    programs: Vec<Program>,
    /// With their names; the first is *the* counters map.
    counters: Vec<(String, MapHandle)>,
    /// What each CPU counts beside the first counters map: `pairs` of its keys and values, one after the other.
    rows: Option<MapHandle>,
    stats: MapHandle,
    tasks: Option<Tasks>,
}

#[derive(Debug)]
struct Program {
    name: String,
    fd: OwnedFd,
}

/// The inside of an object's thread, handed to the function that runs it.
pub struct Session {
    pub(super) name: &'static str,
    number: u16,
    pub(super) loader: Loader,
    settings: Settings,
    limits: RefCell<Vec<String>>,
    commands: mpsc::Receiver<Command>,
    ready: mpsc::SyncSender<Result<Attached, Refused>>,
}

impl Session {
    /// Number that the object's records carry.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Settings to begin with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Names that the kernel gives to its reasons and addresses.
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&self.loader.known)
    }

    /// Inode of the host's network namespace.
    pub fn host_netns(&self) -> u32 {
        self.loader.host_netns
    }

    /// Number of arguments of a tracepoint, or why the probe cannot run.
    pub fn tracepoint(&self, name: &str) -> Result<usize, Refused> {
        self.loader.features.tracepoint(name)
    }

    /// Whether programs can keep something for each task, or why not.
    pub fn task_storage(&self) -> Result<(), Refused> {
        self.loader.features.task_storage()
    }

    /// Whether tracing programs can keep something for each socket, or why not.
    pub fn socket_storage(&self) -> Result<(), Refused> {
        self.loader.features.socket_storage()
    }

    /// Whether a program on a tracepoint is not run again on a CPU where it is running.
    pub fn guards_programs(&self) -> bool {
        self.loader.features.guards_programs()
    }

    /// Notes what the probe cannot see on this kernel; one sentence, before [`Session::ready`].
    pub fn limited(&self, sentence: impl Into<String>) {
        self.limits.borrow_mut().push(sentence.into());
    }

    /// Tells that the object works. `via` is how it is attached, `counters` the names of the maps that it counts in.
    pub fn ready(&self, object: &Object, via: &str, counters: &[&str]) -> Result<(), Refused> {
        let mut programs = Vec::new();
        for program in object.progs().filter(libbpf_rs::ProgramImpl::autoload) {
            let fd = program.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| self.failed("keep a program's descriptor", &error.to_string()))?;
            programs.push(Program { name: program.name().to_string_lossy().into_owned(), fd });
        }
        let attached = Attached {
            via: via.to_owned(),
            limits: self.limits.take(),
            programs,
            counters: counters
                .iter()
                .map(|name| Ok(((*name).to_owned(), self.map(object, name)?)))
                .collect::<Result<_, Refused>>()?,
            rows: self.map(object, "rows").ok(),
            stats: self.map(object, "stats")?,
            tasks: self.tasks(object)?,
        };
        // Whoever asked for the object may have given up: then `serve` ends at once.
        let _ = self.ready.send(Ok(attached));
        Ok(())
    }

    /// Applies new settings as they come, until the object is to be unloaded.
    pub fn serve(self, apply: impl FnMut(&Settings)) {
        self.serve_every(apply, || Duration::MAX);
    }

    /// The same, and meanwhile does something again and again: its answer is when.
    #[allow(clippy::needless_pass_by_value, reason = "nothing may follow but the end")]
    pub fn serve_every(self, mut apply: impl FnMut(&Settings), mut act: impl FnMut() -> Duration) {
        loop {
            match self.commands.recv_timeout(act()) {
                Ok(Command::Set(settings, done)) => {
                    apply(&settings);
                    let _ = done.send(());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// What an object has that counts by task.
    fn tasks(&self, object: &Object) -> Result<Option<Tasks>, Refused> {
        if !object.maps().any(|map| map.name() == "tenants") {
            return Ok(None);
        }
        let walk = object.progs_mut().find(|program| program.name() == "on_walk");
        let walk = walk.map(|walk| walk.attach()).transpose();
        let walk = walk.map_err(|error| refused(&format!("attach the walk of {}", self.name), &error))?;
        Ok(Some(Tasks::new(walk, self.map(object, "tenants")?)))
    }

    fn map(&self, object: &Object, name: &str) -> Result<MapHandle, Refused> {
        let map = object.maps().find(|map| map.name() == name);
        let map = map.ok_or_else(|| self.failed("find a map", name))?;
        MapHandle::try_from(&map).map_err(|error| refused(&format!("keep map {name}"), &error))
    }

    pub(super) fn failed(&self, doing: &str, cause: &str) -> Refused {
        Refused::Failed { doing: format!("{doing} of {}", self.name), cause: cause.to_owned() }
    }
}

/// Facts about a loaded program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Name in the source.
    pub name: String,
    /// The kernel's number of it.
    pub id: u32,
    /// Instructions that the verifier walked through.
    pub verified_instructions: u32,
    /// Instructions as translated by the kernel.
    pub instructions: u32,
    /// Time in it, while BPF statistics are on.
    pub run_time_ns: u64,
    /// Runs counted, while BPF statistics are on.
    pub runs: u64,
    /// Runs skipped because it was already running on that CPU.
    pub missed: u64,
}

/// Entries of a counters map; keeps its memory from one reading to the next.
#[derive(Debug, Default)]
pub struct Entries {
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Entries {
    /// For tests: entries as a map would have them.
    pub fn from_pairs(pairs: &[(Vec<u8>, Vec<u8>)]) -> Entries {
        let first = pairs.first();
        Entries {
            key_size: first.map_or(0, |(key, _)| key.len()),
            value_size: first.map_or(0, |(_, value)| value.len()),
            keys: pairs.iter().flat_map(|(key, _)| key.iter().copied()).collect(),
            values: pairs.iter().flat_map(|(_, value)| value.iter().copied()).collect(),
        }
    }

    /// Keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        // A size of 0 has no entries; `chunks_exact` does not take it.
        self.keys.chunks_exact(self.key_size.max(1)).zip(self.values.chunks_exact(self.value_size.max(1)))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.keys.len().checked_div(self.key_size).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn read(&mut self, map: &MapHandle) -> std::io::Result<()> {
        (self.key_size, self.value_size) = (map.key_size() as usize, map.value_size() as usize);
        self.clear();
        match self.read_batches(map) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.clear();
                self.read_singly(map)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds what CPUs have counted apart. Entries may have the same key then; nothing counted is no entry.
    fn add_rows(&mut self, cpus: &[Vec<u8>]) {
        let (key, value) = (self.key_size, self.value_size);
        for row in cpus.iter().flat_map(|cpu| cpu.chunks_exact((key + value).max(1))) {
            if row[key..].iter().any(|byte| *byte != 0) {
                self.keys.extend_from_slice(&row[..key]);
                self.values.extend_from_slice(&row[key..]);
            }
        }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    fn read_batches(&mut self, map: &MapHandle) -> std::io::Result<()> {
        let (mut position, mut next, mut first) = (0u64, 0u64, true);
        let mut room: u32 = 512;
        loop {
            let filled = self.len();
            self.keys.resize((filled + room as usize) * self.key_size, 0);
            self.values.resize((filled + room as usize) * self.value_size, 0);
            let mut count = room;
            let input: *mut u64 = if first { std::ptr::null_mut() } else { &raw mut position };
            // SAFETY: keys and values have room for `count` entries of the map's own sizes behind `filled`; positions
            // are at least the four bytes that a hash map uses; a null position means the beginning.
            let result = unsafe {
                bpf_map_lookup_batch(
                    map.as_fd().as_raw_fd(),
                    input.cast(),
                    (&raw mut next).cast(),
                    self.keys[filled * self.key_size..].as_mut_ptr().cast(),
                    self.values[filled * self.value_size..].as_mut_ptr().cast(),
                    &raw mut count,
                    std::ptr::null(),
                )
            };
            let got = if result == 0 || result == -libc::ENOENT { count.min(room) as usize } else { 0 };
            self.keys.truncate((filled + got) * self.key_size);
            self.values.truncate((filled + got) * self.value_size);
            match -result {
                0 => (position, first) = (next, false),
                libc::ENOENT => return Ok(()),
                // One bucket of the hash has more entries than there was room for.
                libc::ENOSPC if room < 1 << 16 => room *= 2,
                error => return Err(std::io::Error::from_raw_os_error(error)),
            }
        }
    }

    fn read_singly(&mut self, map: &MapHandle) -> std::io::Result<()> {
        for key in map.keys() {
            if let Some(value) = map.lookup(&key, MapFlags::ANY).map_err(io_error)? {
                self.keys.extend_from_slice(&key);
                self.values.extend_from_slice(&value);
            }
        }
        Ok(())
    }
}

/// A loaded object.
pub struct Handle {
    name: &'static str,
    number: u16,
    buckets: Buckets,
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
    attached: Attached,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Handle {
    /// Starts the thread that owns the object, and waits until it works or is refused. `number` is what its records
    /// carry as their probe.
    pub fn start(
        name: &'static str,
        number: u16,
        run: fn(Session) -> Result<(), Refused>,
        loader: &Loader,
        settings: Settings,
    ) -> Result<Handle, Refused> {
        let (commands, for_session) = mpsc::channel();
        let (ready, answer) = mpsc::sync_channel(1);
        let buckets = loader.buckets.clone();
        let session = Session {
            name,
            number,
            loader: loader.clone(),
            settings,
            limits: RefCell::default(),
            commands: for_session,
            ready: ready.clone(),
        };
        let failed = |cause: String| Refused::Failed { doing: format!("load {name}"), cause };
        let thread = std::thread::Builder::new().name(format!("bpf-{name}")).spawn(move || {
            if let Err(refused) = run(session) {
                // Nobody listens if it had worked before.
                let _ = ready.try_send(Err(refused));
            }
        });
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        match answer.recv_timeout(LOAD_LIMIT) {
            Ok(Ok(attached)) => Ok(Handle { name, number, buckets, commands, thread, attached }),
            Ok(Err(refused)) => {
                let _ = ended(&thread, COMMAND_LIMIT);
                Err(refused)
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(failed(format!("it took longer than {} seconds", LOAD_LIMIT.as_secs())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed(match thread.join() {
                Ok(()) => "it ended before it worked".to_owned(),
                Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
            })),
        }
    }

    /// Changes the settings; they are in force when this returns.
    pub fn set(&self, settings: Settings) -> Result<(), Refused> {
        let (done, applied) = mpsc::sync_channel(1);
        let sent = self.commands.send(Command::Set(settings, done)).is_ok();
        if sent && applied.recv_timeout(COMMAND_LIMIT).is_ok() {
            return Ok(());
        }
        Err(Refused::Failed {
            doing: format!("change the options of {}", self.name),
            cause: "its thread does not answer".to_owned(),
        })
    }

    /// Unloads it and waits for its thread; read the last counts before. The kernel frees the programs a moment later (up to a third of a second).
    /// An error says that the thread had panicked, or does not end.
    pub fn stop(self) -> Result<(), String> {
        let Handle { name, number, buckets, commands, thread, attached } = self;
        // Our own descriptors would keep programs and maps alive.
        drop(attached);
        let _ = commands.send(Command::Stop);
        if !ended(&thread, LOAD_LIMIT) {
            return Err(format!("the thread of {name} hangs"));
        }
        // Nobody would look after them any more; one that stays takes a little room.
        let _ = buckets.delete(number, |_| true);
        thread
            .join()
            .map_err(|panic| format!("the thread of {name} panicked: {}", panic_text(panic.as_ref())))
    }

    /// Whether its thread has ended without being told to; [`Handle::stop`] says why.
    pub fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }

    /// How it is attached: `tp_btf`.
    pub fn via(&self) -> &str {
        &self.attached.via
    }

    /// What it cannot see on this kernel: sentences.
    pub fn limits(&self) -> &[String] {
        &self.attached.limits
    }

    /// Ids of its programs.
    pub fn programs(&self) -> Vec<u32> {
        self.infos().iter().map(|info| info.id).collect()
    }

    /// What the kernel tells about its programs.
    pub fn infos(&self) -> Vec<ProgramInfo> {
        let programs = &self.attached.programs;
        programs.iter().filter_map(|program| info(&program.name, program.fd.as_fd())).collect()
    }

    /// A map that it counts in, by its name.
    pub fn counters(&self, name: &str) -> std::io::Result<&MapHandle> {
        let found = self.attached.counters.iter().find(|(known, _)| known == name).map(|(_, map)| map);
        found.ok_or_else(|| std::io::Error::other(format!("{} has no map {name}", self.name)))
    }

    /// Whether it counts by task.
    pub fn counts_tasks(&self) -> bool {
        self.attached.tasks.is_some()
    }

    /// Tells whose the cgroups of the node's own namespace are, where it counts by task.
    pub fn set_tenants(&self, tenants: &[Tenant]) -> std::io::Result<()> {
        self.attached.tasks.as_ref().map_or(Ok(()), |tasks| tasks.set_tenants(tenants))
    }

    /// Deletes what it has counted for a tenant that is gone.
    pub fn forget_tenant(&self, tenant: u32) -> std::io::Result<()> {
        match self.attached.tasks {
            Some(_) => delete_where(self.counters_maps(), |key| super::tasks::is_of(key, tenant)),
            None => Ok(()),
        }
    }

    fn counters_maps(&self) -> impl Iterator<Item = &MapHandle> {
        self.attached.counters.iter().map(|(_, map)| map)
    }

    /// Deletes entries of maps that it counts in.
    pub fn delete_entries(&self, entries: &[Expired]) -> std::io::Result<()> {
        for (map, key) in entries {
            // Gone already is as good.
            let _ = self.counters(map)?.delete(key);
        }
        Ok(())
    }

    /// Reads all entries of a map that it counts in; where it counts by task, with what the living have used by now.
    pub fn read_counters(&self, name: &str, entries: &mut Entries) -> std::io::Result<()> {
        if let Some(tasks) = &self.attached.tasks {
            tasks.walk()?;
        }
        entries.read(self.counters(name)?)?;
        let is_first = self.attached.counters.first().is_some_and(|(first, _)| first == name);
        if let Some(rows) = self.attached.rows.as_ref().filter(|_| is_first) {
            let cpus = rows.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(io_error)?;
            entries.add_rows(&cpus.unwrap_or_default());
        }
        Ok(())
    }

    /// Where its events went.
    pub fn stream_counts(&self) -> std::io::Result<StreamCounts> {
        let missed = self.infos().iter().map(|info| info.missed).sum();
        let mut counts = StreamCounts { missed, ..StreamCounts::default() };
        let cpus = self.attached.stats.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY);
        let cpus = cpus.map_err(io_error)?;
        for cpu in cpus.iter().flatten().filter_map(|bytes| plain::read::<types::stats>(bytes)) {
            counts.seen += cpu.seen;
            counts.submitted += cpu.submitted;
            counts.ring_full += cpu.ring_full;
            counts.suppressed += cpu.suppressed;
            counts.map_full += cpu.map_full;
            counts.filtered += cpu.filtered;
        }
        Ok(counts)
    }

    /// Deletes what the kernel counts for namespaces that are gone, after their last reading. All counters maps have
    /// the namespace's inode first in their keys.
    /// and its cookie last.
    pub fn forget(&self, netns: &[(u32, u64)]) -> std::io::Result<()> {
        let mut gone = netns.to_vec();
        gone.sort_unstable();
        self.delete(|inode, cookie| {
            let at = gone.partition_point(|(known, _)| *known < inode);
            gone[at..].iter().take_while(|(known, _)| *known == inode).any(|(_, c)| same_cookie(*c, cookie))
        })
    }

    /// Deletes what the kernel counts for all but these namespaces: counts that came after the last reading.
    pub fn retain(&self, live: &FxHashMap<u32, u64>) -> std::io::Result<()> {
        self.delete(|inode, cookie| inode != 0 && live.get(&inode).is_none_or(|c| !same_cookie(*c, cookie)))
    }

    fn delete(&self, gone: impl Fn(u32, u64) -> bool) -> std::io::Result<()> {
        // Buckets have no cookie in their keys: they belong to whoever has the inode.
        self.buckets.delete(self.number, |inode| gone(inode, 0))?;
        delete_where(self.counters_maps(), |key| {
            let Some(inode) = key.first_chunk::<4>() else { return false };
            let cookie = key.last_chunk::<8>().filter(|_| key.len() > 8);
            gone(u32::from_ne_bytes(*inode), cookie.map_or(0, |cookie| u64::from_ne_bytes(*cookie)))
        })
    }
}

/// Deletes entries of maps by their keys.
pub fn delete_where<'m>(
    maps: impl Iterator<Item = &'m MapHandle>,
    gone: impl Fn(&[u8]) -> bool,
) -> std::io::Result<()> {
    let mut entries = Entries::default();
    for map in maps {
        entries.read(map)?;
        for (key, _) in entries.iter().filter(|(key, _)| gone(key)) {
            // Gone already is as good.
            let _ = map.delete(key);
        }
    }
    Ok(())
}

/// Lets the kernel count the runs of all BPF programs of the node and their time, until the answer is dropped. It costs every
/// run of every program some 60 ns, and needs CAP_SYS_ADMIN.
pub fn count_runs() -> std::io::Result<OwnedFd> {
    // SAFETY: it takes a number and hands out a descriptor or an error.
    let fd = unsafe { bpf_enable_stats(BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the descriptor is new, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two cookies can be those of one namespace: 0 is one that is not known.
pub fn same_cookie(a: u64, b: u64) -> bool {
    a == 0 || b == 0 || a == b
}

fn info(name: &str, program: BorrowedFd<'_>) -> Option<ProgramInfo> {
    let mut info = bpf_prog_info::default();
    let mut size = u32::try_from(size_of::<bpf_prog_info>()).unwrap_or(0);
    // SAFETY: the descriptor is open, `info` is `size` bytes long and all zero, so that the kernel is asked for no
    // arrays; an older kernel fills less of it.
    let result = unsafe { bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut size) };
    (result == 0).then(|| ProgramInfo {
        name: name.to_owned(),
        id: info.id,
        verified_instructions: info.verified_insns,
        instructions: info.xlated_prog_len / 8,
        run_time_ns: info.run_time_ns,
        runs: info.run_cnt,
        missed: info.recursion_misses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_become_nanoseconds() {
        let limit = |rate, burst| Settings { rate, burst, ..Settings::default() }.limit();
        assert_eq!(limit(0, 5), (0, 0));
        assert_eq!(limit(10, 3), (100_000_000, 200_000_000));
        assert_eq!(limit(1, 0), (1_000_000_000, 0));
        assert_eq!(limit(u32::MAX, u32::MAX), (1, u64::from(u32::MAX) - 1));
    }

    #[test]
    fn entries_go_in_pairs() {
        let entries = Entries::from_pairs(&[(vec![1, 2], vec![3]), (vec![4, 5], vec![6])]);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries.iter().collect::<Vec<_>>(), [(&[1, 2][..], &[3][..]), (&[4, 5], &[6])]);
        assert!(Entries::default().is_empty() && Entries::default().iter().next().is_none());
    }

    #[test]
    fn handles_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<(Handle, Loader, Settings, Entries)>();
    }
}
