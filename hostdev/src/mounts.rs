//! What is mounted: `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
//!
//! The parser is our own: that of `procfs-core` 0.18 leaves escapes as they are, takes UTF-8 only, gives up a whole
//! table for one line that it does not understand, and keeps the options in a map, which loses their order and those
//! that are there twice.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::if_present;
use crate::root::path_of;
use crate::{DeviceNumber, Error, ErrorKind, Result, Root, unescape};

/// A machine with many containers has thousands of mounts.
const TABLE_MAX_BYTES: u64 = 32 << 20;

/// One mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id of the mount, unique among those that exist.
    pub id: u64,
    /// Id of the mount that it lies on; its own or one that the table does not have for the topmost.
    pub parent: u64,
    /// `st_dev` of its files; anonymous for filesystems without a device or with several.
    pub number: DeviceNumber,
    /// The directory of the filesystem that is mounted: `/`, unless it is a bind mount or a subvolume.
    pub root: PathBuf,
    /// Where it is mounted, seen from the process's root directory.
    pub point: PathBuf,
    /// Options of this mount, with commas: `rw,noatime`.
    pub options: OsString,
    /// Filesystem type, with a subtype where it has one: `ext4`, `fuse.sshfs`.
    pub fs_type: String,
    /// What it is mounted from: a device, a server's directory, or any text.
    pub source: OsString,
    /// Options of the filesystem, with commas: `rw,errors=continue`.
    pub super_options: OsString,
}

impl Mount {
    /// Reads one line, without its newline; `None` if it is not one of mountinfo.
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut next = || fields.next();
        let (id, parent) = (number(next()?)?, number(next()?)?);
        let device = std::str::from_utf8(next()?).ok()?.parse().ok()?;
        let root = path_of(unescape(next()?));
        let point = path_of(unescape(next()?));
        let options = OsString::from_vec(unescape(next()?));
        // Any number of optional fields ends with a hyphen.
        while next()? != b"-" {}
        let fs_type = String::from_utf8_lossy(&unescape(next()?)).into_owned();
        Some(Mount {
            id,
            parent,
            number: device,
            root,
            point,
            options,
            fs_type,
            source: OsString::from_vec(unescape(next()?)),
            super_options: OsString::from_vec(unescape(next().unwrap_or_default())),
        })
    }

    /// Whether nothing can be written through it: the mount or its filesystem is read-only.
    pub fn is_read_only(&self) -> bool {
        has_option(&self.options, "ro") || self.is_filesystem_read_only()
    }

    /// Whether nothing can be written to its filesystem, through no mount of it.
    pub fn is_filesystem_read_only(&self) -> bool {
        has_option(&self.super_options, "ro")
    }

    /// The values of an option of the filesystem, in order: `lowerdir+` of an overlay may be there several times.
    pub fn super_option<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a OsStr> {
        let options = self.super_options.as_bytes().split(|byte| *byte == b',');
        options.filter_map(move |option| {
            let value = option.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsStr::from_bytes(value))
        })
    }

    /// Paths that the source names, the first if there is only one; bcachefs joins those of its devices with colons.
    pub fn source_paths(&self) -> impl Iterator<Item = &Path> {
        // A path below /dev/disk/by-path has colons of its own.
        let parts = if self.fs_type == "bcachefs" { usize::MAX } else { 1 };
        let paths = self.source.as_bytes().splitn(parts, |byte| *byte == b':');
        paths
            .filter(|path| path.starts_with(b"/"))
            .map(|path| Path::new(OsStr::from_bytes(path)))
    }
}

fn has_option(options: &OsStr, wanted: &str) -> bool {
    let mut options = options.as_bytes().split(|byte| *byte == b',');
    options.any(|option| option == wanted.as_bytes())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The mounts of one mount namespace, in the kernel's order: what is later at the same point hides what is before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    /// Every mount that the process's root directory reaches.
    pub mounts: Vec<Mount>,
    /// Lines that could not be understood. Each costs only itself.
    pub skipped_lines: usize,
    /// The process whose table it is; `None` for that of the reading process itself.
    pub process: Option<u32>,
}

impl MountTable {
    /// Reads the table of this process.
    ///
    /// # Errors
    /// `NotFound` without procfs; `PermissionDenied`, `TooLarge`, `Io`.
    pub fn own(root: &Root) -> Result<MountTable> {
        MountTable::read(root, Path::new("/proc/self/mountinfo"))
    }

    /// Reads the table of the first process, whose view no sandbox of ours narrows; where that is not shown or is
    /// empty, as in a container, the table of this process.
    ///
    /// # Errors
    /// As for [`own`](MountTable::own), when both cannot be read.
    pub fn of_machine(root: &Root) -> Result<MountTable> {
        match MountTable::of_process(root, 1) {
            Ok(table) if !table.mounts.is_empty() => Ok(table),
            Ok(empty) => Ok(if_present(MountTable::own(root))?.unwrap_or(empty)),
            Err(_) => MountTable::own(root),
        }
    }

    /// The table of every mount namespace that a process lives in: a filesystem may be mounted in a container only.
    ///
    /// Namespaces that only a file descriptor or a bind mount keeps are not found.
    ///
    /// # Errors
    /// `NotFound` without procfs; `PermissionDenied` when a process's mounts are not shown; `TooLarge`, `Io`.
    pub fn of_all_namespaces(root: &Root) -> Result<Vec<MountTable>> {
        let proc = root.join("/proc");
        let fail = |source| Error::os("list", &proc, source);
        let (mut seen, mut tables) = (BTreeSet::new(), Vec::new());
        for entry in fs::read_dir(&proc).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let namespace = match namespace_of(root, process) {
                Ok(namespace) => Some(namespace),
                // Of a process whose namespace is not shown, the mounts may be: they tell as much.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
                // A process that ended meanwhile has no mounts any more.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if namespace.as_ref().is_some_and(|known| seen.contains(known)) {
                continue;
            }
            if let Some(table) = if_present(MountTable::of_process(root, process))? {
                seen.extend(namespace);
                // Ids of mounts are those of the machine.
                if !tables
                    .iter()
                    .any(|known: &MountTable| known.mounts == table.mounts)
                {
                    tables.push(table);
                }
            }
        }
        Ok(tables)
    }

    fn of_process(root: &Root, process: u32) -> Result<MountTable> {
        let table = MountTable::read(root, Path::new(&format!("/proc/{process}/mountinfo")))?;
        Ok(MountTable {
            process: Some(process),
            ..table
        })
    }

    fn read(root: &Root, path: &Path) -> Result<MountTable> {
        match root.bytes_up_to(path, TABLE_MAX_BYTES) {
            Ok(bytes) => Ok(MountTable::parse(&bytes)),
            // What a process shows that is ending.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::new(ErrorKind::NotFound, "read", root.join(path)))
            }
            Err(error) => Err(error),
        }
    }

    /// The mounts in a text of the kernel's.
    pub(crate) fn parse(text: &[u8]) -> MountTable {
        let mut table = MountTable::default();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for line in lines {
            match Mount::parse(line) {
                Some(mount) => table.mounts.push(mount),
                None => table.skipped_lines += 1,
            }
        }
        table
    }

    /// What is mounted on a directory, on top of whatever else may be.
    pub fn on(&self, directory: &Path) -> Option<&Mount> {
        self.mounts.iter().rfind(|mount| mount.point == directory)
    }

    /// The mount that an absolute path lies on, by the names of directories: links in it are not followed.
    pub fn above(&self, path: &Path) -> Option<&Mount> {
        let above = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        // Of those with the same point the last one hides the others.
        above.max_by_key(|mount| mount.point.as_os_str().len())
    }
}

fn namespace_of(root: &Root, process: u32) -> Result<PathBuf> {
    let link = root.join(format!("/proc/{process}/ns/mnt"));
    fs::read_link(&link).map_err(|source| Error::os("read", link, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[u8]) -> Mount {
        Mount::parse(line).unwrap_or_else(|| panic!("{} is a line", line.escape_ascii()))
    }

    #[test]
    fn a_line_is_read_with_its_escapes_and_optional_fields() {
        let line = br"36 35 0:41 /sub /mnt/with\040space rw,noatime master:1 shared:2 - btrfs /dev/lo\043op3 rw,subvol=/a\134b";
        let mount = parse(line);
        let expected = Mount {
            id: 36,
            parent: 35,
            number: DeviceNumber::new(0, 41),
            root: "/sub".into(),
            point: "/mnt/with space".into(),
            options: "rw,noatime".into(),
            fs_type: "btrfs".to_owned(),
            source: "/dev/lo#op3".into(),
            super_options: r"rw,subvol=/a\b".into(),
        };
        assert_eq!(mount, expected);
    }

    #[test]
    fn a_backslash_that_is_no_escape_stays() {
        assert_eq!(
            parse(br"1 0 8:1 / /a\+12\134040 rw - ext4 /dev/sda rw").point,
            Path::new(r"/a\+12\040")
        );
    }

    #[test]
    fn paths_need_not_be_utf8_and_sources_may_be_empty_or_none() {
        let mount = parse(b"1 0 8:1 / /mnt/\xff\xfe rw - ext4 /dev/\x80 rw");
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/mnt/\xff\xfe");
        assert_eq!(mount.source.as_bytes(), b"/dev/\x80");
        assert_eq!(parse(b"1 0 0:5 / /a rw - tmpfs  rw").source, "");
        assert_eq!(parse(b"1 0 0:5 / /a rw - tmpfs none rw").source, "none");
    }

    #[test]
    fn a_line_that_is_none_costs_only_itself() {
        let good = "22 1 254:0 / / rw - ext4 /dev/root rw";
        for bad in [
            "36 35 0:41 / /mnt rw",
            "36 35 x / /mnt rw - ext4 /dev/vda rw",
            "1 2 3:4 / - ext4",
            "1 2 +3:4 / /a rw - ext4 x rw",
            "nonsense",
            " ",
        ] {
            let text = format!("{good}\n{bad}\n{}\n", good.replace("22", "23"));
            let table = MountTable::parse(text.as_bytes());
            let ids: Vec<u64> = table.mounts.iter().map(|mount| mount.id).collect();
            assert_eq!(
                (ids.as_slice(), table.skipped_lines),
                ([22, 23].as_slice(), 1),
                "{bad}"
            );
        }
        assert_eq!(MountTable::parse(b""), MountTable::default());
    }

    #[test]
    fn a_line_of_a_megabyte_is_read_as_any_other() {
        let long = format!("/{}", "x".repeat(1 << 20));
        let text = format!(
            "1 0 0:9 / {long} rw - overlay overlay rw,lowerdir={long}\n2 1 8:1 / /a rw - ext4 /dev/sda1 rw"
        );
        let table = MountTable::parse(text.as_bytes());
        assert_eq!((table.mounts.len(), table.skipped_lines), (2, 0));
        assert_eq!(
            table.mounts[0].super_option("lowerdir").next(),
            Some(OsStr::new(&long))
        );
    }

    #[test]
    fn the_mount_of_a_path_is_the_last_at_its_longest_point() {
        let lines = [
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "2 1 8:2 / /srv rw - ext4 /dev/sda2 rw",
            "3 2 8:3 / /srv rw - ext4 /dev/sda3 rw",
            "4 1 8:4 / /srv/a rw - ext4 /dev/sda4 rw",
        ];
        let table = MountTable::parse(lines.join("\n").as_bytes());
        let above = |path: &str| table.above(Path::new(path)).map(|mount| mount.id);
        assert_eq!(above("/srv/b"), Some(3));
        assert_eq!(above("/srv/a/b"), Some(4));
        assert_eq!(above("/srvice"), Some(1));
        assert_eq!(table.on(Path::new("/srv")).map(|mount| mount.id), Some(3));
        assert_eq!(table.on(Path::new("/usr")), None);
    }

    #[test]
    fn options_tell_what_is_read_only_and_may_be_there_twice() {
        let mount = parse(b"1 0 0:9 / /m ro,noatime - overlay overlay rw,lowerdir+=/a,lowerdir+=/b");
        assert!(mount.is_read_only());
        let lower: Vec<&OsStr> = mount.super_option("lowerdir+").collect();
        assert_eq!(lower, ["/a", "/b"]);
        assert!(parse(b"1 0 8:1 / /m rw - ext4 /dev/sda1 ro").is_read_only());
        assert!(!parse(b"1 0 8:1 / /m rw,nosuid - ext4 /dev/sda1 rw,errors=remount-ro").is_read_only());
    }

    #[test]
    fn only_bcachefs_names_several_devices() {
        let mount = parse(b"1 0 0:9 / /m rw - bcachefs /dev/sda:/dev/sdb rw");
        let paths: Vec<&Path> = mount.source_paths().collect();
        assert_eq!(paths, [Path::new("/dev/sda"), Path::new("/dev/sdb")]);
        let mount = parse(b"1 0 8:1 / /m rw - ext4 /dev/disk/by-path/pci-0000:00:1f.2 rw");
        assert_eq!(mount.source_paths().count(), 1);
        assert_eq!(
            parse(b"1 0 0:5 / /m rw - tmpfs tmpfs rw").source_paths().count(),
            0
        );
    }

    #[test]
    fn each_namespace_of_a_machine_is_read_once() {
        let tree = tempfile::tempdir().expect("a directory");
        let process = |id: &str, namespace: &str, line: &str| {
            let directory = tree.path().join("proc").join(id);
            fs::create_dir_all(directory.join("ns")).expect("made");
            std::os::unix::fs::symlink(namespace, directory.join("ns/mnt")).expect("linked");
            fs::write(directory.join("mountinfo"), line).expect("written");
        };
        process("1", "mnt:[1]", "1 0 8:1 / / rw - ext4 /dev/sda1 rw");
        process("2", "mnt:[1]", "1 0 8:1 / / rw - ext4 /dev/sda1 rw");
        process("30", "mnt:[7]", "9 0 8:2 / / rw - xfs /dev/sda2 rw");
        fs::create_dir_all(tree.path().join("proc/40")).expect("made");
        fs::create_dir_all(tree.path().join("proc/sys")).expect("made");
        let tables = MountTable::of_all_namespaces(&Root::at(tree.path())).expect("tables");
        let mut types: Vec<&str> = tables
            .iter()
            .map(|table| table.mounts[0].fs_type.as_str())
            .collect();
        types.sort_unstable();
        assert_eq!(types, ["ext4", "xfs"]);
    }

    #[test]
    fn a_table_that_cannot_be_read_is_an_error() {
        let tree = tempfile::tempdir().expect("a directory");
        let root = Root::at(tree.path());
        let error = MountTable::of_machine(&root).expect_err("there is no procfs");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        fs::create_dir_all(root.join("/proc/self/mountinfo")).expect("made");
        let error = MountTable::own(&root).expect_err("it is a directory");
        assert_eq!(error.kind(), ErrorKind::WrongType);
    }
}
