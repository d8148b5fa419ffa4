//! A disk that UEFI boots: a GPT and an EFI system partition with a loader, the distribution's kernel and an initramfs.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::initramfs;
use crate::kernel::Kernel;
use testkit::error::IoContext;
use testkit::guard::ScratchDir;
use testkit::{Error, ErrorKind, Result, process};

/// systemd's boot loader, which gives the kernel its command line and its initramfs.
const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const DISK_BYTES: u64 = 128 << 20;
/// Where the partition begins, and how many sectors it has.
const ESP_OFFSET: u64 = 1 << 20;
const ESP_SECTORS: u64 = (96 << 20) / 512;
/// What UEFI starts where no boot entry says otherwise.
const FALLBACK: &str = "::EFI/BOOT/BOOTX64.EFI";

/// Writes such a disk to the file `disk`, which must not exist. `parameters` are the kernel's.
///
/// # Errors
/// [`ErrorKind::Setup`] without the boot loader, and what the programs fail with.
pub fn create(disk: &Path, parameters: &str) -> Result<()> {
    if !Path::new(LOADER).is_file() {
        let said = format!("no {LOADER}: run 'make setup'");
        return Err(Error::new(ErrorKind::Setup, said));
    }
    crate::guest::accelerator()?;
    let context = || format!("create {}", disk.display());
    let file = File::create_new(disk).context(context)?;
    file.set_len(DISK_BYTES).context(context)?;
    let mut table = Command::new("sgdisk");
    table.args(["--new=1:2048:+96M", "--typecode=1:ef00"]).arg(disk);
    process::run(&mut table)?;
    let scratch = ScratchDir::new("smc-uefi")?;
    let kernel = Kernel::cached()?;
    let archive = scratch.join("initramfs");
    fs::write(&archive, initramfs::build(&kernel)?).context(|| "write the initramfs")?;
    let entry = format!("title smc\nlinux /vmlinuz\ninitrd /initramfs\noptions {parameters}\n");
    let entry = scratch.file("entry", entry.as_bytes())?;
    let settings = scratch.file("settings", b"default smc.conf\ntimeout 0\n")?;

    let esp = format!("{}@@{ESP_OFFSET}", disk.display());
    let sectors = ESP_SECTORS.to_string();
    mtool("mformat", &esp, &["-T", &sectors, "::"])?;
    for directory in ["::EFI", "::EFI/BOOT", "::loader", "::loader/entries"] {
        mtool("mmd", &esp, &[directory])?;
    }
    let copies = [
        (Path::new(LOADER), FALLBACK),
        (&kernel.image(), "::vmlinuz"),
        (&archive, "::initramfs"),
        (&settings, "::loader/loader.conf"),
        (&entry, "::loader/entries/smc.conf"),
    ];
    for (source, target) in copies {
        mtool("mcopy", &esp, &[&source.display().to_string(), target])?;
    }
    Ok(())
}

/// Gives the boot loader another name, under which only a boot entry in the firmware would find it.
///
/// # Errors
/// What the program fails with.
pub fn hide_loader(disk: &Path) -> Result<()> {
    let esp = format!("{}@@{ESP_OFFSET}", disk.display());
    mtool("mren", &esp, &[FALLBACK, "::EFI/BOOT/OTHER.EFI"])
}

/// Runs a program of mtools on a system partition: `DISK@@OFFSET`.
pub(crate) fn mtool(program: &str, esp: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    // Its checks of the geometry are for floppy disks.
    command.env("MTOOLS_SKIP_CHECK", "1").args(["-i", esp]);
    process::run(command.args(arguments)).map(drop)
}
