//! Every reason not to believe the bits, on real loop devices. What cannot be brought about is planted in the maps.

#[path = "../tests/common/mod.rs"]
pub(crate) mod common;

use std::fs;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use common::{Disk, Ground, mark};

use crate::layout::{AT_MOST, Control, Disk as DiskEntry, Header, KNOWN};
use crate::watch::Watch;
use crate::{Bitmap, Distrust, ErrorKind, Tracker};

/// A disk that is watched, with one committed image of mark 1.
struct Case {
    disk: Disk,
    watch: Watch,
    tracker: Tracker,
    ground: Ground,
}

impl Case {
    fn new(name: &str) -> Case {
        let ground = Ground::new(name);
        let disk = ground.disk("disk", 16 << 20);
        let tracker = ground.start();
        let watch = tracker.watch(&disk.target()).unwrap();
        watch.begin().unwrap().commit(&mark(1)).unwrap();
        let case = Case {
            disk,
            watch,
            tracker,
            ground,
        };
        assert_eq!(case.trust(), Ok(()), "before anything happens");
        case
    }

    /// What a sync finds that is then abandoned.
    fn trust(&self) -> Result<(), Distrust> {
        let tracking = self.watch.begin().unwrap();
        let found = tracking.trust(&mark(1));
        tracking.abandon().unwrap();
        found
    }

    fn plant(&self, change: impl FnOnce(&mut Header)) {
        let mut header = self.watch.maps.header().unwrap();
        change(&mut header);
        self.watch.maps.header.store(0, header);
    }

    /// After a scan has been committed, the bits are believed again.
    fn scan_heals(&self) {
        self.watch.begin().unwrap().commit(&mark(1)).unwrap();
        self.disk.write(0, 4096, 9);
        let tracking = self.watch.begin().unwrap();
        assert_eq!(tracking.trust(&mark(1)), Ok(()));
        assert!(tracking.dirty().contains(0));
        tracking.abandon().unwrap();
    }

    fn pin(&self, name: &str) -> std::path::PathBuf {
        self.ground.pins().join(name)
    }
}

fn is_changed(found: &Result<(), Distrust>) -> bool {
    matches!(found, Err(Distrust::LinksChanged { .. }))
}

#[test]
fn another_boot_a_suspend_and_another_disk_are_found_in_what_the_header_recorded() {
    let case = Case::new("tracker-header");
    for (change, reason) in [
        (
            (|header| header.baseline.boot_id[0] ^= 1) as fn(&mut Header),
            Distrust::OtherBoot,
        ),
        (
            |header| header.baseline.suspended_ns += 5_000_000_000,
            Distrust::Suspended,
        ),
        (|header| header.baseline.diskseq += 1, Distrust::ReplacedDisk),
        (|header| header.baseline.disk_sectors += 8, Distrust::Resized),
        (
            |header| header.baseline.misses[1] += 1,
            Distrust::Missed { runs: 1 },
        ),
        (|header| header.layout += 1, Distrust::OtherVersion),
        (|header| header.has_image = 0, Distrust::NoImage),
    ] {
        let before = case.watch.maps.header().unwrap();
        case.plant(change);
        assert_eq!(case.trust(), Err(reason.clone()));
        assert_eq!(case.watch.status().unwrap().distrust, Some(reason));
        case.plant(|header| *header = before);
        assert_eq!(case.trust(), Ok(()));
    }
    case.plant(|header| header.baseline.boot_id[0] ^= 1);
    case.scan_heals();
}

#[test]
fn books_that_do_not_balance_are_not_believed() {
    let case = Case::new("tracker-books");
    case.plant(|header| header.books.ahead += 8);
    assert_eq!(case.trust(), Err(Distrust::Unbalanced { sectors: 8 }));
    case.scan_heals();
    case.plant(|header| header.books.balance -= 16);
    assert_eq!(case.trust(), Err(Distrust::Unbalanced { sectors: 16 }));
    let tracking = case.watch.begin().unwrap();
    assert_eq!(
        tracking.still_trusted(),
        Ok(()),
        "nothing is lost since the sync began"
    );
    tracking.abandon().unwrap();
    case.scan_heals();
}

#[test]
fn a_balance_that_a_write_in_flight_made_too_high_is_corrected() {
    let case = Case::new("tracker-in-flight");
    // At rest too: the kernel does not count a request as in flight that waits for a soft interrupt.
    for (number, certainty) in (1..).zip([AT_MOST, KNOWN]) {
        case.plant(|header| {
            header.books.balance += 8;
            header.books.certainty = certainty;
        });
        assert_eq!(case.trust(), Ok(()));
        let tracking = case.watch.begin().unwrap();
        tracking.commit(&mark(number)).unwrap();
        let books = case.watch.maps.header().unwrap().books;
        assert_eq!((books.certainty, books.balance), (KNOWN, 0));
    }
}

#[test]
fn every_error_counter_that_moves_is_a_reason() {
    let case = Case::new("tracker-counters");
    let slot = usize::try_from(case.watch.maps.slot).unwrap();
    let all = &case.watch.shared.control;
    let disks = &case.watch.shared.disks;
    let places = [
        all.number(0, offset_of!(Control, bios_full)),
        all.number(0, offset_of!(Control, bios_stale)),
        all.number(0, offset_of!(Control, chain)),
        disks.number(slot, offset_of!(DiskEntry, outside)),
        disks.number(slot, offset_of!(DiskEntry, passthrough)),
        disks.number(slot, offset_of!(DiskEntry, zone)),
        disks.number(slot, offset_of!(DiskEntry, unmarked)),
    ];
    for place in places {
        let tracking = case.watch.begin().unwrap();
        place.unwrap().fetch_add(1, Ordering::SeqCst);
        for found in [tracking.trust(&mark(1)), tracking.still_trusted()] {
            assert!(
                matches!(found, Err(Distrust::Counters { times: 1, .. })),
                "{found:?}"
            );
        }
        tracking.abandon().unwrap();
        case.scan_heals();
    }
}

#[test]
fn a_link_a_program_or_a_map_that_was_removed_is_a_reason() {
    let case = Case::new("tracker-pins");
    let slot = format!("disk-{}", case.watch.maps.slot);
    for name in ["live", "pending", "header"].map(|name| format!("{slot}/{name}")) {
        let tracking = case.watch.begin().unwrap();
        let [aside, path] = [case.pin("aside"), case.pin(&name)];
        fs::rename(&path, &aside).unwrap();
        assert!(is_changed(&tracking.trust(&mark(1))), "{name}");
        assert!(is_changed(&tracking.still_trusted()), "{name}");
        fs::rename(&aside, &path).unwrap();
        assert_eq!(tracking.trust(&mark(1)), Ok(()), "{name}");
        tracking.abandon().unwrap();
    }
    let tracking = case.watch.begin().unwrap();
    for name in ["link-bio_2", "program-queue", "stats"] {
        fs::remove_file(case.pin(name)).unwrap();
        assert!(is_changed(&tracking.trust(&mark(1))), "{name}");
        let error = Tracker::find(&case.ground.pins()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incomplete, "{error}");
    }
    drop(tracking);
    let anew = case.ground.start();
    let tracking = anew.watch(&case.disk.target()).unwrap().begin().unwrap();
    assert_eq!(tracking.trust(&mark(1)), Err(Distrust::NoImage));
}

#[test]
fn a_map_that_the_programs_no_longer_mark_is_a_reason() {
    let case = Case::new("tracker-inner");
    crate::sys::clear_inner(case.watch.shared.live(), case.watch.maps.slot).unwrap();
    assert!(is_changed(&case.trust()));
    let case = Case::new("tracker-device");
    case.watch.shared.set_device(case.watch.maps.slot, 0);
    assert!(is_changed(&case.trust()));
}

#[test]
fn programs_that_were_attached_anew_are_a_reason() {
    let case = Case::new("tracker-anew");
    case.plant(|header| header.baseline.links[4] += 1);
    assert!(is_changed(&case.trust()));
    case.scan_heals();
    let tracking = case.watch.begin().unwrap();
    Tracker::remove(&case.ground.pins()).unwrap();
    assert!(is_changed(&tracking.trust(&mark(1))));
    assert!(is_changed(&tracking.still_trusted()));
    let error = case.tracker.watch(&case.disk.target()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error}");
    assert!(Tracker::find(&case.ground.pins()).unwrap().is_none());
}

#[test]
fn an_interrupted_sync_is_found_until_a_scan_is_committed() {
    let case = Case::new("tracker-interrupted");
    case.disk.write(0, 4096, 1);
    drop(case.watch.begin().unwrap());
    assert_eq!(case.watch.status().unwrap().distrust, Some(Distrust::Interrupted));
    assert_eq!(case.trust(), Err(Distrust::Interrupted));
    assert_eq!(
        case.trust(),
        Err(Distrust::Interrupted),
        "an abandoned sync does not hide it"
    );
    let tracking = case.watch.begin().unwrap();
    assert!(tracking.dirty().contains(0), "what was taken stays");
    tracking.abandon().unwrap();
    case.scan_heals();
}

#[test]
fn a_failed_audit_is_remembered_until_a_scan_is_committed() {
    let case = Case::new("tracker-failed");
    let reason = "cluster 7 differs, and its bit is clear ".repeat(20);
    let tracking = case.watch.begin().unwrap();
    tracking.fail(&reason).unwrap();
    assert!(matches!(tracking.still_trusted(), Err(Distrust::Failed { .. })));
    tracking.abandon().unwrap();
    let Err(Distrust::Failed { reason: found }) = case.trust() else {
        panic!("it was not remembered");
    };
    assert!(found.len() > 200 && reason.starts_with(&found));
    case.scan_heals();
}

#[test]
fn a_resize_is_found_by_the_watch_and_named_by_the_next() {
    let case = Case::new("tracker-resize");
    let file = fs::File::options()
        .write(true)
        .open(case.ground.scratch.join("disk"))
        .unwrap();
    file.set_len(24 << 20).unwrap();
    case.disk.device.as_ref().unwrap().update_size().unwrap();
    assert_eq!(case.trust(), Err(Distrust::Resized));
    assert!(case.tracker.watched(&case.disk.target()).unwrap().is_none());
    let watch = case.tracker.watch(&case.disk.target()).unwrap();
    let tracking = watch.begin().unwrap();
    assert_eq!(tracking.trust(&mark(1)), Err(Distrust::Resized));
    tracking.commit(&mark(2)).unwrap();
    case.disk.write(20 << 20, 4096, 1);
    let tracking = watch.begin().unwrap();
    assert_eq!(tracking.trust(&mark(2)), Ok(()));
    assert!(tracking.dirty().contains(20 * 16));
}

#[test]
fn pins_of_another_version_are_named_and_replaced() {
    let case = Case::new("tracker-version");
    let layout = case
        .watch
        .shared
        .control
        .number(0, offset_of!(Control, layout))
        .unwrap();
    layout.fetch_add(1, Ordering::SeqCst);
    let error = Tracker::find(&case.ground.pins()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherVersion, "{error}");
    let anew = case.ground.start();
    assert!(anew.watched(&case.disk.target()).unwrap().is_none());
    let _ = anew.watch(&case.disk.target()).unwrap();
    assert_eq!(anew.status().unwrap().watches.len(), 1);
    layout.store(0, Ordering::SeqCst);
    assert!(
        Tracker::find(&case.ground.pins()).unwrap().is_some(),
        "the old maps are another's"
    );
}

#[test]
fn a_second_sync_of_the_same_disk_has_to_wait() {
    let case = Case::new("tracker-busy");
    let tracking = case.watch.begin().unwrap();
    let error = case.watch.begin().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let error = case.tracker.unwatch(&case.disk.target()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(case.watch.status().unwrap().is_under_way);
    tracking.abandon().unwrap();
    case.tracker.unwatch(&case.disk.target()).unwrap();
    assert!(case.tracker.watched(&case.disk.target()).unwrap().is_none());
}

#[test]
fn what_was_taken_and_not_read_is_left_to_the_next_sync() {
    let case = Case::new("tracker-unread");
    let cluster = u64::from(common::CLUSTER);
    let write = |place: u64| case.disk.write(place * cluster, 4096, place);
    let mut tracking = case.watch.begin().unwrap();
    let mut taken = Bitmap::empty(tracking.dirty().clusters());
    [3, 4, 5].into_iter().for_each(write);
    tracking.take_into(&mut taken);
    assert!(taken.ranges(0).eq(std::iter::once(3..6)));
    let mut read = Bitmap::empty(taken.clusters());
    [3, 4].into_iter().for_each(|place| read.insert(place));
    tracking.has_read(&read);
    // It was read, and then written to once more.
    write(4);
    taken.clear();
    tracking.take_into(&mut taken);
    assert!(taken.ranges(0).eq(std::iter::once(4..5)));
    tracking.commit(&mark(2)).unwrap();
    let next = case.watch.begin().unwrap();
    assert_eq!(next.trust(&mark(2)), Ok(()));
    assert!(next.dirty().ranges(0).eq(std::iter::once(4..6)));
    next.commit(&mark(3)).unwrap();
    let last = case.watch.begin().unwrap();
    assert!(last.dirty().is_empty());
    last.abandon().unwrap();
}

#[test]
fn a_later_take_reads_what_an_earlier_one_left() {
    let case = Case::new("tracker-again");
    let mut tracking = case.watch.begin().unwrap();
    case.disk.write(0, 4096, 1);
    tracking.take_into(&mut Bitmap::empty(tracking.dirty().clusters()));
    case.disk.write(0, 4096, 2);
    assert!(tracking.take().contains(0));
    tracking.commit(&mark(2)).unwrap();
    let next = case.watch.begin().unwrap();
    assert!(next.dirty().is_empty());
    next.abandon().unwrap();
}

#[test]
fn a_kill_at_any_point_of_a_take_loses_no_bit() {
    let case = Case::new("tracker-kill");
    let maps = &case.watch.maps;
    let (live, pending) = (&maps.live.words()[0], &maps.pending.words()[0]);
    case.disk.write(0, 4096, 1);
    let seen = live.load(Ordering::SeqCst);
    assert_eq!(seen, 1);
    // The steps of a take, and a kill behind each.
    let is_kept = || maps.dirty(64).contains(0);
    assert!(is_kept());
    pending.fetch_or(seen, Ordering::SeqCst);
    assert!(is_kept());
    live.fetch_and(!seen, Ordering::SeqCst);
    assert!(is_kept());
    // Killed while filesystems were frozen: taken, read or not, and no image.
    let mut tracking = case.watch.begin().unwrap();
    case.disk.write(1 << 20, 4096, 1);
    let mut taken = Bitmap::empty(tracking.dirty().clusters());
    tracking.take_into(&mut taken);
    tracking.has_read(&taken);
    drop(tracking);
    let next = case.watch.begin().unwrap();
    assert!([0, 16].into_iter().all(|place| next.dirty().contains(place)));
    assert_eq!(next.trust(&mark(1)), Err(Distrust::Interrupted));
}
