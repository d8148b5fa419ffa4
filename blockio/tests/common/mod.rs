//! Disks and files of these tests, over the guards of testkit.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::guard::{self, ScratchDir};
use testkit::process;
use testkit::requests::Requests;

/// A directory on a real disk.
pub fn scratch() -> ScratchDir {
    ScratchDir::new("blockio").unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let printed = testkit::program::run(Command::new(program).args(arguments)).ok();
    printed.trim().to_owned()
}

/// Bytes without a period that a misplaced block could hide behind.
pub fn pattern(len: usize) -> Vec<u8> {
    testkit::noise(len, 1)
}

/// A file with these bytes, written back: so that direct reads find it on the disk.
pub fn file_with(path: &Path, bytes: &[u8]) -> PathBuf {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    path.to_owned()
}

/// A file of zeros that takes no space.
pub fn sparse_file(path: &Path, len: u64) -> PathBuf {
    File::create(path).unwrap().set_len(len).unwrap();
    path.to_owned()
}

/// An attached loop device.
#[derive(Debug)]
pub struct LoopDevice {
    pub path: PathBuf,
    guard: guard::LoopDevice,
}

impl LoopDevice {
    /// Records the requests that it gets, if this kernel can.
    pub fn record_requests(&self) -> Option<Requests> {
        Requests::record(&self.guard).unwrap()
    }

    /// Attaches `backing`, a file or a block device.
    pub fn attach(backing: &Path, sector_bytes: u32) -> LoopDevice {
        let guard = guard::LoopDevice::attach_with_blocks(backing, sector_bytes).unwrap();
        LoopDevice {
            path: guard.path().to_owned(),
            guard,
        }
    }

    /// Makes the device take over a changed size of its backing file.
    pub fn update_size(&self) {
        self.guard.update_size().unwrap();
    }

    /// As sysfs shows it.
    pub fn number(&self) -> hostdev::DeviceNumber {
        let (major, minor) = self.guard.number().unwrap();
        hostdev::DeviceNumber::new(major, minor)
    }
}

/// A mounted filesystem; its mount point is a directory of its own.
#[derive(Debug)]
pub struct Mount {
    // Unmounted before the mount point is removed.
    mount: guard::Mount,
    _point: ScratchDir,
}

impl Mount {
    /// Makes a filesystem on `device` and mounts it.
    pub fn format(kind: &str, device: &Path) -> Mount {
        let point = scratch();
        let mount = guard::Mount::format(kind, device, point.path()).unwrap();
        Mount { mount, _point: point }
    }

    /// Mounts with these arguments of mount(8).
    pub fn new(arguments: &[&str]) -> Mount {
        let point = scratch();
        let mut command = Command::new("mount");
        process::run(command.args(arguments).arg(point.path())).unwrap();
        let mount = guard::Mount::adopt(point.path());
        Mount { mount, _point: point }
    }

    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}
