use crate::support::docker::installed;
use crate::support::nspawn::Machine;
use crate::support::packages::{self, NEXT, Packages};
use crate::support::{run, skip, test_name, tests_dir, until};
use netskoop_api::StateName;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const CONFIG: &str = "etc/netskoop/netskoopd.toml";

fn main_pid(machine: &Machine) -> String {
    machine.property("netskoopd.service", "MainPID")
}

fn is_active(machine: &Machine) -> String {
    machine.attempt("systemctl", &["is-active", "netskoopd.service"]).1.trim().to_owned()
}

fn append(machine: &Machine, file: &str, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(machine.inside(file)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// All files of the system but what the package manager, the journal and caches keep.
fn files(machine: &Machine) -> BTreeSet<String> {
    let text = machine.run("find", &["/", "-xdev", "-not", "-path", "/proc/*"]);
    let kept =
        ["/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/tmp", "/var/tmp", "/var/lib/systemd"];
    let old = ["passwd-", "group-", "gshadow-", "shadow-", ".pwd.lock"].map(|name| format!("/etc/{name}"));
    let counts =
        |line: &&str| !kept.iter().any(|dir| line.starts_with(dir)) && !old.iter().any(|file| file == line);
    text.lines().filter(counts).map(str::to_owned).collect()
}

#[test]
fn it_is_installed_runs_in_its_sandbox_and_is_scraped() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[]) else { return };
    let said = machine.apt(&["install", "netskoop=0.1.0"]);
    assert!(!said.contains("netskoop:"), "{said}");
    assert_eq!(
        machine.run("systemctl", &["is-enabled", "netskoopd.service", "netskoopd.socket"]),
        "enabled\nenabled\n"
    );
    assert_eq!(is_active(&machine), "active");
    machine.run("systemctl", &["enable", "--now", "netskoopd"]);

    let metrics = machine.on_its_network("curl", &["-fsS", "-m", "20", "http://localhost:9102/metrics"]);
    assert!(metrics.contains("netskoop_tcp_active_opens_total{kind=\"host\""), "{metrics:.500}");
    let said = machine.run("netskoopctl", &["probes", "enable", "cpu"]);
    assert!(said.starts_with("cpu is on"), "{said}");
    let dropin = machine.inside("etc/netskoop/conf.d/50-netskoopctl.toml");
    assert!(std::fs::read_to_string(dropin).unwrap().contains("[probes.cpu]"));
    let score = machine.run("systemd-analyze", &["security", "--no-pager", "netskoopd.service"]);
    let line = score.lines().last().unwrap_or_default();
    let number: f64 = line.split_whitespace().find_map(|word| word.parse().ok()).expect("a score");
    assert!(number <= 3.9, "{line}");

    every_probe_works_as_without_a_sandbox(&machine);
    let said = machine.run("netskoopctl", &["selftest"]);
    assert!(said.contains(" ok, 0 failed, "), "{said}");
    an_event_arrives(&machine);
    names_are_completed(&machine);
    append(&machine, CONFIG, "\n[metrics]\nset = \"full\"\n");
    let pid = main_pid(&machine);
    machine.run("systemctl", &["reload", "netskoopd"]);
    let full = || machine.on_its_network("curl", &["-fsS", "-m", "20", "http://localhost:9102/metrics"]);
    until("the full set", || full().contains("netskoop_sock_tcp_time_wait").then_some(()));
    assert_eq!(main_pid(&machine), pid);
}

/// What the unit takes away from the daemon must not show, not in one sentence.
fn every_probe_works_as_without_a_sandbox(machine: &Machine) {
    let off: Vec<String> =
        probes(machine).into_iter().filter(|it| it.1 == StateName::Off).map(|it| it.0).collect();
    let names: Vec<&str> = off.iter().map(String::as_str).collect();
    machine.attempt("netskoopctl", &[&["probes", "enable", "--runtime"], names.as_slice()].concat());
    let inside = probes(machine);
    machine.run("systemctl", &["stop", "netskoopd.service", "netskoopd.socket"]);
    machine.run("systemd-run", &["--unit=bare", "--property=Type=notify", "/usr/sbin/netskoopd"]);
    let outside = probes(machine);
    machine.run("systemctl", &["stop", "bare"]);
    machine.run("systemctl", &["start", "netskoopd.socket", "netskoopd.service"]);
    assert_eq!(inside, outside);
    let on = inside.iter().filter(|(_, state, _)| *state == StateName::On).count();
    assert!(on > inside.len() / 2, "{inside:#?}");
    assert!(!inside.iter().any(|(_, state, _)| *state == StateName::Failed), "{inside:#?}");
}

/// Name, state and reason of each, after all of them were read.
fn probes(machine: &Machine) -> Vec<(String, StateName, Option<String>)> {
    machine.on_its_network(
        "curl",
        &["-fsS", "-m", "20", "-o", "/dev/null", "http://localhost:9102/metrics?set=full"],
    );
    let text = machine.run("netskoopctl", &["probes", "list", "-o", "json"]);
    let probes: Vec<netskoop_api::ProbeInfo> = serde_json::from_str(&text).unwrap();
    probes.into_iter().map(|probe| (probe.name, probe.state.state, probe.state.reason)).collect()
}

fn an_event_arrives(machine: &Machine) {
    machine.run("ip", &["netns", "add", "blue"]);
    machine.run("ip", &["-n", "blue", "link", "set", "lo", "up"]);
    until("blue", || machine.entities().entities.into_iter().find(|entity| entity.id.name == "blue"));
    machine.attempt("ip", &["netns", "exec", "blue", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"]);
    until("a reset", || {
        let events = machine.run("netskoopctl", &["events", "--since", "5m", "--entity", "blue"]);
        (events.contains("TCP_RESET_NOSOCK") && events.contains("127.0.0.1:9 >")).then_some(())
    });
}

/// Tab in `netskoopctl probes enable tcp<Tab>`, as bash does it.
fn names_are_completed(machine: &Machine) {
    let script = "source /usr/share/bash-completion/completions/netskoopctl; \
                  COMP_WORDS=(netskoopctl probes enable tcpres); COMP_CWORD=3; _netskoopctl; echo ${COMPREPLY[@]}";
    assert_eq!(machine.run("bash", &["-c", script]), "tcpreset\n");
}

#[test]
fn the_group_reads_and_whom_the_configuration_names_changes() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[]) else { return };
    machine.apt(&["install", "netskoop=0.1.0"]);
    for (user, groups) in [("nobodys", ""), ("reader", "netskoop"), ("both", "netskoop,operators")] {
        machine.attempt("groupadd", &["operators"]);
        machine.run("useradd", &["-G", groups, user]);
    }
    let (code, said) = machine.ctl_as("nobodys", &["status"]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("permission denied"), "{said}");
    assert_eq!(machine.ctl_as("reader", &["status"]).0, Some(0));
    // The group is none of its own, but one that it has besides.
    let (code, said) = machine.ctl_as("reader", &["probes", "enable", "cpu", "--runtime"]);
    assert_eq!(code, Some(0), "{said}");
    let uid = machine.run("id", &["-u", "reader"]);
    let journal = || machine.run("journalctl", &["-b", "-u", "netskoopd", "-o", "cat"]);
    until("the change in the journal", || {
        journal().contains(&format!("uid={} pid=", uid.trim())).then_some(())
    });

    append(&machine, CONFIG, "\n[control]\ngroup = \"operators\"\n");
    machine.run("systemctl", &["reload", "netskoopd"]);
    for command in [&["probes", "disable", "cpu", "--runtime"][..], &["reload"], &["selftest"]] {
        let (code, said) = until("the new rule", || {
            Some(machine.ctl_as("reader", command)).filter(|(code, _)| *code == Some(5))
        });
        assert_eq!(code, Some(5));
        assert!(said.contains("only root and members of the group 'operators' may change this"), "{said}");
        assert!(said.contains("usermod --append --groups operators"), "{said}");
        let (code, said) = machine.ctl_as("both", command);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(machine.attempt("netskoopctl", command).0, Some(0), "root always may");
    }
    assert_eq!(machine.ctl_as("reader", &["probes", "list"]).0, Some(0));
    assert!(journal().contains("a change was refused"), "{}", journal());
}

#[test]
fn it_is_upgraded_downgraded_removed_and_purged() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[]) else { return };
    let before = files(&machine);
    machine.apt(&["install", "netskoop=0.1.0"]);
    append(&machine, CONFIG, "# mine\n");
    machine.run("netskoopctl", &["probes", "enable", "cpu"]);
    let socket = || {
        std::os::unix::fs::MetadataExt::ino(
            &std::fs::metadata(machine.inside("run/netskoop/netskoopd.sock")).unwrap(),
        )
    };
    let (pid, inode) = (main_pid(&machine), socket());

    // An edited conffile stays, the daemon is another, the socket is the same.
    let said = machine.apt(&["upgrade", "--with-new-pkgs"]);
    assert!(!said.contains("netskoop:"), "{said}");
    let version = || machine.run("dpkg-query", &["-W", "-f", "${Version}", "netskoop"]);
    assert_eq!(version(), NEXT);
    assert!(std::fs::read_to_string(machine.inside(CONFIG)).unwrap().ends_with("# mine\n"));
    assert!(machine.inside("etc/netskoop/netskoopd.toml.dpkg-dist").exists());
    assert_ne!(main_pid(&machine), pid);
    assert_eq!((is_active(&machine).as_str(), socket()), ("active", inode));
    assert!(machine.run("netskoopctl", &["probes", "show", "cpu"]).contains("50-netskoopctl.toml"));

    // A configuration that the other version does not understand: what runs goes on.
    append(&machine, CONFIG, "[metrics]\nfrom_the_future = 1\n");
    let pid = main_pid(&machine);
    let said = machine.apt(&["install", "--allow-downgrades", "netskoop=0.1.0"]);
    assert!(said.contains("metrics.from_the_future: unknown key"), "{said}");
    assert!(
        said.contains(
            "netskoop: this version refuses the configuration, and the old daemon goes on running."
        ),
        "{said}"
    );
    assert_eq!(
        (version().as_str(), main_pid(&machine), is_active(&machine).as_str()),
        ("0.1.0", pid.clone(), "active")
    );
    let text = std::fs::read_to_string(machine.inside(CONFIG)).unwrap();
    std::fs::write(machine.inside(CONFIG), text.replace("[metrics]\nfrom_the_future = 1\n", "")).unwrap();
    machine.run("systemctl", &["restart", "netskoopd"]);
    assert_ne!(main_pid(&machine), pid);

    // Who disabled it, or stopped it, finds it as it was.
    machine.run("systemctl", &["disable", "--now", "netskoopd.service", "netskoopd.socket"]);
    machine.apt(&["install", &format!("netskoop={NEXT}")]);
    assert_eq!(is_active(&machine), "inactive");
    assert_eq!(machine.attempt("systemctl", &["is-enabled", "netskoopd.service"]).1, "disabled\n");
    machine.run("systemctl", &["enable", "--now", "netskoopd"]);

    machine.apt(&["remove", "netskoop"]);
    assert_eq!(is_active(&machine), "inactive");
    assert!(machine.inside(CONFIG).exists() && !machine.inside("usr/sbin/netskoopd").exists());
    machine.apt(&["install", "netskoop=0.1.0"]);
    assert_eq!(is_active(&machine), "active");
    assert!(std::fs::read_to_string(machine.inside(CONFIG)).unwrap().ends_with("# mine\n"));

    machine.apt(&["purge", "netskoop"]);
    assert_eq!(files(&machine).difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(!std::fs::read_to_string(machine.inside("etc/group")).unwrap().contains("netskoop"));
    machine.apt(&["install", "netskoop"]);
    assert_eq!((is_active(&machine).as_str(), version().as_str()), ("active", NEXT));
}

#[test]
fn a_client_waits_while_the_daemon_restarts() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[]) else { return };
    machine.apt(&["install", "netskoop=0.1.0"]);
    machine.run("systemctl", &["stop", "netskoopd.service"]);
    assert_eq!(is_active(&machine), "inactive");
    let mut stream = UnixStream::connect(machine.inside("run/netskoop/netskoopd.sock")).unwrap();
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.set_read_timeout(Some(crate::support::LIMIT)).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(is_active(&machine), "active", "the connection has started it");
}

#[test]
fn nodes_that_are_not_as_they_should_be() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[
        (
            "etc/systemd/system/port.service",
            "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/sbin/netskoopd --config /etc/other.toml\n",
        ),
        ("etc/other.toml", "paths.run = \"/run/other\"\n"),
    ]) else {
        return;
    };
    machine.apt(&["install", "netskoop=0.1.0"]);
    // The port is taken: the message names who has it.
    machine.run("systemctl", &["stop", "netskoopd.socket", "netskoopd.service"]);
    machine.run("systemctl", &["start", "port.service"]);
    machine.attempt("systemctl", &["start", "netskoopd.service"]);
    let journal = machine.run("journalctl", &["-b", "-u", "netskoopd", "-o", "cat"]);
    assert!(journal.contains("held by netskoopd["), "{journal}");
    let said = machine.apt(&["install", &format!("netskoop={NEXT}")]);
    assert!(
        said.contains("netskoop: netskoopd does not start, and systemctl status netskoopd says why."),
        "{said}"
    );
    machine.run("systemctl", &["stop", "port.service"]);

    // Nobody made the group: the socket unit fails, and root is served all the same.
    machine.run("groupdel", &["netskoop"]);
    machine.attempt("systemctl", &["reset-failed"]);
    machine.run("systemctl", &["restart", "netskoopd.service"]);
    assert!(machine.run("netskoopctl", &["status"]).contains("netskoopd"), "root is served");
    machine.run("systemd-sysusers", &[]);
    machine.run("systemctl", &["stop", "netskoopd.service"]);
    machine.attempt("systemctl", &["reset-failed"]);
    machine.run("systemctl", &["start", "netskoopd.socket", "netskoopd.service"]);

    // Nothing can be written below /etc.
    machine
        .run("mount", &["-t", "tmpfs", "-o", "size=4k,nr_inodes=1,mode=755", "none", "/etc/netskoop/conf.d"]);
    machine.run("systemctl", &["restart", "netskoopd.service"]);
    let (code, said) = machine.attempt("netskoopctl", &["probes", "enable", "cpu"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("50-netskoopctl.toml: No space left on device"), "{said}");
    machine.run("mount", &["-o", "remount,ro", "/etc/netskoop/conf.d"]);
    machine.run("systemctl", &["restart", "netskoopd.service"]);
    let (code, said) = machine.attempt("netskoopctl", &["probes", "enable", "cpu"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("use --runtime"), "{said}");
    let (code, said) = machine.attempt("netskoopctl", &["probes", "enable", "cpu", "--runtime"]);
    assert_eq!(code, Some(0), "{said}");
}

/// Adds settings to the unit as `systemctl edit` does, and restarts it.
fn edit_unit(machine: &Machine, settings: &str) {
    let dir = machine.inside("etc/systemd/system/netskoopd.service.d");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("override.conf"), format!("[Service]\n{settings}\n")).unwrap();
    machine.run("systemctl", &["daemon-reload"]);
    machine.run("systemctl", &["restart", "netskoopd.service"]);
}

#[test]
fn a_kernel_that_hides_its_types_and_a_daemon_that_hangs() {
    if !packages::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::machine(&[]) else { return };
    machine.apt(&["install", "netskoop=0.1.0"]);
    edit_unit(&machine, "InaccessiblePaths=/sys/kernel/btf");
    let found = probes(&machine);
    let reset = found.iter().find(|(name, ..)| name == "tcpreset").unwrap();
    assert_eq!(reset.1, StateName::NotAvailable);
    assert!(reset.2.as_ref().is_some_and(|reason| reason.contains("type information")), "{reset:?}");
    assert!(found.iter().any(|(name, state, _)| name == "tcp" && *state == StateName::On));
    let status = machine.run("netskoopctl", &["status"]);
    assert!(status.contains("type information"), "{status}");

    edit_unit(&machine, "WatchdogSec=2s");
    let pid = main_pid(&machine);
    machine.run("kill", &["-STOP", &pid]);
    until("another daemon", || {
        let now = main_pid(&machine);
        (now != pid && now != "0" && is_active(&machine) == "active").then_some(())
    });
    let journal = machine.run("journalctl", &["-b", "-u", "netskoopd", "-o", "cat"]);
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}

#[test]
fn the_package_is_as_packages_should_be() {
    let Some(deb) = packages::built() else { return };
    let deb = deb.to_str().unwrap();
    let contents = run("dpkg-deb", &["-c", deb]);
    for file in [
        "usr/sbin/netskoopd",
        "usr/bin/netskoopctl",
        "lib/systemd/system/netskoopd.service",
        "lib/systemd/system/netskoopd.socket",
        "usr/lib/sysusers.d/netskoop.conf",
        "usr/lib/tmpfiles.d/netskoop.conf",
        "etc/netskoop/netskoopd.toml",
        "etc/netskoop/conf.d/",
        "usr/share/man/man8/netskoopd.8.gz",
        "usr/share/man/man1/netskoopctl.1.gz",
        "usr/share/man/man5/netskoopd.toml.5.gz",
        "usr/share/bash-completion/completions/netskoopctl",
        "usr/share/zsh/vendor-completions/_netskoopctl",
        "usr/share/fish/vendor_completions.d/netskoopctl.fish",
        "usr/share/doc/netskoop/examples/alerts.yml",
        "usr/share/doc/netskoop/examples/scrape.yml",
    ] {
        assert!(
            contents.lines().any(|line| line.ends_with(&format!(" ./{file}"))),
            "{file} is missing:\n{contents}"
        );
    }
    let needs = run("dpkg-deb", &["-f", deb, "Depends"]);
    assert!(needs.contains("libc6 (>= 2."), "{needs}");
    let libc: u32 =
        needs.split("libc6 (>= 2.").nth(1).unwrap().split([')', '.', '-']).next().unwrap().parse().unwrap();
    assert!(libc <= 31, "Debian 11 and Ubuntu 20.04 have glibc 2.31: {needs}");
    if !installed("lintian") {
        skip("lintian is not installed");
        return;
    }
    run("lintian", &["--fail-on", "error,warning,info", "--suppress-tags", "bogus-mail-host", deb]);
}

#[test]
fn examples_are_right_and_know_the_metrics() {
    if !installed("promtool") {
        skip("promtool is not installed");
        return;
    }
    let dir = tests_dir().join("../packaging/common/examples");
    let at = |file: &str| dir.join(file).to_str().unwrap().to_owned();
    run("promtool", &["check", "rules", &at("alerts.yml")]);
    run("promtool", &["test", "rules", &at("alerts_test.yml")]);
    run("promtool", &["check", "config", "--syntax-only", &at("scrape.yml")]);
    let known = std::fs::read_to_string(tests_dir().join("../docs/metrics.md")).unwrap();
    let text = std::fs::read_to_string(Path::new(&at("alerts.yml"))).unwrap();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for metric in words.filter(|word| word.starts_with("netskoop_")) {
        assert!(known.contains(&format!("`{metric}`")), "there is no {metric}");
    }
}
