//! What a machine with the role `pull` may do: read the files of one source's store, and keep images from being deleted meanwhile.
//!
//! Only files that a reader of images needs can be read, by names that cannot lead out of the store. Nothing can be written.

use crate::answer::{Answer, failed, json, problem, upgraded};
use crate::config::Config;
use crate::registry::Role;
use crate::serve::{Peer, SILENCE, Target};
use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use imagefmt::{ErrorKind, Lock};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use remote::pull::{HOLD_PROTOCOL, Listing, PART_MAX_BYTES, StoredFile};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What lies beside an image's manifest.
const OF_IMAGES: [&str; 5] = ["json", "deleting", "pins", "verified", "boot"];

/// The files of a source's store.
///
/// # Errors
/// A store that cannot be read.
pub fn list(config: &Config, source: &str) -> Result<Listing> {
    let directory = config.store_of(source);
    let mut files = Vec::new();
    add(&directory, "store.json", &mut files)?;
    for chain in names(&directory)? {
        if imagefmt::check_name("chain", &chain).is_err() || !directory.join(&chain).is_dir() {
            continue;
        }
        // Images before the layers that they need.
        for name in ["chain.json", "checkpoint.json"] {
            add(&directory, &format!("{chain}/{name}"), &mut files)?;
        }
        for kind in ["images", "layers"] {
            for name in names(&directory.join(&chain).join(kind))? {
                add(&directory, &format!("{chain}/{kind}/{name}"), &mut files)?;
            }
        }
    }
    Ok(Listing {
        source: source.to_owned(),
        files,
    })
}

/// The names in a directory; none where there is no such directory.
fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = || format!("list {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(failed)?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let names: io::Result<Vec<String>> = entries.map(name).collect();
    names.with_context(failed)
}

/// Adds a file, if it is one that may be read and is still there.
fn add(directory: &Path, path: &str, files: &mut Vec<StoredFile>) -> Result<()> {
    if !may_be_read(path) {
        return Ok(());
    }
    let found = match fs::symlink_metadata(directory.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("examine {path}"))?,
    };
    if found.is_file() {
        files.push(StoredFile {
            path: path.to_owned(),
            bytes: found.len(),
            changed_ms: found.ctime() * 1000 + found.ctime_nsec() / 1_000_000,
        });
    }
    Ok(())
}

/// Whether a path is exactly one of those that files of a store have which readers need.
fn may_be_read(path: &str) -> bool {
    let is_name = |name: &str| imagefmt::check_name("chain", name).is_ok();
    match path.split('/').collect::<Vec<_>>()[..] {
        ["store.json"] => true,
        [chain, "chain.json" | "checkpoint.json"] => is_name(chain),
        [chain, "images", file] => {
            let of_image = file.split_once('.').is_some_and(|(number, extension)| {
                number.len() >= 6
                    && number.bytes().all(|digit| digit.is_ascii_digit())
                    && OF_IMAGES.contains(&extension)
            });
            is_name(chain) && of_image
        }
        [chain, "layers", file] => {
            let of_layer = file.strip_suffix(".layer").is_some_and(|id| {
                id.len() == 8 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            });
            is_name(chain) && of_layer
        }
        _ => false,
    }
}

/// A part of a file of a source's store; `None` for one that there is not, or that may not be read.
///
/// # Errors
/// A file that cannot be read.
pub fn read(config: &Config, source: &str, path: &str, offset: u64, length: u32) -> Result<Option<Vec<u8>>> {
    if !may_be_read(path) {
        return Ok(None);
    }
    let Some(file) = open_below(&config.store_of(source), path)? else {
        return Ok(None);
    };
    let mut bytes = vec![0; length.min(PART_MAX_BYTES) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        let at = offset.saturating_add(filled as u64);
        match file
            .read_at(&mut bytes[filled..], at)
            .with_context(|| format!("read {path}"))?
        {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// Opens a regular file below a directory, through no link.
fn open_below(directory: &Path, path: &str) -> Result<Option<File>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let root = match open(directory, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened.with_context(|| format!("open {}", directory.display()))?,
    };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let file = match openat2(&root, path, how) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => File::from(opened.with_context(|| format!("open {path}"))?),
    };
    let is_file = file
        .metadata()
        .with_context(|| format!("examine {path}"))?
        .is_file();
    Ok(is_file.then_some(file))
}

/// Requests of machines with the role `pull`.
impl Target {
    /// Answers one.
    pub async fn pull(self: Arc<Self>, peer: Peer, request: &mut Request<Incoming>) -> Answer {
        let uri = request.uri().clone();
        let parts: Vec<&str> = uri.path().split('/').skip(2).collect();
        match parts.as_slice() {
            ["store"] => {
                self.reading(
                    peer,
                    |target, of| list(&target.config, of),
                    |listing| json(StatusCode::OK, &listing),
                )
                .await
            }
            ["store", path @ ..] => {
                let Some((offset, length)) = part_of(uri.query().unwrap_or_default()) else {
                    return problem(StatusCode::BAD_REQUEST, "offset and length are missing");
                };
                let path = path.join("/");
                let read = move |target: &Target, of: &str| read(&target.config, of, &path, offset, length);
                self.reading(peer, read, |found| found.map_or_else(not_there, bytes))
                    .await
            }
            ["hold", chain, sequence] => match sequence.parse() {
                Ok(sequence) => self.hold(peer, request, (*chain).to_owned(), sequence).await,
                Err(_) => not_there(),
            },
            _ => not_there(),
        }
    }

    /// Reads from the store, on a thread that may wait for it.
    async fn reading<T: Send + 'static>(
        self: Arc<Self>,
        peer: Peer,
        ask: impl FnOnce(&Target, &str) -> Result<T> + Send + 'static,
        show: impl FnOnce(T) -> Answer,
    ) -> Answer {
        let asked = tokio::task::spawn_blocking(move || ask(&self, &peer.of));
        match asked.await {
            Ok(Ok(found)) => show(found),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error.into()),
        }
    }

    fn may_still_read(&self, peer: &Peer) -> Result<bool> {
        let Some(key) = &peer.key else { return Ok(false) };
        let known = self.registry.with_key(key)?;
        Ok(known.is_some_and(|(_, known)| known.role == Role::Pull && known.of.as_ref() == Some(&peer.of)))
    }

    /// Keeps an image from being deleted for as long as the connection lasts, and says something.
    async fn hold(
        self: Arc<Self>,
        peer: Peer,
        request: &mut Request<Incoming>,
        chain: String,
        sequence: u64,
    ) -> Answer {
        if request
            .headers()
            .get(UPGRADE)
            .is_none_or(|wanted| wanted != HOLD_PROTOCOL)
        {
            return problem(StatusCode::UPGRADE_REQUIRED, "this is only for smc-hold/1");
        }
        let upgrade = hyper::upgrade::on(request);
        let (target, of) = (self.clone(), peer.clone());
        let lock = move |target: &Target, of: &str| locked(&target.config, of, &chain, sequence);
        let begin = |found: Option<Lock>| {
            let Some(lock) = found else { return not_there() };
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    target.listen(&of, TokioIo::new(upgraded)).await;
                }
                drop(lock);
            });
            upgraded(HOLD_PROTOCOL)
        };
        self.reading(peer, lock, begin).await
    }

    /// Answers what keeps a connection alive, until it is silent or may not be there any more.
    async fn listen(self: &Arc<Self>, peer: &Peer, mut connection: TokioIo<Upgraded>) {
        while let Ok(Ok(byte)) = timeout(SILENCE, connection.read_u8()).await {
            let (target, peer) = (self.clone(), peer.clone());
            let may = tokio::task::spawn_blocking(move || target.may_still_read(&peer)).await;
            let answered = async {
                connection.write_u8(byte).await?;
                connection.flush().await
            };
            if !matches!(may, Ok(Ok(true))) || !matches!(timeout(SILENCE, answered).await, Ok(Ok(()))) {
                return;
            }
        }
    }
}

/// The lock on an image; `None` where there is no such image.
fn locked(config: &Config, source: &str, chain: &str, sequence: u64) -> Result<Option<Lock>> {
    let Some(store) = config.open_store(source)? else {
        return Ok(None);
    };
    let (jobs, _) = store.readable_jobs()?;
    let of_chain = jobs.into_values().filter(|images| images.chain() == chain);
    let Some(image) = of_chain.filter_map(|images| images.get(sequence)).next() else {
        return Ok(None);
    };
    match store.hold(&image) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        held => Ok(Some(held?)),
    }
}

/// Offset and length that a query names.
fn part_of(query: &str) -> Option<(u64, u32)> {
    let value = |name: &str| {
        let found = query.split('&').filter_map(|pair| pair.split_once('='));
        found
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
            .next()
    };
    Some((value("offset")?.parse().ok()?, value("length")?.parse().ok()?))
}

fn not_there() -> Answer {
    problem(StatusCode::NOT_FOUND, "there is nothing of this name here")
}

fn bytes(bytes: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    let kind = HeaderValue::from_static("application/octet-stream");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn only_files_that_readers_need_can_be_read() {
        for path in [
            "store.json",
            "web/chain.json",
            "web/checkpoint.json",
            "web/images/000007.json",
            "web/images/1000007.pins",
            "web/layers/0000001a.layer",
        ] {
            assert!(may_be_read(path), "{path}");
        }
        for path in [
            "",
            "web",
            "../web02/store.json",
            "web/../store.json",
            "/store.json",
            "web//chain.json",
            "web/writer.lock",
            ".notes/web.json",
            "web/images/7.json",
            "web/images/000007.json.tmp",
            "web/images/../../x.json",
            "web/layers/0000001A.layer",
            "web/layers/0000001a.layer/",
            "web/other/000007.json",
        ] {
            assert!(!may_be_read(path), "{path}");
        }
    }

    #[test]
    fn a_link_in_a_store_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("web01");
        fs::create_dir_all(store.join("web/images")).unwrap();
        fs::write(dir.path().join("secret"), "of another source").unwrap();
        std::os::unix::fs::symlink("../../../secret", store.join("web/images/000001.json")).unwrap();
        fs::write(store.join("web/images/000002.json"), "an image").unwrap();
        let config = Config {
            stores: dir.path().to_owned(),
            ..Config::default()
        };
        assert!(read(&config, "web01", "web/images/000001.json", 0, 100).is_err());
        let found = read(&config, "web01", "web/images/000002.json", 3, 100).unwrap();
        assert_eq!(found.as_deref(), Some(&b"image"[..]));
        assert_eq!(
            read(&config, "web01", "web/images/000002.json", u64::MAX - 5, 100)
                .ok()
                .flatten(),
            None
        );
        assert_eq!(
            read(&config, "web01", "web/images/000003.json", 0, 100).unwrap(),
            None
        );
        let listed = list(&config, "web01").unwrap();
        assert_eq!(listed.files.len(), 1, "{listed:?}");
        assert_eq!(part_of("offset=5&length=7"), Some((5, 7)));
        assert_eq!(part_of("offset=5"), None);
        assert_eq!(part_of("offset=-5&length=7"), None);
    }
}
