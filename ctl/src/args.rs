//! The command line.

use crate::error::EPILOGUE;
use crate::time::{positive_duration, since};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Asks netskoopd, and tells it what to watch.
#[derive(Debug, Parser)]
#[command(name = "netskoopctl", version, after_help = EPILOGUE, infer_long_args = true)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Socket on which netskoopd listens.
    #[arg(long, global = true, value_name = "PATH", env = "NETSKOOP_SOCKET",
          default_value = netskoop_api::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How to print: a table for people, JSON for programs (streams: one document per line), or names only.
    #[arg(short, long, global = true, value_name = "FORMAT", value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Leave out the titles of tables.
    #[arg(long, global = true)]
    pub(crate) no_headers: bool,
    /// When to use colours; 'auto' minds NO_COLOR.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// How long to wait for an answer [default: 5s, for changes 30s].
    #[arg(long, global = true, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// The daemon's own documents.
    Json,
    /// Names only, one per line.
    Name,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal.
    Auto,
    /// In files and pipes too.
    Always,
    /// Not at all.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How the daemon is: entities, sources, probes, events, cost.
    Status,
    /// Probes: what there is, what is on, switching on and off.
    Probes {
        /// What to do; without it, list them.
        #[command(subcommand)]
        action: Option<ProbesAction>,
    },
    /// Namespaces and whom they belong to; with a name, everything known of one.
    Entities {
        /// Name as `entities` shows it, pod's name, inode number of the network namespace, or container's id or its
        /// beginning. `show` may stand before it.
        #[arg(value_name = "[show] NAME", num_args = 0..=2)]
        name: Vec<String>,
    },
    /// Anomalies, from the daemon's memory and live.
    Events(EventsArgs),
    /// Current values of one entity.
    Metrics(MetricsArgs),
    /// Prove on this kernel that probes, names and metrics work: in two network namespaces of its own the daemon refuses
    /// connections, loses packets and delays them, over IPv4 and IPv6, and looks whether it is told. Takes seconds and leaves
    /// nothing behind; each probe that is on is tried, if it can be.
    Selftest,
    /// Make the daemon read its configuration again.
    Reload,
    /// The configuration: what is in force, what a reload would change, an older one in our words.
    Config {
        /// What to do; without it, show it.
        #[command(subcommand)]
        action: Option<ConfigAction>,
    },
    /// Versions of this program and of the daemon.
    Version,
    /// What may stand where the cursor is; for the completion scripts.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words of the command line up to the cursor.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// The configuration in force: each key, its value, and the file and line that it comes from.
    Show,
    /// What a reload would change: the files on disk compared with what runs.
    Diff,
    /// Translate the YAML configuration of an older exporter (KubeSkoop, inspector), also from a ConfigMap. The result is
    /// written to standard output, and what has no counterpart is named on standard error.
    Import {
        /// The file; - is standard input.
        file: PathBuf,
    },
}

/// What to do with probes.
#[derive(Debug, Subcommand)]
pub(crate) enum ProbesAction {
    /// All probes and how they stand.
    List,
    /// What a probe is for, its options, metrics and events, and how it stands.
    Show {
        /// Its name, or an older name of it.
        #[arg(id = "probe", value_name = "NAME")]
        name: String,
    },
    /// Switch probes on, now and from now on.
    Enable {
        /// Their names, or older names of them.
        #[arg(required = true, value_parser = probe_name)]
        names: Vec<String>,
        /// How long it lasts.
        #[command(flatten)]
        lasting: Lasting,
        /// Set an option of the probe (repeatable); `probes show NAME` lists them.
        #[arg(short, long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
        set: Vec<(String, String)>,
    },
    /// Switch probes off, now and from now on.
    Disable {
        /// Their names, or older names of them.
        #[arg(required = true, value_parser = probe_name)]
        names: Vec<String>,
        /// How long it lasts.
        #[command(flatten)]
        lasting: Lasting,
    },
}

/// How long a change lasts.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Lasting {
    /// Until changed again, without touching the configuration.
    #[arg(long)]
    pub(crate) runtime: bool,
    /// Only for this long, e.g. 10m; then back to what was.
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "runtime")]
    pub(crate) lease: Option<String>,
}

/// Which events, and how.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EventsArgs {
    /// Go on with what happens from now; without --since or --limit nothing older is shown.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events since then: 5m, or a time such as 2026-11-20T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<String>,
    /// Only events of this type, or an older name of it (repeatable).
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    /// Only events of these entities: NAME, KIND/NAME, pod or netns inode; * stands for any text.
    #[arg(long, value_name = "NAME")]
    pub(crate) entity: Option<String>,
    /// Of the events in memory, at most the last N.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Show kernel stacks beneath the events that have one.
    #[arg(long)]
    pub(crate) stack: bool,
}

/// Whose values, and which.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct MetricsArgs {
    /// Name as `entities` shows it, or inode number of the network namespace.
    pub(crate) entity: String,
    /// Show rates, every second anew, changing values first.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Show values that are zero as well.
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// Takes a name as it is; only the daemon knows them. An option without its `--set` would be taken for one.
fn probe_name(text: &str) -> Result<String, String> {
    if text.contains('=') {
        return Err(format!("no probe is called that; to set an option, enable the probe with --set {text}"));
    }
    Ok(text.to_owned())
}

/// Splits `key=value`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write it as key=value, e.g. stack=true".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, error::ErrorKind};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_of_the_sketch_parse() {
        for line in [
            "netskoopctl status",
            "netskoopctl probes",
            "netskoopctl probes list -o name",
            "netskoopctl selftest -o json",
            "netskoopctl probes enable tcpreset --for 10m",
            "netskoopctl probes enable a b -s stack=true --set x=1,2",
            "netskoopctl probes disable tcpreset --runtime",
            "netskoopctl entities kube-system/coredns-abc",
            "netskoopctl entities show kube-system/coredns-abc",
            "netskoopctl events -f --since 5m --type A --type B --entity blue -n 3 -o json",
            "netskoopctl metrics blue -w -a --color never --timeout 1s --socket /x",
            "netskoopctl --no-headers version",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn bad_usage_is_code_two_and_suggests() {
        let error = parse("netskoopctl statsu").unwrap_err();
        assert_eq!((error.exit_code(), error.kind()), (2, ErrorKind::InvalidSubcommand));
        assert!(error.to_string().contains("'status'"), "{error}");
        for line in [
            "netskoopctl",
            "netskoopctl probes enable",
            "netskoopctl probes enable a --for 1m --runtime",
            "netskoopctl probes enable a --set novalue",
            "netskoopctl events --since noon",
            "netskoopctl status --timeout 0s",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_forgotten_set_is_pointed_out() {
        for line in [
            "netskoopctl probes enable packetloss stack=true",
            "netskoopctl probes disable packetloss stack=true",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains("--set stack=true"), "{line}: {error}");
        }
    }

    #[test]
    fn help_documents_the_exit_codes() {
        assert!(Cli::command().render_long_help().to_string().contains("netskoopd is not running"));
    }
}
