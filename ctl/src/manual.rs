//! The manual page netskoopctl(1), rendered from the declaration of the command line; docs/man has it.

use crate::args::Cli;
use clap::{Arg, Command, CommandFactory};
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = ".\\\" Rendered from the declarations; `make docs` writes it and a test compares it.\n";

fn render() -> String {
    let mut command = Cli::command();
    command.build();
    let mut out = format!(
        "{HEAD}.TH NETSKOOPCTL 1 \"\" \"netskoop {}\" \"netskoop\"\n\
         .SH NAME\nnetskoopctl \\- asks netskoopd, and tells it what to watch\n\
         .SH SYNOPSIS\n.B netskoopctl\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n\
         .SH DESCRIPTION\n.B netskoopctl\nspeaks with \n.BR netskoopd (8)\nthrough its control socket. \
         Root and members of the group netskoop may read; changes are for root and for the group that the \
         configuration names in \\fBcontrol.group\\fR.\n.SH COMMANDS\n",
        env!("CARGO_PKG_VERSION")
    );
    commands(&mut out, &command, "netskoopctl");
    out += ".SH OPTIONS OF EVERY COMMAND\n";
    let own = command.get_arguments().filter(|arg| arg.is_global_set());
    own.for_each(|arg| argument(&mut out, arg));
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (codes, examples) = text.split_once("\n\nExamples:\n").unwrap_or((&text, ""));
    out += ".SH EXIT STATUS\n";
    for line in codes.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap_or((line, ""));
        let _ = write!(out, ".TP\n.B {code}\n{}\n", escaped(meaning.trim()));
    }
    let _ = write!(out, ".SH EXAMPLES\n.nf\n{}\n.fi\n", escaped(examples));
    out += ".SH ENVIRONMENT\n.TP\n.B NETSKOOP_SOCKET\nThe control socket, instead of \\-\\-socket.\n\
            .TP\n.B NO_COLOR\nNo colours, whatever the terminal.\n";
    out + ".SH SEE ALSO\n.BR netskoopd (8),\n.BR netskoopd.toml (5)\n"
}

fn commands(out: &mut String, of: &Command, path: &str) {
    for command in of.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let path = format!("{path} {}", command.get_name());
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        if command.get_subcommands().all(|below| below.get_name() == "help") {
            let _ = writeln!(out, ".SS {}", escaped(&usage(command, &path)));
            let _ = writeln!(out, "{}", sentence(&about));
            command
                .get_arguments()
                .filter(|arg| !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help")
                .for_each(|arg| argument(out, arg));
        } else {
            commands(out, command, &path);
        }
    }
}

fn usage(command: &Command, path: &str) -> String {
    let words = command.get_positionals().map(|argument| {
        let name = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let name = name.unwrap_or_else(|| argument.get_id().to_string().to_uppercase());
        let more = if argument.get_num_args().is_some_and(|n| n.max_values() > 2) { "..." } else { "" };
        if argument.is_required_set() { format!("{name}{more}") } else { format!("[{name}]{more}") }
    });
    std::iter::once(path.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn argument(out: &mut String, argument: &Arg) {
    let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let short = argument.get_short().map(|short| format!("\\fB\\-{short}\\fR, ")).unwrap_or_default();
    let term = match argument.get_long() {
        Some(long) => {
            let value = value.filter(|_| argument.get_action().takes_values());
            let value = value.map(|value| format!(" \\fI{}\\fR", escaped(&value))).unwrap_or_default();
            format!("{short}\\fB{}\\fR{value}", escaped(&format!("--{long}")))
        }
        None => format!(
            "\\fI{}\\fR",
            escaped(&value.unwrap_or_else(|| argument.get_id().to_string().to_uppercase()))
        ),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, ".TP\n{term}\n{}\n", sentence(&help));
    let values: Vec<_> = argument.get_possible_values();
    if argument.get_action().takes_values() && !values.is_empty() {
        let values: Vec<_> = values.iter().map(|value| escaped(value.get_name())).collect();
        let _ = writeln!(out, "One of {}.", values.join(", "));
    }
}

fn sentence(text: &str) -> String {
    let end = if text.ends_with(['.', ':']) { "" } else { "." };
    format!("{}{end}", escaped(text))
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

#[test]
fn the_page_is_current() {
    let (path, wanted) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man/netskoopctl.1"), render());
    if std::fs::read_to_string(&path).is_ok_and(|found| found == wanted) {
        return;
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, wanted).unwrap();
    panic!("docs/man/netskoopctl.1 was out of date and has been written; commit it");
}
