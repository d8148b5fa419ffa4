//! The distribution's cloud kernel, as `scripts/setup.sh` unpacked it.

use std::fs;
use std::path::PathBuf;

use crate::guest::converted;
pub use boot::Module;
use boot::Modules;
use testkit::{Error, ErrorKind, Result};

/// Names the directory that `scripts/setup.sh` fills; `/var/cache/smc-test` where it is not set.
pub const CACHE_VARIABLE: &str = "SMC_TEST_CACHE";

/// The directory that `scripts/setup.sh` fills.
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE_VARIABLE).map_or_else(|| PathBuf::from("/var/cache/smc-test"), PathBuf::from)
}

/// Drivers that a guest must have, as modules or built in.
pub(crate) const REQUIRED: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// Where ext4 is a module, some kernels only name its checksum driver as a soft dependency. The others are for guests that are
/// asked over a network, or whose agent is.
const OPTIONAL: [&str; 3] = ["crc32c_generic", "virtio_net", "virtio_console"];

/// An unpacked kernel package: `vmlinuz`, `VERSION` and `lib/modules/VERSION`.
#[derive(Debug)]
pub struct Kernel {
    root: PathBuf,
    version: String,
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
    /// [`ErrorKind::Setup`] where the kernel has no such driver, or a file cannot be read.
    pub fn modules(&self, drivers: &[&str]) -> Result<Vec<Module>> {
        let dir = self.root.join("lib/modules").join(&self.version);
        let read = || Modules::open(&dir)?.read(drivers, &OPTIONAL);
        read().map_err(|error| {
            let error = converted(&error);
            error.with_kind(ErrorKind::Setup)
        })
    }
}
