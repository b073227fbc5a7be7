use crate::support::{Setup, skip, tests_dir};
use std::io::Write;
use std::process::{Command, Stdio};

/// Where the daemon's own metrics begin; those depend on the machine.
const SELF_METRICS: &str = "# HELP netskoop_build_info ";

/// Runs `promtool check metrics`. Older names cannot please it, but they must parse.
pub(crate) fn lint(metrics: &str, names: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return skip("promtool is not installed (package prometheus)") };
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    match names {
        "netskoop" => assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status),
        // 3: it parses, with findings.
        _ => assert!(matches!(output.status.code(), Some(0 | 3)), "{}: {said}", output.status),
    }
}

fn compare(scenario: &str) {
    let daemon = Setup::fixture(scenario).start();
    for names in ["netskoop", "kubeskoop", "inspector"] {
        let path = format!("/metrics?set=full&names={names}&exclude[]=tcpreset&exclude[]=packetloss");
        let answer = daemon.scrape(&path);
        lint(&answer, names);
        let (metrics, _) = answer.split_once(SELF_METRICS).unwrap();
        let file = tests_dir().join(format!("golden/{scenario}.{names}.prom"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, metrics).unwrap();
            continue;
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        for (number, (ours, theirs)) in metrics.lines().zip(golden.lines()).enumerate() {
            assert_eq!(ours, theirs, "{}:{}; UPDATE=1 rewrites it", file.display(), number + 1);
        }
        assert_eq!(
            metrics.len(),
            golden.len(),
            "{} is longer or shorter; UPDATE=1 rewrites it",
            file.display()
        );
    }
}

#[test]
fn healthy() {
    compare("healthy");
}

#[test]
fn no_ipv6() {
    compare("no_ipv6");
}

#[test]
fn old_kernel() {
    compare("old_kernel");
}

#[test]
fn extra_columns() {
    compare("extra_columns");
}

#[test]
fn this_machine_pleases_promtool() {
    let daemon = Setup::new().start();
    lint(&daemon.scrape("/metrics"), "netskoop");
    lint(&daemon.scrape("/metrics?set=full"), "netskoop");
    lint(&daemon.scrape("/metrics?names=kubeskoop,inspector,netskoop"), "all");
}
