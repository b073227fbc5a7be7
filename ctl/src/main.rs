//! `netskoopctl` asks netskoopd over its Unix socket and shows the answers.
//!
//! It holds no list of probes, metrics or event types: the daemon describes itself, so that an old client can show a
//! new daemon. Nothing that the daemon sends is trusted to be small, complete or harmless to a terminal.

mod args;
mod client;
mod commands;
mod error;
#[cfg(test)]
mod fake;
mod json;
mod lines;
#[cfg(test)]
mod manual;
mod output;
mod table;
mod text;
mod time;
mod yaml;

use clap::Parser;
use error::{Error, Exit};
use output::Screen;
use std::process::ExitCode;

/// Parses the command line, runs the command, reports its error.
fn main() -> ExitCode {
    // Prints help (exit 0) and mistakes (exit 2) by itself.
    let cli = args::Cli::parse();
    let mut stdout = Screen::stdout(cli.global.color, !cli.global.no_headers);
    let mut stderr = Screen::stderr(cli.global.color);
    // A current-thread runtime: there is one request at a time.
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(commands::run(cli, &mut stdout, &mut stderr)));
    // What was shown before an error is shown all the same; a full disk must not pass for success.
    let flushed = stdout.flush();
    let exit = match result.and(flushed) {
        Ok(()) => Exit::Success,
        Err(error) => {
            output::report(&error, &mut stderr);
            error.exit()
        }
    };
    ExitCode::from(exit as u8)
}
