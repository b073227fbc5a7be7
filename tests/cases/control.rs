use crate::support::{Daemon, Setup, error_of, exchange, series, until};
use netskoop_api::{OptionValue, ProbeInfo, Reloaded, StateName};
use serde_json::Value;
use std::io::{Read, Write};

fn daemon() -> Daemon {
    Setup::fixture("healthy").pull_only().start()
}

fn options(daemon: &Daemon, probe: &str, option: &str) -> OptionValue {
    daemon.probe(probe).options.into_iter().find(|o| o.name == option).unwrap().value
}

fn drop_in(daemon: &Daemon) -> String {
    std::fs::read_to_string(daemon.setup.dir.0.join("conf.d/50-netskoopctl.toml")).unwrap_or_default()
}

fn reload(daemon: &Daemon) -> crate::support::Answer {
    exchange(daemon.unix(), "POST", "/v1/reload", &[], b"")
}

#[test]
fn status_and_probes_tell_how_it_stands() {
    let daemon = daemon();
    daemon.scrape("/metrics");
    let status = daemon.status();
    assert_eq!((&*status.node, status.pid), ("node-1", daemon.pid()));
    assert_eq!(status.metrics_urls, [format!("http://127.0.0.1:{}/metrics", daemon.port)]);
    let count = |kind: &str| status.entities.iter().find(|k| k.kind == kind).map_or(0, |k| k.count);
    assert_eq!((count("host"), count("unit"), count("container")), (1, 1, 1));
    let probes: Vec<ProbeInfo> = daemon.json("/v1/probes");
    let switched_off = ["tcpreset", "packetloss", "tcpretrans"];
    let on = probes.iter().filter(|probe| probe.default_on && !switched_off.contains(&&*probe.name)).count();
    let here = status.probes.on as usize + status.probes.not_available.len();
    assert_eq!((here, here + status.probes.off as usize), (on, probes.len()), "{:?}", status.probes);
    assert_eq!(status.collection.namespaces, 3);
    assert!(status.collection.series > 50 && status.collection.bytes > 5000, "{:?}", status.collection);
    let off = daemon.probe("tcpreset");
    assert_eq!(off.state.state, StateName::Off);
    assert!(off.state.decided_by.contains("netskoopd.toml"), "{}", off.state.decided_by);
    // An older name is a name, too.
    assert_eq!(daemon.probe("tcp_reset"), off);
    assert_eq!(daemon.probe("tcp").state.via.as_deref(), Some("procfs"));
}

#[test]
fn a_probe_of_a_protocol_that_the_kernel_lacks_is_not_available() {
    let setup = Setup::fixture_copy("healthy").pull_only();
    let file = setup.dir.0.join("proc/net/netstat");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("MPTcpExt:"));
    std::fs::write(&file, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let daemon = setup.set("probes.mptcp", "enabled = true").set("probes.udplite", "enabled = true").start();
    let text = daemon.scrape("/metrics?set=full");
    let mptcp = daemon.probe("mptcp").state;
    let why = "this kernel has no MPTCP: /proc/net/netstat has no line MPTcpExt:";
    assert_eq!((mptcp.state, mptcp.reason.as_deref()), (StateName::NotAvailable, Some(why)));
    assert!(!text.contains("probe_success{probe=\"mptcp\"}"), "it neither worked nor failed");
    assert_eq!(daemon.probe("udplite").state.state, StateName::On);
    assert_eq!(series(&text, "netskoop_probe_success{probe=\"udplite\"}"), Some(1.0));
}

#[test]
fn paths_and_methods_that_do_not_exist_are_explained() {
    let daemon = daemon();
    for path in ["/v1/nothing", "/", "/v2/status", "/v1"] {
        let answer = daemon.ask(path);
        assert_eq!((answer.status, &*error_of(&answer).code), (404, "no_such_path"), "{path}");
        assert!(error_of(&answer).hint.unwrap().contains("/v1/status"));
    }
    for (method, path) in [
        ("POST", "/v1/status"),
        ("DELETE", "/v1/probes/tcp"),
        ("GET", "/v1/reload"),
        ("GET", "/v1/selftest"),
        ("PATCH", "/v1/config"),
    ] {
        let answer = exchange(daemon.unix(), method, path, &[], b"");
        assert_eq!((answer.status, &*error_of(&answer).code), (405, "wrong_method"), "{method} {path}");
    }
    for (path, code) in [
        ("/v1/probes/tcpx", "no_such_probe"),
        ("/v1/entities/nobody", "no_such_entity"),
        ("/v1/metrics?entity=nobody", "no_such_entity"),
    ] {
        let answer = daemon.ask(path);
        assert_eq!((answer.status, &*error_of(&answer).code), (404, code), "{path}");
    }
    for path in [
        "/v1/metrics",
        "/v1/entities?after=soon",
        "/v1/events?type=TCP_RESET_NOSOK",
        "/v1/events?since=yesterday",
        "/v1/events?folow=1",
    ] {
        assert_eq!(daemon.ask(path).status, 400, "{path}");
    }
    let typo = error_of(&daemon.ask("/v1/events?type=TCP_RESET_NOSOK"));
    assert!(typo.message.contains("Did you mean 'TCP_RESET_NOSOCK'?"), "{}", typo.message);
}

#[test]
fn a_body_that_makes_no_sense_changes_nothing() {
    let daemon = daemon();
    for (body, says) in [
        (r#"{"enable":true}"#, "unknown field `enable`"),
        (r#"{"enabled":"yes"}"#, "expected a boolean"),
        (r#"{"options":{"interface":"eth0"}}"#, "has no option 'interface'; it has: "),
        (r#"{"options":{"per_interface":"maybe"}}"#, "netdev.per_interface: "),
        (r#"{"enabled":false,"for":"soon"}"#, "for: "),
        (r#"{"enabled":false,"for":"0s"}"#, "for: "),
        (r#"{"runtime":true}"#, "nothing to change"),
        ("{", "the request body: "),
        ("", "the request body: "),
    ] {
        let answer = daemon.patch("netdev", body);
        let error = error_of(&answer);
        assert_eq!((answer.status, &*error.code), (400, "bad_request"), "{body}");
        assert!(error.message.contains(says), "{body}: {}", error.message);
    }
    let answer = daemon.patch("netdef", r#"{"enabled":true}"#);
    assert_eq!(answer.status, 404);
    assert!(error_of(&answer).message.contains("Did you mean 'netdev'?"));
    let large = format!(r#"{{"enabled":{}true}}"#, " ".repeat(1 << 20));
    let answer = daemon.patch("netdev", &large);
    assert_eq!((answer.status, &*error_of(&answer).code), (413, "too_large"));
    assert_eq!(daemon.probe("netdev").state.state, StateName::On);
    assert_eq!(
        (drop_in(&daemon), daemon.setup.run_dir().join("netskoop/state.json").exists()),
        (String::new(), false)
    );
}

#[test]
fn a_change_lasts_and_is_seen_at_once() {
    let daemon = daemon();
    let changed = daemon.change("tcp", r#"{"enabled":false}"#);
    assert!(changed.changed && changed.message.contains("tcp is off"), "{}", changed.message);
    assert_eq!(changed.probe.state.state, StateName::Off);
    assert!(
        changed.probe.state.decided_by.contains("50-netskoopctl.toml"),
        "{}",
        changed.probe.state.decided_by
    );
    assert!(!daemon.change("tcp", r#"{"enabled":false}"#).changed, "the second time nothing changes");
    daemon.change("softnet", r#"{"options":{"per_cpu":"true"}}"#);
    let text = daemon.scrape("/metrics");
    assert!(!text.contains("netskoop_tcp_active_opens_total"));
    assert!(text.contains("netskoop_softnet_cpu_processed_total{"), "{text}");
    let file: toml::Table = drop_in(&daemon).parse().unwrap();
    let wanted = "[probes.tcp]\nenabled = false\n[probes.softnet]\nper_cpu = true\n".parse().unwrap();
    assert_eq!(file, wanted);
    let config = std::fs::read_to_string(daemon.setup.config_file()).unwrap();
    assert_eq!(config, daemon.setup.config(), "the administrator's file is not touched");
    let daemon = daemon.restart();
    assert_eq!(daemon.probe("tcp").state.state, StateName::Off);
    assert_eq!(options(&daemon, "softnet", "per_cpu"), OptionValue::Bool(true));
    daemon.change("tcp", r#"{"enabled":true}"#);
    assert!(daemon.scrape("/metrics").contains("netskoop_tcp_active_opens_total"));
}

#[test]
fn a_change_at_run_time_survives_a_crash_but_not_the_configuration() {
    let mut daemon = daemon();
    let changed = daemon.change("udp", r#"{"enabled":false,"runtime":true}"#);
    assert_eq!(changed.probe.state.decided_by, "runtime");
    daemon.change("netdev", r#"{"options":{"per_interface":"true","interfaces":"eth*,lo"},"runtime":true}"#);
    daemon.kill();
    let daemon = daemon.restart();
    let state = daemon.probe("udp").state;
    assert_eq!((state.state, &*state.decided_by), (StateName::Off, "runtime"));
    let list = OptionValue::List(vec!["eth*".into(), "lo".into()]);
    assert_eq!(options(&daemon, "netdev", "interfaces"), list);
    assert!(
        daemon.scrape("/metrics").contains("interface=\"lo\"")
            || daemon.scrape("/metrics").contains("device=\"lo\"")
    );
    assert_eq!(drop_in(&daemon), "");
    daemon.change("udp", r#"{"enabled":true}"#);
    assert!(daemon.probe("udp").state.decided_by.contains("50-netskoopctl.toml"), "the last word counts");
}

#[test]
fn leases_run_out_and_survive_a_restart() {
    let mut daemon = daemon();
    let changed = daemon.change("tcp", r#"{"enabled":false,"for":"1s"}"#);
    assert!(changed.message.contains("for 1s"), "{}", changed.message);
    until("the lease has run out", || (daemon.probe("tcp").state.state == StateName::On).then_some(()));
    daemon.logged("the lease has run out");
    assert_eq!(daemon.probe("tcp").state.lease_seconds, None);

    daemon.change("ip", r#"{"enabled":false,"for":"10m"}"#);
    daemon.change("tcp", r#"{"enabled":false,"for":"2s"}"#);
    daemon.kill();
    let daemon = daemon.restart();
    let state = daemon.probe("ip").state;
    assert_eq!((state.state, &*state.decided_by), (StateName::Off, "lease"));
    let left = state.lease_seconds.unwrap();
    assert!((1..=600).contains(&left), "{left} s");
    assert!(!daemon.scrape("/metrics").contains("\nnetskoop_ip_"));
    until("the lease of before has run out", || {
        (daemon.probe("tcp").state.state == StateName::On).then_some(())
    });
    assert!(daemon.scrape("/metrics").contains("netskoop_tcp_active_opens_total"));
    assert_eq!(daemon.probe("ip").state.state, StateName::Off, "the other one goes on");
}

#[test]
fn switching_ends_a_lease_that_only_set_options() {
    let daemon = daemon();
    for runtime in ["", r#","runtime":true"#] {
        daemon.change("netdev", r#"{"options":{"per_interface":"true"},"for":"10m"}"#);
        assert!(daemon.probe("netdev").state.lease_seconds.is_some());
        let changed = daemon.change("netdev", &format!(r#"{{"enabled":false{runtime}}}"#));
        assert_eq!((changed.probe.state.state, changed.probe.state.lease_seconds), (StateName::Off, None));
        assert_eq!(options(&daemon, "netdev", "per_interface"), OptionValue::Bool(false));
    }
}

#[test]
fn a_lease_that_ran_out_while_nobody_was_there_is_over() {
    let mut daemon = daemon();
    daemon.change("tcp", r#"{"enabled":false,"for":"1s"}"#);
    let state = daemon.setup.run_dir().join("netskoop/state.json");
    daemon.kill();
    let mut json: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    json["tcp"]["lease"]["until"] = Value::from(1_000_000_000);
    std::fs::write(&state, json.to_string()).unwrap();
    let daemon = daemon.restart();
    until("it is on", || (daemon.probe("tcp").state.state == StateName::On).then_some(()));
}

#[test]
fn a_state_file_of_rubbish_is_set_aside() {
    let mut daemon = daemon();
    let state = daemon.setup.run_dir().join("netskoop/state.json");
    daemon.kill();
    std::fs::write(&state, "{\"tcp\":").unwrap();
    let daemon = daemon.restart();
    daemon.logged("state.json.bad");
    assert_eq!(daemon.probe("tcp").state.state, StateName::On);
}

#[test]
fn entities_wait_for_the_next_generation() {
    let daemon = Setup::fixture_copy("healthy").pull_only().start();
    let now = daemon.entities();
    let names: Vec<&str> = now.entities.iter().map(|entity| &*entity.id.name).collect();
    assert_eq!(names, ["host", "5d2f7f0c1b3e", "nginx.service"], "the host first, then by kind and name");
    let proc = daemon.setup.dir.0.join("proc");
    std::fs::rename(proc.join("100"), proc.join("gone")).unwrap();
    daemon.entities_until("nginx is gone", |now| now.entities.iter().all(|e| e.id.name != "nginx.service"));
    assert_eq!(daemon.ask("/v1/entities/nginx.service").status, 404);
    std::fs::rename(proc.join("gone"), proc.join("100")).unwrap();
    let later = daemon
        .entities_until("nginx is back", |now| now.entities.iter().any(|e| e.id.name == "nginx.service"));
    assert!(later.generation > now.generation);
    let by_inode: netskoop_api::Entity = daemon.json("/v1/entities/4026532201");
    let by_name: netskoop_api::Entity = daemon.json("/v1/entities/nginx.service");
    assert_eq!((by_name.leader, &by_name), (Some(100), &by_inode));
}

#[test]
fn values_of_one_entity_are_those_of_the_scrape() {
    let daemon = daemon();
    let text = daemon.scrape("/metrics?set=full");
    let metrics: netskoop_api::EntityMetrics = daemon.json("/v1/metrics?entity=nginx.service");
    assert_eq!(metrics.entity.name, "nginx.service");
    let ours = "{kind=\"unit\",name=\"nginx.service\"";
    let is_value = |line: &&str| !line.starts_with('#') && !line.starts_with("netskoop_entity_info");
    let shown = text.lines().filter(is_value).filter(|line| line.contains(ours)).count();
    assert_eq!(metrics.values.len(), shown);
    for value in metrics.values {
        let labels = if value.labels.is_empty() { String::new() } else { format!(",{}", value.labels) };
        let name = format!("{}{ours}{labels}}}", value.metric);
        assert_eq!(series(&text, &name), Some(value.value), "{name}");
    }
}

#[test]
fn clients_that_follow_at_once_do_not_exceed_the_limit() {
    use rustix::process::Signal;
    let daemon = daemon();
    let mut clients: Vec<_> = (0..70).map(|_| daemon.unix()).collect();
    assert_eq!(daemon.status().events.followers, 0, "they were accepted before this one");
    // It finds all the requests in one go when it goes on.
    daemon.signal(Signal::STOP);
    for client in &mut clients {
        client.write_all(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    daemon.signal(Signal::CONT);
    let mut statuses = std::collections::BTreeMap::new();
    for client in &mut clients {
        let mut head = [0; 12];
        client.read_exact(&mut head).unwrap();
        *statuses.entry(String::from_utf8(head.to_vec()).unwrap()).or_insert(0) += 1;
    }
    let wanted = [("HTTP/1.1 200".to_owned(), 64), ("HTTP/1.1 503".to_owned(), 6)];
    assert_eq!(statuses, wanted.into());
    assert_eq!(daemon.status().events.followers, 64);
    drop(clients);
    until("the places are free again", || (daemon.status().events.followers == 0).then_some(()));
}

#[test]
fn events_after_the_largest_number_are_none() {
    let daemon = daemon();
    for limit in ["", "&limit=3"] {
        let answer = daemon.ask(&format!("/v1/events?after={}{limit}", u64::MAX));
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{limit}");
    }
}

#[test]
fn the_configuration_in_force_says_where_it_comes_from() {
    let daemon = daemon();
    daemon.change("udp", r#"{"enabled":false,"runtime":true}"#);
    let config: Value = daemon.json("/v1/config");
    let file = daemon.setup.config_file();
    assert_eq!(config["files"], serde_json::json!([file]));
    let settings = &config["settings"];
    let from = |key: &str| settings[key]["from"].as_str().unwrap().to_owned();
    assert_eq!(settings["node_name"]["value"].to_string().trim_matches(['"', '\\']), "node-1");
    assert!(from("node_name").contains(&format!("{}:1", file.display())), "{}", from("node_name"));
    assert_eq!((from("events.history"), from("probes.udp.enabled")), ("default".into(), "runtime".into()));
}

#[test]
fn a_reload_takes_what_is_good_and_refuses_the_rest() {
    let daemon = daemon();
    let successful = || series(&daemon.scrape("/metrics"), "netskoop_config_last_reload_successful");
    let none: Reloaded = serde_json::from_slice(&reload(&daemon).body).unwrap();
    assert_eq!((none.changes, successful()), (Vec::<String>::new(), Some(1.0)));

    let file = daemon.setup.config_file();
    let good = daemon.setup.config();
    let bad = good.replace("min_interval = \"0s\"", "min_interval = \"5 parsecs\"");
    std::fs::write(&file, &bad).unwrap();
    let line = bad.lines().position(|line| line.contains("parsecs")).unwrap() + 1;
    let place = format!("{}:{line}:16: metrics.min_interval: '5 parsecs' is not a duration", file.display());
    let answer = reload(&daemon);
    let error = error_of(&answer);
    assert_eq!((answer.status, &*error.code), (400, "bad_config"));
    assert!(error.message.contains(&place), "{}", error.message);
    assert_eq!(successful(), Some(0.0));
    assert_eq!(daemon.status().node, "node-1");
    // A change cannot be kept either: the next start would fail.
    let refused = daemon.patch("tcp", r#"{"enabled":false}"#);
    assert_eq!((refused.status, &*error_of(&refused).code), (400, "bad_config"));
    assert_eq!(daemon.probe("tcp").state.state, StateName::On);

    std::fs::write(&file, format!("{good}[probes.tcp]\nenabled = false\n")).unwrap();
    let done: Reloaded = serde_json::from_slice(&reload(&daemon).body).unwrap();
    assert_eq!(done.changes, ["probes.tcp.enabled: true -> false"]);
    assert_eq!((daemon.probe("tcp").state.state, successful()), (StateName::Off, Some(1.0)));

    std::fs::write(&file, good.replace("node-1", "node-2")).unwrap();
    let done: Reloaded = serde_json::from_slice(&reload(&daemon).body).unwrap();
    assert!(done.changes[0].contains("it takes effect with the next restart"), "{:?}", done.changes);
}

#[test]
fn sighup_reloads() {
    let daemon = daemon();
    let file = daemon.setup.config_file();
    let hang_up = || daemon.signal(rustix::process::Signal::HUP);
    std::fs::write(&file, "metrix = 1").unwrap();
    hang_up();
    daemon.logged("the running one stays");
    let successful = || series(&daemon.scrape("/metrics"), "netskoop_config_last_reload_successful");
    assert_eq!(successful(), Some(0.0));
    let more = format!("{}[probes.sock]\nenabled = false\n", daemon.setup.config());
    std::fs::write(&file, more).unwrap();
    hang_up();
    daemon.logged("configuration reloaded");
    assert_eq!((daemon.probe("sock").state.state, successful()), (StateName::Off, Some(1.0)));
}

#[test]
fn drop_ins_are_read_in_order() {
    let setup = Setup::fixture("healthy").pull_only();
    let dir = setup.dir.0.join("conf.d");
    std::fs::create_dir(&dir).unwrap();
    for (name, on) in [("10-a.toml", false), ("90-z.toml", true)] {
        let mut file = std::fs::File::create(dir.join(name)).unwrap();
        writeln!(file, "[probes.tcp]\nenabled = {on}").unwrap();
    }
    let daemon = setup.start();
    let state = daemon.probe("tcp").state;
    assert_eq!(state.state, StateName::On);
    assert!(state.decided_by.contains("90-z.toml"), "{}", state.decided_by);
    // What the administrator's drop-in decides stays, and the user is told.
    let changed = daemon.change("tcp", r#"{"enabled":false}"#);
    assert!(!changed.changed && changed.message.contains("90-z.toml"), "{}", changed.message);
    assert_eq!(changed.probe.state.state, StateName::On);
}
