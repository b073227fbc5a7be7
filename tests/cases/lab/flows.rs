//! What goes through interfaces, and what hangs on them.

use super::Outcome::Seen;
use super::{Lab, Outcome, Setup, modprobe, run};
use crate::flow::{here, labels, talk, there, uplink};
use std::process::Command;

fn enable(lab: &Lab) {
    let body = r#"{"enabled":true,"options":{"devices":"flow*"},"runtime":true}"#;
    lab.daemon.change("flow", body);
}

fn disable(lab: &Lab) {
    lab.daemon.change("flow", r#"{"enabled":false,"runtime":true}"#);
}

/// Filters on the way into the interface, as `tc` lists them.
fn filters() -> String {
    run("tc", &["filter", "show", "dev", "flow0", "ingress"])
}

/// Another daemon is killed: its filters stay, and the next one removes them as it starts.
fn killed_and_started_again() {
    let setup = Setup::new().pull_only().set("probes.flow", "enabled = true\ndevices = [\"flow*\"]");
    let mut daemon = setup.start();
    daemon.kill();
    assert!(filters().contains("netskoop"), "{}", filters());
    let mut daemon = daemon.restart();
    daemon.logged("filters of an earlier daemon were removed");
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(filters(), "");
}

pub(super) fn through_an_interface(lab: &Lab) -> Outcome {
    // Whatever the kernel needs; the daemon loads nothing.
    assert!(["sch_ingress", "cls_bpf", "veth", "8021q"].into_iter().all(modprobe));
    let far = uplink("flow0", 71);
    disable(lab);
    enable(lab);
    let via = lab.state("flow").via.expect("it is attached");
    for version in [4, 6] {
        talk(&far, version, 71, 7900, 10);
        for (way, from, to, count) in [
            ("out", here(version, 71, 0), there(version, 71, 0), 10.0),
            ("in", there(version, 71, 0), here(version, 71, 0), 5.0),
        ] {
            let labels = format!(",{}", labels("flow0", way, from, to, false));
            let found = lab.value("flow", "packets_total", "host", &labels);
            assert_eq!(found, Some(count), "{labels}");
        }
    }
    // A tag in front: the connection is told of the interface below as well.
    for (netns, parent, own) in [(None, "flow0", here(4, 72, 0)), (Some(&far), "peer0", there(4, 72, 0))] {
        let at = |words: &[&str]| match netns {
            Some(far) => run("ip", &[&["-n", &far.0], words].concat()),
            None => run("ip", words),
        };
        at(&["link", "add", "link", parent, "name", "tag7", "type", "vlan", "id", "7"]);
        at(&["addr", "add", &format!("{}/24", own.ip()), "dev", "tag7"]);
        at(&["link", "set", "tag7", "up"]);
    }
    talk(&far, 4, 72, 7910, 4);
    let labels = format!(",{}", labels("flow0", "in", there(4, 72, 0), here(4, 72, 0), false));
    assert_eq!(lab.value("flow", "packets_total", "host", &labels), Some(2.0), "{labels}");
    if via == "clsact" {
        assert!(filters().contains("netskoop"), "{}", filters());
        // As after the end of a daemon that was killed.
        let cleaned = Command::new(env!("CARGO_BIN_EXE_netskoopd")).arg("--cleanup").status().unwrap();
        assert!(cleaned.success());
        assert_eq!(filters(), "");
        disable(lab);
        killed_and_started_again();
        enable(lab);
        assert!(filters().contains("netskoop"), "{}", filters());
    }
    disable(lab);
    assert_eq!(filters(), "");
    assert!(!run("tc", &["qdisc", "show", "dev", "flow0"]).contains("clsact"));
    enable(lab);
    Seen(format!("v4 v6 and tagged, by {via}; nothing is left"))
}
