//! What a loaded BPF object can be told.

use crate::duration::parse_duration;
use crate::hooks::Options;
use netskoop_api::OptionValue;

/// What can be changed while an object is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Values of the probe's options.
    pub options: Options,
    /// Events per second of one kind in one namespace; 0 for no limit.
    pub rate: u32,
    /// Events that may come at once before the rate holds.
    pub burst: u32,
}

impl Settings {
    /// A boolean option; off if it is not there.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.options.get(name), Some(OptionValue::Bool(true)))
    }

    /// A duration in nanoseconds; 0 if it is not there.
    pub fn nanoseconds(&self, name: &str) -> u64 {
        match self.options.get(name) {
            Some(OptionValue::Text(text)) => parse_duration(text)
                .map_or(0, |duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
            _ => 0,
        }
    }

    /// A list option; empty if it is not there.
    pub fn list(&self, name: &str) -> &[String] {
        match self.options.get(name) {
            Some(OptionValue::List(words)) => words,
            _ => &[],
        }
    }

    /// The rate as the programs want it: nanoseconds between events, and by how much they may come early.
    pub fn limit(&self) -> (u64, u64) {
        match 1_000_000_000u64.checked_div(u64::from(self.rate)) {
            None => (0, 0),
            Some(interval) => {
                let interval = interval.max(1);
                (interval, interval * u64::from(self.burst.max(1) - 1))
            }
        }
    }
}
