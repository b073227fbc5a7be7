//! Keeps the cost of BPF programs within bounds: now and then their runs are measured for a moment. A probe whose programs take
//! more of a CPU than `limits.bpf_cpu` sends few events for a while, if that can help, and else is switched off; an event says so.
//!
//! A probe that is on unless somebody says otherwise has programs that only trouble runs, and then it is wanted most. What is
//! left of it without events is counting, a small part of what the trouble costs itself: it goes on doing that up to a
//! multiple of the limit on each CPU, which is there for programs that are slow for a reason nobody thought of.
//!
//! The measuring itself costs each run of every program of the node some 60 ns, so it is on for a second a minute only.

use super::{Engine, Problem, lock};
use crate::config::format_percent;
use crate::declare::{EventDecl, Probe};
use crate::hooks::{Options, RawEvent};
use crate::kernel::bpf::count_runs;
use crate::probes::PROBES;
use netskoop_api::{OptionValue, StateName, Value};
use std::time::{Duration, Instant};

/// The first look, when the traffic of a node that has just started is there.
const FIRST: Duration = Duration::from_secs(5);
/// From one look to the next.
const PAUSE: Duration = Duration::from_secs(60);
/// To the second look at a probe that was too expensive in the first: a burst is no reason to do something about it.
const SOON: Duration = Duration::from_secs(5);
/// Length of a look.
const WINDOW: Duration = Duration::from_secs(1);
/// How long a probe stays switched off, or has to be cheap before it sends all its events again.
const HOLD: Duration = Duration::from_secs(600);
/// An event with its stack takes at most so long in a program.
const EVENT_NS: u64 = 5_000;
/// Events a second of one kind in one namespace, and how many may come at once, while a probe is throttled.
const FEW: (u32, u32) = (1, 1);
/// What only trouble runs may take so many times the limit on each CPU.
const IN_TROUBLE: u32 = 10;

/// Events of the daemon itself.
pub static EVENTS: [EventDecl; 2] = [
    EventDecl {
        name: "PROBE_THROTTLED",
        aliases: &[],
        fields: &["reason"],
        help: "A probe's BPF programs cost more than limits.bpf_cpu allows: it sends one event a second of each kind and namespace, \
               without its stack, until it has cost less for ten minutes. It counts everything.",
    },
    EventDecl {
        name: "PROBE_SWITCHED_OFF",
        aliases: &[],
        fields: &["reason"],
        help: "A probe was switched off for ten minutes, because its BPF programs cost more than limits.bpf_cpu allows and \
               fewer events would not help.",
    },
];
static THROTTLED: &EventDecl = &EVENTS[0];
static SWITCHED_OFF: &EventDecl = &EVENTS[1];

/// What the programs of a probe have used since they were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In its programs.
    pub nanoseconds: u64,
    /// Events that they wrote to the ring.
    pub events: u64,
}

/// What the programs of a probe took while they were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The probe's name.
    pub(super) probe: &'static str,
    /// The part of one CPU, in hundredths of a percent.
    pub(super) cpu: u32,
    /// What its events can have taken of that.
    events: u32,
}

/// That a probe sends few events.
#[derive(Clone, Debug)]
pub(super) struct Throttled {
    /// When all are sent again.
    until: Instant,
    /// Why, one sentence.
    pub(super) sentence: String,
}

impl Throttled {
    fn new(sentence: String, now: Instant) -> Throttled {
        Throttled { until: now + HOLD, sentence }
    }

    /// Whether all events are to be sent again. A probe that is too expensive still has to be cheap for as long from now on.
    fn is_over(&mut self, share: Option<&Share>, budget: u32, now: Instant) -> bool {
        if share.is_some_and(|share| budget > 0 && share.cpu > budget) {
            self.until = now + HOLD;
        }
        self.until <= now
    }
}

/// Probes that were too expensive in the last look, and of which nothing was done yet.
#[derive(Debug, Default)]
struct Suspects(Vec<&'static str>);

impl Suspects {
    /// Those of the too expensive ones that were it in the last look as well, and the time to the next look.
    fn convict(&mut self, over: &[Share]) -> (Vec<Share>, Duration) {
        let (again, new): (Vec<Share>, Vec<Share>) =
            over.iter().partition(|share| self.0.contains(&share.probe));
        // What is done about the others has to show first.
        self.0 = new.iter().map(|share| share.probe).collect();
        (again, if over.is_empty() { PAUSE } else { SOON })
    }
}

/// The settings of a probe that is throttled, with the rate of its events.
pub(super) fn throttled(mut options: Options) -> (Options, (u32, u32)) {
    if let Some(stack) = options.get_mut("stack") {
        *stack = OptionValue::Bool(false);
    }
    (options, FEW)
}

impl Engine {
    /// Measures, throttles and switches off. Never returns.
    pub async fn govern(&self) {
        let (mut pause, mut suspects) = (FIRST, Suspects::default());
        loop {
            tokio::time::sleep(pause).await;
            let budget = self.config.load().config.bpf_cpu;
            let measured = if budget > 0 { self.measure().await } else { None };
            let Some(shares) = measured else {
                lock(&self.shares).clear();
                self.relax(&[], budget, Instant::now()).await;
                (pause, suspects) = (PAUSE, Suspects::default());
                continue;
            };
            let over: Vec<Share> =
                shares.iter().filter(|share| self.is_too_much(share, budget)).copied().collect();
            let again;
            (again, pause) = suspects.convict(&over);
            for share in &again {
                self.restrain(share, budget).await;
            }
            self.relax(&shares, budget, Instant::now()).await;
            *lock(&self.shares) = shares;
        }
    }

    /// The shares of all probes with hooks; `None` if there are none, or the kernel does not let us count.
    async fn measure(&self) -> Option<Vec<Share>> {
        if self.usage().is_empty() {
            return None;
        }
        let counting = match count_runs() {
            Ok(counting) => counting,
            Err(error) => {
                tracing::debug!(%error, "the cost of BPF programs is not known (it needs CAP_SYS_ADMIN)");
                return None;
            }
        };
        let (began, before) = (Instant::now(), self.usage());
        tokio::time::sleep(WINDOW).await;
        let (after, elapsed) = (self.usage(), began.elapsed());
        drop(counting);
        Some(shares(&before, &after, elapsed))
    }

    fn usage(&self) -> Vec<(&'static str, Usage)> {
        PROBES.iter().filter_map(|probe| Some((probe.name, self.hooks.usage(probe)?))).collect()
    }

    fn is_too_much(&self, share: &Share, budget: u32) -> bool {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.probe.name == share.probe);
        slot.is_some_and(|slot| share.cpu > most(slot.probe, slot.throttled.is_some(), budget, cpus()))
    }

    /// Throttles a probe that costs too much, or switches it off.
    async fn restrain(&self, share: &Share, budget: u32) {
        // Nobody else switches probes meanwhile.
        let _state = self.state.lock().await;
        let Some(at) = PROBES.iter().position(|probe| probe.name == share.probe) else { return };
        let probe = PROBES[at];
        let throttled = {
            let slot = &self.slots()[at];
            if !slot.effective.enabled {
                return;
            }
            slot.throttled.is_some()
        };
        let takes = format!(
            "its BPF programs took {} of a CPU, and limits.bpf_cpu allows {}",
            format_percent(share.cpu),
            format_percent(budget)
        );
        if !throttled && fewer_events_help(probe, share, budget) {
            self.throttle(at, &takes).await;
        } else {
            self.switch_off(at, &takes).await;
        }
    }

    async fn throttle(&self, at: usize, takes: &str) {
        let minutes = HOLD.as_secs() / 60;
        let sentence = format!(
            "throttled until it has cost less for {minutes} minutes: {takes}; everything is counted, and one event a second is \
             sent of each kind and namespace, without its stack"
        );
        let options = {
            let slot = &mut self.slots()[at];
            slot.throttled = Some(Throttled::new(sentence.clone(), Instant::now()));
            slot.effective.options.clone()
        };
        let probe = PROBES[at];
        tracing::warn!(probe = probe.name, "{sentence}");
        if let Err(problem) = self.start(probe, &options).await {
            // It goes on as before; if it stays too expensive, the next look tries again.
            self.slots()[at].throttled = None;
            tracing::warn!(probe = probe.name, "it cannot be throttled: {}", problem.sentence);
            return;
        }
        self.tell(probe, THROTTLED, &sentence);
    }

    async fn switch_off(&self, at: usize, takes: &str) {
        let probe = PROBES[at];
        let sentence = format!("switched off for {} minutes: {takes}", HOLD.as_secs() / 60);
        tracing::warn!(probe = probe.name, "{sentence}");
        self.hooks.stop(probe).await;
        {
            let slot = &mut self.slots()[at];
            let retry = Some((Instant::now() + HOLD, 0));
            slot.problem = Some(Problem { state: StateName::Paused, sentence: sentence.clone(), retry });
            slot.throttled = None;
        }
        self.switched.notify_one();
        self.tell(probe, SWITCHED_OFF, &sentence);
    }

    /// Lets probes send all their events again that have been cheap for a while.
    async fn relax(&self, shares: &[Share], budget: u32, now: Instant) {
        if self.slots().iter().all(|slot| slot.throttled.is_none()) {
            return;
        }
        let _state = self.state.lock().await;
        for (at, probe) in PROBES.iter().enumerate() {
            let (options, before) = {
                let slot = &mut self.slots()[at];
                let Some(throttled) = &mut slot.throttled else { continue };
                let share = shares.iter().find(|share| share.probe == probe.name);
                if !throttled.is_over(share, budget, now) {
                    continue;
                }
                (slot.effective.options.clone(), slot.throttled.take())
            };
            if let Err(problem) = self.start(probe, &options).await {
                self.slots()[at].throttled = before;
                tracing::warn!(probe = probe.name, "it stays throttled: {}", problem.sentence);
                continue;
            }
            tracing::info!(probe = probe.name, "it sends all its events again");
        }
    }

    fn tell(&self, probe: &'static Probe, decl: &'static EventDecl, sentence: &str) {
        let fields = vec![("reason", Value::Text(format!("{}: {sentence}", probe.name)))];
        self.announce(probe, RawEvent::found(decl, (self.hooks.host_netns(), 0), fields));
    }

    /// Hands over an event of the daemon itself.
    pub(super) fn announce(&self, probe: &'static Probe, event: RawEvent) {
        if let Some(intake) = &*lock(&self.intake) {
            intake.found(probe.name, event);
        }
    }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

/// Whether only trouble runs a probe's programs: a test holds those to it that are on without being asked for.
fn is_for_trouble(probe: &Probe) -> bool {
    probe.default_on
}

/// What a probe may take before something is done about it, in hundredths of a percent of one CPU; a budget of 0 is none. One
/// whose hooks are a part of it only is left alone.
fn most(probe: &Probe, throttled: bool, budget: u32, cpus: u32) -> u32 {
    match budget {
        _ if probe.hooks.is_some_and(|hooks| hooks.optional) => u32::MAX,
        0 => u32::MAX,
        _ if throttled && is_for_trouble(probe) => budget.saturating_mul(IN_TROUBLE).saturating_mul(cpus),
        budget => budget,
    }
}

/// Whether a probe may be within its budget with fewer events. One that only counts in trouble is not asked that much.
fn fewer_events_help(probe: &Probe, share: &Share, budget: u32) -> bool {
    is_for_trouble(probe) || share.cpu.saturating_sub(share.events) <= budget
}

/// What came between two readings, as parts of one CPU. A probe that was loaded anew counts from nothing.
fn shares(
    before: &[(&'static str, Usage)],
    after: &[(&'static str, Usage)],
    elapsed: Duration,
) -> Vec<Share> {
    let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
    let part =
        |nanoseconds: u64| u32::try_from(nanoseconds.saturating_mul(10_000) / elapsed).unwrap_or(u32::MAX);
    let share = |(probe, now): &(&'static str, Usage)| {
        let then = before.iter().find(|(known, _)| known == probe).map(|(_, then)| *then);
        let then = then.unwrap_or(Usage { nanoseconds: 0, events: 0 });
        let events = now.events.saturating_sub(then.events);
        Share {
            probe,
            cpu: part(now.nanoseconds.saturating_sub(then.nanoseconds)),
            events: part(events.saturating_mul(EVENT_NS)),
        }
    };
    after.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::{packetloss, tcprtt};

    fn usage(nanoseconds: u64, events: u64) -> Usage {
        Usage { nanoseconds, events }
    }

    #[test]
    fn shares_are_parts_of_one_cpu() {
        let before = [("a", usage(1000, 1)), ("b", usage(500, 1))];
        let after = [("a", usage(1000, 1)), ("b", usage(20_000_500, 2001)), ("c", usage(3_000_000_000, 0))];
        let found = shares(&before, &after, Duration::from_secs(1));
        let share = |probe, cpu, events| Share { probe, cpu, events };
        assert_eq!(found, [share("a", 0, 0), share("b", 200, 100), share("c", 30_000, 0)]);
    }

    fn share(probe: &'static str, cpu: u32) -> Share {
        Share { probe, cpu, events: 0 }
    }

    #[test]
    fn only_who_is_too_expensive_twice_in_a_row_is_restrained() {
        let mut suspects = Suspects::default();
        let mut look = |over: &[Share]| {
            let (again, pause) = suspects.convict(over);
            (again.iter().map(|share| share.probe).collect::<Vec<_>>(), pause)
        };
        assert_eq!(look(&[]), (vec![], PAUSE));
        assert_eq!(look(&[share("a", 300)]), (vec![], SOON), "a burst is none");
        assert_eq!(look(&[]), (vec![], PAUSE));
        assert_eq!(look(&[share("a", 300)]), (vec![], SOON));
        assert_eq!(look(&[share("a", 300), share("b", 900)]), (vec!["a"], SOON));
        // What was done about it has to show before more is done.
        assert_eq!(look(&[share("a", 300), share("b", 900)]), (vec!["b"], SOON));
        assert_eq!(look(&[share("a", 300)]), (vec!["a"], SOON));
    }

    #[test]
    fn ten_calm_minutes_end_it_and_trouble_begins_them_anew() {
        let (began, minute) = (Instant::now(), Duration::from_secs(60));
        let mut throttled = Throttled::new("why".to_owned(), began);
        let mut is_over = |cpu: Option<u32>, budget, at| {
            let share = cpu.map(|cpu| share("a", cpu));
            throttled.is_over(share.as_ref(), budget, began + at)
        };
        assert!(!is_over(Some(0), 200, minute) && !is_over(Some(200), 200, 9 * minute));
        assert!(!is_over(Some(201), 200, 9 * minute), "from now on");
        assert!(!is_over(Some(0), 200, 10 * minute) && !is_over(Some(0), 200, 18 * minute));
        assert!(is_over(Some(0), 200, 19 * minute));
        assert!(!is_over(Some(500), 200, 19 * minute), "in the very look that ends it");
        // Without a budget, or where nothing is measured any more, time alone ends it.
        assert!(!is_over(Some(500), 0, 28 * minute) && is_over(Some(500), 0, 29 * minute));
        assert!(is_over(None, 200, 29 * minute));
    }

    #[test]
    fn what_only_trouble_runs_goes_on_counting() {
        let (loss, rtt) = (&packetloss::PROBE, &tcprtt::PROBE);
        assert_eq!([most(loss, false, 200, 4), most(rtt, false, 200, 4)], [200, 200]);
        assert_eq!([most(loss, true, 200, 4), most(rtt, true, 200, 4)], [8000, 200]);
        assert_eq!([most(loss, true, 0, 4), most(rtt, false, 0, 4)], [u32::MAX, u32::MAX]);
        assert_eq!(most(loss, true, u32::MAX, u32::MAX), u32::MAX);
    }

    #[test]
    fn events_are_withheld_where_that_can_help() {
        let share = |cpu, events| Share { probe: "any", cpu, events };
        let help = |probe, cpu, events| fewer_events_help(probe, &share(cpu, events), 200);
        assert!(help(&packetloss::PROBE, 3000, 1));
        assert!(!help(&tcprtt::PROBE, 3000, 0) && !help(&tcprtt::PROBE, 3000, 2799));
        assert!(help(&tcprtt::PROBE, 3000, 2800) && help(&tcprtt::PROBE, 3000, 9999));
    }

    #[test]
    fn who_is_throttled_has_no_stacks() {
        let stack = |on| Options::from([("stack", OptionValue::Bool(on))]);
        assert_eq!(throttled(stack(true)), (stack(false), (1, 1)));
        assert_eq!(throttled(Options::new()), (Options::new(), (1, 1)));
    }
}
