//! An initramfs as bytes: a cpio archive in the "newc" format, which has a 110-byte header of hexadecimal text, the name and
//! the content, each padded to 4 bytes (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::error::{Error, ErrorKind, Result};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const REGULAR: u32 = 0o100_644;

/// An initramfs that is being made. It is not compressed, so any kernel can read it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Names have no slash in front; what a name lies in is added before it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the format cannot hold it.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.add(name, DIRECTORY, &[])
    }

    /// Adds a file that can be run: a program or a library.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for more than 4 GiB.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(name, EXECUTABLE, content)
    }

    /// Adds any other file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for more than 4 GiB.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(name, REGULAR, content)
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        // Its name is short, and it is empty: the format holds it.
        let _ = self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| {
            let what = format!("{name} is too large for an initramfs");
            Error::new(ErrorKind::Io, what)
        })?;
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let name_size = name.len() + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
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
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_carry_their_sizes() {
        let mut archive = Archive::default();
        archive.program("init", b"hello").unwrap();
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005", "filesize");
        assert_eq!(&bytes[94..102], b"00000005", "namesize with its NUL");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello", "110 + 5 padded to 116");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
