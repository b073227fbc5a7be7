//! Parts of the kernel that may be missing. They are looked for without asking them: a question to a part that is not
//! there would make the kernel load its module, and the node stays as it is.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

/// A part that is built in, a module, or missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the module.
    pub module: &'static str,
    /// One of its functions, whose address is taken, so that it cannot be inlined: where the part is built in, the table
    /// of symbols has it.
    function: &'static str,
}

/// Tells of TCP sockets.
pub const TCP_DIAG: Part = Part { module: "tcp_diag", function: "tcp_diag_get_info" };
/// Tells of tracked connections over netlink.
pub const CONNTRACK_NETLINK: Part = Part { module: "nf_conntrack_netlink", function: "ctnetlink_dump_table" };
/// Load balancing.
pub const IP_VS: Part = Part { module: "ip_vs", function: "ip_vs_stats_show" };
/// Remote memory access.
pub const RDMA: Part = Part { module: "ib_core", function: "rdma_nl_rcv" };
/// Pairs of interfaces that are joined by a cable.
pub const VETH: Part = Part { module: "veth", function: "veth_newlink" };
/// Where filters hang on the way into an interface and out of it.
pub const SCH_INGRESS: Part = Part { module: "sch_ingress", function: "clsact_init" };
/// Programs as filters.
pub const CLS_BPF: Part = Part { module: "cls_bpf", function: "cls_bpf_init" };

const ALL: [Part; 7] = [TCP_DIAG, CONNTRACK_NETLINK, IP_VS, RDMA, VETH, SCH_INGRESS, CLS_BPF];

impl Part {
    /// Whether it is there now.
    pub fn is_here(&self, proc: &Path) -> bool {
        Path::new("/sys/module").join(self.module).exists() || built_in(proc).contains(self.function)
    }

    /// Why nothing comes from it, as [`crate::sources::Report::not_here`] wants it.
    pub fn absence(&self) -> String {
        format!("the kernel module {} is not loaded, and the daemon loads none", self.module)
    }
}

/// The functions of [`ALL`] that are part of the kernel itself, which does not change while it runs.
fn built_in(proc: &Path) -> &'static HashSet<&'static str> {
    static FOUND: OnceLock<HashSet<&'static str>> = OnceLock::new();
    FOUND.get_or_init(|| find(&proc.join("kallsyms")).unwrap_or_default())
}

/// Reads the table piece by piece: it has some megabytes.
fn find(path: &Path) -> std::io::Result<HashSet<&'static str>> {
    let mut file = File::open(path)?;
    let (mut found, mut bytes, mut kept) = (HashSet::new(), vec![0; 64 * 1024], 0);
    loop {
        let length = file.read(&mut bytes[kept..])?;
        let whole = kept + length;
        let end = bytes[..whole].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in bytes[..end].split(|byte| *byte == b'\n') {
            found.extend(function(line));
        }
        // A line that is longer than all of this is no symbol.
        kept = if end == 0 && whole == bytes.len() { 0 } else { whole - end };
        bytes.copy_within(whole - kept..whole, 0);
        if length == 0 {
            return Ok(found);
        }
    }
}

/// `ffffffff81a6d5f0 t tcp_diag_get_info`; a fourth word would be the module's name.
fn function(line: &[u8]) -> Option<&'static str> {
    let mut words = line.split(u8::is_ascii_whitespace).skip(2);
    let (name, module) = (words.next()?, words.next());
    ALL.iter().map(|part| part.function).find(|function| module.is_none() && function.as_bytes() == name)
}

/// A part that no kernel has.
#[cfg(test)]
pub(crate) const MISSING: Part = Part { module: "no_such_module", function: "no_such_function" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_parts_are_found_and_modules_are_not() {
        let path = std::env::temp_dir().join(format!("netskoop-kallsyms-{}", std::process::id()));
        let mut text = "0000000000000000 T _stext\n".repeat(10_000);
        text.push_str("0000000000000000 t tcp_diag_get_info\n0000000000000000 t ip_vs_stats_show\t[ip_vs]\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(find(&path).unwrap(), HashSet::from(["tcp_diag_get_info"]));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_reason_says_what_is_missing() {
        assert!(!MISSING.is_here(Path::new("/proc")));
        assert!(MISSING.absence().starts_with("the kernel module no_such_module is not loaded"));
    }
}
