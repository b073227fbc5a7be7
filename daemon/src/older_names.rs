//! Whether every metric name of the older generations is accounted for: `tests/fixtures/older-names.toml` lists them all.

use crate::declare::{Kind, Names};
use crate::probes::PROBES;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What has become of an old name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Served,
    Pending,
    Fixture,
    Never,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    names: Vec<Group>,
}

/// Names of one probe that share their fate.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    probe: String,
    section: String,
    status: Status,
    #[expect(dead_code, reason = "for those who read the file")]
    note: Option<String>,
    #[serde(default)]
    kubeskoop: Vec<String>,
    #[serde(default)]
    inspector: Vec<String>,
}

impl Group {
    fn names(&self) -> impl Iterator<Item = (Names, &str)> {
        let second = self.kubeskoop.iter().map(|name| (Names::Kubeskoop, name.as_str()));
        second.chain(self.inspector.iter().map(|name| (Names::Inspector, name.as_str())))
    }
}

fn list() -> Vec<Group> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/older-names.toml");
    toml::from_str::<List>(&std::fs::read_to_string(path).unwrap()).unwrap().names
}

/// Every old name with its probe and what has become of it.
fn listed() -> BTreeMap<(Names, String), (String, Status)> {
    let mut all = BTreeMap::new();
    for group in list() {
        for (names, name) in group.names() {
            let old = all.insert((names, name.to_owned()), (group.probe.clone(), group.status));
            assert!(old.is_none(), "{name} is listed twice");
        }
    }
    all
}

fn declared() -> BTreeSet<(Names, String, String)> {
    let families = PROBES.iter().flat_map(|probe| probe.families().map(move |family| (probe, family)));
    families
        .filter(|(_, family)| family.names != Names::Netskoop)
        .map(|(probe, family)| (family.names, family.name.to_owned(), probe.name.to_owned()))
        .collect()
}

#[test]
fn what_is_served_is_declared_and_what_is_declared_is_listed() {
    let (mut listed, mut wrong) = (listed(), Vec::new());
    for (names, name, probe) in declared() {
        match listed.remove(&(names, name.clone())) {
            Some((owner, Status::Served | Status::Fixture)) if owner == probe => {}
            Some((owner, status)) => {
                wrong.push(format!("{name} is declared by {probe}, but listed as {status:?} of {owner}"));
            }
            None => wrong.push(format!("{name} of {probe} is not listed")),
        }
    }
    let missing =
        listed.into_iter().filter(|(_, (_, status))| matches!(status, Status::Served | Status::Fixture));
    wrong.extend(missing.map(|((_, name), (probe, _))| format!("{name} is not declared by {probe}")));
    assert!(wrong.is_empty(), "tests/fixtures/older-names.toml and the probes differ:\n{}", wrong.join("\n"));
}

/// Numbers that were counted in the code of the second generation.
#[test]
fn the_list_is_complete() {
    let groups = list();
    let count = |probe: &str| -> usize {
        let own = groups.iter().filter(|group| group.probe == probe && group.section != "0");
        own.map(|group| group.kubeskoop.iter().filter(|name| !name.starts_with("kubeskoop_pod_")).count())
            .sum()
    };
    for (probe, metrics) in [
        ("conntrack", 11),
        ("qdisc", 6),
        ("fd", 2),
        ("io", 4),
        ("ipvs", 5),
        ("netdev", 8),
        ("tcpext", 32),
        ("tcp", 10),
        ("udp", 8),
        // Two of them in the documents only.
        ("ip", 19 + 2),
        ("sock", 5),
        ("softnet", 2),
        ("tcpsummary", 7),
        ("flow", 2),
        ("netiftxlat", 2),
        ("kernellatency", 4),
        ("packetloss", 2),
        ("socketlatency", 4),
        ("softirq", 4),
        ("tcpretrans", 1),
        ("virtcmdlatency", 2),
        ("rdma", 7 + 50 + 55),
    ] {
        assert_eq!(count(probe), metrics, "{probe}");
    }
}

/// Names of counters without eBPF must all be served once their probes are there.
#[test]
fn only_probes_that_are_not_there_yet_are_pending() {
    for group in list().iter().filter(|group| group.status == Status::Pending) {
        let there = PROBES.iter().find(|probe| probe.name == group.probe);
        assert!(there.is_none(), "probe {} is there, so its names are not pending", group.probe);
    }
}

/// The old systems called everything a gauge; here a counter is one under every name.
#[test]
fn an_old_name_is_a_counter_where_the_kernel_counts() {
    for family in
        PROBES.iter().flat_map(|probe| probe.families()).filter(|family| family.names != Names::Netskoop)
    {
        let columns = family.points.columns().map(|column| family.table.columns[usize::from(column)].kind);
        assert!(columns.into_iter().all(|kind| kind == family.kind()), "{}", family.name);
        let counts = ["bytes", "packets", "errors", "drops", "opens"];
        let named = counts.iter().any(|word| family.name.ends_with(word)) && !family.table.node;
        assert!(!named || family.kind() == Kind::Counter, "{}", family.name);
    }
}
