//! The maps that all disks share.

use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use hostdev::{DeviceNumber, Root};

use crate::layout::{COPIES, Control, Count, Devices, Disk, LAYOUT, MAGIC, Processor, SLOTS, Stats, WINDOW};
use crate::mapping::Mapping;
use crate::pins::{self, MAPS, Pins, TRACEPOINTS};
use crate::{Error, ErrorKind, Result, programs, sys};

/// One set of programs and maps, opened from its pins.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pins: Pins,
    pub(crate) root: Root,
    pub(crate) control: Mapping<Control>,
    devices: Mapping<Devices>,
    pub(crate) disks: Mapping<Disk>,
    live: OwnedFd,
    stats: OwnedFd,
    processors: OwnedFd,
    bios: OwnedFd,
    processor_count: usize,
}

/// How the kernel numbers devices inside (MKDEV).
pub(crate) fn kernel_number(device: DeviceNumber) -> u32 {
    device.major << 20 | device.minor
}

/// The first slot that a watch of a disk may take; bpf/tracker.bpf.c has the same.
pub(crate) fn first_slot(device: u32) -> u32 {
    (device.wrapping_mul(2_654_435_761) >> 23) & (SLOTS - 1)
}

/// The bit of a slot in `Devices::taken` of a device.
fn taken_bit(slot: u32, device: u32) -> u32 {
    1_u32
        .checked_shl(slot.wrapping_sub(first_slot(device)))
        .unwrap_or(0)
}

impl Shared {
    /// Opens what is pinned; `None` if nothing is.
    pub(crate) fn find(pins: &Pins) -> Result<Option<Shared>> {
        if pins.is_empty()? {
            return Ok(None);
        }
        Shared::open(pins).map(Some)
    }

    fn open(pins: &Pins) -> Result<Shared> {
        let control = mapping::<Control>(pins, "control").map_err(|error| advise(pins, error))?;
        check_version(pins, &control)?;
        let shared = Shared {
            control,
            devices: mapping(pins, "devices")?,
            disks: mapping(pins, "disks")?,
            live: pins::open(&pins.map("live"))?,
            stats: pins::open(&pins.map("stats"))?,
            processors: pins::open(&pins.map("processors"))?,
            bios: pins::open(&pins.map("bios"))?,
            processor_count: sys::possible_processors()
                .map_err(|error| Error::os("find out how many processors there are", error))?,
            root: Root::system(),
            pins: pins.clone(),
        };
        for (name, _) in TRACEPOINTS {
            pins::open(&pins.program(name)).map_err(|error| advise(pins, error))?;
            pins::open(&pins.link(name)).map_err(|error| advise(pins, error))?;
        }
        Ok(shared)
    }

    /// Marks freshly pinned maps as complete.
    pub(crate) fn seal(pins: &Pins) -> Result<()> {
        let control = mapping::<Control>(pins, "control")?;
        let sealed = Control {
            magic: MAGIC,
            layout: LAYOUT,
            object: programs::object_hash(),
            bio_disks: 0,
            bios_full: 0,
            bios_stale: 0,
            chain: 0,
        };
        control.store(0, sealed);
        Ok(())
    }

    /// The shared maps in the order of [`MAPS`].
    pub(crate) fn map_ids(&self) -> std::io::Result<[u32; MAPS.len()]> {
        let id = |map: &OwnedFd| sys::info(map.as_fd()).map(|info| info.id);
        Ok([
            self.control.id(),
            self.devices.id(),
            self.disks.id(),
            id(&self.stats)?,
            id(&self.processors)?,
            id(&self.bios)?,
            id(&self.live)?,
        ])
    }

    pub(crate) fn live(&self) -> BorrowedFd<'_> {
        self.live.as_fd()
    }

    /// The device in a slot, as the kernel numbers it, that the programs find there; 0: none.
    pub(crate) fn device(&self, slot: u32) -> u32 {
        let device = self.device_place(slot).map(|place| place.load(Ordering::SeqCst));
        let found = device.filter(|device| {
            let taken = self
                .taken_place(*device)
                .map(|place| place.load(Ordering::SeqCst));
            taken.unwrap_or(0) & taken_bit(slot, *device) != 0
        });
        found.unwrap_or(0)
    }

    /// Makes the programs look at a slot for a device, or for none. The directory's lock is held.
    pub(crate) fn set_device(&self, slot: u32, device: u32) {
        let Some(place) = self.device_place(slot) else {
            return;
        };
        let before = place.load(Ordering::SeqCst);
        if let Some(taken) = self.taken_place(before) {
            taken.fetch_and(!taken_bit(slot, before), Ordering::SeqCst);
        }
        place.store(device, Ordering::SeqCst);
        if let Some(taken) = self.taken_place(device).filter(|_| device != 0) {
            taken.fetch_or(taken_bit(slot, device), Ordering::SeqCst);
        }
    }

    fn device_place(&self, slot: u32) -> Option<&AtomicU32> {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        self.devices.number32(
            0,
            index
                .saturating_mul(4)
                .saturating_add(offset_of!(Devices, device)),
        )
    }

    fn taken_place(&self, device: u32) -> Option<&AtomicU32> {
        let index = usize::try_from(first_slot(device)).unwrap_or(usize::MAX);
        self.devices.number32(
            0,
            index.saturating_mul(4).saturating_add(offset_of!(Devices, taken)),
        )
    }

    /// A slot for another watch of a disk.
    pub(crate) fn free_slot(&self, device: u32) -> Result<u32> {
        let first = first_slot(device);
        let used = self.pins.slots()?;
        (first..first + WINDOW)
            .find(|slot| !used.contains(slot) && self.device(*slot) == 0)
            .ok_or_else(|| {
                let message = "the tracker has no room for another disk: remove one that is no longer needed";
                Error::new(ErrorKind::Full, message)
            })
    }

    /// Has the programs remember bios if there is a disk that needs it.
    pub(crate) fn set_bio_disks(&self, count: u64) {
        if let Some(number) = self.control.number(0, offset_of!(Control, bio_disks)) {
            number.store(count, Ordering::SeqCst);
        }
    }

    /// Counts of a disk, summed over all processors.
    pub(crate) fn stats(&self, slot: u32) -> Result<Stats> {
        let values = sys::per_processor::<Stats>(self.stats.as_fd(), slot, self.processor_count)
            .map_err(|error| Error::os("read the tracker's counts", error))?;
        let mut sum = Stats::default();
        for value in values {
            sum.queued = sum.queued.wrapping_add(value.queued);
            for (sum, value) in sum.completed.iter_mut().zip(value.completed) {
                *sum = Count {
                    sectors: sum.sectors.wrapping_add(value.sectors),
                    events: sum.events.wrapping_add(value.events),
                };
            }
        }
        Ok(sum)
    }

    /// How many requests that write, of all disks, each copy dealt with, summed over all processors.
    pub(crate) fn worked(&self) -> Result<[u64; COPIES]> {
        let values = sys::per_processor::<Processor>(self.processors.as_fd(), 0, self.processor_count)
            .map_err(|error| Error::os("read the tracker's counts", error))?;
        let mut worked = [0_u64; COPIES];
        for value in values {
            for (sum, value) in worked.iter_mut().zip(value.worked) {
                *sum = sum.wrapping_add(value);
            }
        }
        Ok(worked)
    }

    /// Whether what is pinned is still what this process has open.
    pub(crate) fn is_current(&self) -> bool {
        let pinned = pins::open(&self.pins.map("control"));
        let id = pinned.ok().and_then(|map| sys::info(map.as_fd()).ok());
        id.is_some_and(|info| info.id == self.control.id())
    }

    /// # Errors
    /// `Incomplete` if another process has removed or replaced what this one has open.
    pub(crate) fn check_current(&self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        let directory = self.pins.directory().display();
        Err(Error::new(
            ErrorKind::Incomplete,
            format!("the tracker in {directory} was removed or replaced while it was in use: open it again"),
        ))
    }
}

fn mapping<T: crate::layout::Plain>(pins: &Pins, name: &str) -> Result<Mapping<T>> {
    let path = pins.map(name);
    Mapping::new(&pins::open(&path)?)
        .map_err(|error| Error::os(format_args!("map {}", path.display()), error))
}

fn check_version(pins: &Pins, control: &Mapping<Control>) -> Result<()> {
    let directory = pins.directory().display();
    let found = control.load(0);
    match found {
        Some(found) if found.magic == 0 => Err(Error::new(
            ErrorKind::Incomplete,
            format!(
                "the tracker in {directory} was not attached completely; 'smcctl tracker' and the service start it anew"
            ),
        )),
        Some(found)
            if found.magic == MAGIC && found.layout == LAYOUT && found.object == programs::object_hash() =>
        {
            Ok(())
        }
        _ => Err(Error::new(
            ErrorKind::OtherVersion,
            format!(
                "the tracker in {directory} belongs to another version of smc, which the service replaces when it starts"
            ),
        )),
    }
}

fn advise(pins: &Pins, error: Error) -> Error {
    if error.kind() != ErrorKind::Incomplete {
        return error;
    }
    let directory = pins.directory().display();
    Error::with_source(
        ErrorKind::Incomplete,
        format!("part of the tracker in {directory} is missing; the service replaces it when it starts"),
        error,
    )
}
