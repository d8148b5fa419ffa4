//! Has the kernel write all that it holds back of what lies on disks.

use crate::{Kind, OnDisks};
use nix::unistd::syncfs;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a flush was.
#[derive(Debug)]
pub struct Flushed {
    /// How long it took.
    pub took: Duration,
    /// What could not be flushed.
    pub failures: Vec<NotFlushed>,
}

/// A filesystem or device of which the kernel may still hold something back.
#[derive(Debug)]
pub struct NotFlushed {
    /// Where the filesystem is mounted, or the device.
    pub path: PathBuf,
    /// Why; `None` if it cannot be opened from here.
    pub error: Option<io::Error>,
}

impl OnDisks {
    /// Flushes all filesystems (syncfs(2)), then partitions and other devices on the disks, then the disks: what was written to a
    /// partition is not seen by direct reads of its disk before that. What lies in a file of another filesystem comes first.
    pub fn flush(&self) -> Flushed {
        let begun = Instant::now();
        let mut failures: Vec<NotFlushed> = Vec::new();
        for one in self.filesystems.iter().filter(|one| one.kind != Kind::ReadOnly) {
            note(&mut failures, &one.mount_point, one.file.as_ref(), |file| {
                Ok(syncfs(file)?)
            });
        }
        for device in &self.devices {
            match File::open(device) {
                Ok(file) => note(&mut failures, device, Some(&file), |file| file.sync_all()),
                Err(error) => failures.push(NotFlushed {
                    path: device.clone(),
                    error: Some(error),
                }),
            }
        }
        Flushed {
            took: begun.elapsed(),
            failures,
        }
    }
}

fn note(
    failures: &mut Vec<NotFlushed>,
    path: &Path,
    file: Option<&File>,
    flush: impl Fn(&File) -> io::Result<()>,
) {
    let error = match file.map(flush) {
        Some(Ok(())) => return,
        Some(Err(error)) => Some(error),
        None => None,
    };
    failures.push(NotFlushed {
        path: path.to_owned(),
        error,
    });
}
