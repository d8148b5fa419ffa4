//! Sockets that a service manager opened for us: systemd's socket activation (sd_listen_fds(3)).

use crate::exit::Advise;
use anyhow::{Context, bail};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A listening stream socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    is_tcp: bool,
}

impl Socket {
    /// Whether clients come by TCP, and not by a Unix socket.
    pub fn is_tcp(&self) -> bool {
        self.is_tcp
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

/// The sockets that were passed, in their order; none where nobody passed any to this process, or they were taken
/// before. One on which a server cannot listen is an error.
///
/// # Errors
/// A socket on which a server cannot listen, or that cannot be used.
pub fn sockets() -> anyhow::Result<Vec<Socket>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds().context("take over sockets (LISTEN_FDS)")?;
    // SAFETY: LISTEN_PID says that whoever started this process left these to it; all are open, or the call above had
    // failed. Nobody else in this process knows of them, and this happens once.
    let owned: Vec<OwnedFd> = passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    owned.into_iter().map(checked).collect()
}

fn checked(fd: OwnedFd) -> anyhow::Result<Socket> {
    let is_tcp = is_tcp(fd.as_fd())
        .with_context(|| format!("serve on descriptor {}, which was passed", fd.as_raw_fd()))
        .advise("in the systemd socket unit, say ListenStream= with a path or a port, and Accept=no")?;
    Ok(Socket { fd, is_tcp })
}

/// Fails for what is not a listening stream socket of a family that we serve on.
fn is_tcp(fd: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let kind = getsockopt(&fd, sockopt::SockType).context("it is no socket")?;
    if kind != SockType::Stream {
        bail!("it is no stream socket but {kind:?}");
    }
    if !getsockopt(&fd, sockopt::AcceptConn)? {
        bail!("it does not listen");
    }
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    match address.family() {
        Some(AddressFamily::Unix) => Ok(false),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(true),
        other => bail!("its address is neither a path nor an IP address but {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;
    use testkit::guard::ScratchDir;

    #[test]
    fn sockets_that_cannot_be_served_on_are_told() {
        let scratch = ScratchDir::new("smc-activation").unwrap();
        let unix = UnixListener::bind(scratch.join("s")).unwrap();
        assert!(!is_tcp(unix.as_fd()).unwrap());
        assert!(is_tcp(TcpListener::bind("127.0.0.1:0").unwrap().as_fd()).unwrap());
        assert!(is_tcp(TcpListener::bind("[::1]:0").unwrap().as_fd()).unwrap());
        let wrong: [(OwnedFd, &str); 3] = [
            (File::open("/dev/null").unwrap().into(), "no socket"),
            (UdpSocket::bind("127.0.0.1:0").unwrap().into(), "Datagram"),
            (UnixStream::pair().unwrap().0.into(), "does not listen"),
        ];
        for (fd, complaint) in wrong {
            let said = crate::exit::full_message(&checked(fd).unwrap_err());
            assert!(said.contains(complaint) && said.contains("descriptor"), "{said}");
        }
    }

    /// Runs the helper with what a service manager would set; `pid` is an expression of the shell.
    fn activated(pid: &str) -> String {
        let scratch = ScratchDir::new("smc-activation").unwrap();
        let unix = UnixListener::bind(scratch.join("s")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let helper = "--exact activation::tests::tells_what_was_passed --ignored --nocapture";
        // The shell has the sockets as standard input and error, and gives them the numbers that they are to have.
        let script = format!("LISTEN_PID={pid} LISTEN_FDS=2 exec \"$0\" {helper} 3<&0 4<&2 </dev/null 2>&1");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap());
        command.stdin(OwnedFd::from(unix)).stderr(OwnedFd::from(tcp));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        said
    }

    #[test]
    fn passed_sockets_are_taken_once_and_by_their_addressee() {
        assert!(activated("$$").contains("passed: [false, true] then 0"));
        assert!(activated("1").contains("passed: [] then 0"));
    }

    #[test]
    #[ignore = "started by passed_sockets_are_taken_once_and_by_their_addressee"]
    fn tells_what_was_passed() {
        let kinds: Vec<bool> = sockets().unwrap().iter().map(Socket::is_tcp).collect();
        println!("passed: {kinds:?} then {}", sockets().unwrap().len());
    }
}
