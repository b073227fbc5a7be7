//! With programs in the kernel. Other users of BPF run beside these tests: each looks at its own connections only.

use super::support::{Daemon, no_bpf, skip};
use netskoop_api::{Event, ProbeInfo, SelfCheck, SelfResult, SelfTest, StateName, Status};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

/// A port at which nobody listens, after a connection to it was refused.
fn refused() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    TcpStream::connect(address).unwrap_err();
    address.port()
}

/// The events of our connections among those in `text`.
fn of_port(text: &str, port: u16) -> Vec<Event> {
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    events.filter(|event| event.net.as_ref().is_some_and(|net| net.sport == port)).collect()
}

#[test]
fn a_refused_connection_is_in_the_history_and_on_the_screen() {
    if skip("root::a_refused_connection_is_in_the_history_and_on_the_screen", no_bpf()) {
        return;
    }
    let daemon = Daemon::on(Path::new("/proc"), "[probes.packetloss]\nenabled = false\n");
    let probe: ProbeInfo = daemon.json("probes show tcpreset");
    assert_eq!((probe.state.state, probe.state.via.as_deref()), (StateName::On, Some("tp_btf")));
    assert!(!probe.state.programs.is_empty());
    let port = refused();
    // The history is asked until the event, which takes its way through the ring, is in it.
    let line = "events -o json --type TCP_RESET_NOSOCK";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let event = loop {
        if let Some(event) = of_port(&daemon.ctl(line).out, port).pop() {
            break event;
        }
        assert!(std::time::Instant::now() < deadline, "no event of port {port}");
    };
    let net = event.net.as_ref().unwrap();
    assert_eq!((net.proto.as_str(), net.src.as_str(), net.dst.as_str()), ("tcp", "127.0.0.1", "127.0.0.1"));
    assert_eq!(
        (event.probe.as_str(), event.node.as_str(), event.schema),
        ("tcpreset", super::support::NODE, 1)
    );
    let entity = event.entity.clone().unwrap();
    // The same event by an older name of its type, by its entity, and as a table.
    assert_eq!(
        of_port(&daemon.ctl("events -o json --type tcpreset_nosock").out, port),
        std::slice::from_ref(&event)
    );
    assert_eq!(
        of_port(&daemon.ctl(&format!("events -o json --entity {}", entity.netns)).out, port).len(),
        of_port(&daemon.ctl("events -o json").out, port).len()
    );
    let table = daemon.ctl("events --type TCP_RESET_NOSOCK");
    let wanted = format!("127.0.0.1:{port} > 127.0.0.1:{}", net.dport);
    let row = table.out.lines().find(|line| line.contains(&wanted)).unwrap();
    assert!(row.contains("TCP_RESET_NOSOCK") && row.contains(&entity.name), "{row}");
    assert!(table.err.ends_with(" lost\n"), "{}", table.err);
    assert_eq!(daemon.ctl("events -o json --since 0s").out, "");
    assert_eq!(daemon.ctl("events -n 1 -o json").out.lines().count(), 1);
    let status: Status = daemon.json("status");
    assert!(status.events.received >= 1 && status.events.kept >= 1 && status.events.malformed == 0);
    // Whether its programs are gone is asked of the kernel in the daemon's own tests.
    assert_eq!(
        daemon.ctl("probes disable tcpreset --runtime").ok(),
        "tcpreset is off until changed again or the next boot\n"
    );
    let off: ProbeInfo = daemon.json("probes show tcpreset");
    assert!(off.state.programs.is_empty() && off.state.state == StateName::Off);
}

/// In namespaces of its own, so that it finds nothing of other tests.
#[test]
fn a_self_test_says_how_it_ended_on_the_screen_in_json_and_by_its_exit_code() {
    if skip("root::a_self_test_says_how_it_ended_on_the_screen_in_json_and_by_its_exit_code", no_bpf()) {
        return;
    }
    let daemon = Daemon::on(Path::new("/proc"), "[probes.dns]\nenabled = true\n");
    let test: SelfTest = daemon.json("selftest");
    assert!(test.passed, "{test:#?}");
    let of_dns = |check: &&SelfCheck| check.probe == "dns" && check.result == SelfResult::Ok && check.exact;
    assert_eq!(test.checks.iter().filter(of_dns).count(), 2, "{test:#?}");
    let screen = daemon.ctl("selftest").ok();
    let line = screen.lines().find(|line| line.starts_with("dns ")).unwrap();
    assert!(line.contains(" ok ") && line.contains("DNS_FAILED event in "), "{line}");
    let programs = daemon.json::<ProbeInfo>("probes show dns").state.programs;
    assert_eq!(crate::support::detach(&programs), 2, "one for each way");
    let outcome = daemon.ctl("selftest -o json");
    let test: SelfTest = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!((outcome.code, test.passed), (1, false), "{test:#?}");
}

#[test]
fn a_probe_with_hooks_is_switched_on_with_options_for_a_time() {
    if skip("root::a_probe_with_hooks_is_switched_on_with_options_for_a_time", no_bpf()) {
        return;
    }
    let daemon = Daemon::quiet();
    let text = daemon.ctl("probes enable packetloss --for 5m --set stack=true -s reasons=3").ok();
    assert_eq!(text, "packetloss is on, reasons=3, stack=true for 5m\n");
    let probe: ProbeInfo = daemon.json("probes show packetloss");
    assert_eq!((probe.state.state, probe.state.decided_by.as_str()), (StateName::On, "lease"));
    assert!(probe.state.stream.is_some() && probe.state.lease_seconds.is_some());
    let show = daemon.ctl("probes show packetloss").ok();
    assert!(show.contains("\n  Via         tp_btf, program"), "{show}");
    assert!(show.contains("\n  Counts      "), "{show}");
}
