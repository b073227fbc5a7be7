//! HTTP/1.1 with JSON over a Unix socket, as Docker and podman speak it: a client that keeps one connection for its
//! requests, and streams of lines with a connection each. Every answer is bounded in size and time.

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Head of an answer at most, and what is read ahead of its body.
const MAX_BUFFER: usize = 64 << 10;
/// Of an answer that tells of an error, this much is read and shown.
const MAX_ERROR_BODY: usize = 4 << 10;
const MAX_ERROR_TEXT: usize = 200;

/// Why there is no answer; each is a sentence that names the socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("{0}")]
    Late(String),
    /// The server knows no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The answer is an error, too large, or not what was asked for. Other questions may fare better.
    #[error("{0}")]
    Unusable(String),
}

/// How much of an answer is read, and how long it may take as a whole.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

/// Asks a server at a Unix socket. A connection that the server closed meanwhile is made again.
pub(super) struct Client {
    socket: PathBuf,
    connection: Option<Connection>,
}

/// A connection and the task that moves its bytes, which ends with it.
struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    mover: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.mover.abort();
    }
}

impl Client {
    pub(super) fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned(), connection: None }
    }

    /// `GET` of a path; the answer is JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &mut self,
        path: &str,
        limits: Limits,
    ) -> Result<T, HttpError> {
        let asked = Asked { socket: self.socket.clone(), path: path.to_owned() };
        // Whatever is left of a connection after an error, the next answer on it would not be to the next question.
        let kept = self.connection.take();
        let (connection, body) = timeout(limits.time, exchange(&asked, kept, limits.bytes))
            .await
            .map_err(|_| asked.late(limits.time))??;
        self.connection = connection;
        serde_json::from_slice(&body)
            .map_err(|error| HttpError::Unusable(format!("{asked} with JSON that cannot be used: {error}")))
    }

    /// `GET` of a path whose answer has no end; on a connection of its own.
    pub(super) async fn lines(
        &self,
        path: &str,
        line_bytes: usize,
        time: Duration,
    ) -> Result<Lines, HttpError> {
        let asked = Asked { socket: self.socket.clone(), path: path.to_owned() };
        let open = async {
            let mut connection = connect(&asked.socket).await?;
            let response = send(&asked, &mut connection).await?;
            let body = good(&asked, response).await?;
            Ok(Lines {
                asked: asked.clone(),
                _connection: connection,
                body,
                buffer: Vec::new(),
                looked: 0,
                skipping: false,
                line_bytes,
            })
        };
        timeout(time, open).await.map_err(|_| asked.late(time))?
    }
}

/// What was asked of whom, for sentences.
#[derive(Clone)]
struct Asked {
    socket: PathBuf,
    path: String,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{} answers GET {path}", self.socket.display())
    }
}

impl Asked {
    fn late(&self, limit: Duration) -> HttpError {
        let path = self.path.split('?').next().unwrap_or_default();
        let (socket, seconds) = (self.socket.display(), limit.as_secs_f32());
        HttpError::Late(format!("{socket} did not answer GET {path} within {seconds} s"))
    }

    fn broken(&self, error: &hyper::Error) -> HttpError {
        let socket = self.socket.display();
        HttpError::Broken(match error.is_parse() || error.is_parse_too_large() {
            true => format!("{self} with what is not HTTP: {error}"),
            false => format!("the connection to {socket} broke: {error}"),
        })
    }
}

async fn connect(socket: &Path) -> Result<Connection, HttpError> {
    let name = socket.display();
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "; netskoopd needs to be root or in the socket's group",
            std::io::ErrorKind::ConnectionRefused => "; nobody listens there",
            _ => "",
        };
        HttpError::Broken(format!("cannot connect to {name}: {error}{hint}"))
    })?;
    let mut builder = http1::Builder::new();
    let (sender, connection) = builder
        .max_buf_size(MAX_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| HttpError::Broken(format!("cannot speak to {name}: {error}")))?;
    // How it ended is told to whoever waits for an answer.
    let mover = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { sender, mover })
}

/// A question and its whole answer; the connection comes back if it can be used again.
async fn exchange(
    asked: &Asked,
    kept: Option<Connection>,
    most: usize,
) -> Result<(Option<Connection>, Vec<u8>), HttpError> {
    let kept = match kept {
        Some(mut connection) => send(asked, &mut connection).await.ok().map(|answer| (connection, answer)),
        None => None,
    };
    let (connection, response) = match kept {
        Some(kept) => kept,
        // None yet, or the server has closed it since; asking twice does no harm, since nothing is changed by it.
        None => {
            let mut connection = connect(&asked.socket).await?;
            let answer = send(asked, &mut connection).await?;
            (connection, answer)
        }
    };
    let body = good(asked, response).await?;
    let too_long = || HttpError::Unusable(format!("{asked} with more than {most} bytes, which are not read"));
    let body = read(body, most).await.map_err(|error| asked.broken(&error))?.ok_or_else(too_long)?;
    Ok((Some(connection).filter(|connection| !connection.sender.is_closed()), body))
}

async fn send(asked: &Asked, connection: &mut Connection) -> Result<Response<Incoming>, HttpError> {
    let request = Request::get(&asked.path).header(header::HOST, "localhost").body(Empty::new());
    let request =
        request.map_err(|error| HttpError::Unusable(format!("{} is no path: {error}", asked.path)))?;
    connection.sender.ready().await.map_err(|error| asked.broken(&error))?;
    connection.sender.send_request(request).await.map_err(|error| asked.broken(&error))
}

/// The body of an answer that is none of an error.
async fn good(asked: &Asked, response: Response<Incoming>) -> Result<Incoming, HttpError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body());
    }
    // If it is too long or breaks off, the number must do.
    let body = read(response.into_body(), MAX_ERROR_BODY).await.ok().flatten().unwrap_or_default();
    let sentence = format!("{asked} with {status}{}", message(&body));
    Err(if status == 404 { HttpError::NotFound(sentence) } else { HttpError::Unusable(sentence) })
}

/// What the body of an error says: Docker and podman write `{"message": "..."}`.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(Message { message }) => message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    // A sentence has one line, whatever came.
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let mut text = words.join(" ").trim().to_owned();
    crate::resolve::workload::cut(&mut text, MAX_ERROR_TEXT);
    if text.is_empty() { text } else { format!(": {text}") }
}

/// A whole body; `None` if there is more than `most`.
async fn read(mut body: Incoming, most: usize) -> Result<Option<Vec<u8>>, hyper::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes))
}

/// A line of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// There was a line, but it was too long to be kept.
    TooLong,
}

/// An answer that is read line by line as it comes.
pub(super) struct Lines {
    asked: Asked,
    _connection: Connection,
    body: Incoming,
    buffer: Vec<u8>,
    /// So much of the buffer has no end of line.
    looked: usize,
    /// What comes belongs to a line that is too long.
    skipping: bool,
    line_bytes: usize,
}

impl Lines {
    /// The next line that is not empty. May be given up at any time: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Line, HttpError> {
        loop {
            if let Some(line) = self.buffered() {
                return Ok(line);
            }
            let frame = self.body.frame().await;
            let ended = || HttpError::Broken(format!("{}, but the stream has ended", self.asked));
            let frame = frame.ok_or_else(ended)?.map_err(|error| self.asked.broken(&error))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// A line that has come whole.
    fn buffered(&mut self) -> Option<Line> {
        while let Some(at) = self.buffer[self.looked..].iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.buffer.drain(..=self.looked + at).collect();
            self.looked = 0;
            if std::mem::take(&mut self.skipping) || line.len() > self.line_bytes {
                return Some(Line::TooLong);
            }
            line.truncate(line.trim_ascii_end().len());
            if !line.is_empty() {
                return Some(Line::Whole(line));
            }
        }
        self.looked = self.buffer.len();
        if self.skipping || self.buffer.len() > self.line_bytes {
            self.skipping = true;
            self.buffer = Vec::new();
            self.looked = 0;
        }
        None
    }
}
