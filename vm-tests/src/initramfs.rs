//! The guest's initramfs: busybox, the drivers, and an init of ours.

use std::fs;

use crate::guest::converted;
use crate::kernel::{Kernel, Module};
use boot::Archive;
use testkit::Result;
use testkit::error::IoContext;

/// The static busybox that runs in the initramfs and on the disk.
pub const BUSYBOX: &str = "/bin/busybox";

const INIT: &str = include_str!("../guest/initramfs-init.sh");
const DIRECTORIES: [&str; 8] = ["bin", "dev", "lib", "modules", "proc", "root", "run", "sys"];

/// A file that only some guests have: a program or a library.
#[derive(Debug)]
pub struct Extra {
    /// Where it is in the guest, without the leading slash; in one of the directories `bin` and `lib`.
    pub path: String,
    /// The whole file.
    pub content: Vec<u8>,
}

/// Builds the archive for `kernel`: uncompressed, so that any kernel can read it.
///
/// # Errors
/// `Io` when busybox or a driver cannot be read, `Setup` when the kernel lacks a driver.
pub fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    build_with(&kernel.guest_modules()?, INIT, &[])
}

/// As [`build`], with these drivers for its disks.
///
/// # Errors
/// As for [`build`].
pub fn build_for(kernel: &Kernel, drivers: &[&str]) -> Result<Vec<u8>> {
    build_with(&kernel.modules(drivers)?, INIT, &[])
}

/// Builds an archive of busybox, these modules, `init` as the script to run, and `extras`.
///
/// # Errors
/// `Io` when busybox cannot be read.
pub fn build_with(modules: &[Module], init: &str, extras: &[Extra]) -> Result<Vec<u8>> {
    let busybox =
        fs::read(BUSYBOX).context(|| format!("read {BUSYBOX}: is busybox-static installed? (make setup)"))?;
    archive(&busybox, modules, init, extras).map_err(|error| converted(&error))
}

fn archive(busybox: &[u8], modules: &[Module], init: &str, extras: &[Extra]) -> boot::Result<Vec<u8>> {
    let order: String = modules
        .iter()
        .map(|module| format!("{}\n", module.name))
        .collect();
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    archive.program("bin/busybox", busybox)?;
    archive.program("init", init.as_bytes())?;
    archive.file("modules/order", order.as_bytes())?;
    for module in modules {
        archive.file(&format!("modules/{}", module.name), &module.content)?;
    }
    for extra in extras {
        archive.program(&extra.path, &extra.content)?;
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cached_kernel_gets_busybox_init_and_drivers() {
        let archive = build(&Kernel::cached().unwrap()).unwrap();
        let contains = |needle: &[u8]| archive.windows(needle.len()).any(|window| window == needle);
        assert!(contains(b"bin/busybox\0"));
        assert!(contains(b"\0TRAILER!!!\0") || contains(b"TRAILER!!!\0"));
        assert!(contains(INIT.as_bytes()));
    }
}
