//! What was changed while the daemon ran and is not configuration: runtime overrides and leases.
//!
//! They live in `<run>/netskoop/state.json`, survive a restart or upgrade of the daemon and vanish with the next boot.
//! A lease keeps its deadline over a restart, so it is kept as wall-clock time.

use super::atomic;
use super::source::read_bounded;
use netskoop_api::OptionValue;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Everything that was changed at run time, by probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State {
    /// Probes that were changed.
    pub probes: BTreeMap<String, ProbeOverrides>,
}

/// What was changed for one probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeOverrides {
    /// Until changed again (`--runtime`).
    #[serde(default, skip_serializing_if = "Override::is_empty")]
    pub runtime: Override,
    /// For a time (`--for 10m`); it wins over `runtime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// Settings that replace those of the configuration. What is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Override {
    /// On or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionValue>,
}

/// An override with an end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// What it sets.
    #[serde(flatten)]
    pub change: Override,
    /// When it ends, in seconds since 1970.
    pub until: u64,
}

impl Override {
    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        self.enabled.is_none() && self.options.is_empty()
    }

    /// Adds what another one sets; that one wins.
    pub fn merge(&mut self, other: &Override) {
        self.enabled = other.enabled.or(self.enabled);
        self.options.extend(other.options.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Removes what another one sets, whatever the values.
    fn forget(&mut self, other: &Override) {
        if other.enabled.is_some() {
            self.enabled = None;
        }
        self.options.retain(|name, _| !other.options.contains_key(name));
    }
}

impl State {
    /// Where the state is kept.
    pub fn file(run: &Path) -> PathBuf {
        run.join("netskoop/state.json")
    }

    /// Reads the state. Overrides are not worth a daemon that does not start: a file that makes no sense is renamed to
    /// `state.json.bad` and the second value is the sentence to log.
    pub fn load(run: &Path) -> (State, Option<String>) {
        let file = State::file(run);
        match read_state(&file) {
            Ok(state) => (state, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (State::default(), None),
            Err(error) => (State::default(), Some(set_aside(&file, &error))),
        }
    }

    /// Writes the state; the directory must exist.
    pub fn save(&self, run: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
        text.push(b'\n');
        atomic::replace(&State::file(run), &text, 0o640)
    }

    /// Sets something until it is changed again. A lease on the same settings ends: the last word counts. Switching on
    /// or off ends it whatever it sets.
    pub fn set_runtime(&mut self, probe: &str, change: &Override) {
        let overrides = self.probes.entry(probe.to_owned()).or_default();
        overrides.runtime.merge(change);
        self.end_leases_on(probe, change);
    }

    /// Sets something until a moment. A lease that runs already is extended or shortened to the same moment.
    pub fn set_lease(&mut self, probe: &str, change: &Override, until: u64) {
        let overrides = self.probes.entry(probe.to_owned()).or_default();
        let lease = overrides.lease.get_or_insert_with(|| Lease { change: Override::default(), until });
        lease.change.merge(change);
        lease.until = until;
    }

    /// Removes overrides and leases of what was now set in the configuration, so that it takes effect.
    pub fn settle(&mut self, probe: &str, change: &Override) {
        if let Some(overrides) = self.probes.get_mut(probe) {
            overrides.runtime.forget(change);
        }
        self.end_leases_on(probe, change);
    }

    /// Removes leases that are over; the names of the probes concerned.
    pub fn expire(&mut self, now: u64) -> Vec<String> {
        let mut expired = Vec::new();
        for (probe, overrides) in &mut self.probes {
            if overrides.lease.take_if(|lease| lease.until <= now).is_some() {
                expired.push(probe.clone());
            }
        }
        self.tidy();
        expired
    }

    /// When the next lease ends, in seconds since 1970.
    pub fn next_end(&self) -> Option<u64> {
        self.probes.values().filter_map(|overrides| overrides.lease.as_ref()).map(|lease| lease.until).min()
    }

    /// A word on on or off ends a lease entirely: whoever says that does not mean "and with these options for 10 m".
    fn end_leases_on(&mut self, probe: &str, change: &Override) {
        if let Some(overrides) = self.probes.get_mut(probe) {
            if let Some(lease) = &mut overrides.lease {
                lease.change.forget(change);
            }
            overrides.lease.take_if(|lease| change.enabled.is_some() || lease.change.is_empty());
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        self.probes.retain(|_, overrides| !overrides.runtime.is_empty() || overrides.lease.is_some());
    }
}

fn read_state(file: &Path) -> io::Result<State> {
    let bytes = read_bounded(file)?;
    serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn set_aside(file: &Path, error: &io::Error) -> String {
    let mut aside = file.as_os_str().to_owned();
    aside.push(".bad");
    let shown = file.display();
    let what = format!("{shown}: {error}; runtime overrides and leases are forgotten");
    match std::fs::rename(file, &aside) {
        Ok(()) => format!("{what}, the file is kept as {}", Path::new(&aside).display()),
        Err(error) => format!("{what}, and it could not be renamed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Dir;
    use super::*;

    fn on() -> Override {
        Override { enabled: Some(true), options: BTreeMap::new() }
    }

    fn limit(limit: u64) -> Override {
        Override { enabled: None, options: [("limit".to_owned(), OptionValue::Integer(limit))].into() }
    }

    fn run() -> Dir {
        let dir = Dir::new();
        std::fs::create_dir(dir.path().join("netskoop")).unwrap();
        dir
    }

    #[test]
    fn survives_a_restart() {
        let dir = run();
        let mut state = State::default();
        state.set_runtime("tcp", &on());
        state.set_lease("tcpreset", &on(), 2_000_000_000);
        state.set_lease("tcpreset", &limit(5), 2_000_000_001);
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()), (state.clone(), None));
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(State::file(dir.path())).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "tcp": {"runtime": {"enabled": true}},
                "tcpreset": {"lease": {"enabled": true, "options": {"limit": 5}, "until": 2_000_000_001}}
            })
        );
    }

    #[test]
    fn a_missing_file_is_an_empty_state() {
        assert_eq!(State::load(run().path()), (State::default(), None));
        assert_eq!(State::load(Path::new("/nonexistent")), (State::default(), None));
    }

    #[test]
    fn rubbish_is_set_aside() {
        let large = format!("{{{}}}", " ".repeat(1 << 20));
        for rubbish in
            ["", "{", "[1]", "{\"tcp\":{\"lease\":{}}}", "{\"tcp\":{\"runtime\":7}}", "\u{0}", &large]
        {
            let dir = run();
            dir.write("netskoop/state.json", rubbish);
            let (state, warning) = State::load(dir.path());
            assert_eq!(state, State::default());
            assert!(warning.unwrap().contains("the file is kept as"), "{rubbish:.20}");
            assert!(!State::file(dir.path()).exists());
            assert_eq!(
                std::fs::read(dir.path().join("netskoop/state.json.bad")).unwrap(),
                rubbish.as_bytes()
            );
            assert_eq!(State::load(dir.path()), (State::default(), None), "the next start is quiet");
        }
    }

    #[test]
    fn a_directory_in_its_place_is_set_aside_too() {
        let dir = run();
        std::fs::create_dir(State::file(dir.path())).unwrap();
        let (_, warning) = State::load(dir.path());
        assert!(warning.unwrap().contains("not a regular file"));
        assert!(!State::file(dir.path()).exists());
    }

    #[test]
    fn leases_end() {
        let mut state = State::default();
        state.set_lease("tcp", &on(), 100);
        state.set_lease("tcpreset", &on(), 50);
        assert_eq!(state.next_end(), Some(50));
        assert_eq!(state.expire(49), Vec::<String>::new());
        assert_eq!(state.expire(50), ["tcpreset"]);
        assert_eq!(state.next_end(), Some(100));
        assert_eq!(state.expire(1000), ["tcp"]);
        assert_eq!(state, State::default());
    }

    #[test]
    fn the_last_word_counts() {
        let mut state = State::default();
        state.set_lease("tcp", &on(), 100);
        state.set_lease("tcp", &limit(5), 100);
        state.set_runtime("tcp", &limit(7));
        let overrides = &state.probes["tcp"];
        assert_eq!(overrides.runtime, limit(7));
        assert_eq!(overrides.lease.as_ref().unwrap().change, on(), "only what was set ends");
        state.settle("tcp", &on());
        assert_eq!(state.probes["tcp"].lease, None);
        assert_eq!(state.probes["tcp"].runtime, limit(7));
        state.settle("tcp", &limit(1));
        assert_eq!(state, State::default());
    }

    #[test]
    fn switching_ends_a_lease_whatever_it_sets() {
        let switches: [fn(&mut State); 2] =
            [|state| state.settle("tcp", &on()), |state| state.set_runtime("tcp", &on())];
        for switch in switches {
            for (leased, also) in [(limit(5), limit(6)), (limit(5), on())] {
                let mut state = State::default();
                state.set_lease("tcp", &leased, 100);
                state.set_lease("tcp", &also, 100);
                state.set_lease("udp", &leased, 100);
                switch(&mut state);
                assert!(state.probes.get("tcp").is_none_or(|tcp| tcp.lease.is_none()), "{state:?}");
                assert!(state.probes["udp"].lease.is_some(), "that of another probe goes on");
            }
        }
    }
}
