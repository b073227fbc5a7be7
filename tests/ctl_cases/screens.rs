//! Every screen, beside its JSON twin: both say the same.

use super::support::{NODE, first_column, shared};
use netskoop_api::{Entities, Entity, EntityMetrics, Kind, ProbeInfo, Reloaded, StateName, Status};
use netskoopd::probes::PROBES;
use serde_json::Value;

/// Where each column of a table begins: under its title.
fn columns(header: &str, titles: &[&str]) -> Vec<usize> {
    titles.iter().map(|title| header.find(title).unwrap_or_else(|| panic!("no {title}: {header}"))).collect()
}

/// Every row has a space before each column but the first: nothing runs into the next column.
fn aligned(table: &str, titles: &[&str]) {
    let header = table.lines().next().unwrap();
    for start in &columns(header, titles)[1..] {
        for row in table.lines() {
            let before = row.chars().nth(start - 1);
            assert!(before.is_none_or(|c| c == ' '), "column {start} of {row:?}\n{table}");
        }
    }
    assert!(table.lines().all(|line| !line.ends_with(' ')), "{table}");
}

#[test]
fn status() {
    // Listing entities reads something else, which is no collection of metrics.
    shared().ctl("entities").ok();
    let (text, status): (_, Status) = (shared().ctl("status").ok(), shared().json("status"));
    assert_eq!(
        (status.node.as_str(), status.pid, status.version.as_str()),
        (NODE, std::process::id(), env!("CARGO_PKG_VERSION"))
    );
    assert!(text.starts_with(&format!("netskoopd {}   up ", status.version)), "{text}");
    let kinds: Vec<(&str, u32)> =
        status.entities.iter().map(|kind| (kind.kind.as_str(), kind.count)).collect();
    assert_eq!(kinds, [("host", 1), ("container", 1), ("unit", 1), ("unknown", 0)]);
    let wanted = PROBES.iter().filter(|probe| probe.hooks.is_none() && probe.default_on).count();
    let absent = status.probes.not_available.len();
    let (on, off) = (status.probes.on as usize, status.probes.off as usize);
    assert_eq!((on + absent, off), (wanted, PROBES.len() - wanted));
    assert_eq!((status.collection.namespaces, status.collection.late), (3, 0));
    assert!(status.collection.age_seconds.is_some() && status.metrics_urls.is_empty());
    // Nobody watches for events, so that there are none; the kernel's word of new namespaces is not one.
    assert_eq!((status.events.received, status.events.kept), (0, 0));
    for part in [
        "   node worker-7   kernel ",
        "Entities    3   host, 1 container, 1 unit",
        &format!("Probes      {on} on, {off} off"),
        "Collection  ",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn probes_list() {
    let (text, probes): (_, Vec<ProbeInfo>) =
        (shared().ctl("probes list").ok(), shared().json("probes list"));
    let declared: Vec<&str> = PROBES.iter().map(|probe| probe.name).collect();
    assert_eq!(probes.iter().map(|probe| probe.name.as_str()).collect::<Vec<_>>(), declared);
    assert_eq!(first_column(&text), declared);
    aligned(&text, &["NAME", "STATE", "COST", "VIA", "NOW", "SUMMARY"]);
    for (probe, row) in probes.iter().zip(text.lines().skip(1)) {
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[1], probe.state.state.as_str());
        assert_eq!(words[3], probe.state.via.as_deref().unwrap_or("-"));
        let here = probe.state.state != StateName::NotAvailable;
        // What is not available here says why instead.
        assert!(row.ends_with(&probe.summary) || !here, "{row}");
        let declared = PROBES.iter().find(|declared| declared.name == probe.name).unwrap();
        let reads = declared.hooks.is_none() && probe.default_on && here;
        assert_eq!(
            (probe.state.state == StateName::On, probe.state.last_collection_ns.is_some()),
            (reads, reads)
        );
    }
    assert_eq!(shared().ctl("probes").ok().lines().next(), text.lines().next());
    assert_eq!(shared().ctl("probes -o name").ok(), declared.join("\n") + "\n");
    assert_eq!(shared().ctl("probes --no-headers").ok().lines().count(), declared.len());
}

#[test]
fn probes_show() {
    for declared in PROBES {
        let line = format!("probes show {}", declared.name);
        let (text, probe): (_, ProbeInfo) = (shared().ctl(&line).ok(), shared().json(&line));
        assert!(text.starts_with(&format!("{}   {}\n", declared.name, declared.summary)), "{text}");
        let options = probe.options.iter().map(|option| (&option.name, &option.help));
        let metrics = probe.metrics.iter().map(|metric| (&metric.name, &metric.help));
        let events = probe.events.iter().map(|event| (&event.name, &event.help));
        for (name, help) in options.chain(metrics).chain(events) {
            let row = text.lines().find(|line| line.split_whitespace().next() == Some(name));
            assert!(row.is_some_and(|row| row.ends_with(help.as_str())), "{name} of {line}\n{text}");
        }
        assert!(text.contains(&format!("  decided by {}\n", probe.state.decided_by)), "{text}");
        // An older name shows the same probe.
        for alias in &probe.aliases {
            let twin: ProbeInfo = shared().json(&format!("probes show {alias}"));
            assert_eq!(twin.name, declared.name);
        }
    }
}

#[test]
fn entities() {
    let (text, answer): (_, Entities) = (shared().ctl("entities").ok(), shared().json("entities"));
    let entities = &answer.entities;
    assert!(answer.generation > 0);
    assert_eq!((entities[0].id.kind, entities[0].id.netns), (Kind::Host, 4_026_531_840));
    let names: Vec<&str> = entities.iter().map(|entity| entity.id.name.as_str()).collect();
    assert_eq!((names.len(), names[0], names[2]), (3, "host", "nginx.service"));
    aligned(&text, &["KIND", "NAME", "NETNS", "PIDS", "IPS", "FROM"]);
    for (entity, row) in entities.iter().zip(text.lines().skip(1)) {
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[..2], [entity.id.kind.as_str(), &entity.id.name]);
        assert_eq!(words[2..4], [entity.id.netns.to_string(), entity.processes.to_string()]);
    }
    assert_eq!(shared().ctl("entities -o name").ok(), names.join("\n") + "\n");
}

#[test]
fn one_entity() {
    let by_name: Entity = shared().json("entities nginx.service");
    assert_eq!((by_name.id.kind, by_name.id.netns, by_name.leader), (Kind::Unit, 4_026_532_201, Some(100)));
    assert_eq!(by_name.comm.as_deref(), Some("nginx"));
    let by_inode: Entity = shared().json("entities 4026532201");
    assert_eq!(by_inode, by_name);
    let text = shared().ctl("entities nginx.service").ok();
    for part in [
        "nginx.service   unit\n",
        "  Netns       4026532201\n",
        "  Leader      nginx[100]\n",
        "  Cgroup      /system.slice/nginx.service\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn metrics() {
    let metrics: EntityMetrics = shared().json("metrics nginx.service");
    assert_eq!((metrics.entity.kind, metrics.entity.netns), (Kind::Unit, 4_026_532_201));
    // The test's own look at the fixture: the last line of Tcp in net/snmp.
    let snmp = std::fs::read_to_string(super::support::fixture().join("100/net/snmp")).unwrap();
    let rows: Vec<Vec<&str>> =
        snmp.lines().filter(|line| line.starts_with("Tcp: ")).map(|line| line.split(' ').collect()).collect();
    for (key, name) in [
        ("InSegs", "netskoop_tcp_in_segments_total"),
        ("OutRsts", "netskoop_tcp_out_resets_total"),
        ("CurrEstab", "netskoop_tcp_connections"),
    ] {
        let at = rows[0].iter().position(|field| *field == key).unwrap();
        let value = metrics.values.iter().find(|value| value.metric == name).unwrap();
        assert_eq!(value.value, rows[1][at].parse::<f64>().unwrap(), "{name}");
        assert_eq!((value.probe.as_str(), value.labels.as_str()), ("tcp", ""));
    }
    let rows = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (some, all) = (
        rows(&shared().ctl("metrics nginx.service").ok()),
        rows(&shared().ctl("metrics nginx.service -a").ok()),
    );
    let nonzero = metrics.values.iter().filter(|value| value.value != 0.0).count();
    assert_eq!((some.len(), all.len()), (nonzero + 1, metrics.values.len()));
    let (hint, some) = some.split_last().unwrap();
    assert_eq!(*hint, format!("  {} values are zero; -a shows all", all.len() - nonzero));
    // The same values, whatever the room that the longest name takes.
    let squeezed = |row: &String| row.split_whitespace().collect::<Vec<_>>().join(" ");
    let all: Vec<String> = all.iter().map(squeezed).collect();
    assert!(some.iter().all(|row| all.contains(&squeezed(row))), "{some:?}");
    let names: Vec<String> =
        shared().ctl("metrics nginx.service -o name").ok().lines().map(str::to_owned).collect();
    assert!(names.iter().all(|name| metrics.values.iter().any(|value| value.metric == *name)));
}

#[test]
fn events_without_any() {
    let outcome = shared().ctl("events");
    assert_eq!(
        (outcome.code, outcome.out.as_str(), outcome.err.as_str()),
        (0, "", "0 events, 0 suppressed, 0 lost\n")
    );
    assert_eq!(shared().ctl("events -o json --since 5m --type PACKET_DROP --entity host -n 3").out, "");
}

#[test]
fn config() {
    let config: Value = shared().json("config");
    let setting = |key: &str| &config["settings"][key];
    assert_eq!(setting("metrics.min_interval")["value"], "1s");
    assert_eq!(setting("metrics.names")["value"], serde_json::json!(["netskoop"]));
    assert_eq!(setting("events.history")["value"], 8192);
    assert_eq!(setting("node_name")["value"], NODE);
    assert_eq!(setting("events.history")["from"], "default");
    let file = shared().config().display().to_string();
    assert_eq!(setting("node_name")["from"], format!("{file}:1"));
    assert_eq!(setting("probes.tcpreset.enabled")["value"], false);
    assert_eq!(config["files"], serde_json::json!([file]));
    let text = shared().ctl("config").ok();
    aligned(text.split_once("\n\n").unwrap().1, &["KEY", "VALUE", "FROM"]);
    let settings = config["settings"].as_object().unwrap();
    assert!(
        settings.keys().all(|key| text.lines().any(|line| line.starts_with(&format!("{key} ")))),
        "{text}"
    );
}

#[test]
fn reload_of_the_same_file() {
    let reloaded: Reloaded = shared().json("reload");
    assert_eq!(reloaded, Reloaded { changes: Vec::new() });
    assert_eq!(shared().ctl("reload").ok(), "Nothing changed.\n");
}

#[test]
fn version() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(shared().ctl("version").ok(), format!("netskoopctl {version}\nnetskoopd   {version}\n"));
    let twin: Value = shared().json("version");
    assert_eq!(twin, serde_json::json!({ "client": version, "daemon": version }));
}
