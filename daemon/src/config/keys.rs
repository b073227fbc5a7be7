//! The keys of the configuration file, as a table: it drives the checks, and the manual page is rendered from it.
//! Options of probes are not here; they are declared with their probe.

use super::percent::{format_percent, parse_percent};
use super::{Config, labels, sockets};
use crate::declare::Names;
use crate::duration::{format_duration, parse_duration};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeArray, DeValue};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Full name: `metrics.min_interval`.
    pub path: &'static str,
    /// What its value may be, and where it goes.
    pub kind: KeyKind,
    /// Its default, as one would write it.
    pub default: &'static str,
    /// A sentence or two.
    pub help: &'static str,
}

/// What the value of a key may be, and the place in [`Config`] where it goes.
#[derive(Debug)]
pub enum KeyKind {
    /// A name without control characters.
    Name(fn(&mut Config) -> &mut String),
    /// A whole number.
    Integer {
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
        /// Reads it.
        get: fn(&Config) -> u64,
        /// Sets it; the value is in range.
        set: fn(&mut Config, u64),
    },
    /// A duration.
    Duration {
        /// Shortest allowed.
        min: Duration,
        /// Longest allowed.
        max: Duration,
        /// Where it goes.
        field: fn(&mut Config) -> &mut Duration,
    },
    /// A part of one CPU, kept in hundredths of a percent.
    Percent(fn(&mut Config) -> &mut u32),
    /// A list of `address:port`.
    Addresses(fn(&mut Config) -> &mut Vec<SocketAddr>),
    /// A list of generations of metric names.
    Generations(fn(&mut Config) -> &mut Vec<Names>),
    /// One of two words; the second means true.
    Either(&'static str, &'static str, fn(&mut Config) -> &mut bool),
    /// An absolute directory.
    Directory(fn(&mut Config) -> &mut PathBuf),
    /// True or false.
    Bool(fn(&mut Config) -> &mut bool),
    /// Which sockets of the source of this name are used.
    Sockets(&'static str),
    /// Labels for every series.
    ExtraLabels,
    /// The same as the first generation of exporters wrote it.
    ExposedLabels,
}

/// Addresses to listen on at most.
const MAX_ADDRESSES: usize = 16;

/// A number of a field that has fewer bits than the file's; the range of the key keeps it from being cut.
fn narrow<T: TryFrom<u64> + Default>(number: u64) -> T {
    T::try_from(number).unwrap_or_default()
}

/// Every key but those of the probes, in the order of the manual page.
pub static KEYS: &[Key] = &[
    Key {
        path: "node_name",
        kind: KeyKind::Name(|config| &mut config.node_name),
        default: "\"\"",
        help: "Name of this node in events and in the older metric sets. Empty means the host name.",
    },
    Key {
        path: "http.listen",
        kind: KeyKind::Addresses(|config| &mut config.listen),
        default: "[\"[::]:9102\"]",
        help: "Addresses on which metrics are served. An empty list switches the TCP server off; netskoopctl still works.",
    },
    Key {
        path: "http.max_connections",
        kind: KeyKind::Integer {
            min: 1,
            max: 10_000,
            get: |config| config.max_connections as u64,
            set: |config, number| config.max_connections = narrow(number),
        },
        default: "512",
        help: "TCP connections served at once; further ones wait in the kernel's queue.",
    },
    Key {
        path: "control.group",
        kind: KeyKind::Name(|config| &mut config.control_group),
        default: "\"netskoop\"",
        help: "Group in /etc/group, or its number, whose members may change what runs, besides root. Empty means root only. Who may read is up to the mode and group of the socket.",
    },
    Key {
        path: "metrics.names",
        kind: KeyKind::Generations(|config| &mut config.names),
        default: "[\"netskoop\"]",
        help: "Generations of metric names that /metrics shows when the scraper does not choose with ?names=.",
    },
    Key {
        path: "metrics.labels",
        kind: KeyKind::Either("default", "target", |config| &mut config.target_labels),
        default: "\"default\"",
        help: "Labels of the inspector's names when the scraper does not choose with ?labels=. Release 0.1 of KubeSkoop had target_node, target_namespace, target_pod beside node, namespace, pod.",
    },
    Key {
        path: "metrics.set",
        kind: KeyKind::Either("core", "full", |config| &mut config.full_set),
        default: "\"core\"",
        help: "Which native metrics are shown: the core set, which is enough to see that something is wrong, or all.",
    },
    Key {
        path: "metrics.min_interval",
        kind: KeyKind::Duration {
            min: Duration::ZERO,
            max: Duration::from_secs(3600),
            field: |config| &mut config.min_interval,
        },
        default: "\"1s\"",
        help: "Scrapes that come within this time of a collection share its numbers.",
    },
    Key {
        path: "metrics.timeout",
        kind: KeyKind::Duration {
            min: Duration::from_millis(100),
            max: Duration::from_secs(300),
            field: |config| &mut config.timeout,
        },
        default: "\"10s\"",
        help: "A collection ends after this time; what is late is left out and counted.",
    },
    Key {
        path: "metrics.max_series",
        kind: KeyKind::Integer {
            min: 1_000,
            max: 10_000_000,
            get: |config| config.max_series,
            set: |config, number| config.max_series = number,
        },
        default: "100000",
        help: "Series of one answer at most, all entities together; entities beyond are added up as kind=\"other\", and counted.",
    },
    Key {
        path: "metrics.max_series_per_probe",
        kind: KeyKind::Integer {
            min: 100,
            max: 10_000_000,
            get: |config| config.max_series_per_probe,
            set: |config, number| config.max_series_per_probe = number,
        },
        default: "50000",
        help: "Series of one probe in an answer at most; entities beyond are added up as kind=\"other\", and counted.",
    },
    Key {
        path: "metrics.extra_labels",
        kind: KeyKind::ExtraLabels,
        default: "{}",
        help: "Labels for every series of namespaces, e.g. { app = \"${pod_label:app}\", ip = \"${pod_ip}\" }.",
    },
    Key {
        path: "metrics.extra_label_values",
        kind: KeyKind::Integer {
            min: 1,
            max: 100_000,
            get: |config| config.extra_label_values as u64,
            set: |config, number| config.extra_label_values = narrow(number),
        },
        default: "1000",
        help: "Different values of one extra label; namespaces beyond show __other__ for as long as they live.",
    },
    Key {
        path: "metrics.verbose",
        kind: KeyKind::Bool(|config| &mut config.verbose),
        default: "false",
        help: "Whether metrics.expose_labels holds, as in the first generation of exporters.",
    },
    Key {
        path: "metrics.expose_labels",
        kind: KeyKind::ExposedLabels,
        default: "[]",
        help: "Extra labels as the first generation of exporters had them: source, type (label or meta), replace.",
    },
    Key {
        path: "sources.containerd",
        kind: KeyKind::Sockets("containerd"),
        default: "\"auto\"",
        help: "Sockets of containerd; auto looks in the usual places, also those of k3s, k0s, Docker and microk8s.",
    },
    Key {
        path: "sources.cri",
        kind: KeyKind::Sockets("cri"),
        default: "\"auto\"",
        help: "Sockets of runtimes that speak CRI v1; auto looks for CRI-O and cri-dockerd.",
    },
    Key {
        path: "sources.docker",
        kind: KeyKind::Sockets("docker"),
        default: "\"auto\"",
        help: "Sockets of Docker.",
    },
    Key {
        path: "sources.podman",
        kind: KeyKind::Sockets("podman"),
        default: "\"auto\"",
        help: "Sockets of podman, or its directory of state files where the socket is off.",
    },
    Key {
        path: "sources.systemd",
        kind: KeyKind::Sockets("systemd"),
        default: "\"auto\"",
        help: "Sockets of the D-Bus system bus, for units and machines.",
    },
    Key {
        path: "events.history",
        kind: KeyKind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| config.history as u64,
            set: |config, number| config.history = narrow(number),
        },
        default: "8192",
        help: "Events kept in memory for `netskoopctl events --since`.",
    },
    Key {
        path: "events.rate",
        kind: KeyKind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| u64::from(config.event_rate),
            set: |config, number| config.event_rate = narrow(number),
        },
        default: "50",
        help: "Events a second that one type may send from one namespace in the long run; the others are counted.",
    },
    Key {
        path: "events.burst",
        kind: KeyKind::Integer {
            min: 1,
            max: 1_000_000,
            get: |config| u64::from(config.event_burst),
            set: |config, number| config.event_burst = narrow(number),
        },
        default: "200",
        help: "How many of them may come at once.",
    },
    Key {
        path: "limits.bpf_cpu",
        kind: KeyKind::Percent(|config| &mut config.bpf_cpu),
        default: "\"2%\"",
        help: "Part of one CPU that the BPF programs of one probe may take, measured for a second a minute, and 5 seconds later again if one takes more. A probe that takes more twice in a row is throttled for ten minutes if fewer events can help, and switched off for ten minutes if not, or if that was not enough; an event says so. One that only trouble runs (packetloss, tcpreset, tcpretrans) is not switched off before it takes ten times that on each CPU. \"0%\" allows any, and nothing is measured.",
    },
    Key {
        path: "paths.proc",
        kind: KeyKind::Directory(|config| &mut config.proc),
        default: "\"/proc\"",
        help: "Root of procfs. In a container: where the host's is mounted.",
    },
    Key {
        path: "paths.sys",
        kind: KeyKind::Directory(|config| &mut config.sys),
        default: "\"/sys\"",
        help: "Root of sysfs.",
    },
    Key {
        path: "paths.run",
        kind: KeyKind::Directory(|config| &mut config.run),
        default: "\"/run\"",
        help: "Root of runtime state: the control socket lives in netskoop/ below it, named namespaces in netns/.",
    },
];

/// What is wrong with a value, and where.
pub(super) type Faults = Vec<(Range<usize>, String)>;

impl Key {
    /// The type of the value and its range, in words.
    pub fn expected(&self) -> String {
        match &self.kind {
            KeyKind::Name(_) => "a text of at most 253 characters".to_owned(),
            KeyKind::Integer { min, max, .. } => format!("a whole number from {min} to {max}"),
            KeyKind::Duration { min, max, .. } => {
                format!("a duration from \"{}\" to \"{}\"", format_duration(*min), format_duration(*max))
            }
            KeyKind::Percent(_) => "a part of a CPU from \"0%\" to \"100%\"".to_owned(),
            KeyKind::Addresses(_) => {
                "a list of addresses with port, e.g. [\"[::]:9102\"] or [\"127.0.0.1:9102\"]".to_owned()
            }
            KeyKind::Generations(_) => {
                "a list of \"netskoop\", \"kubeskoop\", \"inspector\", not empty".to_owned()
            }
            KeyKind::Either(no, yes, _) => format!("\"{no}\" or \"{yes}\""),
            KeyKind::Directory(_) => "an absolute directory, e.g. \"/host/proc\"".to_owned(),
            KeyKind::Bool(_) => "true or false".to_owned(),
            KeyKind::Sockets(_) => sockets::EXPECTED.to_owned(),
            KeyKind::ExtraLabels => "a table of labels".to_owned(),
            KeyKind::ExposedLabels => "a list of labels".to_owned(),
        }
    }

    /// The value in force, as one would write it.
    pub fn show(&self, config: &Config) -> String {
        // The accessors borrow mutably because the same one serves for reading and for setting.
        let config = &mut config.clone();
        match &self.kind {
            KeyKind::Name(field) => quoted(field(config)),
            KeyKind::Integer { get, .. } => get(config).to_string(),
            KeyKind::Percent(field) => quoted(&format_percent(*field(config))),
            KeyKind::Duration { field, .. } => quoted(&format_duration(*field(config))),
            KeyKind::Addresses(field) => list(field(config).iter().map(ToString::to_string)),
            KeyKind::Generations(field) => list(field(config).iter().map(|names| names.as_str().to_owned())),
            KeyKind::Either(no, yes, field) => quoted(if *field(config) { yes } else { no }),
            KeyKind::Directory(field) => quoted(&field(config).to_string_lossy()),
            KeyKind::Bool(field) => field(config).to_string(),
            KeyKind::Sockets(name) => sockets::show(&config.choice(name)),
            KeyKind::ExtraLabels => labels::show_extra(&config.extra_labels),
            KeyKind::ExposedLabels => labels::show_exposed(&config.expose_labels),
        }
    }

    /// Checks a value and puts it into the configuration.
    pub(super) fn set(&self, config: &mut Config, value: &Spanned<DeValue<'_>>) -> Result<(), Faults> {
        let fault = |message| vec![(value.span(), message)];
        let mismatch = || fault(self.mismatch(value.get_ref()));
        match &self.kind {
            KeyKind::Integer { min, max, set, .. } => {
                let number = integer(value.get_ref()).ok_or_else(mismatch)?;
                let number = u64::try_from(number).ok().filter(|number| (min..=max).contains(&number));
                set(config, number.ok_or_else(|| fault(self.out_of_range(value.get_ref())))?);
            }
            KeyKind::Duration { min, max, field } => {
                *field(config) = self.duration(value.get_ref(), *min, *max).map_err(fault)?;
            }
            KeyKind::Addresses(field) => {
                let array = value.get_ref().as_array().ok_or_else(mismatch)?;
                *field(config) = addresses(array, value.span())?;
            }
            KeyKind::Generations(field) => {
                let array = value.get_ref().as_array().filter(|array| array.iter().len() > 0);
                *field(config) = each(array.ok_or_else(mismatch)?, generation)?;
            }
            KeyKind::Bool(field) => *field(config) = value.get_ref().as_bool().ok_or_else(mismatch)?,
            KeyKind::Sockets(name) => config.choose(name, sockets::choice(value)?),
            KeyKind::ExtraLabels => config.extra_labels = labels::extra(value)?,
            KeyKind::ExposedLabels => config.expose_labels = labels::exposed(value)?,
            KeyKind::Name(_) | KeyKind::Either(..) | KeyKind::Directory(_) | KeyKind::Percent(_) => {
                let text = value.get_ref().as_str().ok_or_else(mismatch)?;
                self.set_text(config, text).map_err(fault)?;
            }
        }
        Ok(())
    }

    fn set_text(&self, config: &mut Config, text: &str) -> Result<(), String> {
        match &self.kind {
            KeyKind::Name(field) if text.len() <= 253 && !text.chars().any(char::is_control) => {
                *field(config) = text.to_owned();
            }
            KeyKind::Either(no, yes, field) if text == *no || text == *yes => {
                *field(config) = text == *yes;
            }
            KeyKind::Percent(field) => *field(config) = parse_percent(text)?,
            KeyKind::Directory(field) if is_absolute(text) => *field(config) = text.into(),
            _ => return Err(format!("'{}' is not {}", shortened(text), self.expected())),
        }
        Ok(())
    }

    fn duration(&self, value: &DeValue<'_>, min: Duration, max: Duration) -> Result<Duration, String> {
        if let DeValue::Integer(number) = value {
            if integer(value).is_some_and(|number| number < 0) {
                return Err(self.out_of_range(value));
            }
            return Err(format!("{number} has no unit; write e.g. \"{number}s\""));
        }
        let text = value.as_str().ok_or_else(|| self.mismatch(value))?;
        let duration = parse_duration(text)?;
        if (min..=max).contains(&duration) {
            return Ok(duration);
        }
        Err(self.out_of_range(value))
    }

    fn mismatch(&self, value: &DeValue<'_>) -> String {
        format!("expected {}, found {}", self.expected(), describe(value))
    }

    fn out_of_range(&self, value: &DeValue<'_>) -> String {
        let text = match value {
            DeValue::Integer(number) => number.to_string(),
            other => other.as_str().map(shortened).unwrap_or_default(),
        };
        format!("{text} is out of range; expected {}", self.expected())
    }
}

/// The number of a TOML integer; `None` for everything else. Numbers too large for any key are the largest number.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    Some(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
}

/// A value in words, for "found ...".
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text '{}'", shortened(text)),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(array) if array.iter().len() == 0 => "an empty list".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Text for an error message: one line of bearable length.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        short += "...";
    }
    short
}

/// Reads every element; all faults are reported, and one that comes twice is a fault.
pub(super) fn each<T: Clone + Eq + std::hash::Hash>(
    array: &DeArray<'_>,
    read: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> Result<Vec<T>, Faults> {
    let (mut values, mut seen, mut faults) = (Vec::new(), HashSet::new(), Faults::new());
    for element in array.iter() {
        match read(element.get_ref()) {
            Ok(value) if !seen.insert(value.clone()) => {
                faults
                    .push((element.span(), format!("{} is in the list twice", describe(element.get_ref()))));
            }
            Ok(value) => values.push(value),
            Err(message) => faults.push((element.span(), message)),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

fn addresses(array: &DeArray<'_>, span: Range<usize>) -> Result<Vec<SocketAddr>, Faults> {
    let addresses = each(array, address)?;
    if addresses.len() > MAX_ADDRESSES {
        return Err(vec![(span, format!("more than {MAX_ADDRESSES} addresses"))]);
    }
    Ok(addresses)
}

fn address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let hint = "write e.g. \"[::]:9102\" for every address or \"127.0.0.1:9102\"";
    let Some(text) = value.as_str() else {
        return Err(format!("expected an address with port, found {}; {hint}", describe(value)));
    };
    text.parse().map_err(|_| format!("'{}' is not an address with port; {hint}", shortened(text)))
}

fn generation(value: &DeValue<'_>) -> Result<Names, String> {
    let found = value.as_str().and_then(|text| Names::ALL.into_iter().find(|names| names.as_str() == text));
    found.ok_or_else(|| {
        format!("expected \"netskoop\", \"kubeskoop\" or \"inspector\", found {}", describe(value))
    })
}

/// Whether a text is a path that means the same wherever one is.
pub(super) fn is_absolute(text: &str) -> bool {
    let path = Path::new(text);
    path.is_absolute() && !text.contains('\0') && !path.components().any(|part| part == Component::ParentDir)
}

pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub(super) fn list(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.map(|word| quoted(&word)).collect();
    format!("[{}]", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::de::DeTable;

    #[test]
    fn defaults_are_what_an_empty_file_means() {
        let default = Config::default();
        for key in KEYS {
            assert_eq!(key.show(&default), key.default, "{}", key.path);
        }
    }

    #[test]
    fn a_default_can_be_written_into_the_file() {
        let mut other = Config {
            node_name: "x".into(),
            listen: vec![],
            max_connections: 1,
            control_group: "x".into(),
            names: vec![],
            full_set: true,
            min_interval: Duration::MAX,
            timeout: Duration::MAX,
            max_series: 1,
            history: 1,
            event_rate: 1,
            event_burst: 1,
            bpf_cpu: 1,
            proc: "/x".into(),
            sys: "/x".into(),
            run: "/x".into(),
            extra_label_values: 1,
            verbose: true,
            sources: [("docker", crate::resolve::runtimes::Choice::Off)].into(),
            ..Config::default()
        };
        for key in KEYS {
            let text = format!("x = {}", key.default);
            let table = DeTable::parse(&text).unwrap();
            key.set(&mut other, &table.get_ref()["x"]).unwrap();
        }
        assert_eq!(other, Config::default());
    }

    #[test]
    fn keys_are_unique_and_explained() {
        let paths: HashSet<&str> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        for key in KEYS {
            assert!(key.help.ends_with('.'), "{}", key.path);
            assert!(!key.path.starts_with("probes"), "{}", key.path);
        }
    }
}
