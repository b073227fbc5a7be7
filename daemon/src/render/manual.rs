//! The manual pages netskoopd(8) and netskoopd.toml(5).

use crate::config::{KEYS, option_default, option_kind, option_range};
use crate::declare::Probe;
use clap::Command;
use std::fmt::Write;

const DESCRIPTION: &str = "\
reads the counters of every network namespace of this node and serves them to Prometheus on port 9102, each under the name of \
its pod, container, systemd unit or machine. Resets and dropped packets become events, from eBPF. netskoopctl(1) shows all of \
it, and changes what runs through the control socket.

Without a configuration file everything has its default. It runs as root; see the unit for the capabilities that it keeps.";

/// What stands at the end of netskoopd(8): (title, (term, text)).
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "SIGNALS",
        &[
            ("SIGHUP", "Reads the configuration again. A bad one is refused, and the running one stays."),
            ("SIGTERM, SIGINT", "Ends it. Nothing of it stays in the kernel."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "It was stopped, or the configuration that was to be checked is valid."),
            ("1", "It failed; the last line of the log says why."),
            ("2", "The command line makes no sense."),
            ("78", "The configuration is wrong; systemd does not try again."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "LISTEN_FDS, LISTEN_FDNAMES",
                "A socket called control is taken as the control socket (netskoopd.socket).",
            ),
            ("NOTIFY_SOCKET, WATCHDOG_USEC", "The service manager is told of readiness, reloads and life."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/netskoop/netskoopd.toml", "The configuration; see netskoopd.toml(5)."),
            (
                "/etc/netskoop/conf.d/*.toml",
                "Further settings. Of two files that set a key, the later name wins.",
            ),
            ("/run/netskoop/netskoopd.sock", "The control socket, for root and the group netskoop."),
            ("/run/netskoop/state.json", "What was changed with --for and --runtime, until the next boot."),
        ],
    ),
];

const CONFIG: &str = "\
The file is TOML. Every key has a default, and an empty file is valid. After it, conf.d/*.toml beside it are read in the order \
of their names; of two files that set a key the later one wins, and netskoopctl config show tells which one did.

A mistake is reported with file, line and column, all of them at once. netskoopd \\-\\-check\\-config only checks; netskoopctl \
config diff shows what a reload would change.";

/// netskoopd(8).
pub fn netskoopd(command: &Command) -> String {
    let mut out = head("netskoopd", "8", "watches every network namespace of this node");
    let mut synopsis = String::from(".B netskoopd\n");
    let mut options = String::from(".SH OPTIONS\n");
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let value = value.filter(|_| argument.get_action().takes_values());
        let value = value.map(|name| format!(" \\fI{}\\fR", escaped(&name))).unwrap_or_default();
        let term = format!("\\fB{}\\fR{value}", escaped(&format!("--{long}")));
        // Writing to a string does not fail, here and below.
        let _ = writeln!(synopsis, "[{term}]");
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = write!(options, ".TP\n{term}\n{}.\n", escaped(&help));
    }
    let _ = write!(out, ".SH SYNOPSIS\n{synopsis}.SH DESCRIPTION\n.B netskoopd\n{}", paragraphs(DESCRIPTION));
    out += &options;
    for (title, rows) in SECTIONS {
        let _ = writeln!(out, ".SH {title}");
        for (term, text) in rows {
            let _ = write!(out, ".TP\n.B {}\n{}\n", escaped(term), escaped(text));
        }
    }
    out + ".SH SEE ALSO\n.BR netskoopctl (1),\n.BR netskoopd.toml (5)\n"
}

/// netskoopd.toml(5).
pub fn config(probes: &[&'static Probe]) -> String {
    let mut out = head("netskoopd.toml", "5", "configuration of netskoopd");
    out += ".SH SYNOPSIS\n.nf\n/etc/netskoop/netskoopd.toml\n/etc/netskoop/conf.d/*.toml\n.fi\n";
    let _ = write!(out, ".SH DESCRIPTION\n{}.SH KEYS\n", CONFIG.replace("\n\n", "\n.PP\n") + "\n");
    for key in KEYS {
        let _ = write!(out, ".TP\n.B {}\n{}\n", escaped(key.path), escaped(key.help));
        let _ = writeln!(out, "Takes {}; the default is {}.", escaped(&key.expected()), escaped(key.default));
    }
    out += ".SH PROBES\nEach probe has a table, \\fB[probes.NAME]\\fR, with \\fBenabled = true\\fR or \\fBfalse\\fR and \
            its options.\nnetskoopctl probes show NAME tells everything about one.\n";
    probes.iter().for_each(|probe| section(&mut out, probe));
    out +=
        ".SH EXAMPLE\n.nf\n[http]\nlisten = [\"127.0.0.1:9102\"]\n\n[probes.packetloss]\nstack = true\n.fi\n";
    out + ".SH SEE ALSO\n.BR netskoopd (8),\n.BR netskoopctl (1)\n"
}

fn section(out: &mut String, probe: &Probe) {
    let default = if probe.default_on { "on" } else { "off" };
    let _ = write!(out, ".SS {}\n{}\n", probe.name, escaped(probe.summary));
    let _ = writeln!(out, "It is {default} by default; its overhead is {}.", probe.cost.as_str());
    for option in probe.options {
        let range = option_range(option);
        let range = if range.is_empty() { range } else { format!(", {range}") };
        let default = option_default(option).to_string();
        let default = if default.is_empty() { "empty".to_owned() } else { default };
        let _ = write!(out, ".TP\n.B {}\n{}\n", escaped(option.name), escaped(option.help));
        let _ = writeln!(
            out,
            "Takes {}{}; the default is {}.",
            option_kind(option),
            escaped(&range),
            escaped(&default)
        );
    }
}

fn head(name: &str, section: &str, what: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let name = escaped(name);
    format!(
        ".\\\" Rendered from the declarations; `make docs` writes it and a test compares it.\n\
         .TH {} {section} \"\" \"netskoop {version}\" \"netskoop\"\n.SH NAME\n{name} \\- {what}\n",
        name.to_uppercase()
    )
}

fn paragraphs(text: &str) -> String {
    format!("{}\n", escaped(text).replace("\n\n", "\n.PP\n"))
}

/// Text in which troff finds nothing to do.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::PROBES;
    use clap::CommandFactory;
    use std::path::Path;

    fn is_current(file: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man").join(file);
        if std::fs::read_to_string(&path).is_ok_and(|found| found == wanted) {
            return;
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
        panic!("docs/man/{file} was out of date and has been written; commit it");
    }

    #[test]
    fn the_page_of_the_daemon_is_current() {
        is_current("netskoopd.8", &netskoopd(&crate::args::Args::command()));
    }

    #[test]
    fn the_page_of_the_configuration_is_current() {
        is_current("netskoopd.toml.5", &config(PROBES));
    }

    #[test]
    fn nothing_is_left_for_troff_to_do() {
        assert_eq!(escaped("a-b\\c\n.x\n'y"), "a\\-b\\ec\n\\&.x\n\\&'y");
    }
}
