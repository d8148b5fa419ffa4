//! The device or file that an image is restored to, opened so that nobody else can take it.

use crate::exit::Advise;
use anyhow::{Context, bail};
use blockio::{Device, DeviceKind};
use cli::units;
use hostdev::{Root, User};
use std::fs::{self, File};
use std::path::Path;

/// A target that was found fit to be overwritten. A block device is held O_EXCL, so that it stays so.
#[derive(Debug)]
pub struct Target {
    /// The same, opened for reading.
    pub device: Device,
    /// Open for writing, with O_DIRECT where possible.
    pub file: File,
}

impl Target {
    /// Opens a block device or an existing file that can take `size_bytes` from the store at `store`.
    ///
    /// Refused are what is too small, what holds the store or lies in it, and what anybody uses.
    pub fn open(path: &Path, size_bytes: u64, store: &Path) -> anyhow::Result<Self> {
        let device = match Device::open(path) {
            Err(error) if error.kind() == blockio::ErrorKind::Empty => return too_small(path, 0, size_bytes),
            opened => opened?,
        };
        if device.size_bytes() < size_bytes {
            return too_small(path, device.size_bytes(), size_bytes);
        }
        check_apart(&device, store)?;
        let root = Root::system();
        let user = hostdev::first_user(&root, device.node())
            .with_context(|| format!("find out who uses {}", path.display()))?;
        if let Some(user) = user {
            let shown = path.display();
            let refused = Err(anyhow::anyhow!("{shown} is in use: {}", words(&user)));
            return refused.advise(format!("free {shown} first, or name another device"));
        }
        let file = blockio::open_exclusive(path)?;
        Ok(Self { device, file })
    }

    /// What people should recognize it by before they let it be overwritten.
    pub fn description(&self) -> String {
        let identity = self.device.identity();
        let known = [&identity.model, &identity.serial, &identity.backing_file];
        let mut parts = vec![units::size(self.device.size_bytes())];
        parts.extend(
            known
                .into_iter()
                .flatten()
                .map(|text| text.escape_debug().to_string()),
        );
        format!("{} ({})", self.device.path().display(), parts.join(", "))
    }
}

fn words(user: &User) -> String {
    match user {
        User::Mount(point) => format!("it is mounted on {}", point.display()),
        User::Swap(path) => format!("it is in use as swap ({})", path.display()),
        User::Holder(name) => format!("it is part of {name}"),
        User::Loop(path) => format!("it is behind {}", path.display()),
    }
}

fn too_small<T>(path: &Path, actual: u64, wanted: u64) -> anyhow::Result<T> {
    let path = path.display();
    let refused = Err(anyhow::anyhow!(
        "{path} is too small: it has {actual} bytes, the image has {wanted}"
    ));
    refused.advise(format!(
        "name a device of {} or more, or make the file larger with truncate",
        units::size(wanted)
    ))
}

/// Refuses a target whose overwriting would destroy the store.
fn check_apart(device: &Device, store: &Path) -> anyhow::Result<()> {
    let (shown, store_shown) = (device.path().display(), store.display());
    if hostdev::lies_on(&Root::system(), store, device.node())? {
        bail!("{shown} holds the store {store_shown}: restoring to it would destroy the image");
    }
    if device.kind() == DeviceKind::File {
        let resolve =
            |path: &Path| fs::canonicalize(path).with_context(|| format!("resolve {}", path.display()));
        if resolve(device.path())?.starts_with(resolve(store)?) {
            bail!("{shown} lies in the store {store_shown}: restoring to it would destroy images");
        }
    }
    Ok(())
}
