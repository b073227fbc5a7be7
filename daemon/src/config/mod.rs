//! The configuration in force: plain data, made from defaults, the configuration file and its drop-ins.

use crate::declare::Names;
use netskoop_api::OptionValue;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured. [`Config::default`] is what an empty file means.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Node name for the older metric sets and for events; empty: the host name.
    pub node_name: String,
    /// Where metrics are served; empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// Generations that `/metrics` shows when the scraper does not say.
    pub names: Vec<Names>,
    /// Whether all families are shown, or only the core set.
    pub full_set: bool,
    /// A collection is shared by all scrapes that come within this time.
    pub min_interval: Duration,
    /// A collection is given up after this time.
    pub timeout: Duration,
    /// Series of one answer at most, all namespaces together.
    pub max_series: u64,
    /// Events kept in memory.
    pub history: usize,
    /// Events a second that one type may send from one namespace, in the long run.
    pub event_rate: u32,
    /// How many may come at once.
    pub event_burst: u32,
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

impl Default for Config {
    fn default() -> Config {
        Config {
            node_name: String::new(),
            listen: vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 9102))],
            names: vec![Names::Netskoop],
            full_set: false,
            min_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            max_series: 100_000,
            history: 8192,
            event_rate: 50,
            event_burst: 200,
            proc: "/proc".into(),
            sys: "/sys".into(),
            run: "/run".into(),
            drop_ins: "/etc/netskoop/conf.d".into(),
            probes: BTreeMap::new(),
        }
    }
}
