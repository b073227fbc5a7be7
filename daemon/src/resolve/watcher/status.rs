//! What the watcher says of itself and of the sources of identity.

use super::Watcher;
use crate::resolve::book::{Health, SourceReport, State};
use crate::resolve::directory::Directory;
use netskoop_api::{SourceCounts, SourceStatus};
use rustc_hash::FxHashMap;
use std::time::Instant;

/// A source with the moment when it last said something.
type Source = (SourceStatus, Option<Instant>);

impl Watcher {
    /// State of the sources of identity: those that ask other programs first.
    pub fn status(&self) -> Vec<SourceStatus> {
        self.sources().into_iter().map(|(status, _)| status).collect()
    }

    /// The same with the moments when they last said something.
    pub fn sources(&self) -> Vec<Source> {
        let named = named(&self.directory());
        let reports = shown(self.book().reports());
        let mut all: Vec<Source> =
            reports.iter().map(|report| (of_report(report, &named), report.health.last_event)).collect();
        all.extend(self.own_sources(&named));
        all
    }

    fn own_sources(&self, named: &FxHashMap<String, u32>) -> Vec<Source> {
        let health = self.health().clone();
        let source = |name: &str, state: String, at: Option<Instant>, entities: u32| {
            let status = SourceStatus {
                name: name.into(),
                state,
                last_event_seconds: ago(at),
                entities,
                ..SourceStatus::default()
            };
            (status, at)
        };
        let count = |source: &str| named.get(source).copied().unwrap_or(0);
        let processes = match &health.error {
            Some(error) => format!("failed: {error}"),
            None if health.hidden > 0 => {
                let processes = if health.hidden == 1 { "process" } else { "processes" };
                format!("{} {processes} cannot be looked at: CAP_SYS_PTRACE is missing", health.hidden)
            }
            None => "scanned".into(),
        };
        let mounts = if health.watching { "watching" } else { "absent until `ip netns` is first used" };
        let hooks =
            if health.hooked { "watching" } else { "absent: /proc is scanned every 5 s and at each scrape" };
        vec![
            source("processes", processes, health.last_scan, count("process") + count("process 1")),
            source("cgroup", "from the processes".into(), health.last_scan, count("cgroup")),
            source("/run/netns", mounts.into(), health.last_mount_event, count("/run/netns")),
            source("kernel hooks", hooks.into(), health.last_kernel_event, 0),
        ]
    }
}

/// How many entities have their name from each source.
fn named(directory: &Directory) -> FxHashMap<String, u32> {
    let mut named = FxHashMap::default();
    let tenants = directory.tenants().iter().filter_map(|tenant| Some(&tenant.claims.first()?.source));
    for source in directory.entries().map(|entry| &entry.namespace.identity.source).chain(tenants) {
        *named.entry(source.to_string()).or_default() += 1;
    }
    named
}

/// Of the places where a source could be those that matter: where it is, else the most usual one.
fn shown(reports: Vec<SourceReport>) -> Vec<SourceReport> {
    let kind = |report: &SourceReport| report.name.split(' ').next().unwrap_or_default().to_owned();
    let absent = |report: &SourceReport| matches!(report.health.state, State::Absent(_));
    let present: Vec<String> = reports.iter().filter(|report| !absent(report)).map(kind).collect();
    let is_main = |report: &SourceReport| *report.name == *kind(report) && !present.contains(&kind(report));
    reports.into_iter().filter(|report| !absent(report) || is_main(report)).collect()
}

fn of_report(report: &SourceReport, named: &FxHashMap<String, u32>) -> SourceStatus {
    let health = &report.health;
    SourceStatus {
        name: report.name.to_string(),
        state: phrase(health),
        last_event_seconds: ago(health.last_event),
        entities: named.get(&*report.name).copied().unwrap_or(0),
        connected_seconds: ago(health.connected),
        last_error: health.last_error.clone(),
        counts: Some(SourceCounts {
            workloads: report.workloads as u64,
            events: health.events,
            lists: health.lists,
            failures: health.failures,
            questions: health.questions,
            refused: health.refused,
        }),
    }
}

fn phrase(health: &Health) -> String {
    match &health.state {
        State::Absent(why) => format!("absent: {why}"),
        State::Idle(why) => format!("idle: {why}"),
        State::Connecting => "connecting".into(),
        State::Connected(what) => format!("connected to {what}"),
        State::Failed(why) => format!("failed: {why}"),
    }
}

fn ago(at: Option<Instant>) -> Option<u64> {
    at.map(|at| at.elapsed().as_secs())
}
