//! What a scan costs its process: memory while it runs, and no thread after it.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use blockio::Device;
use changetrack::{Error, Progress, ScanOptions, Scanned, Sink, scan};
use common::{MIB, noise, options, watched};
use imagefmt::{ClusterSize, ClusterUpdate, Geometry};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::process::wait_until;

/// One at a time: they look at the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// Bytes of a line of /proc/self/status that counts KiB.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Names of the threads that belong to a scan in a thread called `own`, that one excluded.
fn threads(own: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // One that ends meanwhile has no name any more.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut names: Vec<String> = names
        .map(|name| name.trim_end().to_owned())
        .filter(|name| [own, "scan", "blockio-read"].contains(&name.as_str()) || name.starts_with("iou-"))
        .collect();
    let place = names.iter().position(|name| name == own).unwrap();
    names.remove(place);
    names
}

fn scan_file(
    path: &Path,
    way: &ScanOptions,
    progress: &Progress,
    push: &mut dyn Sink,
) -> Result<Scanned, Error> {
    let device = Device::open(path).unwrap();
    let geometry = Geometry::new(device.size_bytes(), ClusterSize::K64).unwrap();
    scan(&device, geometry, None, way, progress, push)
}

#[test]
fn memory_stays_bounded() {
    watched("memory", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = ScratchDir::new("smc-scan").unwrap();
        let path = scratch.sparse_file("disk", 512 * MIB as u64).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        // Noise and text, 144 MiB of them all over the disk.
        for at in (0..512).step_by(32) {
            let noise = noise(6 * MIB, at + 1);
            file.write_all_at(&noise, at * MIB as u64).unwrap();
            file.write_all_at(&vec![b'a'; 3 * MIB], (at + 10) * MIB as u64)
                .unwrap();
        }
        file.sync_all().unwrap();
        // From here on the kernel measures the peak anew.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS:");
        let (progress, mut dirty) = (Progress::default(), 0);
        let scanned = scan_file(
            &path,
            &options(4, 4, 8, 32),
            &progress,
            &mut |update: &ClusterUpdate<'_>| {
                dirty += 65536;
                assert!(!update.digest.is_null());
                Ok(())
            },
        );
        assert_eq!(scanned.unwrap().compared_bytes, 512 * MIB as u64);
        assert_eq!(dirty, 144 * MIB as u64);
        assert_eq!(progress.dirty_bytes.load(Ordering::Relaxed), dirty);
        let (peak, after) = (status("VmHWM:"), status("VmRSS:"));
        let limit = before + 128 * MIB;
        assert!(
            peak < limit && after < limit,
            "{before} to {after}, at most {peak}"
        );
        assert!(
            peak > before + 16 * MIB,
            "the peak is not measured: {before}, {peak}"
        );
    });
}

#[test]
fn no_thread_outlives_a_scan() {
    watched("threads", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = ScratchDir::new("smc-scan").unwrap();
        let path = scratch.join("disk");
        fs::write(&path, noise(24 * MIB, 1)).unwrap();
        for end in ["whole", "cancel", "failure", "shrink"] {
            let (progress, mut count, mut running) = (Progress::default(), 0, 0);
            let scanned = scan_file(
                &path,
                &options(4, 3, 8, 4),
                &progress,
                &mut |_: &ClusterUpdate<'_>| {
                    count += 1;
                    if count == 100 {
                        running = threads("threads").len();
                        match end {
                            "cancel" => progress.cancel.store(true, Ordering::Relaxed),
                            "failure" => return Err(imagefmt::Error::damaged("says the test")),
                            "shrink" => File::options()
                                .write(true)
                                .open(&path)
                                .unwrap()
                                .set_len(9)
                                .unwrap(),
                            _ => {}
                        }
                    }
                    Ok(())
                },
            );
            assert_eq!(scanned.is_ok(), end == "whole", "{scanned:?}");
            assert!(running >= 4, "three workers and a reader, and {running} are seen");
            // The kernel lets a thread that was joined be seen for a moment.
            let gone = wait_until(Duration::from_secs(5), || threads("threads").is_empty());
            assert!(gone.is_ok(), "{end} leaves {:?}", threads("threads"));
        }
    });
}
