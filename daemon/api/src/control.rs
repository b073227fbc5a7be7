//! Requests and answers of the control socket that are not about one probe or entity.

use crate::{EntityRef, StreamCounts};
use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorInfo,
}

/// What went wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// Stable word: `no_such_probe`, `no_such_entity`, `bad_request`, `not_available`, ...
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Identifies this run.
    pub boot: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Name of the node.
    pub node: String,
    /// Kernel release.
    pub kernel: String,
    /// Where the kernel's type information came from, or why there is none.
    pub btf: String,
    /// URLs on which metrics are served.
    pub metrics_urls: Vec<String>,
    /// Entities by kind.
    pub entities: Vec<KindCount>,
    /// Sources of identity.
    pub sources: Vec<SourceStatus>,
    /// Probes by state.
    pub probes: ProbeCounts,
    /// The last collection.
    pub collection: CollectionStatus,
    /// The event stream.
    pub events: EventStatus,
    /// What the daemon itself uses.
    pub cost: CostStatus,
    /// Reads that do not return.
    #[serde(default)]
    pub wedged: Vec<WedgedRead>,
    /// Sentences about what is not as it should be.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Number of entities of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    /// `pod`, `unit`, ...
    pub kind: String,
    /// How many.
    pub count: u32,
}

/// State of one source of identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `processes`, `/run/netns`, `kernel hooks`, ...
    pub name: String,
    /// One phrase: `watching`, `absent: ...`.
    pub state: String,
    /// Seconds since it last said something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_seconds: Option<u64>,
    /// How many entities it names.
    pub entities: u32,
    /// For how long it is connected; absent while it is not, or if it is nothing to connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_seconds: Option<u64>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What it has said and how often; absent for the kernel's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<SourceCounts>,
}

/// What a source of identity has said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Containers, pods, units that it knows now.
    pub workloads: u64,
    /// Things it said by itself.
    pub events: u64,
    /// Full lists it gave.
    pub lists: u64,
    /// Times it failed.
    pub failures: u64,
    /// Questions it was asked.
    pub questions: u64,
    /// Workloads that found no room.
    pub refused: u64,
}

/// Number of probes by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCounts {
    /// Working.
    pub on: u32,
    /// Not wanted.
    pub off: u32,
    /// Wanted, and failing.
    pub failed: u32,
    /// Wanted, and switched off for a while because of what they cost.
    #[serde(default)]
    pub paused: u32,
    /// Names of those that cannot work here.
    pub not_available: Vec<String>,
}

/// The last collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CollectionStatus {
    /// Seconds since it ended; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// CPU time it took, nanoseconds.
    pub cpu_ns: u64,
    /// Wall time it took, nanoseconds.
    pub wall_ns: u64,
    /// Series of the last rendered answer.
    pub series: u64,
    /// Bytes of the last rendered answer.
    pub bytes: u64,
    /// Namespaces read.
    pub namespaces: u32,
    /// Namespaces left out because they were late.
    pub late: u32,
    /// Series left out by `metrics.max_series`.
    pub over_budget: u64,
}

/// The event stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStatus {
    /// Sum over the probes.
    pub kernel: StreamCounts,
    /// Taken from the ring buffer.
    pub received: u64,
    /// Could not be decoded.
    pub malformed: u64,
    /// Lost between the ring buffer and the history.
    #[serde(default)]
    pub overrun: u64,
    /// Put into the history.
    pub delivered: u64,
    /// Left out because their probe's options `entities` and `ignore_entities` do not want them.
    #[serde(default)]
    pub filtered_by_entity: u64,
    /// Events in the history now.
    pub kept: u64,
    /// Sequence number of the newest one.
    pub last_seq: u64,
    /// Clients that follow the stream now.
    pub followers: u32,
    /// Events that followers were told they missed.
    pub missed_by_followers: u64,
    /// Times that a kept event was named again, since a better name had come.
    #[serde(default)]
    pub relabelled: u64,
}

/// What the daemon itself uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostStatus {
    /// CPU time since the start, seconds.
    pub cpu_seconds: f64,
    /// Mean share of one core since the start, percent.
    pub cpu_percent: f64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
}

/// A system call that has not returned by its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WedgedRead {
    /// Which source reads.
    pub source: String,
    /// What it reads: the file, and the entity's name.
    pub subject: String,
    /// For how long, seconds.
    pub since_seconds: u64,
}

/// Answer of `GET /v1/metrics?entity=..`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntityMetrics {
    /// Whose values.
    pub entity: EntityRef,
    /// When they were read (RFC 3339).
    pub time: String,
    /// Monotonic time of the reading in nanoseconds, for rates.
    pub monotonic_ns: u64,
    /// The values, by probe.
    pub values: Vec<MetricValue>,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// Probe.
    pub probe: String,
    /// Full native metric name.
    pub metric: String,
    /// Short name within the probe: `active_opens`.
    pub name: String,
    /// Labels beside the entity's, as `name="value"` joined by commas; empty if none.
    #[serde(default)]
    pub labels: String,
    /// `counter` or `gauge`.
    pub kind: String,
    /// The value.
    pub value: f64,
    /// Set where growth means trouble: what it means, a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<String>,
}

/// Answer of `POST /v1/config/import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The configuration in our words.
    pub toml: String,
    /// What has no counterpart, and why, one sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Answer of `POST /v1/reload`, and of `GET /v1/config/diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What changed, one sentence each; empty if nothing did.
    pub changes: Vec<String>,
}

/// Answer of `POST /v1/selftest`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Whether no check failed.
    pub passed: bool,
    /// How long it took.
    pub seconds: f64,
    /// The checks, in the order of the probes.
    pub checks: Vec<SelfCheck>,
}

/// One check of a self-test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// The probe that was tried; `selftest` for what was left behind.
    pub probe: String,
    /// How it ended.
    pub result: SelfResult,
    /// What was found, or why nothing was tried: one sentence.
    pub says: String,
    /// The events that came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<SelfEvent>,
    /// The metric that was read, with the labels beside the entity's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// By how much it grew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown: Option<f64>,
    /// By how much it had to grow, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// Whether by so much exactly: nothing else makes it grow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelfResult {
    /// Everything came as it should.
    Ok,
    /// Something did not, or not under the right name.
    Failed,
    /// It was not tried.
    Skipped,
}

impl SelfResult {
    /// The word used in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            SelfResult::Ok => "ok",
            SelfResult::Failed => "failed",
            SelfResult::Skipped => "skipped",
        }
    }
}

/// An event that came as it should.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfEvent {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version of IP: `v4` or `v6`.
    pub version: String,
    /// Its number in the stream.
    pub seq: u64,
    /// Time from the beginning of what it tells of to the kernel's own time of it, milliseconds.
    pub milliseconds: f64,
    /// Name of the entity that it was told of.
    pub entity: String,
}
