//! What is mounted, and what is used as swap.

use std::collections::BTreeSet;

use crate::root::Root;
use crate::text::unescape;

/// A machine with many containers has thousands of mounts.
const TABLE_MAX_BYTES: u64 = 32 << 20;

/// Filesystem types whose files are on other machines.
const NETWORK: [&str; 17] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "pvfs2",
    "smb3",
    "smbfs",
    "virtiofs",
    "vboxsf",
];
const NETWORK_FUSE: [&str; 7] = [
    "ceph-fuse",
    "glusterfs",
    "juicefs",
    "mfs",
    "rclone",
    "s3fs",
    "sshfs",
];

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Of the device; anonymous ones have the major number 0.
    pub number: (u32, u32),
    /// The directory of the filesystem that is mounted: `/`, unless it is a bind mount or a subvolume.
    pub root: String,
    pub point: String,
    pub fs_type: String,
    pub source: String,
    /// The block devices that the filesystem lies on; none for one without, or where that is not known.
    pub devices: BTreeSet<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(2);
        let number = super::block::parse_number(head.next()?)?;
        let (root, point) = (unescape(head.next()?), unescape(head.next()?));
        let mut tail = tail.split(' ');
        Some(Mount {
            number,
            root,
            point,
            fs_type: tail.next()?.to_owned(),
            source: unescape(tail.next()?),
            devices: BTreeSet::new(),
        })
    }

    /// Paths of the devices that it says it is from: several, with colons, for bcachefs.
    pub(crate) fn source_paths(&self) -> impl Iterator<Item = &str> {
        // A path below /dev/disk/by-path has colons of its own.
        let parts = if self.fs_type == "bcachefs" { usize::MAX } else { 1 };
        self.source
            .splitn(parts, ':')
            .filter(|path| path.starts_with("/dev/"))
    }

    /// Whether its files are on other machines.
    pub(crate) fn is_network(&self) -> bool {
        let fuse = self.fs_type.strip_prefix("fuse.");
        NETWORK.contains(&self.fs_type.as_str()) || fuse.is_some_and(|fuse| NETWORK_FUSE.contains(&fuse))
    }
}

/// Everything mounted, in the order of mounting. Read from the first process, whose view no sandbox of ours
/// narrows, or else from our own.
pub(super) fn mounts(root: &Root) -> Vec<Mount> {
    let tables = ["/proc/1/mountinfo", "/proc/self/mountinfo"].iter();
    let mut tables = tables.filter_map(|path| root.text_up_to(path, TABLE_MAX_BYTES).ok());
    let table = tables.find(|table| !table.is_empty()).unwrap_or_default();
    table.lines().filter_map(Mount::parse).collect()
}

/// A device or file in use as swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Swap {
    pub path: String,
    pub is_file: bool,
}

/// Active swap space. The kernel's table has a heading; paths are escaped as in mountinfo.
pub(super) fn swaps(root: &Root) -> Vec<Swap> {
    let table = root.text("/proc/swaps").unwrap_or_default();
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some(Swap {
                path: unescape(fields.next()?),
                is_file: fields.next()? == "file",
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_and_optional_fields() {
        let line = r"36 35 0:41 /sub /mnt/with\040space rw,noatime master:1 shared:2 - btrfs /dev/loop3 rw";
        let mount = Mount::parse(line).expect("a well-formed line");
        assert_eq!((mount.number, mount.point.as_str()), ((0, 41), "/mnt/with space"));
        assert_eq!(
            (mount.root.as_str(), mount.source.as_str()),
            ("/sub", "/dev/loop3")
        );
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for line in [
            "",
            "36 35 0:41 / /mnt rw",
            "36 35 x / /mnt rw - ext4 /dev/vda rw",
            "1 2 3:4 / - ext4",
        ] {
            assert_eq!(Mount::parse(line), None, "{line}");
        }
    }
}
