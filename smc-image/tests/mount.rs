//! `smc-image mount` and `umount`: what can be seen in an image, and that nothing of it stays behind.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::mounts::{STATE, leftovers, partitioned, target, turn};
use common::{CLUSTER, Fixture, MIB, disk, find, is_locked, noise};
use nix::mount::MsFlags;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use testkit::guard::{LoopDevice, Mount};
use testkit::program::{Run, Running, run, tool, wait_for};

/// A filesystem of `mib` MiB in a file; what `populate` is called on becomes its content.
fn ext4(fixture: &Fixture, mib: usize, label: &str) -> Vec<u8> {
    let content = fixture.join(&format!("content-{label}"));
    fs::create_dir_all(content.join("sub")).unwrap();
    fs::write(content.join("sub/name"), label).unwrap();
    fs::write(content.join("large"), noise(3 * MIB + 5, 7)).unwrap();
    let file = fixture.sparse_file(label, mib * MIB);
    tool(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-b",
            "4096",
            "-d",
            content.to_str().unwrap(),
            file.to_str().unwrap(),
        ],
    );
    fs::read(file).unwrap()
}

/// A mounted image; unmounted when dropped, whatever happened.
struct Mounted<'a> {
    fixture: &'a Fixture,
    dir: PathBuf,
    said: Value,
}

impl<'a> Mounted<'a> {
    fn new(fixture: &'a Fixture, args: &[&str]) -> Self {
        let dir = target(fixture);
        let mut all = vec!["mount", "--json"];
        all.extend(args);
        all.push(dir.to_str().unwrap());
        let said = serde_json::from_str(&fixture.run(&all).ok()).unwrap();
        Self { fixture, dir, said }
    }

    fn name(&self) -> String {
        fs::read_to_string(self.dir.join("sub/name")).unwrap()
    }

    fn device(&self) -> &Path {
        Path::new(self.said["loop_devices"][0].as_str().unwrap())
    }

    fn pid(&self) -> String {
        self.said["server_pid"].to_string()
    }

    /// Unmounts it and checks that nobody has anything to complain about.
    fn umount(&self) {
        let ended = self.try_umount();
        assert!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:?}");
    }

    fn try_umount(&self) -> Run {
        run(self.fixture.command().arg("umount").arg(&self.dir))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // It is unmounted already where the test went well.
        let _ = self.try_umount();
    }
}

/// The digest of what is in the only disk of an image.
fn digest(fixture: &Fixture, job: &str, sequence: u64) -> String {
    fixture
        .run(&["digest", "--recompute", &format!("{job}/{sequence}")])
        .ok()
}

#[test]
fn what_is_not_mounted_is_not_unmounted() {
    let _turn = turn();
    let fixture = Fixture::new();
    fixture.run(&["umount"]).fails(2);
    let complaint = fixture.run(&["umount", "/var/tmp"]).fails(1);
    assert!(
        complaint.contains("/var/tmp is not where smc-image mounted"),
        "{complaint}"
    );
    fixture.run(&["umount", "/nonexistent"]).fails(1);
}

#[test]
fn the_one_partition_with_a_filesystem_is_mounted() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-one";
    let swap = [vec![0; 4086], b"SWAPSPACE2".to_vec(), vec![0; MIB]].concat()[..MIB].to_vec();
    let root = ext4(&fixture, 16, "root");
    fixture.sync(job, &[("vda", &partitioned(&[(0x82, &swap), (0x83, &root)]))]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/latest")]);
    assert_eq!(mounted.said["image"], format!("{job}/1:vda"));
    assert_eq!(mounted.said["partition"], 2);
    assert_eq!(mounted.said["filesystem"], "ext4");
    assert_eq!(mounted.name(), "root");
    assert_eq!(
        fs::read(mounted.dir.join("large")).unwrap(),
        noise(3 * MIB + 5, 7)
    );
    assert!(
        fs::write(mounted.dir.join("new"), "x").is_err(),
        "it can be written to"
    );
    assert!(
        !leftovers(&fixture, job).is_empty(),
        "the test sees nothing even while it is mounted"
    );
    mounted.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

/// The chain has the name of the job that began it, and a job of that name has an image of the same number elsewhere.
#[test]
fn an_image_of_a_job_that_took_up_another_one_is_mounted() {
    let _turn = turn();
    let fixture = Fixture::new();
    let own = ext4(&fixture, 16, "own");
    fixture.sync("mnt-old", &[("vda", &ext4(&fixture, 16, "before"))]);
    fixture.take_up("mnt-new", "mnt-old", &[("vda", &own)]);
    fixture.namesake("mnt-old", &[("vda", &ext4(&fixture, 16, "foreign"))]);
    let mounted = Mounted::new(&fixture, &["mnt-new/latest"]);
    assert_eq!(mounted.said["image"], "mnt-new/2:vda");
    assert_eq!(mounted.name(), "own");
    mounted.umount();
    assert_eq!(leftovers(&fixture, "mnt-new"), [""; 0]);
    let other = Mounted::new(&fixture, &["mnt-old/2"]);
    assert_eq!(other.name(), "foreign");
    other.umount();
}

#[test]
fn several_filesystems_need_a_choice() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-several";
    let (boot, root) = (ext4(&fixture, 8, "boot"), ext4(&fixture, 16, "root"));
    let lvm = [vec![0; 512], b"LABELONE".to_vec(), vec![0; MIB]].concat()[..MIB].to_vec();
    fixture.sync(
        job,
        &[("vda", &partitioned(&[(0x83, &boot), (0x83, &root), (0x8e, &lvm)]))],
    );
    let image = format!("{job}/1");
    let dir = target(&fixture);
    let dir = dir.to_str().unwrap();
    let complaint = fixture.run(&["mount", &image, dir]).fails(1);
    for part in [
        "--partition",
        "1  8 MiB, Linux filesystem: ext4",
        "2  16 MiB",
        "3  1 MiB, Linux LVM: an LVM",
        "vda, partition 1",
    ] {
        assert!(complaint.contains(part), "{part} is not in {complaint}");
    }
    let complaint = fixture.run(&["mount", &image, dir, "--partition", "3"]).fails(1);
    assert!(complaint.contains("LVM physical volume"), "{complaint}");
    let complaint = fixture.run(&["mount", &image, dir, "--partition", "4"]).fails(1);
    assert!(
        complaint.contains("no partition 4") && complaint.contains("16 MiB"),
        "{complaint}"
    );
    assert_eq!(leftovers(&fixture, job), [""; 0]);
    for (number, name) in [("1", "boot"), ("2", "root")] {
        let mounted = Mounted::new(&fixture, &["--partition", number, &image]);
        assert_eq!(mounted.name(), name);
        mounted.umount();
    }
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn every_common_filesystem_can_fill_the_disk() {
    let _turn = turn();
    for (fstype, mib, mkfs) in [
        ("ext4", 8, "mkfs.ext4"),
        ("xfs", 300, "mkfs.xfs"),
        ("btrfs", 128, "mkfs.btrfs"),
    ] {
        let fixture = Fixture::new();
        let job = format!("mnt-{fstype}");
        let file = fixture.sparse_file(fstype, mib * MIB);
        tool(mkfs, &["-q", file.to_str().unwrap()]);
        fixture.sync(&job, &[("vda", &fs::read(&file).unwrap())]);
        let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
        assert_eq!(mounted.said["filesystem"], fstype);
        assert_eq!(mounted.said["partition"], Value::Null);
        let shown = tool(
            "findmnt",
            &["-n", "-o", "FSTYPE,OPTIONS", mounted.dir.to_str().unwrap()],
        );
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.starts_with(fstype) && shown.contains("ro,"), "{shown}");
        mounted.umount();
        assert_eq!(leftovers(&fixture, &job), [""; 0]);
    }
}

/// Files that are made durable one by one.
const LATE_FILES: usize = 50;

/// How many of them can be read.
fn late_files(dir: &Path) -> usize {
    let read =
        |number: &usize| fs::read(dir.join(format!("late-{number}"))).is_ok_and(|text| text == b"late");
    (0..LATE_FILES).filter(read).count()
}

/// A filesystem after a power cut, and after an unmount: what its disk holds each time.
fn dirty_and_clean(fixture: &Fixture, fstype: &str, mib: usize) -> [Vec<u8>; 2] {
    let file = fixture.sparse_file(&format!("{fstype}.raw"), mib * MIB);
    tool(&format!("mkfs.{fstype}"), &["-q", file.to_str().unwrap()]);
    let device = LoopDevice::attach(&file).unwrap();
    let place = fixture.join(&format!("{fstype}.mnt"));
    let mounted = Mount::new(device.path(), &place, fstype, MsFlags::empty()).unwrap();
    fs::write(mounted.path().join("early"), "early").unwrap();
    nix::unistd::sync();
    // What fsync makes durable is in the journal first.
    for number in 0..LATE_FILES {
        let mut late = File::create(mounted.path().join(format!("late-{number}"))).unwrap();
        late.write_all(b"late").unwrap();
        late.sync_all().unwrap();
    }
    let dirty = fs::read(&file).unwrap();
    mounted.unmount().unwrap();
    device.detach().unwrap();
    [dirty, fs::read(&file).unwrap()]
}

/// What was written last before an image shows: after a power cut it is in the journal only.
#[test]
fn journal_is_replayed_into_an_overlay() {
    let _turn = turn();
    for (fstype, mib) in [("ext4", 16), ("xfs", 300), ("btrfs", 128)] {
        let fixture = Fixture::new();
        let job = format!("mnt-dirty-{fstype}");
        let image = format!("{job}/latest");
        for (content, dirty) in dirty_and_clean(&fixture, fstype, mib).iter().zip([true, false]) {
            let synced = fixture.sync(&job, &[("vda", content)]);
            let before = digest(&fixture, &job, synced.sequence);
            let mounted = Mounted::new(&fixture, &[&image]);
            assert_eq!(mounted.said["journal_not_replayed"], false, "{fstype}");
            assert_eq!(late_files(&mounted.dir), LATE_FILES, "{fstype}, dirty: {dirty}");
            let refused = fs::write(mounted.dir.join("new"), "x").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{fstype}: {refused}");
            mounted.umount();
            assert_eq!(digest(&fixture, &job, synced.sequence), before, "{fstype}");
        }
        assert_eq!(leftovers(&fixture, &job), [""; 0]);
    }
}

#[test]
fn a_journal_that_is_not_replayed_is_told_of() {
    let _turn = turn();
    for (fstype, mib) in [("ext4", 16), ("xfs", 300), ("btrfs", 128)] {
        let fixture = Fixture::new();
        let job = format!("mnt-noreplay-{fstype}");
        let image = format!("{job}/latest");
        for (content, dirty) in dirty_and_clean(&fixture, fstype, mib).iter().zip([true, false]) {
            fixture.sync(&job, &[("vda", content)]);
            let dir = target(&fixture);
            let ended = fixture.run(&["mount", "--no-replay", &image, dir.to_str().unwrap()]);
            let found = late_files(&dir);
            fixture.run(&["umount", dir.to_str().unwrap()]).ok();
            assert_eq!(found == LATE_FILES, !dirty, "{fstype}: {found} files");
            assert_eq!(
                ended.stderr.contains("was not replayed"),
                dirty,
                "{fstype}: {ended:?}"
            );
        }
        assert_eq!(leftovers(&fixture, &job), [""; 0]);
    }
}

#[test]
fn what_is_changed_in_a_writable_mount_is_not_in_the_image() {
    let _turn = turn();
    for (fstype, mib) in [("ext4", 16), ("xfs", 300), ("btrfs", 128)] {
        let fixture = Fixture::new();
        let job = format!("mnt-rw-{fstype}");
        let image = format!("{job}/1");
        let [dirty, _] = dirty_and_clean(&fixture, fstype, mib);
        fixture.sync(&job, &[("vda", &dirty)]);
        let before = digest(&fixture, &job, 1);
        let mounted = Mounted::new(&fixture, &["--rw", &image]);
        assert_eq!(mounted.said["writable"], true);
        let content = noise(2 * MIB + 7, 3);
        let new = mounted.dir.join("new");
        fs::write(&new, &content).unwrap();
        File::open(&new).unwrap().sync_all().unwrap();
        fs::remove_file(mounted.dir.join("early")).unwrap();
        tool("fstrim", &[mounted.dir.to_str().unwrap()]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        assert!(fs::read(&new).unwrap() == content, "{fstype}");
        mounted.umount();
        assert_eq!(digest(&fixture, &job, 1), before, "{fstype}");
        let again = Mounted::new(&fixture, &[&image]);
        assert!(!again.dir.join("new").exists() && again.dir.join("early").exists());
        again.umount();
        assert_eq!(leftovers(&fixture, &job), [""; 0]);
    }
}

/// A full overlay is an error for the writer, and the mount can still be taken away.
#[test]
fn an_overlay_has_a_limit() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-limit";
    fixture.sync(job, &[("vda", &ext4(&fixture, 32, "root"))]);
    let mounted = Mounted::new(
        &fixture,
        &["--rw", "--overlay-limit", "1MiB", &format!("{job}/1")],
    );
    let written = fs::write(mounted.dir.join("new"), noise(8 * MIB, 5));
    let synced = written.and_then(|()| File::open(mounted.dir.join("new"))?.sync_all());
    synced.unwrap_err();
    let ended = mounted.try_umount();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("--overlay-limit"), "{ended:?}");
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

/// A btrfs on two disks with a file, as after a power cut.
fn btrfs_of_two(fixture: &Fixture) -> [Vec<u8>; 2] {
    let files = ["a", "b"].map(|name| fixture.sparse_file(name, 128 * MIB));
    let devices = [&files[0], &files[1]].map(|file| LoopDevice::attach(file).unwrap());
    let [first, second] = [&devices[0], &devices[1]].map(|device| device.path().to_str().unwrap());
    tool(
        "mkfs.btrfs",
        &["-q", "-d", "single", "-m", "raid1", first, second],
    );
    // The kernel knows the second one from mkfs.
    let place = fixture.join("two.mnt");
    let mounted = Mount::new(devices[0].path(), &place, "btrfs", MsFlags::empty()).unwrap();
    fs::write(place.join("file"), noise(MIB, 9)).unwrap();
    File::open(place.join("file")).unwrap().sync_all().unwrap();
    let disks = [fs::read(&files[0]).unwrap(), fs::read(&files[1]).unwrap()];
    mounted.unmount().unwrap();
    for device in &devices {
        hostdev::forget_btrfs(device.path()).unwrap();
    }
    disks
}

#[test]
fn a_btrfs_on_two_disks_is_mounted_by_either() {
    let _turn = turn();
    let fixture = Fixture::new();
    let disks = btrfs_of_two(&fixture);
    fixture.sync("mnt-two", &[("vda", &disks[0]), ("vdb", &disks[1])]);
    for image in ["mnt-two/1", "mnt-two/1:vda", "mnt-two/1:vdb"] {
        let mounted = Mounted::new(&fixture, &[image]);
        assert_eq!(mounted.said["image"], "mnt-two/1");
        assert_eq!(mounted.said["disks"], serde_json::json!(["vda", "vdb"]));
        assert!(fs::read(mounted.dir.join("file")).unwrap() == noise(MIB, 9));
        // The kernel would take the one for the other.
        let dir = fixture.join("second");
        fs::create_dir_all(&dir).unwrap();
        let said = fixture.run(&["mount", image, dir.to_str().unwrap()]).fails(1);
        assert!(said.contains("is mounted already"), "{said}");
        mounted.umount();
        assert_eq!(leftovers(&fixture, "mnt-two"), [""; 0]);
    }
    let writable = Mounted::new(&fixture, &["--rw", "mnt-two/1"]);
    fs::remove_file(writable.dir.join("file")).unwrap();
    writable.umount();
    assert_eq!(leftovers(&fixture, "mnt-two"), [""; 0]);
}

#[test]
fn one_disk_of_a_btrfs_of_two_is_told_of() {
    let _turn = turn();
    let fixture = Fixture::new();
    let disks = btrfs_of_two(&fixture);
    let dir = target(&fixture);
    fixture.sync("mnt-half", &[("vda", &disks[0])]);
    let said = fixture
        .run(&["mount", "mnt-half/1", dir.to_str().unwrap()])
        .fails(1);
    assert!(
        said.contains("has 2 devices, and 1 of them are not in the image"),
        "{said}"
    );
    fixture.sync("mnt-copy", &[("vda", &disks[0]), ("vdb", &disks[0])]);
    let said = fixture
        .run(&["mount", "mnt-copy/1:vda", dir.to_str().unwrap()])
        .fails(1);
    assert!(said.contains("one of them is a copy"), "{said}");
    for job in ["mnt-half", "mnt-copy"] {
        assert_eq!(leftovers(&fixture, job), [""; 0]);
    }
}

#[test]
fn umount_of_the_system_makes_everything_go() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-plain";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    tool("umount", &[mounted.dir.to_str().unwrap()]);
    wait_for("everything to go by itself", || {
        leftovers(&fixture, job).is_empty()
    });
    let complaint = fixture.run(&["umount", mounted.dir.to_str().unwrap()]).fails(1);
    assert!(complaint.contains("is not where"), "{complaint}");
}

#[test]
fn killed_server_is_cleared_up_after() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-killed";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    tool("kill", &["-s", "KILL", &mounted.pid()]);
    mounted.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);

    // The same while there are changes that it has not got yet.
    let mounted = Mounted::new(&fixture, &["--rw", &format!("{job}/1")]);
    fs::write(mounted.dir.join("new"), noise(CLUSTER, 1)).unwrap();
    tool("kill", &["-s", "KILL", &mounted.pid()]);
    mounted.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);

    // The same when its filesystem was unmounted by hand, and nobody was left to notice.
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    tool("kill", &["-s", "KILL", &mounted.pid()]);
    tool("umount", &[mounted.dir.to_str().unwrap()]);
    mounted.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn what_cannot_be_mounted_leaves_nothing() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-broken";
    let mut broken = ext4(&fixture, 8, "root");
    // The superblock keeps its magic number and loses its sense.
    broken[1024..1024 + 48].fill(0xff);
    fixture.sync(job, &[("vda", &broken)]);
    let dir = target(&fixture);
    let image = format!("{job}/1");
    let complaint = fixture.run(&["mount", &image, dir.to_str().unwrap()]).fails(1);
    assert!(
        complaint.contains("mount the ext4 filesystem") && complaint.contains("dmesg"),
        "{complaint}"
    );
    fixture
        .run(&["mount", &image, fixture.join("missing").to_str().unwrap()])
        .fails(1);
    fixture.run(&["mount", &image, "/etc/passwd"]).fails(1);
    let other = Fixture::new();
    other.sync(job, &[("vda", &disk(1))]);
    let complaint = other.run(&["mount", &image, dir.to_str().unwrap()]).fails(1);
    assert!(complaint.contains("no filesystem"), "{complaint}");
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn busy_mount_stays_whole() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-busy";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    let open = File::open(mounted.dir.join("large")).unwrap();
    let complaint = fixture.run(&["umount", mounted.dir.to_str().unwrap()]).fails(1);
    assert!(complaint.contains("in use"), "{complaint}");
    assert_eq!(mounted.name(), "root");
    drop(open);
    mounted.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn mounts_on_one_directory_come_off_in_order() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-stack";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "first"))]);
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "second"))]);
    let lower = Mounted::new(&fixture, &[&format!("{job}/1")]);
    let upper = Mounted::new(&fixture, &[&format!("{job}/2")]);
    assert_ne!(lower.device(), upper.device());
    assert_eq!(upper.name(), "second");
    upper.umount();
    assert_eq!(lower.name(), "first");
    lower.umount();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn damaged_cluster_is_an_error_for_whoever_reads_it_and_is_told() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-damaged";
    let bytes = ext4(&fixture, 16, "root");
    let large = noise(3 * MIB + 5, 7);
    let at = find(&bytes, &large[MIB..MIB + 4096]).unwrap();
    let cluster = at / CLUSTER;
    fixture.sync(job, &[("vda", &bytes)]);
    fixture.damage_cluster(job, &bytes[cluster * CLUSTER..(cluster + 1) * CLUSTER]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    assert_eq!(mounted.name(), "root");
    let error = fs::read(mounted.dir.join("large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let ended = mounted.try_umount();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains(&format!("cluster {cluster} ")), "{ended:?}");
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn mounted_image_is_in_use() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-used";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let mounted = Mounted::new(&fixture, &[&format!("{job}/1")]);
    let manifest = fixture.manifest(job, 1);
    assert!(
        is_locked(&manifest),
        "nothing keeps a mounted image from being deleted"
    );
    mounted.umount();
    assert!(!is_locked(&manifest));
}

/// A mounter that dies between two steps: what it had begun goes by itself.
#[test]
fn server_without_mounter_goes() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-orphan";
    let synced = fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let private = PathBuf::from(format!("{STATE}/{job}-orphan"));
    fs::create_dir_all(private.join("fuse")).unwrap();
    // With no stdin to hold on to, its mounter is as good as dead from the start.
    let image = format!("{job}/1");
    let serve = |id: &str| {
        let mut command = fixture.command();
        command.args(["mount", "--fuse-server", id, &image]).arg(&private);
        run(&mut command)
    };
    // It serves no image but the one that its mounter has opened.
    let refused = serve("another").fails(1);
    assert!(refused.contains("is another image now"), "{refused}");
    assert!(serve(&synced.id.to_string()).ok().starts_with("ready "));
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

/// Wherever a signal meets it: the image is mounted, or nothing is left.
#[test]
fn interrupted_mount_is_whole_or_undone() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "mnt-signal";
    fixture.sync(job, &[("vda", &ext4(&fixture, 8, "root"))]);
    let dir = target(&fixture);
    // Interrupts a mount of which this many things can be seen, and says whether it was undone.
    let interrupt = |seen: usize| {
        let mut command = fixture.command();
        let mut running = Running::start(command.args(["mount", &format!("{job}/1")]).arg(&dir));
        let mut ended = None;
        wait_for("a moment of the mount", || {
            ended = running.0.try_wait().unwrap();
            ended.is_some() || leftovers(&fixture, job).len() >= seen
        });
        let code = match ended {
            Some(status) => status.code(),
            None => running.signal("TERM").0,
        };
        let undone = code != Some(0);
        if !undone {
            fixture.run(&["umount", dir.to_str().unwrap()]).ok();
        }
        assert_eq!(leftovers(&fixture, job), [""; 0], "at {seen}, undone: {undone}");
        undone
    };
    let undone = (0..20)
        .map(|round| interrupt(round % 5))
        .filter(|undone| *undone)
        .count();
    if undone == 0 {
        wait_for("a signal that comes in time", || interrupt(0));
    }
}
