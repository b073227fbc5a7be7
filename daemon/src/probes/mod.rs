//! All probes. A new one is one file here (and one `.bpf.c` if it has hooks) and one line below.

use crate::declare::Probe;
use crate::hooks::Known;

pub mod biolatency;
pub mod conntrack;
pub mod cpu;
pub mod dns;
pub mod fd;
pub mod flow;
pub mod gone;
pub mod icmp;
pub mod io;
pub mod ip;
pub mod ipvs;
pub mod kernellatency;
pub mod limit;
pub mod listen;
pub mod mptcp;
pub mod neigh;
pub mod netanomaly;
pub mod netdev;
pub mod netiftxlat;
pub mod packetloss;
pub mod qdisc;
pub mod rdma;
pub mod slab;
pub mod sock;
pub mod socketlatency;
pub mod softirq;
pub mod softnet;
pub mod tasklatency;
pub mod tcp;
pub mod tcpconnect;
pub mod tcpext;
pub mod tcpreset;
pub mod tcpretrans;
pub mod tcprtt;
pub mod tcpsummary;
pub mod tcptwrcv;
pub mod udp;
pub mod udplite;
pub mod virtcmdlatency;

/// Every probe, in the order in which they are listed.
pub static PROBES: &[&Probe] = &[
    &netdev::PROBE,
    &tcp::PROBE,
    &tcpext::PROBE,
    &udp::PROBE,
    &udplite::PROBE,
    &sock::PROBE,
    &softnet::PROBE,
    &ip::PROBE,
    &icmp::PROBE,
    &mptcp::PROBE,
    &slab::PROBE,
    &limit::PROBE,
    &conntrack::PROBE,
    &neigh::PROBE,
    &ipvs::PROBE,
    &rdma::PROBE,
    &qdisc::PROBE,
    &cpu::PROBE,
    &fd::PROBE,
    &io::PROBE,
    &tcpsummary::PROBE,
    &tcpreset::PROBE,
    &tcpretrans::PROBE,
    &tcptwrcv::PROBE,
    &tcpconnect::PROBE,
    &tcprtt::PROBE,
    &listen::PROBE,
    &packetloss::PROBE,
    &softirq::PROBE,
    &flow::PROBE,
    &tasklatency::PROBE,
    &biolatency::PROBE,
    &virtcmdlatency::PROBE,
    &netiftxlat::PROBE,
    &socketlatency::PROBE,
    &kernellatency::PROBE,
    &dns::PROBE,
    &netanomaly::PROBE,
    &gone::PROBE,
];

/// The words that an option of a probe can have on the running kernel; `None` if its declaration says all there is to say.
pub fn words_here(probe: &Probe, option: &str, known: &Known) -> Option<Vec<String>> {
    let is_packetloss = std::ptr::eq(probe, &raw const packetloss::PROBE);
    (is_packetloss && option == packetloss::IGNORE).then(|| packetloss::ignorable(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declare::{Family, Names, OptionType};
    use std::collections::{BTreeSet, HashSet};

    fn families() -> impl Iterator<Item = (&'static Probe, &'static Family)> {
        PROBES.iter().flat_map(|probe| probe.families().map(move |family| (*probe, family)))
    }

    /// Texts of the constant labels of a family, one per point.
    fn points(family: &Family) -> Vec<&'static str> {
        (0..family.points.count()).map(|cell| family.points.shape(cell).label).collect()
    }

    fn sentence(text: &str) -> bool {
        text.len() > 10
            && text.starts_with(|c: char| c.is_ascii_uppercase() || c == '/')
            && text.ends_with('.')
    }

    fn legal(name: &str) -> bool {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !name.contains("__")
    }

    #[test]
    fn names_are_unique_within_a_generation() {
        let (mut seen, mut last) = (HashSet::new(), ("", ""));
        for (probe, family) in families() {
            // A metric may go on with another table, or be finer with an option.
            let goes_on = std::mem::replace(&mut last, (probe.name, family.name)) == last;
            assert!(
                seen.insert((family.names, family.name)) || goes_on,
                "{}: {} is there twice",
                probe.name,
                family.name
            );
            let count = family.points.count();
            let shape = |cell| (family.points.shape(cell).suffix, family.points.shape(cell).label);
            let distinct: HashSet<_> = (0..count).map(shape).collect();
            assert_eq!(distinct.len(), count, "{}: two points with one label", family.name);
            assert!(count > 0, "{}: no points", family.name);
        }
    }

    #[test]
    fn names_say_where_they_belong() {
        for (probe, family) in families() {
            let prefix = match family.names {
                Names::Netskoop => format!("netskoop_{}_", probe.name),
                Names::Kubeskoop => format!("kubeskoop_{}_", probe.name),
                Names::Inspector => format!("inspector_pod_{}", probe.name),
            };
            // The inspector had these beside names that follow its own rule.
            let second = [
                "inspector_pod_totalloss",
                "inspector_pod_abnormalloss",
                "kernellatency_rxslow100ms",
                "kernellatency_txslow100ms",
            ]
            .contains(&family.name);
            // The newest documentation has names that are half of one generation and half of the other.
            let hybrid = family.names == Names::Kubeskoop
                && family.name.starts_with(&format!("kubeskoop_pod_{}", probe.name));
            // And it had the names of the node, and those of its time for the probe itself.
            let rest = ["inspector_pod_", "inspector_node_"].iter().find_map(|p| family.name.strip_prefix(p));
            let renamed = rest.is_some_and(|rest| probe.aliases.iter().any(|alias| rest.starts_with(alias)));
            assert!(
                second || hybrid || renamed || family.name.starts_with(&prefix),
                "{} does not start with {prefix}",
                family.name
            );
            // Lower-case but for this one, which the drivers call so.
            assert!(legal(&family.name.replace("VL15", "vl15")), "{}", family.name);
        }
    }

    #[test]
    fn native_names_follow_prometheus_practice() {
        for (_, family) in families().filter(|(_, family)| family.names == Names::Netskoop) {
            let counter = family.type_name() == "counter";
            assert_eq!(family.name.ends_with("_total"), counter, "{}: _total", family.name);
            let units =
                ["ms", "milliseconds", "us", "microseconds", "ns", "kilobytes", "kb", "pages", "octets"];
            let odd = family.name.split('_').any(|word| units.contains(&word));
            assert!(!odd, "{}: not a base unit", family.name);
        }
    }

    #[test]
    fn older_names_are_the_kernels_words() {
        for (probe, family) in families().filter(|(_, family)| family.names != Names::Netskoop) {
            if !matches!(probe.name, "tcp" | "udp" | "ip" | "tcpext")
                || family.name.ends_with("pawsestabrejected")
                || family.name.ends_with("_listenoverflow")
            {
                continue;
            }
            let column = usize::from(family.points.columns().next().unwrap());
            let (_, field) = family.table.columns[column].key.split_once('.').unwrap();
            assert!(family.name.ends_with(&field.to_lowercase()), "{} shows {field}", family.name);
        }
    }

    #[test]
    fn texts_are_sentences() {
        for probe in PROBES {
            for text in [probe.summary, probe.when, probe.finds, probe.needs] {
                assert!(sentence(text), "{}: {text}", probe.name);
            }
            for option in probe.options {
                assert!(sentence(option.help) && legal(option.name), "{}: {}", probe.name, option.name);
            }
        }
        for (_, family) in families() {
            assert!(sentence(family.help) && !family.help.contains('\n'), "{}: {}", family.name, family.help);
            assert!(!family.alarm.ends_with('.'), "{}: an alarm is a phrase", family.name);
        }
    }

    #[test]
    fn labels_are_legal() {
        for (_, family) in families() {
            for (label, key) in family.keys {
                assert!(legal(label), "{}: {label}", family.name);
                assert!(*key < family.table.keys.len(), "{}: {label}", family.name);
            }
            for labels in points(family).into_iter().filter(|labels| !labels.is_empty()) {
                for pair in labels.split(',') {
                    let (name, value) = pair.split_once('=').unwrap();
                    assert!(legal(name), "{}: {labels}", family.name);
                    assert!(value.len() > 2 && value.starts_with('"') && value.ends_with('"'), "{labels}");
                    assert!(
                        !family.keys.iter().any(|(label, _)| *label == name),
                        "{}: {name} twice",
                        family.name
                    );
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_told_apart_are_added_up() {
        for (_, family) in families() {
            let shown: HashSet<_> = family.keys.iter().map(|(_, key)| *key).collect();
            let hidden = (0..family.table.keys.len()).any(|key| !shown.contains(&key));
            assert!(!hidden || family.fold, "{} hides a key and does not fold", family.name);
        }
    }

    #[test]
    fn a_family_is_all_counters_or_all_gauges() {
        for (_, family) in families() {
            for column in family.points.columns() {
                assert_eq!(family.table.columns[usize::from(column)].kind, family.kind(), "{}", family.name);
            }
        }
    }

    #[test]
    fn what_a_family_is_shown_with_is_a_probe() {
        for (probe, family) in families() {
            let Some(with) = family.with else { continue };
            assert!(with != probe.name && PROBES.iter().any(|other| other.name == with), "{with}");
        }
    }

    #[test]
    fn options_of_families_exist_and_are_boolean() {
        for (probe, family) in families() {
            let Some(name) = family.option.or(family.unless) else { continue };
            let option = probe.options.iter().find(|option| option.name == name).unwrap();
            assert!(matches!(option.kind, OptionType::Bool { .. }), "{}: {name}", probe.name);
        }
    }

    /// How many series an entity really has is counted on fixtures: `tests/gates.toml`.
    #[test]
    fn the_core_set_leaves_room_for_the_probes_with_hooks() {
        let core = |node| -> usize {
            families()
                .filter(|(probe, family)| probe.default_on && family.names == Names::Netskoop && family.core)
                .filter(|(probe, family)| probe.hooks.is_none() && (node || !family.table.node))
                .filter(|(_, family)| family.option.is_none())
                .map(|(_, family)| points(family).len())
                .sum()
        };
        assert!(core(false) <= 52, "{} core series per namespace", core(false));
        // Beside its own it shows what is kept once for the node; two are there only with an RDMA device.
        assert!(core(true) <= 58, "{} core series of the host", core(true));
    }

    #[test]
    fn every_probe_has_its_file_and_every_file_its_probe() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/probes");
        let files: BTreeSet<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|file| file != "mod.rs")
            .collect();
        let probes: BTreeSet<String> = PROBES.iter().map(|probe| format!("{}.rs", probe.name)).collect();
        assert_eq!(files, probes);
    }
}
