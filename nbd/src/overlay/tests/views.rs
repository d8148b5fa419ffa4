//! What is seen through an overlay.

use super::*;
use crate::Zeroing;
use crate::overlay::write;

const NO_HOLE: Zeroing = Zeroing {
    no_hole: true,
    fast: false,
};

#[test]
fn what_was_written_is_read_and_the_base_stays_as_it_was() {
    let base = Flat::patterned(3 * CLUSTER);
    let overlay = over(Arc::clone(&base), &space(4, 4));
    assert!(overlay.is_untouched());
    overlay.write_at(CLUSTER - 3, b"across").unwrap();
    assert!(!overlay.is_untouched());
    assert_eq!(bytes_at(&overlay, CLUSTER - 3, 6), b"across");
    assert_eq!(
        bytes_at(&overlay, CLUSTER + 3, 700),
        bytes_at(&*base, CLUSTER + 3, 700)
    );
    assert_eq!(bytes_at(&overlay, 0, 100), bytes_at(&*base, 0, 100));
    assert!(base.bytes.iter().zip(0..).all(|(&byte, at)| byte == pattern(at)));
}

#[test]
fn a_write_into_a_damaged_sector_fails_with_the_error_of_the_base_and_changes_nothing() {
    let base = Arc::new(Flat {
        bytes: vec![7; 2 * CLUSTER_LEN],
        damaged: 70_000..70_001,
    });
    let space = space(4, 4);
    let overlay = over(base, &space);
    for (offset, length) in [(69_633, 10), (60_000, 9_700), (69_999, 5_000), (70_000, 1)] {
        let error = overlay.write_at(offset, &vec![1; length]).unwrap_err();
        assert_eq!(error, ExportError::io(70_000, "cluster 7 is damaged"));
        let error = overlay.write_zeroes(offset, length as u64, Zeroing::default());
        assert_eq!(kind(error), Some(FailureKind::Io));
        assert_eq!(
            kind(overlay.write_zeroes(offset, length as u64, NO_HOLE)),
            Some(FailureKind::Io)
        );
    }
    assert!(overlay.is_untouched());
    assert_eq!(space.used_bytes(), 0);
    assert_eq!(bytes_at(&overlay, 0, 70_000), vec![7; 70_000]);
}

#[test]
fn a_write_of_whole_sectors_heals_damaged_ones() {
    let base = Arc::new(Flat {
        bytes: vec![7; 2 * CLUSTER_LEN],
        damaged: 69_632..70_656,
    });
    let overlay = over(base, &space(4, 4));
    overlay.write_at(69_632, &[1; 512]).unwrap();
    assert_eq!(
        bytes_at(&overlay, 69_000, 1144),
        [vec![7; 632], vec![1; 512]].concat()
    );
    assert_eq!(
        kind(overlay.read_at(70_144, &mut [0])),
        Some(FailureKind::Io),
        "what was not written is still damaged"
    );
    overlay.trim(70_144, 512).unwrap();
    assert_eq!(
        bytes_at(&overlay, 70_144, 600),
        [vec![0; 512], vec![7; 88]].concat()
    );
    overlay.write_at(70_150, b"x").unwrap();
}

#[test]
fn a_short_last_sector_is_covered_by_what_reaches_the_end() {
    let base = Arc::new(Flat {
        bytes: vec![7; 1300],
        damaged: 1100..1200,
    });
    let overlay = over(base, &space(4, 4));
    assert_eq!(kind(overlay.write_at(1025, &[1; 275])), Some(FailureKind::Io));
    overlay.write_at(1024, &[1; 276]).unwrap();
    assert_eq!(
        bytes_at(&overlay, 1000, 300),
        [vec![7; 24], vec![1; 276]].concat()
    );
    overlay.trim(1024, 276).unwrap();
    assert_eq!(
        bytes_at(&overlay, 1000, 300),
        [vec![7; 24], vec![0; 276]].concat()
    );
}

#[test]
fn extents_tell_what_has_space() {
    let mut bytes = vec![7; 4 * CLUSTER_LEN];
    bytes[3 * CLUSTER_LEN..].fill(0);
    let overlay = over(Flat::sound(bytes), &space(4, 4));
    let half = CLUSTER / 2;
    overlay.write_at(0, &vec![1; half as usize]).unwrap();
    overlay.write_zeroes(CLUSTER, CLUSTER, NO_HOLE).unwrap();
    overlay
        .write_zeroes(2 * CLUSTER, half, Zeroing::default())
        .unwrap();
    let expected = [
        extent(half, 0),
        extent(half, DATA_BELOW),
        extent(CLUSTER, ZERO),
        extent(half, NO_BYTES),
    ];
    // The base tells in pieces of 1000 bytes.
    let reported = all_extents(&overlay, 0..4 * CLUSTER);
    assert_eq!(reported[..4], expected);
    assert_eq!(reported[4].flags, DATA_BELOW);
    assert!(reported[4].length.abs_diff(half) < 1000 && reported[5].length.abs_diff(CLUSTER) < 1000);
    assert_eq!((reported.len(), reported[5].flags), (6, NO_BYTES));
    let reported = overlay.allocation(half - 1, 2).unwrap();
    assert_eq!(reported, [extent(1, 0), extent(1, DATA_BELOW)]);
    // Clients are not told: they would take it for zeros.
    let reported = overlay.extents(half - 1, 2).unwrap();
    assert!(
        reported.iter().all(|reported| reported.flags == 0),
        "{reported:?}"
    );
    let reported = overlay.extents(4 * CLUSTER - 700, 700).unwrap();
    assert_eq!(reported, [extent(700, NO_BYTES)]);
    overlay.trim(0, 4 * CLUSTER).unwrap();
    assert_eq!(
        overlay.extents(0, 4 * CLUSTER).unwrap(),
        [extent(4 * CLUSTER, NO_BYTES)]
    );
}

#[test]
fn an_extent_is_told_even_where_the_base_cannot_tell_what_follows() {
    struct Mute;
    impl Export for Mute {
        fn size_bytes(&self) -> u64 {
            2 * CLUSTER
        }
        fn read_at(&self, offset: u64, _: &mut [u8]) -> Result<(), ExportError> {
            Err(ExportError::io(offset, "mute"))
        }
        fn extents(&self, offset: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
            Err(ExportError::io(offset, "mute"))
        }
    }
    let overlay = over(Arc::new(Mute), &space(4, 4));
    overlay.write_at(512, &[1; 512]).unwrap();
    assert_eq!(overlay.extents(512, CLUSTER).unwrap(), [extent(512, 0)]);
    assert_eq!(
        overlay.extents(0, CLUSTER).unwrap_err(),
        ExportError::io(0, "mute")
    );
}

#[test]
fn extents_of_much_that_was_written_come_in_answers_of_bounded_size() {
    let size = 4096 * CLUSTER;
    let space = space(0, 8192);
    let overlay = over(Arc::new(Nothing(size)), &space);
    for cluster in 0..600 {
        overlay.write_at(cluster * 3 * CLUSTER + 512, &[1; 1024]).unwrap();
        for at in [8, 10, 12, 14, 16, 18] {
            overlay
                .write_zeroes((cluster * 3 + 1) * CLUSTER + at * 512, 512, NO_HOLE)
                .unwrap();
        }
    }
    let (mut at, mut runs, mut answers) = (0, 0, 0);
    while at < size {
        let reported = overlay.extents(at, size - at).unwrap();
        assert!(reported.len() <= 4096);
        assert!(reported.iter().all(|reported| reported.length > 0));
        at += reported.iter().map(|reported| reported.length).sum::<u64>();
        runs += reported
            .iter()
            .filter(|reported| reported.flags & HOLE == 0)
            .count();
        answers += 1;
    }
    assert_eq!((at, runs), (size, 600 * 7));
    assert!(answers > 1);
}

#[test]
fn extents_leave_out_nothing_where_all_clusters_lie_in_one_shard() {
    let size = 64 * 700 * CLUSTER;
    let overlay = over(Arc::new(Nothing(size)), &space(0, 700));
    for index in 0..700 {
        overlay.write_at(index * 64 * CLUSTER, &[1; 512]).unwrap();
    }
    let reported = all_extents(&overlay, 0..size);
    assert_eq!(
        reported.iter().filter(|reported| reported.flags == 0).count(),
        700
    );
    assert_eq!(reported.len(), 1400);
}

#[test]
fn a_read_that_must_not_wait_takes_what_lies_in_memory_and_asks_the_base_for_what_is_its() {
    let overlay = over(Flat::patterned(8 * CLUSTER), &space(1, 4));
    let mut buf = [0xEE; 512];
    assert_eq!(overlay.try_read_at(100, &mut buf), Ready::Data);
    assert_eq!(buf[0], pattern(100));
    overlay.write_at(0, &[1; 1024]).unwrap();
    overlay.write_at(CLUSTER, &[2; 1024]).unwrap();
    overlay
        .write_zeroes(2 * CLUSTER, CLUSTER, Zeroing::default())
        .unwrap();
    assert_eq!(overlay.try_read_at(300, &mut buf), Ready::Data);
    assert_eq!(buf, [1; 512]);
    assert_eq!(overlay.try_read_at(800, &mut buf), Ready::No, "of two kinds");
    assert_eq!(overlay.try_read_at(CLUSTER, &mut buf), Ready::No, "in the file");
    assert_eq!(overlay.try_read_at(2 * CLUSTER + 9, &mut buf), Ready::Zeros);
    assert_eq!(
        overlay.try_read_at(3 * CLUSTER - 100, &mut buf),
        Ready::No,
        "in two clusters"
    );
    for untouched in [2048, CLUSTER + 2048, 4 * CLUSTER] {
        assert_eq!(overlay.try_read_at(untouched, &mut buf), Ready::Data);
        assert_eq!(buf[..], bytes_at(&overlay, untouched, 512));
    }
}

#[test]
fn a_read_that_must_not_wait_does_not_wait_for_locks() {
    let overlay = over(Flat::patterned(8 * CLUSTER), &space(4, 4));
    overlay.write_at(0, &[1; 1024]).unwrap();
    let mut buf = [0xEE; 512];
    {
        let _held = write(overlay.shard(0));
        assert_eq!(overlay.try_read_at(0, &mut buf), Ready::No);
    }
    {
        let _held = write(&overlay.zeros);
        assert_eq!(overlay.try_read_at(CLUSTER, &mut buf), Ready::No);
        assert_eq!(overlay.try_read_at(0, &mut buf), Ready::Data);
    }
}

#[test]
fn other_contexts_are_not_answered_since_they_would_tell_of_the_base() {
    let overlay = over(Flat::patterned(CLUSTER), &space(1, 1));
    assert_eq!(
        kind(overlay.status("smc:changed", 0, 512)),
        Some(FailureKind::Invalid)
    );
}
