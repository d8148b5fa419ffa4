//! Several threads on one overlay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::Zeroing;

const THREADS: u64 = 4;

#[test]
fn writers_of_disjoint_bytes_of_the_same_sectors_lose_nothing() {
    for in_memory in [0, 4] {
        let space = space(in_memory, 4);
        let size = 2 * CLUSTER - 100;
        let overlay = over(Flat::patterned(size), &space);
        let first = CLUSTER - 8192;
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let overlay = &overlay;
                // Each in an order of its own.
                let order = (0..4096).map(move |index| (index * 1021 + thread * 977) % 4096);
                scope.spawn(move || {
                    for index in order {
                        let at = first + index * THREADS + thread;
                        overlay.write_at(at, &[new_byte(at)]).unwrap();
                    }
                });
            }
        });
        let range = first..first + 4096 * THREADS;
        let expected = (0..size).map(|at| {
            if range.contains(&at) {
                new_byte(at)
            } else {
                pattern(at)
            }
        });
        assert_eq!(bytes_at(&overlay, 0, size as usize), expected.collect::<Vec<_>>());
    }
}

fn new_byte(at: u64) -> u8 {
    (at % 241) as u8
}

/// Readers see each sector as one of its writers left it, while others write, zero and trim it.
#[test]
fn no_sector_is_ever_read_as_a_mix_of_two_writes() {
    const RANGE: u64 = 16 * 512;
    for in_memory in [0, 64] {
        // More than the two clusters need: a slot that is being released is not free yet.
        let space = space(in_memory, 64);
        let overlay = over(Flat::sound(vec![9; 2 * CLUSTER_LEN]), &space);
        let (overlay, done) = (&overlay, &AtomicBool::new(false));
        let first = CLUSTER - RANGE / 2;
        thread::scope(|scope| {
            for writer in 1..4u64 {
                scope.spawn(move || {
                    let rounds = (0..).take_while(|_| !done.load(Ordering::Relaxed));
                    for round in rounds {
                        let at = first + (round * 7 + writer * 5) % 13 * 512;
                        change(overlay, round, at, writer as u8);
                    }
                });
            }
            let readers: Vec<_> = (0..2)
                .map(|_| scope.spawn(move || check_sectors(overlay, first, RANGE)))
                .collect();
            // Joined before the writers are told, so that a failure ends the test too.
            let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            done.store(true, Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok));
        });
        overlay.trim(0, 2 * CLUSTER).unwrap();
        assert_eq!(space.used_bytes(), 0, "no slot was lost");
    }
}

fn change(overlay: &Overlay, round: u64, at: u64, byte: u8) {
    let how = Zeroing {
        no_hole: round.is_multiple_of(2),
        fast: true,
    };
    match round % 5 {
        0 => overlay.write_zeroes(at, 1536, how).unwrap(),
        1 => overlay.trim(0, 2 * CLUSTER).unwrap(),
        _ => overlay.write_at(at, &[byte; 1536]).unwrap(),
    }
}

fn check_sectors(overlay: &Overlay, first: u64, length: u64) {
    for _ in 0..3000 {
        let mut buf = bytes_at(overlay, first, length as usize);
        match overlay.try_read_at(first, &mut buf[..512]) {
            Ready::Data => {}
            Ready::Zeros => buf[..512].fill(0),
            Ready::No => overlay.read_at(first, &mut buf[..512]).unwrap(),
        }
        for sector in buf.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "{sector:?}");
            assert!([0, 1, 2, 3, 9].contains(&sector[0]));
        }
    }
}
