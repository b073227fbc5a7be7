//! Switching probes, setting options, reloading. Each test has a daemon of its own. The probes used here read files, so
//! that no privilege is needed; `root.rs` has those with hooks.

use super::support::{Daemon, Outcome};
use netskoop_api::{ProbeChanged, ProbeInfo, Reloaded, StateName};

fn state(daemon: &Daemon, name: &str) -> (StateName, String, Option<u64>) {
    let probe: ProbeInfo = daemon.json(&format!("probes show {name}"));
    (probe.state.state, probe.state.decided_by, probe.state.lease_seconds)
}

#[test]
fn a_plain_change_lasts_and_a_runtime_one_is_not_written() {
    let daemon = Daemon::quiet();
    assert_eq!(daemon.ctl("probes disable udp").ok(), "udp is off\n");
    let (now, by, _) = state(&daemon, "udp");
    assert_eq!(now, StateName::Off);
    assert!(by.contains("50-netskoopctl.toml"), "{by}");
    assert!(daemon.drop_in().contains("[probes.udp]\nenabled = false\n"), "{}", daemon.drop_in());
    let before = daemon.drop_in();
    assert_eq!(
        daemon.ctl("probes disable tcp --runtime").ok(),
        "tcp is off until changed again or the next boot\n"
    );
    assert_eq!(state(&daemon, "tcp").0, StateName::Off);
    assert_eq!(daemon.drop_in(), before);
    // What is off is not read, and its values are gone.
    let names = daemon.ctl("metrics host -o name").ok();
    assert!(
        !names.contains("netskoop_udp_")
            && !names.contains("netskoop_tcp_")
            && names.contains("netskoop_ip_")
    );
    let changed: ProbeChanged = daemon.json("probes enable udp");
    assert_eq!((changed.changed, changed.message.as_str()), (true, "udp is on"));
    let again: ProbeChanged = daemon.json("probes enable udp");
    assert!(!again.changed, "it was on already: {}", again.message);
    assert!(daemon.ctl("metrics host -o name").ok().contains("netskoop_udp_"));
}

#[test]
fn a_lease_says_how_long_and_ends_by_itself() {
    let daemon = Daemon::quiet();
    assert_eq!(daemon.ctl("probes disable softnet --for 10m").ok(), "softnet is off for 10m\n");
    let (now, by, left) = state(&daemon, "softnet");
    assert_eq!((now, by.as_str()), (StateName::Off, "lease"));
    assert!(left.is_some_and(|left| (500..=600).contains(&left)), "{left:?}");
    let list = daemon.ctl("probes list").ok();
    let row = list.lines().find(|line| line.starts_with("softnet ")).unwrap();
    assert!(row.contains("off  9m") || row.contains("off  10m"), "{row}");
    assert_eq!(daemon.drop_in(), "");
    daemon.ctl("probes disable softnet --for 1s").ok();
    // The end of a lease cannot be subscribed to: it is looked for until it is there.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while state(&daemon, "softnet").0 != StateName::On {
        assert!(std::time::Instant::now() < deadline, "the lease of one second does not end");
    }
    assert_eq!(state(&daemon, "softnet").2, None);
}

#[test]
fn options_are_set_checked_and_shown() {
    let daemon = Daemon::quiet();
    let text =
        daemon.ctl("probes enable netdev --set per_interface=true -s interfaces=eth*,lo --runtime").ok();
    assert!(text.starts_with("netdev is on, "), "{text}");
    assert!(text.contains("per_interface=true") && text.contains("interfaces=eth*,lo"), "{text}");
    assert!(daemon.ctl("metrics host -o name").ok().contains("netskoop_netdev_device_receive_bytes_total"));
    let show = daemon.ctl("probes show netdev").ok();
    let row = show.lines().find(|line| line.trim_start().starts_with("interfaces ")).unwrap();
    assert!(row.contains(" eth*,lo ") && row.contains(" * "), "{row}");
    let (code, err) = daemon.ctl("probes enable netdev --set per_interface=perhaps").failed();
    assert_eq!(code, 1);
    assert!(err.contains("netdev.per_interface: "), "{err}");
    let (code, err) = daemon.ctl("probes enable netdev --set nonsense=1").failed();
    let names = PROBE_OPTIONS.join(", ");
    assert_eq!(
        (code, err),
        (1, format!("netskoopctl: probe 'netdev' has no option 'nonsense'; it has: {names}\n"))
    );
}

const PROBE_OPTIONS: [&str; 2] = ["per_interface", "interfaces"];

#[test]
fn several_probes_at_once_and_one_that_does_not_exist() {
    let daemon = Daemon::quiet();
    let outcome = daemon.ctl("probes disable udp tcpp ip --runtime");
    assert_eq!(outcome.code, 4);
    assert_eq!(outcome.out.lines().count(), 2, "the others are done: {}", outcome.out);
    assert_eq!(outcome.err, "netskoopctl: no probe 'tcpp'. Did you mean 'tcp'?\n");
    assert_eq!((state(&daemon, "udp").0, state(&daemon, "ip").0), (StateName::Off, StateName::Off));
}

#[test]
fn reload_says_what_changed_and_a_bad_file_changes_nothing() {
    let daemon = Daemon::quiet();
    let good = std::fs::read_to_string(daemon.config()).unwrap();
    std::fs::write(
        daemon.config(),
        format!("{good}[probes.udp]\nenabled = false\n[metrics]\nmin_interval = \"3s\"\n"),
    )
    .unwrap();
    let reloaded: Reloaded = daemon.json("reload");
    assert_eq!(
        reloaded.changes,
        ["metrics.min_interval: \"1s\" -> \"3s\"", "probes.udp.enabled: true -> false"]
    );
    let (now, by, _) = state(&daemon, "udp");
    let line = good.lines().count() + 2;
    assert_eq!((now, by), (StateName::Off, format!("config {}:{line}", daemon.config().display())));
    std::fs::write(daemon.config(), format!("{good}[metrics]\nmin_interval = \"5 parsecs\"\n[probes.udb]\n"))
        .unwrap();
    let (code, err) = daemon.ctl("reload").failed();
    assert_eq!(code, 1);
    let place = format!("{}:{line}:", daemon.config().display());
    for part in [
        place.as_str(),
        "metrics.min_interval: '5 parsecs' is not a duration",
        "udb",
        "the running configuration stays in force",
    ] {
        assert!(err.contains(part), "{part}\n{err}");
    }
    assert_eq!(state(&daemon, "udp").0, StateName::Off);
    assert_eq!(daemon.json::<serde_json::Value>("config")["settings"]["metrics.min_interval"]["value"], "3s");
}

#[test]
fn an_older_configuration_is_taken_over() {
    let daemon = Daemon::quiet();
    assert_eq!(daemon.ctl("config diff").ok(), "Nothing changed.\n");
    let old = daemon.config().with_file_name("old.yaml");
    let text = "\
debugMode: false
controllerAddr: dns:controller:10263
metrics:
  probes:
    - name: fd
    - name: notours
  additionalLabels: ['app=${labels:app}']
event:
  sinks: [{name: loki, args: {addr: loki}}]
";
    std::fs::write(&old, text).unwrap();
    let imported = daemon.ctl(&format!("config import {}", old.display()));
    assert_eq!(imported.code, 0);
    let notes: Vec<&str> = imported.err.lines().collect();
    let [controller, sinks, probe] = notes.as_slice() else { panic!("{notes:#?}") };
    assert!(controller.starts_with("no counterpart: controllerAddr: there is no controller"), "{controller}");
    assert!(probe.contains("metrics.probes[1]: there is no probe 'notours'"), "{probe}");
    assert!(sinks.contains("event.sinks: events are kept in memory"), "{sinks}");

    let drop_in = daemon.config().with_file_name("conf.d").join("10-imported.toml");
    std::fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    std::fs::write(&drop_in, &imported.out).unwrap();
    let diff = daemon.ctl("config diff").ok();
    assert!(diff.contains("metrics.names: [\"netskoop\"] -> [\"kubeskoop\"]"), "{diff}");
    assert!(diff.contains("probes.fd.enabled: false -> true"), "{diff}");
    assert!(diff.contains("metrics.extra_labels"), "{diff}");
    assert_eq!(state(&daemon, "fd").0, StateName::Off, "a difference changes nothing");
    assert_eq!(daemon.ctl("reload").ok(), diff, "a reload does what the difference says");
    assert_eq!(daemon.ctl("config diff").ok(), "Nothing changed.\n");
    let shown = daemon.ctl("config show").ok();
    let from = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit("  ").next().unwrap().trim().to_owned()
    };
    let line = 1 + imported.out.lines().position(|line| line.starts_with("names = ")).unwrap();
    assert_eq!(from("metrics.names "), format!("{}:{line}", drop_in.display()));
    assert_eq!(from("metrics.timeout "), "default");
}

#[test]
fn completion_knows_the_probes_of_the_daemon() {
    let daemon = Daemon::quiet();
    let offered = |words: &[&str]| {
        let mut command = daemon.command("--color never");
        Outcome::of(&command.args(["__complete", "--"]).args(words).output().unwrap()).ok()
    };
    assert_eq!(offered(&["probes", "enable", "tcpres"]), "tcpreset\n");
    assert_eq!(offered(&["probes", "disable", ""]), daemon.ctl("probes list -o name").ok());
}
