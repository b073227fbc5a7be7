//! Settings of the kernel under `sys/net`: each a line of numbers. They are shown in the first network namespace only, so
//! in others they are missing.

use crate::kernel::procfs::{Shape, numbers, read_whole};
use rustix::fs::{Mode, OFlags};
use std::path::Path;

/// The numbers of a setting, if it is there and has as many.
pub(super) fn read<const N: usize>(path: &Path, bytes: &mut Vec<u8>) -> Option<[u64; N]> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    read_whole(file, Shape::Records, bytes).ok()?;
    numbers(bytes)
}
