//! How much space overlays take, and what comes back.

use std::fs::File;
use std::path::Path;

use super::*;
use crate::Zeroing;
use crate::overlay::read;

const TIB: u64 = 1 << 40;
const ALMOST_4_GIB: u64 = u32::MAX as u64;

const NO_HOLE: Zeroing = Zeroing {
    no_hole: true,
    fast: true,
};

#[test]
fn beyond_the_limit_there_is_no_space_until_an_overlay_is_dropped() {
    let space = space(1, 3);
    let base = Flat::patterned(8 * CLUSTER);
    let (first, second) = (over(Arc::clone(&base), &space), over(Arc::clone(&base), &space));
    for cluster in 0..3 {
        first.write_at(cluster * CLUSTER, &[1; 512]).unwrap();
    }
    assert_eq!(space.used_bytes(), space.limit_bytes());
    let error = second.write_at(5, b"x").unwrap_err();
    assert_eq!((error.kind, error.offset), (FailureKind::NoSpace, 5));
    assert!(error.message.contains("196608 bytes"), "{error}");
    assert_eq!(bytes_at(&second, 0, 512), bytes_at(&*base, 0, 512));
    assert!(second.is_untouched());
    first.write_at(CLUSTER, &vec![2; CLUSTER_LEN]).unwrap();
    drop(first);
    assert_eq!((space.used_bytes(), allocated(&space)), (0, 0));
    second.write_at(5, b"x").unwrap();
}

#[test]
fn a_write_that_runs_out_of_space_leaves_what_it_did_not_reach() {
    let space = space(1, 2);
    let overlay = over(Flat::patterned(4 * CLUSTER), &space);
    let data = vec![0xAA; 4 * CLUSTER_LEN - 1];
    assert_eq!(kind(overlay.write_at(1, &data)), Some(FailureKind::NoSpace));
    let now = bytes_at(&overlay, 0, 4 * CLUSTER_LEN);
    assert!(
        now.iter()
            .zip(0..)
            .all(|(&byte, at)| byte == 0xAA && at > 0 || byte == pattern(at))
    );
    assert_eq!(now[..2], [pattern(0), 0xAA]);
    assert_eq!(now[3 * CLUSTER_LEN], pattern(3 * CLUSTER));
}

#[test]
fn memory_is_used_first_and_then_the_file() {
    let space = space(2, 4);
    let overlay = over(Flat::patterned(8 * CLUSTER), &space);
    let length = || space.file().metadata().unwrap().len();
    overlay.write_at(5 * CLUSTER, &[1; 512]).unwrap();
    overlay.write_zeroes(CLUSTER, CLUSTER, NO_HOLE).unwrap();
    assert_eq!(length(), 0);
    overlay.write_at(2 * CLUSTER - 512, &[2; 1024]).unwrap();
    assert_eq!(length(), 512);
    overlay.write_zeroes(3 * CLUSTER, CLUSTER, NO_HOLE).unwrap();
    assert_eq!(length(), 2 * CLUSTER);
    assert!(allocated(&space) >= CLUSTER);
    assert_eq!(bytes_at(&overlay, 2 * CLUSTER - 512, 1024), [2; 1024]);
}

#[test]
fn a_cluster_without_data_gives_its_space_back() {
    let space = space(1, 8);
    let overlay = over(Flat::patterned(8 * CLUSTER), &space);
    overlay.write_at(0, &vec![1; 6 * CLUSTER_LEN]).unwrap();
    assert_eq!(space.used_bytes(), 6 * CLUSTER);
    let before = allocated(&space);
    overlay.trim(2 * CLUSTER - 1, 2 * CLUSTER + 2).unwrap();
    assert_eq!(space.used_bytes(), 4 * CLUSTER);
    assert_eq!(allocated(&space), before - 2 * CLUSTER);
    overlay.trim(4 * CLUSTER, CLUSTER - 512).unwrap();
    assert_eq!(space.used_bytes(), 4 * CLUSTER, "one sector is left");
    overlay
        .write_zeroes(5 * CLUSTER - 512, 512, Zeroing::default())
        .unwrap();
    overlay.write_zeroes(0, CLUSTER, Zeroing::default()).unwrap();
    assert_eq!(space.used_bytes(), 2 * CLUSTER);
    let expected = [
        vec![0; CLUSTER_LEN],
        vec![1; CLUSTER_LEN],
        vec![0; 3 * CLUSTER_LEN],
        vec![1; CLUSTER_LEN],
    ];
    assert_eq!(bytes_at(&overlay, 0, 6 * CLUSTER_LEN), expected.concat());
    overlay.write_at(0, &vec![3; 6 * CLUSTER_LEN]).unwrap();
    assert_eq!(bytes_at(&overlay, 0, 6 * CLUSTER_LEN), vec![3; 6 * CLUSTER_LEN]);
}

#[test]
fn allocated_zeros_keep_their_space() {
    let space = space(0, 2);
    let overlay = over(Flat::patterned(8 * CLUSTER), &space);
    overlay.write_zeroes(100, 2 * CLUSTER - 100, NO_HOLE).unwrap();
    assert!(allocated(&space) >= 2 * CLUSTER);
    let reported = overlay.extents(0, 2 * CLUSTER).unwrap();
    assert_eq!(reported, [extent(512, 0), extent(2 * CLUSTER - 512, ZERO)]);
    let third = overlay.write_zeroes(0, 3 * CLUSTER, NO_HOLE);
    assert_eq!(kind(third), Some(FailureKind::NoSpace));
    assert_eq!(
        kind(overlay.write_at(2 * CLUSTER, b"x")),
        Some(FailureKind::NoSpace)
    );
    overlay.write_at(700, &vec![1; CLUSTER_LEN]).unwrap();
    assert_eq!(
        bytes_at(&overlay, 99, 602),
        [vec![pattern(99)], vec![0; 600], vec![1]].concat()
    );
}

#[test]
fn an_allocation_that_cannot_succeed_takes_nothing_first() {
    let space = space(1, 3);
    let overlay = over(Arc::new(Nothing(16 * TIB)), &space);
    for length in [3 * CLUSTER + 1, ALMOST_4_GIB, 16 * TIB] {
        let result = overlay.write_zeroes(0, length, NO_HOLE);
        assert_eq!(kind(result), Some(FailureKind::NoSpace));
    }
    assert!(overlay.is_untouched());
    assert_eq!(space.used_bytes(), 0);
}

/// The last sector of each 4 GiB is zeroed in part: these are all that needs space.
#[test]
fn zeroing_all_over_a_large_disk_takes_one_entry_for_each_range() {
    let space = space(0, 8192);
    let overlay = over(Arc::new(Nothing(16 * TIB)), &space);
    let step = 1 << 32;
    for at in (0..16 * TIB).step_by(step) {
        overlay
            .write_zeroes(at, ALMOST_4_GIB, Zeroing::default())
            .unwrap();
    }
    assert_eq!(read(&overlay.zeros).len(), 4096);
    assert_eq!(space.used_bytes(), 4096 * CLUSTER);
    for at in (0..16 * TIB).step_by(step) {
        overlay.trim(at + 1, ALMOST_4_GIB).unwrap();
    }
    assert_eq!((read(&overlay.zeros).len(), space.used_bytes()), (1, 0));
    overlay.trim(0, 16 * TIB).unwrap();
    assert_eq!((read(&overlay.zeros).len(), space.used_bytes()), (1, 0));
    let reported = overlay.extents(0, 16 * TIB).unwrap();
    assert_eq!(reported, [extent(16 * TIB, NO_BYTES)]);
}

#[test]
fn zeros_here_and_there_on_a_large_disk_run_out_of_entries() {
    let space = space(0, 4);
    let overlay = over(Arc::new(Nothing(16 * TIB)), &space);
    let zero = |at| overlay.write_zeroes(at, 512, Zeroing::default());
    let places = (0..16 * TIB).step_by(1 << 20);
    let made = places.clone().take_while(|&at| zero(at).is_ok()).count();
    assert_eq!(made as u64, read(&overlay.zeros).len());
    assert!((1000..100_000).contains(&made));
    for at in places.skip(made).take(100_000) {
        overlay.trim(at, 512).unwrap();
    }
    assert_eq!(made as u64, read(&overlay.zeros).len());

    // A cluster with a slot remembers its zeros there, and keeps it.
    let last = 16 * TIB - CLUSTER;
    overlay.write_at(last, &[1; 1024]).unwrap();
    zero(last).unwrap();
    overlay.trim(last + 512, 512).unwrap();
    assert_eq!(space.used_bytes(), CLUSTER);
    assert_eq!(bytes_at(&overlay, last, 1024), [0; 1024]);

    // Another overlay of the space has as little room, until this one goes.
    let other = over(Arc::new(Nothing(TIB)), &space);
    assert_eq!(
        kind(other.write_zeroes(0, 512, Zeroing::default())),
        Some(FailureKind::NoSpace)
    );
    drop(overlay);
    assert_eq!(space.used_bytes(), 0);
    let many = |overlay: &Overlay, count| {
        for at in 0..count {
            overlay.write_zeroes(at << 20, 512, Zeroing::default()).unwrap();
        }
    };
    many(&other, made as u64);
    other.trim(0, TIB).unwrap();
    many(&over(Arc::new(Nothing(TIB)), &space), made as u64 - 1);
}

/// `/dev/full` stands for a file on a file system that has no space left.
#[test]
fn a_full_file_system_is_no_space_and_loses_nothing() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let space = Arc::new(Space::over(full, Path::new("/full"), CLUSTER, 4 * CLUSTER).unwrap());
    let overlay = over(Flat::patterned(4 * CLUSTER), &space);
    overlay.write_at(0, &[1; 700]).unwrap();
    let error = overlay.write_at(CLUSTER - 100, &[2; 5000]).unwrap_err();
    assert_eq!((error.kind, error.offset), (FailureKind::NoSpace, CLUSTER));
    assert!(error.message.contains("/full"), "{error}");
    assert_eq!(space.used_bytes(), CLUSTER, "the slot was released");
    let how = Zeroing {
        fast: false,
        ..NO_HOLE
    };
    assert_eq!(
        kind(overlay.write_zeroes(CLUSTER, 4096, how)),
        Some(FailureKind::NoSpace)
    );
    assert_eq!(
        kind(overlay.write_zeroes(0, 8192, NO_HOLE)),
        Some(FailureKind::NotFast)
    );
    let expected: Vec<u8> = (0..4 * CLUSTER)
        .map(|at| match at {
            0..700 => 1,
            at if (CLUSTER - 100..CLUSTER).contains(&at) => 2,
            at => pattern(at),
        })
        .collect();
    assert_eq!(bytes_at(&overlay, 0, 4 * CLUSTER_LEN), expected);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = Space::new(Path::new("/nowhere/at/all"), 0, CLUSTER).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Io);
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let error = Space::new(&std::env::temp_dir(), 0, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
}
