//! Reading devices and files: what arrives is what is there, and what cannot be read is an error with its place.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use blockio::{
    AlignedBuf, Buffers, Delivery, Device, ErrorKind, IoMethod, IoPriority, Pace, Ranges, ReadManner,
    ReadOptions, Reader, SequentialReader,
};
use common::{LoopDevice, Mount, file_with, pattern, run, scratch, sparse_file};
use crossbeam_channel::unbounded;
use testkit::process::wait_for;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn options(chunk_bytes: usize, depth: usize, buffers: usize) -> ReadOptions {
    ReadOptions {
        chunk_bytes,
        depth,
        buffers,
        ..ReadOptions::default()
    }
}

/// Reads the ranges and puts the chunks into place, in a copy of the device; every chunk must come once.
fn read_ranges(device: &Device, options: &ReadOptions) -> Vec<u8> {
    let all = Ranges::from(0..device.size_bytes());
    let ranges = options.ranges.as_ref().unwrap_or(&all);
    let mut bytes = vec![0xEE; usize::try_from(device.size_bytes()).unwrap()];
    // Where each chunk lies, by its index.
    let mut expected: Vec<Option<Range<u64>>> = Vec::new();
    for range in ranges.iter() {
        let starts = (range.start..range.end).step_by(options.chunk_bytes);
        expected.extend(starts.map(|start| Some(start..range.end.min(start + options.chunk_bytes as u64))));
    }
    for chunk in SequentialReader::new(device, options).unwrap() {
        let chunk = chunk.unwrap();
        let index = usize::try_from(chunk.index()).unwrap();
        let place = chunk.offset()..chunk.offset() + chunk.len() as u64;
        assert_eq!(expected[index].take(), Some(place), "chunk {index}");
        let begin = usize::try_from(chunk.offset()).unwrap();
        bytes[begin..begin + chunk.len()].copy_from_slice(&chunk);
    }
    assert!(expected.iter().all(Option::is_none), "a chunk is missing");
    bytes
}

fn assert_same(left: &[u8], right: &[u8]) {
    let differs = left.iter().zip(right).position(|(left, right)| left != right);
    assert_eq!((left.len(), differs), (right.len(), None));
}

#[test]
fn regular_files_of_any_size_are_read_whole() {
    let scratch = scratch();
    for size in [1, 511, 512, 513, 4095, 4096, MIB + 1, 16 * MIB + 513] {
        let bytes = pattern(size);
        let device = Device::open(&file_with(&scratch.path().join("file.img"), &bytes)).unwrap();
        assert_eq!((device.size_bytes(), device.name()), (size as u64, "file"));
        assert!(
            device.is_direct(),
            "the scratch directory's filesystem takes O_DIRECT"
        );
        assert_same(&read_ranges(&device, &ReadOptions::default()), &bytes);
        assert_same(&read_ranges(&device, &options(64 * KIB, 3, 5)), &bytes);
        device.check_unchanged().unwrap();
    }
}

#[test]
fn loop_devices_are_read_with_either_sector_size() {
    let scratch = scratch();
    let bytes = pattern(5 * MIB + 4096);
    let file = file_with(&scratch.path().join("disk"), &bytes);
    for sector in [512, 4096] {
        let disk = LoopDevice::attach(&file, sector);
        let device = Device::open(&disk.path).unwrap();
        assert_eq!(
            (device.logical_block_size(), device.alignment()),
            (sector, u64::from(sector))
        );
        assert_eq!(device.device_number(), Some(disk.number()));
        assert_eq!(Some(device.name()), disk.path.file_name().unwrap().to_str());
        assert_same(&read_ranges(&device, &ReadOptions::default()), &bytes);
        assert_same(&read_ranges(&device, &options(4 * KIB, 32, 64)), &bytes);
        device.check_unchanged().unwrap();
        assert_eq!(device.identity().backing_file.as_deref(), file.to_str());
        assert!(device.identity().diskseq.is_some());
    }
}

#[test]
fn a_disk_that_ends_within_a_page_is_read_whole() {
    let scratch = scratch();
    let bytes = pattern(3 * MIB + 3 * 512);
    let disk = LoopDevice::attach(&file_with(&scratch.path().join("disk"), &bytes), 512);
    let device = Device::open(&disk.path).unwrap();
    assert_same(&read_ranges(&device, &options(MIB, 4, 8)), &bytes);
    let mut tail = AlignedBuf::new(513);
    device.read_at(device.size_bytes() - 513, &mut tail).unwrap();
    assert_same(&tail, &bytes[bytes.len() - 513..]);
}

/// No kernel path reads such a tail, the page cache neither.
#[test]
fn a_disk_that_ends_within_a_logical_block_is_an_error_there() {
    let scratch = scratch();
    let bytes = pattern(3 * MIB + 3 * 512);
    let disk = LoopDevice::attach(&file_with(&scratch.path().join("disk"), &bytes), 4096);
    let device = Device::open(&disk.path).unwrap();
    let items: Vec<_> = SequentialReader::new(&device, &options(MIB, 4, 8))
        .unwrap()
        .collect();
    let error = items.into_iter().find_map(Result::err).unwrap();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(3 << 20)));
    assert!(
        error
            .to_string()
            .contains("last 1536 bytes are no whole 4096-byte logical block"),
        "{error}"
    );
    let mut tail = AlignedBuf::new(4096 + 1536);
    assert_eq!(
        device.read_salvaging((3 << 20) - 4096, &mut tail).unwrap(),
        vec![Range {
            start: 3 << 20,
            end: (3 << 20) + 1536
        }]
    );
    assert_same(&tail[..4096], &bytes[3 * MIB - 4096..3 * MIB]);
}

#[test]
fn ranges_are_read_to_their_odd_ends_and_nothing_beside_them() {
    let scratch = scratch();
    let bytes = pattern(MIB);
    let device = Device::open(&file_with(&scratch.path().join("f"), &bytes)).unwrap();
    let ranges = [
        vec![8192..200_001, 200_001..300_001],
        vec![0..4096, 65_536..200_000, 262_144..1_048_576],
        vec![1_044_480..1_048_576, 0..1],
        (0..16).map(|i| i * 65_536..i * 65_536 + 4096).collect(),
        vec![],
    ];
    for ranges in ranges {
        let mut expected = vec![0xEE; MIB];
        for range in &ranges {
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            expected[range.clone()].copy_from_slice(&bytes[range]);
        }
        let ranges: Ranges = ranges.into_iter().collect();
        for (depth, buffers) in [(4, 4), (1, 1), (16, 3)] {
            let options = ReadOptions {
                ranges: Some(ranges.clone()),
                ..options(64 * KIB, depth, buffers)
            };
            assert_same(&read_ranges(&device, &options), &expected);
        }
    }
}

/// Reads ranges of a device with a reader that lives on; returns the bytes in order and how it ended.
fn read_with(reader: &mut Reader<u32>, device: &Device, ranges: &Ranges) -> (Vec<u8>, blockio::Result<()>) {
    let (sender, deliveries) = unbounded();
    reader
        .read(device, ranges, ReadManner::default(), 7, &sender)
        .unwrap();
    let mut chunks = BTreeMap::new();
    loop {
        let (tag, delivery) = deliveries.recv().unwrap();
        assert_eq!(tag, 7);
        match delivery {
            Delivery::Chunk(chunk) => drop(chunks.insert(chunk.index(), chunk.to_vec())),
            Delivery::End(end) => return (chunks.into_values().flatten().collect(), end),
        }
    }
}

#[test]
fn one_reader_reads_one_device_after_another_and_outlives_their_errors() {
    let scratch = scratch();
    let bytes = pattern(8 * MIB + 513);
    let file = file_with(&scratch.path().join("disk"), &bytes);
    let other = Device::open(&file_with(&scratch.path().join("other"), &bytes[..MIB])).unwrap();
    let disk = LoopDevice::attach(&file, 512);
    let buffers = Buffers::new(3, 64 * KIB).unwrap();
    let mut reader = Reader::new(&buffers, 8).unwrap();
    for round in 0..3 {
        let device = Device::open(&disk.path).unwrap();
        let (read, end) = read_with(&mut reader, &device, &Ranges::from(0..device.size_bytes()));
        assert!(end.is_ok());
        assert_same(&read, &bytes[..read.len()]);
        let (read, end) = read_with(
            &mut reader,
            &other,
            &[0..4096, 65_536..MIB as u64].into_iter().collect(),
        );
        assert!(end.is_ok());
        assert_same(&read, &[&bytes[..4096], &bytes[65_536..MIB]].concat());
        // It has shrunk since it was opened: an error, and every buffer is free again.
        let shrunk = Device::open(&file_with(&scratch.path().join("shrunk"), &bytes)).unwrap();
        file_with(&scratch.path().join("shrunk"), &bytes[..300_000]);
        let (_, end) = read_with(&mut reader, &shrunk, &Ranges::from(0..MIB as u64));
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ShortRead, "round {round}");
    }
    let refused = reader.read(
        &other,
        &Ranges::from(0..1 << 30),
        ReadManner::default(),
        7,
        &unbounded().0,
    );
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_reader_whose_chunks_are_not_taken_leaves_the_others_their_buffers() {
    let scratch = scratch();
    let bytes = pattern(4 * MIB);
    let device = Device::open(&file_with(&scratch.path().join("f"), &bytes)).unwrap();
    let buffers = Buffers::new(8, 64 * KIB).unwrap();
    buffers.divide(2);
    let (mut slow, mut fast) = (
        Reader::new(&buffers, 8).unwrap(),
        Reader::new(&buffers, 8).unwrap(),
    );
    let (sender, stuck) = unbounded();
    let all = Ranges::from(0..device.size_bytes());
    slow.read(&device, &all, ReadManner::default(), 1, &sender)
        .unwrap();
    let first = stuck.recv().unwrap();
    // Nobody frees what the first reader delivers, and the second one reads all of the disk.
    let (read, end) = read_with(&mut fast, &device, &all);
    assert!(end.is_ok());
    assert_same(&read, &bytes);
    slow.stop();
    let end = stuck.iter().find_map(|(_, delivery)| match delivery {
        Delivery::End(end) => Some(end),
        Delivery::Chunk(_) => None,
    });
    assert!(end.unwrap().is_ok(), "a stop is no error");
    drop(first);
}

#[test]
fn meaningless_options_are_refused() {
    let scratch = scratch();
    let device = Device::open(&file_with(&scratch.path().join("f"), &pattern(MIB))).unwrap();
    let fine = ReadOptions::default();
    for wrong in [
        ReadOptions {
            ranges: Some((1..4096).into()),
            ..fine.clone()
        },
        ReadOptions {
            ranges: Some((2 << 20..3 << 20).into()),
            ..fine.clone()
        },
        ReadOptions {
            ranges: Some((0..(1 << 20) + 1).into()),
            ..fine.clone()
        },
        ReadOptions {
            chunk_bytes: 0,
            ..fine.clone()
        },
        ReadOptions {
            chunk_bytes: 4097,
            ..fine.clone()
        },
        ReadOptions {
            chunk_bytes: 2 << 30,
            ..fine.clone()
        },
        ReadOptions {
            depth: 0,
            ..fine.clone()
        },
        ReadOptions {
            buffers: 0,
            ..fine.clone()
        },
    ] {
        let refused = SequentialReader::new(&device, &wrong).map(|_| ());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{wrong:?}");
    }
}

#[test]
fn read_at_takes_any_offset_and_length() {
    let scratch = scratch();
    let bytes = pattern(200_001);
    let device = Device::open(&file_with(&scratch.path().join("f"), &bytes)).unwrap();
    for (offset, len) in [
        (0, 1),
        (4096, 4096),
        (4095, 2),
        (100_000, 50_001),
        (196_608, 3393),
        (200_001, 0),
    ] {
        let mut buf = AlignedBuf::new(len);
        device.read_at(offset as u64, &mut buf).unwrap();
        assert_same(&buf, &bytes[offset..offset + len]);
    }
    let past = device.read_at(200_000, &mut AlignedBuf::new(2)).unwrap_err();
    assert_eq!((past.kind(), past.offset()), (ErrorKind::Invalid, Some(200_000)));
}

#[test]
fn a_shrinking_device_is_an_error_and_never_zeros() {
    let scratch = scratch();
    let bytes = pattern(32 * MIB);
    let file = file_with(&scratch.path().join("disk"), &bytes);
    let disk = LoopDevice::attach(&file, 512);
    let device = Device::open(&disk.path).unwrap();
    // Two buffers, both held: the reader stands still at 2 MiB while the device shrinks.
    let mut reader = SequentialReader::new(&device, &options(MIB, 2, 2)).unwrap();
    let held = [reader.next().unwrap().unwrap(), reader.next().unwrap().unwrap()];
    let end = 8 * MIB + 1536;
    OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(end as u64)
        .unwrap();
    disk.update_size();
    let changed = device.check_unchanged().unwrap_err();
    assert_eq!(changed.kind(), ErrorKind::Changed);
    assert!(
        changed.to_string().contains(&format!("{} to {end}", 32 * MIB)),
        "{changed}"
    );
    drop(held);
    let mut failure = None;
    for item in reader {
        match item {
            Ok(chunk) => {
                assert!(failure.is_none(), "a chunk after the error");
                let begin = usize::try_from(chunk.offset()).unwrap();
                assert!(begin + chunk.len() <= end);
                assert_same(&chunk, &bytes[begin..begin + chunk.len()]);
            }
            Err(error) => assert!(failure.replace(error).is_none(), "two errors"),
        }
    }
    let failure = failure.expect("the missing end is an error");
    assert_eq!(
        (failure.kind(), failure.offset()),
        (ErrorKind::ShortRead, Some(end as u64))
    );
    assert_eq!(failure.path(), Some(disk.path.as_path()));
    let tail = device
        .read_at(8 * MIB as u64, &mut AlignedBuf::new(MIB))
        .unwrap_err();
    assert_eq!(
        (tail.kind(), tail.offset()),
        (ErrorKind::ShortRead, Some(end as u64))
    );
}

#[test]
fn a_shrinking_file_is_an_error() {
    let scratch = scratch();
    let file = file_with(&scratch.path().join("f"), &pattern(2 * MIB));
    let device = Device::open(&file).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(MIB as u64 + 700)
        .unwrap();
    let failure = SequentialReader::new(&device, &options(64 * KIB, 1, 1))
        .unwrap()
        .find_map(Result::err)
        .unwrap();
    assert_eq!(
        (failure.kind(), failure.offset()),
        (ErrorKind::ShortRead, Some(MIB as u64 + 700))
    );
    assert_eq!(device.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
}

/// A loop device whose backing file ends early fails reads past that end with EIO, like a bad sector.
fn disk_with_bad_end(scratch: &Path, bytes: &[u8], good: usize) -> LoopDevice {
    let file = file_with(&scratch.join("disk"), bytes);
    let disk = LoopDevice::attach(&file, 512);
    OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(good as u64)
        .unwrap();
    disk
}

#[test]
fn an_unreadable_sector_is_named_exactly() {
    let scratch = scratch();
    let (bytes, good) = (pattern(8 * MIB), 3 * MIB + 9 * 4096);
    let disk = disk_with_bad_end(scratch.path(), &bytes, good);
    let device = Device::open(&disk.path).unwrap();
    let (mut read, mut failure) = (0, None);
    for item in SequentialReader::new(&device, &ReadOptions::default()).unwrap() {
        match item {
            Ok(chunk) => {
                assert!(failure.is_none(), "a chunk after the error");
                let begin = usize::try_from(chunk.offset()).unwrap();
                assert_same(&chunk, &bytes[begin..begin + chunk.len()]);
                read += chunk.len();
            }
            Err(error) => assert!(failure.replace(error).is_none(), "two errors"),
        }
    }
    let failure = failure.expect("unreadable sectors are an error");
    assert_eq!(
        (failure.kind(), failure.offset()),
        (ErrorKind::Io, Some(good as u64)),
        "{failure}"
    );
    assert_eq!(failure.raw_os_error(), Some(libc::EIO));
    assert!(failure.to_string().contains(disk.path.to_str().unwrap()));
    assert_eq!(read, 3 * MIB, "what lies before the bad chunk is delivered");
    device.check_unchanged().unwrap();
}

#[test]
fn salvaging_reads_around_what_is_unreadable() {
    let scratch = scratch();
    let (bytes, good) = (pattern(2 * MIB), MIB + 3 * 4096);
    let disk = disk_with_bad_end(scratch.path(), &bytes, good);
    let device = Device::open(&disk.path).unwrap();
    let mut buf = AlignedBuf::new(64 * KIB);
    buf.fill(0xEE);
    let bad = device.read_salvaging(MIB as u64, &mut buf).unwrap();
    assert_eq!(
        bad,
        vec![Range {
            start: good as u64,
            end: (MIB + 64 * KIB) as u64
        }]
    );
    assert_same(&buf[..3 * 4096], &bytes[MIB..good]);
    assert!(buf[3 * 4096..].iter().all(|&byte| byte == 0));
    let error = device.read_at(MIB as u64, &mut buf).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(good as u64)));
    assert_eq!(device.read_salvaging(0, &mut buf).unwrap(), []);
    assert_same(&buf, &bytes[..64 * KIB]);
}

#[test]
fn dropping_the_reader_early_stops_it_and_leaves_chunks_intact() {
    let scratch = scratch();
    let bytes = pattern(24 * MIB);
    let file = file_with(&scratch.path().join("disk"), &bytes);
    let disk = LoopDevice::attach(&file, 512);
    let device = Device::open(&disk.path).unwrap();
    for taken in 0..12 {
        let mut reader = SequentialReader::new(&device, &options(256 * KIB, 16, 32)).unwrap();
        let chunks: Vec<_> = reader.by_ref().take(taken).map(Result::unwrap).collect();
        assert_eq!(chunks.len(), taken);
        drop(reader);
        for chunk in chunks {
            let begin = usize::try_from(chunk.offset()).unwrap();
            assert_same(&chunk, &bytes[begin..begin + chunk.len()]);
        }
    }
}

/// Whether every thread of this process that reads a disk sleeps at the moment; those of other tests are among them.
fn all_readers_sleep() -> bool {
    fs::read_dir("/proc/self/task").unwrap().all(|task| {
        let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
        // One that ends while it is looked at is no reader that waits.
        let stat = stat.unwrap_or_default();
        let reads = stat.contains("(blockio-read)");
        !reads || stat.contains(") S ")
    })
}

#[test]
fn a_reader_that_waits_for_buffers_can_be_dropped_or_abandoned() {
    let scratch = scratch();
    let device = Device::open(&sparse_file(&scratch.path().join("f"), 8 << 20)).unwrap();
    for abandon in [false, true] {
        let mut reader = SequentialReader::new(&device, &options(MIB, 1, 1)).unwrap();
        let held = reader.next().unwrap().unwrap();
        let receiver = reader.receiver().clone();
        wait_for("the reader waits", all_readers_sleep);
        if abandon {
            reader.abandon()
        } else {
            drop(reader)
        }
        assert!(
            receiver.recv().is_err(),
            "the channel closes while the only buffer is held"
        );
        assert_eq!(held.len(), MIB);
    }
}

#[test]
fn many_consumers_share_the_chunks() {
    let scratch = scratch();
    let bytes = pattern(24 * MIB + 77);
    let device = Device::open(&file_with(&scratch.path().join("f"), &bytes)).unwrap();
    let reader = SequentialReader::new(&device, &options(64 * KIB, 8, 12)).unwrap();
    let copy = Mutex::new(vec![0xEE; bytes.len()]);
    thread::scope(|scope| {
        for _ in 0..5 {
            let (receiver, copy) = (reader.receiver().clone(), &copy);
            scope.spawn(move || {
                for chunk in receiver {
                    let chunk = chunk.unwrap();
                    let begin = usize::try_from(chunk.offset()).unwrap();
                    copy.lock().unwrap()[begin..begin + chunk.len()].copy_from_slice(&chunk);
                }
            });
        }
    });
    assert_same(&copy.into_inner().unwrap(), &bytes);
}

#[test]
fn what_is_no_disk_is_refused_by_kind_and_without_hanging() {
    let scratch = scratch();
    let kind = |path: &Path| Device::open(path).unwrap_err().kind();
    let fifo = scratch.path().join("fifo");
    run("mkfifo", &[fifo.to_str().unwrap()]);
    assert_eq!(kind(&fifo), ErrorKind::WrongType);
    assert_eq!(kind(scratch.path()), ErrorKind::WrongType);
    assert_eq!(kind(Path::new("/dev/null")), ErrorKind::WrongType);
    assert_eq!(kind(&scratch.path().join("missing")), ErrorKind::NotFound);
    assert_eq!(
        kind(&sparse_file(&scratch.path().join("empty"), 0)),
        ErrorKind::Empty
    );
    let error = Device::open(&fifo).unwrap_err();
    assert!(
        error.to_string().contains("a FIFO") && error.path() == Some(fifo.as_path()),
        "{error}"
    );
}

#[test]
fn a_disk_without_bytes_is_empty_and_links_are_followed() {
    let scratch = scratch();
    let disk = LoopDevice::attach(&sparse_file(&scratch.path().join("disk"), 1 << 20), 512);
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&disk.path, &link).unwrap();
    let device = Device::open(&link).unwrap();
    assert_eq!(device.device_number(), Some(disk.number()), "links are followed");
    OpenOptions::new()
        .write(true)
        .open(scratch.path().join("disk"))
        .unwrap()
        .set_len(0)
        .unwrap();
    disk.update_size();
    assert_eq!(Device::open(&disk.path).unwrap_err().kind(), ErrorKind::Empty);
}

#[test]
fn a_filesystem_without_o_direct_is_read_through_the_page_cache() {
    let mount = Mount::new(&["-t", "ramfs", "none"]);
    let bytes = pattern(3 * MIB + 17);
    let device = Device::open(&file_with(&mount.path().join("f"), &bytes)).unwrap();
    assert!(!device.is_direct());
    assert_same(&read_ranges(&device, &options(256 * KIB, 4, 6)), &bytes);
}

#[test]
fn reads_have_the_priority_that_the_pace_says_from_the_next_one_on() {
    let scratch = scratch();
    let bytes = pattern(8 * MIB);
    let disk = LoopDevice::attach(&file_with(&scratch.path().join("disk"), &bytes), 512);
    let device = Device::open(&disk.path).unwrap();
    let requests = disk.record_requests();
    read_ranges(&device, &ReadOptions::default());
    let pace = Arc::new(Pace::new(0).with_priority(IoPriority::Idle));
    let options = ReadOptions {
        pace: Some(pace.clone()),
        ..options(64 * KIB, 1, 1)
    };
    let mut reader = SequentialReader::new(&device, &options).unwrap();
    // No other read begins before the only buffer is free again.
    let first = reader.next().unwrap().unwrap();
    pace.set_priority(IoPriority::BestEffort(7));
    drop(first);
    assert!(reader.all(|chunk| chunk.is_ok()));
    pace.set_priority(IoPriority::Inherited);
    read_ranges(&device, &options);
    let Some(requests) = requests else { return };
    let seen = requests.read_priorities().unwrap();
    // What a process without a priority has depends on the kernel.
    assert_eq!(seen[1..], ["idle,0,0", "be,0,7", &seen[0]]);
    assert!(!seen[1..3].contains(&seen[0]));
}

/// The only test that differs in the process without io_uring: that process would otherwise prove nothing.
#[test]
fn the_method_is_the_one_that_the_kernel_allows() {
    let is_refused = testkit::sandbox::is_without_io_uring();
    match blockio::io_method() {
        IoMethod::Uring => assert!(!is_refused),
        IoMethod::Threads(reason) => assert!(
            is_refused && reason.contains("io_uring is forbidden here"),
            "{reason}"
        ),
    }
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
