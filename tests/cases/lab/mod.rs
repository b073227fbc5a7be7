//! What runs inside each kernel of the lab (`tests/vm/`): the daemon with every probe on, and what each probe is there for
//! made to happen. Elsewhere these tests are left out: they load modules and change what all namespaces share.

mod anomalies;
mod connections;
mod drops;
mod flows;
mod kernel;
mod names;
mod processors;
mod queues;
mod rdma;
mod resets;
mod services;
mod sockets;
mod tracking;
mod transit;
mod waiting;
mod ways;
mod work;

use crate::support::{Daemon, Netns, Setup, exchange, run, series, tests_dir, until};
use netskoop_api::{Event, EventLine, ProbeInfo, ProbeState, SelfResult, SelfTest, StateName};
use netskoopd::probes::PROBES;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::time::Instant;

/// Something that goes wrong on purpose, and what has to be told of it.
struct Scenario {
    /// The probe that it is for.
    probe: &'static str,
    /// What happens, in a few words.
    what: &'static str,
    run: fn(&Lab) -> Outcome,
}

/// One line for each; a failure is a panic.
const SCENARIOS: &[Scenario] = &[
    Scenario { probe: "tcpreset", what: "closed port", run: resets::closed_port },
    Scenario { probe: "tcpreset", what: "close with unread data", run: resets::unread_data },
    Scenario { probe: "tcpreset", what: "data for a closed socket", run: resets::late_data },
    Scenario { probe: "packetloss", what: "nft rule", run: drops::rule },
    Scenario { probe: "packetloss", what: "netem loss", run: drops::netem },
    Scenario { probe: "packetloss", what: "no socket", run: drops::no_socket },
    Scenario { probe: "packetloss", what: "segment without flags", run: drops::segment },
    Scenario { probe: "packetloss", what: "port scan", run: drops::scan },
    Scenario { probe: "tcp", what: "retransmits behind netem", run: sockets::retransmits },
    Scenario { probe: "tcpext", what: "full accept queue", run: sockets::full_accept_queue },
    Scenario { probe: "tcpsummary", what: "full accept queue", run: sockets::listener_drops },
    Scenario { probe: "tcpretrans", what: "netem loss", run: connections::lost_data },
    Scenario { probe: "tcptwrcv", what: "late data, the same ports again", run: connections::after_the_end },
    Scenario { probe: "tcpconnect", what: "closed port", run: connections::refused_connections },
    Scenario {
        probe: "tcpconnect",
        what: "no route, no address, no port",
        run: connections::without_a_route,
    },
    Scenario { probe: "tcprtt", what: "a ping", run: connections::round_trips },
    Scenario { probe: "listen", what: "late accept", run: sockets::late_accept },
    Scenario { probe: "listen", what: "full accept queue", run: sockets::overflow },
    Scenario { probe: "tasklatency", what: "two for one CPU", run: work::two_for_one_cpu },
    Scenario { probe: "biolatency", what: "a slow disk", run: work::slow_disk },
    Scenario { probe: "biolatency", what: "written later", run: work::written_later },
    Scenario { probe: "virtcmdlatency", what: "new addresses", run: work::commands_to_a_device },
    Scenario { probe: "softirq", what: "a packet filter with many rules", run: processors::slow_softirqs },
    Scenario { probe: "socketlatency", what: "late applications", run: waiting::late_applications },
    Scenario { probe: "dns", what: "a slow and a silent server", run: names::slow_and_silent },
    Scenario { probe: "netanomaly", what: "silent neighbours", run: anomalies::silent_neighbours },
    Scenario { probe: "netanomaly", what: "full neighbour table", run: anomalies::full_neighbour_table },
    Scenario { probe: "netanomaly", what: "udp_mem", run: anomalies::no_memory_for_sockets },
    Scenario { probe: "netanomaly", what: "large packets that do not fit", run: anomalies::path_mtu },
    Scenario { probe: "qdisc", what: "tbf and fq_codel", run: queues::tbf_and_fq_codel },
    Scenario {
        probe: "flow",
        what: "datagrams, a tag, filters left behind",
        run: flows::through_an_interface,
    },
    Scenario { probe: "netiftxlat", what: "netem delay", run: transit::netem_delay },
    Scenario { probe: "kernellatency", what: "many rules", run: transit::many_rules },
    Scenario { probe: "conntrack", what: "full table", run: tracking::full_table },
    Scenario { probe: "conntrack", what: "events", run: tracking::events },
    Scenario { probe: "ipvs", what: "service", run: services::balanced },
    Scenario { probe: "rdma", what: "rxe", run: rdma::rxe },
];

/// How a scenario ends well.
enum Outcome {
    /// What was told, in a few words.
    Seen(String),
    /// This kernel lacks what it takes.
    NotHere(String),
}

/// The daemon with every probe on.
struct Lab {
    daemon: Daemon,
}

impl Lab {
    fn start() -> Lab {
        assert_eq!(
            std::fs::read_to_string("/proc/1/comm").unwrap(),
            "guest.sh\n",
            "this runs in the lab only"
        );
        std::fs::create_dir_all("/run/netns").unwrap();
        let mut setup = Setup::on_node().set("events", "rate = 10000\nburst = 10000");
        // Measuring rewrites the first instruction of a function that every program runs through (__bpf_prog_enter). While it
        // is rewritten it is a breakpoint, and the emulator may keep that for ever: then the machine stands still.
        setup = setup.set("limits", "bpf_cpu = \"0%\"");
        for probe in PROBES {
            setup = setup.set(String::leak(format!("probes.{}", probe.name)), "enabled = true");
        }
        Lab { daemon: setup.start() }
    }

    /// How a probe stands now.
    fn state(&self, probe: &str) -> ProbeState {
        self.daemon.probe(probe).state
    }

    /// Whether a probe says of itself that it cannot see something on this kernel.
    fn cannot(&self, probe: &str, words: &str) -> bool {
        self.state(probe).reason.is_some_and(|reason| reason.contains(words))
    }

    /// The events of a type in a namespace so far.
    fn events(&self, kind: &str, netns: &Netns) -> Vec<Event> {
        let text = self.daemon.ask(&format!("/v1/events?type={kind}&entity={}", netns.inode())).text();
        let lines = text.lines().map(|line| serde_json::from_str::<EventLine>(line).unwrap());
        // With every probe on, the first may be forgotten before the last come, and a line says so.
        let event = |line| match line {
            EventLine::Event(event) => Some(*event),
            EventLine::Missed { .. } => None,
        };
        lines.filter_map(event).collect()
    }

    /// Waits for an event of a type in a namespace.
    #[track_caller]
    fn event(&self, kind: &str, netns: &Netns, good: impl Fn(&Event) -> bool) -> Event {
        let all = || self.events(kind, netns);
        let found = std::panic::catch_unwind(AssertUnwindSafe(|| {
            until("the event", || all().into_iter().find(|event| good(event)))
        }));
        let event = found.unwrap_or_else(|_| panic!("no such {kind} in {}: {:#?}", netns.0, all()));
        assert_eq!(event.entity.as_ref().map(|entity| &entity.name), Some(&netns.0), "{event:#?}");
        event
    }

    /// The value of a series of a namespace. `labels` are those beside the names.
    fn value(&self, probe: &str, metric: &str, netns: &str, labels: &str) -> Option<f64> {
        let text = self.daemon.scrape(&format!("/metrics?set=full&collect[]={probe}"));
        let kind = if netns == "host" { "host" } else { "netns" };
        series(&text, &format!("netskoop_{probe}_{metric}{{kind=\"{kind}\",name=\"{netns}\"{labels}}}"))
    }

    /// Waits until a series of a namespace is good.
    #[track_caller]
    fn wait(
        &self,
        probe: &str,
        metric: &str,
        netns: &Netns,
        labels: &str,
        good: impl Fn(f64) -> bool,
    ) -> f64 {
        let what = format!("netskoop_{probe}_{metric} of {} with '{labels}'", netns.0);
        let look = || self.value(probe, metric, &netns.0, labels).filter(|value| good(*value));
        let found = std::panic::catch_unwind(AssertUnwindSafe(|| until(&what, look)));
        found.unwrap_or_else(|_| {
            // Who else may have what is missing.
            let text = self.daemon.scrape(&format!("/metrics?set=full&collect[]={probe}"));
            let name = format!("netskoop_{probe}_{metric}{{");
            let all: Vec<&str> = text.lines().filter(|line| line.starts_with(&name)).collect();
            panic!("in vain for: {what}; there is {all:?}")
        })
    }

    /// Sets an option of a probe until the end.
    fn option(&self, probe: &str, option: &str, value: &str) {
        let body = format!(r#"{{"options":{{"{option}":"{value}"}},"runtime":true}}"#);
        self.daemon.change(probe, &body);
    }
}

/// What comes out as it should in one of five attempts: on a slow machine something may come between, but not each time.
fn one_of_five<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    let found = std::iter::repeat_with(attempt).take(5).find_map(|found| found);
    found.unwrap_or_else(|| panic!("not once in five attempts: {what}"))
}

/// Two namespaces with a cable between them, known to the daemon.
struct Pair {
    near: Netns,
    far: Netns,
    net: u8,
}

impl Pair {
    /// `net` is a number that no other has.
    fn new(lab: &Lab, name: &str, net: u8) -> Pair {
        let (near, far) = (Netns::new(&format!("{name}-near")), Netns::new(&format!("{name}-far")));
        near.cable(&far, net);
        lab.daemon.entities_until("both", |now| {
            let known = |netns: &Netns| now.entities.iter().any(|entity| entity.id.name == netns.0);
            known(&near) && known(&far)
        });
        Pair { near, far, net }
    }

    fn near(&self, version: u8, port: u16) -> std::net::SocketAddr {
        crate::root::address(version, self.net, 1, port)
    }

    fn far(&self, version: u8, port: u16) -> std::net::SocketAddr {
        crate::root::address(version, self.net, 2, port)
    }
}

/// Whether a module is there, and loaded now.
fn modprobe(module: &str) -> bool {
    Command::new("modprobe").args(["-q", module]).status().unwrap().success()
}

/// A value of the node's sysctls, as it was again when dropped.
struct Sysctl(&'static str, String);

impl Sysctl {
    fn new(path: &'static str, value: &str) -> Sysctl {
        let before = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        std::fs::write(path, value).unwrap();
        Sysctl(path, before)
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0, &self.1);
    }
}

/// How a probe stands, as the matrix of kernels has it.
fn described(state: &ProbeState) -> String {
    let way = match state.state {
        StateName::On => state.via.as_deref().unwrap_or("?"),
        other => other.as_str(),
    };
    state.reason.as_ref().map_or(way.to_owned(), |reason| format!("{way}: {reason}"))
}

/// What is expected of probes on a kernel: what holds everywhere, and in its place what holds there.
fn expected(kernel: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(tests_dir().join("vm/kernels.toml")).unwrap();
    let matrix: toml::Table = text.parse().unwrap();
    let everywhere = matrix.get("probes").and_then(toml::Value::as_table);
    let there = matrix["kernels"].get(kernel).unwrap_or_else(|| panic!("the matrix has no kernel {kernel}"));
    let there = there.get("probes").and_then(toml::Value::as_table);
    let all = everywhere.into_iter().chain(there).flatten();
    all.map(|(probe, words)| (probe.clone(), words.as_str().expect("a text").to_owned())).collect()
}

/// Why a probe does not stand as expected.
fn wrong(probe: &ProbeInfo, expected: &BTreeMap<String, String>) -> Option<String> {
    let found = described(&probe.state);
    match expected.get(&probe.name) {
        Some(wanted) => (*wanted != found).then(|| format!("tests/vm/kernels.toml expects '{wanted}'")),
        None if probe.state.state == StateName::On && probe.state.reason.is_none() => None,
        None => Some("tests/vm/kernels.toml does not mention it: it has to be on".to_owned()),
    }
}

/// What is written down of a scenario.
struct Told {
    probe: &'static str,
    seen: String,
    problem: Option<String>,
    seconds: f64,
}

fn play(lab: &Lab, scenario: &Scenario) -> Told {
    let began = Instant::now();
    // Not kept back as what tests print is: whoever waits sees how far it is, or where it hangs.
    let _ = writeln!(std::io::stdout(), "{}: {}", scenario.probe, scenario.what);
    let once = || {
        std::panic::catch_unwind(AssertUnwindSafe(|| {
            // Nothing would come, and all patience would be in vain.
            assert_ne!(
                lab.state(scenario.probe).state,
                StateName::Failed,
                "not tried, since the probe failed"
            );
            (scenario.run)(lab)
        }))
    };
    // Now and then an emulated machine is so slow that what is to be late is later, or not in order: then it is tried again,
    // and the line says so.
    let mut again = "";
    let said = |how: &str, panic: &(dyn Any + Send)| {
        let _ =
            writeln!(std::io::stdout(), "{}: {}: {how}: {}", scenario.probe, scenario.what, text_of(panic));
    };
    let result = once().or_else(|panic| {
        said("once more", &*panic);
        again = " (at the second try)";
        once().inspect_err(|panic| said("failed", &**panic))
    });
    let (seen, problem) = match result {
        Ok(Outcome::Seen(seen)) => (format!("{}: {seen}{again}", scenario.what), None),
        Ok(Outcome::NotHere(reason)) => (format!("{}: not here, {reason}", scenario.what), None),
        Err(panic) => (scenario.what.to_owned(), Some(format!("{}: {}", scenario.what, text_of(&*panic)))),
    };
    Told { probe: scenario.probe, seen, problem, seconds: began.elapsed().as_secs_f64() }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// The probes as `netskoopctl` shows them.
fn listed() -> Vec<ProbeInfo> {
    let text = run("netskoopctl", &["probes", "list", "-o", "json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("netskoopctl probes list: {error}: {text}"))
}

/// One line for each probe: name, how it stands, what was seen, seconds, what is wrong. Read by `tests/vm/report.py`.
fn report(
    probes: &[ProbeInfo],
    wanted: &dyn Fn(&str) -> bool,
    told: &[Told],
    expected: &BTreeMap<String, String>,
) -> (String, Vec<String>) {
    let (mut lines, mut problems) = (String::new(), Vec::new());
    for probe in probes.iter().filter(|probe| wanted(&probe.name)) {
        let own: Vec<&Told> = told.iter().filter(|told| told.probe == probe.name).collect();
        let seen: Vec<&str> = own.iter().map(|told| &*told.seen).collect();
        let seconds: f64 = own.iter().map(|told| told.seconds).sum();
        let own_problems = own.iter().filter_map(|told| told.problem.clone());
        let all: Vec<String> = wrong(probe, expected).into_iter().chain(own_problems).collect();
        let columns = [
            probe.name.clone(),
            described(&probe.state),
            seen.join("; "),
            format!("{seconds:.1}"),
            all.join("; "),
        ];
        let columns = columns.map(|column| column.replace(['\t', '\n'], " "));
        writeln!(lines, "{}", columns.join("\t")).unwrap();
        problems.extend(
            all.iter().map(|problem| format!("{}: {}: {problem}", probe.name, described(&probe.state))),
        );
    }
    let unknown = expected.keys().filter(|name| probes.iter().all(|probe| probe.name != **name));
    problems.extend(unknown.map(|name| format!("tests/vm/kernels.toml mentions {name}, which is no probe")));
    (lines, problems)
}

/// What the self-test finds wrong.
fn selftest(lab: &Lab) -> Vec<String> {
    assert!(modprobe("veth"));
    let answer = exchange(lab.daemon.unix(), "POST", "/v1/selftest", &[], b"");
    let text = answer.text();
    let _ = writeln!(std::io::stdout(), "selftest: {text}");
    let Ok(test) = serde_json::from_str::<SelfTest>(&text) else { return vec![format!("selftest: {text}")] };
    let tried = test.checks.iter().filter(|check| check.result == SelfResult::Ok).count();
    let few = (tried < 10).then(|| format!("selftest: it tried {tried} only"));
    let failed = test.checks.iter().filter(|check| check.result == SelfResult::Failed);
    failed.map(|check| format!("selftest: {}: {}", check.probe, check.says)).chain(few).collect()
}

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn every_probe_works_or_says_why_not() {
    let kernel = std::env::var("NETSKOOP_LAB_KERNEL").expect("the name of the kernel in the matrix");
    let expected = expected(&kernel);
    let lab = Lab::start();
    let only = std::env::var("NETSKOOP_LAB_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|word| !word.is_empty()).collect();
    for word in &only {
        let known = *word == "selftest" || PROBES.iter().any(|probe| probe.name == *word);
        assert!(known, "ONLY={word}: there is no such probe");
    }
    let wanted = |word: &str| only.is_empty() || only.contains(&word);
    let scenarios = SCENARIOS.iter().filter(|scenario| wanted(scenario.probe));
    let told: Vec<Told> = scenarios.map(|scenario| play(&lab, scenario)).collect();
    // Only now does a probe know whether there is anything for it.
    lab.daemon.scrape("/metrics?set=full");
    let mut failed = Vec::new();
    if wanted("selftest") {
        failed = selftest(&lab);
    }
    // What was not provoked may lack a module that its scenario would have loaded.
    let (lines, problems) = report(&listed(), &wanted, &told, &expected);
    std::fs::write("/vm/out/probes.tsv", lines).unwrap();
    let loud = lab.daemon.log().into_iter().filter(|line| line.contains("ERROR"));
    let problems: Vec<String> = problems.into_iter().chain(failed).chain(loud).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_scenario_is_for_a_probe() {
    for scenario in SCENARIOS {
        assert!(PROBES.iter().any(|probe| probe.name == scenario.probe), "{}", scenario.probe);
    }
}
