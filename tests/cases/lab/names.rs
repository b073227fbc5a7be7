//! Questions to name servers.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, Pair};
use crate::dns::{Server, ask};
use netskoop_api::StateName;

pub(super) fn slow_and_silent(lab: &Lab) -> Outcome {
    let state = lab.state("dns");
    if state.state != StateName::On {
        return NotHere(state.reason.unwrap_or_default());
    }
    lab.option("dns", "slow", "40ms");
    lab.option("dns", "timeout", "400ms");
    let pair = Pair::new(lab, "names", 22);
    for (at, version) in [4, 6].into_iter().enumerate() {
        let target = pair.far(version, 53);
        let _server = Server::new(&pair.far, target);
        let slow = ask(&pair.near, pair.near(version, 7830), target, "slow");
        lab.event("DNS_SLOW", &pair.near, |event| slow.is_in(event));
        let broken = ask(&pair.near, pair.near(version, 7831), target, "broken");
        lab.event("DNS_FAILED", &pair.near, |event| broken.is_in(event));
        let lost = ask(&pair.near, pair.near(version, 7832), target, "lost");
        lab.event("DNS_TIMEOUT", &pair.near, |event| event.net.as_ref() == Some(&lost.net));
        for result in ["noerror", "servfail", "timeout"] {
            let labels = format!(",result=\"{result}\"");
            let wanted = at as f64 + 1.0;
            lab.wait("dns", "questions_total", &pair.near, &labels, |value| value == wanted);
        }
    }
    Seen("DNS_SLOW, DNS_FAILED and DNS_TIMEOUT v4 v6".to_owned())
}
