//! The command line of `netskoopd`; the manual page is rendered from it.

use clap::Parser;
use std::path::PathBuf;

/// Watches every network namespace of this node: counters for Prometheus, anomalies as events.
#[derive(Parser)]
#[command(
    name = "netskoopd",
    version,
    after_help = "\
Without a configuration file everything has its default; see netskoopd.toml(5) and netskoopctl(1).
Exit codes: 0 stopped as told, 1 failed, 2 wrong usage, 78 wrong configuration."
)]
pub struct Args {
    /// Configuration file; drop-ins are read from conf.d/ beside it [default: /etc/netskoop/netskoopd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
    /// Remove what a daemon that was killed has left on interfaces (filters of the probe flow, before Linux 6.6), and exit
    #[arg(long)]
    pub cleanup: bool,
    /// What to log: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}
