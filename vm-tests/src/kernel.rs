//! The distribution's cloud kernel, as `scripts/setup.sh` unpacked it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::error::IoContext;
use testkit::{Error, ErrorKind, Result};

/// Names the directory that `scripts/setup.sh` fills; `/var/cache/smc-test` where it is not set.
pub const CACHE_VARIABLE: &str = "SMC_TEST_CACHE";

/// The directory that `scripts/setup.sh` fills.
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE_VARIABLE).map_or_else(|| PathBuf::from("/var/cache/smc-test"), PathBuf::from)
}

/// Drivers that a guest must have, as modules or built in.
const REQUIRED: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Where ext4 is a module, some kernels only name its checksum driver as a soft dependency. The others are for guests that are
/// asked over a network, or whose agent is.
const OPTIONAL: [&str; 3] = ["crc32c_generic", "virtio_net", "virtio_console"];

/// An unpacked kernel package: `vmlinuz`, `VERSION` and `lib/modules/VERSION`.
#[derive(Debug)]
pub struct Kernel {
    root: PathBuf,
    version: String,
}

/// A kernel module, uncompressed.
#[derive(Debug)]
pub struct Module {
    /// File name, for example `virtio_blk.ko`.
    pub name: String,
    /// The ELF file.
    pub content: Vec<u8>,
}

impl Kernel {
    /// The kernel of this machine's release, in the cache directory.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where there is none.
    pub fn cached() -> Result<Self> {
        Self::unpacked(cache_dir().join("kernel"))
    }

    /// A kernel that `scripts/setup.sh` has unpacked into this directory.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where there is none.
    pub fn unpacked(root: PathBuf) -> Result<Self> {
        let version = fs::read_to_string(root.join("VERSION")).map_err(|source| {
            Error::io(
                format!("no guest kernel in {}: run 'make setup'", root.display()),
                source,
            )
            .with_kind(ErrorKind::Setup)
        })?;
        Ok(Self {
            version: version.trim().to_owned(),
            root,
        })
    }

    /// The release that `uname -r` shows on it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The bootable image.
    pub fn image(&self) -> PathBuf {
        self.root.join("vmlinuz")
    }

    /// The modules that a guest with a virtio disk and an ext4 root needs, in the order to load them.
    ///
    /// # Errors
    /// As for [`modules`](Self::modules).
    pub fn guest_modules(&self) -> Result<Vec<Module>> {
        self.modules(&REQUIRED)
    }

    /// The modules that these drivers consist of, in the order to load them; none for a driver that is built in.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where the kernel has no such driver, [`ErrorKind::Io`] when a file cannot be read.
    pub fn modules(&self, drivers: &[&str]) -> Result<Vec<Module>> {
        let dir = self.root.join("lib/modules").join(&self.version);
        let read = |name: &str| {
            fs::read_to_string(dir.join(name)).context(|| format!("read {}", dir.join(name).display()))
        };
        let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, drivers)?;
        order.iter().map(|path| read_module(&dir.join(path))).collect()
    }
}

/// The name that modprobe knows a module file by: no directory, no suffix, underscores.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Paths of the needed modules from `modules.dep`, dependencies first, each once.
fn load_order(modules_dep: &str, modules_builtin: &str, drivers: &[&str]) -> Result<Vec<String>> {
    let by_name: HashMap<String, (&str, &str)> = modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(p, deps)| (module_name(p), (p, deps)))
        .collect();
    let is_builtin = |name: &str| modules_builtin.lines().any(|line| module_name(line) == name);
    let mut order: Vec<String> = Vec::new();
    for name in OPTIONAL.iter().chain(drivers) {
        let Some((path, dependencies)) = by_name.get(*name) else {
            if drivers.contains(name) && !is_builtin(name) {
                return Err(Error::new(
                    ErrorKind::Setup,
                    format!("the guest kernel has no driver {name}"),
                ));
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
        None => fs::read(path).context(|| format!("read {}", path.display()))?,
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
        .context(|| format!("start {tool}: is it installed? (make setup)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(
            ErrorKind::Command,
            format!("{tool} -dc {} failed: {said}", path.display()),
        ));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/virtio/virtio.ko.xz:\n\
        kernel/virtio/virtio_ring.ko.xz: kernel/virtio/virtio.ko.xz\n\
        kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz\n\
        kernel/block/virtio_blk.ko.xz: kernel/virtio/virtio_ring.ko.xz kernel/virtio/virtio.ko.xz\n";

    #[test]
    fn loads_dependencies_first_and_each_module_once() {
        let order = load_order(DEP, "kernel/fs/ext4/ext4.ko\n", &REQUIRED).unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "virtio_blk"]);
    }

    #[test]
    fn names_a_driver_that_is_missing() {
        let error = load_order(DEP, "kernel/fs/xfs/xfs.ko\n", &REQUIRED).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup);
        assert!(error.to_string().contains("ext4"), "{error}");
    }
}
