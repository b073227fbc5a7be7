use crate::support::{Daemon, Netns, Pids, Setup, own_node, run, series, until};
use std::collections::BTreeMap;
use std::net::UdpSocket;

/// The words of `ip -s ntable` for a table of the node, and the metrics that show them.
const NUMBERS: [(&str, &str); 15] = [
    ("entries", "table_entries"),
    ("thresh1", "table_no_gc_entries"),
    ("thresh2", "table_forced_gc_entries"),
    ("thresh3", "table_max_entries"),
    ("allocs", "created_total"),
    ("destroys", "destroyed_total"),
    ("hash_grows", "table_grown_total"),
    ("res_failed", "resolutions_failed_total"),
    ("lookups", "lookups_total"),
    ("hits", "hits_total"),
    ("rcv_probes_mcast", "multicast_probes_received_total"),
    ("rcv_probes_ucast", "unicast_probes_received_total"),
    ("periodic_gc_runs", "periodic_gc_runs_total"),
    ("forced_gc_runs", "forced_gc_runs_total"),
    ("table_fulls", "table_fulls_total"),
];

/// What `ip` says of a table; what follows are its interfaces.
fn theirs(table: &str) -> BTreeMap<&'static str, f64> {
    let text = run("ip", &["-s", "ntable", "show", "name", table]);
    let words: Vec<&str> = text.split("\n\n").next().unwrap().split_whitespace().collect();
    let value = |name| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].parse().unwrap());
    NUMBERS.iter().filter_map(|(name, metric)| Some((*metric, value(*name)?))).collect()
}

fn table_agrees(daemon: &Daemon, table: &str, family: &str) -> bool {
    let before = theirs(table);
    let text = daemon.scrape("/metrics?set=full&collect[]=neigh");
    let after = theirs(table);
    assert_eq!(before.len(), NUMBERS.len(), "{before:?}");
    before.iter().all(|(metric, low)| {
        let name = format!("netskoop_neigh_{metric}{{kind=\"host\",name=\"host\",family=\"{family}\"}}");
        let ours = series(&text, &name).unwrap_or_else(|| panic!("no {name} in {text}"));
        // The whole machine counts here.
        (low.min(after[metric])..=low.max(after[metric])).contains(&ours)
    })
}

/// `ip neigh` counted by family and state.
fn listed(netns: &Netns) -> BTreeMap<(&'static str, String), f64> {
    let mut counts = BTreeMap::new();
    for (flag, family) in [("-4", "ipv4"), ("-6", "ipv6")] {
        let text = netns.run("ip", &[flag, "neigh", "show", "nud", "all"]);
        for line in text.lines() {
            let state = line.split_whitespace().last().unwrap().to_lowercase();
            *counts.entry((family, state)).or_default() += 1.0;
        }
    }
    counts
}

fn by_state(text: &str, netns: &Netns) -> BTreeMap<(&'static str, String), f64> {
    let head = format!("netskoop_neigh_entries{{kind=\"netns\",name=\"{}\",", netns.0);
    let mut counts = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(&*head)) {
        let family = if line.contains("family=\"ipv4\"") { "ipv4" } else { "ipv6" };
        let state = line.split("state=\"").nth(1).unwrap().split('"').next().unwrap();
        let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        if value > 0.0 {
            counts.insert((family, state.to_owned()), value);
        }
    }
    counts
}

#[test]
fn tables_of_the_node_and_neighbours_of_each_namespace_are_the_kernels() {
    own_node!(Pids::Own);
    let (red, blue) = (Netns::new("red"), Netns::new("blue"));
    red.cable(&blue, 3);
    let daemon = Setup::on_node().pull_only().set("probes.neigh", "enabled = true").start();
    red.enter(|| {
        for target in ["10.9.3.2:9", "10.9.3.77:9", "[fd09::3:2]:9"] {
            let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any).unwrap().send_to(b"x", target).unwrap();
        }
    });
    red.run(
        "ip",
        &["neigh", "add", "10.9.3.99", "lladdr", "02:00:00:00:00:01", "dev", "c3a", "nud", "permanent"],
    );
    for (table, family) in [("arp_cache", "ipv4"), ("ndisc_cache", "ipv6")] {
        until("the table is the kernel's", || table_agrees(&daemon, table, family).then_some(()));
    }
    let text = daemon.scrape("/metrics?collect[]=neigh");
    assert!(by_state(&text, &red).is_empty(), "each namespace costs a walk, so it is an option");
    // One table for all: what red learned stands in the node's.
    let node = series(&text, "netskoop_neigh_table_entries{kind=\"host\",name=\"host\",family=\"ipv4\"}");
    assert!(node >= Some(4.0), "{node:?}");

    daemon.change("neigh", r#"{"options":{"by_state":"true"},"runtime":true}"#);
    for netns in [&red, &blue] {
        until("the neighbours are the kernel's", || {
            let before = listed(netns);
            (by_state(&daemon.scrape("/metrics?collect[]=neigh"), netns) == before).then_some(())
        });
    }
    until("the neighbour that is not there has failed", || {
        let states = by_state(&daemon.scrape("/metrics?collect[]=neigh"), &red);
        (states.get(&("ipv4", "failed".to_owned())) == Some(&1.0)).then_some(())
    });
    let states = by_state(&daemon.scrape("/metrics?collect[]=neigh"), &red);
    assert_eq!(states.get(&("ipv4", "permanent".to_owned())), Some(&1.0), "{states:?}");
    assert!(states.keys().any(|(family, state)| *family == "ipv6" && state != "noarp"), "{states:?}");
}
