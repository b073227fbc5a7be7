//! Queueing disciplines that drop.

use super::Outcome::Seen;
use super::{Lab, Outcome, Pair, run};
use std::net::UdpSocket;

pub(super) fn tbf_and_fq_codel(lab: &Lab) -> Outcome {
    let pair = Pair::new(lab, "slow", 10);
    lab.option("qdisc", "children", "true");
    let add = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        run("tc", &[&["-n", &*pair.near.0, "qdisc", "add", "dev", "c10a"][..], &words].concat());
    };
    add("root handle 1: tbf rate 1mbit burst 3000 limit 100000");
    add("parent 1:1 handle 10: fq_codel limit 5");
    pair.near.enter(|| {
        for version in [4, 6] {
            let any = if version == 4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            (0..100).for_each(|_| drop(socket.send_to(&[0; 1000], pair.far(version, 9))));
        }
    });
    let root = ",device=\"c10a\",qdisc=\"tbf\"";
    let child = ",device=\"c10a\",qdisc=\"fq_codel\",parent=\"1:1\"";
    // fq_codel does not tell its parent of packets of other flows than the one that came.
    lab.wait("qdisc", "drops_total", &pair.near, root, |drops| drops > 0.0);
    lab.wait("qdisc", "child_drops_total", &pair.near, child, |drops| drops > 100.0);
    Seen("drops of tbf and fq_codel".to_owned())
}
