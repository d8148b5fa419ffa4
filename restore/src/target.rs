//! The device or file that an image is restored to, opened so that nobody else can take it.

use crate::apart;
use anyhow::{Context, anyhow, bail, ensure};
use blockio::Device;
use cli::exit::Advise;
use cli::units;
use hostdev::{Node, Root};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
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
    /// Refused are what is too small or cannot be written to, what holds the store or lies in one, what anybody uses, and
    /// a file behind another user's link.
    ///
    /// # Errors
    /// Why it is refused, or cannot be opened.
    pub fn open(path: &Path, size_bytes: u64, store: &Path) -> anyhow::Result<Self> {
        let device = match Device::open(path) {
            Err(error) if error.kind() == blockio::ErrorKind::Empty => return too_small(path, 0, size_bytes),
            opened => opened?,
        };
        if device.size_bytes() < size_bytes {
            return too_small(path, device.size_bytes(), size_bytes);
        }
        check_writable(&device)?;
        check_apart(&device, store)?;
        check_unused(&device)?;
        let file = blockio::open_exclusive(path)?;
        let metadata = file
            .metadata()
            .with_context(|| format!("examine {}", path.display()))?;
        ensure!(
            device.node().is_same(&Node::of(path, &metadata)),
            "{} was replaced while it was looked at",
            path.display()
        );
        Ok(Self { device, file })
    }

    /// Refuses a target that somebody uses now: nothing keeps a file from being used while it is open.
    ///
    /// # Errors
    /// Who uses it.
    pub fn check_unused(&self) -> anyhow::Result<()> {
        check_unused(&self.device)
    }

    /// Refuses a target in whose place something else is: what is written to it would be nowhere that anybody looks.
    ///
    /// # Errors
    /// A path that leads to another file or device than the one that is open, or to none.
    pub fn check_in_place(&self) -> anyhow::Result<()> {
        let path = self.device.path();
        let shown = path.display();
        let metadata = fs::metadata(path).with_context(|| format!("look whether {shown} is still there"))?;
        ensure!(
            self.device.node().is_same(&Node::of(path, &metadata)),
            "{shown} was renamed or replaced: another file or device is there now"
        );
        Ok(())
    }

    /// From now on reads and writes may have any offset and length: what is left to do is little.
    pub fn set_buffered(&self) {
        blockio::set_buffered(&self.file);
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

fn check_unused(device: &Device) -> anyhow::Result<()> {
    let shown = device.path().display();
    let user = hostdev::first_user(&Root::system(), device.node())
        .with_context(|| format!("find out who uses {shown}"))?;
    match user {
        None => Ok(()),
        Some(user) => Err(anyhow!("{shown} is in use: {user}"))
            .advise(format!("free {shown} first, or name another device")),
    }
}

fn too_small<T>(path: &Path, actual: u64, wanted: u64) -> anyhow::Result<T> {
    let path = path.display();
    let refused = Err(anyhow!(
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
    let Node::File(path, id) = device.node() else {
        return Ok(());
    };
    refuse_foreign_link(device.path())?;
    let resolved = fs::canonicalize(path).with_context(|| format!("resolve {shown}"))?;
    apart::open_directory(apart::parent_of(&resolved)).with_context(|| format!("restore to {shown}"))?;
    if apart::is_below(store, *id)? {
        bail!("{shown} is a file of the store {store_shown}: restoring to it would destroy images");
    }
    Ok(())
}

/// Where others may make files, one can be a link to a file of ours: only root's links and one's own are followed.
fn refuse_foreign_link(path: &Path) -> anyhow::Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("examine {}", path.display()))?;
    let owner = metadata.uid();
    if metadata.is_symlink() && owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        let refused = Err(anyhow!(
            "{} is a link that belongs to user {owner}",
            path.display()
        ));
        return refused.advise("name the file that it leads to, if that is the one to overwrite");
    }
    Ok(())
}

/// The kernel lets a read-only device be opened for writing, and then refuses each write.
fn check_writable(device: &Device) -> anyhow::Result<()> {
    let Some(number) = device.device_number() else {
        return Ok(());
    };
    let attribute = format!("/sys/dev/block/{number}/ro");
    let read_only = Root::system()
        .number(&attribute)
        .with_context(|| format!("find out whether {} can be written to", device.path().display()))?;
    if read_only == Some(1) {
        let refused = Err(anyhow!(
            "{} is read-only: nothing was written",
            device.path().display()
        ));
        return refused
            .advise("`blockdev --setrw` makes a device writable, if nothing else keeps it read-only");
    }
    Ok(())
}
