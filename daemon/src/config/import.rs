//! An older configuration in our words. It comes as JSON, because only `netskoopctl` reads YAML. What has a counterpart is
//! written as TOML; everything else is named, with what there is instead.

use super::keys::quoted;
use super::{check, find_probe, parse_option};
use crate::declare::Probe;
use netskoop_api::Imported;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Notes at most.
const MAX_NOTES: usize = 200;

/// Arguments of the older probes that have another name here: probe, argument, option.
const ARGUMENTS: [(&str, &str, &str); 2] =
    [("packetloss", "enableStack", "stack"), ("packetloss", "enablestack", "stack")];

/// Keys that have nothing to correspond to, in either generation, and why.
const WITHOUT: [(&str, &str); 19] = [
    ("debugmode", "run netskoopd with --log-level debug (systemctl edit netskoopd)"),
    ("enablecontroller", "there is no controller: names come from the container runtime of the node"),
    ("controlleraddr", "there is no controller: names come from the container runtime of the node"),
    (
        "event.sinks",
        "events are kept in memory; netskoopctl events -f -o json writes them where they are wanted",
    ),
    (
        "metric_config.interval",
        "what a scrape shows is read when it comes; metrics.min_interval says how old it may be",
    ),
    ("event_config.port", "events come through the control socket: netskoopctl events -f"),
    ("event_config.loki_enable", "events are not sent to Loki"),
    ("event_config.loki_address", "events are not sent to Loki"),
    ("event_config.infotolog", "netskoopctl events -f writes events to standard output"),
    ("config.enableeventserver", "events come through the control socket: netskoopctl events -f"),
    ("config.eventserverport", "events come through the control socket: netskoopctl events -f"),
    ("config.remotelokiaddress", "events are not sent to Loki"),
    ("name", "it names the installation in Kubernetes"),
    ("namespace", "it names the installation in Kubernetes"),
    ("kind", "it is of Kubernetes"),
    ("apiversion", "it is of Kubernetes"),
    ("metadata", "it is of Kubernetes"),
    ("config.enablelegacyversion", "/metrics?names=inspector and ?names=kubeskoop show either set of names"),
    ("config.enablemetricserver", "http.listen = [] switches the metrics server off"),
];

/// Translates. An error is a sentence: what was given is no configuration at all.
pub fn import(old: &Value, probes: &'static [&'static Probe]) -> Result<Imported, String> {
    let Value::Object(root) = old else {
        return Err("it is no configuration: the text has no keys".to_owned());
    };
    let mut work = Work { probes, ..Work::default() };
    work.root(root);
    if work.names.is_empty() {
        return Err("it is no configuration of an older exporter: none of metrics, event, metric_config, event_config \
                    and config is in it"
            .to_owned());
    }
    let toml = work.toml();
    // Nothing is handed out that the daemon would refuse.
    if let Some(fault) = check::text(&toml, probes).into_iter().next() {
        return Err(format!("what it would become is not valid: {fault}"));
    }
    Ok(Imported { toml, notes: work.notes })
}

#[derive(Default)]
struct Work {
    probes: &'static [&'static Probe],
    /// Generation of names, once it is known.
    names: &'static str,
    listen: Vec<String>,
    /// Whether `listen` was given, also if nothing is in it.
    listens: bool,
    verbose: bool,
    expose: Vec<String>,
    extra: Vec<(String, String)>,
    switched: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
    notes: Vec<String>,
}

impl Work {
    fn root(&mut self, root: &Map<String, Value>) {
        for (key, value) in root {
            match (key.to_lowercase().as_str(), value) {
                ("metrics", Value::Object(map)) => self.section("kubeskoop", key, map),
                ("event", Value::Object(map)) => self.section("kubeskoop", key, map),
                ("metric_config" | "event_config" | "config", Value::Object(map)) => {
                    self.section("inspector", key, map);
                }
                ("port", value) => self.port(key, value),
                ("address", Value::Array(list)) => list.iter().for_each(|address| self.address(address)),
                _ => self.without(key, value),
            }
        }
    }

    fn section(&mut self, names: &'static str, section: &str, map: &Map<String, Value>) {
        self.names = names;
        for (key, value) in map {
            let path = format!("{section}.{key}");
            match (path.to_lowercase().as_str(), value) {
                (
                    "metrics.probes"
                    | "event.probes"
                    | "metric_config.probes"
                    | "event_config.probes"
                    | "config.metricprobes"
                    | "config.eventprobes",
                    Value::Array(list),
                ) => list
                    .iter()
                    .enumerate()
                    .for_each(|(at, probe)| self.probe(&format!("{path}[{at}]"), probe)),
                ("metric_config.port" | "config.metricserverport", value) => self.port(&path, value),
                ("config.enablemetricserver", Value::Bool(false)) => self.listens = true,
                ("config.enablemetricserver", Value::Bool(true)) => {}
                ("metric_config.verbose" | "config.metriclabelverbose", Value::Bool(on)) => {
                    self.verbose = *on;
                }
                ("metric_config.expose_labels", Value::Array(list)) => {
                    list.iter()
                        .enumerate()
                        .for_each(|(at, label)| self.exposed(&format!("{path}[{at}]"), label));
                }
                ("metrics.additionallabels", Value::Array(list)) => {
                    list.iter()
                        .enumerate()
                        .for_each(|(at, label)| self.label(&format!("{path}[{at}]"), label));
                }
                // An empty list was written as nothing.
                (_, Value::Null) => {}
                _ => self.without(&path, value),
            }
        }
    }

    fn note(&mut self, path: &str, why: &str) {
        if self.notes.len() < MAX_NOTES {
            let path: String = path.chars().take(100).flat_map(char::escape_debug).collect();
            self.notes.push(format!("{path}: {why}"));
        }
    }

    fn without(&mut self, path: &str, value: &Value) {
        let lower = path.to_lowercase();
        // What was off or empty is not missed.
        let nothing = matches!(value, Value::Null | Value::Bool(false)) || value == "";
        match WITHOUT.iter().find(|(known, _)| *known == lower) {
            Some(_) if nothing => {}
            Some((_, why)) => self.note(path, why),
            None => self.note(path, "no counterpart, because this key is not known of either generation"),
        }
    }

    fn port(&mut self, path: &str, value: &Value) {
        match value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0) {
            Some(9102) => {}
            Some(port) => {
                self.listens = true;
                self.listen.push(format!("[::]:{port}"));
            }
            None => self.note(path, "it is no port; metrics stay on port 9102"),
        }
    }

    fn address(&mut self, address: &Value) {
        let text = address.as_str().unwrap_or_default();
        let Some(host) = text.strip_prefix("tcp://") else {
            return self
                .note("address", "only TCP addresses serve metrics; the control socket is set by paths.run");
        };
        let host = match host.strip_prefix(':') {
            Some(port) => format!("[::]:{port}"),
            None => host.replace("localhost:", "127.0.0.1:"),
        };
        match host.parse::<std::net::SocketAddr>() {
            Ok(address) => {
                self.listens = true;
                self.listen.push(address.to_string());
            }
            Err(_) => {
                self.note("address", "names are not resolved here; write the IP address into http.listen");
            }
        }
    }

    fn probe(&mut self, path: &str, entry: &Value) {
        let name = entry.as_str().or_else(|| entry.get("name")?.as_str());
        let Some(name) = name else { return self.note(path, "it has no name") };
        let Some(probe) = find_probe(self.probes, name) else {
            let name: String = name.chars().take(40).collect();
            return self.note(path, &format!("there is no probe '{name}' in this version"));
        };
        self.switched.entry(probe.name).or_default().insert("enabled", "true".to_owned());
        let arguments = entry.get("args").and_then(Value::as_object);
        for (key, value) in arguments.into_iter().flatten() {
            self.argument(&format!("{path}.args.{key}"), probe, key, value);
        }
    }

    fn argument(&mut self, path: &str, probe: &'static Probe, key: &str, value: &Value) {
        let renamed = ARGUMENTS.iter().find(|(of, old, _)| *of == probe.name && *old == key);
        let name = renamed.map_or(key, |(_, _, new)| new);
        let Some(option) = probe.options.iter().find(|option| option.name == name) else {
            return self.note(path, &format!("{} has no such option", probe.name));
        };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        match parse_option(option, &text) {
            Ok(value) => {
                let written = super::dropin::to_toml(&value).to_string();
                self.switched.entry(probe.name).or_default().insert(option.name, written);
            }
            Err(error) => self.note(path, &error),
        }
    }

    /// `app=${labels:app}`.
    fn label(&mut self, path: &str, label: &Value) {
        let Some((name, template)) = label.as_str().and_then(|text| text.split_once('=')) else {
            return self.note(path, "it is not of the form name=value");
        };
        let template =
            template.replace("${labels:", "${pod_label:").replace("${annotations:", "${pod_annotation:");
        let written = format!("{{ {} = {} }}", quoted(name.trim()), quoted(&template));
        match check::text(&format!("metrics.extra_labels = {written}"), self.probes).first() {
            None => self.extra.push((name.trim().to_owned(), template)),
            Some(fault) => self.note(path, fault),
        }
    }

    fn exposed(&mut self, path: &str, label: &Value) {
        let part = |key: &str| label.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let parts = ["source", "type", "replace"].into_iter().filter_map(|key| Some((key, part(key)?)));
        let parts: Vec<String> = parts.map(|(key, text)| format!("{key} = {}", quoted(text))).collect();
        let written = format!("{{ {} }}", parts.join(", "));
        match check::text(&format!("metrics.expose_labels = [{written}]"), self.probes).first() {
            None => self.expose.push(written),
            Some(fault) => self.note(path, fault),
        }
    }

    fn toml(&self) -> String {
        let mut out = String::from("# Made of an older configuration by `netskoopctl config import`.\n");
        // Writing to a string does not fail.
        if self.listens {
            let list: Vec<String> = self.listen.iter().map(|address| quoted(address)).collect();
            let _ = write!(out, "\n[http]\nlisten = [{}]\n", list.join(", "));
        }
        let _ = write!(out, "\n[metrics]\nnames = [{}]\nset = \"full\"\n", quoted(self.names));
        if !self.extra.is_empty() {
            let labels = self.extra.iter().map(|(name, text)| format!("{} = {}", quoted(name), quoted(text)));
            let _ = writeln!(out, "extra_labels = {{ {} }}", labels.collect::<Vec<_>>().join(", "));
        }
        if self.verbose {
            out += "verbose = true\n";
        }
        if !self.expose.is_empty() {
            let _ = writeln!(out, "expose_labels = [{}]", self.expose.join(", "));
        }
        for (probe, settings) in &self.switched {
            let _ = write!(out, "\n[probes.{probe}]\n");
            for (key, value) in settings {
                let _ = writeln!(out, "{key} = {value}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::PROBES;
    use serde_json::json;

    #[test]
    fn the_second_generation_is_translated() {
        let old = json!({
            "debugMode": true, "port": 9102, "enableController": true, "controllerAddr": "dns:controller:10263",
            "metrics": {
                "probes": [{"name": "tcp"}, {"name": "io"}, {"name": "nosuch"}],
                "additionalLabels": ["app=${labels:app}", "broken", "pod=x"],
            },
            "event": {
                "probes": [{"name": "packetloss", "args": {"enableStack": true, "other": 1}}, {"name": "tcp_reset"}],
                "sinks": [{"name": "loki"}],
            },
        });
        let Imported { toml, notes } = import(&old, PROBES).unwrap();
        assert_eq!(
            toml,
            "# Made of an older configuration by `netskoopctl config import`.\n\n\
             [metrics]\nnames = [\"kubeskoop\"]\nset = \"full\"\nextra_labels = { \"app\" = \"${pod_label:app}\" }\n\n\
             [probes.io]\nenabled = true\n\n[probes.packetloss]\nenabled = true\nstack = true\n\n\
             [probes.tcp]\nenabled = true\n\n[probes.tcpreset]\nenabled = true\n"
        );
        let wanted = [
            "debugMode: run netskoopd with",
            "enableController: there is no controller",
            "controllerAddr: there is no controller",
            "metrics.probes[2]: there is no probe 'nosuch'",
            "metrics.additionalLabels[1]: it is not of the form",
            "metrics.additionalLabels[2]: the label 'pod' says whose",
            "event.probes[0].args.other: packetloss has no such option",
            "event.sinks: events are kept in memory",
        ];
        for part in wanted {
            assert!(notes.iter().any(|note| note.starts_with(part)), "{part}: {notes:#?}");
        }
        assert_eq!(notes.len(), wanted.len(), "{notes:#?}");
    }

    #[test]
    fn the_first_generation_is_translated() {
        let old = json!({
            "debugmode": false,
            "metric_config": {
                "interval": 15, "port": 9104, "probes": ["netdev", {"name": "packetloss"}], "verbose": true,
                "expose_labels": [{"source": "app", "type": "label", "replace": "app_name"}, {"source": "zz", "type": "meta"}],
            },
            "event_config": {"port": 19102, "loki_enable": false, "loki_address": "", "probes": null},
        });
        let Imported { toml, notes } = import(&old, PROBES).unwrap();
        assert!(toml.contains("[http]\nlisten = [\"[::]:9104\"]\n"), "{toml}");
        assert!(toml.contains("names = [\"inspector\"]\nset = \"full\"\nverbose = true\n"), "{toml}");
        assert!(
            toml.contains("expose_labels = [{ source = \"app\", type = \"label\", replace = \"app_name\" }]"),
            "{toml}"
        );
        let starts = [
            "metric_config.interval: ",
            "event_config.port: ",
            "metric_config.expose_labels[1]: there is no meta",
        ];
        for part in starts {
            assert!(notes.iter().any(|note| note.starts_with(part)), "{part}: {notes:#?}");
        }
        assert_eq!(notes.len(), 3, "{notes:#?}");
        let installed = json!({"name": "x", "config": {"enableMetricServer": false, "metricProbes": ["tcp"],
            "metricLabelVerbose": true, "remoteLokiAddress": "loki"}});
        let Imported { toml, notes } = import(&installed, PROBES).unwrap();
        assert!(toml.contains("listen = []") && toml.contains("[probes.tcp]"), "{toml}");
        assert_eq!(notes.len(), 2, "{notes:#?}");
    }

    #[test]
    fn rubbish_is_refused_with_a_sentence() {
        for old in [json!(7), json!([]), json!({}), json!({"a": 1}), json!({"metrics": 7})] {
            let error = import(&old, PROBES).unwrap_err();
            assert!(error.starts_with("it is no configuration"), "{error}");
        }
        let odd = json!({"metrics": {"probes": [7, {"args": 1}, {"name": []}], "additionalLabels": [1]},
            "port": -1, "address": ["tcp://nohost", 7, "unix:///x", "tcp://:9200"]});
        let Imported { toml, notes } = import(&odd, PROBES).unwrap();
        assert!(toml.contains("listen = [\"[::]:9200\"]"), "{toml}");
        assert_eq!(notes.len(), 8, "{notes:#?}");
        let many: Vec<u8> = vec![0; 1000];
        assert_eq!(import(&json!({"metrics": {"probes": many}}), PROBES).unwrap().notes.len(), MAX_NOTES);
    }
}
