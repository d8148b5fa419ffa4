//! Scratch files, loop devices and mounts that go away with their guard, also when a test fails.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A directory on a real disk: cargo's own, in the target directory.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are UTF-8")
}

/// Bytes without a period that a misplaced block could hide behind.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
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
}

impl LoopDevice {
    /// Attaches `backing`, a file or a block device.
    pub fn attach(backing: &Path, sector_bytes: u32) -> LoopDevice {
        let sector = sector_bytes.to_string();
        let path = run(
            "losetup",
            &["--direct-io=on", "-b", &sector, "-f", "--show", text(backing)],
        );
        LoopDevice {
            path: PathBuf::from(path),
        }
    }

    /// Makes the device take up a changed size of its backing file.
    pub fn update_size(&self) {
        run("losetup", &["-c", text(&self.path)]);
    }

    /// As sysfs shows it.
    pub fn number(&self) -> (u32, u32) {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap();
        let (major, minor) = text.trim().split_once(':').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", text(&self.path)]).status();
    }
}

/// A mounted filesystem; its mount point is a directory of its own.
#[derive(Debug)]
pub struct Mount {
    point: TempDir,
}

impl Mount {
    /// Makes a filesystem on `device` and mounts it.
    pub fn format(kind: &str, device: &Path) -> Mount {
        let force = if kind == "ext4" { "-F" } else { "-f" };
        run(&format!("mkfs.{kind}"), &["-q", force, text(device)]);
        Mount::new(&["-t", kind, text(device)])
    }

    pub fn new(arguments: &[&str]) -> Mount {
        let point = scratch();
        let arguments = [arguments, &[text(point.path())]].concat();
        run("mount", &arguments);
        Mount { point }
    }

    pub fn path(&self) -> &Path {
        self.point.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg(self.point.path())
            .status()
            .is_ok_and(|status| status.success());
        if !unmounted {
            let _ = Command::new("umount").arg("-l").arg(self.point.path()).status();
            // Something still holds a file there, long after it should have let go.
            assert!(
                std::thread::panicking(),
                "{} is busy",
                self.point.path().display()
            );
        }
    }
}
