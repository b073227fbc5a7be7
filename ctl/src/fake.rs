//! A daemon for tests that says what it is told to, well-formed or not.

use crate::client::Client;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// A listener in a directory of its own, removed when dropped.
pub(crate) struct Daemon {
    directory: PathBuf,
    requests: Receiver<String>,
}

impl Daemon {
    /// Answers one request after the other with these bytes, and closes each connection.
    pub(crate) fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::scripted(vec![answer.into()])
    }

    /// Answers the first request with the first answer and so on; the last answer is repeated.
    pub(crate) fn scripted(answers: Vec<Vec<u8>>) -> Self {
        Self::serving(move |turn, mut stream| {
            let answer = answers.get(turn).or(answers.last()).unwrap();
            let _ = stream.write_all(answer);
        })
    }

    /// Sends `head`, then `block` until the client has had enough.
    pub(crate) fn pouring(head: &'static str, block: Vec<u8>) -> Self {
        Self::serving(move |_, mut stream| {
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(&block).is_ok() {}
        })
    }

    /// Sends `answer` and keeps the connection open until the client closes it.
    pub(crate) fn holding(answer: Vec<u8>) -> Self {
        Self::serving(move |_, mut stream| {
            let _ = stream.write_all(&answer);
            let _ = stream.read(&mut [0]);
        })
    }

    /// Takes requests and says nothing.
    pub(crate) fn silent() -> Self {
        Self::holding(Vec::new())
    }

    /// A socket file at which nobody listens any more.
    pub(crate) fn stale() -> Self {
        let directory = directory();
        drop(UnixListener::bind(directory.join("sock")).unwrap());
        Self { directory, requests: channel().1 }
    }

    fn serving(mut serve: impl FnMut(usize, UnixStream) + Send + 'static) -> Self {
        let directory = directory();
        let listener = UnixListener::bind(directory.join("sock")).unwrap();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for (turn, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                read_request(&mut stream, &sender);
                serve(turn, stream);
            }
        });
        Self { directory, requests }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// A client for it.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket(), Some(Duration::from_secs(20)))
    }

    /// The next request that it got.
    pub(crate) fn request(&self) -> String {
        self.requests.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Takes away everybody's right to connect.
    pub(crate) fn forbid(&self) {
        std::fs::set_permissions(self.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("netskoopctl-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Reads the head and a body of the announced length.
fn read_request(stream: &mut UnixStream, sender: &Sender<String>) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    let _ = stream.read_exact(&mut body);
    request.extend(body);
    let _ = sender.send(String::from_utf8_lossy(&request).into_owned());
}

/// A complete answer.
pub(crate) fn json(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A complete answer in pieces.
pub(crate) fn chunked(pieces: &[&str]) -> Vec<u8> {
    let mut answer = unfinished(pieces);
    answer.extend_from_slice(b"0\r\n\r\n");
    answer
}

/// The beginning of an answer in pieces.
pub(crate) fn unfinished(pieces: &[&str]) -> Vec<u8> {
    let mut answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for piece in pieces {
        answer += &format!("{:x}\r\n{piece}\r\n", piece.len());
    }
    answer.into_bytes()
}

/// Runs a future as the program does.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
