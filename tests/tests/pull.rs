//! Images that another machine pulls from a target: read, restored, served and mounted there; and what a machine that may pull may not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use remote::pull::PulledStore;
use remote::{ErrorKind, TargetFiles};
use smc_tests::target::{Source, Target};
use smc_tests::{Bench, Disk, assert_same_bytes, code, program, stderr};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::guard::Mount;
use testkit::process::{run, wait_for};
use testkit::program::Running;
use wire::message::Refusal;

const MIB: u64 = 1 << 20;

/// A target with two images of a source, and another machine that may read them.
struct Scene {
    bench: Bench,
    target: Target,
    source: Source,
    disk: Disk,
    /// What the other machine knows of the target.
    reader: PathBuf,
    /// Where it shows the store.
    dir: PathBuf,
}

impl Scene {
    fn new(name: &str, settings: &str) -> Result<Scene> {
        let target = Target::new(&format!("{name}-target"), settings)?;
        let source = target.enrol("web01", target.address)?;
        let bench = Bench::new(name)?;
        let disk = bench.disk("disk.img", 48 * MIB)?;
        disk.write_noise(5 * MIB, 24 << 20, 1)?;
        source.sync(&disk, &[])?;
        disk.copy_to(&bench.dir.join("first.img"))?;
        disk.write_noise(MIB, 65536, 2)?;
        source.sync(&disk, &[])?;
        let reader = target.enrol_reader("dr01", "web01")?;
        let dir = bench.dir.join("pulled");
        fs::create_dir(&dir)?;
        Ok(Scene {
            bench,
            target,
            source,
            disk,
            reader,
            dir,
        })
    }

    fn files(&self, directory: &Path) -> TargetFiles {
        TargetFiles::open(directory, "backup").unwrap()
    }

    /// The store is shown until this is dropped.
    fn pull(&self) -> Pulled {
        self.pull_as(&self.reader, "web01")
    }

    fn pull_as(&self, reader: &Path, source: &str) -> Pulled {
        let mut command = Command::new(program("smc-image"));
        command.args(["pull", "backup"]).arg(&self.dir);
        let mut running = Running::start(command.arg("--targets-directory").arg(reader));
        let lines = running.lines(1);
        assert!(
            lines.iter().any(|line| line.contains(source)),
            "{lines:?} {running:?}"
        );
        Pulled {
            running: Some(running),
            _mount: Mount::adopt(&self.dir),
        }
    }

    /// smc-image, on the store as the other machine sees it.
    fn image(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("smc-image"));
        command.env("SMC_RESTORED", self.bench.dir.join("restored.d"));
        command.arg("--store").arg(&self.dir).args(args).output().unwrap()
    }

    fn image_ok(&self, args: &[&str]) -> String {
        let output = self.image(args);
        assert_eq!(code(&output), 0, "smc-image {args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The process that shows a store. It ends before what is mounted is unmounted.
struct Pulled {
    running: Option<Running>,
    _mount: Mount,
}

impl Pulled {
    fn end(mut self, signal: &str) -> Option<i32> {
        self.running.take().unwrap().signal(signal).0
    }
}

#[test]
fn another_machine_works_on_the_images_as_on_its_own() -> Result<()> {
    let scene = Scene::new("pull-life", "")?;
    let pulled = scene.pull();
    assert!(scene.image_ok(&["ls"]).contains("web"));
    scene.image_ok(&[
        "verify",
        "web/latest",
        "--against",
        scene.disk.path().to_str().unwrap(),
    ]);
    let file = scene.bench.dir.sparse_file("restored.raw", 48 * MIB)?;
    let shown = file.to_str().unwrap();
    scene.image_ok(&["restore", "--yes", "web/1", shown]);
    assert_same_bytes(&file, &scene.bench.dir.join("first.img"))?;
    let onto = scene.image_ok(&["--json", "restore", "--yes", "--onto", "web/2", shown]);
    assert!(onto.contains("\"data_bytes\":65536"), "{onto}");
    assert_same_bytes(&file, &scene.disk.backing)?;
    assert!(!scene.image_ok(&["diff", "web/1", "web/2"]).is_empty());
    // A client of the server that runs here.
    let socket = scene.bench.dir.join("nbd.sock");
    let mut serve = Command::new(program("smc-image"));
    serve
        .arg("--store")
        .arg(&scene.dir)
        .args(["serve", "web/1", "--socket"])
        .arg(&socket);
    let mut serving = Running::start(&mut serve);
    assert_eq!(serving.lines(1).len(), 1);
    let uri = format!("nbd+unix:///web/1?socket={}", socket.display());
    let copy = scene.bench.dir.join("nbd.raw");
    run(Command::new("qemu-img")
        .args(["convert", "-O", "raw", &uri])
        .arg(&copy))?;
    assert_same_bytes(&copy, &scene.bench.dir.join("first.img"))?;
    // What is open here is not deleted there.
    let refused = scene.source.image(&["rm", "web/1"])?;
    assert!(
        code(&refused) != 0 && stderr(&refused).contains("use"),
        "{refused:?}"
    );
    assert_eq!(serving.signal("TERM").0, Some(0));
    wait_for("the target lets it be deleted", || {
        code(&scene.source.image(&["rm", "web/1"]).unwrap()) == 0
    });
    // Nothing can be changed from here.
    for change in [&["rm", "web/2"][..], &["pin", "web/2"], &["gc", "web"]] {
        assert_eq!(code(&scene.image(change)), 1, "{change:?}");
    }
    // A new image is seen.
    scene.disk.write_noise(2 * MIB, 65536, 3)?;
    scene.source.sync(&scene.disk, &[])?;
    wait_for("the new image", || code(&scene.image(&["info", "web/3"])) == 0);
    assert_eq!(pulled.end("TERM"), Some(0));
    assert_eq!(fs::read_dir(&scene.dir)?.count(), 0, "it is not mounted any more");
    Ok(())
}

#[test]
fn files_of_an_image_are_read_on_another_machine() -> Result<()> {
    let scene = Scene::new("pull-mount", "")?;
    let disk = scene.bench.disk("files.img", 32 * MIB)?;
    let mount = Mount::format("ext4", disk.path(), &scene.bench.dir.join("files"))?;
    fs::write(mount.path().join("hello"), "from the source")?;
    mount.unmount()?;
    let files = scene.target.enrol("files", scene.target.address)?;
    files.sync(&disk, &[])?;
    let reader = scene.target.enrol_reader("dr02", "files")?;
    let pulled = scene.pull_as(&reader, "files");
    let place = scene.bench.dir.join("mnt");
    fs::create_dir(&place)?;
    scene.image_ok(&["mount", "web/latest", place.to_str().unwrap()]);
    let read = fs::read_to_string(place.join("hello"));
    scene.image_ok(&["umount", place.to_str().unwrap()]);
    assert_eq!(read?, "from the source");
    assert_eq!(pulled.end("INT"), Some(0));
    Ok(())
}

/// The target is killed and started again while a disk is restored from it.
#[test]
fn a_restore_survives_a_target_that_is_away() -> Result<()> {
    let mut scene = Scene::new("pull-away", "")?;
    let pulled = scene.pull();
    let file = scene.bench.dir.sparse_file("restored.raw", 48 * MIB)?;
    let mut restore = Command::new(program("smc-image"));
    restore.env("SMC_RESTORED", scene.bench.dir.join("restored.d"));
    restore
        .arg("--store")
        .arg(&scene.dir)
        .args(["restore", "--yes", "web/2"])
        .arg(&file);
    let mut running = Running::start(&mut restore);
    scene.target.kill();
    scene.target.start()?;
    let mut ended = None;
    wait_for("the restore ends", || {
        ended = running.0.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_same_bytes(&file, &scene.disk.backing)?;
    drop(pulled);
    Ok(())
}

fn is_rights<T>(done: remote::Result<T>) -> bool {
    done.is_err_and(|error| error.kind() == ErrorKind::Refused(Refusal::Rights))
}

#[test]
fn who_may_pull_may_do_nothing_else_and_who_may_push_may_not_pull() -> Result<()> {
    let scene = Scene::new("pull-rights", "")?;
    let other = scene.target.enrol("web02", scene.target.address)?;
    other.sync(&scene.disk, &[])?;
    let reader = scene.files(&scene.reader);
    let store = PulledStore::new(&reader)?;
    let listing = store.list()?;
    assert_eq!(listing.source, "web01");
    assert!(
        listing
            .files
            .iter()
            .any(|file| file.path == "web/images/000002.json")
    );
    // Its own status, and nothing that sources do.
    assert_eq!(remote::status(&reader)?.source, "dr01");
    assert!(is_rights(remote::newest(&reader, "web")));
    let mut as_source = scene.source.clone();
    as_source.directory.clone_from(&scene.reader);
    let output = as_source.sync_command(scene.disk.path(), &[]).output()?;
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("may only read"), "{}", stderr(&output));
    // Nothing of other sources, by no path.
    for path in [
        "../web02/store.json",
        "web/../../web02/store.json",
        "web/writer.lock",
        ".notes/web.json",
    ] {
        let read = store.read(path, 0, 100);
        assert!(
            read.is_err_and(|error| error.kind() == ErrorKind::Invalid),
            "{path}"
        );
    }
    assert!(store.hold("../web02/web", 1).is_err());
    assert!(store.hold("web", 99).is_err());
    // A source reads nothing, not even of itself.
    for source in [&scene.source, &other] {
        let own = PulledStore::new(&scene.files(&source.directory))?;
        assert!(is_rights(own.list()));
        assert!(is_rights(own.read("store.json", 0, 100)));
        assert!(is_rights(own.hold("web", 1)));
    }
    // Who is revoked reads nothing from then on, by no connection.
    let held = store.hold("web", 1)?;
    store.read("store.json", 0, 100)?;
    run(&mut scene.target.command(&["revoke", "dr01"]))?;
    assert!(is_rights(store.read("store.json", 0, 100)));
    wait_for("the image is not held any more", || {
        code(&scene.source.image(&["rm", "web/1"]).unwrap()) == 0
    });
    drop(held);
    let shown = run(&mut scene.target.command(&["ls"]))?;
    assert!(!shown.contains("dr01"), "{shown}");
    Ok(())
}

#[test]
fn wrong_arguments_are_refused() -> Result<()> {
    let scene = Scene::new("pull-refused", "")?;
    let enrol = |args: &[&str]| {
        let output = scene
            .target
            .command(&[&["enrol"], args].concat())
            .output()
            .unwrap();
        (code(&output), stderr(&output))
    };
    assert_eq!(enrol(&["dr02", "--role", "pull"]).0, 2);
    assert_eq!(enrol(&["dr02", "--of", "web01"]).0, 2);
    assert!(
        enrol(&["dr02", "--role", "pull", "--of", "web09"])
            .1
            .contains("no source web09")
    );
    assert!(
        enrol(&["web01", "--role", "pull", "--of", "web01", "--again"])
            .1
            .contains("other rights")
    );
    let pull = |args: &[&str], known: &Path| {
        let mut command = Command::new(program("smc-image"));
        command
            .arg("pull")
            .args(args)
            .arg("--targets-directory")
            .arg(known);
        let output = command.output().unwrap();
        assert_eq!(code(&output), 1, "{output:?}");
        stderr(&output)
    };
    let dir = scene.dir.to_str().unwrap();
    assert!(pull(&["backup", dir], &scene.source.directory).contains("--role pull --of web01"));
    assert!(pull(&["elsewhere", dir], &scene.reader).contains("no target"));
    assert!(pull(&["backup", "/nonexistent"], &scene.reader).contains("/nonexistent"));
    fs::write(scene.dir.join("mine"), "")?;
    assert!(pull(&["backup", dir], &scene.reader).contains("not empty"));
    let shown = run(&mut scene.target.command(&["ls"]))?;
    assert!(shown.contains("dr01 may read its images"), "{shown}");
    let list = scene.target.list()?;
    let names: Vec<_> = list["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|source| &source["role"])
        .collect();
    assert_eq!(names, ["pull", "push"], "{list}");
    Ok(())
}
