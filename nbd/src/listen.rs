//! Listening sockets: made safely, accepted from by plain threads.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use crate::{ErrorKind, ServeError};

/// An accepted connection, not yet bound to a ring.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A listening socket. Dropping a Unix one removes its file.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix {
        socket: UnixListener,
        file: SocketFile,
    },
    Tcp {
        socket: TcpListener,
        address: SocketAddr,
    },
}

impl Listener {
    /// Creates a Unix socket at `path` that only its owner can connect to.
    ///
    /// What is already there is replaced only if it is a socket that nobody listens on.
    pub(crate) fn unix(path: &Path) -> Result<Self, ServeError> {
        remove_stale(path)?;
        let (socket, file) = bind_private(path)
            .map_err(|source| refused(&format!("unix socket {}", path.display()), source))?;
        Ok(Self::Unix { socket, file })
    }

    pub(crate) fn tcp(address: SocketAddr) -> Result<Self, ServeError> {
        let listen = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok(Self::Tcp { socket, address })
        };
        listen().map_err(|source| refused(&format!("tcp address {address}"), source))
    }

    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix { .. } => None,
            Self::Tcp { address, .. } => Some(*address),
        }
    }

    pub(crate) fn unix_path(&self) -> Option<&Path> {
        match self {
            Self::Unix { file, .. } => Some(&file.path),
            Self::Tcp { .. } => None,
        }
    }

    /// Accepts one connection, or fails with `WouldBlock`.
    pub(crate) fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix { socket, .. } => socket.accept().map(|(stream, _)| Accepted::Unix(stream)),
            Self::Tcp { socket, .. } => {
                let (stream, _) = socket.accept()?;
                // T18: a reply waits for no other packet.
                stream.set_nodelay(true)?;
                setsockopt(&stream, sockopt::KeepAlive, &true)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { socket, .. } => socket.as_fd(),
            Self::Tcp { socket, .. } => socket.as_fd(),
        }
    }
}

/// The file of a Unix socket that we made. Dropping it removes the file, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Binds a socket whose file has mode 0600 from the moment it exists. Linux gives the file the
/// mode of the unbound socket less the umask (`unix_bind_bsd`), so no window is left open and the
/// umask, which other threads share, is not touched.
fn bind_private(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let file = SocketFile::at(path)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok((UnixListener::from(socket), file))
}

fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(ServeError::io(
                format!("cannot look at {}", path.display()),
                error,
            ));
        }
    };
    let shown = path.display();
    if !found.file_type().is_socket() {
        let text = format!("{shown} exists and is not a socket; choose another path or remove it");
        return Err(ServeError::new(ErrorKind::AddressInUse, text));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| ServeError::io(format!("cannot remove the stale socket {shown}"), error)),
        _ => {
            let text = format!("another process serves on {shown}; stop it or choose another path");
            Err(ServeError::new(ErrorKind::AddressInUse, text))
        }
    }
}

fn refused(what: &str, source: io::Error) -> ServeError {
    let kind = match source.kind() {
        io::ErrorKind::AddrInUse => ErrorKind::AddressInUse,
        io::ErrorKind::InvalidInput | io::ErrorKind::AddrNotAvailable => ErrorKind::InvalidInput,
        _ => ErrorKind::Io,
    };
    ServeError::new(kind, format!("cannot listen on {what}")).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t18_accepted_tcp_connections_do_not_wait_to_fill_packets() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _client = TcpStream::connect(listener.tcp_address().unwrap()).unwrap();
        let Accepted::Tcp(stream) = listener.accept().unwrap() else {
            panic!("a TCP connection")
        };
        assert!(stream.nodelay().unwrap());
    }
}
