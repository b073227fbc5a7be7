//! Probes and a directory for the unit tests of this module.

use crate::declare::{Cost, OptionDecl, OptionType, Probe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const STACK: OptionDecl =
    OptionDecl { name: "stack", kind: OptionType::Bool { default: false }, help: "Adds the kernel stack." };

pub(super) const LIMIT: OptionDecl = OptionDecl {
    name: "limit",
    kind: OptionType::Integer { default: 10, min: 1, max: 100 },
    help: "How many.",
};

pub(super) const DEVICES: OptionDecl = OptionDecl {
    name: "devices",
    kind: OptionType::List {
        default: &["eth0"],
        max: 3,
        what: "an interface name",
        check: |word| !word.is_empty() && !word.contains('/'),
    },
    help: "Which interfaces.",
};

const fn probe(
    name: &'static str,
    aliases: &'static [&'static str],
    default_on: bool,
    options: &'static [OptionDecl],
) -> Probe {
    Probe {
        name,
        aliases,
        summary: "A probe of the tests.",
        when: "In tests.",
        finds: "Mistakes.",
        cost: Cost::Low,
        needs: "Nothing.",
        default_on,
        section: None,
        options,
        families: &[],
        events: &[],
        hooks: None,
    }
}

static TCP: Probe = probe("tcp", &[], true, &[DEVICES]);
static TCPRESET: Probe = probe("tcpreset", &["tcp_reset"], false, &[STACK, LIMIT]);

/// Two probes: one that is on and one that is off by default.
pub(super) static PROBES: &[&Probe] = &[&TCP, &TCPRESET];

/// A directory that vanishes with the value.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("netskoop-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("conf.d")).unwrap();
        Dir(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and says where it is.
    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
