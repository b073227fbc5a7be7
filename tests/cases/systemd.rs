use crate::support::nspawn::{Machine, inside_own_node};
use crate::support::{LIMIT, test_name, tests_dir, until};
use netskoop_api::{Entity, Kind, SelfResult, SelfTest, SourceStatus};
use netskoopd::resolve::book::{Book, Wanted};
use netskoopd::resolve::runtimes::{self, Choice, Runtimes, Settings};
use netskoopd::resolve::workload::Workload;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

/// Two that share a network, one in a named namespace, and one like most.
const UNITS: [(&str, &str); 5] = [
    (
        "etc/systemd/system/first.service",
        "[Unit]\nDescription=The \"first\"\n[Service]\nPrivateNetwork=yes\nExecStart=sleep infinity\n",
    ),
    (
        "etc/systemd/system/second@x\\x2dy.service",
        "[Unit]\nDescription=The second\nJoinsNamespaceOf=first.service\nAfter=first.service\n\
         [Service]\nPrivateNetwork=yes\nExecStart=sleep infinity\n",
    ),
    (
        "etc/systemd/system/third.service",
        "[Unit]\nDescription=The third\nRequires=blue.service\nAfter=blue.service\n\
         [Service]\nNetworkNamespacePath=/run/netns/blue\nExecStart=sleep infinity\n",
    ),
    (
        "etc/systemd/system/blue.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=ip netns add blue\n",
    ),
    ("etc/systemd/system/plain.service", "[Service]\nPrivateTmp=yes\nExecStart=sleep infinity\n"),
];

const SECOND: &str = "second@x\\x2dy.service";

fn source(machine: &Machine) -> SourceStatus {
    machine.status().sources.into_iter().find(|source| source.name == "systemd").unwrap()
}

fn workloads(machine: &Machine) -> u64 {
    source(machine).counts.unwrap().workloads
}

fn named(machine: &Machine, name: &str, ready: impl Fn(&Entity) -> bool) -> Entity {
    until(name, || {
        machine.entities().entities.into_iter().find(|entity| entity.id.name == name && ready(entity))
    })
}

#[test]
fn units_with_a_network_of_their_own_are_told_by_systemd() {
    if !inside_own_node(test_name!()) {
        return;
    }
    let Some(machine) = Machine::boot(&UNITS) else { return };
    machine.run("systemctl", &["start", "netskoopd", "plain"]);
    assert!(source(&machine).state.starts_with("idle"), "{}", source(&machine).state);

    machine.run("systemctl", &["start", "first", SECOND, "third"]);
    let shared = named(&machine, "first.service", |it| it.units.len() == 2 && it.description.is_some());
    assert_eq!((shared.id.kind, shared.description.as_deref()), (Kind::Unit, Some("The \"first\"")));
    assert_eq!(
        (shared.units.as_slice(), shared.processes),
        (&["first.service".into(), SECOND.into()][..], 2)
    );
    assert!(shared.sources.iter().any(|source| source == "systemd"), "{:?}", shared.sources);
    let third = named(&machine, "third.service", |it| it.description.is_some());
    assert_eq!(
        (third.description.as_deref(), third.mounts.as_slice()),
        (Some("The third"), &["blue".into()][..])
    );
    assert_eq!(workloads(&machine), 3, "nobody asks about the others");
    let state = source(&machine).state;
    assert!(state.starts_with("connected to systemd 2"), "{state}");

    // The bus goes and comes back; so does a unit, as another one.
    machine.run("systemctl", &["restart", "dbus.service"]);
    until("a loss", || source(&machine).counts.filter(|counts| counts.failures > 0));
    until("a connection", || source(&machine).connected_seconds);
    let unit = "etc/systemd/system/third.service";
    let text = std::fs::read_to_string(machine.inside(unit)).unwrap();
    std::fs::write(machine.inside(unit), text.replace("The third", "The fourth")).unwrap();
    machine.run("systemctl", &["daemon-reload"]);
    named(&machine, "third.service", |it| it.description.as_deref() == Some("The fourth"));
    machine.run("systemctl", &["stop", "third"]);
    named(&machine, "blue", |it| it.id.kind == Kind::Netns);
    until("two are left", || (workloads(&machine) == 2).then_some(()));
    machine.run("systemctl", &["stop", "first", SECOND]);
    until("none is left", || (workloads(&machine) == 0).then_some(()));
}

/// What the unit takes away from the daemon is not what a self-test needs.
#[test]
fn a_self_test_passes_in_the_sandbox_of_the_unit() {
    if !inside_own_node(test_name!()) {
        return;
    }
    let Some(machine) = Machine::boot(&[]) else { return };
    // Port 53 takes a capability that the unit does not have, and the program is read from its disk.
    let more = ["dns", "biolatency", "netanomaly", "tasklatency"];
    let on: String = more.iter().map(|probe| format!("[probes.{probe}]\nenabled = true\n")).collect();
    let directory = machine.inside("etc/netskoop/conf.d");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("10-more.toml"), on).unwrap();
    machine.run("systemctl", &["start", "netskoopd"]);
    let answer = machine.post("/v1/selftest");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let test: SelfTest = serde_json::from_slice(&answer.body).unwrap();
    assert!(test.passed, "{test:#?}");
    let tried = test.checks.iter().filter(|check| check.result == SelfResult::Ok).count();
    assert!(tried > 10, "{test:#?}");
    let dns: Vec<_> = test.checks.iter().filter(|check| check.probe == "dns").collect();
    assert!(dns.len() == 2 && dns.iter().all(|check| check.result == SelfResult::Ok), "{dns:#?}");
}

fn ctl(machine: &Machine, request: &str) -> String {
    let mut stream = UnixStream::connect(machine.inside("run/netskoop/netskoopd.sock")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whoever asks meanwhile is told why there is nobody, however often; and neither the socket nor the service is given up.
#[test]
fn a_configuration_that_is_refused_and_corrected() {
    if !inside_own_node(test_name!()) {
        return;
    }
    let unit = std::fs::read_to_string(tests_dir().join("../systemd/netskoopd.socket")).unwrap();
    let socket = unit.replace("SocketGroup=netskoop", "SocketGroup=root");
    let files = [
        ("etc/systemd/system/netskoopd.socket", socket.as_str()),
        ("etc/netskoop/netskoopd.toml", "[nonsense]\n"),
    ];
    let Some(machine) = Machine::boot(&files) else { return };
    machine.run("systemctl", &["start", "netskoopd.socket"]);
    let state = |unit: &str| machine.attempt("systemctl", &["is-active", unit]).1.trim().to_owned();
    for _ in 0..8 {
        let answer = ctl(&machine, "GET /v1/status");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("netskoopd.toml:1:2: nonsense: unknown key"), "{answer}");
    }
    until("it has ended", || (state("netskoopd.service") == "failed").then_some(()));
    assert_eq!(state("netskoopd.socket"), "active");

    let config = machine.inside("etc/netskoop/netskoopd.toml");
    std::fs::write(&config, "").unwrap();
    machine.run("systemctl", &["start", "netskoopd"]);
    assert!(ctl(&machine, "GET /v1/status").starts_with("HTTP/1.1 200 "));

    // While it runs, the reload fails, and the old configuration stays.
    std::fs::write(&config, "[nonsense]\n").unwrap();
    let (code, said) = machine.attempt("systemctl", &["reload", "netskoopd"]);
    assert_ne!(code, Some(0), "{said}");
    assert_eq!(state("netskoopd.service"), "active");
}

/// The line of `systemctl status` tells what is, and not what was at the start.
#[test]
fn the_status_of_the_service_follows() {
    if !inside_own_node(test_name!()) {
        return;
    }
    let Some(machine) = Machine::boot(&[]) else { return };
    machine.run("systemctl", &["start", "netskoopd"]);
    let text = || machine.run("systemctl", &["show", "-P", "StatusText", "netskoopd"]).trim().to_owned();
    let on = machine.status().probes.on;
    assert_eq!(text(), format!("1 network namespace, {on} probes on"));
    let answer = machine.patch("/v1/probes/udp", b"{\"enabled\": false, \"runtime\": true}");
    assert_eq!(answer.status, 200, "{}", answer.text());
    until("one less", || (text() == format!("1 network namespace, {} probes on", on - 1)).then_some(()));
    machine.run("ip", &["netns", "add", "blue"]);
    until("one more namespace", || text().starts_with("2 network namespaces, ").then_some(()));
    std::fs::create_dir_all(machine.inside("etc/netskoop")).unwrap();
    std::fs::write(machine.inside("etc/netskoop/netskoopd.toml"), "[nonsense]\n").unwrap();
    assert_eq!(machine.post("/v1/reload").status, 400);
    until("the refusal", || text().ends_with("; the configuration on disk was refused").then_some(()));
}

#[test]
fn what_systemd_says_of_a_unit() {
    if !inside_own_node(test_name!()) {
        return;
    }
    let Some(machine) = Machine::boot(&UNITS) else { return };
    machine.run("systemctl", &["start", "first", SECOND, "third", "plain"]);
    let book = Arc::new(Book::new(|| {}));
    let others = runtimes::names().filter(|name| *name != "systemd");
    let choices = others.map(|name| (name, Choice::Off)).collect();
    let settings = Settings { proc: "/proc".into(), run: machine.inside("run"), choices };
    let _sources = Runtimes::start(&settings, &book).unwrap();
    let ask = |unit: &str| -> Arc<Workload> {
        book.ask(&Wanted::Unit(unit.into()));
        until(unit, || book.by_id(unit).first().map(|(_, told)| Arc::clone(&told.workload)))
    };
    let main_pid = |unit: &str| {
        let pid = machine.run("systemctl", &["show", "-P", "MainPID", unit]);
        Some(pid.trim().parse::<i32>().unwrap())
    };
    let first = ask("first.service");
    assert_eq!((first.pid, &*first.description), (main_pid("first.service"), "The \"first\""));
    assert_eq!(first.labels.get("ControlGroup"), Some("/system.slice/first.service"));
    let second = ask(SECOND);
    assert_eq!((second.joins.as_slice(), &*second.name), (&["first.service".to_owned()][..], SECOND));
    let third = ask("third.service");
    assert_eq!(third.netns.as_deref(), Some(Path::new("/run/netns/blue")));
    assert!(third.labels.get("PrivateNetwork").is_none() && third.joins.is_empty());
    // A unit that is not there is not made by being asked about, and one that shares only /tmp shares no network.
    book.ask(&Wanted::Unit("nobody.service".into()));
    book.ask(&Wanted::Machine("box".into()));
    assert!(ask("plain.service").joins.is_empty());
    assert!(book.by_id("nobody.service").is_empty() && book.by_id("box").is_empty());
    let units = machine.run("systemctl", &["list-units", "--all", "--plain", "--no-legend"]);
    assert!(!units.contains("nobody.service") && !units.contains("machined"), "{units}");
}
