//! A gRPC server on a Unix socket that answers what a test wants, for what no real runtime can be made to do: to be huge,
//! old, slow, stuck or hostile.

use super::Dir;
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// What is answered to a request.
pub(crate) enum Reply {
    /// These messages, and the end.
    Messages(Vec<Bytes>),
    /// What comes out of a channel; the end with it.
    Events(tokio::sync::mpsc::UnboundedReceiver<Bytes>),
    /// An error: its code and text.
    Error(u16, String),
    /// Nothing, ever.
    Never,
}

impl Reply {
    pub(crate) fn one(message: &impl Message) -> Reply {
        Reply::Messages(vec![framed(message)])
    }
    /// As servers answer what they do not know.
    pub(crate) fn unknown() -> Reply {
        Reply::Error(12, "unknown service or method".into())
    }
    pub(crate) fn not_found() -> Reply {
        Reply::Error(5, "not found".into())
    }
}

/// A message as it goes over the wire.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    framed_bytes(&message.encode_to_vec())
}

/// The same of bytes that need not be a message.
pub(crate) fn framed_bytes(message: &[u8]) -> Bytes {
    let size = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &size[..], message].concat().into()
}

/// A request: of which service (`Tasks`), what is asked (`List`), in which namespace of containerd, and the message.
pub(crate) struct Asked {
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) namespace: String,
    message: Bytes,
}

impl Asked {
    pub(crate) fn message<M: Message + Default>(&self) -> M {
        M::decode(&*self.message).unwrap()
    }
}

type Handler = dyn Fn(Asked) -> Reply + Send + Sync;

/// A server; gone when dropped.
pub(crate) struct FakeServer {
    dir: Dir,
    asked: Arc<Mutex<Vec<String>>>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeServer {
    pub(crate) fn start(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> FakeServer {
        let dir = Dir::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, mut stopped) = watch::channel(false);
        let log = Arc::clone(&asked);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(dir.0.join("socket")).unwrap()
        };
        let handler: Arc<Handler> = Arc::new(move |request| {
            log.lock().unwrap().push(request.method.clone());
            answer(request)
        });
        let serve = async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = stopped.wait_for(|stop| *stop) => return,
                };
                let handler = Arc::clone(&handler);
                let service =
                    hyper::service::service_fn(move |request| answered(Arc::clone(&handler), request));
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(accepted), service);
                tokio::spawn(connection);
            }
        };
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve);
            runtime.shutdown_timeout(Duration::ZERO);
        });
        FakeServer { dir, asked, stop, thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.0.join("socket")
    }

    /// How often something was asked.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == method).count()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answered(handler: Arc<Handler>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (service, method) = request.uri().path().rsplit_once('/').unwrap();
    let service = service.rsplit('.').next().unwrap();
    let (service, method) = (service.to_owned(), method.to_owned());
    let namespace = request.headers().get("containerd-namespace");
    let namespace = namespace.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let message = request.into_body().collect().await?.to_bytes().slice(5..);
    let reply = handler(Asked { service, method, namespace, message });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(match reply {
        Reply::Error(code, text) => {
            let response = response.header("grpc-status", code).header("grpc-message", text);
            response.body(Full::default().boxed()).unwrap()
        }
        Reply::Never => std::future::pending().await,
        Reply::Messages(_) | Reply::Events(_) => {
            let (sender, body) = Channel::<Bytes, Infallible>::new(16);
            tokio::spawn(send(sender, reply));
            response.body(body.boxed()).unwrap()
        }
    })
}

/// Sends until the end, or until nobody listens.
async fn send(mut sender: Sender<Bytes, Infallible>, reply: Reply) {
    match reply {
        Reply::Messages(messages) => {
            for message in messages {
                if sender.send_data(message).await.is_err() {
                    return;
                }
            }
        }
        Reply::Events(mut events) => {
            while let Some(message) = events.recv().await {
                if sender.send_data(message).await.is_err() {
                    return;
                }
            }
        }
        Reply::Error(..) | Reply::Never => {}
    }
    let trailers =
        HeaderMap::from_iter([(hyper::header::HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
    let _ = sender.send(Frame::trailers(trailers)).await;
}
