//! A disk with one bad sector in the middle: nbdkit serves it, nbdfuse makes it a file, a loop device a disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use blockio::{AlignedBuf, Device, ErrorKind, ReadOptions, SequentialReader};
use common::{LoopDevice, file_with, pattern, scratch, sparse_file};
use testkit::process::wait_for;

const DISK_BYTES: usize = 8 << 20;
/// The fifth sector of the sixth MiB.
const BAD: Range<u64> = Range {
    start: (5 << 20) + 4 * 512,
    end: (5 << 20) + 5 * 512,
};

/// A file whose reads fail where they touch [`BAD`] and are longer than `tolerated` bytes.
struct FailingFile {
    path: PathBuf,
    server: Child,
}

impl FailingFile {
    fn serve(directory: &Path, bytes: &[u8], tolerated: u64) -> FailingFile {
        let content = file_with(&directory.join("content"), bytes);
        let script = directory.join("plugin.sh");
        fs::write(&script, plugin(&content, tolerated)).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o700)).unwrap();
        let path = sparse_file(&directory.join("served"), 0);
        let server = Command::new("nbdfuse")
            .arg("-r")
            .arg(&path)
            .args(["[", "nbdkit", "--exit-with-parent", "sh"])
            .arg(&script)
            .arg("]")
            .spawn()
            .expect("this test needs nbdfuse and nbdkit");
        let file = FailingFile { path, server };
        file.wait_until_served();
        file
    }

    fn wait_until_served(&self) {
        wait_for("nbdfuse and nbdkit to serve", || {
            fs::metadata(&self.path).unwrap().len() == DISK_BYTES as u64
        });
    }
}

impl Drop for FailingFile {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Shell script for nbdkit's sh plugin: `$3` is the count and `$4` the offset of a read.
fn plugin(content: &Path, tolerated: u64) -> String {
    let Range { start, end } = BAD;
    format!(
        r#"#!/bin/sh
case "$1" in
get_size) echo {DISK_BYTES} ;;
pread)
    if [ "$3" -gt {tolerated} ] && [ "$4" -lt {end} ] && [ $(($4 + $3)) -gt {start} ]; then
        echo "EIO bad sector" >&2
        exit 1
    fi
    dd if={content} iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
*) exit 2 ;;
esac
"#,
        content = content.display()
    )
}

#[test]
fn the_first_bad_sector_is_named_and_the_rest_salvaged() {
    let scratch = scratch();
    let bytes = pattern(DISK_BYTES);
    let file = FailingFile::serve(scratch.path(), &bytes, 0);
    let disk = LoopDevice::attach(&file.path, 512);
    let device = Device::open(&disk.path).unwrap();
    let error = SequentialReader::new(&device, &ReadOptions::default())
        .unwrap()
        .find_map(Result::err)
        .unwrap();
    assert_eq!(
        (error.kind(), error.offset()),
        (ErrorKind::Io, Some(BAD.start)),
        "{error}"
    );
    let mut buf = AlignedBuf::new(64 << 10);
    assert_eq!(device.read_salvaging(5 << 20, &mut buf).unwrap(), vec![BAD]);
    let (bad, expected) = (4 * 512..5 * 512, &bytes[5 << 20..(5 << 20) + (64 << 10)]);
    assert!(buf[bad.clone()].iter().all(|&byte| byte == 0));
    assert!(buf[..bad.start] == expected[..bad.start] && buf[bad.end..] == expected[bad.end..]);
}

#[test]
fn what_can_be_read_sector_by_sector_is_no_error() {
    let scratch = scratch();
    let bytes = pattern(DISK_BYTES);
    let file = FailingFile::serve(scratch.path(), &bytes, 512);
    let disk = LoopDevice::attach(&file.path, 512);
    let device = Device::open(&disk.path).unwrap();
    // Small chunks: the plugin starts a shell for each sector of the failing one.
    let options = ReadOptions {
        chunk_bytes: 64 << 10,
        ..ReadOptions::default()
    };
    let mut read = 0;
    for chunk in SequentialReader::new(&device, &options).unwrap() {
        let chunk = chunk.unwrap();
        let begin = usize::try_from(chunk.offset()).unwrap();
        assert!(
            *chunk == bytes[begin..begin + chunk.len()],
            "the chunk at {begin}"
        );
        read += chunk.len();
    }
    assert_eq!(read, DISK_BYTES);
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
