//! Things in place of a store's files on a real filesystem: links, FIFOs, sockets, devices, holes; and files that
//! change while they are open.

use super::model::Model;
use super::support::*;
use crate::{ClusterSize, Error, ErrorKind, Result, Store};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const LAYER: &str = "job/layers/00000001.layer";
const MANIFEST: &str = "job/images/000001.json";

/// A raw cluster, a compressed one, and a short last one.
fn model() -> Model {
    let mut model = Model::new(40 * 16384 + 100, ClusterSize::K16);
    model.set(1, random_bytes(1, 16384));
    model.set(2, text_bytes(2, 16384));
    model.set(40, text_bytes(3, 100));
    model
}

fn written() -> (TempDir, Store) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = Store::open_or_create(dir.path(), false).unwrap();
    write_image(&store, "job", &[("vda", &model())]).unwrap();
    (dir, store)
}

fn read(dir: &Path) -> Result<()> {
    let store = Store::open(dir)?;
    let image = open_image(&store, "job", 1)?;
    let bytes = read_all(&image.disks()[0])?;
    assert!(bytes == model().read(0, bytes.len()), "wrong bytes");
    Ok(())
}

fn sync(dir: &Path) -> Result<()> {
    let mut changed = model();
    changed.set(5, random_bytes(5, 16384));
    write_image(&Store::open(dir)?, "job", &[("vda", &changed)]).map(drop)
}

/// Puts one thing in the place of a file or directory; what was there lies in `aside` meanwhile.
struct Impostor {
    place: PathBuf,
    aside: PathBuf,
    _socket: Option<UnixListener>,
}

const KINDS: [&str; 7] = [
    "symlink",
    "dangling symlink",
    "FIFO",
    "socket",
    "character device",
    "block device",
    "other type",
];

impl Impostor {
    fn new(place: PathBuf, aside: &Path, kind: &str) -> Self {
        let aside = aside.join("aside");
        let is_dir = place.is_dir();
        fs::rename(&place, &aside).unwrap();
        let node = |flag, device| mknod(&place, flag, Mode::from_bits_truncate(0o600), device).unwrap();
        let mut socket = None;
        match kind {
            "symlink" => symlink(&aside, &place).unwrap(),
            "dangling symlink" => symlink(aside.with_extension("gone"), &place).unwrap(),
            "FIFO" => node(SFlag::S_IFIFO, 0),
            "socket" => socket = Some(UnixListener::bind(&place).unwrap()),
            // That of /dev/zero, which would never end.
            "character device" => node(SFlag::S_IFCHR, makedev(1, 5)),
            // A number for local use, which no driver has: an open that got as far would be another error.
            "block device" => node(SFlag::S_IFBLK, makedev(240, 7)),
            _ if is_dir => fs::write(&place, "file").unwrap(),
            _ => fs::create_dir(&place).unwrap(),
        }
        Self {
            place,
            aside,
            _socket: socket,
        }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        // Whatever fails here shows in the next use of the store, and a panic would hide the one before.
        let _ = fs::remove_file(&self.place).or_else(|_| fs::remove_dir(&self.place));
        let _ = fs::rename(&self.aside, &self.place);
    }
}

/// What fails, and names the place, when something else lies there.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Reader,
    Writer,
}

const PLACES: [(&str, Needs); 9] = [
    ("store.json", Needs::Reader),
    ("job", Needs::Reader),
    ("job/images", Needs::Reader),
    ("job/layers", Needs::Reader),
    (MANIFEST, Needs::Reader),
    (LAYER, Needs::Reader),
    ("job/chain.json", Needs::Writer),
    ("job/writer.lock", Needs::Writer),
    ("job/reclaim.lock", Needs::Writer),
];

fn refused(error: &Error, place: &str, told: &str) {
    let text = format!("{error:?}");
    assert!(text.contains(place), "{told}: the error names no {place}: {text}");
    let kinds = [
        ErrorKind::Damaged,
        ErrorKind::Io,
        ErrorKind::NotFound,
        ErrorKind::NotAStore,
    ];
    assert!(kinds.contains(&error.kind()), "{told}: {text}");
}

/// Nothing of these is followed, waited for or written to, and the store is as before once they are gone.
#[test]
fn whatever_lies_in_place_of_a_file_or_directory_is_refused() {
    let (dir, _store) = written();
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    for (place, needs) in PLACES {
        for kind in KINDS {
            let told = format!("{kind} in place of {place}");
            let impostor = Impostor::new(dir.path().join(place), outside.path(), kind);
            let before = listing(outside.path());
            match needs {
                Needs::Reader => refused(&read(dir.path()).unwrap_err(), place, &told),
                Needs::Writer => read(dir.path()).unwrap_or_else(|error| panic!("{told}: {error:?}")),
            }
            // A writer may do without its parent and the layers of it, but never goes through what is not the store's.
            match sync(dir.path()) {
                Err(error) => refused(&error, place.split('/').next().unwrap(), &told),
                Ok(()) => assert!(
                    [MANIFEST, LAYER].contains(&place),
                    "{told}: a sync did not notice"
                ),
            }
            assert_eq!(
                before,
                listing(outside.path()),
                "{told}: something outside changed"
            );
            drop(impostor);
            read(dir.path()).unwrap_or_else(|error| panic!("after a {told}: {error:?}"));
        }
    }
}

/// Paths and lengths of everything below a directory.
fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), metadata.len()));
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

/// The names under which a sync prepares its files may be taken by anything as well: it is refused or removed.
#[test]
fn temporary_names_are_no_way_out_of_the_store() {
    let victim = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = victim.path().join("victim");
    for path in ["job/chain.json.tmp", "job/images/000002.json.tmp"] {
        for link in [
            |a: &Path, b: &Path| symlink(a, b),
            |a: &Path, b: &Path| fs::hard_link(a, b),
        ] {
            let (dir, _store) = written();
            fs::write(&file, "precious").unwrap();
            link(&file, &dir.path().join(path)).unwrap();
            if let Err(error) = sync(dir.path()) {
                assert!(error.to_string().contains(path), "{error}");
            }
            assert_eq!(fs::read(&file).unwrap(), b"precious", "{path}");
            read(dir.path()).unwrap();
        }
    }
}

/// A layer is held open by its readers: one that shrinks or grows under them is damage or of no account.
#[test]
fn a_layer_that_shrinks_or_grows_while_it_is_open() {
    let (dir, store) = written();
    let path = dir.path().join(LAYER);
    let whole = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let image = open_image(&store, "job", 1).unwrap();
    let disk = &image.disks()[0];
    // The layer is open from here on, and its nodes are known; the raw cluster was not read yet.
    disk.read_at(40 * 16384, &mut [0; 100]).unwrap();
    let mut bytes = vec![0; 16384];
    for len in [0, 1, 4095, 4096, 8192, 12288, 20479] {
        file.set_len(len).unwrap();
        let error = disk.read_at(16384, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        for part in ["job/1:vda", "cluster 1 ", LAYER] {
            assert!(
                error.to_string().contains(part),
                "expected \"{part}\" in: {error}"
            );
        }
        // Grown again, but what was there is gone: zeros are not handed out either.
        file.set_len(whole.len() as u64).unwrap();
        let error = disk.read_at(16384, &mut bytes).unwrap_err();
        assert!(error.to_string().contains("does not match its digest"), "{error}");
    }
    file.write_all_at(&whole, 0).unwrap();
    file.write_all_at(b"more", whole.len() as u64).unwrap();
    file.set_len(1 << 40).unwrap();
    disk.read_at(16384, &mut bytes).unwrap();
    assert!(bytes == model().get(1));
    read(dir.path()).unwrap();
}

/// An open image is of the manifest that was there when it was opened.
#[test]
fn a_manifest_that_changes_while_its_image_is_open() {
    let (dir, store) = written();
    let image = open_image(&store, "job", 1).unwrap();
    fs::write(dir.path().join(MANIFEST), "nonsense").unwrap();
    let bytes = read_all(&image.disks()[0]).unwrap();
    assert!(bytes == model().read(0, bytes.len()));
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    let bytes = read_all(&image.disks()[0]).unwrap();
    assert!(bytes == model().read(0, bytes.len()));
    assert!(open_image(&store, "job", 1).is_err());
}

/// Zeros where an image points to are found by digest or check, block by block, on a real filesystem.
#[test]
fn holes_punched_into_what_an_image_points_to_are_found() {
    use nix::fcntl::{FallocateFlags, fallocate};
    let (dir, store) = written();
    let path = dir.path().join(LAYER);
    let whole = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for start in (0..i64::try_from(whole.len()).unwrap()).step_by(4096) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, start, 4096).unwrap();
        let told = format!("hole at {start}");
        assert_ne!(findings(&store, "job", 1), NOTHING, "{told}");
        let error = read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{told}");
        assert!(error.to_string().contains("00000001"), "{told}: {error}");
        file.write_all_at(&whole, 0).unwrap();
    }
    assert_eq!(findings(&store, "job", 1), NOTHING);
}

/// The first file of a store that claims to be larger than any filesystem has room for.
#[test]
fn sealed_files_of_absurd_length_are_refused() {
    for path in ["store.json", MANIFEST, "job/chain.json"] {
        let (dir, _store) = written();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join(path))
            .unwrap();
        file.set_len(8 << 40).unwrap();
        let error = read(dir.path()).and_then(|()| sync(dir.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        for part in [path, "longer than 67108864 bytes"] {
            assert!(
                error.to_string().contains(part),
                "expected \"{part}\" in: {error}"
            );
        }
    }
}
