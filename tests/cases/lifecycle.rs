use crate::support::{Setup, error_of, is_root, run, series, skip};
use netskoop_api::StateName;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::Command;

#[test]
fn every_error_of_the_configuration_is_told_with_its_place() {
    let setup = Setup::fixture("healthy")
        .set("metrics", "nams = [\"netskoop\"]")
        .set("metrics", "max_series = 3")
        .set("probes.tcpresett", "enabled = true")
        .set("probes.packetloss", "stack = \"perhaps\"");
    let (code, stderr) = setup.fails();
    assert_eq!(code, Some(78), "{stderr}");
    let file = setup.config_file();
    let text = setup.config();
    let mut told = 0;
    for (marker, column, says) in [
        ("nams", 1, "metrics.nams: "),
        ("max_series", 14, "a whole number from 1000"),
        ("tcpresett", 9, "Did you mean 'tcpreset'?"),
        ("stack", 9, "probes.packetloss.stack: "),
    ] {
        let line = text.lines().position(|line| line.contains(marker)).unwrap() + 1;
        let place = format!("netskoopd: {}:{line}:{column}: ", file.display());
        let found = stderr.lines().find(|line| line.starts_with(&place) && line.contains(says));
        assert!(found.is_some(), "{place}... {says} is not in\n{stderr}");
        told += 1;
    }
    assert_eq!(stderr.lines().count(), told, "{stderr}");
    assert!(!setup.socket().exists());
}

#[test]
fn broken_and_missing_files_are_told_with_their_place() {
    let setup = Setup::fixture("healthy");
    std::fs::write(setup.config_file(), "[http]\nlisten = [\"1\n").unwrap();
    let (code, stderr) = setup.fails_as_written();
    assert_eq!(code, Some(78));
    assert!(stderr.contains(&format!("{}:2:", setup.config_file().display())), "{stderr}");
    std::fs::remove_file(setup.config_file()).unwrap();
    let (code, stderr) = setup.fails_as_written();
    assert_eq!(code, Some(78));
    assert!(stderr.contains(&setup.config_file().display().to_string()), "{stderr}");
}

#[test]
fn a_taken_port_names_its_holder() {
    let first = Setup::fixture("healthy").pull_only().start();
    let taken = format!("listen = [\"127.0.0.1:{}\"]", first.port);
    let second = Setup::new().pull_only().replace("http", &taken);
    let (code, stderr) = second.fails();
    assert_eq!(code, Some(1));
    let holder = format!("held by netskoopd[{}]", first.pid());
    assert!(stderr.contains(&holder) && stderr.contains("http.listen"), "{stderr}");
    assert!(!second.socket().exists(), "a failed start leaves a socket");
    assert_eq!(first.http("/-/ready").status, 200);
}

#[test]
fn the_socket_of_a_live_daemon_is_left_alone() {
    let first = Setup::fixture("healthy").pull_only().start();
    let second = Setup::fixture("healthy").pull_only();
    let paths = format!("run = \"{}\"", first.setup.run_dir().display());
    let (code, stderr) = second.replace("paths", &paths).fails();
    assert_eq!(code, Some(1));
    assert!(stderr.contains("is in use by a running netskoopd"), "{stderr}");
    assert_eq!(first.status().node, "node-1");
}

#[test]
fn after_a_crash_the_next_start_recovers() {
    let mut daemon = Setup::fixture("healthy").start();
    let socket = daemon.setup.socket();
    let programs = daemon.programs();
    assert!(!is_root() || !programs.is_empty());
    daemon.kill();
    let left: Vec<_> =
        std::fs::read_dir(socket.parent().unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, std::slice::from_ref(&socket), "a crash leaves the socket's file and nothing else");
    crate::support::programs_vanish(&programs);
    let mut daemon = daemon.restart();
    daemon.logged("replacing the socket that a dead daemon left behind");
    assert_eq!(daemon.status().node, "node-1");
    assert_eq!(daemon.stop(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn sigterm_leaves_nothing_behind() {
    let mut daemon = Setup::fixture("healthy").start();
    let socket = daemon.setup.socket();
    let meta = std::fs::symlink_metadata(&socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    let programs = daemon.programs();
    // Clients of all sorts are connected.
    let idle = (daemon.tcp(), daemon.unix());
    let mut follow = crate::support::Follow::new(daemon.unix(), "/v1/events?follow=1");
    assert_eq!(daemon.stop(), Some(0));
    let mut line = String::new();
    while let Some(next) = crate::support::Lines::next_line(&mut follow) {
        line = next;
    }
    assert!(line.is_empty() || line.ends_with('\n'), "the stream is cut in a line: {line}");
    assert!(!socket.exists() && !socket.with_extension("sock.new").exists());
    crate::support::programs_vanish(&programs);
    drop(idle);
}

#[test]
fn sigint_stops_it_too() {
    let mut daemon = Setup::fixture("healthy").pull_only().start();
    daemon.signal(rustix::process::Signal::INT);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn without_root_it_says_what_to_do() {
    if !is_root() {
        return skip("needs root, to become somebody else");
    }
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let setup = Setup::fixture_copy("healthy").public_binary().wrap(&nobody);
    let (code, stderr) = setup.fails();
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("netskoopd: cannot make ") && stderr.contains("run netskoopd as root"),
        "{stderr}"
    );

    // With a directory of its own it serves what it can.
    std::fs::set_permissions(setup.run_dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = setup.start();
    assert_eq!(series(&daemon.scrape("/metrics"), "netskoop_probe_success{probe=\"tcp\"}"), Some(1.0));
    let state = daemon.probe("packetloss").state;
    assert_eq!(state.state, StateName::NotAvailable);
    assert!(state.reason.unwrap().contains("CAP_BPF"));
    // It cannot write into the directory of the configuration, and says how to go on.
    let answer = daemon.patch("tcp", r#"{"enabled":false}"#);
    let error = error_of(&answer);
    assert_eq!((answer.status, &*error.code), (500, "not_stored"));
    assert!(error.message.contains("use --runtime"), "{}", error.message);
    assert_eq!(daemon.probe("tcp").state.state, StateName::On);
    daemon.change("tcp", r#"{"enabled":false,"runtime":true}"#);
}

#[test]
fn without_capabilities_bpf_probes_say_why_and_the_rest_runs() {
    if !is_root() {
        return skip("needs root, to give up capabilities");
    }
    let wrap = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"];
    let daemon = Setup::fixture("healthy").wrap(&wrap).start();
    let why = "BPF needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and this process lacks CAP_BPF and CAP_PERFMON";
    for name in ["tcpreset", "packetloss"] {
        let state = daemon.probe(name).state;
        assert_eq!((state.state, state.reason.as_deref()), (StateName::NotAvailable, Some(why)), "{name}");
        let answer = daemon.patch(name, r#"{"enabled":true,"for":"10m"}"#);
        let error = error_of(&answer);
        let said = format!("{name}: {why}");
        assert_eq!((answer.status, &*error.code, error.message), (409, "not_available", said));
        assert_eq!(daemon.probe(name).state.lease_seconds, None, "nothing was changed");
    }
    // Others may be missing because this kernel lacks something.
    let absent = daemon.status().probes.not_available;
    assert!(
        ["tcpreset", "packetloss"].iter().all(|name| absent.iter().any(|probe| probe == name)),
        "{absent:?}"
    );
    let text = daemon.scrape("/metrics");
    assert_eq!(series(&text, "netskoop_probe_success{probe=\"tcp\"}"), Some(1.0));
    assert_eq!(series(&text, "netskoop_probe_success{probe=\"tcpreset\"}"), Some(0.0));
    let said = daemon.log().iter().filter(|line| line.contains("CAP_BPF")).count();
    assert!((1..=5).contains(&said), "once per cause: {said}");
}

#[test]
fn without_bpf_nothing_is_told_of_what_processes_read_and_wrote() {
    if !is_root() {
        return skip("needs root, to give up capabilities");
    }
    // What `/proc/<pid>/io` tells falls when a process ends, and counts children again in their parent.
    let wrap = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"];
    let setup = Setup::fixture("healthy").wrap(&wrap).set("probes.io", "enabled = true");
    let daemon = setup.set("probes.cpu", "enabled = true").start();
    let text = daemon.scrape("/metrics?set=full");
    let (io, cpu) = (daemon.probe("io").state, daemon.probe("cpu").state);
    assert_eq!(io.state, StateName::NotAvailable);
    assert!(io.reason.unwrap().contains("CAP_BPF"));
    // It has more than what its programs count.
    assert!(cpu.reason.unwrap().contains("CAP_BPF"));
    assert!(!text.contains("netskoop_io_") && !text.contains("netskoop_cpu_run_seconds_total"), "{text}");
}

#[test]
fn checking_the_configuration_starts_nothing() {
    let setup = Setup::fixture("healthy");
    std::fs::write(setup.config_file(), setup.config()).unwrap();
    let check = |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netskoopd"));
        command.args(["--check-config", "--config", file]).output().unwrap()
    };
    let file = setup.config_file();
    assert!(check(file.to_str().unwrap()).status.success());
    assert!(!setup.socket().exists());
    std::fs::write(&file, "[metrics]\nset = \"some\"\n").unwrap();
    let bad = check(file.to_str().unwrap());
    assert_eq!(bad.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&bad.stderr).contains(&format!("{}:2:7: metrics.set: ", file.display())));
    assert!(run(env!("CARGO_BIN_EXE_netskoopd"), &["--version"]).starts_with("netskoopd "));
}
