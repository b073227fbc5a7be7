//! Words in options that depend on the running kernel: who changes an option is told of one that means nothing here. A
//! configuration may be that of many nodes with different kernels, so there it is a warning.

use super::{ChangeError, Engine, lock};
use crate::config::{Effective, Override, closest, option_default};
use crate::declare::Probe;
use crate::probes::words_here;
use netskoop_api::OptionValue;

impl Engine {
    /// The words that an option of a probe can have on this kernel; `None` if any will do that its declaration allows.
    pub(super) fn words_here(&self, probe: &Probe, option: &str) -> Option<Vec<String>> {
        words_here(probe, option, &*self.hooks.known()?)
    }

    /// Refuses a change that names what this kernel does not know.
    pub(super) fn refuse_void_words(&self, probe: &Probe, change: &Override) -> Result<(), ChangeError> {
        for (option, value) in &change.options {
            let Some(words) = self.words_here(probe, option) else { continue };
            if let [first, ..] = void(probe, option, value, &words)[..] {
                let why = explained(probe, first, "", &words);
                return Err(ChangeError::BadRequest(format!("{}.{option}: {why}", probe.name)));
            }
        }
        Ok(())
    }

    /// Takes note of the words that mean nothing in what holds for a probe from now on, and says so once.
    pub(super) fn note_void_words(&self, at: usize, wanted: &Effective) {
        let Some(probe) = self.slots().get(at).map(|slot| slot.probe) else { return };
        let mut sentences = Vec::new();
        for (option, layer) in &wanted.options_by {
            let (Some(value), Some(words)) = (wanted.options.get(option), self.words_here(probe, option))
            else {
                continue;
            };
            for word in void(probe, option, value, &words) {
                let why = explained(probe, word, ", and is passed over", &words);
                sentences.push(format!("probes.{}.{option} ({layer}): {why}", probe.name));
            }
        }
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.get_mut(at) else { return };
        for sentence in sentences.iter().filter(|sentence| !slot.void_words.contains(sentence)) {
            tracing::warn!(probe = probe.name, "{sentence}");
        }
        slot.void_words = sentences;
    }

    /// For the status: all that was noted, of the probes that are on.
    pub(super) fn void_words(&self) -> Vec<String> {
        let slots = self.slots();
        let noted = slots.iter().filter(|slot| slot.effective.enabled).flat_map(|slot| &slot.void_words);
        noted.cloned().collect()
    }
}

/// The words of a value that mean nothing. Those of the default are for the kernels that know them.
fn void<'v>(probe: &Probe, option: &str, value: &'v OptionValue, words: &[String]) -> Vec<&'v str> {
    let OptionValue::List(wanted) = value else { return Vec::new() };
    let decl = probe.options.iter().find(|decl| decl.name == option);
    let default = decl.map(option_default);
    let is_default =
        |word: &String| matches!(&default, Some(OptionValue::List(default)) if default.contains(word));
    let void = wanted.iter().filter(|word| !words.contains(word) && !is_default(word));
    void.map(String::as_str).collect()
}

/// Why a word means nothing, what becomes of it, and what to do.
fn explained(probe: &Probe, word: &str, then: &str, words: &[String]) -> String {
    if words.is_empty() {
        return format!("'{word}' means nothing on this kernel, which has no words for it{then}");
    }
    let meant = closest(word, words.iter().map(String::as_str));
    let meant = meant.map(|word| format!(". Did you mean '{word}'?")).unwrap_or_default();
    let list = format!("`netskoopctl probes show {}` lists them", probe.name);
    format!("'{word}' is none of its words on this kernel{then}; {list}{meant}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::packetloss;

    #[test]
    fn words_of_the_default_are_for_the_kernels_that_know_them() {
        let words = ["NO_SOCKET", "OTHERHOST"].map(str::to_owned);
        let value = ["NO_SOCKET", "QUEUE_PURGE", "NO_SOCKT"].map(str::to_owned);
        let found = |words| {
            let value = OptionValue::List(value.to_vec());
            let void = void(&packetloss::PROBE, packetloss::IGNORE, &value, words);
            void.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(found(&words), ["NO_SOCKT"]);
        assert_eq!(found(&[]), ["NO_SOCKET", "NO_SOCKT"]);
        let says = explained(&packetloss::PROBE, "NO_SOCKT", "", &words);
        let wanted = "'NO_SOCKT' is none of its words on this kernel; `netskoopctl probes show packetloss` lists them. Did \
                      you mean 'NO_SOCKET'?";
        assert_eq!(says, wanted);
        let says = explained(&packetloss::PROBE, "X", ", and is passed over", &[]);
        assert_eq!(says, "'X' means nothing on this kernel, which has no words for it, and is passed over");
    }
}
