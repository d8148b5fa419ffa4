//! Watching a loop device: what is marked, what a sync takes, what it commits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Blank, CLUSTER, Ground, mark};
use tracker::{Distrust, Support, Tracker, support};

#[test]
fn this_machine_can_track() {
    let ground = Ground::new("tracker-support");
    assert_eq!(support(&ground.pins()), Support::Available);
    assert!(
        Tracker::find(&ground.pins()).unwrap().is_none(),
        "nothing is left attached"
    );
    assert!(!ground.pins().exists(), "nothing is left at all");
}

#[test]
fn a_directory_elsewhere_than_on_a_bpffs_is_named_and_not_made() {
    let ground = Ground::new("tracker-elsewhere");
    let directory = ground.scratch.join("smc");
    let Support::Unavailable { reason } = support(&directory) else {
        panic!("this is no place for pins");
    };
    let named = format!(
        "{} is not on a BPF filesystem: mount one with ",
        directory.display()
    );
    assert!(reason.starts_with(&named), "{reason}");
    assert!(Tracker::start(&directory).is_err());
    assert!(!directory.exists());
}

#[test]
fn a_tracked_sync_reads_exactly_what_was_written_since_the_image() {
    let ground = Ground::new("tracker-basics");
    let disk = ground.disk("disk", 64 << 20);
    let tracker = ground.start();
    let watch = tracker.watch(&disk.target()).unwrap();
    disk.write(0, 4096, 1);

    let first = watch.begin().unwrap();
    assert_eq!(first.trust(&mark(1)), Err(Distrust::NoImage));
    assert_eq!(first.still_trusted(), Ok(()));
    first.commit(&mark(1)).unwrap();

    disk.write(5 * u64::from(CLUSTER) - 4096, 8192, 2);
    disk.blank(Blank::Zeroes, 100 * u64::from(CLUSTER), 4096).unwrap();
    let mut second = watch.begin().unwrap();
    assert_eq!(second.trust(&mark(1)), Ok(()));
    assert_eq!(second.trust(&mark(2)), Err(Distrust::OtherImage));
    assert_eq!(second.dirty().ranges(0).collect::<Vec<_>>(), [4..6, 100..101]);
    disk.write(7 * u64::from(CLUSTER), 4096, 3);
    let settled = second.settle(Duration::from_secs(60)).unwrap();
    assert!(settled.is_settled());
    assert_eq!(
        [4, 7, 8].map(|cluster| settled.written().contains(cluster)),
        [true, true, false]
    );
    assert!(second.take().ranges(0).eq(std::iter::once(7..8)));
    // What was taken to be read is as it was read until it is written to again.
    disk.write(5 * u64::from(CLUSTER), 4096, 4);
    let since = second.settle_since_read(Duration::from_secs(60)).unwrap();
    assert!(since.is_settled() && since.written().ranges(0).eq(std::iter::once(5..6)));
    assert_eq!(second.still_trusted(), Ok(()));
    second.commit(&mark(2)).unwrap();

    let third = watch.begin().unwrap();
    assert_eq!(third.trust(&mark(2)), Ok(()));
    assert!(
        third.dirty().ranges(0).eq(std::iter::once(5..6)),
        "the next sync reads it"
    );
    third.abandon().unwrap();
}

#[test]
fn an_abandoned_sync_keeps_the_bits_and_the_image() {
    let ground = Ground::new("tracker-abandon");
    let disk = ground.disk("disk", 16 << 20);
    let watch = ground.start().watch(&disk.target()).unwrap();
    watch.begin().unwrap().commit(&mark(1)).unwrap();
    disk.write(0, 4096, 1);
    watch.begin().unwrap().abandon().unwrap();
    disk.write(1 << 20, 4096, 1);
    let again = watch.begin().unwrap();
    assert_eq!(again.trust(&mark(1)), Ok(()));
    assert_eq!(again.dirty().ranges(0).collect::<Vec<_>>(), [0..1, 16..17]);
}
