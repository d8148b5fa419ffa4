//! What a guest's disks are attached to, and the options of QEMU for it.

use std::fmt;

/// What a disk is attached to, which decides what the guest's kernel does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk: `/dev/vda`.
    Virtio,
    /// virtio-scsi: `/dev/sda`.
    Scsi,
    /// AHCI: `/dev/sda`.
    Sata,
    /// A namespace of an NVMe controller of its own: `/dev/nvme0n1`.
    Nvme,
    /// A namespace that two controllers of one NVMe subsystem share: the kernel puts a disk over both paths to it.
    NvmeMultipath,
    /// The IDE controller of an old PC: `/dev/sda`.
    Ide,
}

/// A disk to be attached to a bus.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attached<'a> {
    /// The id of its content in QEMU.
    pub drive: &'a str,
    /// Its place among the disks of the machine, from 0.
    pub index: usize,
    /// The serial number that the guest sees.
    pub serial: &'a str,
    /// Further options, each after a comma.
    pub more: &'a str,
}

impl Bus {
    /// How many disks a machine takes on it.
    pub fn disks_max(self) -> usize {
        match self {
            Self::Virtio | Self::Nvme => 24,
            Self::NvmeMultipath => 12,
            Self::Scsi => 200,
            Self::Sata => 6,
            Self::Ide => 4,
        }
    }

    /// Whether its disks can have logical blocks of more than 512 bytes.
    pub fn has_large_blocks(self) -> bool {
        !matches!(self, Self::Sata | Self::Ide)
    }

    /// The device that all its disks share, if the machine does not have it by itself.
    pub(crate) fn controller(self) -> Option<&'static str> {
        match self {
            Self::Scsi => Some("virtio-scsi-pci,id=scsi"),
            Self::Sata => Some("ahci,id=sata"),
            Self::Virtio | Self::Nvme | Self::NvmeMultipath | Self::Ide => None,
        }
    }

    /// Values of QEMU's option `-device` that attach a disk.
    pub(crate) fn devices(self, disk: &Attached<'_>) -> Vec<String> {
        let &Attached {
            drive,
            index,
            serial,
            more,
        } = disk;
        let named = format!("drive={drive},serial={serial}{more}");
        let one = match self {
            Self::Virtio => format!("virtio-blk-pci,{named}"),
            Self::Scsi => format!("scsi-hd,bus=scsi.0,scsi-id={index},{named}"),
            Self::Sata => format!("ide-hd,bus=sata.{index},{named}"),
            Self::Nvme => format!("nvme,{named}"),
            Self::NvmeMultipath => return multipath(disk),
            Self::Ide => format!("ide-hd,bus=ide.{},unit={},{named}", index / 2, index % 2),
        };
        vec![one]
    }
}

/// A subsystem, its two controllers, and the namespace that they share.
fn multipath(disk: &Attached<'_>) -> Vec<String> {
    let Attached { drive, more, .. } = disk;
    let (index, serial) = (disk.index, disk.serial);
    let subsystem = format!("nvme-subsys,id=subsystem{index},nqn={serial}");
    let controller =
        |path| format!("nvme,serial={serial},id=controller{index}{path},subsys=subsystem{index}");
    let namespace = format!("nvme-ns,drive={drive},bus=controller{index}a,nsid=1,shared=on{more}");
    vec![subsystem, controller('a'), controller('b'), namespace]
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Sata => "sata",
            Self::Nvme => "nvme",
            Self::NvmeMultipath => "nvme-multipath",
            Self::Ide => "ide",
        })
    }
}
