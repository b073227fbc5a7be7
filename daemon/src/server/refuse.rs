//! Answers that need no server: for those who wait at a socket that the service manager has opened, when the daemon that
//! they wait for cannot start, and for those who have too many connections.

use netskoop_api::{ErrorBody, ErrorInfo};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// For all of them; the rest is answered by the next start that fails.
const TIME: Duration = Duration::from_secs(2);
/// For the request of one. It is usually there, since it has come before this process.
const PATIENCE: Duration = Duration::from_millis(100);

/// Tells everybody whose connection is there why the daemon does not start.
pub fn all_who_wait(listener: &UnixListener, message: &str) {
    let message = format!("netskoopd does not start:\n{message}");
    let answer = answer("not_started", &message, Some("systemctl status netskoopd shows more"));
    let end = Instant::now() + TIME;
    if let Err(error) = listener.set_nonblocking(true) {
        tracing::debug!(%error, "those who wait cannot be told");
        return;
    }
    while let Ok((stream, _)) = listener.accept() {
        // Who has gone away need not know.
        let _ = tell(stream, &answer);
        if Instant::now() > end {
            return;
        }
    }
}

fn tell(mut stream: UnixStream, answer: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Whatever it asks, the answer is the same; a request that nobody has read would end the connection with an error.
    let mut request = [0_u8; 16 * 1024];
    let _ = stream.read(&mut request);
    stream.write_all(answer)
}

/// A refusal as bytes: status 503, stable word, sentence, what to do next.
pub(super) fn answer(code: &str, message: &str, hint: Option<&str>) -> Vec<u8> {
    let error = ErrorInfo { code: code.into(), message: message.into(), hint: hint.map(str::to_owned) };
    // Strings are always JSON.
    let body = serde_json::to_string(&ErrorBody { error }).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}",
        body.len()
    );
    format!("{head}\r\n\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    #[test]
    fn all_who_wait_are_told_and_nobody_is_waited_for() {
        let name = format!("netskoop-refuse-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let connect = || UnixStream::connect_addr(&address).unwrap();
        let (mut asks, silent) = (connect(), connect());
        asks.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        drop(connect());
        all_who_wait(&listener, "netskoopd.toml:1:1: a \"mistake\"");
        for mut client in [asks, silent] {
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
            let said: ErrorBody = serde_json::from_str(body).unwrap();
            assert_eq!(said.error.message, "netskoopd does not start:\nnetskoopd.toml:1:1: a \"mistake\"");
        }
    }
}
