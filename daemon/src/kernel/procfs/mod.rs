//! Parsers of procfs files, one module per file format. They work on bytes that somebody else has read, allocate nothing
//! once they have seen a layout, and hand every value to a closure: they know neither tables nor metric names.

pub mod addresses;
pub mod cgroup_cpu;
pub mod dev;
pub mod ip_vs_stats;
pub mod slabinfo;
pub mod snmp;
pub mod snmp6;
pub mod sockstat;
pub mod softnet_stat;

use rustix::buffer::spare_capacity;
use rustix::fd::AsFd;
use rustix::io::Errno;

/// Largest pseudo-file that is read: `net/dev` of a node with tens of thousands of interfaces.
pub const MAX_FILE: usize = 4 << 20;

/// Room that a buffer has before the first read; every per-namespace file but `dev` fits.
const FIRST: usize = 16 << 10;

/// A file is not what the kernel writes. Nothing of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Malformed {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// How the kernel hands out a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// In one piece (`single_open`): a read that does not fill the buffer has everything.
    OnePiece,
    /// In records, at most a page per read: only a read of nothing is the end.
    Records,
}

/// Reads a whole pseudo-file into `buffer`, which grows as needed up to [`MAX_FILE`]. The size that `stat` tells is 0
/// for these files and is not asked.
pub fn read_whole(file: impl AsFd, shape: Shape, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    loop {
        if buffer.len() == buffer.capacity() {
            if buffer.len() >= MAX_FILE {
                return Err(Errno::FBIG);
            }
            buffer.reserve(FIRST.max(buffer.len()));
        }
        match rustix::io::read(&file, spare_capacity(buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) if shape == Shape::OnePiece && buffer.len() < buffer.capacity() => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads the decimal number at `at` and moves behind it; `None` if there is none, or it does not fit.
#[inline]
fn number(text: &[u8], at: &mut usize) -> Option<u64> {
    let start = *at;
    let mut value = 0_u64;
    while let Some(digit) = text.get(*at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9) {
        // Nineteen digits always fit; only a longer number needs the check.
        value = if *at - start < 19 {
            value * 10 + u64::from(digit)
        } else {
            value.checked_mul(10)?.checked_add(u64::from(digit))?
        };
        *at += 1;
    }
    (*at > start).then_some(value)
}

/// A line of so many numbers and nothing else, as settings of the kernel are.
pub fn numbers<const N: usize>(text: &[u8]) -> Option<[u64; N]> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let mut values = [0; N];
    for value in &mut values {
        *value = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(values)
}

/// The line that starts at `at`, without its newline; `None` if the newline is missing, so that a truncated file is seen.
fn line_at(text: &[u8], at: usize) -> Option<&[u8]> {
    let rest = text.get(at..)?;
    rest.iter().position(|byte| *byte == b'\n').map(|end| &rest[..end])
}

/// Moves over spaces and tabs.
fn blanks(text: &[u8], at: &mut usize) {
    while matches!(text.get(*at), Some(b' ' | b'\t')) {
        *at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn numbers_stop_at_the_first_other_byte_and_never_wrap() {
        let parse = |text: &str| {
            let mut at = 0;
            number(text.as_bytes(), &mut at).map(|value| (value, at))
        };
        assert_eq!(parse("0 1"), Some((0, 1)));
        assert_eq!(parse("18446744073709551615\n"), Some((u64::MAX, 20)));
        assert_eq!(parse("18446744073709551616"), None);
        assert_eq!(parse("100000000000000000000000"), None);
        assert_eq!((parse(""), parse("-1"), parse("x")), (None, None, None));
    }

    #[test]
    fn a_large_file_is_read_whole_and_a_huge_one_refused() {
        let mut file = tempfile();
        let body: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&body).unwrap();
        for shape in [Shape::OnePiece, Shape::Records] {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
            let mut buffer = Vec::new();
            read_whole(&file, shape, &mut buffer).unwrap();
            assert_eq!(buffer, body);
        }
        file.set_len(MAX_FILE as u64 * 3).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
        assert_eq!(read_whole(&file, Shape::Records, &mut Vec::new()), Err(Errno::FBIG));
    }

    /// Every parser takes any bytes: what it cannot read is an error, and nothing panics.
    #[test]
    fn damaged_files_never_panic() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/healthy/proc/100/net");
        for entry in std::fs::read_dir(directory).unwrap() {
            let whole = std::fs::read(entry.unwrap().path()).unwrap();
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mut random = |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below as u64) as usize
            };
            for _ in 0..300 {
                let mut text = whole.clone();
                text.truncate(random(whole.len() + 1));
                for _ in 0..random(4) {
                    let at = random(text.len().max(1));
                    if let Some(byte) = text.get_mut(at) {
                        *byte = random(256) as u8;
                    }
                }
                feed(&text);
            }
        }
    }

    fn feed(text: &[u8]) {
        let _ = snmp::Layout::default().parse(text, |_, _| Some(0), |_, _| {});
        let _ = snmp::fields(text, b"TcpExt", |_, _| {});
        let _ = snmp6::parse(text, |_| Some(0), |_, _| {});
        let _ = dev::Layout::default().parse(text, |_, _| {});
        let _ = sockstat::parse(text, |_, _| Some(0), |_, _| {});
        let _ = softnet_stat::parse(text, |_, _| {});
    }

    fn tempfile() -> std::fs::File {
        let fd = rustix::fs::memfd_create("netskoop-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        std::fs::File::from(fd)
    }
}
