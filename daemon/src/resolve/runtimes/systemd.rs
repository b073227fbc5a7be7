//! Asks systemd, over the system bus, about units and machines that have a network namespace: description, main process,
//! the namespace's file, and the units that share it. Machines are asked of systemd-machined, if it runs.
//!
//! Nothing is connected before somebody asks. Signals are taken only of what was asked about, and only the bus looks at the
//! others. A signal is believed in nothing: it says where to look, so that no user of the node can tell us a wrong name.

mod ask;
mod bus;

use super::{Context, SourceError};
use crate::resolve::book::{State, Wanted};
use crate::resolve::workload::Role;
use ask::{Found, SYSTEMD, Thing, Watch};
use bus::{Bus, Object, Refusal};
use futures_core::Stream;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use zbus::{Message, MessageStream};

/// Units and machines that are remembered; the oldest goes when another one comes. dbus-daemon allows a connection 512
/// rules, and each needs one.
const MAX_THINGS: usize = 500;
/// Questions that wait. Those beyond stay in the source's inbox, which is bounded.
const MAX_WAITING: usize = 256;
/// Questions at one time. systemd answers one after the other anyway.
const AT_ONCE: usize = 4;
/// Changes are collected for so long: a unit that starts changes several times in a moment.
const COLLECT: Duration = Duration::from_millis(200);
/// Time without any answer that ends the connection. systemd says nothing for seconds while it reads its units again.
const MAX_SILENCE: Duration = Duration::from_secs(8);

/// Watches what is asked about, until the bus or systemd goes away.
pub(super) async fn run(context: &mut Context) -> Result<Infallible, SourceError> {
    let mut waiting: VecDeque<Thing> = context.reporter.page().iter().filter_map(|w| remembered(w)).collect();
    waiting.extend(context.unanswered.clone().and_then(thing));
    if waiting.is_empty() {
        context.reporter.state(State::Idle("no namespace belongs to a unit or machine yet".to_owned()));
        waiting.push_back(first_question(context).await);
        context.reporter.state(State::Connecting);
    }
    let bus = Bus::connect(&context.path).await.map_err(SourceError)?;
    let signals = bus.signals();
    let (what, owner) = introduce(&bus)
        .await
        .map_err(|why| SourceError(format!("{why}, on the bus {}", context.path.display())))?;
    context.reporter.connected(&what);
    context.unanswered = None;
    let mut source = Source {
        context,
        bus,
        owner,
        asking: JoinSet::new(),
        in_flight: FxHashSet::default(),
        waiting,
        changed: FxHashSet::default(),
        collect_until: Instant::now(),
        things: FxHashMap::default(),
        asked: 0,
        silent_since: None,
    };
    source.work(signals).await.map_err(SourceError)
}

/// What a workload on our page was made from.
fn remembered(workload: &crate::resolve::workload::Workload) -> Option<Thing> {
    match workload.role {
        Role::Unit => Some(Thing::Unit(workload.id.to_string())),
        Role::Machine => Some(Thing::Machine(workload.id.to_string())),
        Role::Container | Role::Sandbox => None,
    }
}

/// Waits for a question. It stays in mind until there is somebody to answer it.
async fn first_question(context: &mut Context) -> Thing {
    loop {
        match context.questions.recv().await {
            Some(wanted) => {
                context.unanswered = Some(wanted.clone());
                if let Some(thing) = thing(wanted) {
                    return thing;
                }
            }
            // Nobody will ever ask again.
            None => std::future::pending().await,
        }
    }
}

fn thing(wanted: Wanted) -> Option<Thing> {
    let thing = match wanted {
        Wanted::Unit(name) => Thing::Unit(name),
        Wanted::Machine(name) => Thing::Machine(name),
        Wanted::Container(_) => return None,
    };
    thing.is_possible().then_some(thing)
}

/// Finds systemd and has it send signals; what it is, and its own name on the bus.
async fn introduce(bus: &Bus) -> Result<(String, String), String> {
    let failed = |refusal| match refusal {
        Refusal::NoService => {
            "systemd is not there (nobody has the name org.freedesktop.systemd1)".to_owned()
        }
        refusal => refusal.to_string(),
    };
    let watched = [
        // systemd was started again, or `systemctl daemon-reexec`.
        format!(
            "type='signal',sender='{}',member='NameOwnerChanged',arg0='{}'",
            Object::BUS.service,
            SYSTEMD.service
        ),
        // `systemctl daemon-reload`: descriptions may be others, and no unit tells of that.
        format!(
            "type='signal',sender='{}',path='{}',interface='{}',member='Reloading'",
            SYSTEMD.service, SYSTEMD.path, SYSTEMD.interface
        ),
    ];
    for rule in &watched {
        bus.watch(rule).await.map_err(failed)?;
    }
    let owner: String = bus.call(Object::BUS, "GetNameOwner", &SYSTEMD.service).await.map_err(failed)?;
    let () = bus.call(SYSTEMD, "Subscribe", &()).await.map_err(failed)?;
    let version: Option<String> = bus.get(SYSTEMD, "Version").await.map_err(failed)?;
    Ok((format!("systemd {}", version.unwrap_or_default()).trim_end().to_owned(), owner))
}

/// A thing that is on our page.
struct Known {
    /// Its object on the bus.
    path: String,
    /// The rule with which the bus tells us of its changes; `None` if it would not take it.
    rule: Option<String>,
    /// Grows with every question; the lowest is the oldest.
    asked: u64,
}

type Answer = Result<(Option<Watch>, Option<Found>), Refusal>;

struct Source<'a> {
    context: &'a mut Context,
    bus: Bus,
    /// systemd's own name on the bus, by which its signals are known.
    owner: String,
    asking: JoinSet<(Thing, Answer)>,
    in_flight: FxHashSet<Thing>,
    waiting: VecDeque<Thing>,
    /// Things that have changed and are asked about again at `collect_until`.
    changed: FxHashSet<Thing>,
    collect_until: Instant,
    things: FxHashMap<Thing, Known>,
    asked: u64,
    silent_since: Option<Instant>,
}

async fn next(signals: &mut MessageStream) -> Option<zbus::Result<Message>> {
    std::future::poll_fn(|cx| Pin::new(&mut *signals).poll_next(cx)).await
}

impl Source<'_> {
    async fn work(&mut self, mut signals: MessageStream) -> Result<Infallible, String> {
        loop {
            self.ask_next();
            tokio::select! {
                message = next(&mut signals) => match message {
                    Some(Ok(message)) => self.signal(&message)?,
                    Some(Err(error)) => return Err(format!("the bus has gone away: {error}")),
                    None => return Err("the bus has gone away".to_owned()),
                },
                Some(done) = self.asking.join_next() => self.done(done)?,
                Some(wanted) = self.context.questions.recv(), if self.waiting.len() < MAX_WAITING => {
                    self.waiting.extend(thing(wanted));
                }
                () = tokio::time::sleep_until(self.collect_until), if !self.changed.is_empty() => {
                    self.waiting.extend(self.changed.drain());
                }
            }
        }
    }

    /// Asks as much as may be asked at one time.
    fn ask_next(&mut self) {
        while self.asking.len() < AT_ONCE {
            let Some(thing) = self.waiting.pop_front() else { return };
            if !self.in_flight.insert(thing.clone()) {
                // What is being answered now may be from before the change.
                self.look_later(thing);
                continue;
            }
            let watched = self.things.get(&thing).is_some_and(|known| known.rule.is_some());
            let bus = self.bus.clone();
            self.asking.spawn(async move {
                let answer = ask::ask(&bus, &thing, watched).await;
                (thing, answer)
            });
        }
    }

    fn look_later(&mut self, thing: Thing) {
        if self.changed.is_empty() {
            self.collect_until = Instant::now() + COLLECT;
        }
        self.changed.insert(thing);
    }

    fn done(&mut self, done: Result<(Thing, Answer), JoinError>) -> Result<(), String> {
        // Only a panic of the library comes here; what it was about is then unknown.
        let (thing, answer) = done.map_err(|_| "an answer of the bus could not be read".to_owned())?;
        self.in_flight.remove(&thing);
        match answer {
            Ok((watch, Some(found))) => {
                self.silent_since = None;
                self.found(thing, watch, found);
            }
            Ok((watch, None)) => {
                self.silent_since = None;
                self.unwatch(watch.and_then(Result::ok));
                self.forget(&thing);
            }
            Err(Refusal::Unknown | Refusal::NoService) => self.forget(&thing),
            Err(Refusal::Late(why)) => {
                if self.silent_since.get_or_insert_with(Instant::now).elapsed() > MAX_SILENCE {
                    return Err(why);
                }
                self.context.reporter.stumbled(&why);
                self.look_later(thing);
            }
            Err(Refusal::Useless(why)) => {
                self.context.reporter.stumbled(&format!("{}: {why}", thing.id()));
            }
            Err(Refusal::Lost(why)) => return Err(why),
        }
        Ok(())
    }

    fn found(&mut self, thing: Thing, watch: Option<Watch>, found: Found) {
        self.asked += 1;
        let rule = match watch {
            Some(Ok(rule)) => Some(rule),
            Some(Err(why)) => {
                let why = format!("changes of {} will not be seen: {why}", thing.id());
                self.context.reporter.stumbled(&why);
                None
            }
            None => self.things.get_mut(&thing).and_then(|known| known.rule.take()),
        };
        self.context.reporter.put(found.workload);
        self.things.insert(thing, Known { path: found.path, rule, asked: self.asked });
        if self.things.len() > MAX_THINGS {
            let oldest = self.things.iter().min_by_key(|(_, known)| known.asked);
            if let Some(oldest) = oldest.map(|(thing, _)| thing.clone()) {
                self.forget(&oldest);
            }
        }
    }

    fn forget(&mut self, thing: &Thing) {
        let rule = self.things.remove(thing).and_then(|known| known.rule);
        self.unwatch(rule);
        self.context.reporter.remove(thing.id());
    }

    fn unwatch(&self, rule: Option<String>) {
        if let Some(rule) = rule {
            let bus = self.bus.clone();
            // Nobody waits for it: a rule too many costs a wake-up at most.
            tokio::spawn(async move { bus.unwatch(&rule).await });
        }
    }

    fn signal(&mut self, message: &Message) -> Result<(), String> {
        if message.message_type() != zbus::message::Type::Signal {
            return Ok(());
        }
        let header = message.header();
        let (Some(sender), Some(path), Some(member)) = (header.sender(), header.path(), header.member())
        else {
            return Ok(());
        };
        let of_systemd = sender.as_str() == self.owner;
        match member.as_str() {
            "NameOwnerChanged" if sender.as_str() == Object::BUS.service => {
                return Err("systemd was started again".to_owned());
            }
            "Reloading" if of_systemd => self.look_again(|_, _| true),
            // What is being asked about for the first time has no path yet, and its answer may be from before.
            "PropertiesChanged" if of_systemd => {
                self.look_again(|_, known| known.is_none_or(|known| known.path == path.as_str()));
            }
            "MachineNew" | "MachineRemoved" => {
                let name = message.body().deserialize::<(String, zbus::OwnedObjectPath)>();
                let changed = name.map(|(name, _)| Thing::Machine(name)).ok();
                self.look_again(|thing, _| changed.as_ref() == Some(thing));
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes those that a signal is about, of the things that are known or being asked about.
    fn look_again(&mut self, is_about: impl Fn(&Thing, Option<&Known>) -> bool) {
        let known = self.things.iter().map(|(thing, known)| (thing, Some(known)));
        let new = self.in_flight.iter().filter(|thing| !self.things.contains_key(thing));
        let all = known.chain(new.map(|thing| (thing, None)));
        let changed = all.filter(|(thing, known)| is_about(thing, *known)).map(|(thing, _)| thing.clone());
        let changed: Vec<Thing> = changed.collect();
        if !changed.is_empty() {
            self.context.reporter.event();
        }
        changed.into_iter().for_each(|thing| self.look_later(thing));
    }
}

#[cfg(test)]
mod tests;
