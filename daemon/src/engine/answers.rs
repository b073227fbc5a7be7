//! What the engine tells: status, probes, entities, values of one entity, events.

use super::self_metrics::{self, Extra, ProbeRun};
use super::{Engine, LastPass, Slot, lock, unix_now};
use crate::config::{option_default, option_kind, option_range};
use crate::declare::{ColumnSet, Kind, Names, Probe};
use crate::engine::pass::{PassError, Snapshot};
use crate::engine::select::Selection;
use crate::probes::PROBES;
use crate::resolve::directory::{Directory, Entry, count_kinds};
use crate::server::exposition;
use crate::sources::addresses::ADDRESSES;
use crate::table::Subject;
use netskoop_api::{
    CollectionStatus, CostStatus, Entities, Entity, EntityMetrics, Event, EventInfo, EventStatus, MetricInfo,
    MetricValue, OptionInfo, ProbeCounts, ProbeInfo, ProbeState, StateName, Status, StreamCounts, WedgedRead,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Nobody has that name.
#[derive(Debug, thiserror::Error)]
#[error("no entity '{0}'")]
pub struct NoSuchEntity(pub String);

/// Which events a client wants.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Types, by their names in force; all if empty.
    pub kinds: Vec<&'static str>,
    /// Name, pod, or inode of the entity; all if `None`.
    pub entity: Option<String>,
    /// Not older than this date (RFC 3339 sorts as text only in one zone, so it is compared as a time).
    pub since: Option<jiff::Timestamp>,
}

impl EventFilter {
    /// Whether the event is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| *kind == event.kind);
        let entity = self.entity.as_ref().is_none_or(|wanted| {
            event.entity.as_ref().is_some_and(|entity| {
                entity.name == *wanted
                    || entity.pod.as_ref() == Some(wanted)
                    || wanted.parse() == Ok(entity.netns)
            })
        });
        let recent =
            self.since.is_none_or(|since| event.time.parse().is_ok_and(|t: jiff::Timestamp| t >= since));
        kind && entity && recent
    }
}

/// The name in force of an event type, also by an older name and in any case.
pub(super) fn event_type(text: &str) -> Option<&'static str> {
    PROBES.iter().flat_map(|probe| probe.events).find_map(|event| {
        let same = |name: &str| name.eq_ignore_ascii_case(text);
        (same(event.name) || event.aliases.iter().any(|alias| same(alias))).then_some(event.name)
    })
}

impl Engine {
    /// The name in force of an event type, or a sentence with a suggestion.
    pub fn event_type(&self, text: &str) -> Result<&'static str, String> {
        event_type(text).ok_or_else(|| {
            let known = PROBES.iter().flat_map(|probe| probe.events).map(|event| event.name);
            let upper = text.to_ascii_uppercase();
            let hint = crate::config::closest(&upper, known);
            let hint = hint.map(|close| format!(". Did you mean '{close}'?")).unwrap_or_default();
            format!("no event type '{text}'{hint}")
        })
    }

    /// All probes.
    pub fn probe_infos(&self) -> Vec<ProbeInfo> {
        PROBES.iter().map(|probe| self.probe_info(probe)).collect()
    }

    /// A probe: declaration and state.
    pub fn probe_info(&self, probe: &'static Probe) -> ProbeInfo {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.probe.name == probe.name);
        let state = slot.map(|slot| self.probe_state(slot));
        let options = slot.map(|slot| slot.effective.options.clone()).unwrap_or_default();
        drop(slots);
        ProbeInfo {
            name: probe.name.into(),
            aliases: probe.aliases.iter().map(|alias| (*alias).into()).collect(),
            summary: probe.summary.into(),
            when: probe.when.into(),
            finds: probe.finds.into(),
            cost: probe.cost.as_str().into(),
            needs: probe.needs.into(),
            default_on: probe.default_on,
            options: probe
                .options
                .iter()
                .map(|decl| OptionInfo {
                    name: decl.name.into(),
                    kind: option_kind(decl).into(),
                    range: option_range(decl),
                    default: option_default(decl),
                    value: options.get(decl.name).cloned().unwrap_or_else(|| option_default(decl)),
                    help: decl.help.into(),
                })
                .collect(),
            metrics: probe.families().map(metric_info).collect(),
            events: probe.events.iter().map(event_info).collect(),
            state: state.unwrap_or_else(unknown_state),
        }
    }

    fn probe_state(&self, slot: &Slot) -> ProbeState {
        let effective = &slot.effective;
        let hook = self.hooks.status(slot.probe);
        let state = match (&slot.problem, effective.enabled) {
            (_, false) => StateName::Off,
            (Some(problem), true) if problem.never => StateName::NotAvailable,
            (Some(_), true) => StateName::Failed,
            (None, true) if slot.probe.hooks.is_some() && hook.is_none() => StateName::Starting,
            (None, true) => StateName::On,
        };
        let reads = (state == StateName::On && slot.probe.hooks.is_none()).then(|| "procfs".to_owned());
        let last = (state == StateName::On && slot.probe.hooks.is_none())
            .then(|| self.last_cost(slot.probe))
            .flatten();
        ProbeState {
            state,
            reason: slot
                .problem
                .as_ref()
                .filter(|_| effective.enabled)
                .map(|problem| problem.sentence.clone()),
            via: reads.or_else(|| hook.as_ref().map(|hook| hook.via.to_owned())),
            decided_by: effective.decided_by.to_string(),
            lease_seconds: effective.until.map(|until| until.saturating_sub(unix_now())),
            last_collection_ns: last,
            event_ns: hook.as_ref().and_then(|hook| hook.event_ns),
            stream: hook.as_ref().map(|hook| hook.stream),
            programs: hook.map(|hook| hook.programs).unwrap_or_default(),
        }
    }

    /// Indices of the sources that fill a probe's tables.
    fn sources_of(&self, probe: &Probe) -> Vec<usize> {
        let tables = probe.families().filter_map(|family| self.sources.index(family.table));
        let mut owners: Vec<usize> = tables.map(|table| self.sources.owner(table)).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    fn last_cost(&self, probe: &Probe) -> Option<u64> {
        let cpu = lock(&self.cpu);
        self.sources_of(probe).into_iter().map(|at| cpu[at].last).sum::<Option<Duration>>().map(nanoseconds)
    }

    /// The daemon's own metrics after a pass.
    pub(super) fn self_metrics(&self, snapshot: &Snapshot) -> Vec<u8> {
        let probes: Vec<ProbeRun> = PROBES
            .iter()
            .map(|probe| {
                let sources = self.sources_of(probe);
                // Before the lock: it takes it, too.
                let info = self.probe_info(probe);
                let cpu = lock(&self.cpu);
                ProbeRun {
                    info,
                    success: sources.iter().all(|at| snapshot.reports[*at].success()),
                    cpu_seconds: sources.iter().map(|at| cpu[*at].total.as_secs_f64()).sum::<f64>()
                        + self.hooks.status(probe).map_or(0.0, |hook| hook.cpu_seconds),
                }
            })
            .collect();
        let own = procfs::process::Process::myself();
        let stat = own.as_ref().ok().and_then(|own| own.stat().ok());
        let extra = Extra {
            reload_ok: self.reload_ok.load(Ordering::Relaxed),
            start_time: self.facts.start_time,
            open_fds: own.as_ref().ok().and_then(|own| own.fd_count().ok()).unwrap_or(0) as u64,
            threads: stat.map_or(0, |stat| u64::try_from(stat.num_threads).unwrap_or(0)),
        };
        self_metrics::render(&self.status_after(Some(snapshot.into())), &probes, extra)
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Status {
        self.status_after(*lock(&self.last_pass))
    }

    fn status_after(&self, pass: Option<LastPass>) -> Status {
        let directory = self.watcher.directory();
        let hooks = self.hooks.describe();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            boot: self.facts.boot.clone(),
            pid: std::process::id(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            node: self.facts.node.clone(),
            kernel: self.facts.kernel.clone(),
            btf: hooks.btf,
            metrics_urls: self.facts.urls.clone(),
            entities: count_kinds(&directory),
            sources: self.watcher.status(),
            probes: self.probe_counts(),
            collection: self.collection_status(pass),
            events: self.event_status(),
            cost: self.cost(),
            wedged: self.wedged(&directory),
            warnings: hooks.warnings,
        }
    }

    fn probe_counts(&self) -> ProbeCounts {
        let mut counts = ProbeCounts::default();
        for slot in self.slots().iter() {
            match self.probe_state(slot).state {
                StateName::On | StateName::Starting => counts.on += 1,
                StateName::Off => counts.off += 1,
                StateName::Failed => counts.failed += 1,
                StateName::NotAvailable => counts.not_available.push(slot.probe.name.into()),
            }
        }
        counts
    }

    fn collection_status(&self, pass: Option<LastPass>) -> CollectionStatus {
        let last = *lock(&self.last);
        let Some(pass) = pass else { return CollectionStatus::default() };
        CollectionStatus {
            age_seconds: Some(pass.taken.elapsed().as_secs_f64()),
            cpu_ns: nanoseconds(pass.cpu),
            wall_ns: nanoseconds(pass.wall),
            series: last.series,
            bytes: last.bytes,
            namespaces: pass.namespaces,
            late: pass.late,
            over_budget: last.over,
        }
    }

    fn event_status(&self) -> EventStatus {
        let mut kernel = StreamCounts::default();
        for stream in PROBES.iter().filter_map(|probe| Some(self.hooks.status(probe)?.stream)) {
            kernel.missed += stream.missed;
            kernel.seen += stream.seen;
            kernel.submitted += stream.submitted;
            kernel.ring_full += stream.ring_full;
            kernel.suppressed += stream.suppressed;
            kernel.map_full += stream.map_full;
        }
        let counts = &self.counts;
        EventStatus {
            kernel,
            received: counts.received.load(Ordering::Relaxed),
            malformed: counts.malformed.load(Ordering::Relaxed),
            overrun: counts.overrun.load(Ordering::Relaxed),
            delivered: counts.delivered.load(Ordering::Relaxed),
            kept: self.history.len() as u64,
            last_seq: self.history.last_seq(),
            followers: u32::try_from(self.history.followers()).unwrap_or(u32::MAX),
            missed_by_followers: self.history.missed(),
        }
    }

    fn cost(&self) -> CostStatus {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        let up = self.facts.started.elapsed().as_secs_f64().max(0.001);
        let own = procfs::process::Process::myself().and_then(|own| own.statm());
        CostStatus {
            cpu_seconds,
            cpu_percent: cpu_seconds / up * 100.0,
            resident_bytes: own.map_or(0, |statm| statm.resident * procfs::page_size()),
        }
    }

    fn wedged(&self, directory: &Directory) -> Vec<WedgedRead> {
        let name = |subject: Subject, inode: u32| match directory.entry(subject) {
            _ if inode == 0 => "node".to_owned(),
            Some(entry) if entry.id.netns == inode => entry.id.name.clone(),
            _ => format!("netns {inode}"),
        };
        let describe = |wedged: super::lanes::Wedged| WedgedRead {
            source: wedged.source.into(),
            subject: format!("{} of {}", wedged.what, name(wedged.subject, wedged.inode)),
            since_seconds: wedged.since.elapsed().as_secs(),
        };
        self.collector.wedged().into_iter().map(describe).collect()
    }

    /// `GET /v1/entities`, after a look at all processes.
    pub async fn entities(&self) -> Entities {
        self.watcher.rescan().await;
        let directory = self.watcher.directory();
        let mut entries: Vec<&Entry> = directory.entries().collect();
        let host = directory.host();
        entries.sort_by_key(|e| (e.namespace.subject != host, e.id.kind.as_str(), e.id.name.clone()));
        let mut entities: Vec<Entity> = entries.into_iter().map(Entry::describe).collect();
        self.add_addresses(&mut entities).await;
        Entities { generation: directory.generation(), entities }
    }

    /// `GET /v1/entities/{name or inode}`.
    pub async fn entity(&self, text: &str) -> Result<Entity, NoSuchEntity> {
        self.watcher.rescan().await;
        let directory = self.watcher.directory();
        let entry = directory.find(text).ok_or_else(|| NoSuchEntity(text.into()))?;
        let mut entities = vec![entry.describe()];
        self.add_addresses(&mut entities).await;
        entities.pop().ok_or_else(|| NoSuchEntity(text.into()))
    }

    /// `GET /v1/metrics?entity=..`: every native value of one entity.
    pub async fn entity_metrics(&self, text: &str) -> Result<Result<EntityMetrics, NoSuchEntity>, PassError> {
        let selection = Selection { names: vec![Names::Netskoop], full: true, probes: None };
        let chosen = selection.choose(&self.active(), &self.sources);
        if self.watcher.directory().find(text).is_none() {
            self.watcher.rescan().await;
        }
        let timeout = self.config.load().config.timeout;
        let snapshot = self.collect(&chosen, Duration::from_millis(200), timeout).await?;
        let Some(entry) = snapshot.directory.find(text) else { return Ok(Err(NoSuchEntity(text.into()))) };
        let subject = entry.namespace.subject;
        let host = subject == snapshot.directory.host();
        let mut values = Vec::new();
        for chosen in &chosen {
            let table = &snapshot.tables[chosen.table];
            exposition::points(chosen.family, table, |point| {
                if point.subject == subject || (host && point.subject == Subject::NODE) {
                    values.push(value(chosen.probe, chosen.family, table, point));
                }
            });
        }
        let age = Instant::now().saturating_duration_since(snapshot.taken);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now =
            Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        Ok(Ok(EntityMetrics {
            entity: entry.id.clone(),
            time: snapshot.time.to_string(),
            monotonic_ns: nanoseconds(now.saturating_sub(age)),
            values,
        }))
    }

    /// Reads the addresses of all namespaces; without them in time the entities are shown as they are.
    async fn add_addresses(&self, entities: &mut [Entity]) {
        let Some(at) = self.sources.index(&ADDRESSES) else { return };
        let mut wants = vec![ColumnSet::default(); self.sources.tables().len()];
        wants[at].insert(0);
        let deadline = Instant::now() + Duration::from_secs(2);
        let Ok(snapshot) = self.collector.collect(wants, Duration::from_secs(1), deadline).await else {
            return;
        };
        let table = &snapshot.tables[at];
        for row in 0..table.len() {
            let owner = snapshot.directory.entry(table.subject(row)).map(|entry| entry.id.netns);
            let entity = entities.iter_mut().find(|entity| Some(entity.id.netns) == owner);
            if let Some(entity) = entity {
                entity.addresses.push(String::from_utf8_lossy(table.key(row, 0)).into_owned());
            }
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn value(
    probe: &Probe,
    family: &crate::declare::Family,
    table: &crate::table::Table,
    point: exposition::Point,
) -> MetricValue {
    let mut labels: Vec<String> = family
        .keys
        .iter()
        .map(|(name, key)| format!("{name}=\"{}\"", String::from_utf8_lossy(table.key(point.row, *key))))
        .collect();
    if !point.label.is_empty() {
        labels.push(point.label.to_owned());
    }
    let prefix = format!("netskoop_{}_", probe.name);
    let short = family.name.strip_prefix(&prefix).unwrap_or(family.name);
    MetricValue {
        probe: probe.name.into(),
        metric: family.name.into(),
        name: short.strip_suffix("_total").unwrap_or(short).into(),
        labels: labels.join(","),
        kind: kind(family.kind()).into(),
        value: point.value as f64,
        alarm: (!family.alarm.is_empty()).then(|| family.alarm.to_owned()),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    }
}

fn metric_info(family: &'static crate::declare::Family) -> MetricInfo {
    let mut labels: Vec<String> = family.keys.iter().map(|(name, _)| (*name).to_owned()).collect();
    if let crate::declare::Points::Cells(cells) = family.points {
        for name in cells.iter().filter_map(|(label, _)| Some(label.split_once('=')?.0)) {
            if !labels.iter().any(|known| known == name) {
                labels.push(name.to_owned());
            }
        }
    }
    MetricInfo {
        name: family.name.into(),
        names: family.names.as_str().into(),
        kind: kind(family.kind()).into(),
        labels,
        core: family.core,
        help: family.help.into(),
    }
}

fn event_info(event: &crate::declare::EventDecl) -> EventInfo {
    EventInfo {
        name: event.name.into(),
        aliases: event.aliases.iter().map(|alias| (*alias).into()).collect(),
        fields: event.fields.iter().map(|field| (*field).into()).collect(),
        help: event.help.into(),
    }
}

fn unknown_state() -> ProbeState {
    ProbeState {
        state: StateName::Off,
        reason: None,
        via: None,
        decided_by: "default".into(),
        lease_seconds: None,
        last_collection_ns: None,
        event_ns: None,
        stream: None,
        programs: vec![],
    }
}
