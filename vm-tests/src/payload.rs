//! Real files for a disk, and the manifest by which a guest proves that it got them all.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::error::IoContext;
use testkit::process;
use testkit::{Error, ErrorKind, Result};

/// Where on the disk the files go.
pub const PAYLOAD_DIR: &str = "srv/payload";
/// Where on the disk the manifest is.
pub const MANIFEST: &str = "etc/smc/manifest";

const LARGEST_FILE: u64 = 8 << 20;
const FILES_PER_COMMAND: usize = 500;

/// Files of this machine to put on a disk: the same ones every time, in the same order.
#[derive(Debug, Clone)]
pub struct Payload {
    files: Vec<PathBuf>,
    size_bytes: u64,
}

impl Payload {
    /// Takes the regular files below `directories`, in order of their paths, until `limit_bytes` are reached.
    /// Files over 8 MiB, and names that a checksum list would have to escape, are left out.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when no file is found, `Io` when a directory cannot be read.
    pub fn collect(directories: &[&Path], limit_bytes: u64) -> Result<Self> {
        let mut payload = Self {
            files: Vec::new(),
            size_bytes: 0,
        };
        for directory in directories {
            payload.walk(directory, limit_bytes)?;
        }
        if payload.files.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("no files to copy below {directories:?}"),
            ));
        }
        Ok(payload)
    }

    fn walk(&mut self, directory: &Path, limit_bytes: u64) -> Result<()> {
        let context = || format!("list {}", directory.display());
        let mut entries = fs::read_dir(directory)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<std::io::Result<Vec<_>>>()
            })
            .context(context)?;
        entries.sort();
        for path in entries {
            let metadata = fs::symlink_metadata(&path).context(|| format!("inspect {}", path.display()))?;
            if metadata.is_dir() {
                self.walk(&path, limit_bytes)?;
            } else if metadata.is_file() && fits(&path, metadata.len(), limit_bytes - self.size_bytes) {
                self.size_bytes += metadata.len();
                self.files.push(path);
            }
        }
        Ok(())
    }

    /// Bytes in all files.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Copies the files below [`PAYLOAD_DIR`] of the filesystem mounted at `root`.
    ///
    /// # Errors
    /// `Io`, and `Interrupted` when a signal arrives meanwhile.
    pub fn copy_to(&self, root: &Path) -> Result<()> {
        let target_dir = root.join(PAYLOAD_DIR);
        for source in &self.files {
            process::check_interrupt()?;
            let target = target_dir.join(source.strip_prefix("/").unwrap_or(source));
            let parent = target.parent().unwrap_or(&target_dir);
            fs::create_dir_all(parent)
                .and_then(|()| fs::copy(source, &target))
                .context(|| format!("copy {} to {}", source.display(), target.display()))?;
        }
        Ok(())
    }
}

fn fits(path: &Path, size_bytes: u64, room_bytes: u64) -> bool {
    let is_plain = !path
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| matches!(byte, b'\n' | b'\r' | b'\\'));
    is_plain && size_bytes <= LARGEST_FILE.min(room_bytes)
}

/// Writes the SHA-256 of every file in `srv`, `etc`, `bin`, `sbin` and `boot` into the manifest of the filesystem mounted
/// at `root`, and returns how many there are.
///
/// # Errors
/// `Command` when `find` or `sha256sum` fails, `Io` when the manifest cannot be written.
pub fn write_manifest(root: &Path) -> Result<u64> {
    let manifest = root.join(MANIFEST);
    // The boot loader's own files are immutable and rewritten by it alone; the boot itself proves them.
    let mut find = Command::new("find");
    find.current_dir(root)
        .args(["./srv", "./etc", "./bin", "./sbin", "./boot", "-type", "f"]);
    find.args([
        "-not",
        "-path",
        &format!("./{MANIFEST}"),
        "-not",
        "-path",
        "./boot/syslinux/*",
    ]);
    let listed = process::run(&mut find)?;
    let mut files: Vec<OsString> = listed.lines().map(OsString::from).collect();
    files.sort();
    let mut sums = String::new();
    for batch in files.chunks(FILES_PER_COMMAND) {
        sums += &process::run(Command::new("sha256sum").current_dir(root).arg("--").args(batch))?;
    }
    let parent = manifest.parent().unwrap_or(root);
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(&manifest, &sums))
        .context(|| format!("write {}", manifest.display()))?;
    Ok(files.len() as u64)
}
