//! What differs from kernel to kernel beside the probes.

use crate::support::{Daemon, Setup, run};
use netskoop_api::StateName;
use std::path::Path;

/// Both probes with hooks that are on without being asked for.
fn hooks_work(daemon: &Daemon) {
    for probe in ["tcpreset", "packetloss"] {
        let state = daemon.probe(probe).state;
        assert_eq!(state.state, StateName::On, "{probe}: {state:#?}");
    }
}

/// Runs the daemon where the kernel's own type information is not to be seen.
const HIDDEN: [&str; 6] =
    ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"", "sh"];

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn type_information_comes_from_a_file_where_the_built_in_one_is_hidden() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let file = format!("/boot/vmlinux-{}", run("uname", &["-r"]).trim());
    assert!(!Path::new(&file).exists(), "{file}");
    let daemon = Setup::on_node().wrap(&HIDDEN).start();
    let state = daemon.probe("tcpreset").state;
    assert_eq!(state.state, StateName::NotAvailable, "{state:#?}");
    assert!(state.reason.unwrap().contains("type information"));
    drop(daemon);

    std::fs::copy("/sys/kernel/btf/vmlinux", &file).unwrap();
    let daemon = Setup::on_node().wrap(&HIDDEN).start();
    hooks_work(&daemon);
    assert_eq!(daemon.status().btf, format!("BTF from {file}"));
    std::fs::remove_file(file).unwrap();
}

/// Before 5.11 maps are charged against the limit of locked memory, which is small unless somebody raised it.
#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn a_small_limit_of_locked_memory_is_raised_or_named() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let small = ["prlimit", "--memlock=65536:65536"];
    hooks_work(&Setup::on_node().wrap(&small).start());

    // Without the right to raise it.
    let bound = [&small[..], &["setpriv", "--bounding-set=-sys_resource"]].concat();
    let daemon = Setup::on_node().wrap(&bound).start();
    let state = daemon.probe("tcpreset").state;
    // The others count what maps take by cgroup.
    let needs_it = std::env::var("NETSKOOP_LAB_KERNEL").is_ok_and(|kernel| kernel == "5.10");
    assert_eq!(state.state == StateName::On, !needs_it, "{state:?}");
    if needs_it {
        let reason = state.reason.unwrap_or_default();
        assert!(reason.contains("RLIMIT_MEMLOCK") && reason.contains("LimitMEMLOCK=infinity"), "{reason}");
    }
}
