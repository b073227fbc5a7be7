//! What keeps a CPU busy.

use super::Outcome::Seen;
use super::{Lab, Outcome};
use crate::latency::{PORT, runs_are_told, slow_filter, while_datagrams_arrive};
use crate::support::{Netns, until};

pub(super) fn slow_softirqs(lab: &Lab) -> Outcome {
    let red = Netns::new("red");
    slow_filter(&red, "input", &format!("udp dport {PORT}"), 120);
    lab.option("softirq", "slow", "1ms");
    while_datagrams_arrive(&red, |took| runs_are_told(&lab.daemon, took));
    lab.option("softirq", "slow", "10ms");
    for what in ["execution", "schedule"] {
        until("a histogram", || {
            lab.value("softirq", &format!("{what}_seconds_count"), "host", ",vector=\"net_rx\"")
                .filter(|runs| *runs > 0.0)
        });
    }
    Seen("SOFTIRQ_EXEC_SLOW by datagrams v4 v6, as long as the sender had to wait".to_owned())
}
