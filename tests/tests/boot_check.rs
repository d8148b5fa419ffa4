//! Images boot in QEMU by `smc-image boot`, and what does not boot is told why: real disks, synced, damaged, synced again.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use smc_tests::{Bench, Disk, code, program, stderr};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use testkit::guard::LoopDevice;
use testkit::noise;
use testkit::process::wait_for;
use testkit::program::with_default_signals;
use vm_tests::disk::{BootDisk, MountedRoot};
use vm_tests::kernel::{Kernel, cache_dir};
use vm_tests::payload::Payload;

const MIB: u64 = 1 << 20;
/// The kernel's first lines are shown, and a login prompt at the end.
const PARAMETERS: &str = "smc.root=LABEL=smc-root console=ttyS0 panic=-1 smc.login";
/// Long enough for a busy machine; what ends by it has failed.
const TIMEOUT: &str = "3min";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A server's disk with a boot loader, a kernel and a login prompt.
struct Source {
    bench: Bench,
    disk: Disk,
    boot_disk: BootDisk,
}

impl Source {
    fn new(name: &str) -> Result<Self> {
        let bench = Bench::new(name)?;
        let disk = bench.disk("disk.img", 160 * MIB)?;
        let payload = Payload::collect(&[Path::new("/etc/apt")], MIB)?;
        let boot_disk = BootDisk::create(disk.path(), &bench.dir.join("mnt"), "monday", &payload)?;
        let source = Self {
            bench,
            disk,
            boot_disk,
        };
        source.change(|root| Ok(root.set_kernel_parameters(PARAMETERS)?))?;
        Ok(source)
    }

    /// Changes files of the root filesystem.
    fn change(&self, change: impl FnOnce(&MountedRoot) -> Result<()>) -> Result<()> {
        let root = self.boot_disk.mount(&self.bench.dir.join("mnt"))?;
        change(&root)?;
        Ok(root.unmount()?)
    }

    fn sync(&self) -> Result<()> {
        self.bench.sync(&[("vda", self.disk.path())]).map(drop)
    }

    /// What a boot check of the newest image came to; its exit code says the same.
    fn check(&self, more: &[&str]) -> Result<Value> {
        self.check_within(TIMEOUT, more)
    }

    fn check_within(&self, timeout: &str, more: &[&str]) -> Result<Value> {
        self.check_image("web01/latest", timeout, more)
    }

    fn check_image(&self, image: &str, timeout: &str, more: &[&str]) -> Result<Value> {
        let first = ["--memory", "256MiB", "--timeout", timeout];
        self.bench.boot_check(image, &[&first, more].concat())
    }

    /// The name of the problem for which the newest image does not boot.
    fn problem(&self) -> Result<Value> {
        self.sync()?;
        let verdict = self.check(&["--check"])?;
        ensure!(verdict["booted"] == false, "it boots: {verdict}");
        ensure!(
            verdict["problem"]["name"] != "not-reached",
            "it took too long: {verdict}"
        );
        Ok(verdict["problem"].clone())
    }

    fn digest(&self, image: &str) -> Result<Vec<u8>> {
        let output = self.bench.image(&["digest", image, "--recompute"])?;
        ensure!(code(&output) == 0, "{}", stderr(&output));
        Ok(output.stdout)
    }

    fn images(&self) -> std::path::PathBuf {
        self.bench.store().join("web01/images")
    }
}

#[test]
fn an_image_that_boots_carries_its_verdict_and_stays_as_it_is() -> Result<()> {
    let source = Source::new("boot-good")?;
    source.sync()?;
    let before = source.digest("web01/1")?;

    let verdict = source.check(&["--check"])?;
    assert_eq!(verdict["booted"], true, "{verdict}");
    assert_eq!(verdict["machine"]["firmware"], "bios");
    let (kernel, reached) = (verdict["kernel_ms"].as_u64(), verdict["reached_ms"].as_u64());
    assert!(kernel.is_some() && kernel < reached, "{verdict}");
    let console = verdict["console"].to_string();
    assert!(console.contains("web01 login:"), "{console}");

    assert_eq!(source.digest("web01/1")?, before);
    assert_eq!(fs::read_dir(source.bench.dir.join("overlays"))?.count(), 0);
    let listed = source.bench.image_json(&["ls"])?;
    assert_eq!(listed[0]["booted"], true);
    let shown = source.bench.image_json(&["info", "web01/1"])?;
    assert_eq!(shown[0]["boot"]["reached_ms"], verdict["reached_ms"]);
    let verified = source.bench.image(&["verify"])?;
    assert_eq!(code(&verified), 0, "{}", stderr(&verified));
    assert!(!String::from_utf8_lossy(&verified.stdout).contains("not known"));

    let picture = source.bench.dir.join("screen.png");
    let told = source.bench.image(&[
        "verdict",
        "web01/1",
        "--screenshot",
        &picture.display().to_string(),
    ])?;
    assert_eq!(code(&told), 0, "{}", stderr(&told));
    assert!(fs::read(&picture)?.starts_with(PNG));

    assert!(source.images().join("000001.boot").exists());
    let removed = source.bench.image(&["rm", "web01/1"])?;
    assert_eq!(code(&removed), 0, "{}", stderr(&removed));
    assert_eq!(fs::read_dir(source.images())?.count(), 0);
    Ok(())
}

#[test]
fn what_does_not_boot_is_told_why() -> Result<()> {
    let source = Source::new("boot-broken")?;

    // Without its initramfs the kernel knows no virtio disk.
    source.change(|root| {
        let config = root.path().join("boot/syslinux/syslinux.cfg");
        let text = fs::read_to_string(&config)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("INITRD")).collect();
        fs::write(&config, lines.join("\n") + " root=/dev/sda1\n")?;
        Ok(())
    })?;
    let problem = source.problem()?;
    assert_eq!(problem["name"], "no-root", "{problem}");
    assert!(problem["device"].to_string().contains("sda1"), "{problem}");
    source.change(|root| Ok(root.set_kernel_parameters(PARAMETERS)?))?;

    // The root filesystem has no init: init of the initramfs ends, and the kernel with it.
    let moved = |root: &MountedRoot, from: &str, to: &str| -> Result<()> {
        Ok(fs::rename(root.path().join(from), root.path().join(to))?)
    };
    source.change(|root| moved(root, "sbin/init", "sbin/lost"))?;
    assert_eq!(source.problem()?["name"], "kernel-panic");
    source.change(|root| moved(root, "sbin/lost", "sbin/init"))?;

    source.change(|root| moved(root, "boot/vmlinuz", "boot/lost"))?;
    assert_eq!(source.problem()?["name"], "kernel-not-loaded");
    source.change(|root| moved(root, "boot/lost", "boot/vmlinuz"))?;

    // The partition is not marked as the one to boot from.
    source.disk.write_at(446, &[0])?;
    assert_eq!(source.problem()?["name"], "no-boot-loader");

    // The boot sector is gone.
    source.disk.write_at(0, &[0; 512])?;
    assert_eq!(source.problem()?["name"], "no-bootable-device");

    let told = source.bench.image(&["verdict", "web01/latest"])?;
    let text = String::from_utf8(told.stdout.clone())?;
    assert_eq!(code(&told), 1);
    assert!(text.contains("did not boot") && text.contains("to do:"), "{text}");
    assert!(text.contains("No bootable device."), "{text}");
    Ok(())
}

#[test]
fn a_guest_that_powers_off_and_one_that_says_something_else() -> Result<()> {
    let source = Source::new("boot-other")?;
    source.change(|root| {
        let parameters = PARAMETERS.replace(" smc.login", "");
        Ok(root.set_kernel_parameters(&parameters)?)
    })?;
    assert_eq!(source.problem()?["name"], "powered-off");
    let verdict = source.check(&["--check-console", "SMC-BOOT-OK point=monday"])?;
    assert_eq!(verdict["booted"], true, "{verdict}");
    // It can be overwritten by a later check, and a damaged record is told and does no harm.
    let record = source.images().join("000001.boot");
    File::options()
        .write(true)
        .open(&record)?
        .write_all_at(b"x", 20)?;
    let listed = source.bench.image(&["ls"])?;
    assert_eq!(code(&listed), 3);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("boot verdict cannot be read"));
    let verified = source.bench.image(&["verify"])?;
    assert_eq!(code(&verified), 3, "{}", stderr(&verified));
    let verdict = source.check(&["--check-console", "SMC-BOOT-OK point=monday"])?;
    assert_eq!(verdict["booted"], true);
    assert_eq!(code(&source.bench.image(&["ls"])?), 0);
    Ok(())
}

/// A boot without a check, as somebody at a terminal has it.
struct Shown {
    child: Child,
    qemu: Pid,
}

impl Shown {
    /// Starts it, and waits until the guest writes.
    fn start(source: &Source, log: &Path) -> Result<Self> {
        let child = with_default_signals(&mut Command::new(program("smc-image")))
            .arg("--store")
            .arg(source.bench.store())
            .args(["boot", "web01/1", "--memory", "256MiB", "--overlay-dir"])
            .arg(source.bench.dir.join("overlays"))
            .arg("--vnc")
            .arg(source.bench.dir.join("vnc.sock"))
            .stdin(Stdio::piped())
            .stdout(File::create(log)?)
            .stderr(Stdio::inherit())
            .spawn()?;
        let said = || fs::read_to_string(log).is_ok_and(|text| text.contains("Linux version"));
        wait_for("the guest's kernel", said);
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let qemu = fs::read_to_string(children)?;
        let qemu = Pid::from_raw(qemu.trim().parse().context("one child")?);
        Ok(Self { child, qemu })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits until nothing is left of it, and gives its exit code.
    fn ended(mut self, source: &Source) -> Result<Option<i32>> {
        let status = self.child.wait()?;
        wait_for("the end of QEMU", || kill(self.qemu, None).is_err());
        // QEMU leaves the viewer's socket, which a killed boot cannot remove; the next one does.
        let has_socket = source.bench.dir.join("vnc.sock").exists();
        assert_eq!(has_socket, status.code().is_none());
        assert_eq!(fs::read_dir(source.bench.dir.join("overlays"))?.count(), 0);
        Ok(status.code())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on port 2222, and a guest agent that knows the state of a systemd.
const SERVICES: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb ip addr add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
(while :; do echo hello | $bb nc -l -p 2222; done) &
exec <>"$(echo /dev/vport*p1)" >&0
while read -r line; do
    case $line in
        *guest-sync*) id=${line##*\"id\":}; echo "{\"return\": ${id%%\}*}}" ;;
        *guest-exec-status*) echo "{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"$out\"}}" ;;
        *journalctl*) out=bm8gcm9vbSBmb3IgbG9ncwo=; echo '{"return": {"pid": 9}}' ;;
        *--failed*) out=FAILED_UNITS; echo '{"return": {"pid": 8}}' ;;
        *guest-exec*) out=$($bb base64 /etc/smc/state); echo '{"return": {"pid": 7}}' ;;
    esac
done
"#;

#[test]
fn a_guest_is_asked_by_its_port_its_agent_and_a_script() -> Result<()> {
    let source = Source::new("boot-asked")?;
    source.change(|root| {
        // In words of base64: nginx.service loaded failed failed A web server
        let services = SERVICES.replace(
            "FAILED_UNITS",
            "bmdpbnguc2VydmljZSBsb2FkZWQgZmFpbGVkIGZhaWxlZCBBIHdlYiBzZXJ2ZXIK",
        );
        let file = root.path().join("etc/smc/services");
        fs::write(&file, services)?;
        fs::write(root.path().join("etc/smc/state"), "running\n")?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
    })?;
    source.sync()?;
    let port = source.check(&["--check-port", "2222"])?;
    assert_eq!(port["booted"], true, "{port}");
    assert_eq!(
        (&port["check"], &port["machine"]["network"]),
        (&"answer of port 2222".into(), &true.into())
    );
    let agent = source.check(&["--check-agent"])?;
    assert_eq!(agent["booted"], true, "{agent}");
    assert_eq!(agent["machine"]["network"], false, "an agent needs no network");
    let systemd = source.check(&["--check-systemd"])?;
    assert_eq!(systemd["booted"], true, "{systemd}");

    let script = source.bench.dir.join("script");
    let free = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let forward = format!("{free}:2222");
    let wanted = format!("#!/bin/sh\n[ \"$SMC_IMAGE $SMC_FORWARDS\" = 'web01/1 {forward}' ] || exit 7\n");
    fs::write(&script, wanted)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let script = script.display().to_string();
    let met = source.check(&["--check-script", &script, "--forward", &forward])?;
    assert_eq!(met["booted"], true, "{met}");
    let refused = source.check(&["--check-script", &script])?;
    assert_eq!(refused["problem"]["name"], "check-failed", "{refused}");
    assert!(
        refused["problem"]["what"].to_string().contains("exit status: 7"),
        "{refused}"
    );

    // A service of the second image has failed.
    source.change(|root| Ok(fs::write(root.path().join("etc/smc/state"), "degraded\n")?))?;
    source.sync()?;
    let degraded = source.check(&["--check-systemd"])?;
    assert_eq!(degraded["booted"], false, "{degraded}");
    let what = degraded["problem"]["what"].to_string();
    assert!(
        what.contains("nginx.service") && what.contains("wrote: no room for logs"),
        "{degraded}"
    );
    let port = source.check_within("20s", &["--check-port", "80"])?;
    assert_eq!(
        port["booted"], false,
        "QEMU takes the connection, the guest does not"
    );
    Ok(())
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn a_server_starts_from_every_bus() -> Result<()> {
    let source = Source::new("boot-buses")?;
    let drivers = [
        "virtio_pci",
        "virtio_blk",
        "virtio_scsi",
        "ahci",
        "ata_piix",
        "nvme",
        "sd_mod",
        "ext4",
    ];
    let kernel = Kernel::unpacked(cache_dir().join("newer-system/kernel"))?;
    source.change(|root| Ok(root.set_kernel(&kernel, &drivers)?))?;
    source.sync()?;
    for bus in ["virtio", "scsi", "sata", "nvme", "ide"] {
        let verdict = source.check(&["--check", "--disk-bus", bus])?;
        ensure!(verdict["booted"] == true, "{bus}: {verdict}");
        ensure!(verdict["machine"]["disk_bus"] == bus, "{bus}: {verdict}");
    }
    Ok(())
}

/// A full image and four incremental ones of a disk in use: each boots into its own point in time, after a retention too.
#[test]
#[ignore = "takes minutes: make vm-test"]
fn every_image_of_a_chain_boots_into_its_point_in_time() -> Result<()> {
    let source = Source::new("boot-chain")?;
    let days = ["monday", "tuesday", "wednesday", "thursday", "friday"];
    let root = source.boot_disk.mount(&source.bench.dir.join("mnt"))?;
    root.set_kernel_parameters(&PARAMETERS.replace(" smc.login", ""))?;
    for (day, seed) in days.iter().zip(1..) {
        // It stays mounted: the image has the journal of a disk in use.
        fs::write(root.path().join("srv/changing"), noise::noise(3 << 20, seed))?;
        root.set_point_in_time(day)?;
        root.write_manifest()?;
        root.sync()?;
        source.sync()?;
    }
    let shows = |number: u64, day: &str| -> Result<()> {
        let image = format!("web01/{number}");
        let wanted = format!("SMC-BOOT-OK point={day} ");
        let verdict = source.check_image(&image, TIMEOUT, &["--check-console", &wanted])?;
        ensure!(verdict["booted"] == true, "{image}: {verdict}");
        let verdict = source.check_image(&image, TIMEOUT, &["--check-console", "^SMC-FILES-OK "])?;
        ensure!(verdict["booted"] == true, "{image}: {verdict}");
        Ok(())
    };
    for (day, number) in days.iter().zip(1..) {
        shows(number, day)?;
    }
    for removed in ["web01/1", "web01/3"] {
        let output = source.bench.image(&["rm", removed])?;
        ensure!(code(&output) == 0, "{}", stderr(&output));
    }
    for number in [2, 4, 5] {
        shows(number, days[usize::try_from(number)? - 1])?;
    }
    Ok(root.unmount()?)
}

#[test]
fn nothing_is_left_of_a_boot_however_it_ends() -> Result<()> {
    let source = Source::new("boot-killed")?;
    source.sync()?;
    fs::create_dir(source.bench.dir.join("overlays"))?;
    let before = source.digest("web01/1")?;
    for (signal, wanted) in [
        (Signal::SIGKILL, None),
        (Signal::SIGINT, Some(0)),
        (Signal::SIGTERM, Some(0)),
        (Signal::SIGHUP, Some(0)),
    ] {
        let shown = Shown::start(&source, &source.bench.dir.join("console"))?;
        let refused = source.bench.image(&["rm", "web01/1"])?;
        assert_eq!(code(&refused), 1, "an image in use was deleted");
        shown.signal(signal)?;
        assert_eq!(shown.ended(&source)?, wanted, "{signal}");
    }
    assert_eq!(source.digest("web01/1")?, before);
    // No check was made, and nobody uses it any more.
    assert!(!source.images().join("000001.boot").exists());
    assert_eq!(code(&source.bench.image(&["rm", "web01/1"])?), 0);
    Ok(())
}

#[test]
fn what_is_missing_or_wrong_is_told_before_anything_starts() -> Result<()> {
    let bench = Bench::new("boot-wrong")?;
    let disk = bench.disk("disk.img", 8 * MIB)?;
    disk.write_noise(0, 1 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let without_qemu = Command::new(program("smc-image"))
        .arg("--store")
        .arg(bench.store())
        .args(["boot", "web01/1", "--check"])
        .env("PATH", bench.dir.path())
        .output()?;
    assert_eq!(code(&without_qemu), 1);
    assert!(
        stderr(&without_qemu).contains("qemu-system-x86"),
        "{}",
        stderr(&without_qemu)
    );
    for (arguments, wanted) in [
        (&["boot", "web01/1:vda", "--check"][..], "leave :vda out"),
        (
            &["boot", "web01/1", "--forward", "2222:22", "--net", "none"],
            "--net isolated",
        ),
        (&["boot", "web01/1", "--show-console"], "--show-console"),
        (&["boot", "web01/1", "--check-console", "("], "regex"),
    ] {
        let output = bench.image(arguments)?;
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    let none = bench.image(&["verdict", "web01/1"])?;
    assert!(
        stderr(&none).contains("smc-image boot web01/1 --check"),
        "{}",
        stderr(&none)
    );
    Ok(())
}

#[test]
fn a_disk_of_uefi_boots_by_uefi_and_lacks_a_loader_where_only_the_firmware_knew_it() -> Result<()> {
    let bench = Bench::new("boot-uefi")?;
    let backing = bench.dir.join("disk.img");
    vm_tests::uefi::create(&backing, "console=ttyS0 panic=-1 smc.probe")?;
    let sync = || -> Result<()> {
        let device = LoopDevice::attach(&backing)?;
        bench.sync(&[("vda", device.path())])?;
        Ok(device.detach()?)
    };
    let check = [
        "--json",
        "boot",
        "web01/latest",
        "--check-console",
        "SMC-PROBE-OK",
    ];

    sync()?;
    let output = bench.image(&check)?;
    assert_eq!(
        code(&output),
        0,
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
    let verdict: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(verdict["machine"]["firmware"], "uefi");

    vm_tests::uefi::hide_loader(&backing)?;
    sync()?;
    let output = bench.image(&check)?;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let verdict: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(verdict["problem"]["name"], "no-uefi-loader", "{verdict}");
    Ok(())
}
