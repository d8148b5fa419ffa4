//! Where the server can be reached, and what encrypts the way there.

use crate::activation;
use crate::exit::Advise;
use anyhow::{Context as _, bail};
use cli::exit::WrongUse;
use nbd::{Server, Tls};
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where `smc-image tls-init` puts what a server needs, when nobody says otherwise.
const TLS_DEFAULT: &str = "/etc/smc/tls/server";

/// What is listened on, and how.
#[derive(Debug, clap::Args)]
pub struct Places {
    /// Serve on a Unix socket, which is created with mode 0600 and removed at the end
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Serve on a TCP address, such as 192.0.2.7:10809 (port 0: any free port), to clients with a certificate of the CA
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Directory with ca-cert.pem, server-cert.pem and server-key.pem, as `smc-image tls-init` creates them
    #[arg(long, value_name = "DIR", default_value = TLS_DEFAULT, conflicts_with = "no_tls")]
    tls: PathBuf,
    /// Serve on TCP without TLS: nothing is encrypted, and whoever reaches the address can read every image served
    #[arg(long)]
    no_tls: bool,
    /// Serve one client on standard input and output, then end
    #[arg(long, conflicts_with_all = ["socket", "listen"])]
    pub stdio: bool,
}

impl Places {
    /// Opens everything that is listened on. Without any option that is what systemd handed over.
    ///
    /// # Errors
    /// An address that is in use or cannot be listened on.
    pub fn open(&self, server: &mut Server) -> anyhow::Result<()> {
        if self.stdio {
            return Ok(());
        }
        if let Some(path) = &self.socket {
            server.listen_unix(path)?;
        }
        if let Some(address) = &self.listen {
            let tls = self.tls()?;
            for address in resolve(address)? {
                server.listen_tcp(address, tls.clone())?;
            }
        }
        if self.socket.is_none() && self.listen.is_none() {
            self.take_over(server)?;
        }
        Ok(())
    }

    /// Whether somebody named them here, who does not know yet when they can be reached. A service manager that
    /// opened the sockets does, and standard output may belong to the client that it is.
    pub fn are_named(&self) -> bool {
        self.socket.is_some() || self.listen.is_some()
    }

    fn take_over(&self, server: &mut Server) -> anyhow::Result<()> {
        let inherited = activation::sockets()?;
        if inherited.is_empty() {
            let why = "there is nothing to serve on: name a Unix socket with --socket PATH or a TCP address with \
                       --listen ADDR, or use --stdio";
            return Err(WrongUse(why.to_owned()).into());
        }
        for socket in inherited {
            let tls = if socket.is_tcp() { self.tls()? } else { None };
            server.listen_inherited(socket.into(), tls)?;
        }
        Ok(())
    }

    /// With what TCP is encrypted.
    fn tls(&self) -> anyhow::Result<Option<Tls>> {
        if self.no_tls {
            return Ok(None);
        }
        let tls = Tls::from_directory(&self.tls).context("serve on TCP");
        tls.map(Some).advise(
            "make the files with `smc-image tls-init` and name their directory with --tls, or do without encryption \
             with --no-tls",
        )
    }
}

fn resolve(address: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found = address
        .to_socket_addrs()
        .with_context(|| format!("look up address {address}"));
    let found: Vec<SocketAddr> = found.advise("write HOST:PORT, as in 127.0.0.1:10809")?.collect();
    if found.is_empty() {
        bail!("address {address} stands for nothing");
    }
    Ok(found)
}

/// The beginning and the end of every URI, between which the export's name stands.
///
/// # Errors
/// When the kernel does not say which address a socket has.
pub fn uris(server: &Server) -> io::Result<Vec<(String, String)>> {
    let mut places = Vec::new();
    for path in server.unix_paths() {
        let socket = percent_encoded(&std::path::absolute(path)?);
        places.push(("nbd+unix:///".to_owned(), format!("?socket={socket}")));
    }
    for (address, is_encrypted) in server.tcp_addresses() {
        let scheme = if is_encrypted { "nbds" } else { "nbd" };
        places.push((format!("{scheme}://{address}/"), String::new()));
    }
    Ok(places)
}

/// What of a path cannot stand in the query of a URI, as `%XX` (RFC 3986, section 2.1).
fn percent_encoded(path: &Path) -> String {
    let mut encoded = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// URI of the default export on a Unix socket.
pub fn default_uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", percent_encoded(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_are_encoded() {
        assert_eq!(
            default_uri(Path::new("/a b/100%?.sock")),
            "nbd+unix:///?socket=/a%20b/100%25%3F.sock"
        );
    }
}
