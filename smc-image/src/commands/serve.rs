//! `smc-image serve`: images as NBD exports, until somebody asks to stop.

mod places;
mod signals;

pub use places::default_uri;

use crate::catalog::{Offer, StoreCatalog, limits};
use crate::confine::{self, Confinement};
use crate::context::Context;
use crate::overlay::{self, parse_limit};
use crate::stdio;
use anyhow::Context as _;
use cli::output;
use cli::units::{self, parse_duration, parse_size};
use imagefmt::ImageRef;
use nbd::{Limits, Server};
use nix::sys::sysinfo::sysinfo;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Buffers from this length on are the system's again when they are freed.
#[cfg(target_env = "gnu")]
const LARGE_BUFFER_BYTES: libc::c_int = 128 << 10;

const GRACE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Serve images over NBD until interrupted
///
/// Exports are named like images: JOB/NUMBER:DISK and JOB/latest:DISK; :DISK may be left out if the image has one
/// disk. The default export is the disk that is named, if it is only one, or else the latest image of the store's
/// only job, if that image has one disk. When clients can connect, the URI of each export is printed. Images are
/// never changed: clients can only read them, or write to an overlay above them (--overlay).
///
/// JOB/latest is the newest image at the time when a client connects. All connections that a client has at the same
/// time read the same image. On a Unix socket a client is a process; on TCP it is an address with its certificate.
///
/// If systemd starts it with a socket, it serves on that socket.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images or disks to serve [default: every image of the store]
    #[arg(value_name = "IMAGE")]
    images: Vec<ImageRef>,
    #[command(flatten)]
    places: places::Places,
    /// Let clients write: each export gets an overlay, which is deleted when its last client disconnects. IMAGE@NAME
    /// is an overlay with a name, which stays on the image on which it began until the server ends
    #[arg(long)]
    overlay: bool,
    /// Largest size of all overlays together
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_limit, requires = "overlay")]
    overlay_limit: u64,
    /// Directory for what does not fit into memory of the overlays, in a file without a name
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", requires = "overlay")]
    overlay_dir: PathBuf,
    /// How long a client whose connection broke can come back to its overlay, and to the image that was the latest. A
    /// client that disconnects properly does not need it
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_grace)]
    reconnect_time: Duration,
    /// Largest number of connections at a time; further ones are closed immediately
    #[arg(long, value_name = "NUMBER", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// Memory for caching what was read, for all images together [default: an eighth of the memory, from 64MiB to
    /// 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache: Option<u64>,
    /// Run as this user once everything is open; the store stays readable, whoever owns it
    ///
    /// At the end, the file of a Unix socket is removed only if this user is allowed to remove it.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Keep all privileges and system calls, to find the cause of a problem
    #[arg(long, conflicts_with = "user")]
    no_confine: bool,
}

fn parse_grace(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        time if time > GRACE_MAX => {
            Err("at most a day: what is kept takes space, and its image cannot be deleted".to_owned())
        }
        time => Ok(time),
    }
}

/// One export as `--json` shows it.
#[derive(Debug, Serialize)]
struct Served<'a> {
    export: &'a str,
    uri: String,
    image: String,
    disk: &'a str,
    size_bytes: u64,
    writable: bool,
}

/// Serves until a signal ends it, or until the client on standard input leaves.
///
/// # Errors
/// Wrong use, images that cannot be served, and addresses that cannot be listened on.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    free_large_buffers();
    let user = args.user.as_deref().map(confine::user).transpose()?;
    let catalog = Arc::new(catalog(context, args)?);
    let offers = catalog.offers()?;
    let limits = Limits {
        connections: args.max_connections.into(),
        ..limits()
    };
    let mut server = Server::new(catalog, limits)?;
    let signals = signals::catch()?;
    args.places.open(&mut server)?;
    if !args.no_confine {
        let confinement = Confinement {
            store: &context.store,
            sockets: args.places.socket.as_slice(),
            user: user.as_ref(),
        };
        // Before any thread is started.
        confinement.apply().context("confine the server")?;
    }
    signals.obey(server.shutdown_handle())?;
    if args.places.stdio {
        let (stream, relay) = stdio::connection()?;
        server.connect(stream);
        server.run()?;
        relay.finish();
        return Ok(ExitCode::SUCCESS);
    }
    if !args.places.are_named() {
        server.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (places, handle) = (places::uris(&server)?, server.shutdown_handle());
    let mut announced = Ok(());
    server.run_when_ready(|| {
        // Clients are served even where nobody reads the addresses.
        announced = output::unless_closed(announce(context, args, &offers, &places));
        if announced.is_err() {
            handle.shutdown();
        }
    })?;
    announced?;
    Ok(ExitCode::SUCCESS)
}

fn catalog(context: &Context, args: &Args) -> anyhow::Result<StoreCatalog> {
    let cache = args.cache.unwrap_or_else(cache_default);
    let cache = usize::try_from(cache).unwrap_or(usize::MAX);
    let store = context.open_store()?.with_cache_bytes(cache);
    let catalog = StoreCatalog::new(store, &args.images, args.reconnect_time);
    if !args.overlay {
        return Ok(catalog);
    }
    let memory = overlay::memory_bytes(args.overlay_limit);
    Ok(catalog.with_overlays(&args.overlay_dir, memory, args.overlay_limit)?)
}

/// Makes the allocator return large buffers to the system as soon as they are freed. By itself glibc learns to keep
/// what it has seen once, and a server would hold for ever what a flood of requests took for a moment.
fn free_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only this thread runs, and the parameter is one that mallopt(3) knows; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES);
    }
}

fn cache_default() -> u64 {
    let memory = sysinfo().map_or(0, |system| system.ram_total());
    (memory / 8).clamp(64 << 20, 1 << 30)
}

fn announce(
    context: &Context,
    args: &Args,
    offers: &[Offer],
    places: &[(String, String)],
) -> anyhow::Result<()> {
    for (begin, end) in places {
        for offer in offers {
            let uri = format!("{begin}{}{end}", offer.name);
            if context.json {
                output::json(&Served {
                    export: &offer.name,
                    uri,
                    image: offer.image.to_string(),
                    disk: &offer.disk,
                    size_bytes: offer.size_bytes,
                    writable: args.overlay,
                })?;
            } else {
                output::line(format!("{uri}  {}", units::size(offer.size_bytes)))?;
            }
        }
    }
    if offers.is_empty() && !context.json {
        output::line("serving, although the store has no image yet")?;
    }
    Ok(())
}
