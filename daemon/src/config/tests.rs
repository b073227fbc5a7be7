//! Whole files, good and bad.

use super::testing::{Dir, PROBES};
use super::*;

fn read(text: &str) -> Result<Config, String> {
    let dir = Dir::new();
    let file = dir.write("netskoopd.toml", text);
    let prefix = format!("{}:", file.display());
    let loaded = load_with(Some(&file), PROBES, None);
    loaded.map(|loaded| loaded.config).map_err(|errors| errors.to_string().replace(&prefix, ""))
}

/// All errors of a file, without its name.
fn errors(text: &str) -> String {
    read(text).unwrap_err()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("").unwrap();
    assert_eq!(Config { drop_ins: Config::default().drop_ins, ..config }, Config::default());
    assert_eq!(Config::default().drop_ins, drop_in_dir(None));
}

#[test]
fn every_key_is_read() {
    let config = read(
        r#"
        node_name = "worker-7"
        [http]
        listen = ["127.0.0.1:9102", "[::1]:9103"]
        max_connections = 5
        [metrics]
        names = ["kubeskoop", "netskoop"]
        set = "full"
        min_interval = "500ms"
        timeout = "1m30s"
        max_series = 50_000
        extra_labels = { app = "${pod_label:app}", where = "rack-7" }
        extra_label_values = 20
        verbose = true
        expose_labels = [{ source = "a.b/c", type = "label", replace = "" }, { source = "ip", type = "meta", replace = "pod_ip" }]
        [sources]
        containerd = ["/run/a.sock", "/b.sock"]
        docker = "off"
        podman = "auto"
        [probes.tcp]
        enabled = false
        devices = ["eth0", "veth*"]
        [probes.tcp_reset]
        enabled = true
        limit = 0x10
        stack = true
        [events]
        history = 1
        rate = 10
        burst = 20
        [paths]
        proc = "/host/proc"
        sys = "/host/sys"
        run = "/tmp/run"
        "#,
    )
    .unwrap();
    assert_eq!(config.node_name, "worker-7");
    assert_eq!(config.listen, ["127.0.0.1:9102".parse().unwrap(), "[::1]:9103".parse().unwrap()]);
    assert_eq!(config.max_connections, 5);
    assert_eq!(config.names, [Names::Kubeskoop, Names::Netskoop]);
    assert!(config.full_set);
    assert_eq!((config.min_interval, config.timeout), (Duration::from_millis(500), Duration::from_secs(90)));
    assert_eq!(config.max_series, 50_000);
    assert_eq!((config.history, config.event_rate, config.event_burst), (1, 10, 20));
    assert_eq!(config.proc, Path::new("/host/proc"));
    assert_eq!(config.sys, Path::new("/host/sys"));
    assert_eq!(config.run, Path::new("/tmp/run"));
    let tcp = &config.probes["tcp"];
    assert!(matches!(tcp.enabled, Some((false, Origin { line: 21, .. }))));
    assert_eq!(tcp.options["devices"].0, OptionValue::List(vec!["eth0".into(), "veth*".into()]));
    let reset = &config.probes["tcpreset"];
    assert_eq!(reset.options["limit"].0, OptionValue::Integer(16));
    assert_eq!(reset.options["stack"].1.line, 26);
    let sockets = Choice::Paths(vec!["/run/a.sock".into(), "/b.sock".into()]);
    assert_eq!(config.sources, [("containerd", sockets), ("docker", Choice::Off)].into());
    let extra = config.extra();
    let labels: Vec<_> =
        extra.labels.iter().map(|label| (label.name.as_str(), label.template.text())).collect();
    assert_eq!(
        labels,
        [
            ("app", "${pod_label:app}"),
            ("where", "rack-7"),
            ("a_b_c", "${pod_label:a.b/c}"),
            ("pod_ip", "${pod_ip}")
        ]
    );
    assert_eq!(extra.max_values, 20);
    assert_eq!(Config { verbose: false, ..config.clone() }.extra().labels.len(), 2, "they hold only then");
    // What is shown can be written into the file.
    let shown: Vec<String> = KEYS.iter().map(|key| format!("{} = {}", key.path, key.show(&config))).collect();
    let again = read(&shown.join("\n")).unwrap();
    assert_eq!((again.extra(), again.sources), (extra, config.sources));
}

#[test]
fn listening_can_be_switched_off() {
    assert_eq!(read("http.listen = []").unwrap().listen, []);
}

/// One mistake each, and exactly what is said about it.
const BAD: &[(&str, &str)] = &[
    (
        "metrics.extra_labels = { app = '${pod_lable:app}' }",
        "1:32: metrics.extra_labels: app: '${pod_lable}' is no placeholder; there are ${pod_label:KEY}, \
         ${pod_annotation:KEY}, ${label:KEY}, ${pod_ip}, ${uid}, ${container}, ${container_id}, ${image}, ${node}, ${netns}, \
         ${unit}, ${description}",
    ),
    (
        "[metrics.extra_labels]\nreason = 'x'",
        "2:1: metrics.extra_labels: the label 'reason' is one of netskoop_packetloss_packets_total; choose another name, \
         e.g. 'x_reason'",
    ),
    (
        "metrics.extra_labels = { pod = 'x' }",
        "1:26: metrics.extra_labels: the label 'pod' says whose a series is, in one of the sets of names; choose another \
         name, e.g. 'x_pod'",
    ),
    (
        "metrics.extra_labels = { __x = 'x' }",
        "1:26: metrics.extra_labels: '__x' begins with '__', which Prometheus keeps for itself; choose another name",
    ),
    (
        "metrics.extra_labels = { 'a-b' = 'x' }",
        "1:26: metrics.extra_labels: 'a-b' is no name of a label; use letters, digits and '_', at most 64",
    ),
    (
        "metrics.extra_labels = { app = 7 }",
        "1:32: metrics.extra_labels: app: expected a text, found the number 7",
    ),
    (
        "metrics.extra_labels = ['app']",
        "1:24: metrics.extra_labels: expected a table of labels, e.g. { app = \"${pod_label:app}\" }, found a list",
    ),
    (
        "metrics.extra_labels = { a='x', b='x', c='x', d='x', e='x', f='x', g='x', h='x', i='x' }",
        "1:24: metrics.extra_labels: more than 8 labels; each makes every series longer",
    ),
    (
        "metrics.extra_label_values = 0",
        "1:30: metrics.extra_label_values: 0 is out of range; expected a whole number from 1 to 100000",
    ),
    ("metrics.verbose = 'yes'", "1:19: metrics.verbose: expected true or false, found the text 'yes'"),
    (
        "metrics.expose_labels = [{ source = 'app', type = 'labels' }]",
        "1:26: metrics.expose_labels: type 'labels' is neither \"label\" nor \"meta\"",
    ),
    (
        "metrics.expose_labels = [{ source = 'ipp', type = 'meta' }]",
        "1:26: metrics.expose_labels: there is no meta 'ipp'. Did you mean 'ip'?",
    ),
    (
        "metrics.expose_labels = [{ source = 'node', type = 'meta' }]",
        "1:26: metrics.expose_labels: the label 'node' says whose a series is, in one of the sets of names; choose another \
         name, e.g. 'x_node' in 'replace'",
    ),
    (
        "metrics.expose_labels = [{ sorce = 'app' }]",
        "1:28: metrics.expose_labels: unknown key; a label has source, type and replace",
    ),
    (
        "metrics.expose_labels = [{ source = 'a.b' }, { source = 'a/b' }]",
        "1:46: metrics.expose_labels: two labels are called 'a_b'; give one another 'replace'",
    ),
    (
        "metrics.extra_labels = { app = 'x' }\nmetrics.expose_labels = [{ source = 'app' }]",
        "2:25: metrics.expose_labels: the label 'app' is in metrics.extra_labels as well; remove one of them",
    ),
    (
        "sources.docker = 'on'",
        "1:18: sources.docker: expected \"auto\", \"off\", or a list of sockets, e.g. \
         [\"/run/containerd/containerd.sock\"], found the text 'on'",
    ),
    (
        "sources.docker = '/run/docker.sock'",
        "1:18: sources.docker: write a list, e.g. [\"/run/docker.sock\"]: expected \"auto\", \"off\", or a list of sockets, \
         e.g. [\"/run/containerd/containerd.sock\"]",
    ),
    (
        "sources.cri = ['run/crio.sock']",
        "1:16: sources.cri: 'run/crio.sock' is not an absolute path; write e.g. \"/run/containerd/containerd.sock\"",
    ),
    (
        "sources.cri = ['unix:///run/crio/crio.sock']",
        "1:16: sources.cri: write the path alone: \"/run/crio/crio.sock\"",
    ),
    ("sources.crio = 'off'", "1:9: sources.crio: unknown key. Did you mean 'sources.cri'?"),
    (
        "[metrics]\nmin_interval = '5 parsecs'",
        "2:16: metrics.min_interval: '5 parsecs' is not a duration; write e.g. \"5s\" or \"1m\"",
    ),
    ("metrics.timeout = 5", "1:19: metrics.timeout: 5 has no unit; write e.g. \"5s\""),
    (
        "metrics.timeout = -1",
        "1:19: metrics.timeout: -1 is out of range; expected a duration from \"100ms\" to \"5m\"",
    ),
    ("metrics.timeout = '5'", "1:19: metrics.timeout: '5' has no unit; write e.g. \"5s\" or \"5m\""),
    (
        "metrics.timeout = 1.5",
        "1:19: metrics.timeout: expected a duration from \"100ms\" to \"5m\", found the number 1.5",
    ),
    (
        "metrics.timeout = '1ms'",
        "1:19: metrics.timeout: 1ms is out of range; expected a duration from \"100ms\" to \"5m\"",
    ),
    ("metrics.timout = '1s'", "1:9: metrics.timout: unknown key. Did you mean 'metrics.timeout'?"),
    ("http.min_interval = '1s'", "1:6: http.min_interval: unknown key. Did you mean 'metrics.min_interval'?"),
    ("listen = []", "1:1: listen: unknown key. Did you mean 'http.listen'?"),
    ("[metric]\nset = 'full'", "1:2: metric: unknown key. Did you mean 'metrics'?"),
    ("[sinks.loki]\nenabled = false", "1:2: sinks: unknown key"),
    ("metrics = 1", "1:11: metrics: expected a table [metrics], found the number 1"),
    ("[[metrics]]\nset = 'full'", "1:1: metrics: expected a table [metrics], found a list"),
    ("metrics.set = 'all'", "1:15: metrics.set: 'all' is not \"core\" or \"full\""),
    ("metrics.set = true", "1:15: metrics.set: expected \"core\" or \"full\", found true"),
    (
        "metrics.names = ['netskoop', 'kubescoop']",
        "1:30: metrics.names: expected \"netskoop\", \"kubeskoop\" or \"inspector\", found the text 'kubescoop'",
    ),
    (
        "metrics.names = ['netskoop', 'netskoop']",
        "1:30: metrics.names: the text 'netskoop' is in the list twice",
    ),
    (
        "metrics.names = []",
        "1:17: metrics.names: expected a list of \"netskoop\", \"kubeskoop\", \"inspector\", not empty, found an empty list",
    ),
    (
        "metrics.max_series = 10",
        "1:22: metrics.max_series: 10 is out of range; expected a whole number from 1000 to 10000000",
    ),
    (
        "metrics.max_series = '1'",
        "1:22: metrics.max_series: expected a whole number from 1000 to 10000000, found the text '1'",
    ),
    (
        "http.listen = ':9102'",
        "1:15: http.listen: expected a list of addresses with port, e.g. [\"[::]:9102\"] or [\"127.0.0.1:9102\"], found the text ':9102'",
    ),
    (
        "http.listen = ['localhost:9102']",
        "1:16: http.listen: 'localhost:9102' is not an address with port; write e.g. \"[::]:9102\" for every address or \"127.0.0.1:9102\"",
    ),
    // What is read live passes through the history as well.
    (
        "events.history = 0",
        "1:18: events.history: 0 is out of range; expected a whole number from 1 to 1000000",
    ),
    ("events.rate = -1", "1:15: events.rate: -1 is out of range; expected a whole number from 1 to 1000000"),
    (
        "events.rate = 9223372036854775807",
        "1:15: events.rate: 9223372036854775807 is out of range; expected a whole number from 1 to 1000000",
    ),
    ("node_name = 7", "1:13: node_name: expected a text of at most 253 characters, found the number 7"),
    (r#"node_name = "a\nb""#, r"1:13: node_name: 'a\nb' is not a text of at most 253 characters"),
    ("paths.proc = 'proc'", "1:14: paths.proc: 'proc' is not an absolute directory, e.g. \"/host/proc\""),
    (
        "paths.proc = '/a/../b'",
        "1:14: paths.proc: '/a/../b' is not an absolute directory, e.g. \"/host/proc\"",
    ),
    ("[probes.tcpresets]", "1:9: probes.tcpresets: no such probe. Did you mean 'tcpreset'?"),
    ("[probes.xyz]", "1:9: probes.xyz: no such probe"),
    ("probes = []", "1:10: probes: expected a table [probes], found an empty list"),
    ("[probes]\ntcp = true", "2:7: probes.tcp: expected a table; write probes.tcp.enabled = true"),
    ("[probes]\ntcp = 'on'", "2:7: probes.tcp: expected a table [probes.tcp], found the text 'on'"),
    ("probes.tcp.enabled = 'yes'", "1:22: probes.tcp.enabled: expected true or false, found the text 'yes'"),
    ("probes.tcp.enabld = true", "1:12: probes.tcp.enabld: unknown key. Did you mean 'enabled'?"),
    ("probes.tcp.stack = true", "1:12: probes.tcp.stack: unknown key; tcp knows enabled, devices"),
    (
        "probes.tcpreset.limit = 101",
        "1:25: probes.tcpreset.limit: 101 is out of range; expected a whole number from 1 to 100",
    ),
    (
        "probes.tcpreset.limit = true",
        "1:25: probes.tcpreset.limit: expected a whole number from 1 to 100, found true",
    ),
    (
        "probes.tcp.devices = ['a', 'b/c', 7, 7.5]",
        "1:28: probes.tcp.devices: expected an interface name, found the text 'b/c'\n1:38: probes.tcp.devices: expected an interface name, found the number 7.5",
    ),
    (
        "[probes.tcpreset]\n[probes.tcp_reset]",
        "2:9: probes.tcp_reset: the same probe as probes.tcpreset; write it once",
    ),
];

#[test]
fn every_mistake_is_explained() {
    for (text, expected) in BAD {
        assert_eq!(errors(text), *expected, "in: {text}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_order() {
    let found = errors("[metrics]\ntimeout = 1\nset = 'x'\n[http]\nlisten = 1\nlitsen = 2\n[probes.nope]\n");
    let places: Vec<&str> = found.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["2:11", "3:7", "5:10", "6:1", "7:9"], "{found}");
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, place) in [
        ("a = ", "1:"),
        ("\n[metrics\n", "2:"),
        ("node_name = 'x\n", "1:"),
        ("node_name = 'x'\nnode_name = 'y'\n", "2:1:"),
        ("é é", "1:"),
        ("[http]\nlisten = [\"a\"", "2:"),
        ("a = 99999999999999999999999999999999999999999999\n", "1:"),
        ("\u{0}", "1:"),
        ("a.b.c", "1:"),
    ] {
        let found = errors(text);
        assert!(found.starts_with(place), "{text:?}: {found}");
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let found = errors(&format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)));
    assert!(found.starts_with("1:"), "{found:.200}");
}

#[test]
fn rubbish_gives_a_bounded_number_of_errors() {
    let text: String = (0..1000).map(|i| format!("key{i} = 1\n")).collect();
    let found = errors(&text);
    assert_eq!(found.lines().count(), 51);
    assert!(found.ends_with("and 950 more errors"));
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let dir = Dir::new();
    let message = |path: &Path| {
        let text = load_with(Some(path), PROBES, None).unwrap_err().to_string();
        text.replace(&path.display().to_string(), "F")
    };
    assert_eq!(message(&dir.path().join("none.toml")), "F: no such file");
    assert_eq!(message(dir.path()), "F: cannot be read: not a regular file");
    assert_eq!(message(Path::new("/dev/zero")), "F: cannot be read: not a regular file");
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(message(&fifo), "F: cannot be read: not a regular file");
    let large = dir.write("large.toml", "#".repeat((1 << 20) + 1));
    assert_eq!(message(&large), "F: cannot be read: larger than 1 MiB");
    let latin = dir.write("latin.toml", b"# ok\nnode_name = \"caf\xe9\"\n");
    assert_eq!(message(&latin), "F:2:17: the file is not UTF-8 text here");
}

#[test]
fn drop_ins_are_merged_in_the_order_of_their_names() {
    let dir = Dir::new();
    let file =
        dir.write("netskoopd.toml", "node_name = 'a'\nmetrics.set = 'full'\nprobes.tcp.enabled = false\n");
    let second = dir.write("conf.d/20-b.toml", "node_name = 'c'\n");
    let first = dir.write("conf.d/10-a.toml", "node_name = 'b'\n\nprobes.tcp.enabled = true\n");
    dir.write("conf.d/.hidden.toml", "rubbish");
    dir.write("conf.d/30-c.toml~", "rubbish");
    dir.write("conf.d/README", "rubbish");
    let loaded = load_with(Some(&file), PROBES, None).unwrap();
    assert_eq!(loaded.files, [file.clone(), first.clone(), second.clone()]);
    assert_eq!(loaded.config.node_name, "c");
    assert!(loaded.config.full_set, "what a drop-in does not name stays");
    assert_eq!(loaded.config.probes["tcp"].enabled, Some((true, Origin { file: first, line: 3 })));
    assert_eq!(loaded.config.drop_ins, dir.path().join("conf.d"));
    let name = &loaded.settings["node_name"];
    assert_eq!((name.text.as_str(), &name.origin), ("'c'", &Origin { file: second, line: 1 }));
    assert_eq!(loaded.settings["metrics.set"].origin.to_string(), format!("{}:2", file.display()));
}

#[test]
fn mistakes_of_all_files_are_reported_together() {
    let dir = Dir::new();
    let file = dir.write("netskoopd.toml", "x = 1\n");
    let a = dir.write("conf.d/10-a.toml", "node_name = \n");
    let b = dir.write("conf.d/20-b.toml", "\ny = 1\n");
    let c = dir.path().join("conf.d/30-c.toml");
    std::os::unix::fs::symlink("/nonexistent", &c).unwrap();
    let found = load_with(Some(&file), PROBES, None).unwrap_err();
    let mut files: Vec<&Path> = found.0.iter().map(|error| error.file.as_path()).collect();
    files.sort();
    assert_eq!(files, [&a, &b, &c, &file]);
}

#[test]
fn every_source_has_a_key() {
    let keys: Vec<&str> = KEYS.iter().filter_map(|key| key.path.strip_prefix("sources.")).collect();
    assert_eq!(keys, crate::resolve::runtimes::names().collect::<Vec<_>>());
}
