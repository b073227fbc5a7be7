//! `netskoopctl config`.

use super::Context;
use super::reload::{self, keep_every_fault};
use crate::args::{ConfigAction, Format};
use crate::error::Error;
use crate::output::Screen;
use crate::table::Table;
use crate::text::Line;
use crate::yaml;
use netskoop_api::Imported;
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// A file to be translated has at most so many bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Shows the configuration in force, or does what else can be done with it.
pub(crate) async fn run(context: &mut Context<'_, '_>, action: Option<ConfigAction>) -> Result<(), Error> {
    match action {
        None | Some(ConfigAction::Show) => context.show("/v1/config", None, render).await,
        Some(ConfigAction::Diff) => {
            context.refuse_names()?;
            let document = context.client.get("/v1/config/diff").await.map_err(keep_every_fault)?;
            context.print(&document, None, reload::render)
        }
        Some(ConfigAction::Import { file }) => import(context, &file).await,
    }
}

async fn import(context: &mut Context<'_, '_>, file: &Path) -> Result<(), Error> {
    context.refuse_names()?;
    let usage = |why: String| Error::Usage(format!("{}: {why}", file.display()));
    let text = read(file).map_err(|error| usage(error.to_string()))?;
    let old = unwrapped(yaml::parse(&text).map_err(usage)?).map_err(usage)?;
    let document = context.client.post_json("/v1/config/import", &old).await?;
    if context.format == Format::Json {
        return context.stdout.document(&document.call, &document.bytes);
    }
    let imported: Imported = document.parse()?;
    imported.toml.lines().try_for_each(|line| context.stdout.text(line))?;
    imported.notes.iter().try_for_each(|note| context.stderr.text(&format!("no counterpart: {note}")))
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let from: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(file)?),
    };
    from.take(MAX_FILE + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

/// What is inside, if the text is a ConfigMap with one YAML file.
fn unwrapped(document: Value) -> Result<Value, String> {
    let is_map = document.get("kind").and_then(Value::as_str) == Some("ConfigMap");
    let data = document.get("data").filter(|_| is_map).and_then(Value::as_object);
    let Some(data) = data else { return Ok(document) };
    let files: Vec<_> =
        data.iter().filter(|(name, _)| name.ends_with(".yaml") || name.ends_with(".yml")).collect();
    match files.as_slice() {
        [(name, Value::String(text))] => yaml::parse(text).map_err(|error| format!("data.{name}: {error}")),
        _ => Err("the ConfigMap holds not exactly one YAML file; save the one that is meant and name it"
            .to_owned()),
    }
}

/// One line per key, easy to read and to search. A setting says where its value comes from; what has another shape is
/// shown with its full path.
fn render(config: &Value, screen: &mut Screen<'_>) -> Result<(), Error> {
    let mut settings = Table::new(&["KEY", "VALUE", "FROM"]);
    let mut others = Table::new(&["KEY", "VALUE"]);
    let mut counts = [0, 0];
    for (key, value) in config.as_object().into_iter().flatten() {
        match value {
            Value::Object(map) if key == "settings" => {
                counts[0] += map.len();
                map.iter().for_each(|(key, value)| setting(key, value, &mut settings));
            }
            value => {
                counts[1] += 1;
                flatten(key, value, &mut others);
            }
        }
    }
    if counts[1] > 0 || counts[0] == 0 {
        others.render(screen)?;
    }
    if counts[0] > 0 && counts[1] > 0 && screen.look().headers {
        screen.text("")?;
    }
    if counts[0] > 0 { settings.render(screen) } else { Ok(()) }
}

fn setting(key: &str, setting: &Value, table: &mut Table) {
    let value = setting.get("value").unwrap_or(setting);
    let from = setting.get("from").and_then(Value::as_str).unwrap_or("-");
    table.row([Line::from(key), value.to_string().into(), from.into()]);
}

/// The depth is bounded by the JSON parser.
fn flatten(path: &str, value: &Value, table: &mut Table) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, table));
        }
        value => table.row([Line::from(path), value.to_string().into()]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::ctl;
    use crate::fake::{Daemon, json};

    #[test]
    fn settings_say_where_they_come_from() {
        let body = r#"{"files":["/etc/a.toml"],"settings":{"http.listen":{"value":["[::]:9102"],"from":"default"},
            "probes.tcp.enabled":{"value":true,"from":"/etc/a.toml:3"}}}"#;
        let expected = "\
KEY    VALUE
files  [\"/etc/a.toml\"]

KEY                 VALUE          FROM
http.listen         [\"[::]:9102\"]  default
probes.tcp.enabled  true           /etc/a.toml:3
";
        assert_eq!(ctl(&Daemon::answering(json(200, body)), "config").out, expected);
        assert_eq!(ctl(&Daemon::answering(json(200, "{}")), "config").out, "KEY  VALUE\n");
    }

    #[test]
    fn a_difference_is_shown_as_a_reload_would_show_it() {
        let daemon = Daemon::answering(json(200, r#"{"changes":["metrics.set: \"core\" -> \"full\""]}"#));
        assert_eq!(ctl(&daemon, "config diff").out, "metrics.set: \"core\" -> \"full\"\n");
        assert!(daemon.request().starts_with("GET /v1/config/diff "));
        let body = r#"{"error":{"code":"bad_config","message":"/etc/a.toml:1:2: x"}}"#;
        let outcome = ctl(&Daemon::answering(json(400, body)), "config diff");
        assert!(outcome.err.contains("/etc/a.toml:1:2: x"), "{}", outcome.err);
    }

    #[test]
    fn an_older_configuration_is_sent_as_json() {
        let file = std::env::temp_dir().join(format!("netskoopctl-import-{}.yaml", std::process::id()));
        let map = "kind: ConfigMap\ndata:\n  config.yaml: |\n    metrics:\n      probes: [{name: tcp}]\n";
        for text in ["metrics:\n  probes:\n  - name: tcp\n", map] {
            std::fs::write(&file, text).unwrap();
            let answer = r#"{"toml":"[probes.tcp]\nenabled = true\n","notes":["port: no"]}"#;
            let daemon = Daemon::answering(json(200, answer));
            let outcome = ctl(&daemon, &format!("config import {}", file.display()));
            assert_eq!(outcome.out, "[probes.tcp]\nenabled = true\n");
            assert_eq!(outcome.err, "no counterpart: port: no\n");
            assert!(daemon.request().ends_with(r#"{"metrics":{"probes":[{"name":"tcp"}]}}"#));
        }
        for (text, said) in
            [("a: [", "it is no YAML"), ("kind: ConfigMap\ndata: {a.yaml: x, b.yaml: y}", "not exactly one")]
        {
            std::fs::write(&file, text).unwrap();
            let outcome = ctl(&Daemon::answering(Vec::new()), &format!("config import {}", file.display()));
            assert_eq!(outcome.code, 2);
            assert!(outcome.err.contains(said), "{}", outcome.err);
        }
        std::fs::remove_file(&file).unwrap();
        let outcome = ctl(&Daemon::answering(Vec::new()), &format!("config import {}", file.display()));
        assert!(outcome.err.contains("No such file"), "{}", outcome.err);
    }

    #[test]
    fn keys_have_their_full_path() {
        let body = r#"{"http":{"listen":["[::]:9102"]},"node_name":"","probes":{"tcp":{}}}"#;
        let daemon = Daemon::answering(json(200, body));
        let expected = "\
KEY          VALUE
http.listen  [\"[::]:9102\"]
node_name    \"\"
probes.tcp   {}
";
        assert_eq!(ctl(&daemon, "config").out, expected);
    }
}
