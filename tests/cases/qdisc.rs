use crate::support::{Daemon, Netns, Pids, Setup, own_node, run, series, until};
use serde_json::Value;
use std::net::UdpSocket;

const SHOWN: [(&str, &str); 7] = [
    ("sent_bytes_total", "bytes"),
    ("sent_packets_total", "packets"),
    ("drops_total", "drops"),
    ("overlimits_total", "overlimits"),
    ("requeues_total", "requeues"),
    ("queue_packets", "qlen"),
    ("backlog_bytes", "backlog"),
];

/// Sends more than the queue takes, over IPv4 and IPv6.
fn flood(from: &Netns, net: u8) {
    from.enter(|| {
        for (own, other) in
            [("0.0.0.0:0", format!("10.9.{net}.2:9")), ("[::]:0", format!("[fd09::{net}:2]:9"))]
        {
            let socket = UdpSocket::bind(own).unwrap();
            for _ in 0..100 {
                // A full queue is told to the sender, or not.
                let _ = socket.send_to(&[0; 1000], &other);
            }
        }
    });
}

/// What `tc` says of the queueing disciplines of an interface, once nothing moves any more.
fn tc(netns: &Netns, device: &str) -> Vec<Value> {
    let look = || -> Vec<Value> {
        let text = run("tc", &["-n", &netns.0, "-s", "-j", "qdisc", "show", "dev", device]);
        serde_json::from_str(&text).unwrap()
    };
    until("the queues are empty", || {
        let all = look();
        let quiet = all.iter().all(|qdisc| qdisc["qlen"] == 0) && all == look();
        quiet.then_some(all)
    })
}

/// Compares all numbers of one with what `tc` says.
fn same(text: &str, prefix: &str, labels: &str, qdisc: &Value) {
    for (name, key) in SHOWN {
        let line = format!("netskoop_qdisc_{prefix}{name}{{{labels}}}");
        assert_eq!(series(text, &line), qdisc[key].as_f64(), "{line} in {qdisc}");
    }
}

fn labels(netns: &str, device: &str, kind: &str) -> String {
    format!("kind=\"netns\",name=\"{netns}\",device=\"{device}\",qdisc=\"{kind}\"")
}

fn scrape(daemon: &Daemon) -> String {
    daemon.scrape("/metrics?collect[]=qdisc&set=full")
}

#[test]
fn queueing_disciplines_are_as_tc_shows_them() {
    own_node!(Pids::Own);
    let (blue, green) = (Netns::new("blue"), Netns::new("green"));
    blue.cable(&green, 1);
    let add = |netns: &Netns, words: &str| {
        let all =
            [&["-n", netns.0.as_str(), "qdisc", "add", "dev"][..], &words.split(' ').collect::<Vec<_>>()];
        run("tc", &all.concat());
    };
    add(&blue, "c1a root handle 7: tbf rate 2mbit burst 3000 limit 4000");
    add(&green, "c1b root handle 1: htb default 20");
    run(
        "tc",
        &"-n green class add dev c1b parent 1: classid 1:20 htb rate 1mbit burst 2000 cburst 2000"
            .split(' ')
            .collect::<Vec<_>>(),
    );
    add(&green, "c1b parent 1:20 handle 20: pfifo limit 5");
    let daemon = Setup::on_node().pull_only().set("probes.qdisc", "children = true").start();
    flood(&blue, 1);
    green.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..100).for_each(|_| drop(socket.send_to(&[0; 1000], "10.9.1.1:9")));
    });
    // IPv6 sends by itself now and then.
    let (tbf, htb, text) = until("nothing is sent meanwhile", || {
        let look = || (tc(&blue, "c1a"), tc(&green, "c1b"));
        let ((tbf, htb), text) = (look(), scrape(&daemon));
        ((&tbf, &htb) == (&look().0, &look().1)).then_some((tbf, htb, text))
    });
    assert!(tbf[0]["drops"].as_u64() > Some(0), "{tbf:?}");
    same(&text, "", &labels("blue", "c1a", "tbf"), &tbf[0]);
    assert!(htb.iter().all(|qdisc| qdisc["drops"].as_u64() > Some(0)), "{htb:?}");
    let root = htb.iter().find(|qdisc| qdisc["root"] == true).unwrap();
    let child = htb.iter().find(|qdisc| qdisc["kind"] == "pfifo").unwrap();
    same(&text, "", &labels("green", "c1b", "htb"), root);
    let of_child = format!("{},parent=\"1:20\"", labels("green", "c1b", "pfifo"));
    same(&text, "child_", &of_child, child);
    assert!(!text.contains("noqueue"), "an interface without a queue is no series");

    // What a queue had counted stays in the sum of the namespace when it goes.
    let old = |text: &str, netns: &str, metric: &str| {
        let line = text.lines().find(|line| line.starts_with(metric) && line.contains(netns));
        line.unwrap_or_else(|| panic!("{netns}: no {metric}")).rsplit_once(' ').unwrap().1.to_owned()
    };
    for _ in 0..2 {
        let text = daemon.scrape("/metrics?collect[]=qdisc&names=kubeskoop&names=inspector");
        // What a child has dropped is among what its root has.
        for (netns, drops) in [("blue", &tbf[0]["drops"]), ("green", &root["drops"])] {
            assert_eq!(old(&text, netns, "kubeskoop_qdisc_drops{"), drops.to_string());
            assert_eq!(old(&text, netns, "inspector_pod_qdiscdrops{"), drops.to_string());
        }
        for (netns, device) in [("blue", "c1a"), ("green", "c1b")] {
            let delete = ["-n", netns, "qdisc", "del", "dev", device, "root"];
            let _ = std::process::Command::new("tc").args(delete).output();
        }
    }
    assert!(!scrape(&daemon).contains("c1a"), "it is gone");
}

#[test]
fn a_pattern_chooses_the_interfaces_whose_queues_are_shown() {
    own_node!(Pids::Own);
    let (blue, green) = (Netns::new("blue"), Netns::new("green"));
    for net in [1, 2] {
        blue.cable(&green, net);
        let device = format!("c{net}a");
        run("tc", &["-n", "blue", "qdisc", "add", "dev", &device, "root", "pfifo"]);
    }
    let daemon = Setup::on_node().pull_only().set("probes.qdisc", "interfaces = [\"c2*\"]").start();
    let shown = |text: &str, device: &str| text.contains(&format!("device=\"{device}\""));
    let text = scrape(&daemon);
    assert!(shown(&text, "c2a") && !shown(&text, "c1a"), "{text}");
    daemon.change("qdisc", r#"{"options":{"interfaces":"c1a"},"runtime":true}"#);
    let text = scrape(&daemon);
    assert!(shown(&text, "c1a") && !shown(&text, "c2a"), "{text}");
}
