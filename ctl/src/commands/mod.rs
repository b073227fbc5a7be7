//! One file per command. Each has a pure `render` from the daemon's answer to lines.

mod complete;
mod config;
mod entities;
mod event_line;
mod events;
mod metrics;
mod probes;
mod reload;
mod selftest;
mod status;
mod version;

use crate::args::{Cli, Command, Format};
use crate::client::{Client, Document};
use crate::error::Error;
use crate::output::Screen;
use crate::time::Clock;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a command works with.
pub(crate) struct Context<'c, 's> {
    /// The daemon.
    pub(crate) client: Client,
    /// For what was asked.
    pub(crate) stdout: &'c mut Screen<'s>,
    /// For notices.
    pub(crate) stderr: &'c mut Screen<'s>,
    /// How to print.
    pub(crate) format: Format,
    /// How to show times.
    pub(crate) clock: Clock,
}

impl Context<'_, '_> {
    /// Fetches a document and shows it; `names` are for `-o name`, if that makes sense.
    async fn show<T: DeserializeOwned>(
        &mut self,
        path: &str,
        names: Option<fn(&T) -> Vec<String>>,
        render: impl FnOnce(&T, &mut Screen<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.format == Format::Name && names.is_none() {
            return Err(no_names());
        }
        let document = self.client.get(path).await?;
        self.print(&document, names, render)
    }

    /// Shows a document.
    fn print<T: DeserializeOwned>(
        &mut self,
        document: &Document,
        names: Option<fn(&T) -> Vec<String>>,
        render: impl FnOnce(&T, &mut Screen<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match (self.format, names) {
            (Format::Json, _) => self.stdout.document(&document.call, &document.bytes),
            (Format::Table, _) => render(&document.parse()?, self.stdout),
            (Format::Name, Some(names)) => {
                names(&document.parse()?).iter().try_for_each(|name| self.stdout.text(name))
            }
            (Format::Name, None) => Err(no_names()),
        }
    }

    /// Refuses `-o name` before anything is done.
    fn refuse_names(&self) -> Result<(), Error> {
        if self.format == Format::Name { Err(no_names()) } else { Ok(()) }
    }
}

/// Runs the command of `cli`.
pub(crate) async fn run<'s>(cli: Cli, stdout: &mut Screen<'s>, stderr: &mut Screen<'s>) -> Result<(), Error> {
    let mut context = Context {
        client: Client::new(cli.global.socket, cli.global.timeout),
        stdout,
        stderr,
        format: cli.global.output,
        clock: Clock::local(),
    };
    match cli.command {
        Command::Status => status::run(&mut context).await,
        Command::Probes { action } => probes::run(&mut context, action).await,
        Command::Entities { name } => entities::run(&mut context, &name).await,
        Command::Events(args) => events::run(&mut context, &args).await,
        Command::Metrics(args) => metrics::run(&mut context, &args).await,
        Command::Selftest => selftest::run(&mut context).await,
        Command::Reload => reload::run(&mut context).await,
        Command::Config { action } => config::run(&mut context, action).await,
        Command::Complete { words } => complete::run(&mut context, &words).await,
        Command::Version => version::run(&mut context).await,
    }
}

fn no_names() -> Error {
    Error::Usage("'-o name' makes no sense here: this is no list of names; use table or json".to_owned())
}

/// The user's wish to stop: Ctrl-C, or SIGTERM as `timeout` sends it.
struct Interrupt {
    int: Signal,
    term: Signal,
}

impl Interrupt {
    /// From now on the signals no longer end the process.
    fn new() -> Result<Self, Error> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// Waits for one of them.
    async fn wait(mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

#[cfg(test)]
mod testing {
    //! Runs whole commands against a fake daemon.

    use super::*;
    use crate::fake::{self, Daemon};
    use crate::output::Look;
    use clap::Parser;

    /// What a command did.
    pub(crate) struct Outcome {
        /// Standard output.
        pub(crate) out: String,
        /// Standard error, with the report of the error.
        pub(crate) err: String,
        /// The exit code.
        pub(crate) code: u8,
    }

    /// Runs `netskoopctl LINE` (arguments are separated by single spaces).
    pub(crate) fn ctl(daemon: &Daemon, line: &str) -> Outcome {
        let socket = daemon.socket().display().to_string();
        let words = ["netskoopctl", "--socket", &socket].into_iter().chain(line.split(' '));
        let cli = Cli::try_parse_from(words).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut stdout = Screen::to(&mut out, Look { headers: !cli.global.no_headers, ..Look::default() });
        let mut stderr = Screen::to(&mut err, Look::default());
        let code = match fake::run(run(cli, &mut stdout, &mut stderr)) {
            Ok(()) => 0,
            Err(error) => {
                crate::output::report(&error, &mut stderr);
                error.exit() as u8
            }
        };
        drop((stdout, stderr));
        Outcome { out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap(), code }
    }

    /// What `render` writes on a screen of the given look.
    pub(crate) fn rendered(look: Look, render: impl FnOnce(&mut Screen<'_>) -> Result<(), Error>) -> String {
        let mut out = Vec::new();
        render(&mut Screen::to(&mut out, look)).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// With titles, no colours, no limit of width.
    pub(crate) const PLAIN: Look = Look { colour: false, headers: true, size: None };
}
