//! What the engine tells: status, probes, entities, values of one entity, events.

use super::status::nanoseconds;
use super::{Engine, governor};
use crate::config::{option_default, option_kind, option_range};
use crate::declare::{ColumnSet, EventDecl, Names, Points, Probe};
use crate::engine::pass::{PassError, Snapshot};
use crate::engine::select::{Chosen, Selection};
use crate::filter;
use crate::probes::PROBES;
use crate::resolve::describe;
use crate::resolve::directory::Entry;
use crate::server::exposition;
use crate::sources::addresses::ADDRESSES;
use crate::table::Subject;
use netskoop_api::{
    Entities, Entity, EntityMetrics, Event, EventInfo, MetricInfo, MetricValue, OptionInfo, ProbeInfo,
};
use std::time::{Duration, Instant};

/// There is nothing to show under that name.
#[derive(Debug, thiserror::Error)]
pub enum NoSuchEntity {
    /// Nobody has it.
    #[error("no entity '{0}'")]
    Unknown(String),
    /// Its owner shares the node's counters, and nothing is counted by process.
    #[error(
        "'{0}' lives in the node's own network namespace, so the only counters are those of the host and those by \
         process, and no probe that counts by process is on"
    )]
    HostNetwork(String),
}

impl NoSuchEntity {
    /// What to do instead.
    pub fn hint(&self) -> &'static str {
        match self {
            NoSuchEntity::Unknown(_) => "netskoopctl entities lists them",
            NoSuchEntity::HostNetwork(_) => "netskoopctl metrics host",
        }
    }
}

/// Which events a client wants.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Types, by their names in force; all if empty.
    pub kinds: Vec<&'static str>,
    /// The entity, as the option `entities` of probes means it, or the inode of its namespace; all if `None`.
    pub entity: Option<filter::Entities>,
    /// Not older than this date (RFC 3339 sorts as text only in one zone, so it is compared as a time).
    pub since: Option<jiff::Timestamp>,
}

impl EventFilter {
    /// Whether the event is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| *kind == event.kind);
        let entity = self.entity.as_ref().is_none_or(|wanted| {
            let inode = event.entity.as_ref().map(|entity| entity.netns);
            wanted.have(event.entity.as_ref()) || wanted.is_just(inode)
        });
        let recent =
            self.since.is_none_or(|since| event.time.parse().is_ok_and(|t: jiff::Timestamp| t >= since));
        kind && entity && recent
    }
}

/// Types of events, of all probes and of the daemon itself.
fn all_events() -> impl Iterator<Item = &'static EventDecl> {
    PROBES.iter().flat_map(|probe| probe.events).chain(&governor::EVENTS)
}

/// The name in force of an event type, also by an older name and in any case.
pub(super) fn event_type(text: &str) -> Option<&'static str> {
    all_events().find_map(|event| {
        let same = |name: &str| name.eq_ignore_ascii_case(text);
        (same(event.name) || event.aliases.iter().any(|alias| same(alias))).then_some(event.name)
    })
}

impl Engine {
    /// The name in force of an event type, or a sentence with a suggestion.
    pub fn event_type(&self, text: &str) -> Result<&'static str, String> {
        event_type(text).ok_or_else(|| {
            let known = all_events().map(|event| event.name);
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
        let state = slot.map(|slot| self.standing(slot).state);
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
                    words: self.words_here(probe, decl.name).unwrap_or_default(),
                })
                .collect(),
            metrics: metric_infos(probe),
            events: probe.events.iter().map(event_info).collect(),
            state: state.unwrap_or_else(super::status::unknown_state),
        }
    }

    /// `GET /v1/entities`, after a look at all processes.
    pub async fn entities(&self) -> Entities {
        self.watcher.rescan().await;
        let directory = self.watcher.directory();
        let mut entries: Vec<&Entry> = directory.entries().collect();
        let host = directory.host();
        entries.sort_by_key(|e| (e.namespace.subject != host, e.id.kind.as_str(), e.id.name.clone()));
        let mut entities: Vec<Entity> = entries.into_iter().map(Entry::describe).collect();
        entities.extend(directory.tenants().iter().map(describe::tenant));
        self.add_addresses(&mut entities).await;
        Entities { generation: directory.generation(), entities }
    }

    /// `GET /v1/entities/{name or inode}`.
    pub async fn entity(&self, text: &str) -> Result<Entity, NoSuchEntity> {
        self.watcher.rescan().await;
        let directory = self.watcher.directory();
        let found = directory.find(text).map(Entry::describe);
        let found = found.or_else(|| directory.find_tenant(text).map(describe::tenant));
        let mut entities = vec![found.ok_or_else(|| NoSuchEntity::Unknown(text.into()))?];
        self.add_addresses(&mut entities).await;
        entities.pop().ok_or_else(|| NoSuchEntity::Unknown(text.into()))
    }

    /// `GET /v1/metrics?entity=..`: every native value of one entity.
    pub async fn entity_metrics(&self, text: &str) -> Result<Result<EntityMetrics, NoSuchEntity>, PassError> {
        let selection = Selection { names: vec![Names::Netskoop], target: false, full: true, probes: None };
        let chosen = selection.choose(&self.active(), &self.sources);
        if self.watcher.directory().find(text).is_none() {
            self.watcher.rescan().await;
        }
        let timeout = self.config.load().config.timeout;
        let snapshot = self.collect(&chosen, Duration::from_millis(200), timeout).await?;
        let directory = &snapshot.directory;
        let found = directory.find(text).map(|entry| (entry.namespace.subject, &entry.id));
        let found = found.or_else(|| directory.find_tenant(text).map(|tenant| (tenant.subject, &tenant.id)));
        let Some((subject, id)) = found else { return Ok(Err(NoSuchEntity::Unknown(text.into()))) };
        let values = self.values(&snapshot, &chosen, subject);
        if values.is_empty() && subject.is_tenant() {
            return Ok(Err(NoSuchEntity::HostNetwork(id.name.clone())));
        }
        let age = Instant::now().saturating_duration_since(snapshot.taken);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now =
            Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        Ok(Ok(EntityMetrics {
            entity: (**id).clone(),
            time: snapshot.time.to_string(),
            monotonic_ns: nanoseconds(now.saturating_sub(age)),
            values,
        }))
    }

    /// The native values of a subject in a snapshot.
    pub(super) fn values(
        &self,
        snapshot: &Snapshot,
        chosen: &[Chosen],
        subject: Subject,
    ) -> Vec<MetricValue> {
        let host = subject == snapshot.directory.host();
        let mut values = Vec::new();
        for chosen in chosen {
            let table = &snapshot.tables[chosen.table];
            exposition::points(chosen.family, table, |point| {
                // Of a histogram the number of values and their sum say what a reader wants to see move.
                let is_bucket = point.shape.suffix == "_bucket";
                if !is_bucket && (point.subject == subject || (host && point.subject == Subject::NODE)) {
                    values.push(value(chosen.probe, chosen.family, table, point));
                }
            });
        }
        values
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
            let is_owner = |entity: &&mut Entity| Some(entity.id.netns) == owner && !entity.host_network;
            let address = String::from_utf8_lossy(table.key(row, 0)).into_owned();
            if let Some(entity) = entities.iter_mut().find(is_owner)
                && !entity.addresses.contains(&address)
            {
                entity.addresses.push(address);
            }
        }
    }
}

/// The part of a limit from which on it is worth a word.
const NEARLY: f64 = 0.8;

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
    if !point.shape.label.is_empty() {
        labels.push(point.shape.label.to_owned());
    }
    let decimals = if point.shape.is_count { 0 } else { family.decimals };
    let value = point.value as f64 / 10_f64.powi(i32::from(decimals));
    // A part of a limit means something only if little is left.
    let harmless = family.name.ends_with("_ratio") && value < NEARLY;
    let prefix = format!("netskoop_{}_", probe.name);
    let short = family.name.strip_prefix(&prefix).unwrap_or(family.name);
    MetricValue {
        probe: probe.name.into(),
        metric: format!("{}{}", family.name, point.shape.suffix),
        name: format!("{}{}", short.strip_suffix("_total").unwrap_or(short), point.shape.suffix),
        labels: labels.join(","),
        // The parts of a histogram are counters.
        kind: if matches!(family.points, Points::Histogram(_)) { "counter" } else { family.type_name() }
            .into(),
        value,
        alarm: (!family.alarm.is_empty() && !harmless).then(|| family.alarm.to_owned()),
    }
}

/// The metrics of a probe, each once, however many tables its values are in.
fn metric_infos(probe: &'static Probe) -> Vec<MetricInfo> {
    let mut families: Vec<_> = probe.families().collect();
    families.dedup_by_key(|family| (family.names, family.name));
    families.into_iter().map(metric_info).collect()
}

fn metric_info(family: &'static crate::declare::Family) -> MetricInfo {
    let mut labels: Vec<String> = family.keys.iter().map(|(name, _)| (*name).to_owned()).collect();
    for name in family.points.labels() {
        if !labels.iter().any(|known| known == name) {
            labels.push(name.to_owned());
        }
    }
    MetricInfo {
        name: family.name.into(),
        names: family.names.as_str().into(),
        kind: family.type_name().into(),
        labels,
        core: family.core,
        help: family.help.into(),
    }
}

fn event_info(event: &EventDecl) -> EventInfo {
    EventInfo {
        name: event.name.into(),
        aliases: event.aliases.iter().map(|alias| (*alias).into()).collect(),
        fields: event.fields.iter().map(|field| (*field).into()).collect(),
        help: event.help.into(),
    }
}
