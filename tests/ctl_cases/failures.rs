//! What goes wrong: exit codes and texts, each with the next step.

use super::support::{Daemon, Outcome, command, directory, shared};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

#[test]
fn wrong_usage_is_two() {
    for (line, part) in [
        ("statsu", "a similar subcommand exists: 'status'"),
        ("probes enable", "<NAMES>"),
        ("probes enable tcp --for 1m --runtime", "cannot be used with"),
        ("probes enable tcp --set novalue", "key=value"),
        ("events --since noon", "noon"),
        ("status -o name", "'-o name' makes no sense here"),
        ("status --color pink", "[possible values: auto, always, never]"),
    ] {
        let (code, err) = shared().ctl(line).failed();
        assert_eq!(code, 2, "{line}\n{err}");
        assert!(err.contains(part), "{part} of {line}\n{err}");
    }
}

#[test]
fn nobody_listens_is_three() {
    let missing = directory().join("netskoopd.sock");
    for line in [
        "status",
        "probes",
        "entities",
        "events -f",
        "metrics host",
        "config",
        "reload",
        "probes disable udp tcp",
    ] {
        let outcome = Outcome::of(&command(&missing, line).output().unwrap());
        let text = format!(
            "netskoopctl: cannot reach netskoopd at {}: no such file\n  Is it running?  systemctl status netskoopd\n",
            missing.display()
        );
        assert_eq!(outcome.failed(), (3, text), "{line}");
    }
    let stale = missing.with_file_name("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let (code, err) = Outcome::of(&command(&stale, "status").output().unwrap()).failed();
    assert_eq!(code, 3);
    assert!(err.contains("connection refused\n  Is it running?"), "{err}");
    std::fs::remove_dir_all(missing.parent().unwrap()).unwrap();
}

#[test]
fn a_name_that_does_not_exist_is_four() {
    let probe = "netskoopctl: no probe 'tcpresets'. Did you mean 'tcpreset'?\n";
    for line in ["probes show tcpresets", "probes enable tcpresets", "probes disable tcpresets --runtime"] {
        assert_eq!(shared().ctl(line).failed(), (4, probe.to_owned()), "{line}");
    }
    let nothing_like_it = "netskoopctl: no probe 'thermometer'\n  netskoopctl probes list shows them\n";
    assert_eq!(shared().ctl("probes show thermometer").failed(), (4, nothing_like_it.to_owned()));
    let entity = "netskoopctl: no entity 'nobody'\n  netskoopctl entities lists them\n";
    for line in ["entities nobody", "metrics nobody"] {
        assert_eq!(shared().ctl(line).failed(), (4, entity.to_owned()), "{line}");
    }
}

#[test]
fn an_unknown_event_type_is_suggested() {
    let (code, err) = shared().ctl("events --type tcp_reset_nosck").failed();
    assert_eq!(code, 1);
    assert_eq!(err, "netskoopctl: no event type 'tcp_reset_nosck'. Did you mean 'TCP_RESET_NOSOCK'?\n");
}

#[test]
fn who_may_not_connect_is_told_what_to_do() {
    let daemon = Daemon::quiet();
    // It answers us.
    daemon.ctl("version").ok();
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "nobody but root and the group may connect");
    // A copy, since others may not look into the build directory.
    let program = daemon.config().with_file_name("netskoopctl");
    std::fs::copy(env!("CARGO_BIN_EXE_netskoopctl"), &program).unwrap();
    let mut command = Command::new(program);
    command.arg("status").arg("--socket").arg(daemon.socket());
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        std::fs::set_permissions(daemon.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    let text = format!(
        "netskoopctl: permission denied on {}\n  Run as root, or join the group: usermod -aG netskoop $USER\n",
        daemon.socket().display()
    );
    assert_eq!(Outcome::of(&command.output().unwrap()).failed(), (5, text));
}

#[test]
fn a_reader_that_goes_away_ends_it_silently() {
    for line in ["metrics host -a", "probes show tcpext", "probes -o json", "events -f"] {
        let mut child = shared().command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        if line != "events -f" {
            let mut first = String::new();
            out.read_line(&mut first).unwrap();
            assert!(!first.is_empty(), "{line}");
        }
        drop(out);
        let outcome = Outcome::of(&child.wait_with_output().unwrap());
        assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{line}");
    }
}

#[test]
fn a_full_disk_does_not_pass_for_success() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let outcome = Outcome::of(&shared().command("entities").stdout(full).output().unwrap());
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.err.starts_with("netskoopctl: cannot write the output: No space left"),
        "{}",
        outcome.err
    );
}

#[test]
fn a_daemon_that_stops_ends_the_stream_and_leaves_no_socket() {
    let mut daemon = Daemon::quiet();
    let child = daemon.command("events -f").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Until it follows.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while daemon.json::<netskoop_api::Status>("status").events.followers == 0 {
        assert!(std::time::Instant::now() < deadline, "it does not follow");
    }
    daemon.stop().unwrap();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, 3, "{}", outcome.err);
    assert!(outcome.err.contains("netskoopd ended the stream"), "{}", outcome.err);
    assert!(!daemon.socket().exists());
    assert_eq!(daemon.ctl("status").failed().0, 3);
}
