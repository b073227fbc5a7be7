//! Rules of the source tree that no compiler checks. Each message says what to do.

use netskoopd::probes::PROBES;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a part of the daemon must not import: (part, other parts, why). The list is of what is forbidden, so that a new
/// part is free until somebody has an opinion about it.
const FORBIDDEN: [(&str, &[&str], &str); 11] = [
    (
        "probes",
        &["probes", "engine", "server", "sinks", "resolve", "events", "config", "render"],
        "a probe declares and decodes; it meets the others only in the engine",
    ),
    ("sinks", &["probes", "kernel", "engine", "server", "sources"], "a sink takes events and nothing else"),
    ("server", &["probes", "kernel", "sources", "hooks"], "the server asks the engine"),
    (
        "kernel",
        &["probes", "engine", "server", "sinks", "resolve", "events", "config", "sources", "facts", "render"],
        "the kernel's side knows neither metrics nor names",
    ),
    (
        "resolve",
        &["probes", "engine", "server", "sinks", "events", "config", "hooks", "render"],
        "names are found without knowing what is measured",
    ),
    (
        "sources",
        &["probes", "engine", "server", "sinks", "resolve", "events", "config", "render"],
        "a source fills tables; it sees subjects and no names",
    ),
    (
        "events",
        &["probes", "engine", "server", "sinks", "sources", "config"],
        "the bus takes what it is given",
    ),
    (
        "render",
        &["probes", "kernel", "server", "sinks", "resolve", "sources", "events"],
        "texts are pure functions of the declarations",
    ),
    (
        "declare.rs",
        &["probes", "engine", "server", "sinks", "resolve", "sources", "config"],
        "it is plain data",
    ),
    (
        "duration.rs",
        &["probes", "engine", "server", "sinks", "resolve", "sources", "config", "hooks", "kernel"],
        "it is shared by everybody",
    ),
    (
        "table.rs",
        &["probes", "engine", "server", "sinks", "resolve", "sources", "config", "hooks"],
        "it is plain data",
    ),
];

/// Files with `unsafe`, and why each needs it.
const UNSAFE: [(&str, &str); 10] = [
    ("bpf/src/plain.rs", "C structures are read from bytes"),
    (
        "daemon/src/kernel/netlink/all_namespaces.rs",
        "a netlink option and its control message that rustix does not know",
    ),
    ("daemon/src/kernel/netns_cookie.rs", "rustix does not know the socket option"),
    ("daemon/src/kernel/rooms.rs", "unshare is marked so, for another of its uses"),
    ("daemon/src/server/handed.rs", "a descriptor that was inherited is only a number"),
    ("daemon/src/server/peer.rs", "rustix does not know the socket option"),
    ("daemon/src/kernel/bpf.rs", "libbpf has no safe call for it"),
    ("daemon/src/kernel/tc.rs", "libbpf-rs has no safe call for it"),
    ("daemon/src/kernel/root.rs", "tests enter namespaces of their own"),
    ("daemon/src/counting.rs", "an allocator cannot be written without; only in tests"),
];

/// Files that are tables, and may have any length.
const TABLES: [&str; 2] = ["daemon/src/probes/tcpext.rs", "daemon/src/sources/columns.rs"];

/// Programs that belong to no probe.
const WITHOUT_PROBE: [(&str, &str); 1] = [("netns", "tells the resolver of namespaces as they come and go")];

/// Lines of code, without tests, comments and empty lines, that one file has at most.
const MOST_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Paths of the files under a directory, relative to the root, in order.
fn files(under: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(under)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !["target", ".git", "state", "__pycache__"].contains(&name.as_str()) {
                open.push(entry.path());
            } else if kind.is_file() && name != ".git" {
                found.push(entry.path().strip_prefix(root()).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files under {under}");
    found
}

fn ending<'a>(files: &'a [String], ends: &'a [&str]) -> impl Iterator<Item = &'a String> {
    files.iter().filter(|file| ends.iter().any(|end| file.ends_with(end)))
}

/// A file of Rust without tests, comments and empty lines; nothing if the whole file is only for tests.
fn code(path: &str) -> Vec<String> {
    let only_tests =
        ["/tests.rs", "/tests/", "/testing.rs", "/fake.rs", "/kernel/root.rs", "/counting.rs", "/gates.rs"];
    if only_tests.iter().any(|part| path.contains(part)) {
        return Vec::new();
    }
    let text = read(path);
    let tests = ["mod tests {", "mod testing {", "pub(crate) mod tests {", "pub(crate) mod testing {"];
    let begin = |module: &&str| text.find(&format!("\n#[cfg(test)]\n{module}"));
    let end = tests.iter().filter_map(begin).min().unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .map(str::to_owned)
        .collect()
}

/// The parts of the daemon that a line of code names: `crate::part::...`.
fn parts(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap())
}

/// Nothing was found; else all of it at once.
fn none(found: &[String]) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_daemon_s_parts_import_in_one_direction() {
    let mut wrong = Vec::new();
    let mut parts_seen = BTreeSet::new();
    let sources = files("daemon/src");
    for file in ending(&sources, &[".rs"]) {
        let place = file.strip_prefix("daemon/src/").unwrap();
        let part = place.split('/').next().unwrap();
        parts_seen.insert(part);
        let rule = FORBIDDEN.iter().find(|(name, ..)| *name == part);
        for line in code(file) {
            if line.contains("use crate::{") {
                wrong.push(format!("{file}: {line}\n  one `use` per part, so that this test can read it"));
            }
            let Some((_, forbidden, why)) = rule else { continue };
            // The list of probes names the probes.
            let listed = place == "probes/mod.rs";
            for part in parts(&line).filter(|part| !listed && forbidden.contains(part)) {
                wrong.push(format!("{file}: {}\n  must not know {part}: {why}", line.trim()));
            }
            // The way to a sibling that goes around `crate::`.
            if place.starts_with("probes/") && !listed && line.contains("super::") {
                wrong.push(format!("{file}: {}\n  a probe imports no other probe", line.trim()));
            }
            if part != "probes" && part != "kernel" && line.contains("netskoop_bpf::") {
                wrong.push(format!("{file}: {}\n  only probes and kernel see the BPF objects", line.trim()));
            }
            if part == "kernel" && line.contains("\"netskoop_") {
                wrong.push(format!("{file}: {}\n  the kernel's side knows no metric", line.trim()));
            }
        }
    }
    for part in ["probes", "server", "kernel", "resolve", "sources", "events"] {
        assert!(parts_seen.contains(part), "{part} is gone: change the rules of this test");
    }
    none(&wrong);
}

#[test]
fn crates_depend_in_one_direction() {
    let own = |manifest: &str, section: &str| -> BTreeSet<String> {
        let text = read(manifest);
        let start = format!("\n[{section}]\n");
        let Some((_, rest)) = text.split_once(&start) else { return BTreeSet::new() };
        let body = rest.split("\n[").next().unwrap();
        let names = body.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_owned).collect()
    };
    let ours = |manifest: &str| -> Vec<String> {
        own(manifest, "dependencies").into_iter().filter(|name| name.starts_with("netskoop")).collect()
    };
    assert_eq!(
        own("daemon/api/Cargo.toml", "dependencies"),
        BTreeSet::from(["serde".to_owned()]),
        "api: only serde"
    );
    assert_eq!(
        ours("ctl/Cargo.toml"),
        ["netskoop-api"],
        "ctl must work with any daemon: it knows the contract only"
    );
    assert_eq!(ours("daemon/Cargo.toml"), ["netskoop-api", "netskoop-bpf"]);
    assert!(ours("bpf/Cargo.toml").is_empty());
}

#[test]
fn unsafe_only_where_it_is_named() {
    let all: Vec<String> = ["daemon", "ctl", "bpf"].into_iter().flat_map(files).collect();
    let mut found = BTreeSet::new();
    for file in ending(&all, &[".rs"]) {
        let text = read(file);
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        if code
            .flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .any(|word| word == "unsafe")
        {
            found.insert(file.as_str());
        }
    }
    let named: BTreeSet<&str> = UNSAFE.iter().map(|(file, _)| *file).collect();
    assert_eq!(
        found, named,
        "a file that needs `unsafe` is listed in tests/ctl_cases/tidy.rs with the reason"
    );
}

#[test]
fn one_name_per_probe() {
    let programs: BTreeSet<String> = ending(&files("bpf"), &[".bpf.c"])
        .map(|file| file.trim_start_matches("bpf/").trim_end_matches(".bpf.c").to_owned())
        .collect();
    let hooked = PROBES.iter().filter(|probe| probe.hooks.is_some()).map(|probe| probe.name);
    let wanted: BTreeSet<String> =
        hooked.chain(WITHOUT_PROBE.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    assert_eq!(programs, wanted, "bpf/<p>.bpf.c and the probe <p> with hooks belong together");
    for probe in PROBES {
        let file = read(&format!("daemon/src/probes/{}.rs", probe.name));
        assert!(file.contains("pub static PROBE: Probe"), "{}: its declaration is PROBE", probe.name);
        let own = format!("netskoop_{}_", probe.name);
        let native = probe.families().filter(|family| family.names.as_str() == "netskoop");
        none(
            &native
                .filter(|f| !f.name.starts_with(&own))
                .map(|f| format!("{}: not {own}", f.name))
                .collect::<Vec<_>>(),
        );
        if let Some(hooks) = &probe.hooks {
            assert_eq!(hooks.maps[0].table.name, probe.name, "the table of a probe with hooks has its name");
        }
    }
}

#[test]
fn programs_carry_their_licence() {
    const LICENCE: &str = "/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */\n";
    let all = files("bpf");
    let own = ending(&all, &[".bpf.c", ".h"]).filter(|file| !file.ends_with("/vmlinux.h"));
    none(
        &own.filter(|f| !read(f).starts_with(LICENCE))
            .map(|f| format!("{f} begins with {LICENCE}"))
            .collect::<Vec<_>>(),
    );
    let section = "SEC(\"license\") = \"Dual BSD/GPL\"";
    let header = read("bpf/include/netskoop.bpf.h");
    for file in ending(&all, &[".bpf.c"]) {
        let text = read(file);
        let included = text.contains("#include \"netskoop.bpf.h\"") && header.contains(section);
        assert!(included || text.contains(section), "{file}: the kernel wants {section}");
    }
}

#[test]
fn files_fit_into_a_head() {
    let all: Vec<String> = ["daemon", "ctl", "bpf"].into_iter().flat_map(files).collect();
    let long = |file: &&String| !TABLES.contains(&file.as_str()) && code(file).len() > MOST_LINES;
    let describe = |file: &String| {
        format!("{file}: {} lines of code; split it (at most {MOST_LINES})", code(file).len())
    };
    none(&ending(&all, &[".rs"]).filter(long).map(describe).collect::<Vec<_>>());
    for table in TABLES {
        assert!(code(table).len() > MOST_LINES / 2, "{table} needs no exception any more");
    }
}

#[test]
fn nothing_of_somebody_s_machine_or_unfinished() {
    // Put together here, so that this file does not find itself.
    let mut words = vec![
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["/ho", "me/"].concat(),
        ["/wo", "rk/shared"].concat(),
        ["/tmp", "/wt-"].concat(),
        ["/tmp", "/t-"].concat(),
    ];
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // A shorter name is a word of the language somewhere.
    words.extend((host.trim().len() > 5 && host.trim() != "localhost").then(|| host.trim().to_owned()));
    let mut found = Vec::new();
    for file in files(".").iter().filter(|file| *file != "Cargo.lock" && *file != "LICENSE") {
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                found.push(format!("{file}:{}: {word}", number + 1));
            }
        }
    }
    none(&found);
}
