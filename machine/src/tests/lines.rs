//! Firmware, network, LVM's lists and the store.

use api::Level::{self, Critical, Ok, Warning};

use super::fake::{ESP_TYPE, Tree, boot_sector, ready};
use crate::precheck::Space;

const GIB: u64 = 1 << 30;

/// The ready machine, started by UEFI from a system partition with a loader for removable media.
fn uefi() -> Tree {
    let mut tree = ready();
    tree.partition("vda", "vda4", "254:4", GIB)
        .udev("254:4", &format!("ID_FS_TYPE=vfat ID_PART_ENTRY_TYPE={ESP_TYPE}"))
        .mount("vfat", "/dev/vda4", "254:4", "/boot/efi")
        .file("/boot/efi/EFI/Boot/bootx64.efi", "MZ")
        .directory("/sys/firmware/efi/efivars");
    tree
}

#[test]
fn firmware() {
    let found = uefi().examine();
    assert_eq!(found.worst(), Ok, "{found:#?}");
    type Context = (fn(&mut Tree) -> &mut Tree, &'static str, Level, &'static str);
    const VARIABLE: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let cases: [Context; 10] = [
        (|t| t, "boot_mode", Ok, "started by UEFI"),
        (|t| t, "efi_partition", Ok, "vda4 is mounted at /boot/efi"),
        (|t| t, "efi_fallback", Ok, "/boot/efi/EFI/Boot/bootx64.efi"),
        (|t| t, "freeze", Ok, "vfat /boot/efi cannot be frozen"),
        (
            |t| {
                t.remove("/boot/efi/EFI/Boot/bootx64.efi")
                    .file("/boot/efi/EFI/debian/shimx64.efi", "MZ")
            },
            "efi_fallback",
            Warning,
            "BOOTX64.EFI is missing, and the firmware's own entries are not migrated: nothing would start /boot/efi/EFI/debian/shimx64.efi | install one: grub-install --removable",
        ),
        (
            |t| t.remove("/boot/efi/EFI/Boot/bootx64.efi"),
            "efi_fallback",
            Critical,
            "there is no boot loader on the EFI system partition at /boot/efi",
        ),
        (
            |t| t.file("/sys/firmware/efi/fw_platform_size", "32\n"),
            "efi_fallback",
            Warning,
            "BOOTIA32.EFI is missing",
        ),
        (
            |t| t.answer(|a| a.architecture = "aarch64".into()),
            "efi_fallback",
            Warning,
            "BOOTAA64.EFI",
        ),
        (
            |t| t.file(VARIABLE, [6, 0, 0, 0, 1]),
            "secure_boot",
            Ok,
            "Secure Boot is on",
        ),
        (
            |t| t.file(VARIABLE, [6, 0, 0, 0, 0]),
            "secure_boot",
            Ok,
            "Secure Boot is off",
        ),
    ];
    for (change, id, level, words) in cases {
        let mut tree = uefi();
        change(&mut tree);
        tree.expect(id, level, words);
    }
}

#[test]
fn a_system_partition_that_is_not_mounted_or_not_there() {
    let mut tree = ready();
    tree.directory("/sys/firmware/efi");
    tree.expect(
        "efi_partition",
        Critical,
        "no EFI system partition on the chosen disks",
    );

    tree.partition("vda", "vda4", "254:4", GIB)
        .udev("254:4", &format!("ID_PART_ENTRY_TYPE={ESP_TYPE}"));
    tree.expect("efi_partition", Warning, "vda4 is not mounted");

    // Looking into it would mount it.
    tree.mount("autofs", "systemd-1", "0:50", "/boot/efi");
    tree.expect("efi_partition", Warning, "vda4 is not mounted");
}

#[test]
fn a_bios_needs_boot_code() {
    let mut tree = ready();
    tree.file("/dev/vda", [0; 512]);
    tree.expect("boot_sector", Critical, "none of the chosen disks has boot code");
    tree.file("/dev/vda", [0; 100]);
    tree.expect("boot_sector", Warning, "vda could not be read");
    let mut grub = boot_sector();
    grub[0x180..0x184].copy_from_slice(b"GRUB");
    tree.file("/dev/vda", grub);
    tree.expect("boot_loader", Ok, "GRUB 2");
    tree.remove("/boot/grub");
    tree.expect(
        "boot_loader",
        Critical,
        "the boot sector of vda starts GRUB, and there is no configuration",
    );
}

#[test]
fn the_network_may_be_bound_to_this_hardware() {
    const NETWORK: &str = "/etc/systemd/network/10-all.network";
    // File, content, level, words.
    let cases = [
        (
            "/etc/network/interfaces",
            "iface ens3 inet dhcp\n",
            Warning,
            "is for the interface name ens3",
        ),
        (
            "/etc/network/interfaces",
            "iface lo inet loopback\n",
            Warning,
            "could not be determined",
        ),
        ("/etc/network/interfaces", "iface br0 inet dhcp\n", Ok, "DHCP"),
        (
            "/etc/network/interfaces.d/x",
            "iface eth0 inet static\n address 1.2.3.4\n",
            Warning,
            "is for the interface name eth0, which may be another, sets a fixed IP address",
        ),
        (
            "/etc/sysconfig/network-scripts/ifcfg-eth0",
            "DEVICE=eth0\nBOOTPROTO=dhcp\nHWADDR=00:50:56:00:00:01\n",
            Warning,
            "is for the hardware address 00:50:56:00:00:01",
        ),
        (
            "/etc/sysconfig/network-scripts/ifcfg-lo",
            "DEVICE=lo\nIPADDR=127.0.0.1\n",
            Warning,
            "could not be determined",
        ),
        (
            "/etc/netplan/50-cloud-init.yaml",
            "network:\n  ethernets:\n    ens5:\n      match:\n        macaddress: 02:00:00:00:00:01\n      dhcp4: true\n      set-name: ens5\n",
            Warning,
            "match: {name: \"e*\"}",
        ),
        (
            "/etc/netplan/1.yaml",
            "network: {ethernets: {ens3: {addresses: [192.0.2.7/24]}}}\n",
            Warning,
            "sets a fixed IP address",
        ),
        (
            "/etc/netplan/1.yaml",
            "network: {ethernets: {ens3: {dhcp4: true}\n",
            Warning,
            "cannot understand /etc/netplan/1.yaml",
        ),
        (
            "/etc/netplan/1.yaml",
            "network:\n  ethernets:\n    e: {match: {name: \"e*\"}}\n",
            Ok,
            "DHCP",
        ),
        (
            "/etc/NetworkManager/system-connections/a.nmconnection",
            "[connection]\ntype=ethernet\n[ethernet]\ncloned-mac-address=02:00:00:00:00:01\n[ipv4]\nmethod=auto\n",
            Warning,
            "sets the hardware address 02:00:00:00:00:01 | nmcli connection modify",
        ),
        (
            "/etc/NetworkManager/system-connections/a.nmconnection",
            "[connection]\ntype=bridge\ninterface-name=br0\n[ipv4]\nmethod=manual\n",
            Warning,
            "sets a fixed IP address for br0",
        ),
        (
            NETWORK,
            "[Match]\nMACAddress=02:00:00:00:00:01\n[Network]\nDHCP=yes\n",
            Warning,
            "Name=e*",
        ),
        (
            "/etc/udev/rules.d/70-persistent-net.rules",
            "SUBSYSTEM==\"net\", ATTR{address}==\"02:00:00:00:00:01\", NAME=\"eth0\"\n",
            Warning,
            "70-persistent-net.rules is for the hardware address 02:00:00:00:00:01 | remove the file",
        ),
        (
            "/usr/sbin/NetworkManager",
            "",
            Ok,
            "NetworkManager has no profile",
        ),
        ("/etc/hostname", "x", Warning, "could not be determined"),
    ];
    for (file, content, level, words) in cases {
        let mut tree = ready();
        tree.remove(NETWORK)
            .file(file, content)
            .directory("/sys/class/net/br0");
        tree.expect("network_config", level, words);
    }
}

#[test]
fn eth0_stays_eth0_where_nothing_renames_the_only_card() {
    let mut tree = ready();
    tree.file("/etc/network/interfaces", "iface eth0 inet dhcp\n")
        .directory("/sys/class/net/eth0/device");
    tree.expect("network_config", Warning, "eth0");
    tree.file("/proc/cmdline", "root=UUID=1 net.ifnames=0");
    tree.expect("network_config", Ok, "DHCP");
    tree.directory("/sys/class/net/eth1/device");
    tree.expect("network_config", Warning, "eth0");
}

#[test]
fn lvm_may_use_listed_disks_only() {
    let mut tree = ready();
    assert_eq!(tree.lines("lvm_devices"), []);
    tree.mapped("dm-0", "253:0", ("vg0-data", "LVM-abc"), &["vda/vda2"]);
    tree.expect("lvm_devices", Ok, "every disk for its PVs");
    tree.file(
        "/etc/lvm/devices/system.devices",
        "# LVM uses devices listed in this file.\nVERSION=1.1.1\nIDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda2 PVID=x\n",
    );
    tree.expect("lvm_devices", Warning, "1 of them by numbers of this hardware");
    tree.file(
        "/etc/lvm/lvm.conf",
        "devices {\n  # filter = [ \"a|/dev/sdz|\" ]\n  filter = [ \"a|^/dev/sd.*|\", \"r|.*|\" ]\n}\n",
    );
    tree.expect("lvm_filter", Warning, "/dev/sd,");
    tree.file("/etc/lvm/lvm.conf", "devices {\n  filter = [ \"a|.*|\" ]\n}\n");
    assert_eq!(tree.lines("lvm_filter"), []);
}

#[test]
fn the_store_and_its_room() {
    let mut tree = ready();
    tree.disk("vdb", "254:16", 50 * GIB)
        .store_on("/mnt/store", &["vdb"]);
    tree.expect("store_disk", Ok, "/mnt/store is on none of the chosen disks");
    tree.expect(
        "disk_left_out",
        Ok,
        "vdb, 50 GiB: unknown; left out, since the store is on it",
    );
    // What is in files, what is free, and what that means for a disk of 20 GiB.
    let cases = [
        (
            4 * GIB,
            8 * GIB,
            Ok,
            "8 GiB free; the chosen disks have 4 GiB in files and 20 GiB in all",
        ),
        (15 * GIB, 20 * GIB, Ok, "20 GiB free"),
        (4 * GIB, 3 * GIB, Warning, "watch it"),
        (4 * GIB, GIB, Critical, "larger filesystem"),
        (0, 19 * GIB, Warning, "watch it"),
    ];
    for (used, available, level, words) in cases {
        tree.space(used, available);
        tree.expect("store_space", level, words);
    }
    tree.answers.space = Box::new(|_| None);
    tree.expect("store_space", Warning, "could not be determined");
    let read_only = Space {
        used_bytes: 0,
        available_bytes: 0,
        free_inodes: None,
        read_only: true,
    };
    tree.answers.space = Box::new(move |_| Some(read_only));
    tree.expect("store_space", Critical, "read-only");
}

#[test]
fn a_store_on_a_chosen_disk_would_image_itself() {
    let mut tree = ready();
    tree.store_on("/var/store", &["vda"]).choose(&["vda"]);
    tree.expect(
        "store_disk",
        Critical,
        "/var/store is on vda, which is one of the chosen disks",
    );
    // Of all disks it is left out instead, and then nothing is left.
    tree.choose(&[]);
    tree.expect("disk", Critical, "there is no disk to migrate");
    tree.expect(
        "mounts_outside",
        Critical,
        "ext4 / is on vda2, which is not migrated",
    );
}

#[test]
fn a_file_that_is_there_and_cannot_be_read_is_a_line_of_its_own() {
    let mut tree = ready();
    assert_eq!(tree.lines("unreadable"), []);
    tree.directory("/etc/default/grub");
    tree.expect("unreadable", Warning, "/etc/default/grub");
    let long = format!("#{}", "x".repeat(300 << 10));
    tree.file("/etc/netplan/1.yaml", long);
    tree.expect(
        "unreadable",
        Warning,
        "/etc/netplan/1.yaml is too large to be read",
    );
}
