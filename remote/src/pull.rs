//! Reading the store that a target keeps of a source, from another machine: its list of files, parts of them, and images that are
//! kept from being deleted meanwhile.
//!
//! What is read is not believed here: whoever opens it as a store checks each cluster and each node against its digest.

use crate::error::{Error, ErrorKind, Result};
use crate::files::TargetFiles;
use crate::http::{self, Sender};
use http_body_util::Full;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The most bytes that are asked for at once.
pub const PART_MAX_BYTES: u32 = 1 << 20;

/// What a connection changes to that keeps an image from being deleted.
pub const HOLD_PROTOCOL: &str = "smc-hold/1";

/// How often such a connection says that it is there.
pub const HOLD_INTERVAL: Duration = Duration::from_secs(10);

/// How long a target that cannot be reached is tried again.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first pause between two tries; each is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A file of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its path in the store: `web/images/000007.json`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was changed last, in milliseconds since 1970 by the target's clock.
    pub changed_ms: i64,
}

/// The files of a store, those of images before the layers that they need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The source whose store it is.
    pub source: String,
    /// The files.
    pub files: Vec<StoredFile>,
}

/// The store of a source at a target, for a machine with the role `pull`.
#[derive(Debug)]
pub struct PulledStore {
    runtime: Runtime,
    files: TargetFiles,
    address: String,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<Sender>>,
}

/// Keeps an image from being deleted at the target, until it is dropped. A connection that is lost is made again.
#[derive(Debug)]
pub struct PulledHold {
    _end: oneshot::Sender<()>,
}

impl PulledStore {
    /// For a target that this machine knows.
    ///
    /// # Errors
    /// `Invalid` and `Io` for files of this machine that cannot be used.
    pub fn new(files: &TargetFiles) -> Result<PulledStore> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start threads", error))?;
        Ok(PulledStore {
            runtime,
            address: files.record.address.clone(),
            files: files.clone(),
            idle: Mutex::default(),
        })
    }

    /// All files of the store.
    ///
    /// # Errors
    /// `Unreachable`, also for a target that fails; `Refused` without the right to read.
    pub fn list(&self) -> Result<Listing> {
        let bytes = self.get("/v1/store")?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::untrue(format!(
                "the answer of the target at {} cannot be read",
                self.address
            ))
            .caused_by(error)
        })
    }

    /// At most [`PART_MAX_BYTES`] of a file from `offset` on; fewer than `length` where it ends.
    ///
    /// # Errors
    /// As [`list`](Self::list); `Invalid` for a file that there is not.
    pub fn read(&self, path: &str, offset: u64, length: u32) -> Result<Vec<u8>> {
        let length = length.min(PART_MAX_BYTES);
        let mut bytes = self.get(&format!("/v1/store/{path}?offset={offset}&length={length}"))?;
        // What nobody asked for is no part of it.
        bytes.truncate(length as usize);
        Ok(bytes)
    }

    /// Keeps an image from being deleted.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn hold(&self, chain: &str, sequence: u64) -> Result<PulledHold> {
        let path = format!("/v1/hold/{chain}/{sequence}");
        let first = self.patiently(|| self.runtime.block_on(hold_at(&self.files, &path)))?;
        let (sender, receiver) = oneshot::channel();
        let files = self.files.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = keep(first, &files, &path) => {}
                _ = receiver => {}
            }
        });
        Ok(PulledHold { _end: sender })
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.patiently(|| {
            // One that was idle may have been closed meanwhile, or was made with a key that has been renewed.
            while let Some(sender) = self.take() {
                match self.runtime.block_on(self.ask(sender, path)) {
                    Ok(Err(error)) if error.is_about_rights() => {}
                    Ok(answer) => return answer,
                    Err(_) => {}
                }
            }
            self.runtime
                .block_on(http::as_known(&self.files, |address, config| async move {
                    let opened = http::open(&address, config).await?;
                    self.ask(opened, path).await?
                }))
        })
    }

    /// Asks on a connection, which is idle again afterwards. The outer error is one of the connection.
    async fn ask(&self, mut sender: Sender, path: &str) -> Result<Result<Vec<u8>>> {
        let request = http::request(&self.address, Method::GET, path, Full::default())?;
        let late = |_| Error::unreachable(format!("{} does not answer", self.address));
        let asked = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let answer = timeout(http::CONNECT_PATIENCE, asked).await.map_err(late)?;
        let answer = answer.map_err(|error| http::no_answer(&self.address, error))?;
        let status = answer.status();
        let body = timeout(http::CONNECT_PATIENCE, http::body_of(&self.address, answer)).await;
        let bytes = body.map_err(late)??;
        let answer = match status {
            StatusCode::OK => Ok(bytes.to_vec()),
            status => Err(http::problem(status, &bytes)),
        };
        if !answer.as_ref().is_err_and(Error::is_about_rights) {
            self.idle().push(sender);
        }
        Ok(answer)
    }

    /// Tries again while the target cannot be reached.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let (begun, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            match attempt() {
                Err(error) if error.kind() == ErrorKind::Unreachable && begun.elapsed() < PATIENCE => {
                    tracing::debug!("{}", error.full_message());
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                done => return done,
            }
        }
    }

    fn take(&self) -> Option<Sender> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that keeps an image from being deleted.
async fn hold_at(files: &TargetFiles, path: &str) -> Result<http::Changed> {
    http::as_known(files, |address, config| async move {
        http::change(&address, config, path, HOLD_PROTOCOL).await
    })
    .await
}

/// Says on a connection that it is there, and makes it again when it is lost, until the image is gone.
async fn keep(first: http::Changed, files: &TargetFiles, path: &str) {
    let mut connection = first;
    loop {
        while say(&mut connection).await {
            tokio::time::sleep(HOLD_INTERVAL).await;
        }
        connection = loop {
            match hold_at(files, path).await {
                Ok(again) => break again,
                Err(error) if error.kind() == ErrorKind::Unreachable => tokio::time::sleep(PAUSE_MAX).await,
                Err(error) => {
                    tracing::warn!(
                        "an image may be deleted while it is read: {}",
                        error.full_message()
                    );
                    return;
                }
            }
        };
    }
}

async fn say(connection: &mut http::Changed) -> bool {
    let said = async {
        connection.write_all(b".").await?;
        connection.flush().await?;
        // The answer shows that the target still holds the image.
        connection.read_u8().await
    };
    matches!(timeout(HOLD_INTERVAL * 2, said).await, Ok(Ok(_)))
}
