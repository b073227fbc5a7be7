//! `docs/metrics.md`.

use crate::config::{option_default, option_kind, option_range};
use crate::declare::{EventDecl, Family, Names, Points, Probe};
use crate::engine::governor::EVENTS;
use crate::engine::self_metrics::SELF_METRICS;
use std::fmt::Write;

const HEAD: &str = "\
# Metrics, options and events

<!-- Rendered from the declarations in daemon/src/probes; `make docs` writes it and a test compares it. -->

Native series carry `kind` and `name` of the entity they belong to, and `namespace` and `pod` for pods. Values that the
kernel keeps once for the node carry the host's labels. The set *core* is shown by default; `metrics.set = \"full\"` or
`/metrics?set=full` shows all. A field that the running kernel does not have is left out.

The two older generations of names are shown with `/metrics?names=kubeskoop` (labels `k8s_node`, `k8s_namespace`,
`k8s_pod`) and `/metrics?names=inspector` (labels `namespace`, `pod`, `node`, `netns`), or by `metrics.names`. They keep the
spelling and the scope of the systems they come from; counters are counters, which `rate()` does not notice. With
`&labels=target`, or `metrics.labels`, the inspector's names have the labels of KubeSkoop 0.1: `target_node`,
`target_namespace`, `target_pod`, `node`, `namespace`, `pod`. Where an older name shows the same numbers as a native one, both
stand in one row of a table below the native metrics.

`metrics.extra_labels` puts further labels on every series of namespaces, in all three sets of names. It takes the place of
KubeSkoop's `additionalLabels` (`app=${labels:app}` becomes `app = \"${pod_label:app}\"`); the `verbose` and `expose_labels` of
the first exporter are understood as they are.
";

/// The whole reference.
pub fn render(probes: &[&'static Probe]) -> String {
    let mut out = String::from(HEAD);
    // Writing to a string does not fail.
    for probe in probes {
        let _ = section(&mut out, probe);
    }
    let _ = own(&mut out);
    out
}

fn section(out: &mut String, probe: &'static Probe) -> std::fmt::Result {
    writeln!(out, "\n## {}\n\n{}\n", probe.name, plain(probe.summary))?;
    writeln!(out, "* When: {}", plain(probe.when))?;
    writeln!(out, "* Finds: {}", plain(probe.finds))?;
    let default = if probe.default_on { "on" } else { "off" };
    writeln!(out, "* Overhead: {}. Default: {default}.", probe.cost.as_str())?;
    writeln!(out, "* Needs: {}", plain(probe.needs))?;
    if !probe.aliases.is_empty() {
        writeln!(out, "* Older names: {}", code_list(probe.aliases))?;
    }
    options(out, probe)?;
    native(out, probe)?;
    older(out, probe)?;
    events(out, probe)
}

fn options(out: &mut String, probe: &Probe) -> std::fmt::Result {
    if probe.options.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n| option | type | default | what it does |\n|---|---|---|---|")?;
    for decl in probe.options {
        let (kind, range) = (option_kind(decl), option_range(decl));
        let range = if range.is_empty() { String::new() } else { format!(", {}", plain(&range)) };
        let default = option_default(decl).to_string();
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
        writeln!(out, "| `{}` | {kind}{range} | {default} | {} |", decl.name, plain(decl.help))?;
    }
    Ok(())
}

/// The metrics of one generation, each once, however many tables its values are in.
fn families(probe: &'static Probe, names: Names) -> Vec<&'static Family> {
    let mut families: Vec<&Family> = probe.families().filter(|family| family.names == names).collect();
    families.dedup_by_key(|family| family.name);
    families
}

fn native(out: &mut String, probe: &'static Probe) -> std::fmt::Result {
    let families = families(probe, Names::Netskoop);
    if families.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n| metric | type | labels | set | meaning |\n|---|---|---|---|---|")?;
    for family in families {
        let mark = match (family.core, family.option) {
            (_, Some(option)) => format!("option `{option}`"),
            (true, None) => "core".to_owned(),
            (false, None) => "full".to_owned(),
        };
        writeln!(
            out,
            "| `{}` | {} | {} | {mark} | {} |",
            family.name,
            family.type_name(),
            labels(family),
            plain(family.help)
        )?;
    }
    Ok(())
}

/// The older names beside the native series that show the same numbers, then those that no single series shows.
fn older(out: &mut String, probe: &'static Probe) -> std::fmt::Result {
    const OLDER: [Names; 2] = [Names::Kubeskoop, Names::Inspector];
    let mut rows: Vec<(String, [Vec<&str>; 2])> = Vec::new();
    let mut alone: [Vec<&str>; 2] = Default::default();
    for (at, names) in OLDER.into_iter().enumerate() {
        for old in families(probe, names) {
            let Some(series) = probe.families().find_map(|native| shown_as(native, old)) else {
                alone[at].push(old.name);
                continue;
            };
            match rows.iter_mut().find(|(known, _)| *known == series) {
                Some((_, both)) => both[at].push(old.name),
                None => {
                    let mut both: [Vec<&str>; 2] = Default::default();
                    both[at].push(old.name);
                    rows.push((series, both));
                }
            }
        }
    }
    if !rows.is_empty() {
        writeln!(out, "\n| native | kubeskoop | inspector |\n|---|---|---|")?;
    }
    for (series, [kubeskoop, inspector]) in &rows {
        writeln!(out, "| `{series}` | {} | {} |", code_list(kubeskoop), code_list(inspector))?;
    }
    for (names, list) in OLDER.iter().zip(&alone).filter(|(_, list)| !list.is_empty()) {
        let other = if rows.is_empty() { "" } else { ", not the same as a single native one" };
        writeln!(out, "\nAs `{}`{other}: {}", names.as_str(), code_list(list))?;
    }
    Ok(())
}

/// The series of a native metric that shows the numbers of an older one.
fn shown_as(native: &Family, old: &Family) -> Option<String> {
    let same_rows = native.only.map(|only| (only.key, only.values, only.include))
        == old.only.map(|only| (only.key, only.values, only.include))
        && native.fold == old.fold;
    let same = native.names == Names::Netskoop && native.option.is_none() && same_rows;
    let columns: Vec<u16> = native.points.columns().collect();
    let mut wanted = old.points.columns();
    if !same || !std::ptr::eq(native.table, old.table) || !wanted.clone().all(|c| columns.contains(&c)) {
        return None;
    }
    let (first, all) = (wanted.next()?, wanted.next().is_some());
    let label = match native.points {
        Points::Cells(cells) if !all => cells.iter().find(|(_, column)| *column == first)?.0,
        _ => "",
    };
    let braces = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
    Some(format!("{}{braces}", native.name))
}

fn events(out: &mut String, probe: &Probe) -> std::fmt::Result {
    event_table(out, probe.events)
}

fn event_table(out: &mut String, events: &[EventDecl]) -> std::fmt::Result {
    if events.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n| event | older names | fields | meaning |\n|---|---|---|---|")?;
    for event in events {
        let (aliases, fields) = (code_list(event.aliases), code_list(event.fields));
        writeln!(out, "| `{}` | {aliases} | {fields} | {} |", event.name, plain(event.help))?;
    }
    Ok(())
}

fn own(out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\n## The daemon itself\n\n`netskoop_probe_*` and the counts of what a probe's hooks saw carry `probe`; \
         `netskoop_entities` carries `kind`,\n`netskoop_build_info` carries `version` and `kernel`, \
         `netskoop_resolver_*` carries `source`,\n`netskoop_extra_labels_limited` carries `label`. `collect[]` and \
         `exclude[]` do not touch them.\n\n\
         `netskoop_entity_info` is there with the native names, once per entity, also of pods with `hostNetwork`, which \
         share\nall but the series of `fd`, `io`, `cpu` with the host. Its labels are `kind`, `name`, `netns`, `host_network`, and where they are known \
         `namespace`, `pod`, `uid`,\n`source`, `ips`, `containers`, `container_ids`, `images`, `units`, `description`, \
         and `label_<name>` for labels of the pod, as\nkube-state-metrics names them (32 at most, values of 256 bytes at \
         most). Lists are joined with commas. A line is not longer\nthan 4 KiB: what does not fit is left out."
    )?;
    writeln!(out, "\n| metric | type | meaning |\n|---|---|---|")?;
    for (name, help, counter) in SELF_METRICS {
        let kind = if *counter { "counter" } else { "gauge" };
        writeln!(out, "| `{name}` | {kind} | {} |", plain(help))?;
    }
    event_table(out, &EVENTS)?;
    Ok(())
}

fn labels(family: &Family) -> String {
    let mut labels: Vec<&str> = family.keys.iter().map(|(name, _)| *name).collect();
    labels.extend(family.points.labels());
    labels.dedup();
    code_list(&labels)
}

/// Text that is to be shown as it is: what Markdown would take for its own is escaped, but for code in backquotes.
fn plain(text: &str) -> String {
    let mut code = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        code ^= c == '`';
        if c == '|' || (!code && matches!(c, '<' | '*' | '\\')) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn code_list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::PROBES;
    use std::path::Path;

    #[test]
    fn the_file_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let wanted = render(PROBES);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == wanted) {
            return;
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
        panic!("docs/metrics.md was out of date and has been written; commit it");
    }

    #[test]
    fn tables_are_whole() {
        let text = render(PROBES);
        let mut columns = None;
        for line in text.lines() {
            let bars = line.starts_with('|').then(|| line.matches('|').count() - line.matches("\\|").count());
            assert!(columns.is_none() || bars.is_none() || bars == columns, "{line}");
            columns = bars;
        }
    }

    #[test]
    fn everything_that_is_declared_is_there() {
        let text = render(PROBES);
        for probe in PROBES {
            let options = probe.options.iter().map(|option| option.name);
            let events = probe.events.iter().map(|event| event.name);
            let names = probe.families().map(|family| family.name).chain(options).chain(events);
            for name in names {
                assert!(text.contains(&format!("`{name}`")), "{name}");
            }
        }
        for (name, ..) in SELF_METRICS {
            assert!(text.contains(&format!("`{name}`")), "{name}");
        }
    }
}
