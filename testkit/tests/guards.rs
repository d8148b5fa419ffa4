//! What the guards make is gone when they are, also after a panic and after a kill.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test fail by panicking, like the test"
)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;
use testkit::ErrorKind;
use testkit::guard::{LoopDevice, Mount, ScratchDir};
use testkit::process::{self, PATIENCE, Server, wait_for};

const MIB: u64 = 1 << 20;

fn backing_file(device: &Path) -> Option<String> {
    let name = device.file_name().unwrap();
    fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()
}

fn is_attached(backing: &Path) -> bool {
    let text = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| backing_file(&entry.unwrap().path()));
    text.into_iter().any(|line| Path::new(line.trim()) == backing)
}

/// Not at once: udev opens every new block device for a moment.
fn assert_soon_detached(backing: &Path) {
    wait_for("the device to be free", || !is_attached(backing));
}

fn is_mounted(target: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == target.to_str())
}

#[test]
fn a_loop_device_uses_direct_io_and_detaches() {
    let scratch = ScratchDir::new("smc-guard-test").unwrap();
    let file = scratch.sparse_file("disk", 8 * MIB).unwrap();
    let device = LoopDevice::attach(&file).unwrap();
    assert!(is_attached(&file));
    let dio = Path::new("/sys/block")
        .join(device.path().file_name().unwrap())
        .join("loop/dio");
    assert_eq!(fs::read_to_string(dio).unwrap().trim(), "1");
    device.detach().unwrap();
    assert!(!is_attached(&file));
}

#[test]
fn a_range_shows_only_its_part_of_the_device() {
    let scratch = ScratchDir::new("smc-guard-test").unwrap();
    let file = scratch.sparse_file("disk", 8 * MIB).unwrap();
    let whole = LoopDevice::attach(&file).unwrap();
    let part = LoopDevice::attach_range(whole.path(), MIB, 2 * MIB).unwrap();
    let size = process::run(Command::new("blockdev").arg("--getsize64").arg(part.path())).unwrap();
    assert_eq!(size.trim(), (2 * MIB).to_string());
}

#[test]
fn a_panic_leaves_neither_mount_nor_device_nor_directory() {
    let mut made: Option<(PathBuf, PathBuf)> = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let scratch = ScratchDir::new("smc-guard-test").unwrap();
        let file = scratch.sparse_file("disk", 16 * MIB).unwrap();
        let device = LoopDevice::attach(&file).unwrap();
        process::run(Command::new("mkfs.ext4").arg("-q").arg(device.path())).unwrap();
        let mount = Mount::new(device.path(), &scratch.join("mnt"), "ext4", MsFlags::empty()).unwrap();
        assert!(is_mounted(mount.path()));
        made = Some((file, mount.path().to_path_buf()));
        panic!("as a failing test would");
    }));
    assert!(outcome.is_err());
    let (file, target) = made.unwrap();
    assert!(!is_mounted(&target));
    assert_soon_detached(&file);
    assert!(!file.parent().unwrap().exists());
}

#[test]
fn a_failing_command_says_what_it_wrote() {
    let error = process::run(Command::new("sh").args(["-c", "echo the reason >&2; exit 3"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Command);
    assert!(error.to_string().contains("the reason"), "{error}");
    assert!(process::run(&mut Command::new("smc-no-such-program")).is_err());
}

#[test]
fn a_server_that_ends_early_is_reported_with_its_log() {
    let scratch = ScratchDir::new("smc-guard-test").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo cannot serve >&2; exit 1"]);
    let error =
        Server::start_on_socket(&mut command, &scratch.join("sock"), &scratch.join("log")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Command);
    assert!(error.to_string().contains("cannot serve"), "{error}");
}

#[test]
fn a_server_ends_when_dropped() {
    let scratch = ScratchDir::new("smc-guard-test").unwrap();
    let pid_file = scratch.join("pid");
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$ > \"$1\"; exec sleep 600", "sh"])
        .arg(&pid_file);
    let server = Server::start(&mut command, &scratch.join("log")).unwrap();
    let pid = || {
        fs::read_to_string(&pid_file)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    wait_for("the process to write its pid", || !pid().is_empty());
    let process_dir = Path::new("/proc").join(pid());
    assert!(process_dir.exists());
    drop(server);
    assert!(!process_dir.exists());
}

/// The kernel detaches the device of a process that could not clean up.
#[test]
fn a_kill_detaches_the_loop_device() {
    let scratch = ScratchDir::new("smc-guard-test").unwrap();
    let file = scratch.sparse_file("disk", 8 * MIB).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--ignored", "--nocapture"])
        .env(HOLDER_VARIABLE, &file)
        .process_group(0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let attached = process::wait_until(PATIENCE, || file.with_extension("ready").exists());
    let was_attached = is_attached(&file);
    child.kill().unwrap();
    child.wait().unwrap();
    attached.unwrap();
    assert!(was_attached);
    assert_soon_detached(&file);
}

const HOLDER_VARIABLE: &str = "SMC_TEST_HOLDER";

/// Not a test of its own: the process that `a_kill_detaches_the_loop_device` kills.
#[test]
#[ignore = "started by a_kill_detaches_the_loop_device"]
fn holder() {
    let Some(file) = std::env::var_os(HOLDER_VARIABLE).map(PathBuf::from) else {
        return;
    };
    let _device = LoopDevice::attach(&file).unwrap();
    fs::write(file.with_extension("ready"), "").unwrap();
    // Until it is killed, or its test has given up.
    std::thread::sleep(2 * PATIENCE);
}
