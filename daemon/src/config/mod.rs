//! The configuration in force: plain data, made from defaults, the configuration file and its drop-ins.
//!
//! [`load`] reads the files, checks them against [`KEYS`] and the probes' declarations and reports everything that is
//! wrong with them at once. [`effective`] adds what was changed while the daemon ran ([`State`]).

mod atomic;
mod check;
mod effective;
mod errors;
mod import;
mod keys;
mod labels;
mod options;
mod percent;
mod sockets;
mod source;
mod state;
mod suggest;
#[cfg(test)]
mod testing;

pub mod dropin;

pub use crate::duration::{format_duration, parse_duration};
pub use check::find_probe;
pub use effective::{Effective, Layer, effective};
pub use errors::{ConfigError, ConfigErrors};
pub use import::import;
pub use keys::{KEYS, Key, KeyKind};
pub use options::{check_option, expected, option_default, option_kind, option_range, parse_option};
pub use percent::{format_percent, parse_percent};
pub use state::{Lease, Override, ProbeOverrides, State};
pub use suggest::closest;

use crate::declare::{Names, Probe};
use crate::resolve::extra::{DEFAULT_VALUES, Extra, ExtraLabel};
use crate::resolve::runtimes::Choice;
use check::Merged;
use labels::ExposedLabel;
use netskoop_api::OptionValue;
use source::Source;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that can be configured. [`Config::default`] is what an empty file means.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Node name for the older metric sets and for events; empty: the host name.
    pub node_name: String,
    /// Where metrics are served; empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// TCP connections served at once.
    pub max_connections: usize,
    /// Group whose members may change what runs, besides root; empty: nobody else.
    pub control_group: String,
    /// Generations that `/metrics` shows when the scraper does not say.
    pub names: Vec<Names>,
    /// Whether the inspector's names have the labels of its release 0.1.
    pub target_labels: bool,
    /// Whether all families are shown, or only the core set.
    pub full_set: bool,
    /// A collection is shared by all scrapes that come within this time.
    pub min_interval: Duration,
    /// A collection is given up after this time.
    pub timeout: Duration,
    /// Series of one answer at most, all namespaces together.
    pub max_series: u64,
    /// Series of one probe in it at most.
    pub max_series_per_probe: u64,
    /// Labels for every series.
    pub extra_labels: Vec<ExtraLabel>,
    /// Different values that one of them may have.
    pub extra_label_values: usize,
    /// Whether `expose_labels` hold.
    pub verbose: bool,
    /// Labels as the first generation of exporters configured them.
    pub expose_labels: Vec<ExposedLabel>,
    /// Sources of names for which something else than auto was chosen.
    pub sources: BTreeMap<&'static str, Choice>,
    /// Events kept in memory.
    pub history: usize,
    /// Events a second that one type may send from one namespace, in the long run.
    pub event_rate: u32,
    /// How many may come at once.
    pub event_burst: u32,
    /// Part of one CPU that the BPF programs of one probe may take, in hundredths of a percent; 0 for any.
    pub bpf_cpu: u32,
    /// Root of procfs.
    pub proc: PathBuf,
    /// Root of sysfs.
    pub sys: PathBuf,
    /// Where runtime state and the control socket live, and `netns/` with the named namespaces.
    pub run: PathBuf,
    /// Directory of the drop-ins that `netskoopctl probes enable` writes.
    pub drop_ins: PathBuf,
    /// Settings of probes, by name. What is not here is as declared.
    pub probes: BTreeMap<&'static str, ProbeConfig>,
}

/// Settings of one probe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeConfig {
    /// On or off, and where that was said.
    pub enabled: Option<(bool, Origin)>,
    /// Options, and where they were said.
    pub options: BTreeMap<&'static str, (OptionValue, Origin)>,
}

/// Where a setting was made: `/etc/netskoop/netskoopd.toml:14`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// File.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node_name: String::new(),
            listen: vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 9102))],
            max_connections: 512,
            control_group: "netskoop".into(),
            names: vec![Names::Netskoop],
            target_labels: false,
            full_set: false,
            min_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            max_series: 100_000,
            max_series_per_probe: 50_000,
            extra_labels: vec![],
            extra_label_values: DEFAULT_VALUES,
            verbose: false,
            expose_labels: vec![],
            sources: BTreeMap::new(),
            history: 8192,
            event_rate: 50,
            event_burst: 200,
            bpf_cpu: 200,
            proc: "/proc".into(),
            sys: "/sys".into(),
            run: "/run".into(),
            drop_ins: "/etc/netskoop/conf.d".into(),
            probes: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Which sockets of a source of names are used.
    pub fn choice(&self, source: &str) -> Choice {
        self.sources.get(source).cloned().unwrap_or_default()
    }

    fn choose(&mut self, source: &'static str, choice: Choice) {
        match choice {
            Choice::Auto => self.sources.remove(source),
            other => self.sources.insert(source, other),
        };
    }

    /// The labels for every series, whichever way they were written.
    pub fn extra(&self) -> Extra {
        let exposed = self.expose_labels.iter().filter(|_| self.verbose).map(|exposed| &exposed.label);
        let labels = self.extra_labels.iter().chain(exposed).cloned().collect();
        Extra { labels, max_values: self.extra_label_values }
    }
}

/// The configuration file when none is named.
pub const DEFAULT_FILE: &str = "/etc/netskoop/netskoopd.toml";

/// The configuration, and what it was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Values in force.
    pub config: Config,
    /// The files that were read, in order; later ones win.
    pub files: Vec<PathBuf>,
    /// The keys that a file sets. All others have their default.
    pub settings: BTreeMap<String, Setting>,
}

/// A key that a file sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The value, as it is written there.
    pub text: String,
    /// Where.
    pub origin: Origin,
    /// Column of that line, from 1.
    pub column: usize,
}

/// Reads the configuration file and its drop-ins (`conf.d/*.toml` beside it, in the order of their names).
///
/// Without a path the default file is read, and it may be missing. A file that is named must exist.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigErrors> {
    load_with(path, crate::probes::PROBES, None)
}

/// The same for a given list of probes, with the text of one drop-in replaced: what the configuration would be.
fn load_with(
    path: Option<&Path>,
    probes: &[&'static Probe],
    replaced: Option<Source>,
) -> Result<Loaded, ConfigErrors> {
    let drop_ins = drop_in_dir(path);
    let (sources, mut errors) = read_all(path, &drop_ins, replaced);
    let config = Config { drop_ins, ..Config::default() };
    let mut merged = Merged { config, settings: BTreeMap::new() };
    for source in &sources {
        match source.parse() {
            Ok(tree) => errors.extend(check::add(source, tree.get_ref(), &mut merged, probes)),
            Err(syntax) => errors.extend(syntax),
        }
    }
    errors.extend(check::together(&merged));
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let files = sources.into_iter().map(|source| source.file).collect();
    Ok(Loaded { config: merged.config, files, settings: merged.settings })
}

/// Where the drop-ins of a configuration file are.
fn drop_in_dir(path: Option<&Path>) -> PathBuf {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    // The daemon may change its directory; a relative name means the one it was started in.
    let file = std::path::absolute(file).unwrap_or_else(|_| file.into());
    file.parent().unwrap_or(Path::new("/")).join("conf.d")
}

/// Reads the file and its drop-ins as far as they can be read.
fn read_all(
    path: Option<&Path>,
    drop_ins: &Path,
    replaced: Option<Source>,
) -> (Vec<Source>, Vec<ConfigError>) {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    match Source::read(file) {
        Ok(Some(source)) => sources.push(source),
        Ok(None) if path.is_some() => errors.push(ConfigError::file(file, "no such file")),
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    let mut files = source::drop_ins(drop_ins).unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    });
    if let Some(replaced) = &replaced {
        files.retain(|file| *file != replaced.file);
    }
    for file in files {
        match Source::read(&file) {
            Ok(Some(source)) => sources.push(source),
            Ok(None) => errors.push(ConfigError::file(&file, "no such file")),
            Err(error) => errors.push(error),
        }
    }
    sources.extend(replaced);
    // The configuration file stays first, the drop-ins are in name order with the replaced one in its place.
    sources.sort_by(|a, b| (a.file != file, &a.file).cmp(&(b.file != file, &b.file)));
    (sources, errors)
}

#[cfg(test)]
mod tests;
