//! gRPC over a Unix socket, for the runtimes that speak it: one connection, a time limit for every request, and errors as
//! sentences. A connection that is lost is not made again here: the source ends, and starts anew with a full list.

use super::SourceError;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

/// Longest message that is taken: a list of all containers of a large node. containerd sends 16 MiB at most, CRI-O 80.
pub(super) const LARGEST: usize = 64 << 20;
/// Longest message of a stream of single things.
pub(super) const LARGEST_SINGLE: usize = 16 << 20;
/// How long a request may take.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// How long a request may take for which the runtime asks each of its shims.
pub(super) const LIMIT_OF_LISTS: Duration = Duration::from_secs(30);
/// Longest part of somebody else's error that is shown, in characters.
const LONGEST_REASON: usize = 200;

/// Connects to a socket.
pub(super) async fn connect(path: &Path) -> Result<Channel, SourceError> {
    let stream = match timeout(LIMIT, UnixStream::connect(path)).await {
        Ok(stream) => stream.map_err(|error| refused(path, &error))?,
        Err(_) => return Err(SourceError(format!("{} accepts no connection", path.display()))),
    };
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = once.take().map(TokioIo::new);
        async { stream.ok_or_else(|| io::Error::other("the connection was lost")) }
    });
    // The address is only for the requests' headers.
    let endpoint = Endpoint::from_static("http://localhost");
    let connecting = timeout(LIMIT, endpoint.connect_with_connector(connector));
    let channel = connecting.await.map_err(|_| SourceError(format!("{} does not answer", path.display())))?;
    channel.map_err(|error| SourceError(format!("{} speaks no gRPC: {}", path.display(), root_cause(&error))))
}

/// Why a socket could not be connected to, and what to do.
fn refused(path: &Path, error: &io::Error) -> SourceError {
    let path = path.display();
    SourceError(match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "{path} may not be opened (permission denied): run netskoopd as root, or in the socket's group"
            )
        }
        io::ErrorKind::ConnectionRefused => format!("nobody listens on {path}: is its service running?"),
        _ => format!("cannot connect to {path}: {error}"),
    })
}

/// Waits for an answer, but not longer than the limit.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(too_late(limit)),
    }
}

/// The next message of an answer in many; nothing at its end.
pub(super) async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match timeout(LIMIT, stream.message()).await {
        Ok(message) => message,
        Err(_) => Err(too_late(LIMIT)),
    }
}

fn too_late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))
}

/// What a request was for and why it failed, as one sentence.
pub(super) fn failed(doing: &str, status: &Status) -> SourceError {
    SourceError(format!("{doing}: {}", reason(status)))
}

/// Whether there is no such thing (any more).
pub(super) fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// Why a request failed. What others wrote is cut, and kept on one line.
fn reason(status: &Status) -> String {
    let lost = status.source().map(root_cause).filter(|_| status.code() != Code::DeadlineExceeded);
    let text = lost.unwrap_or_else(|| status.message().to_owned());
    let text = if text.is_empty() { status.code().description().to_owned() } else { text };
    one_line(&text)
}

/// Text from outside as part of a sentence.
pub(super) fn one_line(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(LONGEST_REASON).map(visible).collect()
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    one_line(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{Context, containerd, cri};
    use super::*;
    use crate::resolve::book::Book;
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};

    /// What both sources say of a listener.
    async fn refusals(name: &str, serve: impl Fn(UnixStream) + Send + 'static) -> [String; 2] {
        let path = std::env::temp_dir().join(format!("netskoop-{name}-{}", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream);
            }
        });
        let book = Arc::new(Book::new(|| {}));
        let (reporter, questions) = book.open("it", true);
        let mut context = Context {
            path: path.clone(),
            proc: "/proc".into(),
            run: "/run".into(),
            reporter,
            questions,
            unanswered: None,
        };
        let Err(SourceError(one)) = containerd::run(&mut context).await;
        let Err(SourceError(two)) = cri::run(&mut context).await;
        std::fs::remove_file(&path).unwrap();
        [one, two]
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_given_up() {
        let held = Mutex::new(Vec::new());
        let [one, two] = refusals("mute", move |stream| held.lock().unwrap().push(stream)).await;
        assert_eq!(one, "asking containerd for its version: no answer within 5 s");
        assert_eq!(two, "asking the runtime for its version: no answer within 5 s");
    }

    #[tokio::test]
    async fn one_that_hangs_up_or_speaks_something_else_is_lost() {
        let hangs_up = refusals("short", drop).await;
        let http = refusals("http", |stream| {
            let stream = stream.into_std().unwrap();
            io::Write::write_all(&mut &stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        });
        for sentence in hangs_up.into_iter().chain(http.await) {
            assert!(sentence.ends_with("for its version: the connection was lost"), "{sentence}");
        }
    }

    #[tokio::test]
    async fn a_socket_without_a_service_says_so() {
        let path = std::env::temp_dir().join(format!("netskoop-left-{}", std::process::id()));
        // The file stays when the listener goes.
        drop(UnixListener::bind(&path).unwrap());
        let SourceError(sentence) = connect(&path).await.unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(sentence.starts_with("nobody listens on "), "{sentence}");
        let SourceError(sentence) = connect(&path).await.unwrap_err();
        assert!(sentence.contains("No such file"), "{sentence}");
    }

    #[test]
    fn an_error_of_others_is_one_short_line() {
        let status = Status::internal(format!("bad\n\u{1b}[31m{}", "x".repeat(100_000)));
        let SourceError(sentence) = failed("listing", &status);
        assert!(sentence.starts_with("listing: bad  [31mxxx") && sentence.len() < 300, "{sentence}");
        assert_eq!(
            failed("listing", &Status::new(Code::Unavailable, "")).0,
            "listing: The service is currently unavailable"
        );
        let denied = refused(Path::new("/s"), &io::ErrorKind::PermissionDenied.into());
        assert!(denied.0.contains("/s may not be opened") && denied.0.contains("as root"), "{denied}");
    }
}
