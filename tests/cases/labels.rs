//! Labels that the configuration puts on series, and what is known of entities.

use crate::golden::lint;
use crate::support::{Daemon, Setup, error_of, exchange, fake_podman, series, until};
use netskoop_api::Reloaded;

/// Labels of a pod, by somebody who wishes us ill.
const HOSTILE: &str =
    r#"{"app":"ca\"rt\\\n\u0007é","a\nb{}":"x","a-b--":"second of one name","long":"LONG"}"#;

fn setup(pod: &str) -> Setup {
    let setup = Setup::fixture("healthy").pull_only();
    let labels = HOSTILE.replace("LONG", &"y".repeat(10_000));
    let socket = fake_podman::serve(&setup.dir.0, pod, &labels);
    let others =
        ["containerd", "cri", "docker", "systemd"].map(|name| format!("{name} = \"off\"\n")).concat();
    setup.set("sources", &format!("{others}podman = [\"{}\"]", socket.display()))
}

/// The series of namespaces in a scrape: what is before the daemon's own.
fn of_namespaces(text: &str) -> Vec<&str> {
    let (metrics, _) = text.split_once("# HELP netskoop_build_info").unwrap();
    metrics
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("netskoop_entity_info"))
        .collect()
}

fn infos(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("netskoop_entity_info{")).collect()
}

/// Writes another configuration, which must be taken.
#[track_caller]
fn reload(daemon: &Daemon, config: &str) -> Vec<String> {
    std::fs::write(daemon.setup.config_file(), config).unwrap();
    let answer = exchange(daemon.unix(), "POST", "/v1/reload", &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice::<Reloaded>(&answer.body).unwrap().changes
}

#[track_caller]
fn until_named(daemon: &Daemon, name: &str) {
    daemon.entities_until(name, |all| all.entities.iter().any(|entity| entity.id.name == name));
}

#[test]
fn extra_labels_are_on_every_series_in_every_generation() {
    const EXTRA: &str =
        r#"extra_labels = { app = "${pod_label:app}", place = "rack-7", address = "at ${pod_ip}" }"#;
    let daemon = setup("shop").set("metrics", EXTRA).start();
    until_named(&daemon, "shop");
    let app = r#"app="ca\"rt\\\n"#;
    for (names, pod) in
        [("netskoop", r#"name="shop""#), ("kubeskoop", r#"k8s_pod="shop""#), ("inspector", r#"pod="shop""#)]
    {
        let text = daemon.scrape(&format!("/metrics?set=full&names={names}"));
        lint(&text, names);
        let all = of_namespaces(&text);
        assert!(all.len() > 100);
        for line in all {
            assert!(line.contains(r#",place="rack-7""#), "{line}");
            assert_eq!(line.contains(app), line.contains(pod), "{line}");
            assert_eq!(line.contains(r#",address="at 10.88.0.5""#), line.contains(pod), "{line}");
        }
        assert_eq!(infos(&text).len(), if names == "netskoop" { 3 } else { 0 });
    }
}

#[test]
fn what_is_known_of_a_pod_is_one_bounded_series() {
    let daemon = setup("sh\\u001bop").start();
    until_named(&daemon, "sh\u{1b}op");
    let text = daemon.scrape("/metrics?collect[]=tcp");
    lint(&text, "netskoop");
    let info = infos(&text).into_iter().find(|line| line.contains("kind=\"pod\"")).unwrap();
    let app = "label_app=\"ca\\\"rt\\\\\\n\u{7}é\"";
    for part in
        ["netns=\"4026532302\"", "source=\"podman\"", "ips=\"10.88.0.5\"", "host_network=\"false\"", app]
    {
        assert!(info.contains(part), "{part}: {info}");
    }
    // Two labels that become one name, and a value of 10 kB.
    let long = format!(",label_long=\"{}\"", "y".repeat(256));
    assert_eq!((info.matches("label_a_b__=").count(), info.matches(&long).count()), (1, 1), "{info}");
    // They are among the series that are counted and limited.
    let written = of_namespaces(&text).len() + infos(&text).len();
    assert_eq!(daemon.status().collection.series, written as u64);
}

#[test]
fn a_reload_changes_labels_and_sources_while_it_runs() {
    let daemon = setup("shop").start();
    let config = daemon.setup.config();
    until_named(&daemon, "shop");
    assert!(!daemon.scrape("/metrics").contains("shelf="));
    let with = |lines: &str| config.replace("[metrics]\n", &format!("[metrics]\n{lines}\n"));

    let changes = reload(&daemon, &with(r#"extra_labels = { shelf = "${node}-${pod_label:app}" }"#));
    assert_eq!(changes, [r#"metrics.extra_labels: {} -> { shelf = "${node}-${pod_label:app}" }"#]);
    let text = daemon.scrape("/metrics");
    assert!(of_namespaces(&text).iter().all(|line| line.contains(",shelf=\"node-1-")), "{text}");

    // What the first generation of exporters called it.
    let older = r#"expose_labels = [{ source = "app", type = "label", replace = "app_name" }, { source = "ip", type = "meta" }]"#;
    reload(&daemon, &with(&format!("verbose = true\n{older}")));
    let text = daemon.scrape("/metrics?names=inspector");
    let pod = of_namespaces(&text).into_iter().find(|line| line.contains("pod=\"shop\"")).unwrap();
    assert!(pod.contains(",app_name=\"ca\\\"rt") && pod.contains(",ip=\"10.88.0.5\""), "{pod}");
    assert!(!text.contains("shelf="));

    // A label that series have already is refused, and what was there stays.
    std::fs::write(daemon.setup.config_file(), with("extra_labels = { device = \"x\" }")).unwrap();
    let answer = exchange(daemon.unix(), "POST", "/v1/reload", &[], b"");
    let error = error_of(&answer);
    assert_eq!((answer.status, &*error.code), (400, "bad_config"));
    assert!(
        error.message.contains("metrics.extra_labels: the label 'device' is one of "),
        "{}",
        error.message
    );
    assert!(daemon.scrape("/metrics").contains(",app_name=\"ca"));

    // Without its source the pod is a container again, and nothing is said of podman.
    let podman = |daemon: &Daemon| daemon.status().sources.iter().any(|source| source.name == "podman");
    assert!(podman(&daemon));
    let line = config.lines().find(|line| line.starts_with("podman = ")).unwrap();
    let changes = reload(&daemon, &config.replace(line, "podman = \"off\""));
    assert!(changes.iter().any(|change| change.ends_with("-> \"off\"")), "{changes:?}");
    until_named(&daemon, "5d2f7f0c1b3e");
    assert!(!podman(&daemon));
    reload(&daemon, &config);
    until_named(&daemon, "shop");
}

#[test]
fn too_many_values_are_shown_as_other_and_said() {
    let guard = "extra_label_values = 1\nextra_labels = { inode = \"${netns}\", place = \"x\" }";
    let daemon = Setup::fixture("healthy").pull_only().set("metrics", guard).start();
    let text = daemon.scrape("/metrics");
    lint(&text, "netskoop");
    let limited = |label: &str| series(&text, &format!("netskoop_extra_labels_limited{{label=\"{label}\"}}"));
    assert_eq!((limited("inode"), limited("place")), (Some(2.0), Some(0.0)));
    let others = of_namespaces(&text).iter().filter(|line| line.contains("inode=\"__other__\"")).count();
    assert!(others > 50, "{others}");
    let warnings = daemon.status().warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("2 namespaces show __other__ for the label 'inode'"))
    );

    let wider = daemon.setup.config().replace("extra_label_values = 1", "extra_label_values = 3");
    reload(&daemon, &wider);
    until("there is room for all", || (!daemon.scrape("/metrics").contains("__other__\"")).then_some(()));
}

#[test]
fn sources_of_names_have_metrics() {
    let daemon = setup("shop").start();
    until_named(&daemon, "shop");
    let text = daemon.scrape("/metrics");
    let of = |metric: &str, source: &str| {
        series(&text, &format!("netskoop_resolver_{metric}{{source=\"{source}\"}}"))
    };
    assert_eq!((of("connected", "podman"), of("workloads", "podman")), (Some(1.0), Some(1.0)));
    assert_eq!((of("entities", "podman"), of("failures_total", "podman")), (Some(1.0), Some(0.0)));
    assert_eq!(
        (of("connected", "docker"), of("connected", "processes")),
        (None, None),
        "off; nothing to connect to"
    );
    let date = of("last_event_timestamp_seconds", "processes").unwrap();
    assert!(date > 1.7e9, "{date}");
}
