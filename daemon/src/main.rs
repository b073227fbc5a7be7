//! The daemon's binary: command line, log, sockets and signals; everything else is in the library.

use clap::Parser;
use netskoopd::args::Args;
use netskoopd::config::{self, Loaded};
use netskoopd::server::handed;
use netskoopd::server::listen::{self, ControlSocket, ListenError};
use netskoopd::server::refuse;
use netskoopd::{Listeners, Notice, Signals};
use sd_notify::NotifyState;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

/// sysexits(3): the configuration is wrong. The unit does not restart on it.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = start_log(&args.log_level) {
        return fail(1, &format!("--log-level: {error}"));
    }
    if args.cleanup {
        return clean_up();
    }
    let handed = match handed::control() {
        Ok(handed) => handed,
        Err(error) => return fail(1, &ListenError::Handed(error).to_string()),
    };
    let loaded = match config::load(args.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(errors) => return refuse(handed, EX_CONFIG, &errors.to_string()),
    };
    if args.check_config {
        return ExitCode::SUCCESS;
    }
    match open(&loaded, handed.as_ref()) {
        Ok(listeners) => {
            // What serves has one of its own.
            drop(handed);
            serve(args, loaded, listeners)
        }
        Err(error) => refuse(handed, 1, &error.to_string()),
    }
}

/// What a daemon leaves behind that is killed.
fn clean_up() -> ExitCode {
    match netskoopd::clean_up() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(interfaces) => {
            tracing::info!(interfaces, "filters of a daemon that was killed were removed");
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &format!("cannot remove what a daemon left on interfaces: {error}")),
    }
}

/// Ends like [`fail`], and tells those who wait at the control socket, too. Left alone they would make systemd start
/// the daemon again and again, until it gives up the socket.
fn refuse(handed: Option<UnixListener>, code: u8, message: &str) -> ExitCode {
    if let Some(listener) = handed {
        refuse::all_who_wait(&listener, message);
    }
    fail(code, message)
}

/// Says why it ends, one line each, on standard error: the log may be filtered.
fn fail(code: u8, message: &str) -> ExitCode {
    let mut err = std::io::stderr().lock();
    for line in message.lines() {
        // Without standard error there is nobody to tell.
        let _ = writeln!(err, "netskoopd: {line}");
    }
    ExitCode::from(code)
}

fn start_log(level: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter: EnvFilter = level.parse()?;
    let terminal = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let log = log.with_ansi(terminal);
    // The journal has its own time stamps.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}

fn open(loaded: &Loaded, handed: Option<&UnixListener>) -> Result<Listeners, ListenError> {
    let config = &loaded.config;
    // The control socket first: two daemons at once are noticed by it, with the clearer message.
    let control = match handed {
        Some(listener) => ControlSocket::handed(listener.try_clone().map_err(ListenError::Handed)?),
        None => listen::control(&config.run.join("netskoop/netskoopd.sock"))?,
    };
    let http =
        config.listen.iter().map(|address| listen::tcp(*address, &config.proc)).collect::<Result<_, _>>()?;
    Ok(Listeners { http, control })
}

fn serve(args: Args, loaded: Loaded, listeners: Listeners) -> ExitCode {
    let runtime =
        match tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(1, &format!("cannot start: {error}")),
        };
    say_hello(&loaded, &listeners);
    let result = runtime.block_on(async {
        let signals = signals().map_err(|error| format!("cannot listen for signals: {error}"))?;
        netskoopd::run(loaded, args.config, listeners, signals).await.map_err(|error| error.to_string())
    });
    // Whatever still blocks is left behind.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

fn say_hello(loaded: &Loaded, listeners: &Listeners) {
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!("netskoopd {version}, {} configuration files", loaded.files.len());
    for listener in &listeners.http {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("metrics on http://localhost:{}/metrics ({address})", address.port());
        }
    }
    let socket = listeners.control.path();
    let option = match socket == std::path::Path::new(netskoop_socket()) {
        true => String::new(),
        false => format!(" --socket {}", socket.display()),
    };
    tracing::info!("try: netskoopctl{option} status");
}

/// Where `netskoopctl` looks unless told otherwise.
fn netskoop_socket() -> &'static str {
    netskoop_api::DEFAULT_SOCKET
}

fn signals() -> std::io::Result<Signals> {
    let (stop_sender, stop) = watch::channel(false);
    let (reload_sender, reload) = mpsc::channel(1);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                // A reload that is waiting already will do for this one, too.
                _ = hangup.recv() => drop(reload_sender.try_send(())),
            }
        }
        stop_sender.send_replace(true);
        // Kept until the end, since its receiver would take the end of the sender for an answer.
        std::future::pending::<()>().await;
    });
    Ok(Signals { stop, reload, notify })
}

/// Tells systemd; without it nobody listens, and that is no error.
fn notify(notice: &Notice<'_>) {
    let result = match notice {
        Notice::Ready(line) => {
            tracing::info!("ready: {line}");
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(line)])
        }
        Notice::Reloading => sd_notify::notify(&[NotifyState::Reloading, monotonic()]),
        Notice::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
        Notice::Running(line) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(line)]),
        Notice::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        Notice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

fn monotonic() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0))
}
