//! What the running kernel offers, read from its type information (BTF).

use super::bpf::Refused;
use libbpf_rs::btf::{Btf, BtfType, types};
use rustc_hash::FxHashMap;
use std::path::{Path, PathBuf};

/// Where the kernel keeps its own type information.
const BUILT_IN: &str = "/sys/kernel/btf/vmlinux";

/// Where it may be found where the former cannot be seen: the places where libbpf looks for what tracing programs are
/// attached to, in its order. `%` stands for the kernel's release.
const ELSEWHERE: [&str; 7] = [
    "/boot/vmlinux-%",
    "/lib/modules/%/vmlinux-%",
    "/lib/modules/%/build/vmlinux",
    "/usr/lib/modules/%/kernel/vmlinux",
    "/usr/lib/debug/boot/vmlinux-%",
    "/usr/lib/debug/boot/vmlinux-%.debug",
    "/usr/lib/debug/lib/modules/%/vmlinux",
];

/// Facts from the kernel's type information. The information itself (several megabytes) is not kept.
#[derive(Debug, Default)]
pub struct Features {
    path: Option<PathBuf>,
    tracepoints: FxHashMap<String, u8>,
    enums: FxHashMap<String, EnumNames>,
    task_storage: bool,
    socket_storage: bool,
    guards_programs: bool,
    charges_locked_memory: bool,
}

impl Features {
    /// Reads them, from `path` or where the kernel or its packages have them. `enums` are the enumerations whose names are
    /// wanted.
    pub fn load(path: Option<&Path>, enums: &[&str]) -> Result<Features, Refused> {
        super::bpf::quiet();
        let (btf, path) = match path {
            Some(path) => (read(path)?, Some(path.to_owned())),
            None if Path::new(BUILT_IN).exists() => (
                Btf::from_vmlinux()
                    .map_err(|error| super::bpf::refused("read the kernel's type information", &error))?,
                None,
            ),
            None => elsewhere().ok_or_else(|| {
                Refused::NotHere(
                    "this kernel shows no type information (CONFIG_DEBUG_INFO_BTF), which BPF programs need, and there is none \
                     for it in /boot or /usr/lib/debug"
                        .to_owned(),
                )
            })?,
        };
        let mut features = Features { path, ..Features::default() };
        for found in btf.type_by_kind::<types::Typedef<'_>>() {
            let name = found.name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(|name| name.strip_prefix("btf_trace_")) else { continue };
            if let Some(params) = params(&found) {
                features.tracepoints.insert(name.to_owned(), params);
            }
        }
        // Gone since maps are charged to the cgroup (80ee81e0403c "bpf: Eliminate rlimit-based memory accounting infra").
        features.charges_locked_memory = has_member(&btf, "bpf_map", "memory");
        features.task_storage = has_member(&btf, "task_struct", "bpf_storage");
        // 8e4597c627fb ("bpf: Allow using bpf_sk_storage in FENTRY/FEXIT/RAW_TP", 5.11).
        features.socket_storage = btf.type_by_name::<types::Func<'_>>("bpf_sk_storage_get_tracing").is_some();
        // 05b24ff9b2cf ("bpf: Prevent bpf program recursion for raw tracepoint probes", 6.1) gave it this name.
        features.guards_programs =
            btf.type_by_name::<types::Func<'_>>("bpf_prog_inc_misses_counter").is_some();
        for name in enums {
            features.enums.insert((*name).to_owned(), EnumNames::read(&btf, name));
        }
        Ok(features)
    }

    /// Type information that objects are to be loaded with, if not the kernel's own.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Number of arguments of a tracepoint, or why it cannot be used.
    pub fn tracepoint(&self, name: &str) -> Result<usize, Refused> {
        let found = self.tracepoints.get(name).map(|params| usize::from(*params));
        found.ok_or_else(|| Refused::NotHere(format!("this kernel has no tracepoint {name}")))
    }

    /// For tests: as if a tracepoint had another number of arguments, as on another kernel.
    #[cfg(test)]
    pub fn pretend(mut self, tracepoint: &str, arguments: u8) -> Features {
        self.tracepoints.insert(tracepoint.to_owned(), arguments);
        self
    }

    /// Whether programs of any sort can keep something for each task, or why not.
    pub fn task_storage(&self) -> Result<(), Refused> {
        let sentence = "before Linux 5.12 BPF programs cannot remember anything of a task";
        if self.task_storage { Ok(()) } else { Err(Refused::NotHere(sentence.to_owned())) }
    }

    /// Whether tracing programs can keep something for each socket, or why not.
    pub fn socket_storage(&self) -> Result<(), Refused> {
        let sentence = "before Linux 5.11 BPF programs that trace cannot remember anything of a socket";
        if self.socket_storage { Ok(()) } else { Err(Refused::NotHere(sentence.to_owned())) }
    }

    /// Whether a program on a tracepoint is not run again on a CPU where it is running.
    pub fn guards_programs(&self) -> bool {
        self.guards_programs
    }

    /// A refusal, with its likely cause where the kernel charges what programs and maps take against the limit of locked
    /// memory. libbpf raises that if it may.
    pub fn explained(&self, refused: Refused) -> Refused {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        match (refused, limit) {
            (Refused::Failed { doing, cause }, Some(bytes))
                if self.charges_locked_memory && cause.contains("not permitted") =>
            {
                Refused::NotHere(format!(
                    "cannot {doing}: this kernel counts BPF as locked memory, of which the daemon may have {} KiB only \
                     (RLIMIT_MEMLOCK) and may not raise it; set LimitMEMLOCK=infinity in its unit, or leave it \
                     CAP_SYS_RESOURCE",
                    bytes / 1024
                ))
            }
            (refused, _) => refused,
        }
    }

    /// Names of an enumeration that [`Features::load`] was asked for; none if the kernel lacks it.
    pub fn names(&self, name: &str) -> EnumNames {
        self.enums.get(name).cloned().unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Btf<'static>, Refused> {
    Btf::from_path(path).map_err(|error| {
        let doing = format!("read the kernel's type information from {}", path.display());
        super::bpf::refused(&doing, &error)
    })
}

/// The first file for this kernel that can be read as type information.
fn elsewhere() -> Option<(Btf<'static>, Option<PathBuf>)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().ok()?;
    let paths = ELSEWHERE.iter().map(|place| PathBuf::from(place.replace('%', release)));
    paths.filter(|path| path.exists()).find_map(|path| Some((read(&path).ok()?, Some(path))))
}

fn has_member(btf: &Btf<'_>, name: &str, member: &str) -> bool {
    let found = btf.type_by_name::<types::Struct<'_>>(name);
    found.is_some_and(|found| found.iter().any(|m| m.name.is_some_and(|name| name == member)))
}

/// Arguments of a `btf_trace_*` type: a pointer to a function whose first parameter is not passed on.
fn params(typedef: &types::Typedef<'_>) -> Option<u8> {
    let pointer = types::Ptr::try_from(followed(typedef.next_type()?)).ok()?;
    let function = types::FuncProto::try_from(followed(pointer.next_type()?)).ok()?;
    u8::try_from(function.len().checked_sub(1)?).ok()
}

fn followed(found: BtfType<'_>) -> BtfType<'_> {
    found.skip_mods_and_typedefs()
}

/// Names of the values of an enumeration.
#[derive(Clone, Debug, Default)]
pub struct EnumNames(FxHashMap<u32, String>);

impl EnumNames {
    fn read(btf: &Btf<'_>, name: &str) -> EnumNames {
        let mut names = EnumNames::default();
        if let Some(found) = btf.type_by_name::<types::Enum<'_>>(name) {
            for member in found.iter() {
                // The numbers are unsigned in the programs; BTF says signed unless told otherwise.
                let value = u32::try_from(member.value & i64::from(u32::MAX));
                if let (Ok(value), Some(name)) = (value, member.name) {
                    names.0.insert(value, name.to_string_lossy().into_owned());
                }
            }
        }
        names
    }

    /// For tests and for tables that do not come from BTF.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (u32, &'a str)>) -> EnumNames {
        EnumNames(pairs.into_iter().map(|(value, name)| (value, name.to_owned())).collect())
    }

    /// Name of a value.
    pub fn get(&self, value: u32) -> Option<&str> {
        self.0.get(&value).map(String::as_str)
    }

    /// All values with their names.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(value, name)| (*value, name.as_str()))
    }

    /// Whether the kernel lacks the enumeration.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
