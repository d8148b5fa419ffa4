//! One disk that is watched.

use std::fs::{self, File};
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blockio::LockedFile;
use hostdev::DeviceNumber;

use crate::books::{Ledger, ON_THE_WAY};
use crate::layout::{Books, Count, DISK_BIO_BASED, Disk, Evidence, Header, LAYOUT, MAGIC, REASON_BYTES};
use crate::mapping::Mapping;
use crate::shared::{Shared, kernel_number};
use crate::target::{SECTOR_BYTES, Target};
use crate::tracking::Tracking;
use crate::{Bitmap, Distrust, Error, ErrorKind, ImageMark, Result, pins, sys};

/// The maps of a watch.
#[derive(Debug)]
pub(crate) struct WatchMaps {
    pub(crate) slot: u32,
    pub(crate) live: Mapping<u64>,
    pub(crate) pending: Mapping<u64>,
    pub(crate) header: Mapping<Header>,
}

/// How long another user of a watch is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

const NAMES: [&str; 3] = ["live", "pending", "header"];

impl WatchMaps {
    /// Opens the maps of a slot.
    pub(crate) fn open(shared: &Shared, slot: u32) -> Result<WatchMaps> {
        let directory = shared.pins.watch(slot);
        fn map<T: crate::layout::Plain>(path: &std::path::Path) -> Result<Mapping<T>> {
            Mapping::new(&pins::open(path)?)
                .map_err(|error| Error::os(format_args!("map {}", path.display()), error))
        }
        Ok(WatchMaps {
            slot,
            live: map(&directory.join("live"))?,
            pending: map(&directory.join("pending"))?,
            header: map(&directory.join("header"))?,
        })
    }

    /// Their names and ids.
    pub(crate) fn ids(&self) -> [(&'static str, u32); 3] {
        let [live, pending, header] = NAMES;
        [
            (live, self.live.id()),
            (pending, self.pending.id()),
            (header, self.header.id()),
        ]
    }

    /// What the header says.
    pub(crate) fn header(&self) -> Result<Header> {
        let header = self.header.load(0).filter(|header| header.magic == MAGIC);
        header.ok_or_else(|| {
            let message = format!(
                "the watch in slot {} of the tracker was not begun completely",
                self.slot
            );
            Error::new(ErrorKind::Incomplete, message)
        })
    }

    fn number(&self, offset: usize) -> Result<&AtomicU64> {
        let number = self.header.number(0, offset);
        number.ok_or_else(|| Error::new(ErrorKind::Incomplete, "the tracker's header is empty"))
    }

    /// Whether a sync has begun that was neither committed nor abandoned.
    pub(crate) fn under_way(&self) -> Result<&AtomicU64> {
        self.number(offset_of!(Header, under_way))
    }

    /// All bits that are set, live or pending.
    pub(crate) fn dirty(&self, clusters: u64) -> Bitmap {
        let mut dirty = Bitmap::empty(clusters);
        // Pending first would miss what is taken meanwhile.
        for words in [self.live.words(), self.pending.words()] {
            for (position, word) in words.iter().enumerate() {
                dirty.merge(position, word.load(Ordering::SeqCst));
            }
        }
        dirty
    }

    /// Moves the live bits to pending, and adds those that were moved to each of `taken`. Allocates nothing.
    pub(crate) fn take(&self, taken: &mut [&mut Bitmap]) {
        for (position, (live, pending)) in self.live.words().iter().zip(self.pending.words()).enumerate() {
            let seen = live.load(Ordering::SeqCst);
            if seen != 0 {
                // In this order, so that a bit is in one of the two at any moment.
                pending.fetch_or(seen, Ordering::SeqCst);
                live.fetch_and(!seen, Ordering::SeqCst);
                taken.iter_mut().for_each(|bitmap| bitmap.merge(position, seen));
            }
        }
    }

    /// All bits in pending.
    pub(crate) fn pending(&self, clusters: u64) -> Bitmap {
        let mut pending = Bitmap::empty(clusters);
        for (position, word) in self.pending.words().iter().enumerate() {
            pending.merge(position, word.load(Ordering::SeqCst));
        }
        pending
    }

    /// Clears bits in pending.
    pub(crate) fn clear_pending(&self, bits: &Bitmap) {
        for (word, clear) in self.pending.words().iter().zip(bits.words()) {
            word.fetch_and(!clear, Ordering::SeqCst);
        }
    }
}

/// A disk that is watched. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) maps: Arc<WatchMaps>,
    pub(crate) target: Target,
}

/// What there is to know about a watch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WatchStatus {
    /// The device, as it was given.
    pub device: DeviceNumber,
    /// Its whole disk.
    pub disk: DeviceNumber,
    /// The kernel's name of the device; absent when it is gone.
    pub name: Option<String>,
    /// When the tracker began to watch it.
    pub since: SystemTime,
    /// Bytes that have one bit.
    pub cluster_bytes: u32,
    /// How many clusters the device has.
    pub clusters: u64,
    /// Clusters written since the last committed sync, as far as is known.
    pub dirty_clusters: u64,
    /// Which image this is relative to; absent until a sync has been committed.
    pub image: Option<ImageMark>,
    /// Whether a sync is under way, or was killed.
    pub is_under_way: bool,
    /// Why the bits would not be believed now; absent when nothing speaks against them.
    pub distrust: Option<Distrust>,
    /// Sectors of 512 bytes whose writing the programs saw begin and end, on the whole disk.
    pub queued_sectors: u64,
    /// As `queued_sectors`: those that completed.
    pub completed_sectors: u64,
    /// Completions that were marked.
    pub events: u64,
    /// Bytes of the kernel's memory that its maps take.
    pub memory_bytes: u64,
}

impl Watch {
    /// What is being watched.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Begins a sync, before its first read: takes the live bits and notes how things stand. A sync that was killed is
    /// found out here, and the bits are then not trusted.
    ///
    /// # Errors
    /// `Busy` while another sync uses this watch; `Incomplete`, `Io`.
    pub fn begin(&self) -> Result<Tracking> {
        Tracking::begin(self)
    }

    /// How it stands.
    ///
    /// # Errors
    /// `Incomplete`, `Io`.
    pub fn status(&self) -> Result<WatchStatus> {
        let header = self.maps.header()?;
        let mut status = described(&self.shared, &self.maps, &header)?;
        status.name = Some(self.target.name.clone());
        status.distrust = match header.under_way {
            1 if !self.is_in_use() => Some(Distrust::Interrupted),
            _ => self.distrust(&header).err(),
        };
        Ok(status)
    }

    /// Opens the books of a new watch, so that the first sync knows of a quiet moment before it.
    pub(crate) fn open_books(&self) -> Result<()> {
        let mut header = self.maps.header()?;
        if self.target.is_bio_based {
            std::thread::sleep(ON_THE_WAY);
        }
        header.books = self.ledger()?.open(None)?;
        self.maps.header.store(0, header);
        Ok(())
    }

    /// Whether anything speaks against the bits now, whichever image they are relative to.
    pub(crate) fn distrust(&self, header: &Header) -> std::result::Result<(), Distrust> {
        if header.layout != LAYOUT {
            return Err(Distrust::OtherVersion);
        }
        if header.reason_bytes != 0 {
            return Err(Distrust::Failed {
                reason: reason(header),
            });
        }
        if header.has_image != 1 {
            return Err(anew_reason(header.anew));
        }
        self.compare(&header.baseline, &header.books)
    }

    /// Whether nothing has changed since a moment.
    pub(crate) fn compare(&self, before: &Evidence, books: &Books) -> std::result::Result<(), Distrust> {
        let target = self
            .target
            .again(&self.shared.root)
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => Distrust::ReplacedDisk,
                _ => Distrust::unreadable(&error),
            })?;
        let now = crate::evidence::gather(&self.shared, &self.maps, &target)?;
        crate::evidence::compare(before, &now)?;
        self.ledger()
            .map_err(|error| Distrust::unreadable(&error))?
            .check(books)
    }

    pub(crate) fn ledger(&self) -> Result<Ledger<'_>> {
        Ledger::of(&self.shared, self.maps.slot, &self.target)
    }

    /// Whether a sync uses it now.
    fn is_in_use(&self) -> bool {
        let file = File::open(self.shared.pins.watch(self.maps.slot));
        file.is_ok_and(|file| LockedFile::try_lock_shared(file).is_err())
    }

    /// The lock of one sync at a time.
    pub(crate) fn lock(&self) -> Result<LockedFile> {
        lock(&self.shared, self.maps.slot)
    }
}

/// Takes the lock of the sync that uses a watch.
pub(crate) fn lock(shared: &Shared, slot: u32) -> Result<LockedFile> {
    let path = shared.pins.watch(slot);
    let file =
        File::open(&path).map_err(|error| Error::os(format_args!("open {}", path.display()), error))?;
    // Whoever only looks whether it is in use is gone at once.
    let end = Instant::now() + PATIENCE;
    LockedFile::lock_while(file, || Instant::now() < end).map_err(|(_, error)| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            Error::new(ErrorKind::Busy, "another sync uses the tracker of this disk")
        }
        _ => Error::os(format_args!("lock {}", path.display()), error),
    })
}

/// How a watch stands, of a device that may be gone.
pub(crate) fn status(shared: &Arc<Shared>, maps: WatchMaps) -> Result<WatchStatus> {
    let header = maps.header()?;
    let cluster_bytes = u32::try_from(header.cluster_bytes).unwrap_or(0);
    match Target::of(&shared.root, unpacked(header.target), cluster_bytes) {
        Ok(target) if anew(&header, &target).is_none() => {
            let watch = Watch {
                shared: Arc::clone(shared),
                maps: Arc::new(maps),
                target,
            };
            watch.status()
        }
        found => {
            let mut status = described(shared, &maps, &header)?;
            let why = found.ok().and_then(|target| anew(&header, &target)).unwrap_or(1);
            status.distrust = Some(anew_reason(why));
            Ok(status)
        }
    }
}

fn described(shared: &Shared, maps: &WatchMaps, header: &Header) -> Result<WatchStatus> {
    let stats = shared.stats(maps.slot)?;
    let all = |number: fn(&Count) -> u64| {
        let numbers = stats.completed.iter().map(number);
        numbers.fold(0_u64, u64::wrapping_add)
    };
    Ok(WatchStatus {
        device: unpacked(header.target),
        disk: unpacked(header.disk),
        name: None,
        since: UNIX_EPOCH + Duration::from_secs(header.since),
        cluster_bytes: u32::try_from(header.cluster_bytes).unwrap_or(0),
        clusters: header.clusters,
        dirty_clusters: maps.dirty(header.clusters).count(),
        image: (header.has_image == 1).then_some(ImageMark(header.image)),
        is_under_way: header.under_way == 1,
        distrust: None,
        queued_sectors: stats.queued,
        completed_sectors: all(|count| count.sectors),
        events: all(|count| count.events),
        memory_bytes: header.clusters.div_ceil(64) * 16,
    })
}

fn reason(header: &Header) -> String {
    let length = usize::try_from(header.reason_bytes)
        .unwrap_or(REASON_BYTES)
        .min(REASON_BYTES);
    String::from_utf8_lossy(&header.reason[..length]).into_owned()
}

/// Why a watch was given up for a new one of the same device: `Header::anew`.
pub(crate) fn anew(header: &Header, target: &Target) -> Option<u64> {
    let sectors = |bytes: u64| bytes / SECTOR_BYTES;
    if header.diskseq != target.diskseq.unwrap_or(0) || header.disk != packed(target.disk) {
        return Some(1);
    }
    let place = (header.start_sector, header.target_sectors, header.disk_sectors);
    if place
        != (
            sectors(target.start_bytes),
            sectors(target.size_bytes),
            sectors(target.disk_bytes),
        )
    {
        return Some(2);
    }
    (header.cluster_bytes != u64::from(target.cluster_bytes)).then_some(3)
}

fn anew_reason(anew: u64) -> Distrust {
    match anew {
        1 => Distrust::ReplacedDisk,
        2 => Distrust::Resized,
        3 => Distrust::OtherClusters,
        _ => Distrust::NoImage,
    }
}

/// A device as the header has it.
pub(crate) fn packed(device: DeviceNumber) -> u64 {
    u64::from(device.major) << 32 | u64::from(device.minor)
}

/// The device of a number from the header.
pub(crate) fn unpacked(packed: u64) -> DeviceNumber {
    let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
    DeviceNumber::new(low(packed >> 32), low(packed))
}

/// Begins to watch a target in a free slot. The directory's lock is held.
pub(crate) fn create(shared: &Shared, target: &Target, anew: u64) -> Result<WatchMaps> {
    let device = kernel_number(target.disk);
    let slot = shared.free_slot(device)?;
    let directory = shared.pins.watch(slot);
    let fail = |error| Error::os(format_args!("make the maps of {}", target.name), error);
    fs::create_dir(&directory).map_err(fail)?;
    let words = u32::try_from(target.clusters().div_ceil(64)).map_err(|_| {
        Error::new(
            ErrorKind::Invalid,
            format!("{} is too large to be tracked", target.name),
        )
    })?;
    let live = sys::create_array("smc_live", 8, words, sys::BPF_F_INNER_MAP).map_err(fail)?;
    let pending = sys::create_array("smc_pending", 8, words, 0).map_err(fail)?;
    let size = u32::try_from(size_of::<Header>()).unwrap_or(u32::MAX);
    let header = sys::create_array("smc_header", size, 1, 0).map_err(fail)?;
    for (name, map) in NAMES.into_iter().zip([&live, &pending, &header]) {
        sys::pin(map.as_fd(), &directory.join(name)).map_err(fail)?;
    }
    sys::set_inner(shared.live(), slot, live.as_fd()).map_err(fail)?;
    let maps = WatchMaps {
        slot,
        live: Mapping::new(&live).map_err(fail)?,
        pending: Mapping::new(&pending).map_err(fail)?,
        header: Mapping::new(&header).map_err(fail)?,
    };
    shared
        .disks
        .store(usize::try_from(slot).unwrap_or(usize::MAX), disk_of(target));
    maps.header.store(0, header_of(target, slot, anew));
    Ok(maps)
}

fn disk_of(target: &Target) -> Disk {
    let start = target.start_bytes / SECTOR_BYTES;
    Disk {
        start,
        end: start + target.size_bytes / SECTOR_BYTES,
        disk_sectors: target.disk_bytes / SECTOR_BYTES,
        cluster_shift: (target.cluster_bytes / 512).trailing_zeros(),
        flags: if target.is_bio_based { DISK_BIO_BASED } else { 0 },
        ..Disk::default()
    }
}

fn header_of(target: &Target, slot: u32, anew: u64) -> Header {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Header {
        magic: MAGIC,
        layout: LAYOUT,
        target: packed(target.device),
        disk: packed(target.disk),
        slot: u64::from(slot),
        cluster_bytes: u64::from(target.cluster_bytes),
        clusters: target.clusters(),
        since: since.map_or(0, |since| since.as_secs()),
        diskseq: target.diskseq.unwrap_or(0),
        start_sector: target.start_bytes / SECTOR_BYTES,
        target_sectors: target.size_bytes / SECTOR_BYTES,
        disk_sectors: target.disk_bytes / SECTOR_BYTES,
        anew,
        has_image: 0,
        under_way: 0,
        reason_bytes: 0,
        image: [0; 32],
        baseline: Evidence::none(),
        books: Books::none(),
        reason: [0; REASON_BYTES],
    }
}
