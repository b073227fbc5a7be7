//! `netskoopctl config`.

use super::Context;
use crate::error::Error;
use crate::output::Screen;
use crate::table::Table;
use crate::text::Line;
use serde_json::Value;

/// Shows the configuration in force.
pub(crate) async fn run(context: &mut Context<'_, '_>) -> Result<(), Error> {
    context.show("/v1/config", None, render).await
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
