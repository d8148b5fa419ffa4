//! Writing files and devices: what was appended is there, and a failed write never goes unnoticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::thread;

use blockio::{ErrorKind, SequentialWriter, WriteOptions, create_direct, open_exclusive};
use common::{LoopDevice, Mount, pattern, scratch, sparse_file};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn options(buffer_bytes: usize, depth: usize) -> WriteOptions {
    WriteOptions {
        buffer_bytes,
        depth,
        ..WriteOptions::default()
    }
}

fn create(directory: &Path, name: &str) -> File {
    create_direct(File::open(directory).unwrap().as_fd(), name).unwrap()
}

fn assert_same(left: &[u8], right: &[u8]) {
    let differs = left.iter().zip(right).position(|(left, right)| left != right);
    assert_eq!((left.len(), differs), (right.len(), None));
}

#[test]
fn a_file_ends_where_the_writer_did() {
    let scratch = scratch();
    for (number, len) in [0, 1, 511, 512, 4096, 4097, MIB, MIB + 1, 5 * MIB + 4095]
        .into_iter()
        .enumerate()
    {
        let (name, bytes) = (format!("f{number}"), pattern(len));
        let mut writer = SequentialWriter::new(create(scratch.path(), &name), &options(MIB, 4)).unwrap();
        writer.append(&bytes).unwrap();
        assert_eq!(writer.position(), len as u64);
        writer.finish().unwrap();
        assert_same(&fs::read(scratch.path().join(&name)).unwrap(), &bytes);
    }
}

#[test]
fn a_file_extended_ahead_ends_where_the_writer_did() {
    let scratch = scratch();
    for (number, len) in [0, 1, 4096, MIB + 1, 9 * MIB].into_iter().enumerate() {
        let (name, bytes) = (format!("f{number}"), pattern(len));
        let ahead = WriteOptions {
            extend_bytes: 4 << 20,
            ..options(MIB, 4)
        };
        let mut writer = SequentialWriter::new(create(scratch.path(), &name), &ahead).unwrap();
        writer.append(&bytes).unwrap();
        let len_now = || fs::metadata(scratch.path().join(&name)).unwrap().len();
        assert!(len < MIB || len_now() >= 4 << 20, "nothing was extended");
        writer.pad_to(4096).unwrap();
        writer.flush().unwrap();
        writer.trim().unwrap();
        assert_eq!(len_now(), len.next_multiple_of(4096) as u64);
        writer.append(&bytes).unwrap();
        writer.finish().unwrap();
        let mut expected = bytes.clone();
        expected.resize(len.next_multiple_of(4096), 0);
        expected.extend_from_slice(&bytes);
        assert_same(&fs::read(scratch.path().join(&name)).unwrap(), &expected);
    }
}

#[test]
fn a_padded_file_ends_on_a_block_with_zeros() {
    let scratch = scratch();
    for (number, len) in [0, 1, 4095, 4096, 4097, MIB - 1].into_iter().enumerate() {
        let (name, mut bytes) = (format!("f{number}"), pattern(len));
        let padded = WriteOptions {
            pad_tail: true,
            ..options(64 * KIB, 4)
        };
        let mut writer = SequentialWriter::new(create(scratch.path(), &name), &padded).unwrap();
        writer.append(&bytes).unwrap();
        writer.finish().unwrap();
        bytes.resize(len.next_multiple_of(4096), 0);
        assert_same(&fs::read(scratch.path().join(&name)).unwrap(), &bytes);
    }
}

#[test]
fn pieces_of_any_length_come_out_as_one_stream() {
    let scratch = scratch();
    let bytes = pattern(6 * MIB + 123);
    for depth in [1, 2, 8] {
        let name = format!("depth{depth}");
        let mut writer =
            SequentialWriter::new(create(scratch.path(), &name), &options(64 * KIB, depth)).unwrap();
        let (mut rest, mut len) = (&bytes[..], 1);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(len));
            writer.append(piece).unwrap();
            (rest, len) = (after, len * 7 % 200_003 + 1);
        }
        writer.finish().unwrap();
        assert_same(&fs::read(scratch.path().join(&name)).unwrap(), &bytes);
    }
}

#[test]
fn padding_and_skipping_leave_zeros_and_holes() {
    let scratch = scratch();
    let mut writer = SequentialWriter::new(create(scratch.path(), "f"), &options(64 * KIB, 2)).unwrap();
    writer.append(b"head").unwrap();
    let unaligned = writer.skip_to(1 << 20).unwrap_err();
    assert_eq!(
        (unaligned.kind(), unaligned.offset()),
        (ErrorKind::Invalid, Some(4))
    );
    writer.pad_to(4096).unwrap();
    assert_eq!(writer.position(), 4096);
    assert_eq!(
        writer.skip_to((8 << 20) + 1).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(writer.skip_to(0).unwrap_err().kind(), ErrorKind::Invalid);
    writer.skip_to(8 << 20).unwrap();
    writer.append(b"tail").unwrap();
    let file = writer.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), (8 << 20) + 4);
    let bytes = fs::read(scratch.path().join("f")).unwrap();
    assert_eq!((&bytes[..4], &bytes[8 << 20..]), (&b"head"[..], &b"tail"[..]));
    assert!(bytes[4..8 << 20].iter().all(|&byte| byte == 0));
    let hole = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole).unwrap();
    assert_eq!(hole, 4096);
}

#[test]
fn a_flush_makes_whole_blocks_readable_and_keeps_the_rest() {
    let scratch = scratch();
    let bytes = pattern(3 * MIB + 4096 + 100);
    let mut writer = SequentialWriter::new(create(scratch.path(), "f"), &options(MIB, 4)).unwrap();
    writer.append(&bytes).unwrap();
    writer.flush().unwrap();
    assert_same(
        &fs::read(scratch.path().join("f")).unwrap(),
        &bytes[..3 * MIB + 4096],
    );
    assert_eq!(writer.position(), bytes.len() as u64);
    writer.flush().unwrap();
    assert_eq!(writer.submit().unwrap_err().kind(), ErrorKind::Invalid);
    writer.append(&bytes).unwrap();
    writer.finish().unwrap();
    assert_same(
        &fs::read(scratch.path().join("f")).unwrap(),
        &[&bytes[..], &bytes[..]].concat(),
    );
}

#[test]
fn a_block_device_is_written_in_place_and_not_beyond_its_end() {
    let scratch = scratch();
    let file = sparse_file(&scratch.path().join("disk"), 4 << 20);
    for sector in [512, 4096] {
        let disk = LoopDevice::attach(&file, sector);
        let at = WriteOptions {
            start_offset: 1 << 20,
            ..options(256 * KIB, 4)
        };
        let bytes = pattern(2 * MIB);
        let mut writer = SequentialWriter::new(open_exclusive(&disk.path).unwrap(), &at).unwrap();
        assert_eq!(writer.alignment(), u64::from(sector));
        writer.append(&bytes).unwrap();
        let device = writer.finish().unwrap();
        device.sync_all().unwrap();
        let mut back = vec![0; 4 << 20];
        File::open(&disk.path)
            .unwrap()
            .read_exact_at(&mut back, 0)
            .unwrap();
        assert!(back[..MIB].iter().chain(&back[3 * MIB..]).all(|&byte| byte == 0));
        assert_same(&back[MIB..3 * MIB], &bytes);
        let mut writer = SequentialWriter::new(device, &at).unwrap();
        let refused = writer
            .append(&pattern(4 * MIB))
            .and_then(|()| writer.flush())
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        // Several writes beyond the end are in flight, and the first that fails is told: not always the first of them.
        assert!(
            (4 << 20..5 << 20).contains(&refused.offset().unwrap()),
            "{refused:?}"
        );
        drop(writer);
        fs::write(&file, vec![0; 4 << 20]).unwrap();
    }
}

#[test]
fn a_full_filesystem_is_reported_with_its_place_and_latched() {
    let scratch = scratch();
    let disk = LoopDevice::attach(&sparse_file(&scratch.path().join("disk"), 24 << 20), 512);
    let mount = Mount::format("ext4", &disk.path);
    let mut writer = SequentialWriter::new(create(mount.path(), "f"), &options(MIB, 4)).unwrap();
    let block = pattern(MIB);
    let error = (0..64)
        .find_map(|_| writer.append(&block).err())
        .expect("24 MiB do not take 64 MiB");
    assert_eq!(
        (error.kind(), error.raw_os_error()),
        (ErrorKind::NoSpace, Some(libc::ENOSPC))
    );
    assert!(error.path().is_some_and(|path| path.ends_with("f")), "{error:?}");
    let place = error.offset().unwrap();
    assert!(place > 0 && place < 24 << 20, "{place}");
    for again in [
        writer.append(&[0]),
        writer.flush(),
        writer.submit(),
        writer.skip_to(1 << 30),
        writer.pad_to(512),
    ] {
        let again = again.unwrap_err();
        assert_eq!((again.kind(), again.offset()), (ErrorKind::NoSpace, Some(place)));
    }
    assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn a_filesystem_without_o_direct_is_written_through_the_page_cache() {
    let mount = Mount::new(&["-t", "ramfs", "none"]);
    let bytes = pattern(2 * MIB + 17);
    let mut writer = SequentialWriter::new(create(mount.path(), "f"), &options(256 * KIB, 4)).unwrap();
    assert_eq!(writer.alignment(), 1);
    writer.append(&bytes).unwrap();
    writer.skip_to(3_000_001).unwrap();
    writer.append(b"end").unwrap();
    writer.finish().unwrap();
    let back = fs::read(mount.path().join("f")).unwrap();
    assert_same(&back[..bytes.len()], &bytes);
    assert_eq!((&back[3_000_001..], back[2_999_999]), (&b"end"[..], 0));
}

#[test]
fn a_writer_may_move_between_threads_with_writes_in_flight() {
    let scratch = scratch();
    let bytes = pattern(8 * MIB + 5);
    let mut writer = SequentialWriter::new(create(scratch.path(), "f"), &options(64 * KIB, 16)).unwrap();
    for piece in bytes.chunks(MIB) {
        let append = move || {
            writer.append(piece).unwrap();
            writer
        };
        writer = thread::scope(|scope| scope.spawn(append).join().unwrap());
    }
    writer.finish().unwrap();
    assert_same(&fs::read(scratch.path().join("f")).unwrap(), &bytes);
}

#[test]
fn a_dropped_writer_waits_for_its_writes() {
    let scratch = scratch();
    let bytes = pattern(4 * MIB);
    let mut writer = SequentialWriter::new(create(scratch.path(), "f"), &options(MIB, 8)).unwrap();
    writer.append(&bytes).unwrap();
    drop(writer);
    assert_same(&fs::read(scratch.path().join("f")).unwrap(), &bytes);
}

#[test]
fn creating_is_private_and_takes_no_existing_name() {
    let scratch = scratch();
    let file = create(scratch.path(), "f");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let directory = File::open(scratch.path()).unwrap();
    assert_eq!(
        create_direct(directory.as_fd(), "f").unwrap_err().kind(),
        ErrorKind::Exists
    );
    std::os::unix::fs::symlink("nowhere", scratch.path().join("link")).unwrap();
    assert_eq!(
        create_direct(directory.as_fd(), "link").unwrap_err().kind(),
        ErrorKind::Exists
    );
}

#[test]
fn a_mounted_device_is_busy() {
    let scratch = scratch();
    let disk = LoopDevice::attach(&sparse_file(&scratch.path().join("disk"), 24 << 20), 512);
    let mount = Mount::format("ext4", &disk.path);
    assert_eq!(open_exclusive(&disk.path).unwrap_err().kind(), ErrorKind::Busy);
    drop(mount);
    open_exclusive(&disk.path).unwrap();
}

#[test]
fn meaningless_options_are_refused() {
    let scratch = scratch();
    let fine = WriteOptions::default();
    for (number, wrong) in [
        WriteOptions {
            buffer_bytes: 0,
            ..fine.clone()
        },
        WriteOptions {
            buffer_bytes: 4095,
            ..fine.clone()
        },
        WriteOptions {
            depth: 0,
            ..fine.clone()
        },
        WriteOptions {
            start_offset: 512,
            ..fine.clone()
        },
    ]
    .into_iter()
    .enumerate()
    {
        let refused =
            SequentialWriter::new(create(scratch.path(), &format!("f{number}")), &wrong).map(|_| ());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{wrong:?}");
    }
}

#[test]
fn all_of_this_holds_without_io_uring() {
    testkit::sandbox::repeat_without_io_uring("all_of_this_holds_without_io_uring");
}
