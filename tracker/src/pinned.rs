//! Everything that is pinned in a directory: programs, maps, watches.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use blockio::LockedFile;
use hostdev::DeviceNumber;

use crate::pins::{self, Pins};
use crate::shared::{Shared, kernel_number};
use crate::target::Target;
use crate::watch::{self, Watch, WatchMaps, WatchStatus};
use crate::{Error, ErrorKind, Result, programs};

/// The service's directory in bpffs.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/smc";

/// One set of programs and maps, pinned in a directory of bpffs, for any number of disks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

/// How a tracker stands.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// The watches, by device.
    pub watches: Vec<WatchStatus>,
    /// Watches that cannot be read: their devices, and why.
    pub unreadable: Vec<(Option<DeviceNumber>, String)>,
    /// Requests that write, of all disks, that each copy of the programs dealt with: the first, unless it was skipped.
    pub worked: [u64; 3],
}

/// Whether this machine can track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Available,
    /// It cannot.
    Unavailable {
        /// Why, in plain words.
        reason: String,
    },
}

/// Finds out whether this machine can track, by loading the programs and attaching none. Leaves nothing behind, but for a
/// note of programs that the kernel refused.
pub fn support(directory: &Path) -> Support {
    let pins = Pins::new(directory);
    match pins.check().and_then(|()| programs::load(&pins)) {
        Ok(_) => Support::Available,
        Err(error) => Support::Unavailable {
            reason: crate::error::chain(&error),
        },
    }
}

impl Tracker {
    /// Opens what is pinned in a directory; `None` if nothing is.
    ///
    /// # Errors
    /// `OtherVersion` and `Incomplete`: [`start`](Tracker::start) replaces what is there. `Io`.
    pub fn find(directory: &Path) -> Result<Option<Tracker>> {
        let found = Shared::find(&Pins::new(directory))?;
        Ok(found.map(|shared| Tracker {
            shared: Arc::new(shared),
        }))
    }

    /// Opens what is pinned in a directory, or loads and attaches the programs and pins them there. What another
    /// version or a crash left is replaced, with its watches.
    ///
    /// # Errors
    /// `Unsupported` when this machine cannot track; `Io`.
    pub fn start(directory: &Path) -> Result<Tracker> {
        let pins = Pins::new(directory);
        pins.create()?;
        let _lock = pins.lock()?;
        match Tracker::find(directory) {
            Ok(Some(tracker)) => return Ok(tracker),
            Ok(None) => {}
            Err(error) if matches!(error.kind(), ErrorKind::OtherVersion | ErrorKind::Incomplete) => {
                empty(&pins)?;
            }
            Err(error) => return Err(error),
        }
        let mut object = programs::load_locked(&pins).inspect_err(|_| {
            // Only if it is empty.
            let _ = fs::remove_dir(pins.directory());
        })?;
        let installed = programs::install(&mut object, &pins).and_then(|()| Shared::seal(&pins));
        if let Err(error) = installed {
            // What is incomplete would be in the way of a process that looks for a tracker.
            let _ = empty(&pins);
            return Err(error);
        }
        Tracker::find(directory)?.ok_or_else(|| {
            let message = format!("{} is empty after the tracker was started", directory.display());
            Error::new(ErrorKind::Incomplete, message)
        })
    }

    /// Begins to watch a disk, or finds it watched already. If the disk is another one, or has another size, or
    /// clusters have, it begins anew, with no image that bits are relative to.
    ///
    /// # Errors
    /// `Full`; `Busy` when it would have to begin anew while a sync is under way; `Incomplete`, `Invalid`, `Io`.
    pub fn watch(&self, disk: &Target) -> Result<Watch> {
        let _lock = self.lock()?;
        let mut anew = 0;
        if let Some((maps, header)) = self.find_watch(disk.device)? {
            match watch::anew(&header, disk) {
                None if self.shared.device(maps.slot) == kernel_number(disk.disk) => {
                    return Ok(self.watch_of(maps, disk));
                }
                reason => anew = reason.unwrap_or(0),
            }
            self.end(maps.slot)?;
        }
        let maps = watch::create(&self.shared, disk, anew)?;
        self.shared.set_device(maps.slot, kernel_number(disk.disk));
        self.count_bio_disks()?;
        let watch = self.watch_of(maps, disk);
        watch.open_books()?;
        Ok(watch)
    }

    /// The watch of a disk, if it is watched as it is now. Never begins one.
    ///
    /// # Errors
    /// `Incomplete`, `Io`.
    pub fn watched(&self, disk: &Target) -> Result<Option<Watch>> {
        let _lock = self.lock()?;
        let found = self.find_watch(disk.device)?;
        let same = found.filter(|(_, header)| watch::anew(header, disk).is_none());
        Ok(same.map(|(maps, _)| self.watch_of(maps, disk)))
    }

    /// Ends the watch of a disk; nothing if there is none.
    ///
    /// # Errors
    /// `Busy` while a sync uses it; `Incomplete`, `Io`.
    pub fn unwatch(&self, disk: &Target) -> Result<()> {
        self.unwatch_device(disk.device)
    }

    /// As [`unwatch`](Tracker::unwatch), also of a device that is gone.
    ///
    /// # Errors
    /// As for [`unwatch`](Tracker::unwatch).
    pub fn unwatch_device(&self, device: DeviceNumber) -> Result<()> {
        let _lock = self.lock()?;
        if let Some((maps, _)) = self.find_watch(device)? {
            self.end(maps.slot)?;
            self.count_bio_disks()?;
        }
        Ok(())
    }

    /// How it stands, with all watches.
    ///
    /// # Errors
    /// `Incomplete`, `Io`.
    pub fn status(&self) -> Result<Status> {
        let _lock = self.lock()?;
        let mut status = Status {
            watches: Vec::new(),
            unreadable: Vec::new(),
            worked: self.shared.worked()?,
        };
        for slot in self.shared.pins.slots()? {
            let maps = WatchMaps::open(&self.shared, slot);
            let device = maps.as_ref().ok().and_then(|maps| maps.header().ok());
            let device = device.map(|header| watch::unpacked(header.target));
            match maps.and_then(|maps| watch::status(&self.shared, maps)) {
                Ok(watch) => status.watches.push(watch),
                Err(error) => status.unreadable.push((device, crate::error::chain(&error))),
            }
        }
        status.watches.sort_by_key(|watch| watch.device);
        Ok(status)
    }

    /// Detaches everything that is pinned in a directory and removes the directory: also what another version or a
    /// crash left there.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(directory: &Path) -> Result<()> {
        let pins = Pins::new(directory);
        if !directory.exists() {
            return Ok(());
        }
        let _lock = pins.lock()?;
        empty(&pins)?;
        pins::remove_all(directory)
    }

    fn lock(&self) -> Result<LockedFile> {
        self.shared.check_current()?;
        let lock = self.shared.pins.lock()?;
        // Another process may have removed it while we waited.
        self.shared.check_current()?;
        Ok(lock)
    }

    fn watch_of(&self, maps: WatchMaps, disk: &Target) -> Watch {
        Watch {
            shared: Arc::clone(&self.shared),
            maps: Arc::new(maps),
            target: disk.clone(),
        }
    }

    /// The watch of a device. What a crash left of one is removed.
    fn find_watch(&self, device: DeviceNumber) -> Result<Option<(WatchMaps, crate::layout::Header)>> {
        for slot in self.shared.pins.slots()? {
            let maps = WatchMaps::open(&self.shared, slot);
            match maps.and_then(|maps| Ok((maps.header()?, maps))) {
                Ok((header, maps)) if header.target == watch::packed(device) => {
                    return Ok(Some((maps, header)));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Incomplete => self.end(slot)?,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Ends what is in a slot.
    fn end(&self, slot: u32) -> Result<()> {
        let _lock = watch::lock(&self.shared, slot)?;
        self.shared.set_device(slot, 0);
        crate::sys::clear_inner(self.shared.live(), slot)
            .map_err(|error| Error::os("take a disk's map from the tracker", error))?;
        pins::remove_all(&self.shared.pins.watch(slot))
    }

    fn count_bio_disks(&self) -> Result<()> {
        let mut count = 0;
        for slot in self.shared.pins.slots()? {
            let index = usize::try_from(slot).unwrap_or(usize::MAX);
            let disk = self.shared.disks.load(index);
            let is_active = self.shared.device(slot) != 0;
            count += u64::from(
                is_active && disk.is_some_and(|disk| disk.flags & crate::layout::DISK_BIO_BASED != 0),
            );
        }
        self.shared.set_bio_disks(count);
        Ok(())
    }
}

/// Removes what is in the directory: links first, so that nothing runs without its maps.
fn empty(pins: &Pins) -> Result<()> {
    let mut names = pins.names()?;
    names.sort_by_key(|name| !name.starts_with("link-"));
    for name in names {
        let path = pins.directory().join(&name);
        if path.is_dir() {
            pins::remove_all(&path)?;
        } else {
            fs::remove_file(&path)
                .map_err(|error| Error::os(format_args!("remove {}", path.display()), error))?;
        }
    }
    Ok(())
}
