//! Several disks at the same time: what one does to the others, and passes that read parts of a disk.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

mod common;

use blockio::{Device, Pace};
use changetrack::{Error, ErrorKind, Pass, Pipeline, Plan, Sink};
use common::{Bench, MIB, disk_content, noise, options, watched};
use imagefmt::{
    ClusterSize, ClusterUpdate, Consistency, DiskId, DiskIdentity, DiskMeta, Geometry, ImageWriter, Method,
};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::guard::ScratchDir;

/// Notes what comes, and does what the test wants when a pass ends or a cluster comes.
struct Watching<'a> {
    last: Vec<Option<u64>>,
    ended: Vec<usize>,
    at_end: &'a mut dyn FnMut(usize),
    at_push: &'a mut dyn FnMut(usize),
}

impl Sink for Watching<'_> {
    fn push(&mut self, pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        assert!(self.last[pass] < Some(update.index), "clusters of a disk ascend");
        self.last[pass] = Some(update.index);
        (self.at_push)(pass);
        Ok(())
    }

    fn end(&mut self, pass: usize, _compared_bytes: u64) -> imagefmt::Result<()> {
        self.ended.push(pass);
        (self.at_end)(pass);
        Ok(())
    }
}

fn pass<'a>(device: &'a Device, plan: &'a Plan) -> Pass<'a> {
    Pass {
        device,
        geometry: geometry(device),
        plan,
        base: None,
        pace: None,
        on_read_error: blockio::OnReadError::Fail,
        progress: Arc::default(),
    }
}

fn geometry(device: &Device) -> Geometry {
    Geometry::new(device.size_bytes(), ClusterSize::K64).unwrap()
}

fn device(scratch: &ScratchDir, name: &str, content: &[u8]) -> Device {
    fs::write(scratch.join(name), content).unwrap();
    Device::open(&scratch.join(name)).unwrap()
}

#[test]
fn a_slow_disk_does_not_hold_up_a_fast_one() {
    watched("slow-disk", || {
        let scratch = ScratchDir::new("smc-disks").unwrap();
        let slow = device(&scratch, "slow", &noise(16 * MIB, 1));
        let fast = device(&scratch, "fast", &noise(40 * MIB, 2));
        let plans = [&slow, &fast].map(|device| Plan::scan(geometry(device), false));
        let mut passes = [pass(&slow, &plans[0]), pass(&fast, &plans[1])];
        // After its first chunk it would read on in two weeks.
        passes[0].pace = Some(Arc::new(Pace::new(1)));
        for buffers in [2, 3, 8] {
            let mut options = options(4, 2, 16, buffers);
            options.readers = 2;
            let stop = AtomicBool::new(false);
            let mut watching = Watching {
                last: vec![None; 2],
                ended: Vec::new(),
                // The run ends when the fast disk is done, and hangs if it never is.
                at_end: &mut |_| stop.store(true, Ordering::Relaxed),
                at_push: &mut |_| {},
            };
            let stopped = Pipeline::new(&options)
                .unwrap()
                .run(&passes, &stop, &mut watching);
            assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Canceled);
            assert_eq!(watching.ended, [1]);
        }
    });
}

#[test]
fn a_disk_that_fails_ends_the_run_and_is_named() {
    watched("failing-disk", || {
        let scratch = ScratchDir::new("smc-disks").unwrap();
        let content = noise(24 * MIB, 3);
        let mut options = options(0, 2, 4, 6);
        options.readers = 2;
        let mut pipeline = Pipeline::new(&options).unwrap();
        for failing in [0, 1, 2] {
            let devices = ["a", "b", "c"].map(|name| device(&scratch, name, &content));
            let plan = Plan::scan(geometry(&devices[0]), false);
            let passes = [0, 1, 2].map(|i| pass(&devices[i], &plan));
            let file = File::options().write(true).open(devices[failing].path()).unwrap();
            let mut watching = Watching {
                last: vec![None; 3],
                ended: Vec::new(),
                at_end: &mut |_| {},
                // It shrinks before the first byte is stored.
                at_push: &mut |_| file.set_len(9 * MIB as u64).unwrap(),
            };
            let error: Error = pipeline
                .run(&passes, &AtomicBool::new(false), &mut watching)
                .unwrap_err();
            assert_eq!(
                (error.kind(), error.pass()),
                (ErrorKind::Device, Some(failing)),
                "{error:?}"
            );
            assert!(!watching.ended.contains(&failing));
        }
        // The pipeline is as good as new.
        let devices = ["a", "b"].map(|name| device(&scratch, name, &content));
        let plan = Plan::scan(geometry(&devices[0]), false);
        let passes = [pass(&devices[0], &plan), pass(&devices[1], &plan)];
        let mut watching = Watching {
            last: vec![None; 2],
            ended: Vec::new(),
            at_end: &mut |_| {},
            at_push: &mut |_| {},
        };
        pipeline
            .run(&passes, &AtomicBool::new(false), &mut watching)
            .unwrap();
        assert_eq!(watching.last, vec![Some(24 * 16 - 1); 2]);
    });
}

/// Stores what a run finds in one disk, and counts it.
struct Storing<'a>(&'a mut ImageWriter, DiskId, usize);

impl Sink for Storing<'_> {
    fn push(&mut self, _pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        self.2 += 1;
        self.0.push(self.1, update)
    }

    fn end(&mut self, _pass: usize, compared_bytes: u64) -> imagefmt::Result<()> {
        self.0.end_pass(self.1, compared_bytes)
    }
}

#[test]
fn later_passes_read_the_ranges_of_their_plan_and_store_what_changed_since() {
    watched("ranges", || {
        let mut content = disk_content(33 * MIB + 513, 4);
        let bench = Bench::new(ClusterSize::K64, &content);
        let file = File::options().write(true).open(bench.disk()).unwrap();
        let opened = Device::open(bench.disk()).unwrap();
        let mut image = bench.begin();
        let disk = image
            .disk(DiskMeta {
                name: "vda".to_owned(),
                size_bytes: opened.size_bytes(),
                logical_block_size: 512,
                identity: DiskIdentity::default(),
            })
            .unwrap();
        let geometry = disk.geometry();
        let last = geometry.cluster_count() - 1;
        let plans = [
            Plan::scan(geometry, false),
            Plan::new(
                geometry,
                [3..9, 100..101, 255..258, last..last + 1],
                Method::Tracked,
                "bits",
            ),
            Plan::new(geometry, [last..last + 1, 5..6], Method::Tracked, "bits"),
            Plan::new(geometry, [], Method::Tracked, "bits"),
        ];
        let mut pipeline = Pipeline::new(&options(4, 2, 8, 5)).unwrap();
        let mut stored = Vec::new();
        for plan in &plans {
            image.begin_pass(disk, plan.method(), plan.reason()).unwrap();
            let passes = [Pass {
                base: image.base(disk).cloned(),
                ..pass(&opened, plan)
            }];
            let mut storing = Storing(&mut image, disk, 0);
            pipeline
                .run(&passes, &AtomicBool::new(false), &mut storing)
                .unwrap();
            stored.push(storing.2);
            // Before the next pass: clusters 5, 256 and the last one change.
            for index in [5, 256, last] {
                let at = usize::try_from(geometry.cluster_offset(index)).unwrap();
                content[at] = content[at].wrapping_add(1);
                file.write_all_at(&content[at..=at], at as u64).unwrap();
            }
        }
        // What changed after the last look of a pass at it is not in the image.
        for (index, changes) in [(5, 2), (256, 3), (last, 2)] {
            let at = usize::try_from(geometry.cluster_offset(index)).unwrap();
            content[at] = content[at].wrapping_sub(changes);
        }
        assert_eq!(stored[1..], [3, 2, 0]);
        let manifest = image.commit(Consistency::Fuzzy, "test").unwrap();
        let record = &manifest.disks[0];
        let bytes: u64 = plans.iter().map(Plan::bytes).sum();
        assert_eq!(record.compared_bytes, bytes);
        assert_eq!(record.method, Method::Full);
        assert!(bench.newest() == content);
    });
}
