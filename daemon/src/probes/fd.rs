//! Probe `fd`: what the processes of each entity have open.

use crate::declare::{Cost, Family, OptionDecl, OptionType, Probe};
use crate::facts::one;
use crate::sources::processes::{FD, MOST_DESCRIPTORS};

const OPEN: &str = "Descriptors that all processes of the entity have open now; a thread group counts once (entries of /proc/<pid>/fd).";
const SOCKETS: &str = "Sockets among the descriptors that all processes of the entity have open now (links of /proc/<pid>/fd); absent where one of them has more than max_descriptors.";

/// The probe.
pub static PROBE: Probe = Probe {
    name: "fd",
    aliases: &[],
    summary: "Descriptors and sockets that the processes of each entity have open, host-network pods among them.",
    when: "When accepting or connecting fails with \"too many open files\", or memory of sockets grows.",
    finds: "Sockets and files that are never closed.",
    cost: Cost::Medium,
    needs: "/proc/<pid>/fd of all processes, for which the daemon needs CAP_SYS_PTRACE; how many there are is one call for each since Linux 6.2, and each socket one everywhere.",
    default_on: false,
    section: None,
    options: &[
        OptionDecl {
            name: "sockets",
            kind: OptionType::Bool { default: true },
            help: "Counts the sockets among them, which costs three microseconds for each descriptor.",
        },
        OptionDecl {
            name: "max_descriptors",
            kind: OptionType::Integer { default: MOST_DESCRIPTORS, min: 1, max: 10_000_000 },
            help: "Processes with more descriptors are not searched for sockets; their entity then has no number of sockets.",
        },
    ],
    families: &[&FAMILIES],
    events: &[],
    hooks: None,
};

static FAMILIES: [Family; 6] = [
    Family::native("netskoop_fd_open", OPEN, &FD, one(&FD, "open")).core(),
    Family::native("netskoop_fd_sockets", SOCKETS, &FD, one(&FD, "sockets")).core().option("sockets"),
    Family::kubeskoop("kubeskoop_fd_openfd", OPEN, &FD, one(&FD, "open")),
    Family::kubeskoop("kubeskoop_fd_opensocket", SOCKETS, &FD, one(&FD, "sockets")).option("sockets"),
    Family::inspector("inspector_pod_fdopenfd", OPEN, &FD, one(&FD, "open")),
    Family::inspector("inspector_pod_fdopensocket", SOCKETS, &FD, one(&FD, "sockets")).option("sockets"),
];
