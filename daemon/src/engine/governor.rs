//! Keeps the cost of BPF programs within bounds: now and then their runs are measured for a moment, and a probe whose
//! programs take more of a CPU than `limits.bpf_cpu` is switched off for a while, which an event says.
//!
//! The measuring itself costs each run of every program of the node some 60 ns, so it is on for a second a minute only.

use super::{Engine, Problem, lock};
use crate::config::format_percent;
use crate::declare::{EventDecl, Probe};
use crate::events::bus::Incoming;
use crate::hooks::RawEvent;
use crate::kernel::bpf::count_runs;
use crate::probes::PROBES;
use netskoop_api::Value;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The first look, when the traffic of a node that has just started is there.
const FIRST: Duration = Duration::from_secs(5);
/// From one look to the next.
const PAUSE: Duration = Duration::from_secs(60);
/// To the second look at a probe that was too expensive in the first: a burst is no reason to switch it off.
const SOON: Duration = Duration::from_secs(5);
/// Length of a look.
const WINDOW: Duration = Duration::from_secs(1);
/// How long a probe stays switched off.
const HOLD: Duration = Duration::from_secs(600);

/// Events of the daemon itself.
pub static EVENTS: [EventDecl; 1] = [EventDecl {
    name: "PROBE_SWITCHED_OFF",
    aliases: &[],
    fields: &["reason"],
    help: "A probe was switched off for ten minutes, because its BPF programs cost more than limits.bpf_cpu allows.",
}];

/// What the programs of a probe have used: nanoseconds, runs.
type Usage = (&'static str, u64, u64);

/// The part of one CPU that a probe's programs took, in hundredths of a percent.
pub type Share = (&'static str, u32);

impl Engine {
    /// Measures and switches off. Never returns.
    pub async fn govern(&self) {
        let (mut pause, mut before) = (FIRST, Vec::new());
        loop {
            tokio::time::sleep(pause).await;
            let Some(shares) = self.measure().await else {
                pause = PAUSE;
                continue;
            };
            let budget = self.config.load().config.bpf_cpu;
            let over = too_much(&shares, budget);
            for (probe, share) in over.iter().filter(|(probe, _)| before.contains(probe)) {
                self.switch_off(probe, *share, budget).await;
            }
            pause = if over.is_empty() { PAUSE } else { SOON };
            before = over.iter().map(|(probe, _)| *probe).collect();
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

    fn usage(&self) -> Vec<Usage> {
        let of = |probe: &&'static Probe| {
            self.hooks.usage(probe).map(|(nanoseconds, runs)| (probe.name, nanoseconds, runs))
        };
        PROBES.iter().filter_map(of).collect()
    }

    async fn switch_off(&self, name: &str, share: u32, budget: u32) {
        // Nobody else switches probes meanwhile.
        let _state = self.state.lock().await;
        let Some(at) = PROBES.iter().position(|probe| probe.name == name) else { return };
        let probe = PROBES[at];
        if !self.slots()[at].effective.enabled || probe.hooks.is_some_and(|hooks| hooks.optional) {
            return;
        }
        let sentence = format!(
            "switched off for {} minutes: its BPF programs took {} of a CPU, and limits.bpf_cpu allows {}",
            HOLD.as_secs() / 60,
            format_percent(share),
            format_percent(budget)
        );
        tracing::warn!(probe = name, "{sentence}");
        self.hooks.stop(probe).await;
        let retry = Some((Instant::now() + HOLD, 0));
        self.slots()[at].problem = Some(Problem { never: false, sentence: sentence.clone(), retry });
        self.switched.notify_one();
        self.tell(probe, sentence);
    }

    fn tell(&self, probe: &'static Probe, sentence: String) {
        let fields = vec![("reason", Value::Text(sentence))];
        self.announce(probe, RawEvent::found(&EVENTS[0], (self.hooks.host_netns(), 0), fields));
    }

    /// Hands over an event of the daemon itself.
    pub(super) fn announce(&self, probe: &'static Probe, event: RawEvent) {
        if let Some(intake) = &*lock(&self.intake) {
            self.counts.received.fetch_add(1, Ordering::Relaxed);
            intake.put(Incoming { probe: probe.name, event });
        }
    }
}

/// What came between two readings, as parts of one CPU. A probe that was loaded anew counts from nothing.
fn shares(before: &[Usage], after: &[Usage], elapsed: Duration) -> Vec<Share> {
    let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
    let share = |(name, now, _): &Usage| {
        let then = before.iter().find(|(known, ..)| known == name).map_or(0, |(_, then, _)| *then);
        let hundredths = now.saturating_sub(then).saturating_mul(10_000) / elapsed;
        (*name, u32::try_from(hundredths).unwrap_or(u32::MAX))
    };
    after.iter().map(share).collect()
}

/// The probes above the budget; a budget of 0 is none.
fn too_much(shares: &[Share], budget: u32) -> Vec<Share> {
    shares.iter().filter(|(_, share)| budget > 0 && *share > budget).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_parts_of_one_cpu() {
        let before = [("a", 1000, 1), ("b", 500, 1)];
        let after = [("a", 1000, 1), ("b", 20_000_500, 9), ("c", 3_000_000_000, 5)];
        let found = shares(&before, &after, Duration::from_secs(1));
        assert_eq!(found, [("a", 0), ("b", 200), ("c", 30_000)]);
        assert_eq!(too_much(&found, 200), [("c", 30_000)]);
        assert_eq!(too_much(&found, 199).len(), 2);
        assert!(too_much(&found, 0).is_empty());
    }
}
