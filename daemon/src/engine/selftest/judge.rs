//! Compares what was told with what was done.

use super::Planned;
use super::checks::{Amount, Check, Whose};
use super::deeds::{Attempt, Done, Undone};
use super::stage::{PORTS, Role, Stage, Version, second};
use crate::events::history::History;
use jiff::Timestamp;
use netskoop_api::{Event, MetricValue, Net, SelfCheck, SelfEvent, SelfResult, Value};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

/// Events looked at in one go, and kept at most.
const BATCH: usize = 256;
const MOST: usize = 4096;

/// The events that are of the self-test, by namespace or by address.
pub(super) struct Events {
    after: u64,
    inodes: [u32; 2],
    addresses: Vec<String>,
    ports: Range<u16>,
    found: Vec<Arc<Event>>,
}

impl Events {
    /// Those that come from now on.
    pub(super) fn new(stage: &Stage, after: u64) -> Events {
        let first = stage.at(Role::Client, Version::Four, 0).port();
        let of = |version| [Role::Client.address(version), Role::Server.address(version), second(version)];
        let addresses = Version::ALL.into_iter().flat_map(of);
        Events {
            after,
            inodes: Role::ALL.map(|role| stage.room(role).inode),
            addresses: addresses.map(|address: IpAddr| address.to_string()).collect(),
            ports: first..first + PORTS,
            found: Vec::new(),
        }
    }

    /// Takes what has come since the last time.
    pub(super) fn gather(&mut self, history: &History) {
        loop {
            let batch = history.read(self.after, BATCH);
            self.after = batch.next_after;
            if batch.events.is_empty() {
                return;
            }
            let ours: Vec<_> = batch.events.into_iter().filter(|event| self.is_ours(event)).collect();
            let room = MOST - self.found.len();
            self.found.extend(ours.into_iter().take(room));
        }
    }

    fn is_ours(&self, event: &Event) -> bool {
        let inside = event.entity.as_ref().is_some_and(|entity| self.inodes.contains(&entity.netns));
        let between = |net: &Net| [&net.src, &net.dst].into_iter().all(|end| self.addresses.contains(end));
        // The server's ports are the same each time.
        let now = |net: &Net| [net.sport, net.dport].iter().any(|port| self.ports.contains(port));
        inside || event.net.as_ref().is_some_and(|net| between(net) && now(net))
    }

    fn inode(&self, role: Role) -> u32 {
        self.inodes[usize::from(role == Role::Server)]
    }

    /// Whether an event of a type came of each of the namespaces.
    pub(super) fn told_of_all(&self, kind: &str) -> bool {
        let of = |inode: &u32| {
            let is_its = |event: &&Arc<Event>| event.entity.as_ref().is_some_and(|e| e.netns == *inode);
            self.found.iter().filter(|event| event.kind == kind).any(|event| is_its(&event))
        };
        self.inodes.iter().all(of)
    }

    /// Events of what was done that a check wants.
    fn of<'a>(&'a self, check: &'a Check, done: &'a Done) -> impl Iterator<Item = &'a Event> {
        self.found.iter().map(Arc::as_ref).filter(move |event| {
            let fits = |(name, wanted): &(&str, &str)| match event.fields.get(*name) {
                // Older kernels do not give each drop its reason.
                Some(Value::Text(value)) => value == wanted || value == "NOT_SPECIFIED",
                // This kernel does not tell.
                _ => true,
            };
            event.kind == check.event && is_of(event, &done.ends) && check.fields.iter().all(fits)
        })
    }

    /// The event under the right name.
    fn right<'a>(&'a self, check: &'a Check, done: &'a Done) -> Option<&'a Event> {
        let Whose::Of(role) = check.whose else { return None };
        let inode = self.inode(role);
        self.of(check, done).find(|event| event.entity.as_ref().is_some_and(|entity| entity.netns == inode))
    }
}

/// Whether an event tells of what went between the two, or of the one that was not there.
fn is_of(event: &Event, ends: &[SocketAddr; 2]) -> bool {
    let [_, nobody] = ends;
    match (&event.net, event.fields.get("neighbour")) {
        (Some(net), _) => is_between(net, ends),
        (None, Some(Value::Text(address))) => address.parse() == Ok(nobody.ip()),
        (None, _) => false,
    }
}

/// Whether a packet went from one to the other, or back.
fn is_between(net: &Net, [client, server]: &[SocketAddr; 2]) -> bool {
    let is = |address: &str, port: u16, end: &SocketAddr| {
        port == end.port() && address.parse::<IpAddr>() == Ok(end.ip())
    };
    let way =
        |from: &SocketAddr, to: &SocketAddr| is(&net.src, net.sport, from) && is(&net.dst, net.dport, to);
    way(client, server) || way(server, client)
}

/// Values of the native metrics of both namespaces, and of the node (`None`).
#[derive(Default)]
pub(super) struct Readings(Vec<(Option<Role>, Vec<MetricValue>)>);

impl Readings {
    /// Adds what was read.
    pub(super) fn put(&mut self, whose: Option<Role>, values: Vec<MetricValue>) {
        self.0.push((whose, values));
    }

    fn sum(&self, check: &Check) -> f64 {
        let whose = match check.whose {
            Whose::Of(role) => Some(role),
            Whose::Node => None,
        };
        let values = self.0.iter().filter(|(of, _)| *of == whose).flat_map(|(_, values)| values);
        let ours = values.filter(|value| value.metric == check.metric && value.labels.contains(check.label));
        ours.map(|value| value.value).sum()
    }
}

/// All that is known when everything is over.
pub(super) struct Judge {
    /// What was done.
    pub(super) done: Vec<Attempt>,
    /// Connections that were made for it.
    pub(super) connections: u64,
    /// What was counted before.
    pub(super) before: Readings,
    /// What was counted afterwards.
    pub(super) after: Readings,
}

impl Judge {
    fn done(&self, check: &Check) -> impl Iterator<Item = &Done> {
        self.done.iter().filter_map(|done| done.as_ref().ok()).filter(|done| done.deed == check.deed)
    }

    fn undone(&self, check: &Check) -> impl Iterator<Item = &Undone> {
        let undone = self.done.iter().filter_map(|done| done.as_ref().err());
        undone.filter(|(deed, _)| *deed == check.deed).map(|(_, why)| why)
    }

    /// By how much its counter has to grow.
    fn expected(&self, check: &Check) -> f64 {
        match check.amount {
            Amount::Connections => self.connections as f64,
            Amount::Each(amount) => self.done(check).map(|done| done.times as f64 * amount).sum(),
        }
    }

    /// Whether every event that a check wants has come.
    pub(super) fn has_all(&self, plan: &Planned, events: &Events) -> bool {
        plan.check.event.is_empty()
            || plan.silent.is_some()
            || plan.blind.is_some()
            || self.done(plan.check).all(|done| events.right(plan.check, done).is_some())
    }

    /// Why there is nothing to judge: what the probe is to see it cannot see here, or it cannot be done.
    fn nothing(&self, plan: &Planned) -> Option<String> {
        let impossible = self.undone(plan.check).find_map(|undone| match undone {
            Undone::Impossible(why) => Some(why),
            Undone::Failed(_) => None,
        });
        let is_tried = self.done(plan.check).next().is_some();
        plan.blind.clone().or_else(|| impossible.filter(|_| !is_tried).cloned())
    }

    /// How a check ended.
    pub(super) fn verdict(&self, plan: &Planned, events: &Events) -> SelfCheck {
        let check = plan.check;
        if let Some(why) = self.nothing(plan) {
            return plain(check.probe, SelfResult::Skipped, not_provoked(&why));
        }
        let failed = self.undone(check).filter_map(|undone| match undone {
            Undone::Failed(why) => Some(why.clone()),
            Undone::Impossible(_) => None,
        });
        let mut wrong: Vec<String> = failed.collect();
        let mut told = Vec::new();
        if !check.event.is_empty() && plan.silent.is_none() {
            for done in self.done(check) {
                match events.right(check, done) {
                    Some(event) => told.push(self_event(event, done)),
                    None => wrong.push(missing(check, done, events)),
                }
            }
        }
        let (before, after, expected) = (self.before.sum(check), self.after.sum(check), self.expected(check));
        // Sums of fractions are not equal in the last place.
        let grown = ((after - before) * 1e9).round() / 1e9;
        if grown < 0.0 {
            wrong.push(format!("{} fell by {}: the probe was started anew meanwhile", named(check), -grown));
        } else if grown < expected || check.exact && grown > expected {
            wrong.push(format!("{} grew by {grown} instead of {expected}", named(check)));
        }
        let result = if wrong.is_empty() { SelfResult::Ok } else { SelfResult::Failed };
        let says = match wrong.is_empty() {
            true => good(check, &told, grown, plan.silent.as_deref()),
            false => wrong.join("; "),
        };
        SelfCheck {
            events: told,
            metric: Some(named(check)),
            grown: Some(grown),
            expected: Some(expected),
            exact: check.exact,
            ..plain(check.probe, result, says)
        }
    }
}

/// A check without numbers.
pub(super) fn plain(probe: &str, result: SelfResult, says: String) -> SelfCheck {
    SelfCheck {
        probe: probe.to_owned(),
        result,
        says,
        events: vec![],
        metric: None,
        grown: None,
        expected: None,
        exact: false,
    }
}

/// What is said of a probe for which nothing is done.
pub(super) fn not_provoked(why: &str) -> String {
    format!("not provoked: {why}")
}

fn named(check: &Check) -> String {
    match check.label {
        "" => check.metric.to_owned(),
        label => format!("{}{{{label}}}", check.metric),
    }
}

fn self_event(event: &Event, done: &Done) -> SelfEvent {
    let time: Option<Timestamp> = event.time.parse().ok();
    let since = time.map_or(0.0, |time| time.duration_since(done.began).as_secs_f64());
    SelfEvent {
        kind: event.kind.clone(),
        version: done.version.as_str().to_owned(),
        seq: event.seq,
        // To the microsecond. The two clocks are read one after the other.
        milliseconds: ((since * 1e6).round() / 1e3).max(0.0),
        entity: event.entity.as_ref().map(|entity| entity.name.clone()).unwrap_or_default(),
    }
}

/// Why there is no event under the right name.
fn missing(check: &Check, done: &Done, events: &Events) -> String {
    let version = done.version.as_str();
    let Some(event) = events.of(check, done).next() else {
        return format!("no {} event came ({version})", check.event);
    };
    let whose = event.entity.as_ref().map_or("nobody", |entity| &entity.name);
    let wanted = match check.whose {
        Whose::Of(role) => role.name(),
        Whose::Node => "the node",
    };
    format!("the {} event ({version}) was told of {whose} and not of {wanted}", check.event)
}

/// `TCP_RESET_NOSOCK event in 0.2 ms (v4) and 0.1 ms (v6), attributed, counter +2`.
fn good(check: &Check, told: &[SelfEvent], grown: f64, silent: Option<&str>) -> String {
    let times: Vec<String> =
        told.iter().map(|event| format!("{} ms ({})", event.milliseconds, event.version)).collect();
    let mut says = match (check.whose, times.is_empty()) {
        (_, false) => {
            format!("{} event in {}, attributed, counter +{grown}", check.event, times.join(" and "))
        }
        (Whose::Node, true) => format!("{} +{grown}, of the node", named(check)),
        (Whose::Of(_), true) => format!("{} +{grown}, attributed", named(check)),
    };
    if let Some(silent) = silent {
        // Writing to a text does not fail.
        let _ = write!(says, "; {silent}");
    }
    says
}

#[cfg(test)]
mod tests {
    use super::super::checks::CHECKS;
    use super::super::deeds::Deed;
    use super::*;

    fn check(probe: &str, deed: Deed) -> &'static Check {
        CHECKS.iter().find(|check| check.probe == probe && check.deed == deed).unwrap()
    }

    fn done(deed: Deed, times: u64) -> Attempt {
        let ends = [SocketAddr::from(([192, 0, 2, 1], 1)), SocketAddr::from(([192, 0, 2, 2], 2))];
        Ok(Done { deed, version: Version::Four, began: Timestamp::UNIX_EPOCH, ends, times })
    }

    /// How a check without an event ends if its counter grows so much.
    fn verdict(check: &'static Check, done: Vec<Attempt>, grown: f64) -> SelfCheck {
        let reading = |value| {
            let mut readings = Readings::default();
            let labels = check.label.to_owned();
            let whose = match check.whose {
                Whose::Of(role) => Some(role),
                Whose::Node => None,
            };
            let [probe, metric, name, kind] = [check.probe, check.metric, "", "counter"].map(str::to_owned);
            let value = MetricValue { probe, metric, name, labels, kind, value, alarm: None };
            readings.put(whose, vec![value]);
            readings
        };
        let judge = Judge { done, connections: 7, before: reading(5.0), after: reading(5.0 + grown) };
        let events = Events { after: 0, inodes: [1, 2], addresses: vec![], ports: 0..0, found: vec![] };
        let silent = Some("no event is expected".to_owned());
        judge.verdict(&Planned { check, silent, blind: None }, &events)
    }

    #[test]
    fn what_nothing_else_makes_grow_grows_by_no_more() {
        let exact = check("udp", Deed::Overflow);
        for (grown, result) in
            [(13.0, SelfResult::Failed), (14.0, SelfResult::Ok), (15.0, SelfResult::Failed)]
        {
            let verdict = verdict(exact, vec![done(Deed::Overflow, 8), done(Deed::Overflow, 6)], grown);
            assert_eq!((verdict.result, verdict.expected, verdict.exact), (result, Some(14.0), true));
        }
        let least = check("tcp", Deed::Lost);
        for (grown, result) in [(0.0, SelfResult::Failed), (1.0, SelfResult::Ok), (9.0, SelfResult::Ok)] {
            assert_eq!(verdict(least, vec![done(Deed::Lost, 1)], grown).result, result);
        }
        let anew = verdict(least, vec![done(Deed::Lost, 1)], -4.0);
        assert_eq!(anew.result, SelfResult::Failed);
        assert!(anew.says.contains("fell by 4: the probe was started anew meanwhile"), "{}", anew.says);
        let all = check("listen", Deed::Kept);
        assert_eq!(
            verdict(all, vec![done(Deed::Kept, 1)], 6.0).says,
            format!("{} grew by 6 instead of 7", all.metric)
        );
        assert_eq!(verdict(all, vec![done(Deed::Kept, 1)], 7.0).result, SelfResult::Ok);
        let bytes = check("io", Deed::Read);
        assert_eq!(verdict(bytes, vec![done(Deed::Read, 4)], 16384.0).expected, Some(16384.0));
    }

    #[test]
    fn what_cannot_be_done_here_is_no_failure_and_what_should_be_is() {
        let check = check("biolatency", Deed::Read);
        let undone = |why: Undone| verdict(check, vec![Err((Deed::Read, why))], 0.0);
        let verdict = undone(Undone::Impossible("there is no disk".into()));
        assert_eq!((verdict.result, &*verdict.says), (SelfResult::Skipped, "not provoked: there is no disk"));
        let verdict = undone(Undone::Failed("a request to a disk could not be made: no".into()));
        assert_eq!(
            (verdict.result, &*verdict.says),
            (SelfResult::Failed, "a request to a disk could not be made: no")
        );
    }
}
