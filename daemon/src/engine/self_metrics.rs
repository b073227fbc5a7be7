//! What the daemon says of itself on `/metrics`: few series, so the `prometheus` crate writes them. There is one
//! `netskoop_entity_info` per entity, which is many: it is written as the client takes it, like the probes' metrics.

use netskoop_api::{ProbeState, SourceStatus, StateName, Status};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

/// Name and help of what is written with all that is known of each entity.
pub const ENTITY_INFO: (&str, &str) = (
    "netskoop_entity_info",
    "What is known of an entity, as labels; always 1. Join it by kind and name, pods also by namespace and pod.",
);

/// Names and helps of everything here, for the reference.
pub static SELF_METRICS: &[(&str, &str, bool)] = &[
    ("netskoop_build_info", "Version of the daemon and of the kernel; always 1.", false),
    (ENTITY_INFO.0, ENTITY_INFO.1, false),
    ("netskoop_entities", "Network namespaces by kind of owner.", false),
    ("netskoop_probe_enabled", "Whether the probe is wanted on this node.", false),
    ("netskoop_probe_success", "Whether the probe worked at the last collection.", false),
    ("netskoop_probe_duration_seconds", "CPU time of the last collection of the probe's sources.", false),
    (
        "netskoop_probe_cpu_seconds_total",
        "CPU time of the probe's sources and, if BPF statistics are on, programs.",
        true,
    ),
    (
        "netskoop_probe_retries_total",
        "Lists that the probe's sources asked the kernel for again, because they changed or were cut meanwhile.",
        true,
    ),
    (
        "netskoop_probe_bpf_cpu_ratio",
        "Part of one CPU that the probe's BPF programs took when they were last measured, for a second a minute.",
        false,
    ),
    (
        "netskoop_probe_throttled",
        "1 while the probe sends few events, or is switched off for ten minutes, since its BPF programs took more than \
         limits.bpf_cpu allows; else there is no such series.",
        false,
    ),
    ("netskoop_events_seen_total", "Events that passed a probe's filters in the kernel.", true),
    ("netskoop_events_submitted_total", "Events a probe wrote to the ring buffer.", true),
    ("netskoop_events_ring_full_total", "Events lost because the ring buffer was full.", true),
    ("netskoop_events_suppressed_total", "Events withheld by the rate limit in the kernel.", true),
    (
        "netskoop_events_filtered_total",
        "Events that a probe's options ports, ignore_ports and protocols leave out in the kernel; they are not among those seen.",
        true,
    ),
    (
        "netskoop_events_missed_total",
        "Hook runs that the kernel skipped because the program was running; for conntrack, events that found no room in the socket.",
        true,
    ),
    (
        "netskoop_bpf_map_full_total",
        "What found no room in a BPF map: it was not counted, or not followed from its begin to its end, or the events of its \
         namespace are withheld. What is counted by five-tuple is none of it: old tuples make room there.",
        true,
    ),
    ("netskoop_events_received_total", "Records taken from the ring buffer.", true),
    ("netskoop_events_malformed_total", "Records that could not be decoded.", true),
    ("netskoop_events_overrun_total", "Events lost between the ring buffer and the history.", true),
    ("netskoop_events_delivered_total", "Events put into the history.", true),
    (
        "netskoop_events_filtered_by_entity_total",
        "Events left out because of the options entities and ignore_entities of their probe.",
        true,
    ),
    ("netskoop_events_missed_by_followers_total", "Events that clients were told they missed.", true),
    ("netskoop_events_relabelled_total", "Times that an event in the history got a better name.", true),
    ("netskoop_collection_cpu_seconds", "CPU time of the last collection.", false),
    ("netskoop_collection_duration_seconds", "Wall time of the last collection.", false),
    (
        "netskoop_collection_late_namespaces",
        "Namespaces left out of the last collection for lack of time.",
        false,
    ),
    (
        "netskoop_series_over_budget",
        "Series that found no room under their own names: they are added up as kind=\"other\" (metrics.max_series, metrics.max_series_per_probe).",
        false,
    ),
    ("netskoop_probe_series_over_budget", "Series of the probe among these, where there are any.", false),
    (
        "netskoop_collection_over_budget",
        "Rows and remembered interfaces of the last collection that found no room.",
        false,
    ),
    ("netskoop_wedged_reads", "Kernel reads that have not returned by their deadline.", false),
    ("netskoop_resolver_connected", "Whether the source of names is connected.", false),
    ("netskoop_resolver_entities", "Entities that have their name from the source.", false),
    ("netskoop_resolver_workloads", "Containers, pods, units and machines that the source knows.", false),
    ("netskoop_resolver_events_total", "Events that the source sent.", true),
    ("netskoop_resolver_lists_total", "Times that the source was asked for all it knows.", true),
    ("netskoop_resolver_failures_total", "Times that the source failed.", true),
    ("netskoop_resolver_questions_total", "Questions that the source was asked.", true),
    ("netskoop_resolver_refused_total", "Workloads of the source that found no room.", true),
    (
        "netskoop_resolver_last_event_timestamp_seconds",
        "When the source last said something, in seconds since 1970.",
        false,
    ),
    (
        "netskoop_extra_labels_limited",
        "Namespaces that show `__other__` for the extra label, because it has too many values.",
        false,
    ),
    (
        "netskoop_config_last_reload_successful",
        "Whether the last reload of the configuration succeeded.",
        false,
    ),
    ("process_cpu_seconds_total", "CPU time of the daemon.", true),
    ("process_resident_memory_bytes", "Resident memory of the daemon.", false),
    ("process_start_time_seconds", "When the daemon started, in seconds since 1970.", false),
    ("process_open_fds", "Open file descriptors of the daemon.", false),
    ("process_threads", "Threads of the daemon.", false),
];

/// A source of names, and when it last said something, in seconds since 1970.
pub type Resolver = (SourceStatus, Option<f64>);

/// What is not in the status.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// The sources of names.
    pub resolvers: Vec<Resolver>,
    /// The extra labels, each with the number of namespaces for which it has too many values.
    pub limited: Vec<(String, usize)>,
    /// Series of each probe that are added up because they found no room.
    pub added_up: Vec<(&'static str, u64)>,
    /// Whether the last reload succeeded.
    pub reload_ok: bool,
    /// Rows and remembered objects of the last collection that found no room.
    pub over_budget: u64,
    /// Seconds since 1970.
    pub start_time: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Threads.
    pub threads: u64,
}

/// How a probe did, for its metrics.
#[derive(Clone, Debug)]
pub struct ProbeRun {
    /// Its name.
    pub name: &'static str,
    /// How it stands.
    pub state: ProbeState,
    /// Whether its sources read everything; `None` if this node has nothing of what they read, which is nothing to be
    /// alarmed about.
    pub success: Option<bool>,
    /// CPU time since the start, seconds.
    pub cpu_seconds: f64,
    /// Lists that its sources asked for again since the start.
    pub retries: u64,
    /// Whether it sends few events, because of its cost.
    pub throttled: bool,
}

/// The text of all self metrics.
pub fn render(status: &Status, probes: &[ProbeRun], extra: &Extra) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.one("netskoop_build_info", &[("version", &status.version), ("kernel", &status.kernel)], 1.0);
    for kind in &status.entities {
        writer.one("netskoop_entities", &[("kind", &kind.kind)], f64::from(kind.count));
    }
    probe_metrics(&mut writer, probes);
    event_metrics(&mut writer, status);
    resolver_metrics(&mut writer, &extra.resolvers);
    for (label, limited) in &extra.limited {
        writer.one("netskoop_extra_labels_limited", &[("label", label)], *limited as f64);
    }
    let collection = &status.collection;
    writer.one("netskoop_collection_cpu_seconds", &[], seconds(collection.cpu_ns));
    writer.one("netskoop_collection_duration_seconds", &[], seconds(collection.wall_ns));
    writer.one("netskoop_collection_late_namespaces", &[], f64::from(collection.late));
    writer.one("netskoop_series_over_budget", &[], collection.over_budget as f64);
    for (probe, series) in &extra.added_up {
        writer.one("netskoop_probe_series_over_budget", &[("probe", probe)], *series as f64);
    }
    writer.one("netskoop_collection_over_budget", &[], extra.over_budget as f64);
    writer.one("netskoop_wedged_reads", &[], status.wedged.len() as f64);
    writer.one("netskoop_config_last_reload_successful", &[], f64::from(u8::from(extra.reload_ok)));
    writer.one("process_cpu_seconds_total", &[], status.cost.cpu_seconds);
    writer.one("process_resident_memory_bytes", &[], status.cost.resident_bytes as f64);
    writer.one("process_start_time_seconds", &[], extra.start_time);
    writer.one("process_open_fds", &[], extra.open_fds as f64);
    writer.one("process_threads", &[], extra.threads as f64);
    writer.finish()
}

fn probe_metrics(writer: &mut Writer, probes: &[ProbeRun]) {
    for ProbeRun { name, state: run, success, cpu_seconds, retries, throttled } in probes {
        let probe = [("probe", *name)];
        let state = run.state;
        let wanted = !matches!(state, StateName::Off);
        writer.one("netskoop_probe_enabled", &probe, f64::from(u8::from(wanted)));
        if !wanted {
            continue;
        }
        if let Some(success) = success {
            let success = *success && state == StateName::On;
            writer.one("netskoop_probe_success", &probe, f64::from(u8::from(success)));
        }
        if let Some(cpu) = run.last_collection_ns {
            writer.one("netskoop_probe_duration_seconds", &probe, seconds(cpu));
            writer.one("netskoop_probe_retries_total", &probe, *retries as f64);
        }
        writer.one("netskoop_probe_cpu_seconds_total", &probe, *cpu_seconds);
        // Hardly ever: there is a series only while it is so.
        if *throttled || state == StateName::Paused {
            writer.one("netskoop_probe_throttled", &probe, 1.0);
        }
        if let Some(ratio) = run.bpf_cpu_ratio {
            writer.one("netskoop_probe_bpf_cpu_ratio", &probe, ratio);
        }
        let Some(stream) = run.stream else { continue };
        for (name, value) in [
            ("netskoop_events_seen_total", stream.seen),
            ("netskoop_events_submitted_total", stream.submitted),
            ("netskoop_events_ring_full_total", stream.ring_full),
            ("netskoop_events_suppressed_total", stream.suppressed),
            ("netskoop_events_filtered_total", stream.filtered),
            ("netskoop_events_missed_total", stream.missed),
            ("netskoop_bpf_map_full_total", stream.map_full),
        ] {
            writer.one(name, &probe, value as f64);
        }
    }
}

fn event_metrics(writer: &mut Writer, status: &Status) {
    let events = &status.events;
    for (name, value) in [
        ("netskoop_events_received_total", events.received),
        ("netskoop_events_malformed_total", events.malformed),
        ("netskoop_events_overrun_total", events.overrun),
        ("netskoop_events_delivered_total", events.delivered),
        ("netskoop_events_filtered_by_entity_total", events.filtered_by_entity),
        ("netskoop_events_missed_by_followers_total", events.missed_by_followers),
        ("netskoop_events_relabelled_total", events.relabelled),
    ] {
        writer.one(name, &[], value as f64);
    }
}

fn resolver_metrics(writer: &mut Writer, resolvers: &[Resolver]) {
    for (source, last_event) in resolvers {
        let label = [("source", source.name.as_str())];
        writer.one("netskoop_resolver_entities", &label, f64::from(source.entities));
        if let Some(at) = last_event {
            writer.one("netskoop_resolver_last_event_timestamp_seconds", &label, *at);
        }
        // The kernel's own files are nothing to connect to.
        let Some(counts) = &source.counts else { continue };
        let connected = f64::from(u8::from(source.connected_seconds.is_some()));
        writer.one("netskoop_resolver_connected", &label, connected);
        for (name, value) in [
            ("netskoop_resolver_workloads", counts.workloads),
            ("netskoop_resolver_events_total", counts.events),
            ("netskoop_resolver_lists_total", counts.lists),
            ("netskoop_resolver_failures_total", counts.failures),
            ("netskoop_resolver_questions_total", counts.questions),
            ("netskoop_resolver_refused_total", counts.refused),
        ] {
            writer.one(name, &label, value as f64);
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[derive(Default)]
struct Writer {
    families: Vec<MetricFamily>,
}

impl Writer {
    fn one(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        let Some((_, help, counter)) = SELF_METRICS.iter().find(|(known, _, _)| *known == name) else {
            return;
        };
        let mut metric = Metric::default();
        metric.set_label(labels.iter().map(|(name, value)| pair(name, value)).collect());
        if *counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        if let Some(family) = self.families.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help((*help).to_owned());
        family.set_field_type(if *counter { MetricType::COUNTER } else { MetricType::GAUGE });
        family.mut_metric().push(metric);
        self.families.push(family);
    }

    fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.families, &mut out) {
            tracing::error!(%error, "cannot write the daemon's own metrics");
        }
        out
    }
}
