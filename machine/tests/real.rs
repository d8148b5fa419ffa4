//! On the machine that the tests run on, whatever it is.

use std::collections::BTreeSet;
use std::process::Command;

use hostdev::DeviceNumber;
use machine::{PrecheckInput, Root, disk_names, disks, precheck};
use nix::mount::MsFlags;
use testkit::guard::{LoopDevice, Mount, ScratchDir};

/// What is told of every machine.
const ALWAYS: [&str; 20] = [
    "privileges",
    "container",
    "architecture",
    "kernel",
    "io_uring",
    "bpf",
    "disk",
    "volumes",
    "mounts_outside",
    "network_mounts",
    "freeze",
    "boot_mode",
    "boot_loader",
    "kernel_image",
    "boot_space",
    "initramfs_virtio",
    "virtio_net",
    "network_config",
    "clock",
    "security_module",
];

#[test]
fn this_machine_is_looked_at_and_every_line_is_safe_to_show() {
    let input = PrecheckInput {
        store: Some("/no/such/store".into()),
        ..PrecheckInput::default()
    };
    let found = precheck(&Root::system(), &input);
    let ids: BTreeSet<&str> = found.checks.iter().map(|check| check.id.as_str()).collect();
    for id in ALWAYS {
        assert!(ids.contains(id), "{id} is missing in {found:#?}");
    }
    for check in &found.checks {
        println!(
            "{:8} {:18} {} {:?}",
            check.level.to_string(),
            check.id,
            check.found,
            check.advice
        );
        let text = format!("{}{}", check.found, check.advice.as_deref().unwrap_or_default());
        assert!(!text.contains(char::is_control), "{check:?}");
    }
}

#[test]
fn the_disks_of_this_machine_are_listed_with_what_they_hold() {
    let scratch = ScratchDir::new("machine").expect("a scratch directory");
    let file = scratch.sparse_file("disk", 64 << 20).expect("a file");
    let mkfs = Command::new("mkfs.ext4").arg("-q").arg(&file).status();
    assert!(mkfs.expect("mkfs.ext4 runs").success());
    let device = LoopDevice::attach(&file).expect("a loop device");
    let name = device
        .path()
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name")
        .to_owned();
    let listed = || {
        let listed = disks(&Root::system(), &BTreeSet::new()).expect("a list");
        listed
            .disks
            .into_iter()
            .find(|disk| disk.name == name)
            .expect("the loop device is listed")
    };

    let found = listed();
    assert_eq!(found.holds, "ext4", "blkid sees the filesystem: {found:?}");
    assert_eq!(
        (found.size_bytes, found.path.as_str()),
        (64 << 20, device.path().to_str().expect("UTF-8"))
    );
    assert!(found.left_out.expect("a reason").contains("loop device"));

    let point = scratch.join("mnt");
    std::fs::create_dir(&point).expect("a mount point");
    let mounted = Mount::new(device.path(), &point, "ext4", MsFlags::MS_RDONLY).expect("a mount");
    assert_eq!(listed().holds, format!("ext4 {}", mounted.path().display()));
}

#[test]
fn device_numbers_lead_to_names_of_disks() {
    let name = std::fs::read_dir("/sys/block")
        .expect("sysfs")
        .next()
        .expect("a disk")
        .expect("an entry")
        .file_name();
    let name = name.to_str().expect("UTF-8").to_owned();
    let number = std::fs::read_to_string(format!("/sys/block/{name}/dev")).expect("a number");
    let number: DeviceNumber = number.trim().parse().expect("a number");
    let names = disk_names(&Root::system(), &[number, DeviceNumber::new(4095, 1)]);
    assert_eq!(names.expect("sysfs is read"), BTreeSet::from([name]));
}
