//! `smc-image ls-files` and `cp`: single files out of images, as the imaged server sees them.

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, outside of test functions too"
)]

mod common;

use common::mounts::{leftovers, partitioned, turn};
use common::{CLUSTER, Fixture, MIB, find, noise};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use testkit::guard::{LoopDevice, Mount, MountedFile};
use testkit::program::{Running, tool, wait_for};

const BOOT_ID: &str = "11111111-2222-4333-8444-555555555555";
/// Version 2 of the attribute, cap_net_raw permitted and effective (linux/capability.h: `vfs_cap_data`).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LARGE: usize = 24 * MIB + 5;

/// An ext4 with what `fill` makes.
fn ext4(fixture: &Fixture, mib: usize, id: &str, fill: impl FnOnce(&Path)) -> Vec<u8> {
    let content = fixture.join(&format!("content-{id}"));
    fs::create_dir_all(&content).unwrap();
    fill(&content);
    let file = fixture.sparse_file(&format!("fs-{id}"), mib * MIB);
    let (content, file) = (content.to_str().unwrap(), file.to_str().unwrap());
    tool("mkfs.ext4", &["-q", "-F", "-U", id, "-d", content, file]);
    fs::read(file).unwrap()
}

fn fill_root(root: &Path) {
    for dir in ["etc/app", "boot", "srv/data/sub", "bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let fstab = format!("UUID={BOOT_ID} /boot ext4 defaults 0 2\nUUID=0815 /gone ext4 defaults 0 2\n");
    fs::write(root.join("etc/fstab"), fstab).unwrap();
    fs::write(root.join("etc/app/secret"), "own").unwrap();
    fs::set_permissions(root.join("etc/app/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(root.join("etc/app/secret"), Some(1234), Some(4321)).unwrap();
    fs::write(root.join("bin/su"), "#!").unwrap();
    chown(root.join("bin/su"), Some(77), Some(0)).unwrap();
    fs::set_permissions(root.join("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join("srv/data/large"), noise(LARGE, 3)).unwrap();
    fs::write(root.join("srv/data/sub/\u{1b}[31m"), "escape").unwrap();
    // As the server sees them: not the files of this machine.
    symlink("/etc/app/secret", root.join("absolute")).unwrap();
    symlink("../../../../../etc/app", root.join("srv/up")).unwrap();
}

/// A server with a separate /boot.
fn server(fixture: &Fixture, job: &str) -> Vec<u8> {
    let boot = ext4(fixture, 8, BOOT_ID, |boot| {
        fs::write(boot.join("vmlinuz"), "kernel").unwrap();
    });
    let root_id = "aaaaaaaa-2222-4333-8444-555555555555";
    let root = ext4(fixture, 48, root_id, fill_root);
    let disk = partitioned(&[(0x83, &boot), (0x83, &root)]);
    fixture.sync(job, &[("vda", &disk)]);
    disk
}

fn names(fixture: &Fixture, args: &[&str]) -> Vec<String> {
    let all = [&["--json", "ls-files"], args].concat();
    let said = fixture.run(&all);
    let lines = said.stdout.lines();
    let names = lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone());
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn outside(fixture: &Fixture) -> PathBuf {
    let dir = fixture.join("out");
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn files_are_listed_as_the_server_sees_them() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "files-ls";
    let image = format!("{job}/1");
    server(&fixture, job);
    assert!(names(&fixture, &[&image]).contains(&"/etc".to_owned()));
    // The filesystem that fstab mounts there, and not the empty directory below it.
    assert!(names(&fixture, &[&image, "/boot"]).contains(&"/boot/vmlinuz".to_owned()));
    assert!(names(&fixture, &["--partition", "1", &image]).contains(&"/vmlinuz".to_owned()));
    assert_eq!(names(&fixture, &[&image, "/srv/up"]), ["/srv/up/secret"]);
    assert!(names(&fixture, &["-r", &image, "/srv"]).contains(&"/srv/data/sub".to_owned()));
    let said = fixture.run(&["ls-files", &image, "/bin"]);
    assert!(
        said.stdout.contains("-rwsr-xr-x") && said.stdout.contains("77:0"),
        "{said:?}"
    );
    assert!(
        said.stderr.contains("/gone: UUID=0815 is not in the image"),
        "{said:?}"
    );
    let said = fixture.run(&["ls-files", &image, "/srv/data/sub"]).ok();
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let said = fixture.run(&["ls-files", &image, "/no/such"]).fails(1);
    assert!(said.contains("has no /no/such"), "{said}");
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn a_copy_has_owner_mode_and_time() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "files-cp";
    server(&fixture, job);
    let out = outside(&fixture);
    let source = |path: &str| format!("{job}/1:{path}");
    let to = |name: &str| out.join(name).display().to_string();
    fixture.run(&["cp", &source("/bin/su"), &to("")]).ok();
    fixture.run(&["cp", &source("/absolute"), &to("secret")]).ok();
    let (su, secret) = (
        fs::metadata(to("su")).unwrap(),
        fs::metadata(to("secret")).unwrap(),
    );
    assert_eq!((su.uid(), su.mode() & 0o7777), (77, 0o4755));
    assert_eq!(
        (secret.uid(), secret.gid(), secret.mode() & 0o7777),
        (1234, 4321, 0o600)
    );
    assert_eq!(fs::read_to_string(to("secret")).unwrap(), "own");
    let original = fixture.join("content-aaaaaaaa-2222-4333-8444-555555555555/bin/su");
    assert_eq!(su.mtime(), fs::metadata(original).unwrap().mtime());
    fixture.run(&["cp", &source("/boot/vmlinuz"), &to("")]).ok();
    fixture.run(&["cp", "-r", &source("/srv"), &to("srv")]).ok();
    assert!(fs::read(to("srv/data/large")).unwrap() == noise(LARGE, 3));
    let up = fs::read_link(to("srv/up")).unwrap();
    assert_eq!(up, Path::new("../../../../../etc/app"));
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

/// Puts a socket into /srv of the filesystem in a file: mke2fs does not copy any.
fn add_socket(file: &Path, place: &Path) {
    let device = LoopDevice::attach(file).unwrap();
    let mount = MountedFile::new(device, place, "ext4", MsFlags::empty()).unwrap();
    let socket = mount.path().join("srv/socket");
    nix::sys::stat::mknod(&socket, SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    mount.unmount().unwrap();
}

#[test]
fn a_copy_has_extended_attributes_and_hard_links() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "files-attributes";
    let root = ext4(&fixture, 16, BOOT_ID, |root| {
        fs::create_dir_all(root.join("srv/sub")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/fstab"), "").unwrap();
        fs::write(root.join("srv/first"), "one file").unwrap();
        fs::hard_link(root.join("srv/first"), root.join("srv/sub/second")).unwrap();
        xattr::set(root.join("srv/first"), "user.origin", b"somewhere").unwrap();
        xattr::set(root.join("srv/sub"), "trusted.kind", b"dir\0ectory").unwrap();
        // cap_net_raw, as ping has it: a change of the owner would take it away.
        xattr::set(root.join("srv/first"), "security.capability", &CAPABILITY).unwrap();
        chown(root.join("srv/first"), Some(7), Some(8)).unwrap();
        xattr::set(root.join("srv/first"), "security.capability", &CAPABILITY).unwrap();
        symlink("sub/second", root.join("srv/link")).unwrap();
    });
    let file = fixture.join("root");
    fs::write(&file, root).unwrap();
    add_socket(&file, &fixture.join("mnt"));
    fixture.sync(job, &[("vda", &fs::read(&file).unwrap())]);
    let out = outside(&fixture);
    let dest = out.join("srv");
    let said = fixture.run(&[
        "--json",
        "cp",
        "-r",
        &format!("{job}/1:/srv"),
        dest.to_str().unwrap(),
    ]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let found: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&found["attributes_not_kept"], &found["sockets_left_out"]),
        (&0.into(), &1.into())
    );
    assert!(said.stderr.contains("1 socket left out"), "{said:?}");
    let attribute = |file: &str, name: &str| xattr::get(dest.join(file), name).unwrap();
    assert_eq!(
        attribute("first", "user.origin").as_deref(),
        Some(&b"somewhere"[..])
    );
    assert_eq!(
        attribute("sub", "trusted.kind").as_deref(),
        Some(&b"dir\0ectory"[..])
    );
    assert_eq!(
        attribute("sub/second", "security.capability").as_deref(),
        Some(&CAPABILITY[..])
    );
    let inode = |file: &str| fs::metadata(dest.join(file)).unwrap().ino();
    assert_eq!(inode("first"), inode("sub/second"));
    assert_eq!(fs::metadata(dest.join("first")).unwrap().nlink(), 2);

    // A filesystem that takes no attributes of users.
    let plain = Mount::new(Path::new("none"), &out.join("none"), "tmpfs", MsFlags::empty()).unwrap();
    let to = plain.path().join("first").display().to_string();
    let said = fixture.run(&["cp", &format!("{job}/1:/srv/first"), &to]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(fs::read_to_string(&to).unwrap(), "one file");
    let kept = xattr::get(&to, "user.origin").unwrap_or_default().is_some();
    assert!(
        kept || said.stderr.contains("could not be kept") && said.stderr.contains("user.origin"),
        "{said:?}"
    );
    plain.unmount().unwrap();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

#[test]
fn what_cannot_be_copied_leaves_nothing_at_the_destination() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "files-bad";
    let disk = server(&fixture, job);
    let large = noise(LARGE, 3);
    let cluster = find(&disk, &large[20 * MIB..20 * MIB + 4096]).unwrap() / CLUSTER;
    fixture.damage_cluster(job, &disk[cluster * CLUSTER..(cluster + 1) * CLUSTER]);
    let out = outside(&fixture);
    let dest = out.join("x").display().to_string();
    for (args, words) in [
        (["/srv/data/large", ""], "Input/output error"),
        (["/srv", "-r"], "large"),
        (["/srv", ""], "copy it with -r"),
        (["/missing", ""], "has no /missing"),
    ] {
        let source = format!("{job}/1:{}", args[0]);
        let mut all = vec!["cp", source.as_str(), dest.as_str()];
        all.extend(args[1..].iter().filter(|arg| !arg.is_empty()));
        let said = fixture.run(&all).fails(1);
        assert!(said.contains(words), "{said}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{args:?}");
    }
    fs::create_dir(out.join("x")).unwrap();
    fs::create_dir(out.join("x/srv")).unwrap();
    let said = fixture
        .run(&["cp", "-r", &format!("{job}/1:/srv"), &dest])
        .fails(1);
    assert!(said.contains("is there already"), "{said}");
    fixture.run(&["cp", &format!("{job}/1"), &dest]).fails(2);
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}

/// Wherever it is killed: nothing is mounted, no loop device and no process stays, and nothing is at the destination.
#[test]
fn a_killed_copy_leaves_nothing() {
    let _turn = turn();
    let fixture = Fixture::new();
    let job = "files-kill";
    server(&fixture, job);
    let out = outside(&fixture);
    let kill_at = |seen: usize| {
        let mut command = fixture.command();
        command
            .args(["cp", &format!("{job}/1:/srv/data/large")])
            .arg(out.join("x"));
        let mut running = Running::start(&mut command);
        let mut ended = false;
        wait_for("a moment of the copy", || {
            ended = running.0.try_wait().unwrap().is_some();
            let begun = fs::read_dir(&out).unwrap().count();
            ended || leftovers(&fixture, job).len() + begun >= seen
        });
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        // A directory that was made in the last moment is nobody's: the next mount removes it.
        wait_for("everything to go", || {
            leftovers(&fixture, job)
                .iter()
                .all(|left| left.starts_with("an entry in"))
        });
        let was_complete = out.join("x").exists();
        assert!(!was_complete || fs::read(out.join("x")).unwrap() == noise(LARGE, 3));
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        !ended && !was_complete
    };
    let killed = (1..10).filter(|seen| kill_at(*seen)).count();
    assert!(killed > 0, "it was always faster");
    fixture.run(&["ls-files", &format!("{job}/1")]).ok();
    assert_eq!(leftovers(&fixture, job), [""; 0]);
}
