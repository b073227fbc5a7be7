//! What has nothing to do with the network, for the probes that look at what processes do.

use super::{LIMIT, impossible};
use rustix::fs::{FsWord, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::time::{Duration, Instant};

/// Times that the thread waits for a CPU, because it has slept.
const SLEEPS: u64 = 20;
/// How long it works after each.
pub(in super::super) const WORK: Duration = Duration::from_micros(500);
/// Bytes that are read at a time, a multiple of every disk's own blocks, and how often.
pub(in super::super) const BLOCK: usize = 4096;
const BLOCKS: u64 = 4;
/// File systems that have what they read from a disk of this node: ext4, XFS, Btrfs, F2FS, and what lies over one of them.
const ON_DISKS: [FsWord; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x794c_7630];

/// A thread that sleeps and works.
pub(super) fn worked() -> io::Result<u64> {
    let ran = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let end = Instant::now() + LIMIT;
    for _ in 0..SLEEPS {
        std::thread::sleep(Duration::from_millis(1));
        let before = ran();
        while ran() < before + WORK {
            if Instant::now() > end {
                return Err(io::Error::other("no CPU was left for it"));
            }
            std::hint::spin_loop();
        }
    }
    Ok(SLEEPS)
}

/// Reads parts of the daemon's own program past the page cache, so that nothing has to be written for it.
pub(super) fn read() -> io::Result<u64> {
    let elsewhere = || impossible("the daemon's own program is on no disk, and the self-test writes none");
    let opened =
        rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let file = match opened {
        Err(Errno::INVAL) => return Err(elsewhere()),
        opened => opened?,
    };
    if !ON_DISKS.contains(&rustix::fs::fstatfs(&file)?.f_type) {
        return Err(elsewhere());
    }
    // The kernel copies to whole blocks of memory only.
    let mut memory = vec![0; 2 * BLOCK];
    let begin = memory.as_ptr().align_offset(BLOCK);
    let memory = memory.get_mut(begin..begin + BLOCK).ok_or_else(elsewhere)?;
    let before = bytes_from_disks().ok_or_else(elsewhere)?;
    for block in 0..BLOCKS {
        rustix::io::pread(&file, &mut *memory, block * BLOCK as u64)?;
    }
    let read = bytes_from_disks().map_or(0, |after| after - before);
    if read < BLOCKS * BLOCK as u64 { Err(elsewhere()) } else { Ok(BLOCKS) }
}

/// What the calling thread has had read, by the kernel's account.
fn bytes_from_disks() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).and_then(|value| value.parse().ok())
}
