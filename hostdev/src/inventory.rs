//! All block devices with what lies on them, read once: which mounts, swaps and holders lie on which disks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::block;
use crate::{
    BlockDevice, DeviceNumber, Error, ErrorKind, Mapped, Mount, MountTable, Result, Root, Swap, swaps,
};

/// A disk or a partition. Other devices are named as the kernel does: a slash in a name is shown as `!`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The kernel's name: `vda`, `nvme0n1p2`, `cciss!c0d0`.
    pub name: String,
    /// Its device number.
    pub number: DeviceNumber,
    /// Its size; 0 for a drive without a medium and a loop device without a file.
    pub size_bytes: u64,
    /// The disk that it is a partition of.
    pub disk: Option<String>,
    /// Devices that it lies on directly.
    pub below: Vec<String>,
    /// Devices that lie on it directly.
    pub above: Vec<String>,
    /// What device-mapper calls it, if it is one of its devices.
    pub mapped: Option<Mapped>,
    /// The file or device behind a loop device, as the kernel names it.
    pub backing_path: Option<PathBuf>,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether it is one path of an NVMe multipath disk, which has no node in `/dev`.
    pub hidden: bool,
    /// Model name.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Attributes that exist and could not be read: what they would have said is not known.
    pub unread: Vec<PathBuf>,
}

impl Block {
    /// The node in `/dev`.
    pub fn node(&self) -> PathBuf {
        block::node(&self.name)
    }

    /// Its disk's name; its own if it is no partition.
    pub fn whole_name(&self) -> &str {
        self.disk.as_deref().unwrap_or(&self.name)
    }

    /// Whether it is a device-mapper device whose UUID starts with this, as the UUID says what made it: `LVM-`.
    pub fn is_mapped_by(&self, maker: &str) -> bool {
        self.mapped
            .as_ref()
            .is_some_and(|mapped| mapped.uuid.starts_with(maker))
    }

    /// Whether it bundles several paths to one disk, which all show the same content.
    pub fn is_multipath(&self) -> bool {
        self.is_mapped_by("mpath-")
    }
}

/// A mount, and where its filesystem lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMount {
    /// The line of the kernel's table.
    pub mount: Mount,
    /// The block devices that the filesystem lies on directly; none for one without, or where that is not known.
    pub devices: BTreeSet<String>,
    /// A process that sees the mount, at its point below its own root directory; `None` for the reading process itself.
    pub process: Option<u32>,
}

impl Deref for PlacedMount {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

/// A mounted filesystem: several mounts may show it, or parts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem<'a> {
    /// Its mounts; the first is the one that was mounted first.
    pub mounts: Vec<&'a Mount>,
    /// The block devices that it lies on directly.
    pub devices: &'a BTreeSet<String>,
}

/// What lies on a disk, on its partitions, and on what is made of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnDisk<'a> {
    /// Mounted filesystems. One whose mount point lies on another of them comes after that one.
    pub filesystems: Vec<Filesystem<'a>>,
    /// Devices in use as swap, and files on those filesystems.
    pub swaps: Vec<&'a Swap>,
    /// Mapped devices and loop devices that lie on it.
    pub holders: Vec<&'a Block>,
}

/// Which mounts an [`Inventory`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// Those that the machine's first process sees ([`MountTable::of_machine`]).
    Machine,
    /// Those of every process ([`MountTable::of_all_namespaces`]), the same filesystem several times.
    All,
}

/// Everything that is known of block devices, mounts and swaps.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Disks and partitions, by the kernel's name.
    devices: BTreeMap<String, Block>,
    mounts: Vec<PlacedMount>,
    swaps: Vec<Swap>,
    /// Names of the devices of each btrfs.
    pools: Vec<BTreeSet<String>>,
    /// Device-mapper names and where symbolic links in `/dev` lead, by path.
    links: BTreeMap<PathBuf, String>,
    unread: Vec<Error>,
}

impl Inventory {
    /// Reads what there is. What exists and cannot be read is noted
    /// ([`take_unread`](Inventory::take_unread)); the rest is there all the same.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `TooLarge` or `Io` when the kernel's list of block devices cannot be read.
    pub fn read(root: &Root, namespaces: Namespaces) -> Result<Inventory> {
        let mut reader = Reader {
            root,
            unread: Vec::new(),
        };
        let devices = reader.devices()?;
        let mut inventory = Inventory {
            mounts: reader.mounts(namespaces),
            swaps: reader.ok(swaps(root)).unwrap_or_default(),
            pools: reader.pools(),
            devices,
            ..Inventory::default()
        };
        inventory.find_links(&mut reader);
        inventory.place_mounts();
        inventory.unread = reader.unread;
        Ok(inventory)
    }

    /// Takes what exists and could not be read, beside attributes of devices ([`Block::unread`]): tables, and
    /// directories of devices. A caller that decides by the absence of something looks here first.
    pub fn take_unread(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.unread)
    }

    /// All devices, by the kernel's name.
    pub fn devices(&self) -> impl Iterator<Item = &Block> {
        self.devices.values()
    }

    /// The device with this name of the kernel's.
    pub fn device(&self, name: &str) -> Option<&Block> {
        self.devices.get(name)
    }

    /// The partitions of a disk.
    pub fn partitions<'a>(&'a self, disk: &'a str) -> impl Iterator<Item = &'a Block> {
        self.devices()
            .filter(move |device| device.disk.as_deref() == Some(disk))
    }

    /// Everything mounted, in the kernel's order.
    pub fn mounts(&self) -> &[PlacedMount] {
        &self.mounts
    }

    /// Every swap area in use.
    pub fn swaps(&self) -> &[Swap] {
        &self.swaps
    }

    /// The devices of each mounted btrfs.
    pub fn pools(&self) -> &[BTreeSet<String>] {
        &self.pools
    }

    /// The kernel's name of the device at a path below `/dev`, as far as a mount, a swap area or device-mapper has
    /// that name for it.
    pub fn name_at(&self, path: &Path) -> Option<&str> {
        let below_dev = path.strip_prefix("/dev").ok()?.to_str()?.replace('/', "!");
        let direct = self.devices.get_key_value(&below_dev);
        direct
            .map(|(name, _)| name)
            .or_else(|| self.links.get(path))
            .map(String::as_str)
    }

    /// Mounts of the filesystem on a device; those of the whole filesystem before binds of parts of it.
    pub fn mounts_of(&self, name: &str) -> Vec<&Mount> {
        let mounts = self.mounts.iter().filter(|placed| placed.devices.contains(name));
        let mut mounts: Vec<&Mount> = mounts.map(|placed| &placed.mount).collect();
        mounts.sort_by_key(|mount| (mount.root != Path::new("/"), mount.point.as_os_str().len()));
        mounts
    }

    /// Whether a device is in use as swap.
    pub fn is_swap(&self, name: &str) -> bool {
        self.swaps
            .iter()
            .any(|swap| self.name_at(&swap.path) == Some(name))
    }

    /// The mount that a path lies on, by the names of directories.
    pub fn mount_above(&self, path: &Path) -> Option<&PlacedMount> {
        let above = self
            .mounts
            .iter()
            .filter(|placed| path.starts_with(&placed.mount.point));
        // Of those with the same point the last one hides the others.
        above.max_by_key(|placed| placed.mount.point.as_os_str().len())
    }

    /// The whole disks that a device lies on: itself if it lies on nothing else. Through partitions, mapped devices,
    /// and loop devices with their files' filesystems; a circle ends where it began.
    pub fn disks_below(&self, name: &str) -> BTreeSet<&str> {
        let (mut seen, mut disks) = (BTreeSet::new(), BTreeSet::new());
        let mut next: Vec<&str> = vec![name];
        while let Some(name) = next.pop() {
            let Some(device) = self.devices.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            let below = self.directly_below(device);
            if below.is_empty() {
                disks.insert(device.name.as_str());
            }
            next.extend(below);
        }
        disks
    }

    fn directly_below<'a>(&'a self, device: &'a Block) -> Vec<&'a str> {
        if let Some(disk) = &device.disk {
            return vec![disk];
        }
        let mut below: Vec<&str> = device.below.iter().map(String::as_str).collect();
        if let Some(path) = &device.backing_path {
            match self.name_at(path) {
                Some(name) => below.push(name),
                None => {
                    let devices = self.mount_above(path).map(|placed| &placed.devices);
                    below.extend(devices.into_iter().flatten().map(String::as_str));
                }
            }
        }
        below
    }

    /// What lies on a disk.
    pub fn on_disk(&self, disk: &str) -> OnDisk<'_> {
        let lies_on = |name: &str| self.disks_below(name).contains(disk);
        let mounts = self
            .mounts
            .iter()
            .filter(|placed| placed.devices.iter().any(|name| lies_on(name)));
        let is_on = |swap: &&Swap| match self.name_at(&swap.path) {
            Some(name) => lies_on(name),
            None => self
                .mount_above(&swap.path)
                .is_some_and(|placed| swap.is_file && placed.devices.iter().any(|name| lies_on(name))),
        };
        let holders = self.devices().filter(|device| device.disk.is_none());
        OnDisk {
            filesystems: in_mount_order(&self.mounts, mounts.collect()),
            swaps: self.swaps.iter().filter(is_on).collect(),
            holders: holders
                .filter(|device| device.name != disk && lies_on(&device.name))
                .collect(),
        }
    }

    /// Where the sources of mounts and swaps lead that are not names of the kernel's.
    fn find_links(&mut self, reader: &mut Reader<'_>) {
        let mapped = self.devices.values().filter_map(|device| {
            let mapped = device.mapped.as_ref()?;
            Some((Path::new("/dev/mapper").join(&mapped.name), device.name.clone()))
        });
        self.links = mapped.collect();
        let sources = self.mounts.iter().flat_map(|placed| placed.mount.source_paths());
        let sources = sources.chain(self.swaps.iter().map(|swap| swap.path.as_path()));
        let unknown: BTreeSet<PathBuf> = sources
            .filter(|path| path.starts_with("/dev") && self.name_at(path).is_none())
            .map(Path::to_owned)
            .collect();
        for path in unknown {
            let target = reader.ok(reader.root.resolve(&path)).flatten();
            if let Some(name) = target.and_then(|target| self.name_at(&target).map(str::to_owned)) {
                self.links.insert(path, name);
            }
        }
    }

    /// Notes with each mount on which block devices its filesystem lies.
    fn place_mounts(&mut self) {
        let devices = self.devices.values();
        let by_number: BTreeMap<DeviceNumber, &String> =
            devices.map(|device| (device.number, &device.name)).collect();
        let place = |mount: &Mount| {
            let named: BTreeSet<String> = match by_number.get(&mount.number) {
                Some(name) => BTreeSet::from([(*name).clone()]),
                None => mount
                    .source_paths()
                    .filter_map(|path| self.name_at(path).map(str::to_owned))
                    .collect(),
            };
            let pool = self.pools.iter().find(|pool| !pool.is_disjoint(&named));
            pool.filter(|_| mount.fs_type == "btrfs")
                .cloned()
                .unwrap_or(named)
        };
        let placed: Vec<BTreeSet<String>> = self.mounts.iter().map(|placed| place(&placed.mount)).collect();
        for (mount, devices) in self.mounts.iter_mut().zip(placed) {
            mount.devices = devices;
        }
    }
}

/// Groups mounts by filesystem, and puts those first whose mount points lie on fewer other mounts.
fn in_mount_order<'a>(all: &[PlacedMount], mounts: Vec<&'a PlacedMount>) -> Vec<Filesystem<'a>> {
    let parents: BTreeMap<u64, u64> = all
        .iter()
        .map(|placed| (placed.mount.id, placed.mount.parent))
        .collect();
    let depth = |mount: &Mount| {
        let above = std::iter::successors(Some(mount.id), |id| parents.get(id).copied());
        // A table that leads in a circle is no tree; nobody lies deeper than there are mounts.
        above.take(parents.len() + 1).count()
    };
    let mut filesystems: Vec<Filesystem<'_>> = Vec::new();
    for placed in mounts {
        let is_same = |known: &&mut Filesystem<'_>| {
            known
                .mounts
                .iter()
                .any(|mount| mount.number == placed.mount.number)
        };
        match filesystems.iter_mut().find(is_same) {
            Some(known) => known.mounts.push(&placed.mount),
            None => filesystems.push(Filesystem {
                mounts: vec![&placed.mount],
                devices: &placed.devices,
            }),
        }
    }
    filesystems.sort_by_cached_key(|filesystem| filesystem.mounts.iter().map(|mount| depth(mount)).min());
    filesystems
}

/// Reads the parts, and notes what could not be read.
struct Reader<'a> {
    root: &'a Root,
    unread: Vec<Error>,
}

impl Reader<'_> {
    fn ok<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.unread.push(error);
                None
            }
        }
    }

    fn devices(&mut self) -> Result<BTreeMap<String, Block>> {
        let mut devices = BTreeMap::new();
        for name in self.root.read_dir("/sys/block")? {
            let directory = Path::new("/sys/block").join(&name);
            let found = BlockDevice::in_directory(self.root, &directory);
            let Some(disk) = self.ok(found).flatten() else {
                continue;
            };
            let partitions = self.ok(disk.partitions()).unwrap_or_default();
            for partition in &partitions {
                let block = block_of(partition, Some(&name));
                devices.insert(block.name.clone(), block);
            }
            // As the list has it: in a tree that tests build, links need not have the device's name.
            let mut block = block_of(&disk, None);
            block.name.clone_from(&name);
            devices.insert(name, block);
        }
        Ok(devices)
    }

    fn mounts(&mut self, namespaces: Namespaces) -> Vec<PlacedMount> {
        let tables = match namespaces {
            Namespaces::Machine => MountTable::of_machine(self.root).map(|table| vec![table]),
            Namespaces::All => MountTable::of_all_namespaces(self.root),
        };
        let tables = self.ok(tables).unwrap_or_default();
        if tables.iter().any(|table| table.skipped_lines > 0) {
            let path = self.root.join("/proc/1/mountinfo");
            self.unread.push(Error::new(ErrorKind::Malformed, "read", path));
        }
        let unplaced = |table: MountTable| {
            let process = table.process;
            table.mounts.into_iter().map(move |mount| PlacedMount {
                mount,
                devices: BTreeSet::new(),
                process,
            })
        };
        tables.into_iter().flat_map(unplaced).collect()
    }

    /// Members of each mounted btrfs: `/sys/fs/btrfs/UUID/devices/NAME`.
    fn pools(&mut self) -> Vec<BTreeSet<String>> {
        let names = self.root.names("/sys/fs/btrfs");
        let names = self.ok(names).unwrap_or_default();
        let mut pools = Vec::new();
        for name in names {
            let members = self
                .root
                .names(Path::new("/sys/fs/btrfs").join(name).join("devices"));
            let members = self.ok(members).unwrap_or_default();
            if !members.is_empty() {
                pools.push(members.into_iter().collect());
            }
        }
        pools
    }
}

/// Reads the attributes of one device.
fn block_of(device: &BlockDevice, disk: Option<&str>) -> Block {
    let mut unread = Vec::new();
    let root = device.root();
    let is_set = |value: Option<String>| value.as_deref() == Some("1");
    let mut block = Block {
        name: device.name(),
        number: device.number(),
        size_bytes: or_unread(device.size_bytes(), &mut unread),
        disk: disk.map(str::to_owned),
        below: or_unread(root.names(device.path("slaves")), &mut unread),
        above: or_unread(root.names(device.path("holders")), &mut unread),
        mapped: or_unread(device.mapped(), &mut unread),
        backing_path: None,
        removable: is_set(or_unread(root.attribute(device.path("removable")), &mut unread)),
        hidden: is_set(or_unread(root.attribute(device.path("hidden")), &mut unread)),
        model: None,
        serial: None,
        unread: Vec::new(),
    };
    if disk.is_none() {
        block.backing_path = or_unread(device.backing_path(), &mut unread);
        block.model = or_unread(device.model(), &mut unread);
        block.serial = or_unread(device.serial(), &mut unread);
    }
    block.unread = unread;
    block
}

fn or_unread<T: Default>(result: Result<T>, unread: &mut Vec<PathBuf>) -> T {
    result.unwrap_or_else(|error| {
        unread.push(error.path().to_owned());
        T::default()
    })
}
