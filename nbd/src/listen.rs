//! Listening sockets: made safely, accepted from by plain threads.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr};
use nix::sys::socket::{bind, getsockname, getsockopt, listen, setsockopt, socket, sockopt};
use nix::sys::stat::{Mode, fchmod};

use crate::{Client, ErrorKind, ServeError, Tls};

/// What is asked of the kernel as a Unix socket's buffer.
const SEND_BYTES: usize = 2 << 20;

/// A connected socket, not yet bound to a ring.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// An accepted connection, who made it, and with what it is to be encrypted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: Socket,
    pub(crate) client: Client,
    pub(crate) tls: Option<Tls>,
}

impl Accepted {
    pub(crate) fn unix(stream: UnixStream) -> Self {
        // A peer that the kernel cannot tell is like every other such peer.
        let pid = getsockopt(&stream, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
        Self {
            socket: Socket::Unix(stream),
            client: Client::Process(pid),
            tls: None,
        }
    }
}

/// A listening socket. Dropping one that we made at a path removes the file.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix {
        socket: UnixListener,
        file: Option<SocketFile>,
    },
    Tcp {
        socket: TcpListener,
        address: SocketAddr,
        tls: Option<Tls>,
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
        let file = Some(file);
        Ok(Self::Unix { socket, file })
    }

    pub(crate) fn tcp(address: SocketAddr, tls: Option<Tls>) -> Result<Self, ServeError> {
        let socket = TcpListener::bind(address);
        socket
            .and_then(|socket| Self::of_tcp(socket, tls))
            .map_err(|source| refused(&format!("tcp address {address}"), source))
    }

    /// A socket that somebody else made and listens on, such as systemd.
    pub(crate) fn inherited(socket: OwnedFd, tls: Option<Tls>) -> Result<Self, ServeError> {
        let adopt = || match stream_family(&socket)? {
            Some(AddressFamily::Unix) if tls.is_none() => {
                let socket = UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                Ok(Some(Self::Unix { socket, file: None }))
            }
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                Self::of_tcp(TcpListener::from(socket), tls).map(Some)
            }
            _ => Ok(None),
        };
        let unusable = "an inherited descriptor is no listening stream socket, of Unix without TLS or of TCP";
        match adopt() {
            Ok(Some(listener)) => Ok(listener),
            Ok(None) => Err(ServeError::new(ErrorKind::InvalidInput, unusable)),
            Err(error) => Err(ServeError::new(ErrorKind::InvalidInput, unusable).with_source(error)),
        }
    }

    fn of_tcp(socket: TcpListener, tls: Option<Tls>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Self::Tcp { socket, address, tls })
    }

    /// The address of a TCP socket, and whether it has TLS.
    pub(crate) fn tcp_address(&self) -> Option<(SocketAddr, bool)> {
        match self {
            Self::Unix { .. } => None,
            Self::Tcp { address, tls, .. } => Some((*address, tls.is_some())),
        }
    }

    /// Where a Unix socket has its file, as far as the system tells.
    pub(crate) fn unix_path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix { socket, file } => match file {
                Some(file) => Some(file.path.clone()),
                None => socket.local_addr().ok()?.as_pathname().map(Path::to_owned),
            },
            Self::Tcp { .. } => None,
        }
    }

    /// Accepts one connection, or fails with `WouldBlock`.
    pub(crate) fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix { socket, .. } => {
                let (stream, _) = socket.accept()?;
                // A reply that fits is sent without waiting for the client. The kernel gives what its
                // limits allow; TCP's buffers grow by themselves.
                setsockopt(&stream, sockopt::SndBuf, &SEND_BYTES)?;
                Ok(Accepted::unix(stream))
            }
            Self::Tcp { socket, tls, .. } => {
                let (stream, peer) = socket.accept()?;
                // T18: a reply waits for no other packet.
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                Ok(Accepted {
                    socket: Socket::Tcp(stream),
                    client: Client::at(peer.ip()),
                    tls: tls.clone(),
                })
            }
        }
    }
}

/// Finds out about clients whose machine is gone: they hold a place among the connections for two minutes, where the
/// kernel's own pace would be two hours.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &60)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

/// The address family of a listening stream socket.
fn stream_family(socket: &OwnedFd) -> io::Result<Option<AddressFamily>> {
    let listens = getsockopt(socket, sockopt::AcceptConn)?;
    let is_stream = getsockopt(socket, sockopt::SockType)? == SockType::Stream;
    let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    Ok(address.family().filter(|_| listens && is_stream))
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
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), None).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _client = TcpStream::connect(listener.tcp_address().unwrap().0).unwrap();
        let Socket::Tcp(stream) = listener.accept().unwrap().socket else {
            panic!("a TCP connection")
        };
        assert!(stream.nodelay().unwrap());
    }
}
