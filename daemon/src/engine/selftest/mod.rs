//! The proof on this kernel: in two namespaces of its own the daemon makes things go wrong, and looks whether events and
//! metrics tell of them under the right name. All of it hangs on two threads, so nothing of it can stay.

mod checks;
mod deeds;
mod judge;
mod stage;

use super::pass::PassError;
use super::select::Selection;
use super::{ChangeError, Engine, Peer, Slot};
use crate::config::option_default;
use crate::declare::{Names, Probe};
use crate::hooks::Options;
use crate::probes::{PROBES, gone};
use crate::resolve::watcher::Guest;
use checks::{
    BURST, CHECKS, Check, FILTERS, HISTORY, IGNORED, NXDOMAIN, PARTS, PORTS, SLOW, TIMEOUT, why_untried,
};
use deeds::{Deed, Order};
use judge::{Events, Judge, Readings, not_provoked, plain};
use netskoop_api::{OptionValue, SelfCheck, SelfResult, SelfTest, StateName};
use stage::{Role, Stage};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is not told by then is not told.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long something slow takes if nobody wants more.
const HELD: Duration = Duration::from_millis(60);

/// A check of a probe that works.
struct Planned {
    check: &'static Check,
    /// Why no event is to be expected, although there is one.
    silent: Option<String>,
    /// Why nothing is to be expected at all.
    blind: Option<String>,
}

/// What is done with a probe.
enum Plan {
    Try(Vec<Planned>),
    Skip(SelfResult, String),
    /// It tells of the end of the namespaces.
    AtTheEnd,
}

impl Engine {
    /// `POST /v1/selftest`. It goes on to its end, which is seconds away, if whoever asked for it does not wait.
    pub async fn self_test(self: &Arc<Engine>, peer: &Peer) -> Result<SelfTest, ChangeError> {
        let busy = |_| ChangeError::Busy("a self-test runs already; it takes a few seconds".into());
        let place = Arc::clone(&self.testing).try_lock_owned().map_err(busy)?;
        tracing::info!(uid = peer.uid, pid = peer.pid, "self-test requested");
        let engine = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = engine.play_until_sure().await;
            drop(place);
            // Whether or not anybody waits.
            note(&result);
            result
        });
        let result = task.await.map_err(|error| format!("the self-test broke off: {error}"));
        result.and_then(|result| result).map_err(ChangeError::NotAvailable)
    }

    /// What failed is tried once more: a packet may be lost, and a hook missed, for reasons that are not a probe's.
    async fn play_until_sure(&self) -> Result<SelfTest, String> {
        let begin = Instant::now();
        let mut checks = self.play(|_| true).await?;
        let doubtful: BTreeSet<String> = failed(&checks).map(|check| check.probe.clone()).collect();
        if !doubtful.is_empty() {
            for check in failed(&checks) {
                tracing::warn!(probe = check.probe, "self-test, tried again: {}", check.says);
            }
            let again = self.play(|probe| doubtful.contains(probe.name)).await?;
            checks = merged(checks, again);
        }
        // To the millisecond.
        let seconds = (begin.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let passed = failed(&checks).next().is_none();
        Ok(SelfTest { passed, seconds, checks })
    }

    async fn play(&self, is_wanted: impl Fn(&Probe) -> bool) -> Result<Vec<SelfCheck>, String> {
        let wanted = PROBES.iter().filter(|probe| is_wanted(probe));
        let plans: Vec<(&'static Probe, Plan)> = wanted.map(|probe| (*probe, self.plan(probe))).collect();
        let stood: Vec<_> = plans.iter().map(|(probe, _)| self.asked_for(probe)).collect();
        let planned = || plans.iter().filter_map(|(_, plan)| plan.tries()).flatten();
        let order = self.order(planned);
        let proc = self.config.load().config.proc.clone();
        let mut stage = blocking(move || Stage::build(&proc)).await??;
        // Whoever else follows the stream keeps the place.
        let mut news = self.history.follow(usize::MAX).ok_or("the events cannot be followed")?;
        let mut events = Events::new(&stage, self.history.last_seq());
        self.introduce(&stage).await?;
        let probes: Vec<&'static Probe> =
            plans.iter().filter(|(_, plan)| plan.tries().is_some()).map(|(probe, _)| *probe).collect();
        let before = self.readings(&stage, &probes).await?;
        let work = blocking(move || {
            let done = deeds::all(&mut stage, &order);
            (stage, done)
        });
        let (stage, done) = self.while_following(&mut news, &mut events, work).await??;
        let (connections, after) = (stage.connections, Readings::default());
        let mut judge = Judge { done, connections, before, after };
        let has_all = |events: &Events| planned().all(|plan| judge.has_all(plan, events));
        self.await_events(&mut news, &mut events, has_all).await;
        judge.after = self.readings(&stage, &probes).await?;
        let inodes = Role::ALL.map(|role| stage.room(role).inode);
        blocking(move || drop(stage)).await?;
        let left = self.await_end(inodes).await;
        let mut checks = Vec::new();
        for ((probe, plan), stood) in plans.iter().zip(stood) {
            match plan {
                Plan::Try(_) if self.asked_for(probe) != stood => {
                    let says = "it was switched or changed meanwhile; try again".to_owned();
                    checks.push(plain(probe.name, SelfResult::Skipped, says));
                }
                Plan::Try(all) => checks.extend(all.iter().map(|plan| judge.verdict(plan, &events))),
                Plan::Skip(result, says) => checks.push(plain(probe.name, *result, says.clone())),
                Plan::AtTheEnd => checks.push(self.farewells(&mut news, &mut events).await),
            }
        }
        checks.push(left);
        Ok(checks)
    }

    /// All that has to be done for what is planned.
    fn order<'a, I: Iterator<Item = &'a Planned>>(&self, planned: impl Fn() -> I) -> Order {
        let wanted = |deed: &Deed| planned().any(|plan| plan.blind.is_none() && plan.check.deed == *deed);
        let ports = self.option("dns", PORTS);
        let first = match &ports {
            Some(OptionValue::List(ports)) => ports.first().and_then(|port| port.parse().ok()),
            _ => None,
        };
        Order {
            deeds: Deed::ALL.into_iter().filter(wanted).collect(),
            held: self.held(planned()),
            dns_port: first.unwrap_or(53),
        }
    }

    /// What to do with a probe as it stands.
    fn plan(&self, probe: &'static Probe) -> Plan {
        let is_gone = std::ptr::eq(probe, &raw const gone::PROBE);
        let is_tried = is_gone || CHECKS.iter().any(|check| check.probe == probe.name);
        let info = self.probe_info(probe);
        let reason = info.state.reason.unwrap_or_default();
        match info.state.state {
            StateName::On => {}
            StateName::Off if is_tried => {
                let says = format!("it is off; to try it: netskoopctl probes enable {} --for 1m", probe.name);
                return Plan::Skip(SelfResult::Skipped, says);
            }
            StateName::Off => return Plan::Skip(SelfResult::Skipped, "it is off".into()),
            StateName::NotAvailable | StateName::Paused => return Plan::Skip(SelfResult::Skipped, reason),
            StateName::Failed | StateName::Starting => {
                return Plan::Skip(SelfResult::Failed, format!("it does not work: {reason}"));
            }
        }
        if is_gone {
            return Plan::AtTheEnd;
        }
        if !is_tried {
            return Plan::Skip(SelfResult::Skipped, not_provoked(why_untried(probe.name)));
        }
        let checks = CHECKS.iter().filter(|check| check.probe == probe.name);
        let plan = |check| Planned {
            check,
            silent: self.silence(check).or_else(|| self.shortage(check)),
            blind: self.blindness(check, &reason),
        };
        Plan::Try(checks.map(plan).collect())
    }

    /// Why a probe cannot see what is done for a check.
    fn blindness(&self, check: &Check, reason: &str) -> Option<String> {
        let is_on = |option| self.option(check.probe, option) == Some(OptionValue::Bool(true));
        if let Some(blind) = check.blind.filter(|blind| reason.contains(blind.says) && !is_on(blind.unless)) {
            return Some(blind.says.into());
        }
        let without_hooks =
            self.slots().iter().find(|slot| slot.probe.name == check.probe)?.without_hooks.clone();
        if without_hooks.is_some() {
            return without_hooks;
        }
        if let Some(option) = PARTS.into_iter().find(|option| self.is_changed(check.probe, option)) {
            return Some(format!("the option {option} may leave it out"));
        }
        let timeout = self.duration(check.probe, TIMEOUT).filter(|_| check.deed.is_held())?;
        let longest = check.deed.longest();
        (timeout <= longest).then(|| {
            format!("since the option {TIMEOUT} is {timeout:?} it does not wait for an answer that takes up to {longest:?}")
        })
    }

    /// An option that is a length of time.
    fn duration(&self, probe: &str, option: &str) -> Option<Duration> {
        let Some(OptionValue::Text(text)) = self.option(probe, option) else { return None };
        crate::config::parse_duration(&text).ok()
    }

    /// The value of an option in force.
    fn option(&self, probe: &str, option: &str) -> Option<OptionValue> {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.probe.name == probe)?;
        slot.effective.options.get(option).cloned()
    }

    /// Whether an option is there and not as declared.
    fn is_changed(&self, probe: &str, option: &str) -> bool {
        let mut all = PROBES.iter().filter(|known| known.name == probe).flat_map(|probe| probe.options);
        let decl = all.find(|decl| decl.name == option);
        decl.is_some_and(|decl| self.option(probe, option).is_some_and(|value| value != option_default(decl)))
    }

    /// What a probe is asked for at this moment, and its programs: others than before if it was switched off and on.
    fn asked_for(&self, probe: &Probe) -> Option<(Options, Vec<u32>)> {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.probe.name == probe.name)?;
        Some((slot.effective.options.clone(), self.standing(slot).state.programs))
    }

    /// From when on something is slow enough for an event.
    fn slow(&self, check: &Check) -> Option<Duration> {
        self.duration(check.probe, SLOW).filter(|_| check.deed.is_held() && !check.event.is_empty())
    }

    /// Why the options in force let a probe send no event.
    fn silence(&self, check: &Check) -> Option<String> {
        let longest = check.deed.longest();
        if let Some(slow) = self.slow(check).filter(|slow| *slow >= longest) {
            return Some(format!(
                "no event is expected, since the option slow is {slow:?} and {longest:?} is the most that the self-test makes"
            ));
        }
        if check.deed == Deed::Nameless && self.option(check.probe, NXDOMAIN) == Some(OptionValue::Bool(true))
        {
            return Some(format!("no event of type {} is expected with the option {NXDOMAIN}", check.event));
        }
        let is_set = |option: &str| {
            let value = self.option(check.probe, option);
            // Of name servers they say which ones are looked at.
            let is_filter = (check.probe, option) != ("dns", PORTS);
            is_filter && matches!(value, Some(OptionValue::List(words)) if !words.is_empty())
        };
        let is_throttled = |slot: &Slot| slot.probe.name == check.probe && slot.throttled.is_some();
        if !check.event.is_empty() && self.slots().iter().any(is_throttled) {
            return Some("no event is waited for, since the probe is throttled".into());
        }
        let filters = || FILTERS.into_iter().find(|option| is_set(option));
        if let Some(option) = filters().filter(|_| !check.event.is_empty()) {
            return Some(format!("no event is waited for, since the option {option} may leave it out"));
        }
        let Some(OptionValue::List(ignored)) = self.option(check.probe, IGNORED) else { return None };
        let (_, reason) = check.fields.iter().find(|(_, value)| ignored.iter().any(|word| word == value))?;
        Some(format!("no event is expected, since the option {IGNORED} names {reason}"))
    }

    /// Why an event may be withheld, or gone before it is looked at.
    fn shortage(&self, check: &Check) -> Option<String> {
        let loaded = self.config.load();
        let (burst, history) = (loaded.config.event_burst, loaded.config.history);
        if check.event.is_empty() {
            None
        } else if burst < BURST {
            Some(format!("no event is waited for, since events.burst is {burst}, which may withhold it"))
        } else {
            (history < HISTORY)
                .then(|| format!("no event is waited for, since events.history keeps {history} only"))
        }
    }

    /// How long something has to take so that all find it slow.
    fn held<'a>(&self, planned: impl Iterator<Item = &'a Planned>) -> Duration {
        let enough = |plan: &Planned| {
            let longest = plan.check.deed.longest();
            self.slow(plan.check).filter(|slow| *slow < longest).map(|slow| (slow + HELD).min(longest))
        };
        planned.filter_map(enough).fold(HELD, Duration::max)
    }

    /// Makes the two namespaces known like any other, by the threads that live in them.
    async fn introduce(&self, stage: &Stage) -> Result<(), String> {
        if !stage.is_whole() {
            return Err("the cable between two network namespaces vanished at once".into());
        }
        for role in Role::ALL {
            let (room, name) = (stage.room(role), role.name());
            self.watcher.welcome(Guest { inode: room.inode, thread: room.id, name: name.into() });
        }
        let is_known = |role: &Role| {
            let directory = self.watcher.directory();
            let entry = directory.by_inode(stage.room(*role).inode);
            entry.is_some_and(|entry| entry.id.name.starts_with(role.name()))
        };
        let all = || Role::ALL.iter().all(is_known);
        self.await_picture(all).await.then_some(()).ok_or_else(|| {
            format!("its own network namespaces were not found in /proc within {PATIENCE:?}, so nothing could be tried")
        })
    }

    /// Waits for a picture of the namespaces that is as wanted; whether there was one in time.
    async fn await_picture(&self, is_good: impl Fn() -> bool) -> bool {
        let mut changes = self.watcher.changes();
        let wait = async { while !is_good() && changes.changed().await.is_ok() {} };
        // Whatever came of it is looked at once more.
        let _ = tokio::time::timeout(PATIENCE, wait).await;
        is_good()
    }

    async fn readings(&self, stage: &Stage, probes: &[&'static Probe]) -> Result<Readings, String> {
        let probes = Some(probes.to_vec());
        let selection = Selection { names: vec![Names::Netskoop], target: false, full: true, probes };
        let chosen = selection.choose(&self.active(), &self.sources);
        let timeout = self.config.load().config.timeout;
        let snapshot = self.collect(&chosen, Duration::ZERO, timeout).await;
        let snapshot =
            snapshot.map_err(|error: PassError| format!("the metrics could not be read: {error}"))?;
        let directory = &snapshot.directory;
        let mut readings = Readings::default();
        for role in Role::ALL {
            let entry = directory.by_inode(stage.room(role).inode);
            let subject = entry.ok_or("its own network namespaces vanished while they were looked at")?;
            readings.put(Some(role), self.values(&snapshot, &chosen, subject.namespace.subject));
        }
        readings.put(None, self.values(&snapshot, &chosen, directory.host()));
        Ok(readings)
    }

    /// The threads have ended; now the namespaces have to be gone from the picture as well.
    async fn await_end(&self, inodes: [u32; 2]) -> SelfCheck {
        self.watcher.rescan().await;
        let is_ours = |inode: &u32| {
            let directory = self.watcher.directory();
            directory
                .by_inode(*inode)
                .is_some_and(|entry| Role::ALL.iter().any(|role| entry.id.name.starts_with(role.name())))
        };
        match self.await_picture(|| !inodes.iter().any(is_ours)).await {
            true => plain("selftest", SelfResult::Ok, "nothing is left of it".into()),
            false => {
                let says = format!("its network namespaces are still there after {PATIENCE:?}");
                plain("selftest", SelfResult::Failed, says)
            }
        }
    }

    /// The probe that tells of namespaces that have ended.
    async fn farewells(&self, news: &mut watch::Receiver<u64>, events: &mut Events) -> SelfCheck {
        let kind = gone::PROBE.events[0].name;
        let (result, says) = match self.await_events(news, events, |events| events.told_of_all(kind)).await {
            true => (SelfResult::Ok, format!("{kind} event of each namespace, attributed")),
            false => (SelfResult::Failed, format!("no {kind} event of each namespace within {PATIENCE:?}")),
        };
        plain(gone::PROBE.name, result, says)
    }

    /// Collects events until they are as wanted; whether they were in time.
    async fn await_events(
        &self,
        news: &mut watch::Receiver<u64>,
        events: &mut Events,
        is_good: impl Fn(&Events) -> bool,
    ) -> bool {
        let wait = async {
            while !is_good(events) && news.changed().await.is_ok() {
                events.gather(&self.history);
            }
        };
        // Whatever came of it is looked at once more.
        let _ = tokio::time::timeout(PATIENCE, wait).await;
        events.gather(&self.history);
        is_good(events)
    }

    /// Collects events as long as something goes on, so that none is pushed out by others.
    async fn while_following<T>(
        &self,
        news: &mut watch::Receiver<u64>,
        events: &mut Events,
        work: impl Future<Output = T>,
    ) -> Result<T, String> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => {
                    events.gather(&self.history);
                    return Ok(result);
                }
                changed = news.changed() => {
                    changed.map_err(|error| format!("the events cannot be followed: {error}"))?;
                    events.gather(&self.history);
                }
            }
        }
    }
}

impl Plan {
    fn tries(&self) -> Option<&[Planned]> {
        match self {
            Plan::Try(planned) => Some(planned),
            Plan::Skip(..) | Plan::AtTheEnd => None,
        }
    }
}

/// Writes down how it ended.
fn note(result: &Result<SelfTest, String>) {
    let test = match result {
        Ok(test) => test,
        Err(why) => return tracing::warn!("no self-test: {why}"),
    };
    failed(&test.checks).for_each(|check| tracing::warn!(probe = check.probe, "self-test: {}", check.says));
    tracing::info!(passed = test.passed, seconds = test.seconds, "self-test ended");
}

fn failed(checks: &[SelfCheck]) -> impl Iterator<Item = &SelfCheck> {
    checks.iter().filter(|check| check.result == SelfResult::Failed)
}

/// The checks of both attempts: the second counts where there was one, and says what the first had said.
fn merged(first: Vec<SelfCheck>, again: Vec<SelfCheck>) -> Vec<SelfCheck> {
    let mut again = VecDeque::from(again);
    let mut checks = Vec::with_capacity(first.len());
    for check in first {
        let Some(at) = again.iter().position(|other| other.probe == check.probe) else {
            // All that was tried again of this probe stands here already, or nothing was.
            checks.push(check);
            continue;
        };
        let Some(mut other) = again.remove(at) else { continue };
        if check.result == SelfResult::Failed && other.result == SelfResult::Ok {
            other.says += &format!(" (at the second attempt; at the first: {})", check.says);
        }
        checks.push(other);
    }
    checks.extend(again);
    checks
}

/// Runs what may block on a thread where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("the self-test broke off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_again_stands_in_its_place_with_what_the_first_attempt_said() {
        let check = |probe, result, says: &str| plain(probe, result, says.into());
        let (ok, failed) = (SelfResult::Ok, SelfResult::Failed);
        let first = vec![
            check("packetloss", ok, "a"),
            check("tcpretrans", ok, "b4"),
            check("tcpretrans", failed, "b6"),
            check("tcprtt", failed, "c"),
            check("selftest", ok, "d"),
        ];
        let again = vec![
            check("tcpretrans", ok, "B4"),
            check("tcpretrans", ok, "B6"),
            check("tcprtt", failed, "C"),
            check("selftest", failed, "D"),
        ];
        let merged = merged(first, again);
        let seen: Vec<_> = merged.iter().map(|c| (&*c.probe, c.result, &*c.says)).collect();
        let expected = [
            ("packetloss", ok, "a"),
            ("tcpretrans", ok, "B4"),
            ("tcpretrans", ok, "B6 (at the second attempt; at the first: b6)"),
            ("tcprtt", failed, "C"),
            ("selftest", failed, "D"),
        ];
        assert_eq!(seen, expected);
    }
}
