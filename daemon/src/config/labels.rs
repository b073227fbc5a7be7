//! Labels that the configuration puts on every series: those of this daemon, and those of the first generation of
//! exporters (`verbose`, `expose_labels`), which mean the same.

use super::keys::{Faults, describe, quoted, shortened};
use super::suggest::closest;
use crate::declare::{Family, Points};
use crate::probes::PROBES;
use crate::resolve::extra::{ExtraLabel, MAX_LABELS, Template};
use crate::resolve::labels::ENTITY_LABELS;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Value<'a> = Spanned<DeValue<'a>>;

/// Longest name of a label, in bytes.
const MAX_NAME: usize = 64;
/// What the first generation calls meta, and the placeholder that means it.
const META: [(&str, &str); 6] = [
    ("ip", "${pod_ip}"),
    ("uid", "${uid}"),
    ("container", "${container}"),
    ("image", "${image}"),
    ("node", "${node}"),
    ("netns", "${netns}"),
];

/// A label as the first generation of exporters configured it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposedLabel {
    /// Key of the pod's label, or what of the pod is meant.
    source: String,
    /// Whether it is something of the pod itself.
    is_meta: bool,
    /// Name on the series, if not that of the source.
    replace: String,
    /// What it comes to here.
    pub label: ExtraLabel,
}

/// `{ app = "${pod_label:app}" }`.
pub(super) fn extra(value: &Value<'_>) -> Result<Vec<ExtraLabel>, Faults> {
    let example = "e.g. { app = \"${pod_label:app}\" }";
    let table = value.get_ref().as_table().ok_or_else(|| {
        let found = describe(value.get_ref());
        vec![(value.span(), format!("expected a table of labels, {example}, found {found}"))]
    })?;
    let (mut labels, mut faults) = (Vec::new(), Faults::new());
    for (name, text) in table {
        if let Err(message) = check_name(name.get_ref()) {
            faults.push((name.span(), message));
        }
        let template = match text.get_ref().as_str() {
            Some(text) => Template::parse(text),
            None => Err(format!("expected a text, found {}", describe(text.get_ref()))),
        };
        match template {
            Ok(template) => labels.push(ExtraLabel { name: name.get_ref().to_string(), template }),
            Err(message) => faults.push((text.span(), format!("{}: {message}", shortened(name.get_ref())))),
        }
    }
    if labels.len() > MAX_LABELS {
        faults.push((value.span(), format!("more than {MAX_LABELS} labels; each makes every series longer")));
    }
    if faults.is_empty() { Ok(labels) } else { Err(faults) }
}

/// As [`extra`] reads it.
pub(super) fn show_extra(labels: &[ExtraLabel]) -> String {
    let pairs: Vec<String> =
        labels.iter().map(|label| format!("{} = {}", label.name, quoted(label.template.text()))).collect();
    if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) }
}

/// `[{ source = "app", type = "label", replace = "app_name" }]`.
pub(super) fn exposed(value: &Value<'_>) -> Result<Vec<ExposedLabel>, Faults> {
    let example = "e.g. [{ source = \"app\", type = \"label\", replace = \"app_name\" }]";
    let array = value.get_ref().as_array().ok_or_else(|| {
        let found = describe(value.get_ref());
        vec![(value.span(), format!("expected a list of labels, {example}, found {found}"))]
    })?;
    let (mut labels, mut faults) = (Vec::<ExposedLabel>::new(), Faults::new());
    for element in array.iter() {
        let one = match element.get_ref().as_table() {
            Some(table) => exposed_one(table, element),
            None => {
                let found = describe(element.get_ref());
                Err(vec![(element.span(), format!("expected a table, {example}, found {found}"))])
            }
        };
        match one {
            Ok(one) if labels.iter().any(|known| known.label.name == one.label.name) => {
                let message =
                    format!("two labels are called '{}'; give one another 'replace'", one.label.name);
                faults.push((element.span(), message));
            }
            Ok(one) => labels.push(one),
            Err(found) => faults.extend(found),
        }
    }
    if labels.len() > MAX_LABELS {
        faults.push((value.span(), format!("more than {MAX_LABELS} labels; each makes every series longer")));
    }
    if faults.is_empty() { Ok(labels) } else { Err(faults) }
}

fn exposed_one(table: &DeTable<'_>, element: &Value<'_>) -> Result<ExposedLabel, Faults> {
    let mut words = [String::new(), "label".to_owned(), String::new()];
    for (key, value) in table {
        const KEYS: [&str; 3] = ["source", "type", "replace"];
        let fault = |message| vec![(value.span(), message)];
        let at = KEYS.iter().position(|known| known == key.get_ref()).ok_or_else(|| {
            vec![(key.span(), "unknown key; a label has source, type and replace".to_owned())]
        })?;
        let text = value.get_ref().as_str();
        let text =
            text.ok_or_else(|| fault(format!("expected a text, found {}", describe(value.get_ref()))))?;
        words[at] = text.to_owned();
    }
    let [source, kind, replace] = words;
    let fault = |message: String| vec![(element.span(), message)];
    if source.is_empty() || source.len() > 253 {
        return Err(fault("'source' is missing or too long; write the key of the pod's label".to_owned()));
    }
    let template = match kind.as_str() {
        "label" => Template::pod_label(&source),
        "meta" => Template::parse(meta(&source).map_err(fault)?).map_err(fault)?,
        other => {
            let other = shortened(other);
            return Err(fault(format!("type '{other}' is neither \"label\" nor \"meta\"")));
        }
    };
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name = if replace.is_empty() { source.chars().map(legal).collect() } else { replace.clone() };
    check_name(&name).map_err(|message| fault(format!("{message} in 'replace'")))?;
    let label = ExtraLabel { name, template };
    Ok(ExposedLabel { source, is_meta: kind == "meta", replace, label })
}

fn meta(source: &str) -> Result<&'static str, String> {
    let known = || META.iter().map(|(name, _)| *name);
    let found = META.iter().find(|(name, _)| *name == source).map(|(_, placeholder)| *placeholder);
    found.ok_or_else(|| {
        let names: Vec<&str> = known().collect();
        let hint = closest(source, known()).map(|word| format!(". Did you mean '{word}'?"));
        let hint = hint.unwrap_or_else(|| format!("; there are {}", names.join(", ")));
        format!("there is no meta '{}'{hint}", shortened(source))
    })
}

/// As [`exposed`] reads it.
pub(super) fn show_exposed(labels: &[ExposedLabel]) -> String {
    let one = |label: &ExposedLabel| {
        let kind = if label.is_meta { "meta" } else { "label" };
        let (source, replace) = (quoted(&label.source), quoted(&label.replace));
        format!("{{ source = {source}, type = \"{kind}\", replace = {replace} }}")
    };
    format!("[{}]", labels.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// What is wrong with both together.
pub(super) fn clash(extra: &[ExtraLabel], exposed: &[ExposedLabel]) -> Option<String> {
    let twice = exposed.iter().find(|exposed| extra.iter().any(|label| label.name == exposed.label.name));
    if let Some(twice) = twice {
        let name = &twice.label.name;
        return Some(format!("the label '{name}' is in metrics.extra_labels as well; remove one of them"));
    }
    let many = extra.len() + exposed.len() > MAX_LABELS;
    many.then(|| format!("more than {MAX_LABELS} labels together with metrics.extra_labels; remove some"))
}

/// Whether a label may be called so; the error says why not and what to do.
fn check_name(name: &str) -> Result<(), String> {
    let shown = shortened(name);
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(legal) {
        return Err(format!(
            "'{shown}' is no name of a label; use letters, digits and '_', at most {MAX_NAME}"
        ));
    }
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("'{shown}' is no name of a label: it begins with a digit; use e.g. '_{shown}'"));
    }
    if name.starts_with("__") {
        return Err(format!(
            "'{shown}' begins with '__', which Prometheus keeps for itself; choose another name"
        ));
    }
    if let Some(by) = taken(name) {
        return Err(format!("the label '{shown}' {by}; choose another name, e.g. 'x_{shown}'"));
    }
    Ok(())
}

/// Who has a label of that name already.
fn taken(name: &str) -> Option<String> {
    if ENTITY_LABELS.contains(&name) || name.starts_with("k8s_") {
        return Some("says whose a series is, in one of the sets of names".to_owned());
    }
    if ["le", "quantile"].contains(&name) {
        return Some("belongs to histograms and summaries".to_owned());
    }
    let mut families = PROBES.iter().flat_map(|probe| probe.families());
    let family = families.find(|family| has_label(family, name))?;
    Some(format!("is one of {}", family.name))
}

fn has_label(family: &Family, name: &str) -> bool {
    let constant = |text: &str| text.split(',').any(|pair| pair.split('=').next() == Some(name));
    let in_cells = match family.points {
        Points::Cells(cells) => cells.iter().any(|(text, _)| constant(text)),
        // `le` belongs to histograms.
        Points::Sum(_) | Points::Histogram(_) | Points::Slots => false,
    };
    in_cells || family.keys.iter().any(|(key, _)| *key == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_of_any_series_can_be_taken() {
        let mut all: Vec<&str> = ENTITY_LABELS.to_vec();
        for family in PROBES.iter().flat_map(|probe| probe.families()) {
            all.extend(family.keys.iter().map(|(name, _)| *name));
            if let Points::Cells(cells) = family.points {
                let pairs = cells.iter().flat_map(|(text, _)| text.split(','));
                all.extend(pairs.filter_map(|pair| Some(pair.split_once('=')?.0)));
            }
        }
        assert!(all.len() > 20 && all.contains(&"cause") && all.contains(&"device"), "{all:?}");
        for name in all {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["app", "_x", "Tier2", "pod_ip", "image"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }
}
