//! Changes: probes switched on and off, options, leases, reloads. One change at a time; a change that fails leaves
//! everything as it was.

use super::governor::throttled;
use super::{Engine, Problem, lock, unix_now};
use crate::config::{self, Config, Effective, Layer, Override, ProbeOverrides, State, dropin, effective};
use crate::declare::Probe;
use crate::hooks::Options;
use crate::probes::{PROBES, conntrack};
use crate::resolve::labels::Labels;
use netskoop_api::{Imported, ProbeChanged, ProbePatch, StateName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A failed probe is tried again after this time, then after twice as long, up to [`MAX_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(5);
const MAX_RETRY: Duration = Duration::from_secs(300);
/// What runs is compared with what is wanted at least this often.
const RECHECK: Duration = Duration::from_secs(60);
/// A lease lasts at most this long.
const MAX_LEASE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// User id at the other end of the socket.
    pub uid: u32,
    /// Process id there, for the log.
    pub pid: i32,
    /// All its groups.
    pub groups: Arc<[u32]>,
}

/// Why a change was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No such probe.
    #[error("{0}")]
    NoSuchProbe(String),
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The probe cannot run here.
    #[error("{0}")]
    NotAvailable(String),
    /// Somebody else does the same.
    #[error("{0}")]
    Busy(String),
    /// The configuration on disk is invalid.
    #[error("{0}")]
    BadConfig(String),
    /// The change cannot be stored.
    #[error("{0}")]
    NotStored(String),
}

/// Where a change goes.
enum Keep {
    Always,
    Runtime,
    /// For this long, until then (seconds since 1970).
    Lease(Duration, u64),
}

/// Whether a probe has something to show where its hooks cannot be loaded.
fn does_without_hooks(probe: &Probe) -> bool {
    probe.hooks.is_some_and(|hooks| hooks.optional)
}

impl Engine {
    /// A probe by name or older name.
    pub fn find_probe(&self, name: &str) -> Result<&'static Probe, ChangeError> {
        config::find_probe(PROBES, name).ok_or_else(|| {
            let hint = config::closest(name, PROBES.iter().map(|probe| probe.name));
            let hint = hint.map(|close| format!(". Did you mean '{close}'?")).unwrap_or_default();
            ChangeError::NoSuchProbe(format!("no probe '{name}'{hint}"))
        })
    }

    /// `PATCH /v1/probes/{name}`.
    pub async fn patch_probe(
        &self,
        name: &str,
        patch: &ProbePatch,
        peer: &Peer,
    ) -> Result<ProbeChanged, ChangeError> {
        let probe = self.find_probe(name)?;
        let (change, keep) = parse_patch(probe, patch)?;
        self.refuse_void_words(probe, &change)?;
        let mut state = self.state.lock().await;
        let before = self.probe_effective(probe);
        let wanted = self.preview(probe, &state, &change);
        // What the user asked for by name must work, or nothing is changed.
        if change.enabled == Some(true) {
            let failed = self.start(probe, &wanted).await.err().filter(|_| !does_without_hooks(probe));
            let refused =
                |problem: Problem| ChangeError::NotAvailable(format!("{}: {}", probe.name, problem.sentence));
            failed.map_or(Ok(()), |problem| Err(refused(problem)))?;
            // Also one that would have been tried again later works now, and sends all its events.
            let mut slots = self.slots();
            for slot in slots.iter_mut().filter(|slot| slot.probe.name == probe.name) {
                (slot.problem, slot.throttled) = (None, None);
            }
        }
        if let Err(error) = self.store(probe, &mut state, &change, &keep) {
            self.apply(&state).await;
            return Err(error);
        }
        self.apply(&state).await;
        self.lease_changed.notify_one();
        drop(state);
        let now = self.probe_effective(probe);
        let changed =
            (now.enabled, &now.options) != (before.enabled, &before.options) || now.until != before.until;
        let message = describe_change(probe, &change, &now, &keep);
        tracing::info!(probe = probe.name, uid = peer.uid, pid = peer.pid, changed, "{message}");
        Ok(ProbeChanged { changed, message, probe: self.probe_info(probe) })
    }

    fn store(
        &self,
        probe: &'static Probe,
        state: &mut State,
        change: &Override,
        keep: &Keep,
    ) -> Result<(), ChangeError> {
        let mut next = state.clone();
        match keep {
            Keep::Always => next.settle(probe.name, change),
            Keep::Runtime => next.set_runtime(probe.name, change),
            Keep::Lease(_, until) => next.set_lease(probe.name, change, *until),
        }
        self.save(&next)?;
        if matches!(keep, Keep::Always)
            && let Err(error) = self.store_for_good(probe, change)
        {
            // The overrides that would have hidden the change come back.
            self.save(state)?;
            return Err(error);
        }
        *state = next;
        Ok(())
    }

    /// Writes the drop-in, and takes over what it says of this probe. What else changed on disk waits for a reload.
    fn store_for_good(&self, probe: &'static Probe, change: &Override) -> Result<(), ChangeError> {
        let written = dropin::write(self.config_path.as_deref(), probe, change);
        let written = written.map_err(|error| match error {
            dropin::DropInError::Invalid(_) => ChangeError::BadConfig(error.to_string()),
            dropin::DropInError::Write { .. } => ChangeError::NotStored(error.to_string()),
        })?;
        for (key, origin) in &written.overruled {
            tracing::warn!(key, %origin, "the setting was written, but a later file decides otherwise");
        }
        let mut loaded = config::Loaded::clone(&self.config.load());
        if let Some(settings) = written.loaded.config.probes.get(probe.name) {
            loaded.config.probes.insert(probe.name, settings.clone());
        }
        let prefix = format!("probes.{}.", probe.name);
        let settings = written.loaded.settings.into_iter().filter(|(key, _)| key.starts_with(&prefix));
        loaded.settings.extend(settings);
        self.config.store(Arc::new(loaded));
        Ok(())
    }

    fn save(&self, state: &State) -> Result<(), ChangeError> {
        let run = self.config.load().config.run.clone();
        state.save(&run).map_err(|error| {
            let file = State::file(&run);
            ChangeError::NotStored(format!("cannot write {}: {error}", file.display()))
        })
    }

    fn probe_effective(&self, probe: &Probe) -> Effective {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.probe.name == probe.name);
        slot.map_or_else(|| effective(probe, &Config::default(), None, 0), |slot| slot.effective.clone())
    }

    /// What would hold with the change on top.
    fn preview(&self, probe: &Probe, state: &State, change: &Override) -> Options {
        let mut overrides = state.probes.get(probe.name).cloned().unwrap_or_default();
        overrides.lease = None;
        overrides.runtime.merge(change);
        effective(probe, &self.config.load().config, Some(&overrides), unix_now()).options
    }

    /// Makes what runs agree with what is wanted, at the start and after every change.
    pub async fn reconcile(&self) {
        let state = self.state.lock().await;
        self.apply(&state).await;
    }

    async fn apply(&self, state: &State) {
        let loaded = self.config.load_full();
        for (at, probe) in PROBES.iter().enumerate() {
            let overrides: Option<&ProbeOverrides> = state.probes.get(probe.name);
            let wanted = effective(probe, &loaded.config, overrides, unix_now());
            let (enabled, options) = (wanted.enabled, wanted.options.clone());
            self.note_void_words(at, &wanted);
            self.slots()[at].effective = wanted;
            if std::ptr::eq(*probe, &raw const conntrack::PROBE)
                && let Some(tracking) = &*lock(&self.tracking)
            {
                tracking.configure(enabled, &options, &loaded.config);
            }
            if let Some(intake) = &*lock(&self.intake) {
                intake.choose(probe.name, &options);
            }
            for source in &self.sources.all {
                source.enable(probe.name, enabled);
                source.configure(probe.name, &options);
            }
            if enabled {
                let waits = self.slots()[at].problem.as_ref().is_some_and(Problem::waits);
                if !waits {
                    let result = self.start(probe, &options).await;
                    let failed = self.without_hooks(at, result.err());
                    self.note_start(at, failed);
                }
            } else {
                self.stop(probe).await;
                let slot = &mut self.slots()[at];
                (slot.problem, slot.throttled) = (None, None);
            }
        }
        self.wake_farewell();
        self.switched.notify_one();
    }

    /// Takes note that a probe must do without its hooks, if it can; the problem is given back if it cannot.
    fn without_hooks(&self, at: usize, failed: Option<Problem>) -> Option<Problem> {
        let slot = &mut self.slots()[at];
        let (without, failed) = match failed {
            Some(problem) if does_without_hooks(slot.probe) => (Some(problem.sentence), None),
            failed => (None, failed),
        };
        if let Some(sentence) = without.as_ref().filter(|_| slot.without_hooks != without) {
            tracing::warn!(probe = slot.probe.name, "it shows only a part: {sentence}");
        }
        slot.without_hooks = without;
        failed
    }

    /// Remembers why a probe does not work, and says so once.
    fn note_start(&self, at: usize, failed: Option<Problem>) {
        let mut slots = self.slots();
        let slot = &mut slots[at];
        let Some(mut problem) = failed else {
            slot.problem = None;
            return;
        };
        let before = slot.problem.as_ref();
        if before.is_none_or(|before| before.sentence != problem.sentence) {
            tracing::warn!(probe = slot.probe.name, "{}", problem.sentence);
        }
        if problem.state != StateName::NotAvailable {
            let tries = before.and_then(|before| before.retry).map_or(0, |(_, tries)| tries);
            let delay = FIRST_RETRY.saturating_mul(1 << tries.min(10)).min(MAX_RETRY);
            problem.retry = Some((Instant::now() + delay, tries + 1));
        }
        slot.problem = Some(problem);
    }

    /// Starts the hooks of a probe, or hands new options to them. Nothing to do for a probe that only reads.
    pub(super) async fn start(&self, probe: &'static Probe, options: &Options) -> Result<(), Problem> {
        if probe.hooks.is_none() {
            return Ok(());
        }
        let is_throttled =
            self.slots().iter().any(|slot| slot.probe.name == probe.name && slot.throttled.is_some());
        let (options, rate) = if is_throttled {
            throttled(options.clone())
        } else {
            let config = &self.config.load().config;
            (options.clone(), (config.event_rate, config.event_burst))
        };
        self.hooks.start(probe, options, rate).await.map_err(|(never, sentence)| {
            let state = if never { StateName::NotAvailable } else { StateName::Failed };
            Problem { state, sentence, retry: None }
        })
    }

    async fn stop(&self, probe: &'static Probe) {
        if probe.hooks.is_some() {
            self.hooks.stop(probe).await;
        }
    }

    /// Stops all hooks; for the end of the daemon.
    pub async fn stop_all(&self) {
        for probe in PROBES {
            self.stop(probe).await;
        }
    }

    /// Ends leases and tries failed probes again, when their time comes. Never returns.
    pub async fn keep_time(&self) {
        loop {
            let due = self.next_due().await;
            let wait = due.saturating_duration_since(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.lease_changed.notified() => continue,
            }
            self.hooks.watch_again().await;
            let mut state = self.state.lock().await;
            for probe in state.expire(unix_now()) {
                tracing::info!(probe, "the lease has run out");
                if let Err(error) = self.save(&state) {
                    tracing::error!(%error, "the end of a lease is not stored");
                }
            }
            self.apply(&state).await;
        }
    }

    async fn next_due(&self) -> Instant {
        let lease = self.state.lock().await.next_end();
        let lease = lease.map(|end| Instant::now() + Duration::from_secs(end.saturating_sub(unix_now())));
        let retry = self.slots().iter().filter_map(|slot| Some(slot.problem.as_ref()?.retry?.0)).min();
        // Now and then in any case: an object whose thread has ended is loaded again.
        lease.into_iter().chain(retry).chain([Instant::now() + RECHECK]).min().unwrap_or_else(Instant::now)
    }

    /// `POST /v1/reload` and SIGHUP: reads the files again. A bad configuration is refused and the running one stays.
    pub async fn reload(&self) -> Result<Vec<String>, ChangeError> {
        let state = self.state.lock().await;
        let loaded = match config::load(self.config_path.as_deref()) {
            Ok(loaded) => loaded,
            Err(errors) => {
                self.reload_ok.store(false, Ordering::Relaxed);
                self.switched.notify_one();
                tracing::error!("the configuration is not valid; the running one stays:\n{errors}");
                return Err(ChangeError::BadConfig(errors.to_string()));
            }
        };
        self.reload_ok.store(true, Ordering::Relaxed);
        let before = self.config.load_full();
        let changes = differences(&before, &loaded);
        self.history.set_capacity(loaded.config.history);
        self.config.store(Arc::new(loaded));
        if let Some(runtimes) = lock(&self.runtimes).as_mut() {
            runtimes.choose(&self.config.load().config.sources);
        }
        self.renew_labels(&before.config).await;
        // What could not run may be able to now.
        self.slots().iter_mut().for_each(|slot| (slot.problem, slot.throttled) = (None, None));
        self.apply(&state).await;
        self.lease_changed.notify_one();
        tracing::info!(changes = changes.len(), "configuration reloaded");
        Ok(changes)
    }

    /// What [`Engine::reload`] would change.
    pub fn config_diff(&self) -> Result<Vec<String>, ChangeError> {
        let loaded = config::load(self.config_path.as_deref());
        let loaded = loaded.map_err(|errors| ChangeError::BadConfig(errors.to_string()))?;
        Ok(differences(&self.config.load(), &loaded))
    }

    /// An older configuration in our words.
    pub fn import_config(&self, old: &serde_json::Value) -> Result<Imported, ChangeError> {
        config::import(old, PROBES).map_err(ChangeError::BadRequest)
    }

    /// Renders the labels anew if they are made in another way now, and waits for it.
    async fn renew_labels(&self, before: &Config) {
        let extra = self.config.load().config.extra();
        if extra != before.extra() {
            self.watcher.set_labels(Labels { node: self.facts.node.clone(), extra, ..Labels::default() });
            self.watcher.rescan().await;
        }
    }

    /// The configuration in force, every key with its value and where it was set.
    pub fn config_json(&self) -> serde_json::Value {
        let loaded = self.config.load();
        let mut keys = serde_json::Map::new();
        for key in config::KEYS {
            let origin =
                loaded.settings.get(key.path).map_or_else(|| "default".into(), |s| s.origin.to_string());
            keys.insert(
                key.path.to_owned(),
                serde_json::json!({ "value": plain(&key.show(&loaded.config)), "from": origin }),
            );
        }
        for slot in self.slots().iter() {
            for (name, value) in &slot.effective.options {
                let from = slot.effective.options_by.get(name).unwrap_or(&Layer::Default).to_string();
                let key = format!("probes.{}.{name}", slot.probe.name);
                keys.insert(key, serde_json::json!({ "value": value, "from": from }));
            }
            let from = slot.effective.decided_by.to_string();
            let key = format!("probes.{}.enabled", slot.probe.name);
            keys.insert(key, serde_json::json!({ "value": slot.effective.enabled, "from": from }));
        }
        let files: Vec<String> = loaded.files.iter().map(|file| file.display().to_string()).collect();
        serde_json::json!({ "files": files, "settings": keys })
    }

    /// Accumulates what a pass cost and logs what failed, once per cause.
    pub(super) fn note(&self, snapshot: &super::pass::Snapshot) {
        let mut noted = lock(&self.noted);
        if noted.is_some_and(|noted| noted >= snapshot.taken) {
            return;
        }
        *noted = Some(snapshot.taken);
        let (mut cpu, mut errors, mut absent) = (lock(&self.cpu), lock(&self.errors), lock(&self.absent));
        for (at, report) in snapshot.reports.iter().enumerate().filter(|(_, report)| report.ran) {
            cpu[at].last = Some(report.cpu);
            cpu[at].total += report.cpu;
            cpu[at].retries += u64::from(report.retries);
            if absent[at] != report.not_here {
                absent[at].clone_from(&report.not_here);
            }
            if errors[at] != report.error {
                if let Some(error) = &report.error {
                    let source = self.sources.all[at].name();
                    tracing::warn!(source, failed = report.failed, "{error}");
                }
                errors[at].clone_from(&report.error);
            }
        }
    }
}

impl Problem {
    /// Whether it is not time to try again.
    fn waits(&self) -> bool {
        self.state == StateName::NotAvailable || self.retry.is_some_and(|(at, _)| at > Instant::now())
    }
}

fn parse_patch(probe: &Probe, patch: &ProbePatch) -> Result<(Override, Keep), ChangeError> {
    let mut change = Override { enabled: patch.enabled, ..Override::default() };
    for (name, text) in &patch.options {
        let Some(decl) = probe.options.iter().find(|decl| decl.name == name) else {
            let names: Vec<&str> = probe.options.iter().map(|decl| decl.name).collect();
            let known =
                if names.is_empty() { "it has none".into() } else { format!("it has: {}", names.join(", ")) };
            return Err(ChangeError::BadRequest(format!(
                "probe '{}' has no option '{name}'; {known}",
                probe.name
            )));
        };
        let value = config::parse_option(decl, text)
            .map_err(|error| ChangeError::BadRequest(format!("{}.{name}: {error}", probe.name)))?;
        change.options.insert(name.clone(), value);
    }
    if change.enabled.is_none() && change.options.is_empty() {
        return Err(ChangeError::BadRequest("nothing to change: give \"enabled\" or \"options\"".into()));
    }
    let keep = match (&patch.lease, patch.runtime) {
        (Some(lease), _) => {
            let length =
                config::parse_duration(lease).map_err(|e| ChangeError::BadRequest(format!("for: {e}")))?;
            if length < Duration::from_secs(1) || length > MAX_LEASE {
                return Err(ChangeError::BadRequest(format!("for: '{lease}' is not between 1s and 30 days")));
            }
            // The clock is read in whole seconds, and part of this one is gone: the lease is not to end too early.
            Keep::Lease(length, unix_now() + length.as_secs() + 1)
        }
        (None, true) => Keep::Runtime,
        (None, false) => Keep::Always,
    };
    Ok((change, keep))
}

fn describe_change(probe: &Probe, change: &Override, now: &Effective, keep: &Keep) -> String {
    let mut text = match change.enabled {
        Some(true) => format!("{} is on", probe.name),
        Some(false) => format!("{} is off", probe.name),
        None => format!("options of {} changed", probe.name),
    };
    for (name, value) in &change.options {
        text.push_str(&format!(", {name}={value}"));
    }
    match keep {
        Keep::Lease(length, _) => text.push_str(&format!(" for {}", config::format_duration(*length))),
        Keep::Runtime => text.push_str(" until changed again or the next boot"),
        Keep::Always => {}
    }
    if change.enabled.is_some_and(|enabled| enabled != now.enabled) {
        text =
            format!("stored, but {} stays {}: {} decides", probe.name, on_off(now.enabled), now.decided_by);
    }
    text
}

/// A value as it is written in a configuration file, as JSON.
fn plain(written: &str) -> serde_json::Value {
    let parsed = toml::from_str::<BTreeMap<String, serde_json::Value>>(&format!("v = {written}"));
    parsed.ok().and_then(|mut table| table.remove("v")).unwrap_or_else(|| written.into())
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// What a reload changes, one sentence each. Some things only take effect with a restart, and that is said.
fn differences(before: &config::Loaded, after: &config::Loaded) -> Vec<String> {
    const RESTART: [&str; 6] =
        ["http.listen", "http.max_connections", "node_name", "paths.proc", "paths.sys", "paths.run"];
    let mut changes = Vec::new();
    for key in config::KEYS {
        let (old, new) = (key.show(&before.config), key.show(&after.config));
        if old != new {
            let when =
                if RESTART.contains(&key.path) { "; it takes effect with the next restart" } else { "" };
            changes.push(format!("{}: {old} -> {new}{when}", key.path));
        }
    }
    for probe in PROBES {
        let of = |loaded: &config::Loaded| {
            let effective = effective(probe, &loaded.config, None, 0);
            (effective.enabled, effective.options)
        };
        let (old, new) = (of(before), of(after));
        if old.0 != new.0 {
            changes.push(format!("probes.{}.enabled: {} -> {}", probe.name, old.0, new.0));
        }
        for (name, value) in new.1 {
            if old.1.get(name) != Some(&value) {
                changes.push(format!("probes.{}.{name}: {value}", probe.name));
            }
        }
    }
    changes
}
