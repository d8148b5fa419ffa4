//! The modules of a kernel, for an initramfs: which ones a driver needs, in which order, and their content.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// Where a kernel's image says at which byte its version is written, without the 512 bytes in front
/// (the kernel's Documentation/arch/x86/boot.rst, `kernel_version`).
const VERSION_POINTER: usize = 0x20e;
/// The most that a version can have; the longest in use have some 200 bytes.
const VERSION_LEN_MAX: usize = 512;

/// A kernel module, uncompressed.
#[derive(Debug)]
pub struct Module {
    /// File name, for example `virtio_blk.ko`.
    pub name: String,
    /// The ELF file.
    pub content: Vec<u8>,
}

/// The modules of one kernel: a directory as `/lib/modules/VERSION`, with the index that depmod makes.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
    dep: String,
    builtin: String,
}

impl Modules {
    /// Reads the index.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where there is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| Error::io(format!("read {}", path.display()), source))
        };
        Ok(Self {
            dep: read("modules.dep")?,
            builtin: read("modules.builtin")?,
            dir: dir.to_owned(),
        })
    }

    /// What these drivers consist of, in the order to load it; nothing for a driver that is built in. Of the optional ones,
    /// what there is.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] where the kernel has no such driver, [`ErrorKind::Io`] when a file cannot be read.
    pub fn read(&self, drivers: &[&str], optional: &[&str]) -> Result<Vec<Module>> {
        let order = load_order(&self.dep, &self.builtin, drivers, optional)?;
        order
            .iter()
            .map(|path| read_module(&self.dir.join(path)))
            .collect()
    }
}

/// The version of a kernel, as `uname -r` shows it, from the beginning of its image.
pub fn version_of(image: &[u8]) -> Option<String> {
    let pointer = image.get(VERSION_POINTER..)?.first_chunk()?;
    let start = usize::from(u16::from_le_bytes(*pointer)) + 512;
    let text = image.get(start..)?;
    let text = &text[..text.len().min(VERSION_LEN_MAX)];
    let word = text.split(|&byte| byte == 0 || byte == b' ').next()?;
    let version = std::str::from_utf8(word).ok()?;
    let is_plain = version
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~'));
    let is_version = image.get(0x202..0x206) == Some(b"HdrS") && is_plain && !version.starts_with('.');
    (is_version && !version.is_empty()).then(|| version.to_owned())
}

/// The name that modprobe knows a module file by: no directory, no suffix, underscores.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Paths of the needed modules from `modules.dep`, dependencies first, each once.
fn load_order(dep: &str, builtin: &str, drivers: &[&str], optional: &[&str]) -> Result<Vec<String>> {
    let by_name: HashMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs)))
        .collect();
    let is_builtin = |name: &str| builtin.lines().any(|line| module_name(line) == name);
    let mut order: Vec<String> = Vec::new();
    for name in optional.iter().chain(drivers) {
        let Some((path, dependencies)) = by_name.get(*name) else {
            if drivers.contains(name) && !is_builtin(name) {
                let what = format!("the guest's kernel has no driver {name}");
                return Err(Error::new(ErrorKind::Missing, what));
            }
            continue;
        };
        // modules.dep(5) lists a module's dependencies nearest first.
        for path in dependencies.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn read_module(path: &Path) -> Result<Module> {
    let tool = match path.extension().and_then(|suffix| suffix.to_str()) {
        Some("xz") => Some("xz"),
        Some("zst") => Some("zstd"),
        Some("gz") => Some("gzip"),
        _ => None,
    };
    let content = match tool {
        Some(tool) => decompress(tool, path)?,
        None => fs::read(path).map_err(|source| Error::io(format!("read {}", path.display()), source))?,
    };
    Ok(Module {
        name: format!("{}.ko", module_name(&path.to_string_lossy())),
        content,
    })
}

fn decompress(tool: &str, path: &Path) -> Result<Vec<u8>> {
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::start(tool, source))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = format!("{tool} cannot unpack {}: {}", path.display(), said.trim());
        return Err(Error::new(ErrorKind::Missing, what));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVERS: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
    const DEP: &str = "kernel/virtio/virtio.ko.xz:\n\
        kernel/virtio/virtio_ring.ko.xz: kernel/virtio/virtio.ko.xz\n\
        kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz\n\
        kernel/block/virtio_blk.ko.xz: kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz\n";

    #[test]
    fn loads_dependencies_first_and_each_module_once() {
        let order = load_order(DEP, "kernel/fs/ext4/ext4.ko\n", &DRIVERS, &["virtio_net"]).unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "virtio_blk"]);
    }

    #[test]
    fn names_a_driver_that_is_missing() {
        let error = load_order(DEP, "kernel/fs/xfs/xfs.ko\n", &DRIVERS, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("ext4"), "{error}");
    }

    #[test]
    fn a_kernel_says_its_version_and_other_files_say_none() {
        let mut image = vec![0; 2048];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[VERSION_POINTER..VERSION_POINTER + 2].copy_from_slice(&0x200u16.to_le_bytes());
        image[0x400..0x400 + 27].copy_from_slice(b"6.1.0-56-cloud-amd64 (debia");
        assert_eq!(version_of(&image).as_deref(), Some("6.1.0-56-cloud-amd64"));
        image[0x402] = b'/';
        assert_eq!(version_of(&image), None);
        image[VERSION_POINTER + 1] = 0xff;
        assert_eq!(version_of(&image), None);
        assert_eq!(version_of(&[0; 2048]), None);
        assert_eq!(version_of(b"HdrS"), None);
    }
}
