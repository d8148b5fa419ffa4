//! Which image a device or file holds: written down before anything is written to it, and when it was verified.
//!
//! What is written down is believed only while nothing speaks against it: since then the kernel must have counted no write to the
//! device, or no change of the file. Otherwise, and after a restore that was cut off, the device has to be read.

use crate::apart::parent_of;
use crate::evidence::{Evidence, Proof, Seen};
use crate::target::Target;
use anyhow::{Context, anyhow};
use blockio::LockedFile;
use cli::exit::Advise;
use imagefmt::Disk;
use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where it is written down what devices hold, if root restores.
pub const DIRECTORY: &str = "/var/lib/smc/restored";

/// What is written down of a device or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Its path.
    target: PathBuf,
    state: State,
}

/// What it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A disk of an image, verified.
    Holds(Holding),
    /// A restore began and did not end: anything.
    Between {
        /// What it held before, if that was known: `web01/7:vda`.
        from: Option<String>,
        /// What it was to hold.
        to: String,
        /// When the restore began.
        since: Timestamp,
    },
}

/// A disk of an image that a device holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// `web01/7:vda`.
    pub disk: String,
    /// The digest of its content.
    pub digest: String,
    /// When all of the device was read last, and had the digests of an image.
    pub compared: Timestamp,
    /// What must not have changed since; absent where other writes may have come in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) evidence: Option<Evidence>,
}

/// What is written down of one device or file. While it exists, no other restore writes to the same one.
#[derive(Debug)]
pub struct Held {
    /// The file, and the whole path of the target; absent where nothing can be written down.
    place: Option<(PathBuf, PathBuf)>,
    state: Option<State>,
    /// What it was before a restore began.
    before: Option<State>,
    _lock: Option<LockedFile>,
}

/// Where the files are, unless another directory is given: root's are in [`DIRECTORY`].
pub fn default_directory() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from(DIRECTORY);
    }
    let home = || env::var_os("HOME").map_or_else(|| PathBuf::from("/nonexistent"), PathBuf::from);
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    state
        .unwrap_or_else(|| home().join(".local/state"))
        .join("smc/restored")
}

impl Held {
    /// Reads what is written down of a target in a directory, which is made where it is missing. Nothing is written down where that
    /// fails, with a warning through `warn`: the next one reads the device then.
    ///
    /// # Errors
    /// When another restore to the same target runs.
    pub fn open(directory: &Path, target: &Target, warn: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let shown = target.device.path().display();
        match Self::open_in(directory, target) {
            Ok(held) => Ok(held),
            Err(error) if is_busy(&error) => {
                Err(anyhow!("another restore to {shown} is running")).advise("wait until it has ended")
            }
            Err(error) => {
                warn(&format!(
                    "what {shown} holds cannot be written down in {}: {error}; the next restore to it reads all of it",
                    directory.display()
                ));
                Ok(Self {
                    place: None,
                    state: None,
                    before: None,
                    _lock: None,
                })
            }
        }
    }

    fn open_in(directory: &Path, target: &Target) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let whole = fs::canonicalize(target.device.path())?;
        let name = name_of(&whole);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(directory.join(format!("{name}.lock")))?;
        let lock = LockedFile::try_lock(lock).map_err(|(_, error)| error)?;
        let path = directory.join(format!("{name}.json"));
        let record: Option<Record> = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // One that is damaged tells nothing.
            read => serde_json::from_slice(&read?).ok(),
        };
        Ok(Self {
            place: Some((path, whole)),
            state: record.map(|record| record.state),
            before: None,
            _lock: Some(lock),
        })
    }

    /// What is written down.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// What the target holds according to what is written down, if nothing speaks against it; otherwise, why not.
    pub fn believed(&self, target: &Target) -> Result<&Holding, String> {
        let shown = target.device.path().display();
        let holding = match &self.state {
            None => return Err(format!("it is not known what {shown} holds")),
            Some(State::Between { to, .. }) => {
                return Err(format!("a restore of {to} to {shown} was cut off"));
            }
            Some(State::Holds(holding)) => holding,
        };
        let Some(evidence) = &holding.evidence else {
            return Err(format!(
                "it could not be seen whether another program wrote to {shown} when it got {}",
                holding.disk
            ));
        };
        match Evidence::of(target) {
            Ok(Some(now)) if now == *evidence => Ok(holding),
            Ok(Some(_)) => Err(format!(
                "{shown} may have been written to since it held {}",
                holding.disk
            )),
            Ok(None) => Err(format!("the kernel does not count writes to {shown}")),
            Err(error) => Err(format!(
                "it cannot be seen whether {shown} was written to: {error:#}"
            )),
        }
    }

    /// Writes down that a restore begins, before the first write to the target.
    ///
    /// # Errors
    /// A file that can neither be written nor removed: what it says must not be believed once something was written.
    pub fn begin(&mut self, to: &str) -> anyhow::Result<()> {
        self.before = self.state.clone();
        let from = match self.state.take() {
            Some(State::Holds(holding)) => Some(holding.disk),
            Some(State::Between { from, .. }) => from,
            None => None,
        };
        let since = Timestamp::now();
        let to = to.to_owned();
        let begun = self.put(Some(State::Between { from, to, since }));
        begun.or_else(|error| {
            if self.place.as_ref().is_none_or(|(path, _)| remove(path).is_ok()) {
                return Ok(());
            }
            self.state = self.before.take();
            Err(error)
                .advise("nothing was written; make room there, or name another directory with --restored")
        })
    }

    /// Writes down that nothing was written since [`begin`](Self::begin).
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn take_back(&mut self) -> anyhow::Result<()> {
        let before = self.before.take();
        self.put(before)
    }

    /// Writes down that the target holds a disk: what was written to it was read back. It is believed later only if no write was seen
    /// but our own; the sentence says that others were.
    ///
    /// # Errors
    /// A file that cannot be written; a target whose writes cannot be counted now.
    pub fn holds(&mut self, disk: &Disk, proof: &Proof, target: &Target) -> anyhow::Result<Option<String>> {
        let now = Evidence::of(target)?;
        let seen = proof.judge(now.as_ref());
        let holding = Holding {
            disk: disk.label().to_owned(),
            digest: disk.digest().to_string(),
            compared: proof.compared,
            evidence: now.filter(|_| seen == Seen::OnlyOurs),
        };
        self.put(Some(State::Holds(holding)))?;
        Ok((seen == Seen::Others).then(|| {
            format!(
                "more was written to {} meanwhile than this has written: another program may use it; the next smc-store follow, or \
                 restore --onto, reads all of it",
                target.device.path().display()
            )
        }))
    }

    /// Writes down that it is not known what the target holds.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.put(None)
    }

    fn put(&mut self, state: Option<State>) -> anyhow::Result<()> {
        self.state = state;
        let Some((path, target)) = &self.place else {
            return Ok(());
        };
        let written = match &self.state {
            Some(state) => replace(
                path,
                &Record {
                    target: target.clone(),
                    state: state.clone(),
                },
            ),
            None => remove(path),
        };
        written.with_context(|| {
            format!(
                "what {} holds cannot be written down in {}",
                target.display(),
                path.display()
            )
        })
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// A file name for a path: its end, for people, and a hash of all of it.
fn name_of(path: &Path) -> String {
    let hash = blake3::hash(path.as_os_str().as_bytes()).to_hex();
    let end = path.file_name().unwrap_or_default().to_string_lossy();
    let end: String = end
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '.')
        .take(40)
        .collect();
    format!("{end}-{}", &hash[..16])
}

/// Replaces a file as a whole: after a power cut it is the old one or the new one.
fn replace(path: &Path, record: &Record) -> io::Result<()> {
    let directory = parent_of(path);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent_of(path))?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::guard::ScratchDir;

    #[test]
    fn two_restores_to_one_target_do_not_run_at_once() {
        let scratch = ScratchDir::new("smc-held").unwrap();
        let (store, records) = (scratch.join("store"), scratch.join("records"));
        fs::create_dir(&store).unwrap();
        let file = scratch.sparse_file("disk", 1 << 20).unwrap();
        let target = Target::open(&file, 1 << 20, &store).unwrap();
        let warn = |text: &str| panic!("{text}");
        let first = Held::open(&records, &target, &warn).unwrap();
        assert!(first.state().is_none() && first.believed(&target).is_err());
        let error = Held::open(&records, &target, &warn).unwrap_err();
        assert!(format!("{error:#}").contains("another restore"), "{error:#}");
        drop(first);
        fs::write(records.join(format!("{}.json", name_of(&file))), "{").unwrap();
        assert!(Held::open(&records, &target, &warn).unwrap().state().is_none());
    }

    #[test]
    fn what_was_not_begun_is_as_it_was_and_what_cannot_be_written_down_is_not_begun() {
        let scratch = ScratchDir::new("smc-held").unwrap();
        let (store, records) = (scratch.join("store"), scratch.join("records"));
        fs::create_dir(&store).unwrap();
        let file = scratch.sparse_file("disk", 1 << 20).unwrap();
        let target = Target::open(&file, 1 << 20, &store).unwrap();
        let open = || Held::open(&records, &target, &|text: &str| panic!("{text}")).unwrap();
        let mut held = open();
        let holding = Holding {
            disk: "web01/1:vda".to_owned(),
            digest: "0".to_owned(),
            compared: Timestamp::now(),
            evidence: Evidence::of(&target).unwrap(),
        };
        held.put(Some(State::Holds(holding.clone()))).unwrap();
        held.begin("web01/2:vda").unwrap();
        assert!(matches!(held.state(), Some(State::Between { .. })) && held.believed(&target).is_err());
        held.take_back().unwrap();
        drop(held);
        let mut held = open();
        assert_eq!(held.believed(&target), Ok(&holding));
        // The record can neither be replaced nor removed: it must not say what is no longer true.
        let record = records.join(format!("{}.json", name_of(&file)));
        fs::remove_file(&record).unwrap();
        fs::create_dir_all(record.join("full")).unwrap();
        assert!(held.begin("web01/2:vda").is_err());
        assert_eq!(held.believed(&target), Ok(&holding));
    }
}
