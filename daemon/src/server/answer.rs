//! Answers: JSON, text, errors, and bodies that are written as the client takes them.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use netskoop_api::{ErrorBody, ErrorInfo};
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Any body.
pub type AnyBody = BoxBody<Bytes, Infallible>;
/// Any answer.
pub type Answer = Response<AnyBody>;

/// A refusal: status, stable word, sentence, what to do.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable word.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), hint: None }
    }
    /// Says what to do next.
    pub fn hint(self, hint: impl Into<String>) -> Refusal {
        Refusal { hint: Some(hint.into()), ..self }
    }
    /// As JSON.
    pub fn json(self) -> Answer {
        let error = ErrorInfo { code: self.code.into(), message: self.message, hint: self.hint };
        with_status(json(&ErrorBody { error }), self.status)
    }
    /// As a line of text.
    pub fn text(self) -> Answer {
        let hint = self.hint.map(|hint| format!("\n{hint}")).unwrap_or_default();
        with_status(text("text/plain; charset=utf-8", format!("{}{hint}\n", self.message)), self.status)
    }
}

/// Sets the status of an answer.
pub fn with_status(mut answer: Answer, status: StatusCode) -> Answer {
    *answer.status_mut() = status;
    answer
}

/// Text of some type.
pub fn text(kind: &'static str, text: impl Into<Bytes>) -> Answer {
    body(kind, Full::new(text.into()).boxed())
}

/// A JSON document.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => text("application/json", bytes),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            with_status(
                text("text/plain; charset=utf-8", "internal error\n"),
                StatusCode::INTERNAL_SERVER_ERROR,
            )
        }
    }
}

/// An answer with any body.
pub fn body(kind: &'static str, body: AnyBody) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A body made of pieces that are computed when the client is ready for them.
pub struct Pieces<I>(pub I);

impl<I: Iterator<Item = Vec<u8>> + Unpin> Body for Pieces<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece.into()))))
    }
}

/// A body whose end, also by a client that went away, is noticed at once by whoever holds the other end of `alive`.
pub struct Watched<B> {
    inner: B,
    _alive: tokio::sync::oneshot::Receiver<()>,
}

impl<B> Watched<B> {
    /// Ties the two together.
    pub fn new(inner: B, alive: tokio::sync::oneshot::Receiver<()>) -> Watched<B> {
        Watched { inner, _alive: alive }
    }
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }
}
