//! Data that waits in sockets.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, Pair};
use crate::waiting::{
    Stuck, Unconnected, blocked, connection, never_read, read_late, sent_late, udp_pair, udp_read_late,
};
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
            lab.event("SOCKETLAT_READSLOW", &pair.far, |event| late.is_in(event));
            let [near, far] = [pair.near(version, 7823), pair.far(version, 7823)];
            let unconnected = Unconnected::new(&pair.near, &pair.far, near, far);
            let late = unconnected.read_late();
            lab.event("SOCKETLAT_READSLOW", &pair.far, |event| late.is_in(event));
            let unread = unconnected.never_read();
            lab.event("SOCKETLAT_UNREAD", &pair.far, |event| event.net.as_ref() == Some(&unread));
        }
        let unread = never_read(&mut tcp);
        lab.event("SOCKETLAT_UNREAD", &pair.far, |event| event.net.as_ref() == Some(&unread));
        tcp.1.read_exact(&mut [0; 6]).unwrap();
        let late = sent_late(&pair.near, &mut connection(&pair.near, &pair.far, pair.far(version, 7822)));
        lab.event("SOCKETLAT_SENDSLOW", &pair.near, |event| late.is_in(event));
        stuck_programs(lab, &pair, version);
        blocked(&mut tcp);
        let least = at as f64 + 1.0;
        let labels = ",protocol=\"tcp\"";
        lab.wait("socketlatency", "blocked_seconds_count", &pair.near, labels, |value| value >= least);
    }
    let what = if udp { "TCP and UDP" } else { "TCP" };
    Seen(format!(
        "SOCKETLAT_READSLOW and SOCKETLAT_UNREAD ({what}), SOCKETLAT_SENDSLOW, SOCKETLAT_UNSENT and SOCKETLAT_BLOCKED v4 v6; time blocked"
    ))
}

/// A stopped reader, and a writer whose peer never reads.
fn stuck_programs(lab: &Lab, pair: &Pair, version: u8) {
    let connected = |port| connection(&pair.near, &pair.far, pair.far(version, port));
    let (reader, writer) = (Stuck::reader(connected(7824)), Stuck::writer(connected(7825)));
    let late = reader.late();
    reader.judge(&lab.event("SOCKETLAT_UNREAD", &pair.far, |event| late.is_in(event)));
    let late = reader.reads();
    lab.event("SOCKETLAT_READSLOW", &pair.far, |event| late.is_in(event));
    let late = writer.late();
    let unsent = lab.event("SOCKETLAT_UNSENT", &pair.near, |event| late.is_in(event));
    writer.judge(&unsent);
    let [sent, held_up] = writer.peer_reads(&unsent);
    lab.event("SOCKETLAT_SENDSLOW", &pair.near, |event| sent.is_in(event));
    lab.event("SOCKETLAT_BLOCKED", &pair.near, |event| held_up.is_in(event));
}
