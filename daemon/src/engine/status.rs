//! How the daemon stands: its probes, its collections, its events, its cost. Asked for by `status` and shown on `/metrics`.

use super::hooked::HookStatus;
use super::lanes::Wedged;
use super::pass::Snapshot;
use super::self_metrics::{self, Extra, ProbeRun, Resolver};
use super::{Engine, LastPass, Slot, lock, unix_now};
use crate::declare::Probe;
use crate::probes::conntrack;
use crate::resolve::directory::{Directory, count_kinds};
use crate::resolve::extra::OTHER;
use crate::table::Subject;
use netskoop_api::{
    CollectionStatus, CostStatus, EventStatus, ProbeCounts, ProbeState, StateName, Status, StreamCounts,
    WedgedRead,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How a probe stands, and what it has cost.
pub(super) struct Standing {
    /// The probe.
    probe: &'static Probe,
    /// Its state.
    pub(super) state: ProbeState,
    /// Time in its BPF programs, seconds.
    bpf_seconds: f64,
    /// Whether this kernel has nothing that it shows.
    lacking: bool,
    /// Whether it sends few events, because of its cost.
    throttled: bool,
}

impl Engine {
    /// Asks the kernel about the probe's programs; once per answer.
    pub(super) fn standing(&self, slot: &Slot) -> Standing {
        let hook = self.hooks.status(slot.probe);
        let bpf_seconds = self.hooks.cpu_seconds(slot.probe);
        let lacking = slot.lacks.is_some();
        let throttled = slot.throttled.is_some();
        Standing { probe: slot.probe, state: self.probe_state(slot, hook), bpf_seconds, lacking, throttled }
    }

    fn standings(&self) -> Vec<Standing> {
        self.slots().iter().map(|slot| self.standing(slot)).collect()
    }

    fn probe_state(&self, slot: &Slot, hook: Option<HookStatus>) -> ProbeState {
        let effective = &slot.effective;
        let absent = slot
            .lacks
            .clone()
            .or_else(|| self.absent(slot.probe))
            .filter(|_| effective.enabled && slot.problem.is_none());
        let state = match (&slot.problem, effective.enabled) {
            (_, false) => StateName::Off,
            (Some(problem), true) => problem.state,
            (None, true) if slot.probe.hooks.is_some_and(|hooks| !hooks.optional) && hook.is_none() => {
                StateName::Starting
            }
            (None, true) if absent.is_some() => StateName::NotAvailable,
            (None, true) => StateName::On,
        };
        let reads = state == StateName::On && hook.is_none();
        let mut answer = ProbeState {
            state,
            reason: slot
                .problem
                .as_ref()
                .filter(|_| effective.enabled)
                .map(|problem| problem.sentence.clone())
                .or_else(|| slot.throttled.as_ref().map(|throttled| throttled.sentence.clone()))
                .or(absent)
                .or_else(|| slot.without_hooks.clone().filter(|_| state == StateName::On)),
            via: reads.then(|| self.via(slot.probe)),
            decided_by: effective.decided_by.to_string(),
            lease_seconds: effective.until.map(|until| until.saturating_sub(unix_now() + 1)),
            last_collection_ns: (state == StateName::On).then(|| self.last_cost(slot.probe)).flatten(),
            event_ns: None,
            bpf_cpu_ratio: None,
            stream: None,
            programs: vec![],
        };
        if std::ptr::eq(slot.probe, &raw const conntrack::PROBE)
            && let Some(tracking) = &*lock(&self.tracking)
        {
            answer.stream = tracking.stream();
            answer.reason = answer.reason.or_else(|| tracking.problem());
        }
        if let Some(hook) = hook {
            let limits = hook.limits.join("; ");
            answer.reason = answer.reason.or((!limits.is_empty()).then_some(limits));
            answer.via = Some(hook.via);
            answer.event_ns = hook.event_ns;
            let share = lock(&self.shares).iter().find(|share| share.probe == slot.probe.name).copied();
            answer.bpf_cpu_ratio = share.map(|share| f64::from(share.cpu) / 10_000.0);
            answer.stream = Some(hook.stream);
            answer.programs = hook.programs;
        }
        answer
    }

    /// What the sources of a probe ask: `procfs`, `netlink`, or both.
    fn via(&self, probe: &Probe) -> String {
        let mut ways: Vec<&str> =
            self.sources_of(probe).into_iter().map(|at| self.sources.all[at].via()).collect();
        ways.sort_unstable();
        ways.dedup();
        ways.join("+")
    }

    /// Indices of the sources that fill a probe's tables.
    fn sources_of(&self, probe: &Probe) -> Vec<usize> {
        let tables = probe.families().filter_map(|family| self.sources.index(family.table));
        let mut owners: Vec<usize> = tables.map(|table| self.sources.owner(table)).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// Why this node has nothing of what a probe reads, if none of its sources found anything.
    fn absent(&self, probe: &Probe) -> Option<String> {
        let absent = lock(&self.absent);
        let mut sentences = self.sources_of(probe).into_iter().map(|at| absent[at].clone()).peekable();
        if sentences.peek().is_none() && probe.hooks.is_none() {
            return Some(
                "paths.proc is a copy of a procfs, and this kernel knows nothing of that node".into(),
            );
        }
        let first = sentences.next()??;
        sentences.all(|sentence| sentence.is_some()).then_some(first)
    }

    /// What its sources cost at the last collection, as far as they had something to do.
    fn last_cost(&self, probe: &Probe) -> Option<u64> {
        let cpu = lock(&self.cpu);
        let costs = self.sources_of(probe).into_iter().filter_map(|at| cpu[at].last);
        costs.reduce(|sum, cost| sum + cost).map(nanoseconds)
    }

    /// The daemon's own metrics after a pass.
    pub(super) fn self_metrics(&self, snapshot: &Snapshot) -> Vec<u8> {
        let standings = self.standings();
        let status = self.status_after(Some(snapshot.into()), &standings);
        let cpu = lock(&self.cpu).clone();
        let run = |standing: Standing| {
            let sources = self.sources_of(standing.probe);
            ProbeRun {
                name: standing.probe.name,
                state: standing.state,
                success: (!standing.lacking && self.absent(standing.probe).is_none())
                    .then(|| sources.iter().all(|at| snapshot.reports[*at].success())),
                cpu_seconds: sources.iter().map(|at| cpu[*at].total.as_secs_f64()).sum::<f64>()
                    + standing.bpf_seconds,
                retries: sources.iter().map(|at| cpu[*at].retries).sum(),
                throttled: standing.throttled,
            }
        };
        let probes: Vec<ProbeRun> = standings.into_iter().map(run).collect();
        let own = procfs::process::Process::myself();
        let stat = own.as_ref().ok().and_then(|own| own.stat().ok());
        let extra = Extra {
            resolvers: self.resolvers(),
            limited: self.watcher.directory().limited().to_vec(),
            added_up: lock(&self.added_up).clone(),
            reload_ok: self.reload_ok.load(Ordering::Relaxed),
            over_budget: snapshot.reports.iter().map(|report| report.over_budget).sum(),
            start_time: self.facts.start_time,
            open_fds: own.as_ref().ok().and_then(|own| own.fd_count().ok()).unwrap_or(0) as u64,
            threads: stat.map_or(0, |stat| u64::try_from(stat.num_threads).unwrap_or(0)),
        };
        self_metrics::render(&status, &probes, &extra)
    }

    /// The sources of names with the dates of what they last said: counted from the start, so that a date stays the same.
    fn resolvers(&self) -> Vec<Resolver> {
        let facts = &self.facts;
        let date = |at: Instant| facts.start_time + at.saturating_duration_since(facts.started).as_secs_f64();
        self.watcher.sources().into_iter().map(|(source, at)| (source, at.map(date))).collect()
    }

    /// What is not as it should be.
    fn warnings(&self, directory: &Directory) -> Vec<String> {
        let most = self.config.load().config.extra_label_values;
        let limited = directory.limited().iter().filter(|(_, count)| *count > 0);
        let sentence = |(label, count): &(String, usize)| {
            format!(
                "{count} namespaces show {OTHER} for the label '{label}', because it has {most} values already; choose \
                 another label, or raise metrics.extra_label_values"
            )
        };
        limited.map(sentence).collect()
    }

    /// How it stands in a few words. Unlike [`Engine::status`] it asks the kernel nothing, so it may be called often.
    pub fn headline(&self) -> String {
        let kinds = count_kinds(&self.watcher.directory());
        let entities: u32 = kinds.iter().map(|kind| kind.count).sum();
        let is_on =
            |slot: &&Slot| self.works(slot) && slot.lacks.is_none() && self.absent(slot.probe).is_none();
        let on = self.slots().iter().filter(is_on).count();
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        let refused = match self.reload_ok.load(Ordering::Relaxed) {
            true => "",
            false => "; the configuration on disk was refused",
        };
        format!(
            "{entities} network namespace{}, {on} probe{} on{refused}",
            plural(entities.into()),
            plural(on as u64)
        )
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Status {
        let pass = *lock(&self.last_pass);
        self.status_after(pass, &self.standings())
    }

    fn status_after(&self, pass: Option<LastPass>, standings: &[Standing]) -> Status {
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
            probes: probe_counts(standings),
            collection: self.collection_status(pass),
            events: self.event_status(standings),
            cost: self.cost(),
            wedged: self.wedged(&directory),
            warnings: hooks
                .warnings
                .into_iter()
                .chain(self.without_cgroups())
                .chain(self.void_words())
                .chain(self.warnings(&directory))
                .collect(),
        }
    }

    fn without_cgroups(&self) -> Option<String> {
        let sentence = "the unified cgroup hierarchy (cgroup2) is not mounted here: what happens to host-network pods is told as \
                        the host's, and so is what their processes use (probes io and cpu)";
        self.counts.without_cgroups.load(Ordering::Relaxed).then(|| sentence.to_owned())
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

    fn event_status(&self, standings: &[Standing]) -> EventStatus {
        let mut kernel = StreamCounts::default();
        for stream in standings.iter().filter_map(|standing| standing.state.stream) {
            kernel.missed += stream.missed;
            kernel.seen += stream.seen;
            kernel.submitted += stream.submitted;
            kernel.ring_full += stream.ring_full;
            kernel.suppressed += stream.suppressed;
            kernel.map_full += stream.map_full;
            kernel.filtered += stream.filtered;
        }
        let counts = &self.counts;
        EventStatus {
            kernel,
            received: counts.received.load(Ordering::Relaxed),
            malformed: counts.malformed.load(Ordering::Relaxed),
            overrun: counts.overrun.load(Ordering::Relaxed),
            delivered: counts.delivered.load(Ordering::Relaxed),
            filtered_by_entity: counts.filtered_by_entity.load(Ordering::Relaxed),
            kept: self.history.len() as u64,
            last_seq: self.history.last_seq(),
            followers: u32::try_from(self.history.followers()).unwrap_or(u32::MAX),
            missed_by_followers: self.history.missed(),
            relabelled: counts.relabelled.load(Ordering::Relaxed),
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
        let describe = |wedged: Wedged| WedgedRead {
            source: wedged.source.into(),
            subject: format!("{} of {}", wedged.what, name(wedged.subject, wedged.inode)),
            since_seconds: wedged.since.elapsed().as_secs(),
        };
        self.collector.wedged().into_iter().map(describe).collect()
    }
}

fn probe_counts(standings: &[Standing]) -> ProbeCounts {
    let mut counts = ProbeCounts::default();
    for Standing { probe, state, .. } in standings {
        match state.state {
            StateName::On | StateName::Starting => counts.on += 1,
            StateName::Off => counts.off += 1,
            StateName::Failed => counts.failed += 1,
            StateName::Paused => counts.paused += 1,
            StateName::NotAvailable => counts.not_available.push(probe.name.into()),
        }
    }
    counts
}

/// What is said of a probe that has no slot; there is none such.
pub(super) fn unknown_state() -> ProbeState {
    ProbeState {
        state: StateName::Off,
        reason: None,
        via: None,
        decided_by: "default".into(),
        lease_seconds: None,
        last_collection_ns: None,
        event_ns: None,
        bpf_cpu_ratio: None,
        stream: None,
        programs: vec![],
    }
}

/// A duration as the wire has it.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
