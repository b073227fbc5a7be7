use crate::support::{Setup, series, skip, tests_dir};
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
        let path = format!(
            "/metrics?set=full&names={names}&exclude[]=tcpreset&exclude[]=packetloss&exclude[]=tcpretrans"
        );
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
    let mut setup = Setup::new();
    for probe in ["probes.udplite", "probes.mptcp", "probes.slab"] {
        setup = setup.set(probe, "enabled = true");
    }
    let daemon = setup.start();
    lint(&daemon.scrape("/metrics"), "netskoop");
    lint(&daemon.scrape("/metrics?set=full"), "netskoop");
    lint(&daemon.scrape("/metrics?set=full&names=kubeskoop"), "kubeskoop");
    lint(&daemon.scrape("/metrics?set=full&names=inspector"), "inspector");
    lint(&daemon.scrape("/metrics?set=full&names=inspector&labels=target"), "inspector");
    lint(&daemon.scrape("/metrics?set=full&names=kubeskoop,inspector,netskoop&labels=target"), "all");
}

#[test]
fn the_labels_of_release_0_1_are_shown_when_asked_for() {
    let families = |text: &str| -> Vec<String> {
        let (metrics, _) = text.split_once(SELF_METRICS).unwrap();
        metrics
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split('{').next().unwrap().to_owned())
            .collect()
    };
    let opens = |labels: &str| format!("inspector_pod_tcpactiveopens{{{labels}}}");
    let target = |pod: &str, namespace: &str| {
        let (node, namespace, pod) =
            ("node=\"node-1\"", format!("namespace=\"{namespace}\""), format!("pod=\"{pod}\""));
        opens(&format!("target_{node},target_{namespace},target_{pod},{node},{namespace},{pod}"))
    };
    let daemon = Setup::fixture("healthy").pull_only().start();
    let plain = daemon.scrape("/metrics?names=inspector");
    let asked = daemon.scrape("/metrics?names=inspector&labels=target");
    assert_eq!(families(&plain), families(&asked));
    for (pod, namespace) in [("nginx.service", ""), ("hostNetwork", "hostNetwork")] {
        assert!(series(&asked, &target(pod, namespace)).is_some(), "{pod}: {asked}");
        assert!(!plain.contains("target_"));
    }
    let of_nginx = opens("namespace=\"\",pod=\"nginx.service\",node=\"node-1\",netns=\"ns4026532201\"");
    assert_eq!(series(&plain, &of_nginx), series(&asked, &target("nginx.service", "")));

    // The configuration chooses it for those who do not ask; other names have their own labels all the same.
    let setup =
        Setup::fixture("healthy").pull_only().set("metrics", "names = [\"inspector\", \"kubeskoop\"]");
    let daemon = setup.set("metrics", "labels = \"target\"").start();
    let text = daemon.scrape("/metrics");
    assert!(series(&text, &target("nginx.service", "")).is_some(), "{text}");
    assert!(text.contains(
        "kubeskoop_tcp_activeopens{k8s_node=\"node-1\",k8s_namespace=\"\",k8s_pod=\"nginx.service\"}"
    ));
    assert!(daemon.scrape("/metrics?labels=default").contains(&of_nginx));
}
