//! The store on real filesystems: O_DIRECT, locks, what lies where a file should, and no space left.

use super::model::Model;
use super::support::*;
use crate::storage::dir::DirStorage;
use crate::{ClusterSize, ErrorKind, Store};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

fn directory_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::open_or_create(dir.path(), false).unwrap();
    (dir, store)
}

fn model() -> Model {
    let mut model = Model::new((16 << 20) + 3 * 65536 + 100, ClusterSize::K64);
    for index in [0, 1, 2, 100, 255, 256, 258, 259] {
        let len = model.cluster_len(index);
        model.set(
            index,
            if index % 2 == 0 {
                random_bytes(index, len)
            } else {
                text_bytes(index, len)
            },
        );
    }
    model
}

fn check(store: &Store, sequence: u64, model: &Model) {
    assert_eq!(findings(store, "job", sequence), NOTHING);
    let image = open_image(store, "job", sequence).unwrap();
    assert_eq!(image.disks()[0].digest().to_string(), model.digest());
    assert!(read_all(&image.disks()[0]).unwrap() == model.read(0, model.size as usize));
}

#[test]
fn a_chain_in_a_directory_reads_as_its_models() {
    let (dir, store) = directory_store();
    let mut model = model();
    let mut history = Vec::new();
    for number in 0..3 {
        model.set(number, random_bytes(number + 50, 65536));
        write_image(&store, "job", &[("vda", &model)]).unwrap();
        history.push(model.clone());
    }
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.chains().unwrap().names, ["job"]);
    for (sequence, model) in (1..).zip(&history) {
        check(&store, sequence, model);
    }
    let names = |sub: &str| {
        let mut names: Vec<_> = fs::read_dir(dir.path().join(sub))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["job", "store.json"]);
    let files = ["chain.json", "images", "layers", "reclaim.lock", "writer.lock"];
    assert_eq!(names("job"), files);
    assert_eq!(names("job/images"), ["000001.json", "000002.json", "000003.json"]);
    assert_eq!(
        names("job/layers"),
        ["00000001.layer", "00000002.layer", "00000003.layer"]
    );
    for name in names("job/layers") {
        assert_eq!(
            fs::metadata(dir.path().join("job/layers").join(name))
                .unwrap()
                .len()
                % 4096,
            0
        );
    }
}

#[test]
fn a_second_writer_is_told_that_the_job_is_busy() {
    let (_dir, store) = directory_store();
    let disks = ["vda".to_owned()];
    let writer = store.begin("job", None, &disks).unwrap();
    let error = store.begin("job", None, &disks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let holder = format!("pid {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    store.begin("another", None, &disks).unwrap();
    drop(writer);
    store.begin("job", None, &disks).unwrap();
}

#[test]
fn readers_read_on_while_images_are_written() {
    let (_dir, store) = directory_store();
    let first = model();
    write_image(&store, "job", &[("vda", &first)]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let expected = first.read(0, first.size as usize);
            let image = open_image(&store, "job", 1).unwrap();
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                assert!(read_all(&image.disks()[0]).unwrap() == expected);
                let newest = *store.sequences("job").unwrap().last().unwrap();
                assert_eq!(findings(&store, "job", newest), NOTHING);
                rounds += 1;
            }
        });
        let mut model = first.clone();
        for number in 0..5 {
            model.set(number, random_bytes(number + 70, 65536));
            write_image(&store, "job", &[("vda", &model)]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn only_regular_files_below_the_store_are_opened() {
    for path in [
        "store.json",
        "job/images/000001.json",
        "job/layers/00000001.layer",
    ] {
        let (dir, store) = directory_store();
        write_image(&store, "job", &[("vda", &model())]).unwrap();
        let whole = || {
            let store = Store::open(dir.path())?;
            let image = open_image(&store, "job", 1)?;
            read_all(&image.disks()[0])
        };
        whole().unwrap();
        let file = dir.path().join(path);
        let aside = dir.path().join("aside");
        fs::rename(&file, &aside).unwrap();
        let refused = |what: &str| {
            let error = whole().unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Damaged,
                "{what} in place of {path}: {error:?}"
            );
        };
        // The right content, but a symlink could as well lead to any file of this machine.
        symlink(&aside, &file).unwrap();
        refused("symlink");
        fs::remove_file(&file).unwrap();
        run(Command::new("mkfifo").arg(&file));
        refused("FIFO");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        refused("directory");
        fs::remove_dir(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
        whole().unwrap();
    }
}

#[test]
fn a_chain_behind_a_symlink_is_not_followed() {
    let (dir, store) = directory_store();
    write_image(&store, "job", &[("vda", &model())]).unwrap();
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::rename(dir.path().join("job"), outside.path().join("job")).unwrap();
    symlink(outside.path().join("job"), dir.path().join("job")).unwrap();
    assert!(open_image(&store, "job", 1).is_err());
    assert!(store.begin("job", None, &["vda".to_owned()]).is_err());
    assert_eq!(store.chains().unwrap().names, NOTHING);
}

#[test]
fn only_an_empty_or_missing_directory_becomes_a_store() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    assert_eq!(Store::open(dir.path()).unwrap_err().kind(), ErrorKind::NotAStore);
    fs::write(dir.path().join("holiday.jpg"), "x").unwrap();
    let error = Store::open_or_create(dir.path(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAStore);
    assert!(error.to_string().contains("holiday.jpg"), "{error}");
    let missing = dir.path().join("new");
    assert_eq!(Store::open(&missing).unwrap_err().kind(), ErrorKind::NotAStore);
    Store::open_or_create(&missing, false).unwrap();
    Store::open(&missing).unwrap();
    Store::open_or_create(&missing, false).unwrap();
    assert_eq!(
        Store::open(&dir.path().join("holiday.jpg")).unwrap_err().kind(),
        ErrorKind::NotAStore
    );
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A small ext4 on a loop device, gone with this value whatever happens.
struct SmallFilesystem {
    dir: TempDir,
    device: String,
}

impl SmallFilesystem {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("disk");
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let device = run(Command::new("losetup")
            .args(["--direct-io=on", "-f", "--show"])
            .arg(&file));
        let made = Self { dir, device };
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", &made.device]));
        fs::create_dir(made.path()).unwrap();
        run(Command::new("mount").arg(&made.device).arg(made.path()));
        made
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        // A panic here would hide the one that brought us here; what is not there needs no cleaning.
        let _ = Command::new("umount").arg(self.path()).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

fn layer_count(store: &Path) -> usize {
    fs::read_dir(store.join("job/layers")).unwrap().count()
}

#[test]
fn a_full_filesystem_costs_no_earlier_image() {
    let filesystem = SmallFilesystem::new(24 << 20);
    let path = filesystem.path();
    let store = Store::open_or_create(&path, false).unwrap();
    let mut model = model();
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    let first = model.clone();
    // 13 MiB of changes fit once; a second time they do not.
    fill(&mut model, 1000);
    write_image(&store, "job", &[("vda", &model)]).unwrap();
    let second = model.clone();
    fill(&mut model, 2000);
    let error = write_image(&store, "job", &[("vda", &model)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    assert!(
        causes(&error).contains("No space left on device"),
        "{}",
        causes(&error)
    );

    assert_eq!(layer_count(&path), 2, "the failed sync's layers are removed");
    assert_eq!(store.sequences("job").unwrap(), [1, 2]);
    check(&store, 1, &first);
    check(&store, 2, &second);
    let mut third = second.clone();
    third.set(3, text_bytes(3, 65536));
    let manifest = write_image(&store, "job", &[("vda", &third)]).unwrap();
    check(&store, manifest.sequence, &third);
}

fn fill(model: &mut Model, seed: u64) {
    (0..200).for_each(|index| model.set(index, random_bytes(index + seed, 65536)));
}

fn causes(error: &dyn std::error::Error) -> String {
    let rest = error.source().map(causes).unwrap_or_default();
    format!("{error}: {rest}")
}

/// Who makes a store may have been suspended while it did.
#[test]
fn whoever_makes_a_store_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let storage = DirStorage::open(dir.path()).unwrap();
    let held = storage.lock_whole(Duration::ZERO).unwrap();
    let error = DirStorage::open(dir.path())
        .unwrap()
        .lock_whole(Duration::ZERO)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let pid = format!("pid {}", std::process::id());
    assert!(error.to_string().contains(&pid), "{error:?}");
    drop(held);
    Store::open_or_create(dir.path(), false).unwrap();
}
