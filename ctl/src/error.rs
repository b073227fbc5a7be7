//! What can go wrong, what the user is told, and the exit code.

use crate::client::BODY_LIMIT;
use netskoop_api::ErrorInfo;
use std::path::PathBuf;
use std::time::Duration;

/// Exit codes, part of the command's interface; `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Success = 0,
    /// The daemon refused, or something broke.
    Failure = 1,
    /// The command line makes no sense; clap uses the same number.
    Usage = 2,
    /// The daemon does not run or does not answer.
    Unreachable = 3,
    /// No probe or entity of that name.
    NoSuchObject = 4,
    /// The user may not talk to the daemon.
    Permission = 5,
}

/// The end of `--help`.
pub(crate) const EPILOGUE: &str = "\
Exit codes:
  0  success
  1  failure: netskoopd refused the request, its answer cannot be used, or a check of the self-test failed
  2  usage: the command line makes no sense
  3  netskoopd is not running or does not answer
  4  no probe or entity of that name
  5  permission denied

Examples:
  netskoopctl probes enable tcpreset --for 10m
  netskoopctl events -f --type PACKET_DROP --entity kube-system/coredns-abc
  netskoopctl metrics blue -w";

/// Everything that ends a command early.
#[derive(Debug)]
pub(crate) enum Error {
    /// Nobody listens on the socket.
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// Short reason, e.g. `no such file`.
        why: String,
    },
    /// The kernel does not let this user connect.
    Permission {
        /// Path of the socket.
        socket: PathBuf,
    },
    /// Connected, and no (complete) answer in time.
    TimedOut {
        /// Path of the socket.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// The connection ended before the answer did.
    Closed {
        /// The request, as `GET /v1/status`.
        call: String,
    },
    /// The peer does not speak HTTP.
    NotHttp {
        /// Path of the socket.
        socket: PathBuf,
        /// What the HTTP library says.
        why: String,
    },
    /// The answer exceeds a limit.
    TooLarge {
        /// The request.
        call: String,
        /// What is too large, and the limit.
        what: &'static str,
    },
    /// The answer is not what the contract says.
    Undecodable {
        /// The request.
        call: String,
        /// What the JSON library says.
        why: String,
    },
    /// A status that is not success and comes without an explanation.
    Status {
        /// The request.
        call: String,
        /// The HTTP status.
        status: u16,
    },
    /// The daemon refused and says why.
    Api {
        /// The HTTP status.
        status: u16,
        /// The explanation.
        info: ErrorInfo,
    },
    /// A stream that should go on has ended.
    StreamEnded,
    /// The command line passes clap and still makes no sense.
    Usage(String),
    /// The output cannot be written.
    Output(std::io::Error),
    /// The reader of the output went away, as in `| head`.
    BrokenPipe,
    /// The errors are already on the screen; only the exit code is left to say.
    Reported(Exit),
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::Output(error),
        }
    }
}

impl Error {
    /// The exit code that scripts can rely on.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Error::Unreachable { .. } | Error::TimedOut { .. } | Error::StreamEnded => Exit::Unreachable,
            Error::Permission { .. } | Error::Api { status: 403, .. } => Exit::Permission,
            Error::Api { info, .. } if names_an_object(&info.code) => Exit::NoSuchObject,
            Error::Usage(_) => Exit::Usage,
            Error::BrokenPipe => Exit::Success,
            Error::Reported(exit) => *exit,
            Error::Closed { .. }
            | Error::NotHttp { .. }
            | Error::TooLarge { .. }
            | Error::Undecodable { .. }
            | Error::Status { .. }
            | Error::Api { .. }
            | Error::Output(_) => Exit::Failure,
        }
    }

    /// What happened: one line, or several where the daemon lists several faults. `None` if nothing is to be said.
    pub(crate) fn message(&self) -> Option<String> {
        Some(match self {
            Error::Unreachable { socket, why } => {
                format!("cannot reach netskoopd at {}: {why}", socket.display())
            }
            Error::Permission { socket } => format!("permission denied on {}", socket.display()),
            Error::TimedOut { socket, after } => {
                format!("netskoopd at {} did not answer within {after:?}", socket.display())
            }
            Error::Closed { call } => {
                format!("netskoopd closed the connection before its answer to {call} was complete")
            }
            Error::NotHttp { socket, why } => {
                format!("what answers at {} does not speak HTTP: {why}", socket.display())
            }
            Error::TooLarge { call, what } => format!("the answer to {call} was cut off: {what}"),
            Error::Undecodable { call, why } => format!("cannot understand the answer to {call}: {why}"),
            Error::Status { call, status } => format!("netskoopd answered {status} to {call}"),
            Error::Api { info, .. } => info.message.clone(),
            Error::StreamEnded => "netskoopd ended the stream".to_owned(),
            Error::Usage(message) => message.clone(),
            Error::Output(error) => format!("cannot write the output: {error}"),
            Error::BrokenPipe | Error::Reported(_) => return None,
        })
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Unreachable { .. } => "Is it running?  systemctl status netskoopd",
            Error::Permission { .. } => "Run as root, or join the group: usermod -aG netskoop $USER",
            Error::TimedOut { .. } => {
                "It may be busy: try --timeout 30s, or look at  journalctl -u netskoopd"
            }
            Error::Closed { .. } => "Has it crashed?  journalctl -u netskoopd",
            Error::NotHttp { .. } => "Is another program listening there?  --socket names another path",
            Error::Undecodable { .. } | Error::Status { .. } => {
                "Do the versions fit?  netskoopctl version, netskoopd --version"
            }
            Error::StreamEnded => "Was it stopped or restarted?  systemctl status netskoopd",
            Error::TooLarge { .. } => "This is a fault of netskoopd: please report it",
            Error::Usage(_) => "For more information, try '--help'.",
            Error::Api { info, .. } => return info.hint.clone().or_else(|| usual_hint(info)),
            Error::Output(_) | Error::BrokenPipe | Error::Reported(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// The error of a body beyond [`BODY_LIMIT`].
    pub(crate) fn body_too_large(call: &str) -> Self {
        const { assert!(BODY_LIMIT == 64 << 20) };
        Error::TooLarge { call: call.to_owned(), what: "it is larger than 64 MiB" }
    }
}

/// Whether the code says that a probe or an entity of the given name does not exist. An unknown *path* is a matter of
/// versions and not of names.
fn names_an_object(code: &str) -> bool {
    matches!(code, "no_such_probe" | "no_such_entity")
}

/// The next step where the daemon gives none and does not suggest a name either.
fn usual_hint(info: &ErrorInfo) -> Option<String> {
    let hint = match info.code.as_str() {
        _ if info.message.contains("Did you mean") => return None,
        "no_such_probe" => "These exist:  netskoopctl probes list",
        "no_such_entity" => "These exist:  netskoopctl entities",
        "not_available" => "More about it:  netskoopctl probes show NAME",
        "permission_denied" | "forbidden" => "Run as root, or join the group: usermod -aG netskoop $USER",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(status: u16, code: &str, message: &str) -> Error {
        Error::Api { status, info: ErrorInfo { code: code.into(), message: message.into(), hint: None } }
    }

    #[test]
    fn exit_codes_are_those_of_the_epilogue() {
        let socket = PathBuf::from("/x");
        let cases = [
            (Error::Unreachable { socket: socket.clone(), why: "no such file".into() }, 3),
            (Error::TimedOut { socket: socket.clone(), after: Duration::from_secs(5) }, 3),
            (Error::StreamEnded, 3),
            (Error::Permission { socket: socket.clone() }, 5),
            (api(403, "forbidden", "no"), 5),
            (api(404, "no_such_probe", "no probe 'x'"), 4),
            (api(404, "no_such_entity", "no entity 'x'"), 4),
            (api(404, "no_such_path", "no /v1/x"), 1),
            (api(409, "not_available", "needs kprobes"), 1),
            (api(400, "bad_request", "no"), 1),
            (Error::Closed { call: "GET /".into() }, 1),
            (Error::NotHttp { socket, why: String::new() }, 1),
            (Error::Usage("x".into()), 2),
            (Error::BrokenPipe, 0),
            (Error::Reported(Exit::NoSuchObject), 4),
            (std::io::Error::from(std::io::ErrorKind::BrokenPipe).into(), 0),
            (std::io::Error::from(std::io::ErrorKind::StorageFull).into(), 1),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit() as u8, code, "{error:?}");
        }
        for code in 0..=5 {
            assert!(EPILOGUE.contains(&format!("\n  {code}  ")), "{code}");
        }
    }

    #[test]
    fn texts_are_those_of_the_sketch() {
        let socket = PathBuf::from("/run/netskoop/netskoopd.sock");
        let error = Error::Unreachable { socket: socket.clone(), why: "no such file".into() };
        assert_eq!(
            error.message().unwrap(),
            "cannot reach netskoopd at /run/netskoop/netskoopd.sock: no such file"
        );
        assert_eq!(error.hint().unwrap(), "Is it running?  systemctl status netskoopd");
        let error = Error::Permission { socket };
        assert_eq!(error.message().unwrap(), "permission denied on /run/netskoop/netskoopd.sock");
        assert_eq!(error.hint().unwrap(), "Run as root, or join the group: usermod -aG netskoop $USER");
    }

    #[test]
    fn a_suggested_name_needs_no_further_hint() {
        let error = api(404, "no_such_probe", "no probe 'tcpresets'. Did you mean 'tcpreset'?");
        assert_eq!(error.hint(), None);
        assert!(api(404, "no_such_probe", "no probe 'x'.").hint().unwrap().contains("probes list"));
    }
}
