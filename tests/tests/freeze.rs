//! Freezing on real loop devices: what lies on a disk is found and frozen together, and thawed whatever happens to the process that
//! froze it.
//!
//! The test's own process never writes to a filesystem that may be frozen: other processes do, and a net thaws all of them when a
//! test dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use hostdev::{ProcessStat, Root};
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use smc_tests::{Bench, code, program, stderr};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;
use testkit::guard::{LoopDevice, Mount, ScratchDir};
use testkit::process::{spawn, wait_for};
use testkit::program::tool;
use testkit::{Random, noise};

/// xfs and btrfs need some room.
const DISK_BYTES: u64 = 400 << 20;

/// Longer than any test: the watchdog's time does not run out.
const NEVER_MS: u64 = 600_000;

/// Thaws mount points when the test ends, however it ends.
struct Net(Child);

impl Net {
    fn under(mounts: &[&Mount]) -> Net {
        let mut command = Command::new(program("freezer"));
        command.arg("net").args(mounts.iter().map(|mount| mount.path()));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Net(child)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b"q");
        }
        let _ = self.0.wait();
    }
}

/// A disk with a filesystem on it. Its net goes first.
struct Ground {
    net: Option<Net>,
    mount: Mount,
    device: LoopDevice,
    scratch: ScratchDir,
}

impl Ground {
    fn new(fs_type: &str) -> Ground {
        let scratch = ScratchDir::new("freeze").unwrap();
        let device = LoopDevice::attach(&scratch.sparse_file("disk", DISK_BYTES).unwrap()).unwrap();
        let mount = Mount::format(fs_type, device.path(), &scratch.join("mnt")).unwrap();
        Ground {
            net: Some(Net::under(&[&mount])),
            mount,
            device,
            scratch,
        }
    }

    fn lists(&self) -> PathBuf {
        self.scratch.join("lists")
    }

    /// Freezes or thaws as another process does; it has to succeed.
    fn fsfreeze(&self, how: &str) {
        tool("fsfreeze", &[how, self.mount.path().to_str().unwrap()]);
    }

    /// A process that freezes the disk, and has said so.
    fn freezer(&self, task: &str, budget_ms: u64, hold_ms: u64) -> Freezer {
        let mut command = self.freezer_command(task, budget_ms, hold_ms);
        Freezer::start(&mut command)
    }

    fn freezer_command(&self, task: &str, budget_ms: u64, hold_ms: u64) -> Command {
        let mut command = Command::new(program("freezer"));
        command.arg(task).arg("--smcd").arg(program("smcd"));
        command.arg("--lists").arg(self.lists());
        command.arg(format!("--budget-ms={budget_ms}"));
        command.arg(format!("--hold-ms={hold_ms}"));
        command.arg(self.device.path());
        command
    }

    /// A process that makes a file: it waits while the filesystem is frozen.
    fn writer(&self, name: &str) -> Writer {
        Writer(spawn(Command::new("touch").arg(self.mount.path().join(name))).unwrap())
    }

    /// Somebody can write again, and no list and no watchdog is left.
    #[track_caller]
    fn assert_thawed(&self) {
        self.writer("after").assert_done();
        wait_for("the watchdog to remove its list", || {
            fs::read_dir(self.lists()).unwrap().next().is_none()
        });
    }
}

struct Writer(Child);

impl Writer {
    #[track_caller]
    fn assert_done(mut self) {
        wait_for("a write", || self.0.try_wait().unwrap().is_some());
        assert!(self.0.wait().unwrap().success());
    }

    /// Waits until it is stopped by the frozen filesystem: in the kernel, where no signal reaches it.
    #[track_caller]
    fn assert_held(&mut self) {
        wait_for("the writer to be held", || {
            let stat = ProcessStat::read(&Root::system(), self.0.id()).unwrap();
            stat.unwrap().state == 'D'
        });
    }
}

struct Freezer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Freezer {
    fn start(command: &mut Command) -> Freezer {
        let mut child = spawn(command.stdout(Stdio::piped())).unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "frozen\n", "the freezer has ended: see its messages above");
        Freezer { child, output }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end, and returns what it says of the freeze.
    fn evidence(mut self) -> Value {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&text).unwrap()
    }

    /// Its watchdog.
    fn watchdog(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).unwrap();
        Pid::from_raw(children.trim().parse().unwrap())
    }
}

fn find(disks: &[&Path]) -> Value {
    let output = freezer("find", disks);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn freezer(task: &str, disks: &[&Path]) -> Output {
    let mut command = Command::new(program("freezer"));
    command.arg(task).args(disks).output().unwrap()
}

/// Mount points and kinds, in the order in which they are frozen.
fn filesystems(found: &Value) -> Vec<(PathBuf, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let filesystems = found["filesystems"].as_array().unwrap().iter();
    filesystems
        .map(|one| (text(&one["mount_point"]).into(), text(&one["kind"])))
        .collect()
}

#[test]
fn writers_wait_while_it_is_frozen_and_go_on_afterwards() {
    for fs_type in ["ext4", "xfs", "btrfs"] {
        let ground = Ground::new(fs_type);
        let freezer = ground.freezer("hold", NEVER_MS, 300);
        let mut writer = ground.writer("during");
        writer.assert_held();
        let evidence = freezer.evidence();
        assert_eq!(evidence["doubt"], Value::Null, "{fs_type}: {evidence}");
        assert_eq!(evidence["is_thawed_by_watchdog"], false, "{fs_type}");
        assert!(evidence["held_ms"].as_f64().unwrap() >= 300.0, "{evidence}");
        writer.assert_done();
        ground.assert_thawed();
    }
}

#[test]
fn a_filesystem_in_a_file_is_frozen_before_the_one_that_has_the_file() {
    let mut outer = Ground::new("xfs");
    let file = File::create_new(outer.mount.path().join("file")).unwrap();
    file.set_len(64 << 20).unwrap();
    let device = LoopDevice::attach(&outer.mount.path().join("file")).unwrap();
    let inner = Mount::format("ext4", device.path(), &outer.scratch.join("inner")).unwrap();
    // Mounted again later, the outer one is the newest.
    let bind = outer.scratch.join("bind");
    fs::create_dir(&bind).unwrap();
    nix::mount::mount(
        Some(outer.mount.path()),
        &bind,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    let bind = Mount::adopt(&bind);
    outer.net = Some(Net::under(&[&outer.mount, &inner]));

    let found = find(&[outer.device.path()]);
    let expected = [inner.path(), outer.mount.path()].map(|path| (path.to_owned(), "Freezable".to_owned()));
    assert_eq!(filesystems(&found), expected, "{found}");
    assert_eq!(filesystems(&find(&[device.path()])), expected[..1]);

    let busy = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k", "count=200", "status=none"])
        .arg(format!("of={}", inner.path().join("noise").display()))
        .status();
    assert!(busy.unwrap().success());
    let evidence = outer.freezer("hold", NEVER_MS, 50).evidence();
    assert_eq!(evidence["doubt"], Value::Null, "{evidence}");
    outer.assert_thawed();
    outer.net = None;
    drop((bind, inner, device));
}

#[test]
fn all_disks_of_a_filesystem_lead_to_it_and_what_cannot_be_written_is_not_frozen() {
    let scratch = ScratchDir::new("freeze").unwrap();
    let disk = |name: &str| LoopDevice::attach(&scratch.sparse_file(name, DISK_BYTES).unwrap()).unwrap();
    let disks = [disk("a"), disk("b"), disk("c")];
    let made = Command::new("mkfs.btrfs")
        .args(["-q", "-f"])
        .args([disks[0].path(), disks[1].path()])
        .status();
    assert!(made.unwrap().success());
    let mount = Mount::new(disks[0].path(), &scratch.join("pool"), "btrfs", MsFlags::empty()).unwrap();
    drop(Mount::format("ext4", disks[2].path(), &scratch.join("ro")).unwrap());
    let read_only = Mount::new(disks[2].path(), &scratch.join("ro"), "ext4", MsFlags::MS_RDONLY).unwrap();
    for disk in &disks[..2] {
        let found = find(&[disk.path()]);
        assert_eq!(
            filesystems(&found),
            [(mount.path().to_owned(), "Freezable".to_owned())],
            "{found}"
        );
    }
    // A file that is imaged as a disk.
    for disk in [disks[2].path(), &scratch.join("c")] {
        let found = find(&[disk]);
        assert_eq!(
            filesystems(&found),
            [(read_only.path().to_owned(), "ReadOnly".to_owned())],
            "{found}"
        );
    }
    assert_eq!(find(&[disks[0].path()])["unaccounted"], Value::Array(Vec::new()));
}

#[test]
fn a_filesystem_that_only_another_mount_namespace_has_is_found_and_frozen() {
    let mut ground = Ground::new("ext4");
    let hidden = ground.scratch.join("hidden");
    fs::create_dir(&hidden).unwrap();
    ground.net = None;
    let Ground {
        net: _,
        mount,
        device,
        scratch,
    } = ground;
    mount.unmount().unwrap();
    let script = r#"mount "$0" "$1" && echo mounted && exec sleep 600"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", script]);
    command.arg(device.path()).arg(&hidden).stdout(Stdio::piped());
    let mut container = spawn(&mut command).unwrap();
    let mut line = String::new();
    BufReader::new(container.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "mounted\n");
    let seen = PathBuf::from(format!("/proc/{}/root{}", container.id(), hidden.display()));

    let found = find(&[device.path()]);
    assert_eq!(
        filesystems(&found),
        [(seen.clone(), "Freezable".to_owned())],
        "{found}"
    );
    let mut command = Command::new(program("freezer"));
    command.arg("hold").arg("--smcd").arg(program("smcd"));
    command.arg("--lists").arg(scratch.join("lists"));
    command.args([&format!("--budget-ms={NEVER_MS}"), "--hold-ms=200"]);
    let freezer = Freezer::start(command.arg(device.path()));
    let mut writer = Writer(spawn(Command::new("touch").arg(seen.join("file"))).unwrap());
    writer.assert_held();
    assert_eq!(freezer.evidence()["doubt"], Value::Null);
    writer.assert_done();
    container.kill().unwrap();
    container.wait().unwrap();
}

#[test]
fn a_device_that_somebody_holds_is_told() {
    let scratch = ScratchDir::new("freeze").unwrap();
    let device = LoopDevice::attach(&scratch.sparse_file("disk", 8 << 20).unwrap()).unwrap();
    assert_eq!(find(&[device.path()])["unaccounted"], Value::Array(Vec::new()));
    let held = File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device.path())
        .unwrap();
    let said = find(&[device.path()])["unaccounted"].to_string();
    let expected = format!("{} is held by something", device.path().display());
    assert!(said.contains(&expected), "{said}");
    drop(held);
}

#[test]
fn what_was_written_before_a_flush_is_on_the_disk() {
    for fs_type in ["ext4", "xfs", "btrfs"] {
        let ground = Ground::new(fs_type);
        let text = format!("written to {fs_type} just before");
        let content = text.repeat(20_000);
        fs::write(ground.mount.path().join("file"), &content).unwrap();
        let is_on_disk = || {
            let disk = fs::read(ground.scratch.join("disk")).unwrap();
            disk.windows(text.len()).any(|window| window == text.as_bytes())
        };
        assert!(
            !is_on_disk(),
            "{fs_type}: the kernel holds nothing back, so this test shows nothing"
        );
        let output = freezer("flush", &[ground.device.path()]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(is_on_disk(), "{fs_type}");
    }
}

#[test]
fn a_sync_has_what_was_written_to_a_file_a_moment_before() {
    let bench = Bench::new("freeze-sync").unwrap();
    let disk = bench.disk("disk", DISK_BYTES).unwrap();
    let mount = Mount::format("xfs", disk.path(), &bench.dir.join("mnt")).unwrap();
    let content = noise(20 << 20, 14);
    fs::write(mount.path().join("file"), &content).unwrap();
    bench.sync(&[("vda", disk.path())]).unwrap();
    let raw = bench.dir.join("raw");
    let exported = bench
        .image(&["export", "web01/1", raw.to_str().unwrap()])
        .unwrap();
    assert_eq!(code(&exported), 0, "{}", stderr(&exported));
    let raw = fs::read(raw).unwrap();
    let blocks: BTreeSet<&[u8]> = raw.chunks(4096).collect();
    let missing = content
        .chunks(4096)
        .filter(|block| !blocks.contains(block))
        .count();
    assert_eq!(missing, 0, "blocks of 4 KiB are not in the image");
}

#[test]
fn what_was_written_to_a_device_through_the_page_cache_is_on_the_disk_after_a_flush() {
    let scratch = ScratchDir::new("freeze").unwrap();
    let backing = scratch.sparse_file("disk", 8 << 20).unwrap();
    let device = LoopDevice::attach(&backing).unwrap();
    let file = File::options().write(true).open(device.path()).unwrap();
    file.write_all_at(b"held back", 1 << 20).unwrap();
    let on_disk = || {
        let mut bytes = [0; 9];
        File::open(&backing)
            .unwrap()
            .read_exact_at(&mut bytes, 1 << 20)
            .unwrap();
        bytes
    };
    assert_eq!(
        on_disk(),
        [0; 9],
        "the kernel holds nothing back, so this test shows nothing"
    );
    assert_eq!(code(&freezer("flush", &[device.path()])), 0);
    assert_eq!(&on_disk(), b"held back");
}

#[test]
fn the_watchdog_thaws_when_the_time_is_up_and_the_evidence_says_so() {
    let ground = Ground::new("ext4");
    let freezer = ground.freezer("hold", 100, 3000);
    ground.writer("during").assert_done();
    let evidence = freezer.evidence();
    assert_eq!(evidence["is_thawed_by_watchdog"], true, "{evidence}");
    let doubt = evidence["doubt"].as_str().unwrap();
    assert!(doubt.contains("thawed by somebody else"), "{doubt}");
    ground.assert_thawed();
}

#[test]
fn who_thaws_in_between_denies_the_freeze() {
    let ground = Ground::new("xfs");
    let freezer = ground.freezer("hold", NEVER_MS, 1500);
    ground.fsfreeze("-u");
    let evidence = freezer.evidence();
    assert_eq!(evidence["is_thawed_by_watchdog"], false, "{evidence}");
    let doubt = evidence["doubt"].as_str().unwrap();
    assert!(doubt.contains("thawed by somebody else"), "{doubt}");
    ground.assert_thawed();
}

#[test]
fn a_filesystem_that_somebody_else_has_frozen_stays_frozen() {
    let ground = Ground::new("ext4");
    ground.fsfreeze("-f");
    let mut writer = ground.writer("during");
    writer.assert_held();
    let evidence = ground.freezer("hold", NEVER_MS, 0).evidence();
    let doubt = evidence["doubt"].as_str().unwrap();
    assert!(doubt.contains("frozen by somebody else already"), "{doubt}");
    writer.assert_held();
    // It fails on what is not frozen.
    ground.fsfreeze("-u");
    writer.assert_done();
}

#[test]
fn killed_at_any_moment_it_is_thawed() {
    for fs_type in ["ext4", "xfs", "btrfs"] {
        let ground = Ground::new(fs_type);
        let mut random = Random::new(0x7a31);
        for round in 0..12 {
            let freezer = ground.freezer("again", NEVER_MS, round % 4);
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            freezer.kill();
            ground.assert_thawed();
        }
    }
}

#[test]
fn killed_while_freezing_waits_behind_a_long_write_it_is_thawed() {
    let ground = Ground::new("ext4");
    for round in 0..4 {
        let mut long = Command::new("dd");
        long.args(["if=/dev/zero", "bs=300M", "count=1", "status=none"]);
        long.arg(format!("of={}", ground.mount.path().join("long").display()));
        let mut long = spawn(&mut long).unwrap();
        let mut command = ground.freezer_command("again", 200, 1);
        let mut child = spawn(command.stdout(Stdio::null())).unwrap();
        let call = format!("/proc/{}/syscall", child.id());
        wait_for("FIFREEZE to be called", || {
            fs::read_to_string(&call).unwrap().contains(" 0xc0045877 ")
        });
        std::thread::sleep(Duration::from_millis(20 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(long.wait().unwrap().success());
        ground.writer("after").assert_done();
    }
    ground.assert_thawed();
}

#[test]
fn killed_with_its_cgroup_it_is_thawed() {
    let ground = Ground::new("ext4");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let top = PathBuf::from(
        line.expect("cgroups of version 2 are mounted")
            .split(' ')
            .nth(1)
            .unwrap(),
    );
    let cgroup = Cgroup::new(top.join(format!("smc-test-{}", std::process::id())));
    let freezer = ground.freezer_command("hold", NEVER_MS, NEVER_MS);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", r#"echo 0 > "$0"/cgroup.procs && exec "$@""#])
        .arg(&cgroup.0);
    shell.arg(freezer.get_program()).args(freezer.get_args());
    let mut freezer = Freezer::start(&mut shell);
    let mut writer = ground.writer("during");
    writer.assert_held();
    fs::write(cgroup.0.join("cgroup.kill"), "1").unwrap();
    freezer.child.wait().unwrap();
    writer.assert_done();
    ground.assert_thawed();
}

struct Cgroup(PathBuf);

impl Cgroup {
    fn new(path: PathBuf) -> Cgroup {
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait_for("the test's cgroup to be empty", || {
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

#[test]
fn without_its_watchdog_too_the_list_leads_to_what_is_frozen() {
    let ground = Ground::new("btrfs");
    let freezer = ground.freezer("hold", NEVER_MS, NEVER_MS);
    let mut writer = ground.writer("during");
    writer.assert_held();
    let thaw = || {
        let mut command = Command::new(program("smcd"));
        let output = command.arg("thaw").arg("--lists").arg(ground.lists()).output();
        let output = output.unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(thaw(), "", "the process that froze lives, and thaws by itself");
    writer.assert_held();
    kill(freezer.watchdog(), Signal::SIGKILL).unwrap();
    freezer.kill();
    writer.assert_held();
    assert_eq!(
        thaw(),
        format!("{} was frozen, and is thawed\n", ground.mount.path().display())
    );
    writer.assert_done();
    ground.assert_thawed();
}

#[test]
fn a_watchdog_that_cannot_be_started_freezes_nothing() {
    let ground = Ground::new("ext4");
    let mut command = ground.freezer_command("hold", NEVER_MS, 0);
    command.args(["--smcd", "/bin/false"]);
    let arguments: Vec<_> = command.get_args().skip(3).map(ToOwned::to_owned).collect();
    let mut command = Command::new(program("freezer"));
    let output = command.arg("hold").args(arguments).output().unwrap();
    assert_ne!(code(&output), 0);
    assert!(
        stderr(&output).contains("nothing is frozen"),
        "{}",
        stderr(&output)
    );
    assert!(output.stdout.is_empty(), "it said that it was frozen");
    ground.writer("after").assert_done();
}
