//! HTTP/1.1 on the daemon's Unix socket. Whatever answers there is not trusted: sizes and times are bounded.

use crate::error::Error;
use crate::lines::Lines;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use netskoop_api::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// Bytes of an answer at most.
pub(crate) const BODY_LIMIT: usize = 64 << 20;

/// Bytes of the explanation of an error at most; what is longer is no explanation.
const ERROR_LIMIT: usize = 1 << 20;

/// How long reading may take unless the user says otherwise.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a change may take: loading and verifying BPF programs is slow on a busy node.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Knows where the daemon listens. Every request has a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// The request, for error messages.
    pub(crate) call: String,
    /// The body.
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    /// Reads it as the type that the contract names.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| Error::Undecodable { call: self.call.clone(), why: error.to_string() })
    }
}

impl Client {
    /// A client for the daemon at `socket`.
    pub(crate) fn new(socket: PathBuf, timeout: Option<Duration>) -> Self {
        Self { socket, timeout }
    }

    /// The same, perhaps with another socket, and with this limit unless the user has set one.
    pub(crate) fn hasty(&self, socket: Option<PathBuf>, timeout: Duration) -> Self {
        let socket = socket.unwrap_or_else(|| self.socket.clone());
        Self { socket, timeout: self.timeout.or(Some(timeout)) }
    }

    /// Reads a document.
    pub(crate) async fn get(&self, path: &str) -> Result<Document, Error> {
        self.exchange(Method::GET, path, Bytes::new(), READ_TIMEOUT).await
    }

    /// Asks for an action without parameters.
    pub(crate) async fn post(&self, path: &str) -> Result<Document, Error> {
        self.exchange(Method::POST, path, Bytes::new(), CHANGE_TIMEOUT).await
    }

    /// Sends a document for an answer to it.
    pub(crate) async fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Document, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Usage(error.to_string()))?;
        self.exchange(Method::POST, path, body.into(), READ_TIMEOUT).await
    }

    /// Changes what `body` names.
    pub(crate) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<Document, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Usage(error.to_string()))?;
        self.exchange(Method::PATCH, path, body.into(), CHANGE_TIMEOUT).await
    }

    /// Opens a stream of lines. `endless` says that nothing may come for a long time.
    pub(crate) async fn stream(&self, path: &str, endless: bool) -> Result<Lines, Error> {
        let limit = self.timeout.unwrap_or(READ_TIMEOUT);
        let call = format!("GET {path}");
        let opening = self.send(Method::GET, path, Bytes::new(), &call);
        let response = self.within(limit, opening).await?;
        let idle = (!endless).then_some(limit);
        Ok(Lines::new(response.into_body(), call, self.socket.clone(), idle))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        usual: Duration,
    ) -> Result<Document, Error> {
        let call = format!("{method} {path}");
        let limit = self.timeout.unwrap_or(usual);
        let bytes = self
            .within(limit, async {
                let response = self.send(method, path, body, &call).await?;
                self.collect(response.into_body(), BODY_LIMIT, &call).await
            })
            .await?;
        Ok(Document { call, bytes })
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut { socket: self.socket.clone(), after: limit }),
        }
    }

    /// Sends a request; an answer that is not success becomes the error it describes.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        call: &str,
    ) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(&error))?;
        let broken = |error: hyper::Error| self.broken(&error, call);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors also reach the request or the body, where they are reported.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "netskoopd")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("netskoopctl/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| Error::Usage(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(self.refused(status, response.into_body(), call).await),
        }
    }

    /// The error that the daemon explains in its answer.
    async fn refused(&self, status: StatusCode, body: Incoming, call: &str) -> Error {
        let explained = match self.collect(body, ERROR_LIMIT, call).await {
            Ok(bytes) => serde_json::from_slice::<ErrorBody>(&bytes).ok(),
            Err(_) => None,
        };
        match explained {
            Some(ErrorBody { error: info }) => Error::Api { status: status.as_u16(), info },
            None => Error::Status { call: call.to_owned(), status: status.as_u16() },
        }
    }

    async fn collect(&self, mut body: Incoming, limit: usize, call: &str) -> Result<Vec<u8>, Error> {
        if body.size_hint().lower() > limit as u64 {
            return Err(Error::body_too_large(call));
        }
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error, call))?;
            let data = frame.into_data().unwrap_or_default();
            if bytes.len() + data.len() > limit {
                return Err(Error::body_too_large(call));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn broken(&self, error: &hyper::Error, call: &str) -> Error {
        broken(error, call, &self.socket)
    }

    fn not_connected(&self, error: &std::io::Error) -> Error {
        let why = match error.kind() {
            ErrorKind::PermissionDenied => return Error::Permission { socket: self.socket.clone() },
            ErrorKind::NotFound => "no such file".to_owned(),
            ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            // Of a Unix socket whose queue of waiting clients is full.
            ErrorKind::WouldBlock => "too many clients are waiting".to_owned(),
            _ => error.to_string(),
        };
        Error::Unreachable { socket: self.socket.clone(), why }
    }
}

/// Tells a connection that ended from a peer that speaks something else.
pub(crate) fn broken(error: &hyper::Error, call: &str, socket: &std::path::Path) -> Error {
    let mut cause = error.source();
    let mut ended = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    let mut why = error.to_string();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            ended |= matches!(
                io.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            );
        }
        why = inner.to_string();
        cause = inner.source();
    }
    if ended {
        Error::Closed { call: call.to_owned() }
    } else {
        Error::NotHttp { socket: socket.to_owned(), why }
    }
}

/// Encodes a name for use as one segment of a path or as a value of a query.
pub(crate) fn encode(name: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::fake::{Daemon, chunked, json, run};

    fn get(daemon: &Daemon) -> Result<Document, Error> {
        run(daemon.client().get("/v1/status"))
    }

    #[test]
    fn reads_a_document_with_a_well_formed_request() {
        let daemon = Daemon::answering(json(200, "{\"a\":1}"));
        let document = get(&daemon).unwrap();
        assert_eq!(
            (document.call.as_str(), document.bytes.as_slice()),
            ("GET /v1/status", &b"{\"a\":1}"[..])
        );
        let request = daemon.request();
        assert!(request.starts_with("GET /v1/status HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("\r\nhost: netskoopd\r\n"), "{request}");
    }

    #[test]
    fn nobody_listens() {
        let client = Client::new("/nonexistent/netskoopd.sock".into(), None);
        let error = run(client.get("/v1/status")).unwrap_err();
        assert_eq!(error.exit(), Exit::Unreachable);
        assert_eq!(
            error.message().unwrap(),
            "cannot reach netskoopd at /nonexistent/netskoopd.sock: no such file"
        );
        let stale = Daemon::stale();
        let error = run(stale.client().get("/v1/status")).unwrap_err();
        assert_eq!(error.exit(), Exit::Unreachable);
        assert!(error.message().unwrap().ends_with(": connection refused"));
        let long = Client::new("/x".repeat(200).into(), None);
        assert_eq!(run(long.get("/v1/status")).unwrap_err().exit(), Exit::Unreachable);
    }

    #[test]
    fn permission_is_its_own_error() {
        let client = Client::new("/x".into(), None);
        let error = client.not_connected(&ErrorKind::PermissionDenied.into());
        assert_eq!(error.exit(), Exit::Permission);
        // Root may connect to anything, so only another user sees the kernel refuse.
        if !rustix::process::geteuid().is_root() {
            let daemon = Daemon::answering(json(200, "{}"));
            daemon.forbid();
            assert_eq!(get(&daemon).unwrap_err().exit(), Exit::Permission);
        }
    }

    #[test]
    fn refusals_say_what_the_daemon_says() {
        let body = r#"{"error":{"code":"no_such_probe","message":"no probe 'tcpresets'. Did you mean 'tcpreset'?"}}"#;
        let error = get(&Daemon::answering(json(404, body))).unwrap_err();
        assert_eq!(error.exit(), Exit::NoSuchObject);
        assert_eq!(error.message().unwrap(), "no probe 'tcpresets'. Did you mean 'tcpreset'?");
        let error = get(&Daemon::answering(json(404, "<h1>nothing here</h1>"))).unwrap_err();
        assert_eq!(error.exit(), Exit::Failure);
        assert_eq!(error.message().unwrap(), "netskoopd answered 404 to GET /v1/status");
    }

    #[test]
    fn a_peer_that_speaks_something_else() {
        let error = get(&Daemon::answering("SSH-2.0-OpenSSH_9.2\r\n\r\n")).unwrap_err();
        assert!(matches!(error, Error::NotHttp { .. }), "{error:?}");
        let garbage = get(&Daemon::answering(json(200, "\u{1}garbage"))).unwrap();
        let error = garbage.parse::<netskoop_api::Status>().unwrap_err();
        assert!(error.message().unwrap().starts_with("cannot understand the answer to GET /v1/status: "));
        let bad_chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
        assert!(matches!(get(&Daemon::answering(bad_chunk)).unwrap_err(), Error::NotHttp { .. }));
    }

    #[test]
    fn a_connection_that_ends_too_early() {
        for answer in [
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\":",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n",
        ] {
            let error = get(&Daemon::answering(answer)).unwrap_err();
            assert!(matches!(error, Error::Closed { .. }), "{answer:?}: {error:?}");
            assert_eq!(error.exit(), Exit::Failure);
        }
    }

    #[test]
    fn an_enormous_body_is_cut_off() {
        let announced = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
        assert!(matches!(get(&Daemon::answering(announced)).unwrap_err(), Error::TooLarge { .. }));
        let daemon = Daemon::pouring("HTTP/1.1 200 OK\r\n\r\n", vec![b' '; 1 << 20]);
        let error = get(&daemon).unwrap_err();
        assert_eq!(
            error.message().unwrap(),
            "the answer to GET /v1/status was cut off: it is larger than 64 MiB"
        );
    }

    #[test]
    fn a_silent_daemon_times_out() {
        let daemon = Daemon::silent();
        let client = Client::new(daemon.socket(), Some(Duration::from_millis(30)));
        let error = run(client.get("/v1/status")).unwrap_err();
        assert_eq!(error.exit(), Exit::Unreachable);
        assert!(error.message().unwrap().ends_with("did not answer within 30ms"), "{error:?}");
    }

    #[test]
    fn streams_come_line_by_line() {
        let daemon = Daemon::answering(chunked(&["{\"a\":1}\n{\"b\"", ":2}\n\n", "{\"c\":3}"]));
        run(async {
            let mut lines = daemon.client().stream("/v1/events", false).await.unwrap();
            let mut got = Vec::new();
            while let Some(line) = lines.next().await.unwrap() {
                got.push(String::from_utf8(line.to_vec()).unwrap());
            }
            assert_eq!(got, ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        });
    }

    #[test]
    fn streams_are_bounded_too() {
        let daemon = Daemon::pouring("HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 1 << 20]);
        run(async {
            let mut lines = daemon.client().stream("/v1/events", true).await.unwrap();
            assert!(matches!(lines.next().await, Err(Error::TooLarge { .. })));
        });
        let daemon = Daemon::answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n");
        run(async {
            let mut lines = daemon.client().stream("/v1/events", true).await.unwrap();
            assert!(matches!(lines.next().await, Err(Error::Closed { .. })));
        });
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("kube-system/coredns_a.b~c"), "kube-system%2Fcoredns_a.b~c");
        assert_eq!(encode("a b?&=#%ü"), "a%20b%3F%26%3D%23%25%C3%BC");
    }
}
