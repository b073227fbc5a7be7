//! Walks the syntax tree of one file, checks every key against its declaration and puts it into the configuration.

use super::errors::ConfigError;
use super::keys::{Faults, KEYS, describe, each, integer, shortened};
use super::options::{check_option, expected};
use super::source::Source;
use super::suggest::closest;
use super::{Config, Origin, ProbeConfig, Setting, labels};
use crate::declare::{OptionDecl, OptionType, Probe};
use netskoop_api::OptionValue;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Value<'a> = Spanned<DeValue<'a>>;

/// The configuration as far as it has been read.
pub(super) struct Merged {
    /// Values in force.
    pub(super) config: Config,
    /// The keys that some file sets, with the text and the place that count.
    pub(super) settings: BTreeMap<String, Setting>,
}

/// Adds a file. What it sets replaces what earlier files set; everything that is wrong with it is returned.
pub(super) fn add(
    source: &Source,
    tree: &DeTable<'_>,
    merged: &mut Merged,
    probes: &[&'static Probe],
) -> Vec<ConfigError> {
    let mut walk = Walk { source, merged, probes, errors: Vec::new() };
    walk.root(tree);
    walk.errors.sort_by_key(|error| error.at);
    walk.errors
}

/// What is wrong with a text by itself, one sentence each.
pub(super) fn text(text: &str, probes: &[&'static Probe]) -> Vec<String> {
    let source = Source { file: "the text".into(), text: text.to_owned() };
    let mut merged = Merged { config: Config::default(), settings: BTreeMap::new() };
    let mut errors = match source.parse() {
        Ok(tree) => add(&source, tree.get_ref(), &mut merged, probes),
        Err(syntax) => syntax,
    };
    errors.extend(together(&merged));
    errors.into_iter().map(|error| error.message).collect()
}

/// What is wrong with keys that are each right by themselves.
pub(super) fn together(merged: &Merged) -> Option<ConfigError> {
    const KEY: &str = "metrics.expose_labels";
    let message = labels::clash(&merged.config.extra_labels, &merged.config.expose_labels)?;
    let Setting { origin, column, .. } = merged.settings.get(KEY)?;
    let at = Some((origin.line, *column));
    Some(ConfigError { file: origin.file.clone(), at, key: KEY.to_owned(), message })
}

struct Walk<'a> {
    source: &'a Source,
    merged: &'a mut Merged,
    probes: &'a [&'static Probe],
    errors: Vec<ConfigError>,
}

impl Walk<'_> {
    fn root(&mut self, tree: &DeTable<'_>) {
        for (name, value) in tree {
            let section = format!("{}.", name.get_ref());
            if name.get_ref() == "probes" {
                self.all_probes(value);
            } else if KEYS.iter().any(|key| key.path.starts_with(&section)) {
                self.section(name.get_ref(), value);
            } else {
                self.key(name.get_ref(), name.span(), value);
            }
        }
    }

    fn section(&mut self, section: &str, value: &Value<'_>) {
        let Some(table) = self.table(section, value) else { return };
        for (name, value) in table {
            self.key(&format!("{section}.{}", name.get_ref()), name.span(), value);
        }
    }

    fn key(&mut self, path: &str, name: Range<usize>, value: &Value<'_>) {
        let Some(key) = KEYS.iter().find(|key| key.path == path) else {
            return self.error(&name, path, format!("unknown key{}", meant(path)));
        };
        let result = key.set(&mut self.merged.config, value);
        self.settle(path, value, result);
    }

    fn all_probes(&mut self, value: &Value<'_>) {
        let Some(table) = self.table("probes", value) else { return };
        let mut seen = BTreeMap::new();
        // The tree is sorted by name; of two tables for one probe the second one in the file is the mistake.
        let mut tables: Vec<_> = table.iter().collect();
        tables.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in tables {
            let path = format!("probes.{}", shortened(name.get_ref()));
            let Some(probe) = find_probe(self.probes, name.get_ref()) else {
                self.unknown_probe(&path, name);
                continue;
            };
            if let Some(other) = seen.insert(probe.name, name.get_ref()) {
                let message = format!("the same probe as probes.{other}; write it once");
                self.error(&name.span(), &path, message);
            }
            self.probe(probe, &format!("probes.{}", probe.name), value);
        }
    }

    fn probe(&mut self, probe: &'static Probe, path: &str, value: &Value<'_>) {
        if let DeValue::Boolean(on) = value.get_ref() {
            let message = format!("expected a table; write {path}.enabled = {on}");
            return self.error(&value.span(), path, message);
        }
        let Some(table) = self.table(path, value) else { return };
        for (name, value) in table {
            let path = format!("{path}.{}", shortened(name.get_ref()));
            if name.get_ref() == "enabled" {
                self.enabled(probe, &path, value);
            } else if let Some(decl) = probe.options.iter().find(|decl| decl.name == name.get_ref()) {
                self.option(probe, decl, &path, value);
            } else {
                self.unknown_option(probe, &path, name);
            }
        }
    }

    fn enabled(&mut self, probe: &'static Probe, path: &str, value: &Value<'_>) {
        let Some(on) = value.get_ref().as_bool() else {
            let message = format!("expected true or false, found {}", describe(value.get_ref()));
            return self.error(&value.span(), path, message);
        };
        let origin = self.origin(&value.span());
        self.probe_config(probe).enabled = Some((on, origin));
        self.settle(path, value, Ok(()));
    }

    fn option(&mut self, probe: &'static Probe, decl: &'static OptionDecl, path: &str, value: &Value<'_>) {
        let result = option_value(decl, value).map(|option| {
            let origin = self.origin(&value.span());
            self.probe_config(probe).options.insert(decl.name, (option, origin));
        });
        self.settle(path, value, result);
    }

    fn probe_config(&mut self, probe: &'static Probe) -> &mut ProbeConfig {
        self.merged.config.probes.entry(probe.name).or_default()
    }

    /// The table that must stand here.
    fn table<'v>(&mut self, path: &str, value: &'v Value<'_>) -> Option<&'v DeTable<'v>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let message = format!("expected a table [{path}], found {}", describe(value.get_ref()));
            self.error(&value.span(), path, message);
        }
        table
    }

    /// Records where a key was set, or what is wrong with it.
    fn settle(&mut self, path: &str, value: &Value<'_>, result: Result<(), Faults>) {
        match result {
            Ok(()) => {
                let text = self.source.text.get(value.span()).unwrap_or_default().to_owned();
                let (line, column) = self.source.position(&value.span());
                let origin = Origin { file: self.source.file.clone(), line };
                self.merged.settings.insert(path.to_owned(), Setting { text, origin, column });
            }
            Err(faults) => {
                for (span, message) in faults {
                    self.error(&span, path, message);
                }
            }
        }
    }

    fn unknown_probe(&mut self, path: &str, name: &Spanned<impl AsRef<str>>) {
        let names = self.probes.iter().flat_map(|probe| [probe.name].into_iter().chain(aliases(probe)));
        let hint = closest(name.get_ref().as_ref(), names).map(did_you_mean).unwrap_or_default();
        self.error(&name.span(), path, format!("no such probe{hint}"));
    }

    fn unknown_option(&mut self, probe: &Probe, path: &str, name: &Spanned<impl AsRef<str>>) {
        let names: Vec<&str> =
            ["enabled"].into_iter().chain(probe.options.iter().map(|decl| decl.name)).collect();
        let hint = match closest(name.get_ref().as_ref(), names.iter().copied()) {
            Some(known) => did_you_mean(known),
            None => format!("; {} knows {}", probe.name, names.join(", ")),
        };
        self.error(&name.span(), path, format!("unknown key{hint}"));
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        Origin { file: self.source.file.clone(), line: self.source.position(span).0 }
    }

    fn error(&mut self, span: &Range<usize>, path: &str, message: impl Into<String>) {
        let error = self.source.error(span, &shortened(path), message);
        self.errors.push(error);
    }
}

/// The probe with this name or older name.
pub fn find_probe(probes: &[&'static Probe], name: &str) -> Option<&'static Probe> {
    probes.iter().find(|probe| probe.name == name || probe.aliases.contains(&name)).copied()
}

fn aliases(probe: &Probe) -> impl Iterator<Item = &'static str> {
    probe.aliases.iter().copied()
}

fn option_value(decl: &OptionDecl, value: &Value<'_>) -> Result<OptionValue, Faults> {
    let fault = |message| vec![(value.span(), message)];
    let mismatch = || fault(format!("expected {}, found {}", expected(decl), describe(value.get_ref())));
    let option = match decl.kind {
        OptionType::Bool { .. } => OptionValue::Bool(value.get_ref().as_bool().ok_or_else(mismatch)?),
        OptionType::Integer { .. } => {
            let number = integer(value.get_ref()).ok_or_else(mismatch)?;
            OptionValue::Integer(u64::try_from(number).map_err(|_| mismatch())?)
        }
        OptionType::Duration { .. } => {
            OptionValue::Text(value.get_ref().as_str().ok_or_else(mismatch)?.to_owned())
        }
        OptionType::List { what, check, .. } => {
            let array = value.get_ref().as_array().ok_or_else(mismatch)?;
            // A port or a protocol may be written as the number that it is.
            OptionValue::List(each(array, |element| {
                let number = || integer(element).map(|number| number.to_string());
                let word = element.as_str().map(str::to_owned).or_else(number);
                let fault = || format!("expected {what}, found {}", describe(element));
                word.filter(|word| check(word)).ok_or_else(fault)
            })?)
        }
    };
    check_option(decl, &option).map_err(fault)?;
    Ok(option)
}

/// The hint for an unknown key: the closest key of the same section, or the key of that name in another one.
fn meant(path: &str) -> String {
    let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    if let Some(key) = closest(path, KEYS.iter().map(|key| key.path)) {
        return did_you_mean(key);
    }
    let word = path.rsplit('.').next().unwrap_or(path);
    if let Some(key) = KEYS.iter().find(|key| last(key.path) == word) {
        return did_you_mean(key.path);
    }
    let sections = KEYS.iter().filter_map(|key| key.path.split_once('.')).map(|(section, _)| section);
    closest(path, sections.chain(["probes"])).map(did_you_mean).unwrap_or_default()
}

fn did_you_mean(word: &str) -> String {
    format!(". Did you mean '{word}'?")
}
