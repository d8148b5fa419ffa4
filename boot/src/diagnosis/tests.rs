//! Real consoles, shortened, and what they say.

use super::*;

fn found(console: &str) -> (Diagnosis, bool) {
    let mut findings = Findings::default();
    let mut ended = false;
    for line in console.lines() {
        ended |= findings.look_at(line);
    }
    (findings.diagnosis(false), ended)
}

/// The problem, the device and the unit.
fn told(console: &str) -> (Problem, Option<String>, Option<String>) {
    let (diagnosis, ended) = found(console);
    assert!(ended, "nothing ends this boot:\n{console}");
    assert!(diagnosis.line.is_some());
    (diagnosis.problem, diagnosis.device, diagnosis.unit)
}

fn device(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn every_line_of_the_table_is_a_regular_expression() {
    for rule in &RULES {
        let compiled = Regex::new(rule.line).unwrap();
        let captures = matches!(rule.says, Says::Device | Says::Unit);
        assert!(!captures || compiled.captures_len() == 2, "{}", rule.line);
    }
    assert_eq!(patterns().len(), RULES.len());
}

#[test]
fn firmware_that_finds_nothing() {
    let bios = "SeaBIOS (version 1.16.2-debian-1.16.2-1)\nBooting from Hard Disk...\n\
        Boot failed: not a bootable disk\n\nNo bootable device.\n";
    assert_eq!(told(bios), (Problem::NoBootableDevice, None, None));
    let uefi = "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x2,0x0): Not Found\n\
        BdsDxe: No bootable option or device was found.\nBdsDxe: Press any key to enter the Boot Manager Menu.\n";
    assert_eq!(told(uefi).0, Problem::NoUefiLoader);
}

#[test]
fn boot_sectors_without_a_loader() {
    // The BIOS has the last word.
    let sector = "Booting from Hard Disk...\nMissing operating system.\nNo bootable device.\n";
    assert_eq!(told(sector).0, Problem::NoBootLoader);
    let sector = "Booting from Hard Disk...\nBoot error\n";
    assert_eq!(told(sector).0, Problem::NoBootLoader);
}

#[test]
fn grub_without_its_files() {
    let console = "Booting from Hard Disk...\nGRUB loading.\nWelcome to GRUB!\n\n\
        error: no such device: 3f5ad593-4546-4a94-a374-bcfb68aa11f7.\nEntering rescue mode...\ngrub rescue> ";
    let uuid = device("3f5ad593-4546-4a94-a374-bcfb68aa11f7");
    assert_eq!(told(console), (Problem::GrubRescue, uuid, None));
    let console = "                         GNU GRUB  version 2.06\n\n   Minimal BASH-like line editing is supported.\n\ngrub> ";
    assert_eq!(told(console).0, Problem::GrubPrompt);
    let console = "Loading Linux 6.1.0-18-amd64 ...\nerror: file `/boot/vmlinuz-6.1.0-18-amd64' not found.\n\
        Loading initial ramdisk ...\nerror: you need to load the kernel first.\n\nPress any key to continue...";
    assert_eq!(told(console).0, Problem::KernelNotLoaded);
    // Of extlinux, on the serial line and on the screen, which the BIOS writes to the same line.
    let console = "ading /boot/vmlinuz...Loading /boot/vmlinuz...  failed:failed:  No such file or director\nboot:boot:";
    assert_eq!(told(console).0, Problem::KernelNotLoaded);
}

#[test]
fn a_kernel_without_a_root() {
    let console = "[    0.000000] Linux version 5.10.0-28-amd64\n\
        [    1.318207] VFS: Cannot open root device \"sda1\" or unknown-block(0,0): error -6\n\
        [    1.319405] Please append a correct \"root=\" boot option; here are the available partitions:\n\
        [    1.320911] fe00         8388608 vda\n\
        [    1.322730] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n\
        [    1.323861] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 5.10.0-28-amd64\n\
        [    1.330000] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\n";
    assert_eq!(told(console), (Problem::NoRoot, device("sda1"), None));
}

#[test]
fn other_panics() {
    let console = "[    1.4] Run /sbin/init as init process\n\
        [    1.5] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.\n\
        [    1.6] ---[ end Kernel panic - not syncing: No working init found.  Try passing init= option to kernel. ]---\n";
    assert_eq!(told(console).0, Problem::NoInit);
    let console = "Fatal glibc error: CPU does not support x86-64-v2\n\
        [    2.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n";
    assert_eq!(told(console).0, Problem::OldProcessor);
    let console = "[    2.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n";
    assert_eq!(told(console).0, Problem::KernelPanic);
    assert_eq!(
        told("XZ-compressed data is corrupt\n\n -- System halted\n").0,
        Problem::KernelDamaged
    );
}

#[test]
fn a_kernel_that_writes_nothing() {
    let console = "GRUB loading...\nWelcome to GRUB!\n\nLoading Linux 6.1.0-18-amd64 ...\nLoading initial ramdisk ...\n\n";
    assert_eq!(found(console).0.problem, Problem::KernelSilent);
    let quiet = format!("{console}/dev/vda1: clean, 31231/524288 files, 379312/2096896 blocks\n");
    assert_eq!(found(&quiet).0.problem, Problem::NotReached);
}

#[test]
fn a_loader_that_misses_the_initramfs_is_the_cause_of_a_missing_root() {
    let console = "Loading initial ramdisk ...\nerror: file `/boot/initrd.img-6.1.0-18-amd64' not found.\n\n\
        Press any key to continue...\n[    0.000000] Linux version 6.1.0-18-amd64\n\
        [    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";
    let (diagnosis, ended) = found(console);
    assert!(
        ended && diagnosis.problem == Problem::KernelNotLoaded,
        "{diagnosis:?}"
    );
    assert!(diagnosis.line.unwrap().contains("initrd.img-6.1.0-18-amd64"));
}

#[test]
fn a_root_without_an_init() {
    let console = "Target filesystem doesn't have requested /sbin/init.\n\
        /bin/sh: 0: can't access tty; job control turned off\n# ";
    assert_eq!(told(console).0, Problem::NoInit);
    let console = "No init found. Try passing init= bootarg.\n\nBusyBox v1.35.0\n(initramfs) ";
    assert_eq!(told(console).0, Problem::NoInit);
}

#[test]
fn an_initramfs_that_waits_for_the_root() {
    let debian = "Begin: Waiting for root file system ... Begin: Running /scripts/local-block ... done.\ndone.\n\
        Gave up waiting for root file system device.  Common problems:\n - Boot args (cat /proc/cmdline)\n\
        ALERT!  /dev/sda1 does not exist.  Dropping to a shell!\n\n\n\
        BusyBox v1.35.0 (Debian 1:1.35.0-4+b3) built-in shell (ash)\n\n(initramfs) ";
    assert_eq!(told(debian), (Problem::InitramfsShell, device("/dev/sda1"), None));
    let dracut = "[  191.2] dracut-initqueue[330]: Warning: dracut-initqueue: timeout, still waiting for following initqueue hooks:\n\
        [  191.5] dracut-initqueue[330]: Warning: /dev/disk/by-uuid/0aa1 does not exist\n\
        Generating \"/run/initramfs/rdsosreport.txt\"\n\
        Entering emergency mode. Exit the shell to continue.\n\
        Cannot open access to console, the root account is locked.\n";
    let by_uuid = device("/dev/disk/by-uuid/0aa1");
    assert_eq!(told(dracut), (Problem::InitramfsShell, by_uuid, None));
    let arch = ":: running hook [udev]\nERROR: device 'UUID=0aa1' not found. Skipping fsck.\n\
        ERROR: Failed to mount 'UUID=0aa1' on real root\nYou are now being dropped into an emergency shell.\n";
    assert_eq!(told(arch), (Problem::InitramfsShell, device("UUID=0aa1"), None));
}

#[test]
fn a_root_that_must_be_repaired() {
    let console = "/dev/vda1: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n\
        fsck exited with status code 4\nThe root filesystem on /dev/vda1 requires a manual fsck\n\n(initramfs) ";
    assert_eq!(told(console), (Problem::RootDamaged, device("/dev/vda1"), None));
}

#[test]
fn emergency_mode_names_what_failed() {
    let console = "[ TIME ] Timed out waiting for device dev-sdb1.device - /dev/sdb1.\n\
        [DEPEND] Dependency failed for srv-data.mount - /srv/data.\n\
        [DEPEND] Dependency failed for local-fs.target - Local File Systems.\n\
        You are in emergency mode. After logging in, type \"journalctl -xb\" to view\n\
        Give root password for maintenance\n(or press Control-D to continue): ";
    let unit = device("srv-data.mount - /srv/data");
    assert_eq!(told(console), (Problem::EmergencyMode, device("/dev/sdb1"), unit));
    let (diagnosis, _) = found(console);
    let what = diagnosis.what();
    assert!(
        what.contains("/dev/sdb1") && what.contains("srv-data.mount"),
        "{what}"
    );
}

#[test]
fn a_passphrase_is_waited_for() {
    let console = "Begin: Mounting root file system ... Begin: Running /scripts/local-top ...\nPlease unlock disk vda5_crypt: ";
    assert_eq!(told(console), (Problem::Passphrase, device("vda5_crypt"), None));
}

#[test]
fn silence_and_what_only_took_too_long() {
    let (diagnosis, ended) = found("SeaBIOS (version 1.16.2)\nBooting from Hard Disk...\n\n");
    assert_eq!((diagnosis.problem, ended), (Problem::Silent, false));
    let mut findings = Findings::default();
    for part in ["Sea", "SeaBIOS (ver", "[FAILED] Failed to start sy"] {
        assert!(!findings.look_at_unfinished(part));
    }
    assert!(findings.unit.is_none());
    assert_eq!(findings.diagnosis(false).problem, Problem::Silent);
    let slow = "[    0.000000] Linux version 6.1.0\n[  OK  ] Reached target basic.target - Basic System.\n";
    let (diagnosis, ended) = found(slow);
    assert_eq!((diagnosis.problem, ended), (Problem::NotReached, false));
    let mut findings = Findings::default();
    findings.look_at("[    3.0] reboot: Power down");
    assert_eq!(findings.diagnosis(true).problem, Problem::PoweredOff);
}

#[test]
fn a_server_that_boots_with_a_failed_unit_has_no_problem() {
    let console = "[FAILED] Failed to start smartd.service - Self Monitoring Daemon.\n[  OK  ] Reached target getty.target.\n";
    let (_, ended) = found(console);
    assert!(!ended);
    assert!(is_login_prompt("web01 login: ") && is_login_prompt("web-01.example login:"));
    for other in [
        "Last login: Mon",
        "login: ",
        "a failed login: root",
        "web01 login",
    ] {
        assert!(!is_login_prompt(other), "{other}");
    }
}

#[test]
fn kernels_are_known_by_their_lines() {
    for line in [
        "[    0.000000] Linux version 6.1",
        "[12345.678901] x",
        "EFI stub: Loaded initrd",
    ] {
        assert!(is_kernel_line(line), "{line}");
    }
    for line in [
        "Booting from Hard Disk...",
        "[  OK  ] Reached target",
        "GRUB loading.",
    ] {
        assert!(!is_kernel_line(line), "{line}");
    }
}

#[test]
fn every_problem_has_advice() {
    let all = [Problem::NoBootableDevice, Problem::Silent, Problem::NotReached];
    assert!(all.iter().all(|problem| !problem.advice().is_empty()));
}
