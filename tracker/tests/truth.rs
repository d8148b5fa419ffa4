//! The truth is the content: a cluster that differs from what it was when the last sync began, and whose bit is clear,
//! is a write that was lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Disk, Ground, Zram, mark, scribble};
use tracker::{Bitmap, Tracker, Watch};

/// One disk whose content is compared with its bits, round after round.
struct Truth<'a> {
    disk: &'a Disk,
    watch: Watch,
    content: Vec<u64>,
    round: u8,
}

impl<'a> Truth<'a> {
    fn new(tracker: &Tracker, disk: &'a Disk) -> Truth<'a> {
        let watch = tracker.watch(&disk.target()).unwrap();
        let tracking = watch.begin().unwrap();
        let content = disk.content();
        tracking.commit(&mark(0)).unwrap();
        Truth {
            disk,
            watch,
            content,
            round: 0,
        }
    }

    /// Writes, with a take in the middle of it, and then a sync after it.
    fn round(&mut self, write: impl FnOnce() + Send) {
        let mut tracking = self.watch.begin().unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(write);
            while !writer.is_finished() {
                tracking.take();
                thread::sleep(Duration::from_millis(5));
            }
        });
        tracking.take();
        let now = self.disk.content();
        let lost = lost(&self.content, &now, tracking.dirty());
        let trust = tracking.trust(&mark(self.round));
        let status = self.watch.status().unwrap();
        assert!(
            lost.is_empty(),
            "round {}: lost {lost:?}, {trust:?}, {status:?}",
            self.round
        );
        assert_eq!(
            trust,
            Ok(()),
            "round {}: nothing is lost, but {status:?}",
            self.round
        );
        assert_eq!(tracking.still_trusted(), Ok(()), "round {}", self.round);
        self.content = now;
        self.round = self.round.wrapping_add(1);
        tracking.commit(&mark(self.round)).unwrap();
    }
}

fn lost(before: &[u64], now: &[u64], dirty: &Bitmap) -> Vec<u64> {
    let clusters = before.iter().zip(now).zip(0_u64..);
    let changed = clusters.filter(|((before, now), _)| before != now);
    changed
        .map(|(_, cluster)| cluster)
        .filter(|cluster| !dirty.contains(*cluster))
        .collect()
}

/// Two threads that write, discard and write zeros.
fn scribble_twice(disk: &Disk, seed: u64, operations: usize) {
    thread::scope(|scope| {
        for part in 0..2 {
            scope.spawn(move || scribble(disk, seed * 2 + part, operations));
        }
    });
}

/// More writes at once than the disk has tags, each of which refuses to wait for one and is tried again.
fn fio_that_does_not_wait(disk: &Disk) {
    let mut command = Command::new("fio");
    command
        .arg(format!("--filename={}", disk.path.display()))
        .args([
            "--name=nowait",
            "--direct=1",
            "--bs=4k",
            "--iodepth=512",
            "--minimal",
            "--ioengine=io_uring",
        ])
        .args([
            "--rw=randwrite",
            "--io_size=8m",
            "--nowait=1",
            "--ignore_error=,EAGAIN",
            "--continue_on_error=write",
        ]);
    testkit::program::run(&mut command).ok();
}

#[test]
fn a_write_that_is_refused_and_tried_again_is_counted_once() {
    let ground = Ground::new("tracker-nowait");
    let disk = ground.disk("disk", 16 << 20);
    let tracker = ground.start();
    let mut truth = Truth::new(&tracker, &disk);
    for _ in 0..3 {
        truth.round(|| fio_that_does_not_wait(&disk));
    }
}

/// fio with many writes and discards in flight at once.
fn fio(disk: &Disk, seed: u64, megabytes: u64) {
    let trims = disk.path.to_string_lossy().contains("loop");
    let rw = if trims && seed % 3 == 2 {
        "randtrim"
    } else {
        "randwrite"
    };
    let mut command = Command::new("fio");
    command
        .arg(format!("--filename={}", disk.path.display()))
        .args([
            "--name=truth",
            "--direct=1",
            "--bs=4k-64k",
            "--bsrange=4k-64k",
            "--iodepth=16",
            "--minimal",
        ])
        .args(["--ioengine=libaio", "--randrepeat=0"])
        .arg(format!("--rw={rw}"))
        .arg(format!("--randseed={seed}"))
        .arg(format!("--io_size={megabytes}m"));
    testkit::program::run(&mut command).ok();
}

fn rounds(disk: &Disk, tracker: &Tracker, count: u64, operations: usize) {
    let mut truth = Truth::new(tracker, disk);
    for round in 0..count {
        truth.round(|| scribble_twice(disk, round, operations));
        truth.round(|| fio(disk, round, operations as u64 / 4));
    }
}

#[test]
fn a_loop_device_loses_no_write() {
    let ground = Ground::new("tracker-truth");
    let disk = ground.disk("disk", 64 << 20);
    rounds(&disk, &ground.start(), 4, 100);
}

#[test]
fn a_zram_device_loses_no_write() {
    let ground = Ground::new("tracker-zram");
    let zram = Zram::new(64 << 20).unwrap();
    let disk = Disk::new(zram.path().to_owned(), None);
    assert!(disk.target().is_bio_based);
    rounds(&disk, &ground.start(), 4, 100);
}

#[test]
fn writes_through_a_filesystem_are_seen() {
    let ground = Ground::new("tracker-ext4");
    let disk = ground.disk("disk", 64 << 20);
    let tracker = ground.start();
    let mut truth = Truth::new(&tracker, &disk);
    let at = ground.scratch.join("mnt");
    truth.round(|| {
        let mount = testkit::guard::Mount::format("ext4", &disk.path, &at).unwrap();
        std::fs::write(at.join("file"), testkit::noise(3 << 20, 1)).unwrap();
        mount.unmount().unwrap();
    });
}

/// Another set of programs, attached to the same tracepoints and detached again.
fn come_and_go() {
    let ground = Ground::new("tracker-others");
    let disk = ground.disk("disk", 1 << 20);
    ground.start().watch(&disk.target()).unwrap();
    disk.write(0, 4096, 1);
    Tracker::remove(&ground.pins()).unwrap();
}

/// Ends what runs beside a test, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps the machine busy as the suite does: sets of programs that come and go, and processors without rest.
fn under_load(work: impl FnOnce()) {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    come_and_go()
                }
            });
        }
        let _stop = Stop(stop);
        work();
    });
}

#[test]
#[ignore = "minutes: SMC_TRUTH_SECONDS (60) of each kind of disk, while other programs come and go"]
fn no_write_is_lost_while_other_programs_are_attached_and_detached() {
    let seconds = std::env::var("SMC_TRUTH_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(60));
    let ground = Ground::new("tracker-load");
    let zram = Zram::new(64 << 20).unwrap();
    let (loop_disk, zram_disk) = (
        ground.disk("disk", 64 << 20),
        Disk::new(zram.path().to_owned(), None),
    );
    let tracker = ground.start();
    under_load(|| {
        for disk in [&loop_disk, &zram_disk] {
            let mut truth = Truth::new(&tracker, disk);
            let end = Instant::now() + time;
            let mut round = 0;
            while Instant::now() < end {
                truth.round(|| scribble_twice(disk, round, 300));
                truth.round(|| fio(disk, round, 64));
                round += 1;
            }
            println!(
                "{}: {} rounds, {:?}",
                disk.path.display(),
                round * 2,
                truth.watch.status().unwrap()
            );
        }
    });
    println!("{:?}", tracker.status().unwrap());
}
