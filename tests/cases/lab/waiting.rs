//! Data that waits in sockets.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, Pair};
use crate::waiting::{blocked, connection, never_read, read_late, sent_late, udp_pair, udp_read_late};
use netskoop_api::StateName;
use std::io::Read;

pub(super) fn late_applications(lab: &Lab) -> Outcome {
    let state = lab.state("socketlatency");
    if state.state != StateName::On {
        return NotHere(state.reason.unwrap_or_default());
    }
    lab.option("socketlatency", "slow", "40ms");
    let udp = !lab.cannot("socketlatency", "UDP");
    let pair = Pair::new(lab, "wait", 21);
    for (at, version) in [4, 6].into_iter().enumerate() {
        let mut tcp = connection(&pair.near, &pair.far, pair.far(version, 7820));
        for late in read_late(&mut tcp) {
            lab.event("SOCKETLAT_READSLOW", &pair.far, |event| late.is_in(event));
        }
        if udp {
            let sockets = udp_pair(&pair.near, &pair.far, pair.near(version, 7821), pair.far(version, 7821));
            let late = udp_read_late(&sockets);
            let event = lab.event("SOCKETLAT_READSLOW", &pair.far, |event| late.is_in(event));
            assert_eq!(event.process.expect("who reads").pid, std::process::id());
        }
        let unread = never_read(&mut tcp);
        lab.event("SOCKETLAT_UNREAD", &pair.far, |event| event.net.as_ref() == Some(&unread));
        tcp.1.read_exact(&mut [0; 6]).unwrap();
        let late = sent_late(&pair.near, &mut connection(&pair.near, &pair.far, pair.far(version, 7822)));
        let event = lab.event("SOCKETLAT_SENDSLOW", &pair.near, |event| late.is_in(event));
        assert_eq!(event.process.expect("who writes").pid, std::process::id());
        blocked(&mut tcp);
        let least = at as f64 + 1.0;
        let labels = ",protocol=\"tcp\"";
        lab.wait("socketlatency", "blocked_seconds_count", &pair.near, labels, |value| value >= least);
    }
    let what = if udp { "TCP and UDP" } else { "TCP" };
    Seen(format!("SOCKETLAT_READSLOW ({what}), SOCKETLAT_UNREAD and SOCKETLAT_SENDSLOW v4 v6; time blocked"))
}
