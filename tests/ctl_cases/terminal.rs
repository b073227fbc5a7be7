//! What is different on a terminal: colours, and lines that fit.

use super::support::{Daemon, shared};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Read;
use std::process::Stdio;

/// What a command shows on a terminal of `columns` columns, and its exit code.
fn on_terminal(daemon: &Daemon, line: &str, columns: u16, environment: &[(&str, &str)]) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = daemon.command(line);
    command.env("TERM", "xterm").envs(environment.iter().copied());
    command.stdout(Stdio::from(slave.try_clone().unwrap())).stderr(Stdio::from(slave));
    let mut child = command.spawn().unwrap();
    // It holds our ends of the terminal.
    drop(command);
    let mut shown = Vec::new();
    let mut master = File::from(master);
    let mut buffer = [0; 4096];
    // The end of a terminal is an error, not an end of file.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

/// Without colours.
fn plain(shown: &str) -> String {
    let mut parts = shown.split("\x1b[");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').unwrap().1)
}

#[test]
fn colours_only_on_a_terminal_and_where_they_are_wanted() {
    let shown = on_terminal(shared(), "probes list", 200, &[]);
    assert!(shown.contains("\x1b[32mon\x1b[0m"), "{shown:?}");
    for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = on_terminal(shared(), "probes list", 200, &[environment]);
        assert!(!shown.contains('\x1b'), "{environment:?}: {shown:?}");
    }
    // An empty one says nothing.
    assert!(on_terminal(shared(), "probes list", 200, &[("NO_COLOR", "")]).contains('\x1b'));
    assert!(!on_terminal(shared(), "probes list --color never", 200, &[]).contains('\x1b'));
    for line in ["status", "probes", "probes show tcp", "entities", "metrics host", "config"] {
        assert!(!shared().ctl(line).ok().contains('\x1b'), "{line} is piped");
    }
    assert!(shared().ctl("probes --color always").ok().contains('\x1b'));
    assert!(!shared().ctl("probes -o json --color always").ok().contains('\x1b'), "JSON has no colours");
}

#[test]
fn tables_fit_the_terminal() {
    for line in ["probes list", "probes show tcp", "probes show packetloss", "entities", "config"] {
        for columns in [200, 120] {
            let shown = plain(&on_terminal(shared(), line, columns, &[]));
            // Before the first empty line of `probes show` there are sentences, which a terminal wraps.
            let table =
                if line.contains("show") { shown.split_once("\n\n").unwrap().1 } else { shown.as_str() };
            let widest = table.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= columns.into(), "{line}: {widest} of {columns}\n{shown}");
        }
    }
    // What is cut says so; what is piped is whole.
    let narrow = plain(&on_terminal(shared(), "probes list", 80, &[]));
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    assert!(narrow.lines().any(|line| line.ends_with('…')), "{narrow}");
    assert!(!shared().ctl("probes list").ok().contains('…'));
    // JSON is never cut.
    let json = on_terminal(shared(), "probes list -o json", 40, &[]);
    assert!(serde_json::from_str::<Vec<netskoop_api::ProbeInfo>>(&json).is_ok());
}
