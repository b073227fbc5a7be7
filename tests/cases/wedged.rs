use crate::support::{Daemon, Setup, run, series, until};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Puts a FIFO in place of a file; the text of that file. Opening it for reading blocks until somebody writes.
fn plug(file: &Path) -> Vec<u8> {
    let text = std::fs::read(file).unwrap();
    std::fs::remove_file(file).unwrap();
    run("mkfifo", &[file.to_str().unwrap()]);
    text
}

/// Lets the read that hangs go on, and the next ones work.
fn unplug(file: &Path, text: &[u8]) {
    let aside = file.with_extension("plugged");
    std::fs::rename(file, &aside).unwrap();
    std::fs::write(file, text).unwrap();
    // A reader sits in `open` of the FIFO, whatever its name is by now.
    let mut fifo = std::fs::OpenOptions::new().write(true).open(aside).unwrap();
    fifo.write_all(text).unwrap();
}

fn file(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.setup.dir.0.join("proc").join(name)
}

/// How many namespaces have a series of this family.
fn subjects(text: &str, family: &str) -> usize {
    text.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'))).count()
}

const TCP: &str = "netskoop_tcp_active_opens_total";
const SOFTNET: &str = "netskoop_softnet_dropped_total";

#[test]
fn a_read_that_hangs_costs_one_namespace_and_nothing_else() {
    let mut daemon = Setup::fixture_copy("healthy").pull_only().start();
    assert_eq!(subjects(&daemon.scrape("/metrics"), TCP), 3);
    let fifo = file(&daemon, "100/net/netstat");
    let content = plug(&fifo);
    for round in 0..2 {
        let text = daemon.scrape("/metrics");
        assert_eq!((subjects(&text, TCP), subjects(&text, SOFTNET)), (2, 1), "round {round}");
        let of_unit = text.lines().filter(|line| line.contains("nginx.service"));
        let of_unit: Vec<&str> = of_unit.filter(|line| !line.starts_with("netskoop_entity_info")).collect();
        assert!(of_unit.is_empty(), "a part of a namespace is shown: {of_unit:?}");
        assert_eq!(series(&text, "netskoop_wedged_reads"), Some(1.0));
        assert_eq!(series(&text, "netskoop_collection_late_namespaces"), Some(1.0));
        let wedged = daemon.status().wedged;
        assert_eq!(wedged.len(), 1);
        assert_eq!((&*wedged[0].source, &*wedged[0].subject), ("procfs", "net/netstat of nginx.service"));
    }
    assert_eq!(daemon.http("/-/healthy").status, 200);
    unplug(&fifo, &content);
    until("the namespace is back", || {
        let text = daemon.scrape("/metrics");
        (series(&text, "netskoop_wedged_reads") == Some(0.0) && subjects(&text, TCP) == 3).then_some(())
    });
    assert!(daemon.status().wedged.is_empty());
    plug(&fifo);
    assert_eq!(subjects(&daemon.scrape("/metrics"), TCP), 2);
    assert_eq!(daemon.stop(), Some(0), "a read that hangs does not keep it from stopping");
}

#[test]
fn a_node_wide_read_that_hangs_leaves_the_namespaces_alone() {
    let daemon = Setup::fixture_copy("healthy").pull_only().start();
    plug(&file(&daemon, "1/net/softnet_stat"));
    for _ in 0..2 {
        let text = daemon.scrape("/metrics");
        assert_eq!((subjects(&text, TCP), subjects(&text, SOFTNET)), (3, 0));
        assert_eq!(series(&text, "netskoop_probe_success{probe=\"tcp\"}"), Some(1.0));
        assert_eq!(series(&text, "netskoop_probe_success{probe=\"softnet\"}"), Some(0.0));
    }
    assert_eq!(daemon.status().wedged[0].subject, "net/softnet_stat of node");
}

#[test]
fn a_read_that_hangs_from_the_start_does_not_keep_it_from_starting() {
    let setup = Setup::fixture_copy("healthy").pull_only();
    plug(&setup.dir.0.join("proc/200/net/dev"));
    let daemon = setup.start();
    let text = daemon.scrape("/metrics");
    assert_eq!(subjects(&text, TCP), 2);
    assert_eq!(daemon.status().wedged.len(), 1);
}
