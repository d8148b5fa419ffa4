//! `smc-image serve`: images as NBD exports, until somebody asks to stop.

use crate::catalog::{Offer, StoreCatalog};
use crate::context::Context;
use crate::exit::Advise;
use crate::output;
use anyhow::{Context as _, bail};
use imagefmt::ImageRef;
use nbd::{Limits, Server, ShutdownHandle};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::{io, thread};

/// Serve images over NBD, read-only, until interrupted
///
/// Exports are named like images: JOB/NUMBER:DISK and JOB/latest:DISK, and without :DISK where the image has one disk.
/// Where exactly one disk is served, it is the default export too. A line with the URI of every export is printed
/// when clients can connect.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("where").args(["socket", "listen"]).required(true).multiple(true))]
pub struct Args {
    /// Images or disks to serve; every image of the store where none is named
    #[arg(value_name = "IMAGE")]
    images: Vec<ImageRef>,
    /// Serve on a Unix socket, made with mode 0600 and removed at the end
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve on a TCP address, such as 127.0.0.1:10809 (port 0: a free one)
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Listen on addresses other than loopback although nothing is encrypted and no client is asked who it is
    #[arg(long, requires = "listen")]
    no_tls: bool,
}

/// One export as `--json` shows it.
#[derive(Debug, Serialize)]
struct Served<'a> {
    export: &'a str,
    uri: String,
    image: &'a str,
    disk: &'a str,
    size_bytes: u64,
}

/// Serves until SIGINT or SIGTERM.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let catalog = Arc::new(StoreCatalog::new(context.open_store()?, &args.images));
    let offers = catalog.offers()?;
    let addresses = args.listen.as_deref().map_or(Ok(Vec::new()), resolve)?;
    if !args.no_tls {
        refuse_remote(&addresses)?;
    }
    let mut server = Server::new(catalog, Limits::default())?;
    if let Some(path) = &args.socket {
        server.listen_unix(path)?;
    }
    for address in addresses {
        server.listen_tcp(address)?;
    }
    stop_on_signal(server.shutdown_handle())?;
    let places = places(&server)?;
    announce(context, &offers, &places)?;
    server.run()?;
    Ok(ExitCode::SUCCESS)
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

fn refuse_remote(addresses: &[SocketAddr]) -> anyhow::Result<()> {
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        None => Ok(()),
        Some(address) => Err(anyhow::anyhow!(
            "{address} is not a loopback address, and this version has no TLS: whoever reaches it could read every \
             image served"
        ))
        .advise("listen on 127.0.0.1 and tunnel (ssh -L), or accept that with --no-tls"),
    }
}

/// Signals end the server in order; its socket file goes with it.
fn stop_on_signal(server: ShutdownHandle) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catch signals")?;
    let wait = move || {
        for _ in signals.forever() {
            server.shutdown();
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("start a thread")?;
    Ok(())
}

/// The beginning and the end of every URI, between which the export's name stands.
fn places(server: &Server) -> io::Result<Vec<(String, String)>> {
    let mut places = Vec::new();
    for path in server.unix_paths() {
        let socket = percent_encoded(&std::path::absolute(path)?);
        places.push(("nbd+unix:///".to_owned(), format!("?socket={socket}")));
    }
    places.extend(
        server
            .tcp_addresses()
            .iter()
            .map(|address| (format!("nbd://{address}/"), String::new())),
    );
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

fn announce(context: &Context, offers: &[Offer], places: &[(String, String)]) -> anyhow::Result<()> {
    for (begin, end) in places {
        for offer in offers {
            let uri = format!("{begin}{}{end}", offer.name);
            if context.json {
                let Offer {
                    name,
                    image,
                    disk,
                    size_bytes,
                    ..
                } = offer;
                output::json(&Served {
                    export: name,
                    uri,
                    image,
                    disk,
                    size_bytes: *size_bytes,
                })?;
            } else {
                output::line(format!("{uri}  {}", output::size(offer.size_bytes)))?;
            }
        }
    }
    if offers.is_empty() && !context.json {
        output::line("serving, although the store has no image yet")?;
    }
    Ok(())
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

    #[test]
    fn only_loopback_needs_no_consent() {
        assert!(refuse_remote(&["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()]).is_ok());
        assert!(refuse_remote(&["127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap()]).is_err());
    }
}
