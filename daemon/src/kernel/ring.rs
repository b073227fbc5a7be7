//! The event ring that all BPF objects write to, and the thread that empties it.

use super::bpf::Refused;
use crate::wake::Wake;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapHandle, MapType, RingBufferBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Size of the ring. It holds 3000 events, or 800 with stacks, until the pump runs; what it holds is in memory all the time,
/// and counted twice by those who look, because it is mapped twice in a row.
pub const DEFAULT_SIZE: u32 = 512 << 10;

/// Records that are taken out of the ring before any of them is looked at.
const BATCH: usize = 256;

/// How long the pump sleeps at most: its progress counter moves at least this often.
const TICK: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The shared ring. Made before any object is loaded, then given to each.
#[derive(Clone, Debug)]
pub struct Ring(Arc<MapHandle>);

impl Ring {
    /// Makes it. `size` is rounded up to a power of two and whole pages.
    pub fn new(size: u32) -> Result<Ring, Refused> {
        super::bpf::quiet();
        let size = size.clamp(64 << 10, 1 << 30).next_power_of_two();
        let opts = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..bpf_map_create_opts::default()
        };
        // The name is that of the variable in `netskoop.bpf.h`: generated code looks a reused map up by it.
        let map = MapHandle::create(MapType::RingBuf, Some("events"), 0, 0, size, &opts)
            .map_err(|error| super::bpf::refused("make the event ring", &error))?;
        Ok(Ring(Arc::new(map)))
    }

    /// Its map.
    pub fn map(&self) -> &MapHandle {
        &self.0
    }
}

/// The thread that empties the ring.
#[derive(Debug)]
pub struct Pump {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: Arc<Wake>,
    stop: AtomicBool,
    progress: AtomicU64,
    received: AtomicU64,
}

impl Pump {
    /// Starts it. `sink` gets each record, in order, on the pump's thread, outside of the ring's callback: it may take
    /// a moment and it may panic, which ends the pump and is reported by [`Pump::stop`].
    pub fn start(ring: &Ring, sink: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Pump> {
        let shared = Arc::new(Shared {
            wake: Wake::new()?,
            stop: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let (ring, for_thread) = (ring.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("pump".to_owned())
            .spawn(move || run(&ring, &for_thread, sink))?;
        Ok(Pump { shared, thread })
    }

    /// Moves at least every two seconds while the pump is alive and its sink returns.
    pub fn progress(&self) -> u64 {
        self.shared.progress.load(Ordering::Relaxed)
    }

    /// Records taken out of the ring.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended; unasked, that is a defect.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Empties the ring one last time and ends the thread. An error says why the thread had failed, or that its sink
    /// did not return within two seconds.
    pub fn stop(self) -> Result<(), String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.wake();
        if !ended(&self.thread, Duration::from_secs(2)) {
            return Err("the consumer of the event ring hangs".to_owned());
        }
        match self.thread.join() {
            Ok(result) => result.map_err(|error| format!("the event ring: {error}")),
            Err(panic) => {
                Err(format!("the consumer of the event ring panicked: {}", panic_text(panic.as_ref())))
            }
        }
    }
}

/// Records copied out of the ring, one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

fn run(ring: &Ring, shared: &Shared, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    let batch = RefCell::new(Batch::default());
    let mut builder = RingBufferBuilder::new();
    // Called from C: it must not panic, since that cannot unwind. It copies, and nothing else.
    let copy = |record: &[u8]| {
        if let Ok(mut batch) = batch.try_borrow_mut() {
            batch.bytes.extend_from_slice(record);
            let end = batch.bytes.len();
            batch.ends.push(end);
        }
        0
    };
    builder.add(ring.map(), copy).map_err(super::bpf::io_error)?;
    let consumer = builder.build().map_err(super::bpf::io_error)?;
    loop {
        shared.progress.fetch_add(1, Ordering::Relaxed);
        // Read before the ring: what was written before the stop is still delivered.
        let stop = shared.stop.load(Ordering::Relaxed);
        let taken = consumer.consume_raw_n(BATCH);
        if taken < 0 {
            return Err(io::Error::from_raw_os_error(-taken));
        }
        let Batch { bytes, ends } = batch.take();
        shared.received.fetch_add(ends.len() as u64, Ordering::Relaxed);
        let mut start = 0;
        for end in &ends {
            sink(&bytes[start..*end]);
            start = *end;
        }
        let more = ends.len() >= BATCH;
        batch.replace(reuse(bytes, ends));
        if more {
            continue;
        }
        if stop {
            return Ok(());
        }
        wait(ring, shared)?;
    }
}

/// Gives the memory back for the next batch, unless a burst has made it large.
fn reuse(mut bytes: Vec<u8>, mut ends: Vec<usize>) -> Batch {
    bytes.clear();
    ends.clear();
    bytes.shrink_to(64 << 10);
    Batch { bytes, ends }
}

fn wait(ring: &Ring, shared: &Shared) -> io::Result<()> {
    let map = ring.map().as_fd();
    let mut fds = [PollFd::new(&map, PollFlags::IN), PollFd::new(&*shared.wake, PollFlags::IN)];
    match poll(&mut fds, Some(&TICK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until `done` or the time is over.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}

/// Waits for the end of a thread, for a bounded time.
pub(super) fn ended<T>(thread: &JoinHandle<T>, limit: Duration) -> bool {
    wait_until(limit, || thread.is_finished())
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
