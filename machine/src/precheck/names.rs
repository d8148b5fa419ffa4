//! Which names of disks stay true when the disks move to another machine.

/// Whether a name of a device means the same disk elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stability {
    /// It goes by what is written on the disk.
    Stable,
    /// It goes by the driver, the slot or the serial number, and these will be others.
    Changes,
    /// It is what a virtio disk is called, in the order in which they are found.
    MayChange,
}

/// By what is written on the disk, among the links in `/dev/disk`.
const BY_CONTENT: [&str; 4] = ["by-uuid/", "by-label/", "by-partuuid/", "by-partlabel/"];

/// Links in `/dev/disk/by-id` that go by what is written on the disk.
const ID_BY_CONTENT: [&str; 3] = ["dm-", "lvm-pv-", "md-"];

/// Names of drivers' own, each followed by a letter or number of the disk.
const BY_DRIVER: [&str; 11] = [
    "sd", "hd", "xvd", "nvme", "mmcblk", "cciss/", "ida/", "rd/", "ubd", "pmem", "dasd",
];

impl Stability {
    /// Of a device as in fstab or after `root=`: a path, or `UUID=…` and the like.
    pub(super) fn of(device: &str) -> Stability {
        // ID= goes by the serial number.
        if device.starts_with("ID=") {
            return Stability::Changes;
        }
        let Some(name) = device.strip_prefix("/dev/") else {
            return Stability::Stable;
        };
        if let Some(link) = name.strip_prefix("disk/") {
            let id = link.strip_prefix("by-id/");
            let by_content = BY_CONTENT.iter().any(|kind| link.starts_with(kind))
                || id.is_some_and(|id| ID_BY_CONTENT.iter().any(|kind| id.starts_with(kind)));
            return if by_content {
                Stability::Stable
            } else {
                Stability::Changes
            };
        }
        if BY_DRIVER.iter().any(|driver| is_disk_of(name, driver)) {
            return Stability::Changes;
        }
        if is_disk_of(name, "vd") || is_disk_of(name, "dm-") {
            return Stability::MayChange;
        }
        Stability::Stable
    }
}

/// `sda1`, `nvme0n1p2`, but not `sdata/home`, which is a logical volume.
fn is_disk_of(name: &str, driver: &str) -> bool {
    let Some(rest) = name.strip_prefix(driver) else {
        return false;
    };
    if driver.ends_with('/') {
        return !rest.is_empty();
    }
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = rest.len() - digits.len();
    let numbered = digits.chars().all(|c| c.is_ascii_digit());
    match driver {
        "sd" | "hd" | "xvd" | "vd" | "ubd" | "dasd" => (1..=3).contains(&letters) && numbered,
        _ => rest.starts_with(|c: char| c.is_ascii_digit()) && !rest.contains('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::Stability::{self, Changes, MayChange, Stable};

    #[test]
    fn names_go_by_content_or_by_driver() {
        let cases = [
            ("UUID=6e0b", Stable),
            ("LABEL=root", Stable),
            ("PARTUUID=1-2", Stable),
            ("ID=ata-x", Changes),
            ("/dev/sda1", Changes),
            ("/dev/sdaa12", Changes),
            ("/dev/hda", Changes),
            ("/dev/xvda1", Changes),
            ("/dev/nvme0n1p2", Changes),
            ("/dev/mmcblk0p1", Changes),
            ("/dev/cciss/c0d0p1", Changes),
            ("/dev/vda1", MayChange),
            ("/dev/dm-0", MayChange),
            ("/dev/mapper/vg-root", Stable),
            ("/dev/sdata/home", Stable),
            ("/dev/vg0/root", Stable),
            ("/dev/md0", Stable),
            ("/dev/root", Stable),
            ("/dev/disk/by-uuid/6e0b", Stable),
            ("/dev/disk/by-id/ata-WDC_1-part1", Changes),
            ("/dev/disk/by-id/dm-uuid-LVM-x", Stable),
            ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", Changes),
            ("tmpfs", Stable),
            ("server:/export", Stable),
        ];
        for (device, stability) in cases {
            assert_eq!(Stability::of(device), stability, "{device}");
        }
    }
}
