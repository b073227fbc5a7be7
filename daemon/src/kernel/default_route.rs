//! The interfaces through which everything goes that has no route of its own.

use std::io;
use std::path::Path;

/// Their names, by `net/route` and `net/ipv6_route` of the calling thread's namespace (proc_pid_net(5)).
pub fn interfaces(proc: &Path) -> io::Result<Vec<String>> {
    let read = |file: &str| match std::fs::read_to_string(proc.join("thread-self/net").join(file)) {
        // A kernel without IPv6 has one of them only.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    Ok(parse(&read("route")?, &read("ipv6_route")?))
}

fn parse(v4: &str, v6: &str) -> Vec<String> {
    /// `RTF_UP` and `RTF_REJECT`.
    const UP: u32 = 1;
    const REJECT: u32 = 0x200;
    let leads = |flags: Option<&&str>| {
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        flags & UP != 0 && flags & REJECT == 0
    };
    let mut found: Vec<String> = Vec::new();
    for line in v4.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let everywhere = words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000");
        found.extend(
            words.first().filter(|_| everywhere && leads(words.get(3))).map(|name| (*name).to_owned()),
        );
    }
    for line in v6.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let everywhere = words.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0'));
        let everywhere = everywhere && words.get(1) == Some(&"00");
        let name = words.get(9).filter(|name| **name != "lo");
        found.extend(name.filter(|_| everywhere && leads(words.get(8))).map(|name| (*name).to_owned()));
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_of_both_versions_are_found() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  eth2\t00000000\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let line = |to: &str, length: &str, flags: &str, name: &str| {
            format!("{to} {length} {zero} 00 {zero} 00000400 00000001 00000000 {flags} {name}\n")
        };
        let v6 = line(&zero, "00", "00000003", "wg0")
            + &line(&zero, "00", "00200200", "lo")
            + &line(&zero, "00", "00200203", "eth3")
            + &line("20010db8000000000000000000000000", "40", "00000001", "eth4");
        assert_eq!(parse(v4, &v6), ["eth0", "wg0"]);
        assert!(parse("", "").is_empty());
    }
}
