//! What a source keeps of a target: where it is, how both know each other, and what was committed last.

use crate::error::{Error, ErrorKind, Result};
use crate::tls;
use imagefmt::Uuid;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the files of all targets are.
pub const DIRECTORY: &str = "/var/lib/smc/targets";

/// A target as this machine knows it. Its files are in a directory of its own, readable for root only.
#[derive(Debug, Clone)]
pub struct TargetFiles {
    directory: PathBuf,
    /// Its name on this machine.
    pub name: String,
    /// Where it is, and who this machine is there.
    pub record: TargetRecord,
}

/// What is kept in `target.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// `HOST:PORT`.
    pub address: String,
    /// This machine's name there.
    pub source: String,
    /// What this machine may do there.
    pub role: String,
}

/// The key of this machine, what the target signed, and whose signature that is; all PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The private key.
    pub key: String,
    /// The certificate.
    pub certificate: String,
    /// The authority's certificate.
    pub authority: String,
}

impl Credentials {
    /// What to encrypt with.
    ///
    /// # Errors
    /// `Invalid` for what cannot be used.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        tls::of_source(&self.authority, &self.certificate, &self.key)
    }

    /// Until when the certificate is good.
    ///
    /// # Errors
    /// `Invalid` for what is no certificate.
    pub fn valid_until(&self) -> Result<Timestamp> {
        certs::valid_until(&self.certificate)
            .map_err(|error| Error::invalid("this machine's certificate cannot be read").caused_by(error))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The image that this machine has committed last, as it remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The chain.
    pub chain: Uuid,
    /// Number of the image.
    pub sequence: u64,
    /// Id of the image.
    pub image: Uuid,
    /// Digest of each disk.
    pub disks: BTreeMap<String, String>,
}

const TARGET: &str = "target.json";
/// Key and certificates are in one file, so that they change together.
const IDENTITY: &str = "identity.json";
/// Locked by who changes them.
const LOCK: &str = "identity.lock";

impl TargetFiles {
    /// The target of this name.
    ///
    /// # Errors
    /// `Invalid` for a name that no target has, with what to do; `Io` for files that cannot be read.
    pub fn open(directory: &Path, name: &str) -> Result<TargetFiles> {
        check_name(name)?;
        let own = directory.join(name);
        let text = fs::read_to_string(own.join(TARGET)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::invalid(format!(
                "there is no target {name:?}: `smcd target ls` shows which there are, `smcd target add` adds one"
            )),
            _ => unreadable(&own.join(TARGET), error),
        })?;
        let record = serde_json::from_str(&text).map_err(|error| damaged(&own.join(TARGET), error))?;
        Ok(TargetFiles {
            directory: own,
            name: name.to_owned(),
            record,
        })
    }

    /// All targets, by name.
    ///
    /// # Errors
    /// `Io` for files that cannot be read.
    pub fn all(directory: &Path) -> Result<Vec<TargetFiles>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| unreadable(directory, error))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(directory, error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // One that is being added, or was not added completely, has another name.
            if check_name(&name).is_ok() && !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort();
        names
            .iter()
            .map(|name| TargetFiles::open(directory, name))
            .collect()
    }

    /// Adds a target, all of it or nothing.
    ///
    /// # Errors
    /// `Invalid` where there is one of this name; `Io` for files that cannot be written.
    pub fn add(
        directory: &Path,
        name: &str,
        record: TargetRecord,
        credentials: &Credentials,
    ) -> Result<TargetFiles> {
        check_name(name)?;
        let own = directory.join(name);
        if fs::symlink_metadata(&own).is_ok() {
            return Err(Error::invalid(format!(
                "there is a target {name:?} already: `smcd target rm {name}` removes it"
            )));
        }
        make_private(directory)?;
        let new = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(directory)
            .map_err(|error| unwritable(directory, error))?;
        let files = TargetFiles {
            directory: new.path().to_owned(),
            name: name.to_owned(),
            record,
        };
        files.write_credentials(credentials)?;
        files.write_json(TARGET, &files.record)?;
        sync_directory(new.path())?;
        fs::rename(new.path(), &own).map_err(|error| unwritable(&own, error))?;
        let _ = new.keep();
        sync_directory(directory)?;
        Ok(TargetFiles {
            directory: own,
            ..files
        })
    }

    /// The same target as its files describe it now.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn again(&self) -> Result<TargetFiles> {
        let above = self.directory.parent().unwrap_or(Path::new("/"));
        TargetFiles::open(above, &self.name)
    }

    /// Waits until nobody else changes this machine's key for the target, in this process or another one, and keeps others from it
    /// until the file is dropped.
    ///
    /// # Errors
    /// `Io` for a file that cannot be locked.
    pub(crate) fn lock_identity(&self) -> Result<File> {
        let path = self.directory.join(LOCK);
        let mut options = fs::OpenOptions::new();
        let opened = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| Error::io(format!("cannot lock {}", path.display()), error))
    }

    /// This machine was enrolled again: it has another key, and the target may have another address. What was committed stays known.
    ///
    /// # Errors
    /// `Io` for files that cannot be written.
    pub fn replace(&self, record: &TargetRecord, credentials: &Credentials) -> Result<TargetFiles> {
        let _turn = self.lock_identity()?;
        // The target knows only the new key from now on.
        self.write_credentials(credentials)?;
        self.write_json(TARGET, record)?;
        self.again()
    }

    /// Forgets the target: this machine's key for it is gone.
    ///
    /// # Errors
    /// `Io` for files that cannot be removed.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.directory).map_err(|error| unwritable(&self.directory, error))
    }

    /// Key and certificates.
    ///
    /// # Errors
    /// `Io` for files that cannot be read.
    pub fn credentials(&self) -> Result<Credentials> {
        let path = self.directory.join(IDENTITY);
        let bytes = fs::read(&path).map_err(|error| unreadable(&path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error))
    }

    /// What to encrypt with.
    ///
    /// # Errors
    /// `Io` for files that cannot be read, `Invalid` for ones that cannot be used.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        self.credentials()?.tls()
    }

    /// Puts a new key and certificate in place of those that there are.
    ///
    /// # Errors
    /// `Io` for files that cannot be written.
    pub fn write_credentials(&self, credentials: &Credentials) -> Result<()> {
        self.write_json(IDENTITY, credentials)
    }

    /// What this machine has committed last for a job.
    ///
    /// # Errors
    /// `Io` for a file that cannot be read. One that is damaged tells nothing.
    pub fn remembered(&self, job: &str) -> Result<Option<Remembered>> {
        let path = self.directory.join(remembered_name(job));
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, error)),
        }
    }

    /// Remembers what was committed.
    ///
    /// # Errors
    /// `Io` for a file that cannot be written.
    pub fn remember(&self, job: &str, remembered: &Remembered) -> Result<()> {
        self.write_json(&remembered_name(job), remembered)
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(value).map_err(|error| damaged(&self.directory.join(name), error))?;
        self.write(name, &text)
    }

    /// Replaces a file as a whole: after a power cut it is the old one or the new one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let written = || {
            // It is 0600.
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&self.directory)?.sync_all()
        };
        written().map_err(|error| unwritable(&path, error))
    }
}

fn remembered_name(job: &str) -> String {
    format!("job-{job}.json")
}

/// Refuses what is no name.
fn check_name(name: &str) -> Result<()> {
    imagefmt::check_name("target", name).map_err(|error| Error::invalid(error.to_string()))
}

fn make_private(directory: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
        .map_err(|error| unwritable(directory, error))
}

fn sync_directory(directory: &Path) -> Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| unwritable(directory, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot read {}", path.display()), error)
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot write {}", path.display()), error)
}

fn damaged(path: &Path, error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Invalid, format!("{} is damaged", path.display())).caused_by(error)
}
