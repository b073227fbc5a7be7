//! What holds for a probe: its declared defaults, then the configuration, then what was changed at run time.

use super::options::{check_option, option_default};
use super::state::{Override, ProbeOverrides};
use super::{Config, Origin};
use crate::declare::Probe;
use crate::hooks::Options;
use netskoop_api::OptionValue;
use std::collections::BTreeMap;
use std::fmt;

/// Who decided something; a later layer wins over an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nobody: it is as declared.
    Default,
    /// The configuration file.
    Config(Origin),
    /// A drop-in.
    DropIn(Origin),
    /// `--runtime`.
    Runtime,
    /// `--for`.
    Lease,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Default => f.write_str("default"),
            Layer::Config(origin) => write!(f, "config {origin}"),
            Layer::DropIn(origin) => write!(f, "drop-in {}", origin.file.display()),
            Layer::Runtime => f.write_str("runtime"),
            Layer::Lease => f.write_str("lease"),
        }
    }
}

/// What holds for a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// Whether it is wanted.
    pub enabled: bool,
    /// Who decided that.
    pub decided_by: Layer,
    /// All its options.
    pub options: Options,
    /// Who decided the options that are not as declared.
    pub options_by: BTreeMap<&'static str, Layer>,
    /// When the lease that is in force ends, in seconds since 1970.
    pub until: Option<u64>,
}

/// What holds for a probe at a moment, in seconds since 1970. Pure: the same arguments, the same answer.
pub fn effective(probe: &Probe, config: &Config, overrides: Option<&ProbeOverrides>, now: u64) -> Effective {
    let mut result = Effective {
        enabled: probe.default_on,
        decided_by: Layer::Default,
        options: probe.options.iter().map(|decl| (decl.name, option_default(decl))).collect(),
        options_by: BTreeMap::new(),
        until: None,
    };
    add_config(&mut result, probe, config);
    if let Some(overrides) = overrides {
        add_override(&mut result, probe, &overrides.runtime, &Layer::Runtime);
        if let Some(lease) = overrides.lease.as_ref().filter(|lease| lease.until > now) {
            add_override(&mut result, probe, &lease.change, &Layer::Lease);
            result.until = Some(lease.until);
        }
    }
    result
}

fn add_config(result: &mut Effective, probe: &Probe, config: &Config) {
    let Some(settings) = config.probes.get(probe.name) else { return };
    if let Some((enabled, origin)) = &settings.enabled {
        result.enabled = *enabled;
        result.decided_by = layer(config, origin);
    }
    for (name, (value, origin)) in &settings.options {
        set_option(result, probe, name, value, layer(config, origin));
    }
}

fn add_override(result: &mut Effective, probe: &Probe, change: &Override, layer: &Layer) {
    if let Some(enabled) = change.enabled {
        result.enabled = enabled;
        result.decided_by = layer.clone();
    }
    for (name, value) in &change.options {
        set_option(result, probe, name, value, layer.clone());
    }
}

/// Overrides may come from another version of the daemon: what is not declared any more, or differently, is passed over.
fn set_option(result: &mut Effective, probe: &Probe, name: &str, value: &OptionValue, layer: Layer) {
    let decl = probe.options.iter().find(|decl| decl.name == name);
    if let Some(decl) = decl.filter(|decl| check_option(decl, value).is_ok()) {
        result.options.insert(decl.name, value.clone());
        result.options_by.insert(decl.name, layer);
    }
}

fn layer(config: &Config, origin: &Origin) -> Layer {
    if origin.file.parent() == Some(config.drop_ins.as_path()) {
        Layer::DropIn(origin.clone())
    } else {
        Layer::Config(origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Lease;
    use super::super::testing::PROBES;
    use super::super::{ProbeConfig, State};
    use super::*;

    fn origin(file: &str, line: usize) -> Origin {
        Origin { file: file.into(), line }
    }

    fn config(enabled: Option<(bool, Origin)>, limit: Option<(u64, Origin)>) -> Config {
        let options = limit.map(|(limit, origin)| ("limit", (OptionValue::Integer(limit), origin)));
        let settings = ProbeConfig { enabled, options: options.into_iter().collect() };
        Config { probes: [("tcpreset", settings)].into(), ..Config::default() }
    }

    fn limit(limit: u64) -> Override {
        Override { enabled: None, options: [("limit".to_owned(), OptionValue::Integer(limit))].into() }
    }

    const MAIN: &str = "/etc/netskoop/netskoopd.toml";
    const OWN: &str = "/etc/netskoop/conf.d/50-netskoopctl.toml";

    #[test]
    fn each_layer_wins_over_the_one_before() {
        let probe = PROBES[1];
        let on = Override { enabled: Some(true), options: BTreeMap::new() };
        let off = Override { enabled: Some(false), options: BTreeMap::new() };
        let by = |config: &Config, overrides: Option<&ProbeOverrides>| {
            let result = effective(probe, config, overrides, 100);
            (result.enabled, result.decided_by.to_string())
        };
        let (plain, file) = (Config::default(), config(Some((true, origin(MAIN, 14))), None));
        assert_eq!(by(&plain, None), (false, "default".into()));
        assert_eq!(by(&file, None), (true, format!("config {MAIN}:14")));
        let dropin = config(Some((false, origin(OWN, 3))), None);
        assert_eq!(by(&dropin, None), (false, format!("drop-in {OWN}")));
        let mut overrides = ProbeOverrides { runtime: on, lease: None };
        assert_eq!(by(&dropin, Some(&overrides)), (true, "runtime".into()));
        overrides.lease = Some(Lease { change: off, until: 101 });
        assert_eq!(by(&dropin, Some(&overrides)), (false, "lease".into()));
        overrides.lease.as_mut().unwrap().until = 100;
        assert_eq!(by(&dropin, Some(&overrides)), (true, "runtime".into()), "the lease is over");
    }

    #[test]
    fn options_are_decided_one_by_one() {
        let probe = PROBES[1];
        let config = config(None, Some((5, origin(MAIN, 2))));
        let result = effective(probe, &config, None, 0);
        assert_eq!(
            result.options,
            Options::from([("limit", OptionValue::Integer(5)), ("stack", OptionValue::Bool(false))])
        );
        assert_eq!(result.options_by, [("limit", Layer::Config(origin(MAIN, 2)))].into());
        let mut state = State::default();
        state.set_lease("tcpreset", &limit(7), 10);
        let result = effective(probe, &config, state.probes.get("tcpreset"), 9);
        assert_eq!(result.options["limit"], OptionValue::Integer(7));
        assert_eq!(result.options_by["limit"], Layer::Lease);
        assert_eq!((result.decided_by, result.until), (Layer::Default, Some(10)));
    }

    #[test]
    fn overrides_that_do_not_fit_are_passed_over() {
        let mut state = State::default();
        state.set_runtime("tcpreset", &limit(1_000_000));
        let gone = Override { enabled: None, options: [("gone".into(), OptionValue::Bool(true))].into() };
        state.set_runtime("tcpreset", &gone);
        let result = effective(PROBES[1], &Config::default(), state.probes.get("tcpreset"), 0);
        assert_eq!(result.options["limit"], OptionValue::Integer(10));
        assert!(result.options_by.is_empty());
        assert_eq!(result.options.len(), 2);
    }
}
