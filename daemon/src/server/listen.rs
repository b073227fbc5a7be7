//! Opens the sockets, and explains why one cannot be opened.

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Group that may use the control socket, if it exists.
const GROUP: &str = "netskoop";

/// Why a socket cannot be opened: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A TCP address.
    #[error("cannot listen on {address}: {source}{holder}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
        /// Who has it and what to do, if it is taken.
        holder: String,
    },
    /// What the service manager has opened cannot be used.
    #[error("cannot use the control socket that systemd hands over: {0}; see systemctl cat netskoopd.socket")]
    Handed(io::Error),
    /// A daemon answers on the Unix socket.
    #[error("{} is in use by a running netskoopd; stop that one first: systemctl stop netskoopd", .0.display())]
    InUse(PathBuf),
    /// Something else is where the socket should be.
    #[error("{} exists and is not a socket; remove it or set paths.run", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("cannot make {}: {source}{hint}", path.display())]
    Unix {
        /// The socket or its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// Listens on a TCP address. `[::]` also takes IPv4; without IPv6 in the kernel it becomes `0.0.0.0`.
pub fn tcp(address: SocketAddr, proc_root: &Path) -> Result<TcpListener, ListenError> {
    let result = match bind(address) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip().is_unspecified() => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    };
    result.map_err(|source| {
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        let holder = if taken { describe_holder(proc_root, address.port()) } else { String::new() };
        ListenError::Tcp { address, source, holder }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 512)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Names the process that listens on the port.
fn describe_holder(proc_root: &Path, port: u16) -> String {
    let advice = "; choose another port with http.listen";
    match holder(proc_root, port) {
        Some((pid, comm)) => format!(", held by {comm}[{pid}]{advice}"),
        None => advice.to_owned(),
    }
}

fn holder(proc_root: &Path, port: u16) -> Option<(i32, String)> {
    use procfs::net::TcpState;
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let inodes: Vec<u64> = tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
        .map(|entry| entry.inode)
        .collect();
    procfs::process::all_processes_with_root(proc_root).ok()?.flatten().find_map(|process| {
        let listens = process.fd().ok()?.flatten().any(
            |fd| matches!(fd.target, procfs::process::FDTarget::Socket(inode) if inodes.contains(&inode)),
        );
        listens.then(|| process.stat().ok()).flatten().map(|stat| (stat.pid, stat.comm))
    })
}

/// The control socket; its file goes away with it, if the daemon has made it.
#[derive(Debug)]
pub struct ControlSocket {
    /// Where connections come from.
    pub listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, removed at the end unless it is the service manager's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    own: bool,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.own {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket's file stays behind");
        }
    }
}

impl ControlSocket {
    /// The listener, and its file to be kept as long as it is used.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// One that the service manager has opened, and that stays when the daemon ends.
    pub fn handed(listener: UnixListener) -> ControlSocket {
        let path = listener.local_addr().ok().and_then(|address| Some(address.as_pathname()?.to_owned()));
        let file = SocketFile { path: path.unwrap_or_default(), own: false };
        ControlSocket { listener, file }
    }
}

/// Opens the control socket. A file that a dead daemon left behind is replaced; a live daemon's is not touched.
pub fn control(path: &Path) -> Result<ControlSocket, ListenError> {
    let fail = |source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied => "; run netskoopd as root",
            io::ErrorKind::ReadOnlyFilesystem => "; set paths.run to a directory that can be written",
            _ => "",
        };
        ListenError::Unix { path: path.to_owned(), source, hint }
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(ListenError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "replacing the socket that a dead daemon left behind");
            }
            Err(error) => return Err(fail(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    make(path).map_err(fail)
}

/// Makes the socket under another name, sets its mode and group, and only then gives it its name: at no moment may
/// anybody connect who should not.
fn make(path: &Path) -> io::Result<ControlSocket> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&draft)?;
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o660))?;
    if let Some(gid) = group_id(GROUP)
        && let Err(error) = std::os::unix::fs::chown(&draft, None, Some(gid))
    {
        // As the unit runs it: there netskoopd.socket makes the socket.
        tracing::warn!(%error, "only root can use the control socket; systemctl start netskoopd.socket opens it to the group '{GROUP}'");
    }
    std::fs::rename(&draft, path)?;
    listener.set_nonblocking(true)?;
    Ok(ControlSocket { listener, file: SocketFile { path: path.to_owned(), own: true } })
}

/// Looks a group up in `/etc/group`: the daemon must not ask name services, which may need the network. A number is itself.
pub(super) fn group_id(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next()? == name).then(|| parts.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("netskoop-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = dir("listen").join("d/netskoopd.sock");
        let first = control(&path).unwrap();
        assert!(matches!(control(&path), Err(ListenError::InUse(_))));
        let (listener, file) = first.into_parts();
        // A daemon that was killed leaves its file.
        drop(listener);
        let second = control(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        std::mem::forget(file);
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let path = dir("file").join("netskoopd.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(control(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_taken_port_names_its_holder() {
        let taken = tcp("127.0.0.1:0".parse().unwrap(), Path::new("/proc")).unwrap();
        let address = taken.local_addr().unwrap();
        let error = tcp(address, Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains(&format!("[{}]", std::process::id())), "{error}");
    }
}
