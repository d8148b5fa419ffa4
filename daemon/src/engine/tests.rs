//! A sync of two disks, on files and a real store; and how disks are named.

use super::destination::Destination;
use super::{
    Control, DiskArg, ErrorKind, ImageBegun, Observer, Request, TrackMode, UseTracker, open_all, run,
};
use api::{OnReadError, Phase};
use blockio::IoPriority;
use changetrack::Progress;
use imagefmt::{
    BootMachine, BootResult, BootVerdict, LockWait, Method, Span, Store, Verdict, Verifier, VerifyPlan,
};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::{PATIENCE, wait_until};

const MIB: usize = 1 << 20;

/// Keeps the progress of each disk.
#[derive(Debug, Default)]
struct Noted {
    sequence: Mutex<Option<u64>>,
    disks: Mutex<Vec<(String, Arc<Progress>)>>,
    held_up: Mutex<Vec<Option<String>>>,
    /// A file that is locked as soon as a disk is read.
    to_lock: Option<PathBuf>,
    locked: Mutex<Option<fs::File>>,
    warnings: Mutex<Vec<String>>,
}

impl Observer for Noted {
    type Shown = ();

    fn phase(&self, _phase: Phase) {}

    fn image(&self, image: &ImageBegun) {
        *self.sequence.lock().unwrap() = Some(image.sequence);
    }

    fn disk(&self, name: &str, _size_bytes: u64, progress: &Arc<Progress>) {
        if let Some(path) = &self.to_lock {
            self.locked.lock().unwrap().get_or_insert_with(|| {
                let file = fs::File::options().create(true).append(true).open(path).unwrap();
                file.lock().unwrap();
                file
            });
        }
        let mut disks = self.disks.lock().unwrap();
        disks.push((name.to_owned(), progress.clone()));
    }

    fn held_up(&self, by: Option<&str>) {
        self.held_up.lock().unwrap().push(by.map(str::to_owned));
    }

    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.to_owned());
    }
}

/// Two disks that do not compress, and a store.
struct Fixture {
    scratch: ScratchDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let scratch = ScratchDir::new("smc-engine").unwrap();
        let store = imagefmt::Store::open_or_create(&scratch.join("store"), true).unwrap();
        for (name, seed) in [("vda", 1), ("vdb", 2)] {
            fs::write(scratch.join(name), noise(24 * MIB, seed)).unwrap();
        }
        Self { scratch, store }
    }

    fn request(&self) -> Request {
        let disk = |name: &str| DiskArg {
            name: Some(name.to_owned()),
            path: self.scratch.join(name),
        };
        Request {
            job: "web01".to_owned(),
            take_up: None,
            disks: vec![disk("vda"), disk("vdb")],
            cluster_size: None,
            compress_level: 1,
            checkpoint_every: Duration::from_secs(3600),
            accept_changed_disk: false,
            owner: None,
            take_over: imagefmt::TakeOver::Never,
            tracker: UseTracker {
                mode: TrackMode::Off,
                directory: tracker::PIN_DIRECTORY.into(),
                may_scan: true,
            },
            on_read_error: OnReadError::Stop,
            freeze: None,
            offline: false,
            verify: false,
        }
    }

    fn sync(&self, control: &Control, observer: &Noted) -> super::Result<super::Synced> {
        let request = self.request();
        let disks = open_all(&request.disks, None).unwrap();
        run(
            Destination::Store(&self.store),
            &request,
            &disks,
            control,
            observer,
        )
    }
}

#[test]
fn a_stop_in_the_middle_leaves_a_checkpoint_of_all_disks() {
    let fixture = Fixture::new();
    // Half a MiB a second for both together, so that neither is done when both have begun, on a busy machine too.
    let control = Control::new(MIB as u64 / 2, IoPriority::default());
    let noted = Noted::default();
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let both = || {
                let disks = noted.disks.lock().unwrap();
                let begun = |progress: &Progress| progress.compared_bytes.load(Ordering::Relaxed) > 0;
                disks.len() == 2 && disks.iter().all(|(_, progress)| begun(progress))
            };
            let begun = wait_until(PATIENCE, both);
            control.stop();
            begun.unwrap();
        });
        fixture.sync(&control, &noted).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(
        error.full_message().contains("the next sync resumes"),
        "{error:?}"
    );
    let unfinished = fixture.store.unfinished("web01").unwrap().unwrap();
    assert_eq!(unfinished.disks.len(), 2);
    for disk in &unfinished.disks {
        let (size, dirty) = (disk.size_bytes, disk.dirty_bytes);
        assert!(0 < dirty && dirty < size, "{} has {dirty} of {size}", disk.name);
        assert_eq!(disk.method, Method::Full, "as the plan says");
    }

    let synced = fixture.sync(&Control::default(), &noted).unwrap();
    assert!(synced.resumed);
    assert_eq!(*noted.sequence.lock().unwrap(), Some(synced.manifest.sequence));
    for disk in &synced.manifest.disks {
        assert_eq!(disk.dirty_bytes, disk.size_bytes, "no cluster was stored twice");
    }
    let newest = fixture.store.job("web01").unwrap().ids().next_back().unwrap();
    assert_eq!(newest.sequence(), synced.manifest.sequence);
    let image = fixture.store.open_image(&newest).unwrap();
    for disk in image.disks() {
        let mut content = vec![0; 24 * MIB];
        disk.read_at(0, &mut content).unwrap();
        assert!(content == fs::read(fixture.scratch.join(disk.name())).unwrap());
    }
}

/// A sync whose chain another process locks as soon as the sync reads, and what is waited for.
struct Blocked {
    noted: Arc<Noted>,
    control: Arc<Control>,
    store: Store,
}

impl Blocked {
    fn new(fixture: &Fixture) -> Self {
        let noted = Arc::new(Noted {
            to_lock: Some(fixture.scratch.join("store/web01/reclaim.lock")),
            ..Noted::default()
        });
        let control = Arc::new(Control::default());
        let waiting = Waiting(noted.clone(), control.clone());
        Self {
            store: fixture.store.clone().with_lock_wait(Arc::new(waiting)),
            noted,
            control,
        }
    }

    /// Runs the sync, and `meanwhile` once it waits for the lock.
    fn sync(&self, fixture: &Fixture, meanwhile: impl FnOnce() + Send) -> super::Result<super::Synced> {
        let request = Request {
            checkpoint_every: Duration::ZERO,
            ..fixture.request()
        };
        let disks = open_all(&request.disks, None).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let waits = wait_until(PATIENCE, || {
                    let held_up = self.noted.held_up.lock().unwrap();
                    let pid = format!("(pid {})", std::process::id());
                    let waits = |by: &String| by.starts_with("waiting until") && by.contains(&pid);
                    held_up.iter().flatten().any(waits)
                });
                meanwhile();
                waits.unwrap();
            });
            run(
                Destination::Store(&self.store),
                &request,
                &disks,
                &self.control,
                &*self.noted,
            )
        })
    }
}

#[derive(Debug)]
struct Waiting(Arc<Noted>, Arc<Control>);

impl LockWait for Waiting {
    fn is_wanted(&self) -> bool {
        self.1.may_wait()
    }

    fn held_up(&self, by: Option<&str>) {
        Observer::held_up(&*self.0, by);
    }
}

#[test]
fn a_sync_says_who_holds_its_chain_and_goes_on_when_that_is_free() {
    let fixture = Fixture::new();
    let blocked = Blocked::new(&fixture);
    let unlock = || drop(blocked.noted.locked.lock().unwrap().take());
    let synced = blocked.sync(&fixture, unlock).unwrap();
    assert_eq!(synced.manifest.sequence, 1);
    assert!(!synced.resumed);
    let held_up = blocked.noted.held_up.lock().unwrap();
    assert_eq!(held_up.last(), Some(&None), "{held_up:?}");
    assert_eq!(fixture.store.unfinished("web01").unwrap(), None);
}

#[test]
fn a_stop_ends_a_sync_that_waits_for_its_chain() {
    let fixture = Fixture::new();
    let blocked = Blocked::new(&fixture);
    let stop = || assert!(!blocked.control.stop());
    let error = blocked.sync(&fixture, stop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let message = error.full_message();
    let pid = format!("(pid {})", std::process::id());
    assert!(
        message.contains("chain web01 is locked by") && message.contains(&pid),
        "{message}"
    );
    drop(blocked.noted.locked.lock().unwrap().take());
    let synced = fixture.sync(&Control::default(), &Noted::default()).unwrap();
    assert_eq!(
        fixture.store.job("web01").unwrap().sequences(),
        [synced.manifest.sequence]
    );
}

#[test]
fn a_disk_that_fails_is_named() {
    let fixture = Fixture::new();
    let request = fixture.request();
    let disks = open_all(&request.disks, None).unwrap();
    // It shrinks after it was opened.
    let file = fs::File::options()
        .write(true)
        .open(fixture.scratch.join("vdb"))
        .unwrap();
    file.set_len(9 * MIB as u64).unwrap();
    let control = Control::default();
    let error = run(
        Destination::Store(&fixture.store),
        &request,
        &disks,
        &control,
        &Noted::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    let message = error.full_message();
    assert!(message.contains("sync vdb ("), "{message}");
    assert!(!message.contains("sync vda"), "{message}");
}

impl Fixture {
    fn images(&self) -> Vec<u64> {
        self.store.job("web01").unwrap().sequences().to_vec()
    }

    fn retain(&self, max_images: usize) -> super::Retained {
        super::retain(&self.store, "web01", max_images).unwrap()
    }

    /// Syncs after a change to the first disk.
    fn sync_changed(&self, seed: u64) {
        let mut content = fs::read(self.scratch.join("vda")).unwrap();
        content[..MIB].copy_from_slice(&noise(MIB, seed));
        fs::write(self.scratch.join("vda"), content).unwrap();
        self.sync(&Control::default(), &Noted::default()).unwrap();
    }

    /// Verifies an image and keeps the result, as `smc-image verify` does; whether it is good.
    fn verify(&self, sequence: u64) -> bool {
        let id = self.store.job("web01").unwrap().get(sequence).unwrap();
        let image = self.store.open_image(&id).unwrap();
        let plan = VerifyPlan::default();
        let verified = Verifier::new().verify(&image, &plan, &mut |_| ControlFlow::Continue(()));
        let now = jiff::Timestamp::now();
        let span = Span {
            run: now,
            started: now,
            finished: now,
        };
        let mut verdict = Verdict::new(image.manifest());
        verdict.add(&plan, span, &[24 * MIB as u64; 2], &verified);
        self.store.keep_verdict(&image, &verdict).unwrap();
        verified.findings.is_empty()
    }

    /// Keeps the record of a boot check, as `smc-image boot --check` does.
    fn booted(&self, sequence: u64) {
        let id = self.store.job("web01").unwrap().get(sequence).unwrap();
        let image = self.store.open_image(&id).unwrap();
        let result = BootResult {
            started: jiff::Timestamp::now(),
            finished: jiff::Timestamp::now(),
            check: "a login prompt".into(),
            kernel_ms: Some(900),
            reached_ms: Some(9000),
            problem: None,
            machine: BootMachine {
                firmware: "bios".into(),
                accelerator: "tcg".into(),
                disk_bus: "virtio".into(),
                memory_mib: 1024,
                cpus: 2,
                network: false,
            },
            console: Vec::new(),
            screenshot: None,
            smc: "test".into(),
            qemu: "test".into(),
        };
        let verdict = BootVerdict::new(image.manifest(), result);
        self.store.keep_boot_verdict(&image, &verdict).unwrap();
    }

    /// Flips a bit of what an image has stored itself, behind the header of its layer.
    fn damage(&self, sequence: u64) {
        let id = self.store.job("web01").unwrap().get(sequence).unwrap();
        let manifest = self.store.manifest(&id).unwrap();
        let own = manifest.layers.iter().map(|layer| layer.id).max().unwrap();
        let path = self.scratch.join(format!("store/web01/layers/{own:08x}.layer"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[5000] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn the_last_good_image_stays_while_a_newer_one_is_damaged() {
    let fixture = Fixture::new();
    fixture.sync_changed(10);
    fixture.sync_changed(11);
    assert!(fixture.verify(1));
    fixture.damage(2);
    assert!(!fixture.verify(2));
    for seed in 12..16 {
        fixture.sync_changed(seed);
        let retained = fixture.retain(2);
        let newest = *fixture.images().last().unwrap();
        assert_eq!(fixture.images(), [1, 2, newest], "{retained:?}");
        let text = retained.warnings.join("; ");
        assert!(
            text.contains("web01/1 is kept") && text.contains("web01/2 is damaged"),
            "{text}"
        );
    }
    fixture.sync_changed(16);
    let newest = *fixture.images().last().unwrap();
    assert!(
        fixture.verify(newest),
        "what is damaged was stored anew, or changed since"
    );
    let retained = fixture.retain(2);
    assert_eq!(retained.warnings, Vec::<String>::new());
    assert_eq!(fixture.images(), [newest - 1, newest]);
}

#[test]
fn the_newest_image_that_was_verified_and_the_newest_that_booted_stay() {
    let fixture = Fixture::new();
    for seed in 10..14 {
        fixture.sync_changed(seed);
    }
    assert!(fixture.verify(1));
    fixture.booted(1);
    fixture.booted(2);
    let retained = fixture.retain(3);
    assert_eq!(fixture.images(), [1, 2, 4], "{retained:?}");
    assert_eq!(
        retained.warnings,
        Vec::<String>::new(),
        "there are as many as wished"
    );
    let retained = fixture.retain(1);
    assert_eq!(fixture.images(), [1, 2, 4], "{retained:?}");
    let text = retained.warnings.join("; ");
    assert!(
        text.contains("web01/1 is kept as well, as it is the newest image that was verified"),
        "{text}"
    );
    assert!(
        text.contains("web01/2 is kept as well, as it is the newest image that booted"),
        "{text}"
    );
    assert!(fixture.verify(4));
    fixture.booted(4);
    let retained = fixture.retain(1);
    assert_eq!(fixture.images(), [4], "{retained:?}");
}

#[test]
fn an_image_that_booted_and_was_found_damaged_is_no_proof() {
    let fixture = Fixture::new();
    for seed in 10..12 {
        fixture.sync_changed(seed);
    }
    fixture.booted(1);
    fixture.booted(2);
    fixture.damage(2);
    assert!(!fixture.verify(2));
    let id = fixture.store.job("web01").unwrap().get(1).unwrap();
    assert_eq!(fixture.store.proven(&id).unwrap().booted, Some(id));
}

#[test]
fn pins_that_cannot_be_read_keep_one_image_and_no_other() {
    let fixture = Fixture::new();
    for seed in 10..14 {
        fixture.sync_changed(seed);
    }
    fs::write(
        fixture.scratch.join("store/web01/images/000001.pins"),
        "not a record",
    )
    .unwrap();
    let retained = fixture.retain(2);
    assert_eq!(fixture.images(), [1, 4], "{retained:?}");
    let [warning] = retained.warnings.try_into().unwrap();
    assert!(
        warning.contains("web01/1 is kept") && warning.contains("smc-image unpin web01/1"),
        "{warning}"
    );
    assert!(!retained.in_use);
}

impl Fixture {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.scratch.join(name)
    }

    fn attempt(&self, change: impl FnOnce(&mut Request)) -> (super::Result<super::Synced>, Vec<String>) {
        let mut request = self.request();
        change(&mut request);
        let disks = open_all(&request.disks, None).unwrap();
        let noted = Noted::default();
        let synced = run(
            Destination::Store(&self.store),
            &request,
            &disks,
            &Control::default(),
            &noted,
        );
        (synced, noted.warnings.into_inner().unwrap())
    }

    fn synced(&self, change: impl FnOnce(&mut Request)) -> super::Synced {
        let (synced, warnings) = self.attempt(change);
        assert_eq!(warnings, Vec::<String>::new());
        synced.unwrap()
    }

    fn refused(&self, change: impl FnOnce(&mut Request)) -> String {
        let error = self.attempt(change).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        error.full_message()
    }

    fn exchange(&self, a: &str, b: &str) {
        let (a, b, away) = (self.path(a), self.path(b), self.path("away"));
        fs::rename(&a, &away).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&away, &b).unwrap();
    }

    /// Writes the signature of a boot record with one partition.
    fn label(&self, name: &str, id: [u8; 4]) {
        let mut content = fs::read(self.path(name)).unwrap();
        content[440..444].copy_from_slice(&id);
        content[446..510].fill(0);
        content[450] = 0x83;
        content[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(self.path(name), content).unwrap();
    }
}

#[test]
fn disks_that_changed_places_are_refused_by_what_lies_on_them() {
    for labeled in [true, false] {
        let fixture = Fixture::new();
        if labeled {
            fixture.label("vda", [1; 4]);
            fixture.label("vdb", [2; 4]);
        }
        fixture.synced(|_| {});
        // One that is larger is no growth.
        fs::File::options()
            .write(true)
            .open(fixture.path("vdb"))
            .unwrap()
            .set_len(32 * MIB as u64)
            .unwrap();
        fixture.exchange("vda", "vdb");
        let message = fixture.refused(|_| {});
        if labeled {
            assert!(
                message.contains("vda, given as vda, is the disk that web01/1 has as vdb"),
                "{message}"
            );
        }
        // Unlabeled, it is smaller as vdb; once that is accepted, its content tells.
        let message = fixture.refused(|request| request.accept_changed_disk = true);
        assert!(message.contains("changed places"), "{message}");
        assert_eq!(
            fixture.store.job("web01").unwrap().sequences(),
            [1],
            "nothing was stored"
        );
        fixture.exchange("vda", "vdb");
        assert_eq!(fixture.attempt(|_| {}).0.unwrap().manifest.sequence, 2);
    }
}

#[test]
fn the_right_disk_is_accepted_again_after_a_larger_wrong_one() {
    let fixture = Fixture::new();
    fixture.label("vda", [1; 4]);
    fixture.synced(|_| {});
    fs::write(fixture.path("wrong"), noise(28 * MIB, 9)).unwrap();
    fixture.label("wrong", [9; 4]);
    fixture.exchange("vda", "wrong");
    let message = fixture.refused(|_| {});
    assert!(message.contains("dos:01010101"), "{message}");
    let accept = |request: &mut Request| request.accept_changed_disk = true;
    let (synced, warnings) = fixture.attempt(accept);
    assert_eq!(synced.unwrap().manifest.sequence, 2);
    assert!(
        warnings[0].contains("nearly everything on disk vda differs from web01/1"),
        "{warnings:?}"
    );
    assert!(warnings[0].contains("delete web01/2"), "{warnings:?}");
    assert_eq!(warnings.len(), 1, "vdb is as it was");
    fixture.exchange("vda", "wrong");
    fixture.refused(|_| {});
    let (synced, _) = fixture.attempt(accept);
    let synced = synced.unwrap();
    let vda = synced.manifest.disk("vda").unwrap();
    assert_eq!((vda.size_bytes, vda.method), (24 * MIB as u64, Method::Full));
    let newest = fixture.store.job("web01").unwrap().latest().unwrap();
    let image = fixture.store.open_image(&newest).unwrap();
    let mut content = vec![0; 24 * MIB];
    image.disk(Some("vda")).unwrap().read_at(0, &mut content).unwrap();
    assert!(content == fs::read(fixture.path("vda")).unwrap());
}

#[test]
fn a_disk_that_nothing_identifies_and_that_holds_other_things_is_warned_of() {
    let fixture = Fixture::new();
    fixture.synced(|_| {});
    let (_, warnings) = fixture.attempt(|_| {});
    assert_eq!(warnings, [""; 0]);
    fs::write(fixture.path("vda"), noise(24 * MIB, 9)).unwrap();
    let (synced, warnings) = fixture.attempt(|_| {});
    // Before anything is read, and after the image was made.
    assert!(
        warnings[0].starts_with("nearly nothing on disk vda"),
        "{warnings:?}"
    );
    assert!(
        warnings[0].contains("web01/2") && warnings[0].contains("stop the sync"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("delete web01/3"), "{warnings:?}");
    assert_eq!((synced.unwrap().manifest.sequence, warnings.len()), (3, 2));
}

#[test]
fn a_disk_without_a_name_is_the_one_that_the_image_knows() {
    let fixture = Fixture::new();
    fixture.label("vda", [1; 4]);
    fixture.label("vdb", [2; 4]);
    let unnamed = |names: [&str; 2]| {
        let disks = names.map(|name| DiskArg {
            name: None,
            path: fixture.path(name),
        });
        move |request: &mut Request| request.disks = disks.to_vec()
    };
    let first = fixture.synced(unnamed(["vda", "vdb"]));
    let names = |synced: &super::Synced| {
        let disks = synced.manifest.disks.iter();
        disks
            .map(|disk| (disk.name.clone(), disk.digest.clone()))
            .collect::<Vec<_>>()
    };
    // The kernel names them otherwise after a reboot. Of files, the path tells too, so that it has to be accepted.
    for (from, to) in [("vda", "sdc"), ("vdb", "sda")] {
        fs::rename(fixture.path(from), fixture.path(to)).unwrap();
    }
    let renamed = |accept| {
        let rename = unnamed(["sdc", "sda"]);
        move |request: &mut Request| {
            rename(request);
            request.accept_changed_disk = accept;
        }
    };
    let message = fixture.refused(renamed(false));
    assert!(
        message.contains("sdc is not the disk that web01/1 has as vda: its backing file"),
        "{message}"
    );
    assert_eq!(names(&fixture.synced(renamed(true))), names(&first));
    let message = fixture.refused(|request| {
        renamed(true)(request);
        request.disks[0].name = Some("vdb".to_owned());
        request.disks[1].name = Some("vda".to_owned());
    });
    assert!(
        message.contains("changed places") && message.contains("--disk vda="),
        "{message}"
    );
}

#[test]
fn a_disk_that_grows_during_a_sync_keeps_what_was_stored() {
    let fixture = Fixture::new();
    let request = fixture.request();
    let disks = open_all(&request.disks, None).unwrap();
    let file = fs::File::options().write(true).open(fixture.path("vdb")).unwrap();
    file.set_len(30 * MIB as u64).unwrap();
    let error = run(
        Destination::Store(&fixture.store),
        &request,
        &disks,
        &Control::default(),
        &Noted::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device, "{error:?}");
    assert!(
        error.full_message().contains("the next sync resumes"),
        "{error:?}"
    );
    let stored = fixture.store.unfinished("web01").unwrap().unwrap();
    assert!(stored.disks.iter().any(|disk| disk.dirty_bytes > 0));
    let (resumed, warnings) = fixture.attempt(|_| {});
    let resumed = resumed.unwrap();
    assert!(resumed.resumed);
    assert!(
        warnings[0].contains("vdb") && warnings[0].contains("grew from 24 MiB to 30 MiB"),
        "{warnings:?}"
    );
    assert_eq!(resumed.manifest.disk("vdb").unwrap().size_bytes, 30 * MIB as u64);
}

#[test]
fn a_name_is_distinguished_from_a_path() {
    let disk = |text: &str| text.parse::<DiskArg>().unwrap();
    let named = DiskArg {
        name: Some("vda".into()),
        path: "/dev/loop0".into(),
    };
    assert_eq!(disk("vda=/dev/loop0"), named);
    let unnamed = DiskArg {
        name: None,
        path: "/dev/sda".into(),
    };
    assert_eq!(disk("/dev/sda"), unnamed);
    assert_eq!(disk("/dev/disk/by-id/a=b").name, None);
    assert!("vda=".parse::<DiskArg>().is_err());
    assert!("..=/dev/sda".parse::<DiskArg>().is_err());
}
