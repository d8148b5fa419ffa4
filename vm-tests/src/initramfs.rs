//! The guest's initramfs: busybox, the drivers, and an init of ours, in a cpio archive.
//!
//! The archive is in the "newc" format: a 110-byte header of hexadecimal text, the name and the content, each
//! padded to 4 bytes (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs;

use crate::kernel::{Kernel, Module};
use testkit::Result;
use testkit::error::IoContext;

/// The static busybox that runs in the initramfs and on the disk.
pub const BUSYBOX: &str = "/bin/busybox";

const INIT: &str = include_str!("../guest/initramfs-init.sh");
const DIRECTORIES: [&str; 8] = ["bin", "dev", "lib", "modules", "proc", "root", "run", "sys"];
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const REGULAR: u32 = 0o100_644;

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

/// Builds an archive of busybox, these modules, `init` as the script to run, and `extras`.
///
/// # Errors
/// `Io` when busybox cannot be read.
pub fn build_with(modules: &[Module], init: &str, extras: &[Extra]) -> Result<Vec<u8>> {
    let busybox =
        fs::read(BUSYBOX).context(|| format!("read {BUSYBOX}: is busybox-static installed? (make setup)"))?;
    let order: String = modules
        .iter()
        .map(|module| format!("{}\n", module.name))
        .collect();

    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(directory, DIRECTORY, &[]);
    }
    archive.add("bin/busybox", EXECUTABLE, &busybox);
    archive.add("init", EXECUTABLE, init.as_bytes());
    archive.add("modules/order", REGULAR, order.as_bytes());
    for module in modules {
        archive.add(&format!("modules/{}", module.name), REGULAR, &module.content);
    }
    for extra in extras {
        archive.add(&extra.path, EXECUTABLE, &extra.content);
    }
    Ok(archive.finish())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let (size, name_size) = (content.len(), name.len() + 1);
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.entries, 0, 0, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_carry_their_sizes() {
        let mut archive = Archive::default();
        archive.add("init", EXECUTABLE, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "filesize");
        assert_eq!(&bytes[94..102], b"00000005", "namesize with its NUL");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello", "110 + 5 padded to 116");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_cached_kernel_gets_busybox_init_and_drivers() {
        let archive = build(&Kernel::cached().unwrap()).unwrap();
        let contains = |needle: &[u8]| archive.windows(needle.len()).any(|window| window == needle);
        assert!(contains(b"bin/busybox\0"));
        assert!(contains(b"\0TRAILER!!!\0") || contains(b"TRAILER!!!\0"));
        assert!(contains(INIT.as_bytes()));
    }
}
