//! The files of the imaged machine as it sees them: its root filesystem, and below it what its fstab mounts.
//!
//! They are mounted in a mount namespace of this process: nobody else sees them, and they are gone with it, however it ends.

use super::partition::u32_at;
use super::select::{self, Candidate, NamedDisk, Place, Wanted};
use super::setup::{Service, Setup};
use super::state::{self, Record};
use super::volumes::{self, VolumeFile};
use super::{Access, check_not_mounted, mount_devices, with_problems};
use crate::exit::Advise;
use anyhow::{Context, anyhow, bail, ensure};
use blockio::LockedFile;
use cli::interrupt::Interrupt;
use hostdev::{FstabLine, HEAD_BYTES, Root};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use std::path::{Path, PathBuf};

/// Subvolumes of a btrfs that distributions use as the root, beside the one that is mounted if none is named.
const ROOT_SUBVOLUMES: [Option<&str>; 4] = [None, Some("@"), Some("@rootfs"), Some("root")];

/// Filesystems that a Linux system can have as its root.
const ROOT_TYPES: [&str; 6] = ["ext4", "xfs", "btrfs", "f2fs", "squashfs", "erofs"];

/// What only a root filesystem has.
const ROOT_MARKS: [&str; 3] = ["/etc/fstab", "/etc/os-release", "/usr/lib/os-release"];

/// Where the labels of filesystems are: the type, the first byte, and the length at most.
const LABELS: [(&str, usize, usize); 4] = [
    ("ext4", 1144, 16),
    ("xfs", 108, 12),
    ("btrfs", 65_536 + 0x12b, 256),
    ("vfat", 71, 11),
];

/// A filesystem of the image, and what names it.
#[derive(Debug)]
struct Volume {
    /// Where it lies.
    candidate: Candidate,
    devices: Vec<PathBuf>,
    /// As blkid writes it; empty if it has none.
    uuid: String,
    label: String,
}

/// One filesystem in the tree.
#[derive(Debug)]
pub struct Mounted {
    /// Which of the volumes.
    volume: usize,
    /// The device on which it lies first.
    pub place: Place,
    /// Its type.
    pub fstype: &'static str,
    /// Where, as the imaged machine names it.
    pub point: String,
}

/// Which tree.
#[derive(Debug)]
pub struct Order<'a> {
    /// What serves the disks.
    pub service: Service<'a>,
    /// What opens encrypted disks.
    pub key: Option<&'a [u8]>,
    /// The disks of the image.
    pub disks: &'a [NamedDisk<'a>],
    /// The filesystem that is meant; none for the whole tree.
    pub wanted: Wanted<'a>,
    /// What may be written to the overlay.
    pub access: Access,
}

impl Order<'_> {
    fn is_chosen(&self) -> bool {
        self.wanted.disk.is_some() || self.wanted.partition.is_some()
    }

    fn candidates(&self, disks: &[NamedDisk<'_>]) -> anyhow::Result<Vec<Candidate>> {
        if self.is_chosen() {
            return Ok(vec![select::select_unexamined(disks, self.wanted)?]);
        }
        all_candidates(disks)
    }
}

/// The tree; gone when it is dropped.
#[derive(Debug)]
pub struct GuestTree {
    setup: Setup,
    /// Where it is seen.
    pub root: Root,
    /// All filesystems of the image.
    volumes: Vec<Volume>,
    /// Those that are part of the tree.
    pub mounted: Vec<Mounted>,
    /// What fstab names and is not there, and why.
    pub missing: Vec<String>,
}

impl GuestTree {
    /// Opens it. If a disk or partition is wanted, the tree is the filesystem there; it need not be a root then.
    ///
    /// The namespace of mounts that is made for it is that of the calling thread, and of threads that it starts later.
    ///
    /// # Errors
    /// What cannot be served, attached or mounted, no filesystem or several roots, and an interrupt: nothing is left then.
    pub fn open(order: &Order<'_>, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let access = order.access;
        let early = match order.service.helper {
            None => Some(order.candidates(order.disks)?),
            Some(_) => None,
        };
        let lock = state::lock(Some(interrupt))?;
        state::sweep()?;
        let (mut tree, record, lock) = Self::served(order, lock, interrupt)?;
        let volumes = std::mem::take(&mut tree.setup.volumes);
        let disks = volumes::beside(order.disks, &volumes);
        let candidates = early.map_or_else(|| order.candidates(&disks), Ok);
        tree.attach(
            &disks,
            with_problems(candidates, &tree.missing)?,
            record,
            interrupt,
        )?;
        drop(lock);
        enter_own_namespace()?;
        if order.is_chosen() {
            tree.mount_at_root(0, access, None)?;
        } else {
            tree.find_root(access, interrupt)?;
            tree.mount_by_fstab(&disks, access, interrupt)?;
        }
        tree.setup.volumes = volumes;
        Ok(tree)
    }

    /// What was put together from the disks, as disks.
    pub fn opened(&self) -> impl Iterator<Item = NamedDisk<'_>> {
        self.setup.volumes.iter().map(VolumeFile::named)
    }

    /// Serves the disks, with nothing attached or mounted.
    fn served(
        order: &Order<'_>,
        lock: LockedFile,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(Self, Record, LockedFile)> {
        let service = &order.service;
        let label = service.image.to_string();
        let mut setup = Setup::new(&label)?;
        let record = Record {
            dir: state::tree_dir(&setup.dir),
            image: label,
            partition: None,
            server: setup.start_server(service, order.key)?,
            loop_devices: Vec::new(),
        };
        record.save(&setup.dir)?;
        let lock = setup.wait_for_disks(service, lock, interrupt)?;
        let tree = Self {
            root: Root::at(state::tree_dir(&setup.dir)),
            missing: std::mem::take(&mut setup.problems),
            setup,
            volumes: Vec::new(),
            mounted: Vec::new(),
        };
        Ok((tree, record, lock))
    }

    fn attach(
        &mut self,
        disks: &[NamedDisk<'_>],
        candidates: Vec<Candidate>,
        mut record: Record,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        for candidate in candidates {
            interrupt.check()?;
            let devices = self.setup.attach_all(&candidate.places, false, &mut record)?;
            self.volumes.push(volume(disks, candidate, devices)?);
        }
        Ok(())
    }

    /// Mounts the one filesystem that is a root, or the only one that there is.
    fn find_root(&mut self, access: Access, interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut roots = Vec::new();
        for index in 0..self.volumes.len() {
            interrupt.check()?;
            let fstype = self.volumes[index].candidate.filesystem.fstype;
            if self.volumes.len() > 1 && !ROOT_TYPES.contains(&fstype) {
                continue;
            }
            match self.root_subvolume(index, access) {
                Ok(Some(subvolume)) => roots.push((index, subvolume)),
                Ok(None) => {}
                Err(error) => self.missing.push(format!("{error:#}")),
            }
        }
        match (roots.as_slice(), self.volumes.len()) {
            ([(index, subvolume)], _) => self.mount_at_root(*index, access, *subvolume),
            ([], 1) => self.mount_at_root(0, access, None),
            ([], _) => Err(anyhow!(
                "no filesystem of the image is a root: {}",
                self.reasons()
            ))
            .advise(
                "choose a filesystem with IMAGE:DISK or --partition; 'smc-image mount' shows what is there",
            ),
            _ => Err(anyhow!("the image has several root filesystems"))
                .advise("choose one with IMAGE:DISK or --partition"),
        }
    }

    fn reasons(&self) -> String {
        match self.missing.as_slice() {
            [] => "none has /etc/fstab or /etc/os-release".to_owned(),
            reasons => reasons.join("; "),
        }
    }

    /// Which subvolume of a volume is a root (`Some(None)`: the volume itself); the volume is not mounted afterwards.
    fn root_subvolume(
        &mut self,
        index: usize,
        access: Access,
    ) -> anyhow::Result<Option<Option<&'static str>>> {
        let has_subvolumes = self.volumes[index].candidate.filesystem.fstype == "btrfs";
        for subvolume in ROOT_SUBVOLUMES {
            if subvolume.is_some() && !has_subvolumes {
                break;
            }
            let mounted = self.mount_at_root(index, access, subvolume);
            if mounted.is_err() && subvolume.is_some() {
                continue;
            }
            mounted?;
            let is_root = ROOT_MARKS
                .iter()
                .any(|mark| self.root.try_exists(mark).unwrap_or(false));
            self.unmount()?;
            if is_root {
                return Ok(Some(subvolume));
            }
        }
        Ok(None)
    }

    fn mount_at_root(&mut self, index: usize, access: Access, subvolume: Option<&str>) -> anyhow::Result<()> {
        let dir = state::tree_dir(&self.setup.dir);
        let options: Vec<String> = subvolume.iter().map(|name| format!("subvol={name}")).collect();
        self.mount(index, access, &options, &dir)?;
        self.setup.mounted_on = Some(dir);
        self.note(index, "/");
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if let Some(dir) = self.setup.mounted_on.take() {
            umount2(&dir, MntFlags::empty()).with_context(|| format!("unmount {}", dir.display()))?;
        }
        self.mounted.clear();
        Ok(())
    }

    fn mount(&self, index: usize, access: Access, options: &[String], dir: &Path) -> anyhow::Result<()> {
        let Volume {
            candidate, devices, ..
        } = &self.volumes[index];
        let filesystem = candidate.filesystem;
        let what = || {
            format!(
                "mount the {} filesystem of {}",
                filesystem.fstype,
                name(candidate)
            )
        };
        check_not_mounted(
            candidate.id.as_ref().filter(|_| !self.is_mounted(index)),
            filesystem,
        )?;
        mount_devices(filesystem, devices, access, options, dir).with_context(what)
    }

    fn note(&mut self, volume: usize, point: &str) {
        let candidate = &self.volumes[volume].candidate;
        self.mounted.push(Mounted {
            volume,
            place: candidate.places[0].clone(),
            fstype: candidate.filesystem.fstype,
            point: point.to_owned(),
        });
    }

    fn is_mounted(&self, index: usize) -> bool {
        self.mounted.iter().any(|mounted| mounted.volume == index)
    }

    /// Mounts what the machine itself mounts when it starts.
    fn mount_by_fstab(
        &mut self,
        disks: &[NamedDisk<'_>],
        access: Access,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        let mut lines = FstabLine::all(&self.root.text("/etc/fstab").unwrap_or_default());
        lines.retain(|line| line.point.starts_with('/') && line.point != "/" && !line.is_swap());
        // What lies above comes first.
        lines.sort_by_key(|line| Path::new(&line.point).components().count());
        for line in lines {
            interrupt.check()?;
            let Some(found) = self.volume_named(disks, &line.device) else {
                if is_device(&line.device) {
                    let why = format!("{}: {} is not in the image", line.point, line.device);
                    self.missing.push(why);
                }
                continue;
            };
            if let Err(error) = self.mount_line(found, access, &line) {
                self.missing.push(format!("{}: {error:#}", line.point));
            }
        }
        Ok(())
    }

    fn mount_line(&mut self, volume: usize, access: Access, line: &FstabLine) -> anyhow::Result<()> {
        let subvolume = line.each_option().filter(|option| option.starts_with("subvol"));
        let options: Vec<String> = subvolume.map(str::to_owned).collect();
        let dir = self.root.located(&line.point)?;
        ensure!(dir.is_dir(), "the directory does not exist");
        self.mount(volume, access, &options, &dir)?;
        self.note(volume, &line.point);
        Ok(())
    }

    /// The volume that a name in fstab means.
    fn volume_named(&self, disks: &[NamedDisk<'_>], device: &str) -> Option<usize> {
        let named = |kind: &str, link: &str| {
            let below = device.strip_prefix("/dev/disk/");
            let path = below.and_then(|path| path.strip_prefix(link)?.strip_prefix('/'));
            device.strip_prefix(kind).or(path).map(str::to_owned)
        };
        let is_meant = |volume: &Volume| {
            let first = &volume.candidate.places[0];
            let (uuid, label) = (named("UUID=", "by-uuid"), named("LABEL=", "by-label"));
            let partition = named("PARTUUID=", "by-partuuid");
            let partition_name = named("PARTLABEL=", "by-partlabel");
            let is = |wanted: Option<String>, own: &str| {
                !own.is_empty() && wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(own))
            };
            is(uuid, &volume.uuid)
                || is(label, &volume.label)
                || is(partition, &first.partition_id)
                || is(partition_name, &first.partition_name)
                || is_kernel_name(disks, device, first)
        };
        self.volumes.iter().position(is_meant)
    }
}

/// Whether fstab names a device there, and not a filesystem without one or on another machine.
fn is_device(name: &str) -> bool {
    ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Whether the source's kernel called a place so: the disks of an image have the names that they had there.
fn is_kernel_name(disks: &[NamedDisk<'_>], device: &str, place: &Place) -> bool {
    let Some(rest) = device.strip_prefix("/dev/") else {
        return false;
    };
    let disk = disks.iter().find(|disk| disk.name == place.disk);
    let volume = disk.and_then(|disk| disk.volume);
    if volume.is_some_and(|volume| place.partition.is_none() && is_known_as(volume, device)) {
        return true;
    }
    let number = place
        .partition
        .map_or_else(String::new, |number| number.to_string());
    let separator = match place.disk.chars().last() {
        Some(last) if last.is_ascii_digit() && !number.is_empty() => "p",
        _ => "",
    };
    disk.is_some() && rest == format!("{}{separator}{number}", place.disk)
}

fn is_known_as(volume: &crate::helper::Volume, device: &str) -> bool {
    volume.aliases.iter().any(|alias| alias == device)
}

/// A filesystem in words: `partition 2 of vda`.
fn name(candidate: &Candidate) -> String {
    let places = candidate.places.iter().map(ToString::to_string);
    places.collect::<Vec<_>>().join(" and ")
}

fn all_candidates(disks: &[NamedDisk<'_>]) -> anyhow::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for disk in disks {
        found.extend(select::survey(disk)?);
    }
    let listing = select::listing(&found);
    let candidates = select::fitting(disks, found)?;
    if candidates.is_empty() {
        return Err(anyhow!("there is no filesystem that can be mounted")).advise(listing);
    }
    Ok(candidates)
}

fn volume(disks: &[NamedDisk<'_>], candidate: Candidate, devices: Vec<PathBuf>) -> anyhow::Result<Volume> {
    let head = head(disks, &candidate.places[0])?;
    let fstype = candidate.filesystem.fstype;
    Ok(Volume {
        uuid: uuid(fstype, &head),
        label: label(fstype, &head),
        candidate,
        devices,
    })
}

/// What a place begins with.
///
/// # Errors
/// A disk that cannot be read.
pub fn head(disks: &[NamedDisk<'_>], place: &Place) -> anyhow::Result<Vec<u8>> {
    let Some(disk) = disks.iter().find(|disk| disk.name == place.disk) else {
        bail!("there is no disk {}", place.disk);
    };
    let length = place.length.min(HEAD_BYTES as u64);
    let mut head = vec![0; usize::try_from(length)?];
    disk.source.read_at(place.offset, &mut head)?;
    Ok(head)
}

/// The UUID by which fstab names a filesystem, as blkid writes it; empty if it has none.
pub fn uuid(fstype: &str, head: &[u8]) -> String {
    // That of the filesystem, which all its devices have.
    if fstype == "btrfs" {
        let id = head.get(65_536 + 0x20..).and_then(<[u8]>::first_chunk::<16>);
        return id.map_or_else(String::new, |id| hostdev::uuid_text(id));
    }
    let id = hostdev::filesystem_id(head).unwrap_or_default();
    let (_, id) = id.split_once(':').unwrap_or_default();
    match (fstype, id.split_at_checked(4)) {
        ("vfat" | "exfat", Some((high, low))) => format!("{high}-{low}").to_ascii_uppercase(),
        _ => id.to_owned(),
    }
}

/// The label by which fstab names a filesystem; empty if it has none.
pub fn label(fstype: &str, head: &[u8]) -> String {
    let Some((_, at, length)) = LABELS.iter().find(|(known, _, _)| *known == fstype) else {
        return String::new();
    };
    // The label of a FAT12 or FAT16 is elsewhere.
    let at = if fstype == "vfat" && u32_at(head, 82) != u32::from_le_bytes(*b"FAT3") {
        43
    } else {
        *at
    };
    let bytes = head.get(at..at + length).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches(['\0', ' ']).to_owned()
}

/// Makes what is mounted from now on seen by this thread alone. What others unmount goes here too.
fn enter_own_namespace() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context("keep mounts to this process")
}
