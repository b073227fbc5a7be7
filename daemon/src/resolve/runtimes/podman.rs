//! Podman: by its API, which is Docker's and a bit more, or by its state files, since mostly no service runs.

mod files;
mod watches;

use super::{Context, SourceError, docker};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Where the containers of root are kept.
pub(super) const STORAGE: &str = "/var/lib/containers/storage/overlay-containers";

/// Follows podman by its socket if somebody listens there, else by its files.
pub(super) async fn run(context: &mut Context) -> Result<Infallible, SourceError> {
    let storage = match context.path.is_dir() {
        true => Some(context.path.clone()),
        // A service that ends leaves its socket behind.
        false if !listens(&context.path).await => Some(PathBuf::from(STORAGE)).filter(|path| path.is_dir()),
        false => None,
    };
    if let Some(storage) = storage {
        let socket = context.run.join("podman/podman.sock");
        files::follow(context, &storage, &socket).await?;
        context.path = socket;
    }
    docker::run(context).await
}

/// Whether somebody takes connections at a socket. Whatever else is wrong with it is told by who uses it.
async fn listens(socket: &Path) -> bool {
    let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    !UnixStream::connect(socket).await.is_err_and(refused)
}

#[cfg(test)]
mod tests;
