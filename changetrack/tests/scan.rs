//! The scan: what it pushes, and how it ends, on files and a loop device, into a real store.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use blockio::Device;
use changetrack::{Error, ErrorKind, PipelineOptions};
use common::{
    Bench, MIB, Progress, Synced, assert_pushed, changed, differing, disk_content, noise, options, scan,
    watched,
};
use imagefmt::{ClusterSize, ClusterUpdate, Codec, Geometry};
use std::error::Error as StdError;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use testkit::guard::{LoopDevice, ScratchDir};

/// Bytes of the chunks in which a scan reads: it stops between two of them.
const CHUNK: usize = MIB;

/// The error of type `T` in the chain of causes.
fn cause<T: StdError + 'static>(error: &Error) -> &T {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return found;
        }
        source = error.source();
    }
    panic!("no such cause in {error:?}")
}

fn refused() -> imagefmt::Result<()> {
    Err(imagefmt::Error::new(
        imagefmt::ErrorKind::Io,
        "no space left, says the test",
    ))
}

/// Scans for every size, with few and many workers and buffers: full, unchanged, changed.
fn finds_what_differs(cluster_size: ClusterSize) {
    let ways = [
        options(0, 1, 1, 1),
        options(4, 2, 8, 1),
        options(4, 4, 3, 2),
        options(0, 4, 16, 5),
        options(4, 1, 4, 3),
        options(4, 2, 8, 32),
    ];
    for size in [1, 511, MIB - 1, MIB + 1, 33 * MIB + 513] {
        for (way, seed) in ways.iter().zip(1..) {
            let first = disk_content(size, seed);
            let second = changed(&first, seed);
            let level = way.compress_level;
            let bench = Bench::new(cluster_size, &first);
            let full = bench.sync(way);
            assert_pushed(&full, &[], &first, cluster_size, level);
            let codecs: Vec<Codec> = full.pushed.iter().map(|pushed| pushed.codec).collect();
            assert!(
                !codecs.contains(&Codec::Null),
                "zeros are not new on an empty disk"
            );
            assert!(size < 2 * MIB || codecs.contains(&Codec::Zstd) == (level > 0));

            let same = bench.sync(way);
            assert_pushed(&same, &first, &first, cluster_size, level);
            assert!(same.pushed.is_empty());
            let record = &same.result.unwrap().disks[0];
            assert_eq!((record.compared_bytes, record.dirty_bytes), (size as u64, 0));

            bench.write(&second);
            let incremental = bench.sync(way);
            assert_pushed(&incremental, &first, &second, cluster_size, level);
            let record = &incremental.result.as_ref().unwrap().disks[0];
            assert_eq!(
                (record.compared_bytes, record.dirty_bytes),
                incremental.counters()
            );
            assert!(bench.newest() == second, "{size} bytes, {way:?}");
        }
    }
}

#[test]
fn clusters_of_16k() {
    watched("clusters-16k", || finds_what_differs(ClusterSize::K16));
}

#[test]
fn clusters_of_64k() {
    watched("clusters-64k", || finds_what_differs(ClusterSize::K64));
}

#[test]
fn clusters_of_256k() {
    watched("clusters-256k", || finds_what_differs(ClusterSize::K256));
}

#[test]
fn grown_disk_is_compared_with_what_was_there() {
    watched("grown", || {
        for cluster_size in [ClusterSize::K16, ClusterSize::K64, ClusterSize::K256] {
            let mut before = disk_content(MIB - 1, 3);
            let bench = Bench::new(cluster_size, &before);
            bench.sync(&options(4, 2, 8, 4)).result.unwrap();
            for size in [MIB + 1, 5 * MIB + 7, 70 * MIB + 513] {
                // The first of what is new is zero: the short last cluster differs by its length alone.
                let mut now = before.clone();
                now.resize(now.len() + 4096.min(size - now.len()), 0);
                now.extend(noise(100_000.min(size - now.len()), 4));
                now.resize(size, 0);
                bench.write(&now);
                let grown = bench.sync(&options(4, 2, 8, 4));
                assert_pushed(&grown, &before, &now, cluster_size, 4);
                assert!(bench.newest() == now);
                before = now;
            }
        }
    });
}

#[test]
fn loop_device_is_a_disk_like_any_other() {
    watched("loop", || {
        let size = 33 * MIB + 512;
        let first = disk_content(size, 5);
        let second = changed(&first, 6);
        let mut bench = Bench::new(ClusterSize::K64, &first);
        let device = LoopDevice::attach(bench.disk()).unwrap();
        bench.set_disk(device.path());
        let way = PipelineOptions::for_disks(1);
        let full = bench.sync(&way);
        assert_pushed(&full, &[], &first, ClusterSize::K64, way.compress_level);
        let file = File::options().write(true).open(device.path()).unwrap();
        file.write_all_at(&second, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let incremental = bench.sync(&way);
        assert_pushed(
            &incremental,
            &first,
            &second,
            ClusterSize::K64,
            way.compress_level,
        );
        assert!(bench.newest() == second);
        // Fails if the scans left it open.
        device.detach().unwrap();
    });
}

/// A scan without a store that stops or fails; `seen` counts the clusters pushed.
fn scan_noise(
    size: usize,
    way: &PipelineOptions,
    progress: &Progress,
    seen: &mut usize,
    stop_at: usize,
) -> Error {
    let scratch = ScratchDir::new("smc-scan").unwrap();
    let path = scratch.join("disk");
    fs::write(&path, noise(size, 7)).unwrap();
    let device = Device::open(&path).unwrap();
    let geometry = Geometry::new(size as u64, ClusterSize::K16).unwrap();
    let mut push = |_: &imagefmt::ClusterUpdate<'_>| {
        if *seen == stop_at {
            progress.cancel.store(true, Ordering::Relaxed);
        }
        *seen += 1;
        Ok(())
    };
    scan(&device, geometry, None, way, progress, &mut push).unwrap_err()
}

#[test]
fn cancel_ends_it_before_the_next_chunk() {
    watched("cancel", || {
        let clusters_per_chunk = CHUNK / ClusterSize::K16.byte_len();
        for way in [options(0, 1, 1, 1), options(4, 2, 8, 2), options(4, 4, 8, 32)] {
            for stop_at in [0, 70, 600, 1900] {
                let (progress, mut seen) = (Progress::default(), 0);
                let error = scan_noise(32 * MIB, &way, &progress, &mut seen, stop_at);
                assert_eq!(error.kind(), ErrorKind::Canceled, "{error:?}");
                let chunks = stop_at / clusters_per_chunk + 1;
                assert_eq!(seen, chunks * clusters_per_chunk, "it continues after the stop");
                let compared = progress.compared_bytes.load(Ordering::Relaxed);
                assert_eq!(compared, (chunks * CHUNK) as u64);
            }
            let (progress, mut seen) = (Progress::default(), 0);
            progress.cancel.store(true, Ordering::Relaxed);
            let error = scan_noise(2 * MIB, &way, &progress, &mut seen, usize::MAX);
            assert_eq!((error.kind(), seen), (ErrorKind::Canceled, 0));
        }
    });
}

#[test]
fn canceled_image_leaves_nothing_and_the_next_one_is_whole() {
    watched("cancel-store", || {
        let content = disk_content(9 * MIB + 5, 8);
        let bench = Bench::new(ClusterSize::K64, &content);
        for _ in 0..3 {
            let canceled = bench.sync_with(&options(4, 2, 8, 3), &mut |count, progress| {
                progress.cancel.store(count >= 20, Ordering::Relaxed);
                Ok(())
            });
            assert_eq!(canceled.result.unwrap_err().kind(), ErrorKind::Canceled);
            bench.assert_images(0);
        }
        let full = bench.sync(&options(4, 2, 8, 3));
        assert_pushed(&full, &[], &content, ClusterSize::K64, 4);
        full.result.unwrap();
        bench.assert_images(1);
        assert!(bench.newest() == content);
    });
}

#[test]
fn failed_push_is_an_error_of_the_store_and_the_last_push() {
    watched("push-fails", || {
        let content = disk_content(12 * MIB + 5, 9);
        let all = differing(&[], &content, ClusterSize::K16).len();
        for way in [options(0, 1, 1, 1), options(4, 2, 8, 2), options(4, 4, 8, 32)] {
            let bench = Bench::new(ClusterSize::K16, &content);
            for at in [0, all / 2, all - 1] {
                let mut calls = 0;
                let failed = bench.sync_with(&way, &mut |count, _| {
                    calls += 1;
                    if count == at { refused() } else { Ok(()) }
                });
                assert_eq!(calls, at + 1, "clusters are pushed after a failure");
                let (compared, dirty) = failed.counters();
                assert!(compared < content.len() as u64 && dirty <= compared);
                let error = failed.result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Store, "{error:?}");
                let source: &imagefmt::Error = cause(&error);
                assert_eq!(source.kind(), imagefmt::ErrorKind::Io);
                assert!(source.to_string().contains("says the test"), "{source}");
                bench.assert_images(0);
            }
            bench.sync(&way).result.unwrap();
            assert!(bench.newest() == content);
        }
    });
}

#[test]
fn panicking_push_ends_the_scan() {
    watched("push-panics", || {
        let bench = Bench::new(ClusterSize::K64, &noise(16 * MIB, 10));
        for way in [options(4, 1, 1, 1), options(0, 4, 8, 32)] {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                bench.sync_with(&way, &mut |count, _| {
                    assert!(count < 40, "the test wants it so");
                    Ok(())
                })
            }));
            assert!(panicked.is_err());
            bench.assert_images(0);
        }
    });
}

/// Syncs a disk that is cut to `left` bytes as soon as cluster number `at` has been pushed.
fn sync_while_it_shrinks(bench: &Bench, way: &PipelineOptions, at: usize, left: usize) -> Synced {
    let file = File::options().write(true).open(bench.disk()).unwrap();
    bench.sync_with(way, &mut |count, _| {
        if count == at {
            file.set_len(left as u64).unwrap();
        }
        Ok(())
    })
}

#[test]
fn disk_that_shrinks_is_never_a_short_image() {
    watched("shrinks", || {
        let content = noise(33 * MIB + 513, 11);
        let all = differing(&[], &content, ClusterSize::K64).len();
        let bench = Bench::new(ClusterSize::K64, &[0]);
        for way in [options(0, 1, 1, 1), options(4, 2, 8, 2), options(4, 4, 8, 64)] {
            // The last one is cut when all of it has been read.
            for (at, left) in [
                (0, 5 * MIB),
                (3, 0),
                (100, 20 * MIB + 5),
                (0, content.len() - 1),
                (all - 1, MIB),
            ] {
                bench.write(&content);
                let shrunk = sync_while_it_shrinks(&bench, &way, at, left);
                let error = shrunk.result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Device, "{at}, {left}: {error:?}");
                let source: &blockio::Error = cause(&error);
                assert!(
                    matches!(
                        source.kind(),
                        blockio::ErrorKind::ShortRead | blockio::ErrorKind::Changed
                    ),
                    "{source:?}"
                );
                bench.assert_images(0);
            }
        }
    });
}

#[test]
fn disk_smaller_than_its_geometry_is_refused() {
    watched("too-small", || {
        let scratch = ScratchDir::new("smc-scan").unwrap();
        let device = Device::open(&scratch.sparse_file("disk", MIB as u64).unwrap()).unwrap();
        let geometry = Geometry::new(MIB as u64 + 1, ClusterSize::K64).unwrap();
        let scanned = scan(
            &device,
            geometry,
            None,
            &PipelineOptions::for_disks(1),
            &Progress::default(),
            &mut |_: &ClusterUpdate<'_>| Ok(()),
        );
        assert_eq!(scanned.unwrap_err().kind(), ErrorKind::Device);
    });
}

#[test]
fn clusters_of_a_damaged_leaf_are_stored_anew() {
    watched("damaged-leaf", || {
        let content = noise(33 * MIB + 513, 12);
        for way in [options(0, 1, 1, 1), options(4, 2, 8, 2), options(4, 4, 8, 32)] {
            let bench = Bench::new(ClusterSize::K16, &content);
            bench.sync(&options(0, 2, 8, 8)).result.unwrap();
            // The leaf follows the last of its clusters, aligned: here that of the fifth leaf, behind 20 MiB.
            let last = &content[(5 * 256 - 1) * 16384..][..16384];
            let layer = &bench.layers()[0];
            let mut bytes = fs::read(layer).unwrap();
            let found = (0..bytes.len()).find(|&at| bytes[at..].starts_with(last));
            let end = found.expect("noise is stored as it is") + last.len();
            let leaf = end + bytes[end..].iter().position(|&byte| byte != 0).unwrap();
            bytes[leaf + 500] ^= 1;
            fs::write(layer, bytes).unwrap();

            let repaired = bench.sync(&way);
            assert_eq!(repaired.indices(), (4 * 256..5 * 256).collect::<Vec<u64>>());
            let disk = &repaired.result.unwrap().disks[0];
            assert_eq!((disk.repaired_clusters, disk.dirty_bytes), (256, 0));
            assert!(bench.newest() == content);
            assert!(bench.sync(&way).pushed.is_empty(), "it is stored anew once");
        }
    });
}

#[test]
fn slow_store_and_few_buffers_do_not_deadlock() {
    watched("slow", || {
        let content = disk_content(9 * MIB + 513, 13);
        for way in [
            options(4, 1, 1, 1),
            options(4, 4, 8, 1),
            options(0, 4, 1, 2),
            options(0, 2, 64, 3),
        ] {
            let bench = Bench::new(ClusterSize::K64, &content);
            let slow = bench.sync_with(&way, &mut |_, _| {
                thread::sleep(Duration::from_millis(3));
                Ok(())
            });
            assert_pushed(&slow, &[], &content, ClusterSize::K64, way.compress_level);
            slow.result.unwrap();
            assert!(bench.newest() == content);
        }
    });
}

#[test]
fn options_that_make_no_sense_are_refused() {
    watched("options", || {
        let bench = Bench::new(ClusterSize::K64, &noise(MIB, 14));
        for way in [options(4, 1, 0, 1), options(4, 1, 1, 0)] {
            let error = bench.sync(&way).result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Device, "{error:?}");
            bench.assert_images(0);
        }
    });
}
