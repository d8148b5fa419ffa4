//! The disk boots, from the boot loader on, through other people's NBD servers; and what it says can be trusted.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of a test fail by panicking, like the test"
)]

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::boot::nbd_uri;
use testkit::ErrorKind;
use testkit::guard::{LoopDevice, ScratchDir};
use testkit::process::Server;
use vm_tests::disk::BootDisk;
use vm_tests::guest::{BootOptions, BootReport, boot};
use vm_tests::payload::{PAYLOAD_DIR, Payload};

const MIB: u64 = 1 << 20;

fn qemu_nbd(scratch: &ScratchDir, device: &Path) -> (Server, String) {
    let socket = scratch.join("nbd.sock");
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--read-only",
        "--persistent",
        "--format=raw",
        "--export-name=web01/1:vda",
    ]);
    command.arg(format!("--socket={}", socket.display())).arg(device);
    let server = Server::start_on_socket(&mut command, &socket, &scratch.join("nbd.log")).unwrap();
    (server, nbd_uri(&socket, "web01/1:vda"))
}

fn serve_and_boot(scratch: &ScratchDir, device: &Path) -> BootReport {
    let (_server, uri) = qemu_nbd(scratch, device);
    boot(&uri, &BootOptions::default()).unwrap()
}

#[test]
fn a_disk_boots_into_its_own_point_in_time_and_proves_its_files() {
    let scratch = ScratchDir::new("smc-boot-test").unwrap();
    let device = LoopDevice::attach(&scratch.sparse_file("disk", 256 * MIB).unwrap()).unwrap();
    let payload = Payload::collect(&[Path::new("/usr/bin")], 8 * MIB).unwrap();
    let mount_point = scratch.join("mnt");
    let disk = BootDisk::create(device.path(), &mount_point, "monday 09:00", &payload).unwrap();

    let monday = serve_and_boot(&scratch, device.path());
    assert_eq!(monday.point_in_time, "monday 09:00");
    assert!(monday.files_ok, "{}", monday.console);
    assert!(monday.files > 10, "{} files", monday.files);

    let root = disk.mount(&mount_point).unwrap();
    root.set_point_in_time("tuesday 09:00").unwrap();
    fs::write(root.path().join(PAYLOAD_DIR).join("new"), vec![7; 100_000]).unwrap();
    let listed = root.write_manifest().unwrap();
    // From here on the disk differs from its manifest, which the guest must notice.
    fs::write(root.path().join(PAYLOAD_DIR).join("new"), vec![8; 100_000]).unwrap();
    root.unmount().unwrap();

    let tuesday = serve_and_boot(&scratch, device.path());
    assert_eq!(tuesday.point_in_time, "tuesday 09:00");
    assert_eq!(tuesday.files, listed);
    assert_eq!(tuesday.files, monday.files + 1);
    assert!(
        !tuesday.files_ok,
        "a changed file went unnoticed:\n{}",
        tuesday.console
    );
    assert!(
        tuesday.console.contains("srv/payload/new: FAILED"),
        "{}",
        tuesday.console
    );
    device.detach().unwrap();
}

#[test]
fn a_guest_leaves_what_it_boots_from_unchanged() {
    let scratch = ScratchDir::new("smc-boot-test").unwrap();
    let file = scratch.sparse_file("disk", 160 * MIB).unwrap();
    let device = LoopDevice::attach(&file).unwrap();
    let payload = Payload::collect(&[Path::new("/etc")], MIB).unwrap();
    let disk = BootDisk::create(device.path(), &scratch.join("mnt"), "dirty journal", &payload).unwrap();

    // A copy taken while mounted has a journal to replay: the guest's mount has to write.
    let root = disk.mount(&scratch.join("mnt")).unwrap();
    fs::write(root.path().join("var/log/unclean"), "written shortly before").unwrap();
    root.sync().unwrap();
    let image = scratch.join("image");
    io::copy(
        &mut File::open(device.path()).unwrap(),
        &mut File::create_new(&image).unwrap(),
    )
    .unwrap();
    root.unmount().unwrap();

    let before = sha256_of(&image);
    let report = serve_and_boot(&scratch, &image);
    assert_eq!(report.point_in_time, "dirty journal");
    assert!(report.files_ok, "{}", report.console);
    assert_eq!(sha256_of(&image), before);
}

fn sha256_of(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_disk_without_a_system_is_an_error_and_not_a_report() {
    let scratch = ScratchDir::new("smc-boot-test").unwrap();
    let (_server, uri) = qemu_nbd(&scratch, &scratch.sparse_file("empty", 160 * MIB).unwrap());
    let options = BootOptions {
        timeout: Duration::from_secs(5),
        ..BootOptions::default()
    };
    assert_eq!(boot(&uri, &options).unwrap_err().kind(), ErrorKind::Timeout);

    let absent = nbd_uri(&scratch.join("nbd.sock"), "web01/9:vda");
    let error = boot(&absent, &BootOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Guest);
    assert!(error.to_string().contains("web01/9:vda"), "{error}");
}
