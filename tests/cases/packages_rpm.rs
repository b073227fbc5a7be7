use crate::support::nspawn::{self, Machine};
use crate::support::{is_root, packages, test_name};
use std::io::Write;

const CONFIG: &str = "etc/netskoop/netskoopd.toml";

#[track_caller]
fn dnf(machine: &Machine, args: &[&str]) -> String {
    let (code, said) =
        machine.attempt("dnf", &[&["-y", "--releasever=1", "--disableplugin=*"], args].concat());
    assert_eq!(code, Some(0), "dnf {args:?}: {said}");
    said
}

fn show(machine: &Machine, name: &str) -> String {
    machine.run("systemctl", &["show", "-P", name, "netskoopd.service"]).trim().to_owned()
}

fn append(machine: &Machine, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(machine.inside(CONFIG)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Here the scriptlets run: the system is a Debian, but with rpm, dnf and systemd. `make test` leaves it out, because that
/// system takes minutes to make; `make test-packages` sets the variable.
#[test]
fn dnf_installs_upgrades_and_removes_it() {
    if std::env::var_os("NETSKOOP_TEST_RPM").is_none() {
        return;
    }
    if (is_root() && packages::dnf_system().is_none()) || !nspawn::inside_own_node(test_name!()) {
        return;
    }
    let Some((machine, _dir)) = packages::dnf_machine() else { return };
    dnf(&machine, &["install", "netskoop-0.1.0"]);
    assert_eq!(show(&machine, "ActiveState"), "inactive", "whether it runs is the administrator's to say");
    assert!(machine.run("getent", &["group", "netskoop"]).starts_with("netskoop:"));
    machine.run("systemctl", &["enable", "--now", "netskoopd"]);
    let metrics = machine.on_its_network("curl", &["-fsS", "-m", "20", "http://localhost:9102/metrics"]);
    assert!(metrics.contains("netskoop_tcp_active_opens_total{kind=\"host\""), "{metrics:.500}");
    assert!(machine.run("netskoopctl", &["probes", "enable", "cpu"]).starts_with("cpu is on"));

    append(&machine, "[metrics]\nfrom_the_past = 1\n");
    let pid = show(&machine, "MainPID");
    let said = dnf(&machine, &["upgrade", "netskoop"]);
    assert!(said.contains("metrics.from_the_past: unknown key"), "{said}");
    assert!(said.contains("the old daemon goes on running"), "{said}");
    assert_eq!((show(&machine, "MainPID"), show(&machine, "ActiveState").as_str()), (pid.clone(), "active"));
    assert!(machine.inside("etc/netskoop/netskoopd.toml.rpmnew").exists());

    let text = std::fs::read_to_string(machine.inside(CONFIG)).unwrap();
    std::fs::write(machine.inside(CONFIG), text.replace("[metrics]\nfrom_the_past = 1\n", "# mine\n"))
        .unwrap();
    dnf(&machine, &["downgrade", "netskoop-0.1.0"]);
    assert_ne!(show(&machine, "MainPID"), pid);
    assert_eq!(show(&machine, "ActiveState"), "active");
    machine.run("systemctl", &["disable", "--now", "netskoopd.service", "netskoopd.socket"]);
    dnf(&machine, &["upgrade", "netskoop"]);
    assert_eq!(
        (show(&machine, "ActiveState").as_str(), show(&machine, "UnitFileState").as_str()),
        ("inactive", "disabled")
    );
    machine.run("systemctl", &["enable", "--now", "netskoopd"]);

    dnf(&machine, &["remove", "netskoop"]);
    assert_eq!(show(&machine, "ActiveState"), "inactive");
    assert!(!machine.inside("usr/sbin/netskoopd").exists());
    assert!(!machine.inside("run/netskoop").exists());
    let kept = std::fs::read_to_string(machine.inside("etc/netskoop/netskoopd.toml.rpmsave")).unwrap();
    assert!(kept.ends_with("# mine\n"), "{kept}");
}
