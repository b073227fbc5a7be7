//! Accepts connections and serves HTTP/1.1 on them, within bounds: number of connections, time for the header, time for
//! a client to read.

use super::answer::Answer;
use super::refuse;
use super::stall::StallGuard;
use super::users::Users;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};

/// A client must have sent its whole header by then; also the time an idle connection is kept.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// A client must take something of its answer within this time.
const STALL_TIME: Duration = Duration::from_secs(30);
/// Open answers have this long to end when the daemon stops.
const GRACE: Duration = Duration::from_millis(700);
/// Wait after a failed accept (no descriptors left), so that it is not tried in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The part of all connections that one user may have, unless it is root: others shall find a place, too.
const USERS_PART: usize = 4;
/// Who asks for too many connections is told so within this time.
const REFUSAL_TIME: Duration = Duration::from_millis(100);
/// How many are told so at the same time. Further ones are cut.
const REFUSALS: usize = 16;

/// Something that connections come from.
pub trait Accept {
    /// The connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Who is at the other end.
    type Peer: Clone + Send + 'static;
    /// Waits for the next one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
    /// The user whose connections are bounded, if they are.
    fn user(_peer: &Self::Peer) -> Option<u32> {
        None
    }
}

impl Accept for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;
    type Peer = ();
    async fn accept(&self) -> io::Result<(Self::Stream, ())> {
        let (stream, _) = tokio::net::TcpListener::accept(self).await?;
        // An answer is written in large pieces; waiting for more only delays the last one.
        stream.set_nodelay(true)?;
        Ok((stream, ()))
    }
}

impl Accept for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;
    type Peer = crate::engine::Peer;
    async fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)> {
        let (stream, _) = tokio::net::UnixListener::accept(self).await?;
        let peer = super::peer::of(&stream)?;
        Ok((stream, peer))
    }
    fn user(peer: &Self::Peer) -> Option<u32> {
        (peer.uid != 0).then_some(peer.uid)
    }
}

/// Serves until `stop` turns true, then lets open answers end for a moment.
pub async fn serve<A, F, R>(listener: A, max_connections: usize, mut stop: watch::Receiver<bool>, handle: F)
where
    A: Accept,
    F: Fn(Request<Incoming>, A::Peer) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(max_connections));
    let (users, refusals) = (Users::default(), Arc::new(Semaphore::new(REFUSALS)));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = told(&mut stop) => break,
        };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = told(&mut stop) => break,
        };
        let Some(counted) = users.count(A::user(&peer), max_connections / USERS_PART) else {
            if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    say_busy(stream).await;
                    drop(turn);
                });
            }
            continue;
        };
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let answer = handle(request, peer.clone());
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(StallGuard::new(stream, STALL_TIME)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop((place, counted));
        });
    }
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::debug!("some connections are cut");
    }
}

/// Answers that there is no place. The request is read before, because a client that cannot send it looks for no answer.
async fn say_busy(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let answer = refuse::answer("busy", "this user has too many connections to netskoopd already", None);
    let mut request = [0_u8; 4096];
    // Whether it comes or not, the answer is the same; and who does not listen is not told.
    let _ = tokio::time::timeout(REFUSAL_TIME, stream.read(&mut request)).await;
    let _ = tokio::time::timeout(REFUSAL_TIME, stream.write_all(&answer)).await;
}

/// Waits until the daemon is to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // The sender only goes away when the daemon is gone already.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::*;
    use tokio::io::DuplexStream;
    use tokio::sync::{Mutex, mpsc};
    use tokio::time::Instant;

    /// Connections that were made before.
    struct Made(Mutex<mpsc::Receiver<DuplexStream>>);

    impl Accept for Made {
        type Stream = DuplexStream;
        type Peer = ();
        async fn accept(&self) -> io::Result<(DuplexStream, ())> {
            self.0
                .lock()
                .await
                .recv()
                .await
                .map(|stream| (stream, ()))
                .ok_or_else(|| io::ErrorKind::Other.into())
        }
    }

    // The clock stands still but for what is waited for, so the time is exact.
    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_loses_the_place_in_the_end() {
        let (made, listener) = mpsc::channel(2);
        let (idle, served) = tokio::io::duplex(1024);
        made.send(served).await.unwrap();
        let (mut client, served) = tokio::io::duplex(1024);
        made.send(served).await.unwrap();
        let (_stop, stopped) = watch::channel(false);
        let handle = |_, ()| async { answer::text("text/plain", "here") };
        tokio::spawn(serve(Made(Mutex::new(listener)), 1, stopped, handle));

        let start = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("here"), "{text}");
        let waited = start.elapsed();
        // A scraper's usual patience.
        assert!(waited <= Duration::from_millis(10_100), "{waited:?}");
        drop(idle);
    }

    /// Connections that were made before, of one user.
    struct OfUser(Made);

    impl Accept for OfUser {
        type Stream = DuplexStream;
        type Peer = ();
        async fn accept(&self) -> io::Result<(DuplexStream, ())> {
            self.0.accept().await
        }
        fn user((): &()) -> Option<u32> {
            Some(1000)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_has_a_part_of_the_places_and_has_it_again() {
        let (made, listener) = mpsc::channel(8);
        let (_stop, stopped) = watch::channel(false);
        let handle = |_, ()| async { answer::text("text/plain", "here") };
        tokio::spawn(serve(OfUser(Made(Mutex::new(listener))), 2 * USERS_PART, stopped, handle));
        let connect = async || {
            let (client, served) = tokio::io::duplex(1024);
            made.send(served).await.unwrap();
            client
        };
        let ask = async |mut client: DuplexStream| {
            let _ = client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            text
        };
        let (idle, also_idle) = (connect().await, connect().await);
        let refused = ask(connect().await).await;
        assert!(
            refused.starts_with("HTTP/1.1 503 ") && refused.contains("too many connections"),
            "{refused}"
        );
        drop((idle, also_idle));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(ask(connect().await).await.ends_with("here"));
    }
}
