//! What a pipeline costs its process: memory while it runs, its threads once, and none after it.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use blockio::Device;
use changetrack::{Error, Pass, Pipeline, PipelineOptions, Plan, Sink};
use common::{MIB, Progress, Push, noise, options, scan, watched};
use imagefmt::{
    ClusterSize, ClusterUpdate, Consistency, DiskId, DiskIdentity, DiskMeta, Geometry, ImageWriter, Method,
};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use testkit::guard::ScratchDir;
use testkit::process::{PATIENCE, wait_until};

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

fn scan_file(path: &Path, way: &PipelineOptions, progress: &Progress, push: Push<'_>) -> Result<(), Error> {
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
        scanned.unwrap();
        assert_eq!(progress.compared_bytes.load(Ordering::Relaxed), 512 * MIB as u64);
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
            let gone = wait_until(PATIENCE, || threads("threads").is_empty());
            assert!(gone.is_ok(), "{end} leaves {:?}", threads("threads"));
        }
    });
}

/// Ids of the threads of this process that belong to a pipeline.
fn pipeline_threads() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let is_ours = ["scan", "blockio-read"].contains(&name.trim_end());
            is_ours.then(|| path.file_name().unwrap().to_str().unwrap().to_owned())
        })
        .collect()
}

/// Counts the bytes that differ, of each pass, and the threads while it runs.
#[derive(Default)]
struct Counting {
    dirty_bytes: [u64; 8],
    threads: BTreeSet<String>,
}

impl Sink for Counting {
    fn push(&mut self, pass: usize, _update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.dirty_bytes[pass] += 65536;
        Ok(())
    }

    fn chunk_done(&mut self) -> imagefmt::Result<()> {
        self.threads.extend(pipeline_threads());
        Ok(())
    }
}

#[test]
fn a_pipeline_runs_plans_over_disks_with_the_threads_it_was_made_with() {
    watched("reuse", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = ScratchDir::new("smc-scan").unwrap();
        let paths: Vec<_> = (0..5).map(|i| scratch.join(format!("disk{i}"))).collect();
        for (path, seed) in paths.iter().zip(1..) {
            fs::write(path, noise(6 * MIB, seed)).unwrap();
        }
        let devices: Vec<Device> = paths.iter().map(|path| Device::open(path).unwrap()).collect();
        let geometry = Geometry::new(6 * MIB as u64, ClusterSize::K64).unwrap();
        let mut options = options(4, 2, 8, 9);
        options.readers = 2;
        let mut pipeline = Pipeline::new(&options).unwrap();
        // A thread takes its name when it begins to run.
        let begun = wait_until(PATIENCE, || pipeline_threads().len() == 4);
        begun.expect("two readers and two workers");
        let threads = pipeline_threads();
        let whole = Plan::scan(geometry, false);
        let some = Plan::new(geometry, [3..5, 90..96], Method::Tracked, "test");
        let nothing = Plan::new(geometry, [], Method::Tracked, "test");
        // More disks than readers, and one disk twice.
        for plans in [
            [&whole; 5],
            [&some; 5],
            [&nothing, &some, &whole, &nothing, &some],
        ] {
            let passes: Vec<Pass<'_>> = devices
                .iter()
                .chain([&devices[0]])
                .zip(plans.iter().chain([&&some]))
                .map(|(device, plan)| Pass {
                    device,
                    geometry,
                    plan,
                    base: None,
                    pace: None,
                    on_read_error: blockio::OnReadError::Fail,
                    progress: Arc::default(),
                })
                .collect();
            let mut counting = Counting::default();
            pipeline
                .run(&passes, &AtomicBool::new(false), &mut counting)
                .unwrap();
            for (pass, dirty_bytes) in passes.iter().zip(counting.dirty_bytes) {
                assert_eq!(dirty_bytes, pass.plan.bytes());
                let compared = pass.progress.compared_bytes.load(Ordering::Relaxed);
                assert_eq!(compared, pass.plan.bytes());
            }
            assert_eq!(counting.threads, threads, "no other thread did the work");
        }
        // A stop leaves the pipeline as it was.
        let passes = [0, 1].map(|i| Pass {
            device: &devices[i],
            geometry,
            plan: &whole,
            base: None,
            pace: None,
            on_read_error: blockio::OnReadError::Fail,
            progress: Arc::default(),
        });
        let stopped = pipeline.run(&passes, &AtomicBool::new(true), &mut Counting::default());
        assert_eq!(stopped.unwrap_err().kind(), changetrack::ErrorKind::Canceled);
        let mut counting = Counting::default();
        pipeline
            .run(&passes, &AtomicBool::new(false), &mut counting)
            .unwrap();
        assert_eq!(counting.threads, threads);
    });
}

/// Stores what a run finds, each pass into the disk of its number.
struct Storing<'a>(&'a mut ImageWriter, &'a [DiskId]);

impl Sink for Storing<'_> {
    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.0.push(self.1[pass], update)
    }

    fn end(&mut self, pass: usize, compared_bytes: u64) -> imagefmt::Result<()> {
        self.0.end_pass(self.1[pass], compared_bytes)
    }
}

/// All of a sync: buffers, workers, and the layers of eight disks being written.
#[test]
fn memory_of_a_sync_of_eight_disks_stays_within_its_bound() {
    watched("eight-disks", || {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = ScratchDir::new("smc-scan").unwrap();
        let store = imagefmt::Store::open_or_create(&scratch.join("store"), false).unwrap();
        let names: Vec<String> = (0..8).map(|i| format!("vd{i}")).collect();
        let size = 48 * MIB as u64;
        for name in &names {
            let path = scratch.sparse_file(name, size).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&noise(20 * MIB, size), 0).unwrap();
            file.write_all_at(&vec![b'a'; 20 * MIB], 24 * MIB as u64).unwrap();
            file.sync_all().unwrap();
        }
        let devices: Vec<Device> = names
            .iter()
            .map(|name| Device::open(&scratch.join(name)).unwrap())
            .collect();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let mut image = store.begin("web01", None, &names).unwrap();
        let mut disks = Vec::new();
        for name in &names {
            let meta = DiskMeta {
                name: name.clone(),
                size_bytes: size,
                logical_block_size: 512,
                identity: DiskIdentity::default(),
            };
            let disk = image.disk(meta).unwrap();
            image.begin_pass(disk, Method::Full, "test").unwrap();
            disks.push(disk);
        }
        let plan = Plan::scan(disks[0].geometry(), false);
        let passes: Vec<Pass<'_>> = devices
            .iter()
            .map(|device| Pass {
                device,
                geometry: disks[0].geometry(),
                plan: &plan,
                base: None,
                pace: None,
                on_read_error: blockio::OnReadError::Fail,
                progress: Arc::default(),
            })
            .collect();
        let mut pipeline = Pipeline::new(&PipelineOptions::for_disks(devices.len())).unwrap();
        let mut storing = Storing(&mut image, &disks);
        pipeline
            .run(&passes, &AtomicBool::new(false), &mut storing)
            .unwrap();
        let manifest = image.commit(Consistency::Offline, "test").unwrap();
        let dirty: u64 = manifest.disks.iter().map(|disk| disk.dirty_bytes).sum();
        assert_eq!(dirty, 8 * 40 * MIB as u64);
        let peak = status("VmHWM:");
        assert!(peak < 256 * MIB, "{} MiB", peak / MIB);
        assert!(peak > 48 * MIB, "the peak is not measured: {peak}");
    });
}
