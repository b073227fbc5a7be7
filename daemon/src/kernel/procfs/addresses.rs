//! `/proc/<pid>/net/fib_trie` and `/proc/<pid>/net/if_inet6`: the addresses configured in a namespace.

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Addresses of one namespace at most.
const MAX_ADDRESSES: usize = 64;
/// The trie shows all routes as well: of a router with more than this some addresses are not seen.
const MAX_FILE: u64 = 4 << 20;

/// Addresses of the namespace of a process; none if it is gone.
pub fn of_process(proc: &Path, pid: i32) -> Vec<IpAddr> {
    below(&proc.join(pid.to_string()).join("net"))
}

/// Addresses of the namespace with this inode behind a file. They are read from inside, by a thread made for it: that one
/// ends there, so nobody has to find the way back.
pub fn behind(proc: &Path, file: &Path, inode: u32) -> Vec<IpAddr> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let look = || {
        let namespace = rustix::fs::open(file, flags, Mode::empty()).ok()?;
        if rustix::fs::fstat(&namespace).ok()?.st_ino != u64::from(inode) {
            return None;
        }
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        Some(below(&proc.join("thread-self/net")))
    };
    let found = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netskoop-look".into()).stack_size(64 * 1024);
        thread.spawn_scoped(scope, look).ok()?.join().ok()?
    });
    found.unwrap_or_default()
}

fn below(net: &Path) -> Vec<IpAddr> {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(net.join(name));
        // A kernel without IPv6, or a namespace that is going: no addresses then.
        let read = file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        read.map(|_| bytes).unwrap_or_default()
    };
    let v4 = local_v4(&read("fib_trie")).into_iter().map(IpAddr::from);
    v4.chain(wide_v6(&read("if_inet6")).into_iter().map(IpAddr::from)).take(MAX_ADDRESSES).collect()
}

/// Addresses of `net/fib_trie` that are local, without loopback ones. The file shows one trie per table; an address is a
/// line `|-- 10.0.0.1`, and what it is follows: `/32 host LOCAL` (net/ipv4/fib_trie.c, `fib_trie_seq_show`).
pub fn local_v4(text: &[u8]) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut current = None;
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if let Some(leaf) = line.strip_prefix(b"|-- ") {
            current = std::str::from_utf8(leaf).ok().and_then(|leaf| leaf.parse().ok());
        } else if line == b"/32 host LOCAL" {
            found.extend(current.filter(|address: &Ipv4Addr| !address.is_loopback()));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Addresses of `net/if_inet6` that reach beyond one link. Columns: address, interface index, prefix length, scope,
/// flags, name (net/ipv6/addrconf.c, `if6_seq_show`); scope 0x20 is the link, 0x10 the host.
pub fn wide_v6(text: &[u8]) -> Vec<Ipv6Addr> {
    let parse = |line: &[u8]| {
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let scope = words.nth(2)?;
        (scope != "20" && scope != "10").then(|| Ipv6Addr::from(address))
    };
    let mut found: Vec<Ipv6Addr> = text.split(|byte| *byte == b'\n').filter_map(parse).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &[u8] = b"Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
        \x20    |-- 10.98.11.2\n        /32 host LOCAL\n     |-- 10.98.11.255\n        /32 link BROADCAST\n\
        \x20    |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.98.11.2\n        /32 host LOCAL\n";

    #[test]
    fn local_addresses_once_and_without_loopback() {
        assert_eq!(local_v4(TRIE), [Ipv4Addr::new(10, 98, 11, 2)]);
        assert!(local_v4(b"|-- not an address\n/32 host LOCAL\n").is_empty());
    }

    #[test]
    fn addresses_beyond_the_link() {
        let text = b"fd000000000000000000000000000002 02 40 00 80     eth0\n\
            fe80000000000000a00a00fffea00a00 02 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80 lo\nzz\n";
        assert_eq!(wide_v6(text), ["fd00::2".parse::<Ipv6Addr>().unwrap()]);
    }
}
