//! Block devices as sysfs shows them.

use std::collections::BTreeMap;
use std::path::Path;

use super::content::Content;
use crate::error::Result;
use crate::root::Root;

/// Bytes of the sectors that sysfs counts in, whatever the device's own are.
const SECTOR_BYTES: u64 = 512;

/// A page of vital product data is at most this long.
const VPD_PAGE_MAX_BYTES: u64 = 4 + 0xffff;

/// A disk or a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The kernel's name; a slash in it is shown as `!` in sysfs.
    pub name: String,
    /// Major and minor number.
    pub number: Option<(u32, u32)>,
    pub size_bytes: u64,
    /// The disk that this is a partition of.
    pub disk: Option<String>,
    /// Devices that it lies on.
    pub below: Vec<String>,
    /// Devices that lie on it.
    pub above: Vec<String>,
    /// Names of a device-mapper device.
    pub mapped: Option<Mapped>,
    /// The file behind a loop device.
    pub backing_file: Option<String>,
    pub removable: bool,
    /// One path of an NVMe multipath disk, which has no node in `/dev`.
    pub hidden: bool,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub content: Content,
}

/// What device-mapper calls a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub name: String,
    /// Starts with what made it: `LVM-`, `CRYPT-`, `mpath-`.
    pub uuid: String,
}

impl Device {
    /// The node in `/dev`.
    pub(crate) fn path(&self) -> String {
        format!("/dev/{}", self.name.replace('!', "/"))
    }

    /// Its disk's name; its own if it is one.
    pub(crate) fn whole_name(&self) -> &str {
        self.disk.as_deref().unwrap_or(&self.name)
    }

    /// Whether it is a device-mapper device made by this: `LVM-`.
    pub(crate) fn is_mapped_by(&self, maker: &str) -> bool {
        self.mapped
            .as_ref()
            .is_some_and(|mapped| mapped.uuid.starts_with(maker))
    }

    /// Whether it bundles several paths to one disk, which all show the same content.
    pub(crate) fn is_multipath(&self) -> bool {
        self.is_mapped_by("mpath-")
    }
}

/// All disks and partitions.
pub(super) fn read(root: &Root) -> Result<BTreeMap<String, Device>> {
    let mut devices = BTreeMap::new();
    for disk in root.read_dir("/sys/block")? {
        let directory = format!("/sys/block/{disk}");
        for name in root
            .names(&directory)
            .iter()
            .filter(|name| name.starts_with(&disk))
        {
            if root.exists(format!("{directory}/{name}/partition")) {
                let mut partition = device(root, name, &format!("{directory}/{name}"));
                partition.disk = Some(disk.clone());
                devices.insert(name.clone(), partition);
            }
        }
        devices.insert(disk.clone(), device(root, &disk, &directory));
    }
    Ok(devices)
}

fn device(root: &Root, name: &str, directory: &str) -> Device {
    let attribute = |name: &str| root.attribute(format!("{directory}/{name}"));
    let is_set = |name: &str| attribute(name).as_deref() == Some("1");
    let sectors = root.number(format!("{directory}/size")).unwrap_or(0);
    Device {
        name: name.to_owned(),
        number: attribute("dev").as_deref().and_then(parse_number),
        size_bytes: sectors.saturating_mul(SECTOR_BYTES),
        disk: None,
        below: root.names(format!("{directory}/slaves")),
        above: root.names(format!("{directory}/holders")),
        mapped: attribute("dm/name").map(|name| Mapped {
            name,
            uuid: attribute("dm/uuid").unwrap_or_default(),
        }),
        backing_file: attribute("loop/backing_file"),
        removable: is_set("removable"),
        hidden: is_set("hidden"),
        model: attribute("device/model"),
        serial: attribute("serial")
            .or_else(|| attribute("device/serial"))
            .or_else(|| vpd_serial(root, directory)),
        content: Content::default(),
    }
}

/// The unit serial number page of a SCSI disk: four bytes of header, then text (SPC-4, 7.8.16).
fn vpd_serial(root: &Root, directory: &str) -> Option<String> {
    let page = root
        .bytes_up_to(format!("{directory}/device/vpd_pg80"), VPD_PAGE_MAX_BYTES)
        .ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?).into_owned();
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// `MAJOR:MINOR`.
pub(super) fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel's name of the disk with this number, or of the disk of the partition with it.
pub(super) fn disk_of_number(root: &Root, (major, minor): (u32, u32)) -> Option<String> {
    let link = format!("/sys/dev/block/{major}:{minor}");
    let directory = root.resolved(&link)?;
    let parent = directory
        .parent()
        .filter(|_| root.exists(format!("{link}/partition")));
    let disk: &Path = parent.unwrap_or(&directory);
    Some(disk.file_name()?.to_str()?.to_owned())
}
