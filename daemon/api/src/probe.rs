//! Probes as the daemon describes them: declaration and state in one answer, so that clients hold no list of their own.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A probe: what it is, and how it stands on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeInfo {
    /// The one name: of its files, metrics, configuration table and command argument.
    pub name: String,
    /// Older names that requests and configuration accept.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// One sentence.
    pub summary: String,
    /// When to use it.
    pub when: String,
    /// What it usually finds.
    pub finds: String,
    /// Overhead class: `low`, `medium` or `high`.
    pub cost: String,
    /// What it reads or which hooks it needs.
    pub needs: String,
    /// Whether it is on when nothing says otherwise.
    pub default_on: bool,
    /// Options with their values in force.
    #[serde(default)]
    pub options: Vec<OptionInfo>,
    /// Metric families it shows.
    #[serde(default)]
    pub metrics: Vec<MetricInfo>,
    /// Events it sends.
    #[serde(default)]
    pub events: Vec<EventInfo>,
    /// How it stands now.
    pub state: ProbeState,
}

/// How a probe stands on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeState {
    /// `on`, `off`, `starting`, `failed` or `n/a`.
    pub state: StateName,
    /// Why it is `failed` or `n/a`, or what limits it while `on`: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it is attached to or reads: `procfs`, `tp_btf`, ...; absent while not on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Which layer decided on/off: `default`, `config FILE:LINE`, `drop-in FILE`, `runtime`, `lease`.
    pub decided_by: String,
    /// Seconds until a lease (`--for`) runs out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// CPU time of the last collection, in nanoseconds, for probes that are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_collection_ns: Option<u64>,
    /// Mean time of a run of its programs, in nanoseconds, where BPF statistics are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_ns: Option<u64>,
    /// Part of one CPU that its BPF programs took when they were last measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bpf_cpu_ratio: Option<f64>,
    /// Counts of its event stream, for probes with hooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamCounts>,
    /// Ids of its loaded BPF programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<u32>,
}

/// Short word for the state of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateName {
    /// Working.
    #[serde(rename = "on")]
    On,
    /// Not wanted.
    #[serde(rename = "off")]
    Off,
    /// Wanted, hooks being attached.
    #[serde(rename = "starting")]
    Starting,
    /// Wanted, and an error keeps it from working; it is retried.
    #[serde(rename = "failed")]
    Failed,
    /// Wanted, and switched off for a while, because it cost more than `limits.bpf_cpu`.
    #[serde(rename = "paused")]
    Paused,
    /// Cannot work on this kernel or with these privileges.
    #[serde(rename = "n/a")]
    NotAvailable,
}

impl StateName {
    /// The word used in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            StateName::On => "on",
            StateName::Off => "off",
            StateName::Starting => "starting",
            StateName::Failed => "failed",
            StateName::Paused => "paused",
            StateName::NotAvailable => "n/a",
        }
    }
}

/// Where the events of a probe went: fired = seen + missed; seen = submitted + ring_full + suppressed (when quiescent).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCounts {
    /// Hook invocations that the kernel skipped because the program was already running on that CPU.
    pub missed: u64,
    /// Candidates that passed the filters.
    pub seen: u64,
    /// Written to the ring buffer.
    pub submitted: u64,
    /// Lost: the ring buffer was full.
    pub ring_full: u64,
    /// Withheld by the rate limit in the kernel.
    pub suppressed: u64,
    /// What found no room in a BPF map: it was not counted, or not followed from its begin to its end, or the events of its
    /// namespace are withheld. What is counted by five-tuple is none of it: old tuples make room there.
    pub map_full: u64,
    /// Left out by the probe's options `ports`, `ignore_ports` and `protocols`, and not among those seen.
    #[serde(default)]
    pub filtered: u64,
}

/// An option of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionInfo {
    /// Key under `[probes.<name>]`.
    pub name: String,
    /// `bool`, `integer`, `duration`, `list` or `choice`.
    pub kind: String,
    /// Range or choices, in words; empty if any value of the type will do.
    #[serde(default)]
    pub range: String,
    /// Value when nothing says otherwise.
    pub default: OptionValue,
    /// Value in force.
    pub value: OptionValue,
    /// One sentence.
    pub help: String,
    /// The words that it can have on this kernel, where that is more than `range` can tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
}

/// Value of an option. Durations are text (`100ms`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Integer(u64),
    /// A word or a duration.
    Text(String),
    /// Several words.
    List(Vec<String>),
}

impl std::fmt::Display for OptionValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OptionValue::Bool(b) => b.fmt(f),
            OptionValue::Integer(n) => n.fmt(f),
            OptionValue::Text(t) => t.fmt(f),
            OptionValue::List(l) => l.join(",").fmt(f),
        }
    }
}

/// A metric family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricInfo {
    /// Full name.
    pub name: String,
    /// `netskoop`, `kubeskoop` or `inspector`.
    pub names: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Labels beside those of the entity.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Whether the default set shows it.
    pub core: bool,
    /// What it counts.
    pub help: String,
}

/// A type of event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventInfo {
    /// Upper-case type name.
    pub name: String,
    /// Older names that filters accept.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Names of its fields.
    #[serde(default)]
    pub fields: Vec<String>,
    /// What happened.
    pub help: String,
}

/// Body of `PATCH /v1/probes/{name}`: what is named changes, the rest stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePatch {
    /// Switch on or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Options to set, as text; lists are comma-separated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Only for this long (`10m`), then back to what was.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Until changed again, without touching the configuration.
    #[serde(default)]
    pub runtime: bool,
}

/// Answer of `PATCH /v1/probes/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeChanged {
    /// Whether anything changed at all.
    pub changed: bool,
    /// What was done, one sentence.
    pub message: String,
    /// The probe as it stands now.
    pub probe: ProbeInfo,
}
