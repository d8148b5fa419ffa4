//! Which image a device or file holds: written down before anything is written to it, and when it was verified.
//!
//! What is written down is believed only while nothing speaks against it: since then the kernel must have counted no write to the
//! device, or no change of the file. Otherwise, and after a restore that was cut off, the device has to be read.

use crate::apart::parent_of;
use crate::target::Target;
use anyhow::{Context, anyhow};
use blockio::LockedFile;
use cli::exit::Advise;
use hostdev::{BlockDevice, Counters, Node, Root};
use imagefmt::Disk;
use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// Where it is written down what devices hold, if root restores.
pub const DIRECTORY: &str = "/var/lib/smc/restored";

/// A file's times are counted in steps that are no longer than this.
const TIME_STEP: Duration = Duration::from_millis(20);
/// How long is waited for a file's time to be in the past.
const TIME_STEPS: usize = 10;

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
    /// What must not have changed since.
    evidence: Evidence,
}

/// By what is seen that nothing was written since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Evidence {
    /// The counters of the whole disk, since the machine was started and the device appeared.
    Device {
        boot: String,
        diskseq: u64,
        size_bytes: u64,
        writes: u64,
        written_sectors: u64,
        discards: Option<(u64, u64)>,
    },
    /// Times in seconds since 1970, and nanoseconds.
    File {
        file: (u64, u64),
        size_bytes: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

/// What is written down of one device or file. While it exists, no other restore writes to the same one.
#[derive(Debug)]
pub struct Held {
    /// The file, and the whole path of the target; absent where nothing can be written down.
    place: Option<(PathBuf, PathBuf)>,
    state: Option<State>,
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
        match Evidence::of(target) {
            Ok(Some(now)) if now == holding.evidence => Ok(holding),
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
    /// A file that cannot be written. What it says then will not be believed, since the writes are counted.
    pub fn begin(&mut self, to: &Disk) -> anyhow::Result<()> {
        let from = match self.state.take() {
            Some(State::Holds(holding)) => Some(holding.disk),
            Some(State::Between { from, .. }) => from,
            None => None,
        };
        let since = Timestamp::now();
        let to = to.label().to_owned();
        self.put(Some(State::Between { from, to, since }))
    }

    /// Writes down that the target holds a disk: what was written to it was read back. `compared` is when all of it was read last.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn holds(&mut self, disk: &Disk, compared: Timestamp, target: &Target) -> anyhow::Result<()> {
        let Some(evidence) = Evidence::of(target)? else {
            return self.forget();
        };
        let holding = Holding {
            disk: disk.label().to_owned(),
            digest: disk.digest().to_string(),
            compared,
            evidence,
        };
        self.put(Some(State::Holds(holding)))
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

impl Evidence {
    /// What can be seen now; `None` where it would say nothing.
    pub(crate) fn of(target: &Target) -> anyhow::Result<Option<Self>> {
        match target.device.node() {
            Node::Device(number) => {
                let device = BlockDevice::find(&Root::system(), *number)?.context("the device is gone")?;
                Self::of_device(&device, target.device.size_bytes())
            }
            Node::File(..) => Self::of_file(&target.file),
        }
    }

    fn of_device(device: &BlockDevice, size_bytes: u64) -> anyhow::Result<Option<Self>> {
        let whole = device.whole_disk()?;
        let (Some(true), Some(diskseq)) = (whole.is_counting()?, whole.diskseq()?) else {
            return Ok(None);
        };
        let Counters {
            writes,
            written_sectors,
            discards,
            writes_in_flight,
            ..
        } = whole.counters()?;
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the id of this boot")?;
        let is_at_rest = writes_in_flight == 0;
        Ok(is_at_rest.then(|| Self::Device {
            boot: boot.trim().to_owned(),
            diskseq,
            size_bytes,
            writes,
            written_sectors,
            discards: discards.map(|discards| (discards.count, discards.sectors)),
        }))
    }

    /// Waits until the file's time is in the past: then every later change gives it another one.
    fn of_file(file: &File) -> anyhow::Result<Option<Self>> {
        for _ in 0..TIME_STEPS {
            let found = file.metadata().context("examine the file")?;
            let changed = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
            let step = i128::try_from(TIME_STEP.as_nanos()).unwrap_or(i128::MAX);
            if Timestamp::now().as_nanosecond() > changed + step {
                return Ok(Some(Self::File {
                    file: (found.dev(), found.ino()),
                    size_bytes: found.size(),
                    modified: (found.mtime(), found.mtime_nsec()),
                    changed: (found.ctime(), found.ctime_nsec()),
                }));
            }
            sleep(TIME_STEP);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use testkit::guard::{LoopDevice, ScratchDir};

    /// Whether a write of one byte is noticed, and a read is not.
    fn notices_writes(path: &Path, directory: &Path) {
        let target = Target::open(path, 1 << 20, directory).unwrap();
        let before = Evidence::of(&target).unwrap().unwrap();
        target.set_buffered();
        let mut byte = [0];
        target.file.read_exact_at(&mut byte, 4096).unwrap();
        assert_eq!(Evidence::of(&target).unwrap().unwrap(), before);
        target.file.write_all_at(&byte, 4096).unwrap();
        target.file.sync_all().unwrap();
        assert_ne!(Evidence::of(&target).unwrap().unwrap(), before);
    }

    #[test]
    fn a_write_to_a_file_or_a_device_is_noticed() {
        let scratch = ScratchDir::new("smc-held").unwrap();
        let store = scratch.join("store");
        fs::create_dir(&store).unwrap();
        let file = scratch.sparse_file("disk", 1 << 20).unwrap();
        notices_writes(&file, &store);
        let device = LoopDevice::attach(&file).unwrap();
        notices_writes(device.path(), &store);
        device.detach().unwrap();
    }

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
}
