//! A sync of two disks, on files and a real store; and how disks are named.

use super::{Control, DiskArg, ErrorKind, ImageBegun, Observer, Request, open_all, run};
use api::Phase;
use changetrack::Progress;
use imagefmt::{LockWait, Method, Span, Store, Verdict, Verifier, VerifyPlan};
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use testkit::guard::ScratchDir;
use testkit::noise;
use testkit::process::wait_until;

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

    fn warn(&self, _text: &str) {}
}

/// Two disks that do not compress, and a store.
struct Fixture {
    scratch: ScratchDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let scratch = ScratchDir::new("smc-engine").unwrap();
        let store = imagefmt::open_or_create_store(&scratch.join("store"), true).unwrap();
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
            store: self.scratch.join("store"),
            job: "web01".to_owned(),
            take_up: None,
            disks: vec![disk("vda"), disk("vdb")],
            cluster_size: None,
            compress_level: 1,
            checkpoint_every: Duration::from_secs(3600),
            accept_changed_disk: false,
        }
    }

    fn sync(&self, control: &Control, observer: &Noted) -> super::Result<super::Synced> {
        let request = self.request();
        let disks = open_all(&request.disks, &request.store).unwrap();
        run(&self.store, &request, &disks, control, observer)
    }
}

#[test]
fn a_stop_in_the_middle_leaves_a_checkpoint_of_all_disks() {
    let fixture = Fixture::new();
    // 4 MiB a second for both together, so that neither is done when both have begun.
    let control = Control::new(4 * MIB as u64);
    let noted = Noted::default();
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let both = || {
                let disks = noted.disks.lock().unwrap();
                let begun = |progress: &Progress| progress.compared_bytes.load(Ordering::Relaxed) > 0;
                disks.len() == 2 && disks.iter().all(|(_, progress)| begun(progress))
            };
            let begun = wait_until(Duration::from_secs(120), both);
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

    let synced = fixture.sync(&Control::new(0), &noted).unwrap();
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
        let control = Arc::new(Control::new(0));
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
        let disks = open_all(&request.disks, &request.store).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let waits = wait_until(Duration::from_secs(120), || {
                    let held_up = self.noted.held_up.lock().unwrap();
                    let pid = format!("(pid {})", std::process::id());
                    let waits = |by: &String| by.starts_with("waiting until") && by.contains(&pid);
                    held_up.iter().flatten().any(waits)
                });
                meanwhile();
                waits.unwrap();
            });
            run(&self.store, &request, &disks, &self.control, &*self.noted)
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
    let synced = fixture.sync(&Control::new(0), &Noted::default()).unwrap();
    assert_eq!(
        fixture.store.job("web01").unwrap().sequences(),
        [synced.manifest.sequence]
    );
}

#[test]
fn a_disk_that_fails_is_named() {
    let fixture = Fixture::new();
    let request = fixture.request();
    let disks = open_all(&request.disks, &request.store).unwrap();
    // It shrinks after it was opened.
    let file = fs::File::options()
        .write(true)
        .open(fixture.scratch.join("vdb"))
        .unwrap();
    file.set_len(9 * MIB as u64).unwrap();
    let control = Control::new(0);
    let error = run(&fixture.store, &request, &disks, &control, &Noted::default()).unwrap_err();
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
        self.sync(&Control::new(0), &Noted::default()).unwrap();
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
