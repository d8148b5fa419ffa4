//! A disk with one bad sector in the middle: nbdkit serves it, nbdfuse makes it a file, a loop device a disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::ops::Range;

use blockio::{
    AlignedBuf, Buffers, Chunk, Delivery, Device, ErrorKind, OnReadError, Ranges, ReadManner, ReadOptions,
    Reader, SequentialReader,
};
use common::{LoopDevice, pattern, scratch};
use crossbeam_channel::unbounded;
use testkit::failing::{BadPlace, FailingFile};
use testkit::guard::ScratchDir;

const DISK_BYTES: usize = 8 << 20;
/// The fifth sector of the sixth MiB.
const BAD: Range<u64> = Range {
    start: (5 << 20) + 4 * 512,
    end: (5 << 20) + 5 * 512,
};

/// A disk of which [`BAD`] cannot be read, in reads of more than `tolerated` bytes.
struct FailingDisk {
    disk: LoopDevice,
    _file: FailingFile,
    _scratch: ScratchDir,
}

impl FailingDisk {
    fn new(bytes: &[u8], tolerated: u64) -> FailingDisk {
        let scratch = scratch();
        let bad = BadPlace {
            bytes: BAD,
            tolerated,
        };
        let file = FailingFile::serve(scratch.path(), bytes, &[bad]).unwrap();
        FailingDisk {
            disk: LoopDevice::attach(file.path(), 512),
            _file: file,
            _scratch: scratch,
        }
    }

    fn open(&self) -> Device {
        Device::open(&self.disk.path).unwrap()
    }
}

#[test]
fn the_first_bad_sector_is_named_and_the_rest_salvaged() {
    let bytes = pattern(DISK_BYTES);
    let disk = FailingDisk::new(&bytes, 0);
    let device = disk.open();
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
    let bytes = pattern(DISK_BYTES);
    let disk = FailingDisk::new(&bytes, 512);
    let device = disk.open();
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
fn a_reader_that_defers_or_salvages_continues_behind_a_bad_sector() {
    let bytes = pattern(DISK_BYTES);
    let disk = FailingDisk::new(&bytes, 0);
    let device = disk.open();
    let chunk = 5 << 20..6 << 20;
    for (on_error, unreadable) in [(OnReadError::Defer, chunk), (OnReadError::Salvage, BAD)] {
        let mut read = vec![0xEE; DISK_BYTES];
        let mut found = Vec::new();
        for chunk in read_all(&device, on_error) {
            let begin = usize::try_from(chunk.offset()).unwrap();
            read[begin..begin + chunk.len()].copy_from_slice(&chunk);
            found.extend_from_slice(chunk.unreadable());
        }
        assert_eq!(found, std::slice::from_ref(&unreadable), "{on_error:?}");
        let mut expected = bytes.clone();
        let at = |byte| usize::try_from(byte).unwrap();
        expected[at(unreadable.start)..at(unreadable.end)].fill(0);
        assert!(read == expected, "{on_error:?}");
    }
}

/// The chunks of a device.
fn read_all(device: &Device, on_error: OnReadError) -> Vec<Chunk> {
    let mut reader = Reader::new(&Buffers::new(DISK_BYTES >> 20, 1 << 20).unwrap(), 4).unwrap();
    let manner = ReadManner { pace: None, on_error };
    let (sender, deliveries) = unbounded();
    let all = Ranges::from(0..device.size_bytes());
    reader.read(device, &all, manner, (), &sender).unwrap();
    let mut chunks = Vec::new();
    for (_, delivery) in &deliveries {
        match delivery {
            Delivery::Chunk(chunk) => chunks.push(chunk),
            Delivery::End(end) => {
                end.unwrap();
                break;
            }
        }
    }
    chunks
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
