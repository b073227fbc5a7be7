//! The lines of a streamed answer.

use crate::client::broken;
use crate::error::Error;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a line at most.
const LINE_LIMIT: usize = 1 << 20;

/// A body that is read line by line.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    call: String,
    socket: PathBuf,
    idle: Option<Duration>,
    buffer: BytesMut,
    /// So many bytes at the beginning of the buffer hold no end of a line.
    searched: usize,
}

impl Lines {
    /// Reads `body`, whose next piece must come within `idle`.
    pub(crate) fn new(body: Incoming, call: String, socket: PathBuf, idle: Option<Duration>) -> Self {
        Self { body, call, socket, idle, buffer: BytesMut::new(), searched: 0 }
    }

    /// The request, for error messages.
    pub(crate) fn call(&self) -> &str {
        &self.call
    }

    /// The next line that is not empty, without its end; `None` after the last. Nothing is lost when the future is
    /// dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            while let Some(line) = self.take_line() {
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.buffer.len() > LINE_LIMIT {
                return Err(Error::TooLarge {
                    call: self.call.clone(),
                    what: "one of its lines is longer than 1 MiB",
                });
            }
            match self.frame().await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => {
                    let rest = std::mem::take(&mut self.buffer).freeze();
                    self.searched = 0;
                    return Ok((!rest.trim_ascii().is_empty()).then_some(rest));
                }
            }
        }
    }

    /// Whether a line can be had without waiting.
    pub(crate) fn has_more(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    fn take_line(&mut self) -> Option<Bytes> {
        match self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                Some(line.freeze())
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Error> {
        let frame = match self.idle {
            Some(idle) => tokio::time::timeout(idle, self.body.frame())
                .await
                .map_err(|_| Error::TimedOut { socket: self.socket.clone(), after: idle })?,
            None => self.body.frame().await,
        };
        match frame {
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(broken(&error, &self.call, &self.socket)),
            None => Ok(None),
        }
    }
}
