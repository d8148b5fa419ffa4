//! What the programs in the kernel and this library share: the structures of bpf/layout.h, and those that only the
//! library reads, in maps of their own.

/// As in bpf/layout.h.
pub(crate) const SLOTS: u32 = 512;
/// As in bpf/layout.h.
pub(crate) const WINDOW: u32 = 16;
/// Entries of the maps that have one for each slot.
pub(crate) const ENTRIES: u32 = SLOTS + WINDOW;
/// As in bpf/layout.h.
pub(crate) const COPIES: usize = 3;
/// As in bpf/layout.h.
pub(crate) const COUNTERS: usize = 8;
/// As in bpf/layout.h.
pub(crate) const DISK_BIO_BASED: u32 = 1;
/// "smc trac" in ASCII.
pub(crate) const MAGIC: u64 = 0x736d_6320_7472_6163;
/// Raised with every change of a structure in this file or in bpf/layout.h, and of their meaning.
pub(crate) const LAYOUT: u64 = 6;

/// Values in maps that are memory of both sides: all zero bytes and any bytes are a value.
///
/// # Safety
/// The type has a fixed layout (`repr(C)`), no padding, and every bit pattern is a value of it.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: every bit pattern is a number.
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($type:ty, $bytes:expr) => {
        const _: () = assert!(size_of::<$type>() == $bytes);
        // SAFETY: repr(C), of numbers only, and the size above is the sum of theirs, so there is no padding.
        unsafe impl Plain for $type {}
    };
}

/// `struct control`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control {
    pub magic: u64,
    pub layout: u64,
    pub object: u64,
    pub bio_disks: u64,
    pub bios_full: u64,
    pub bios_stale: u64,
    pub chain: u64,
}
plain!(Control, 56);

/// `struct devices`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Devices {
    pub taken: [u32; SLOTS as usize],
    pub device: [u32; ENTRIES as usize],
}
plain!(Devices, 4 * (SLOTS + ENTRIES) as usize);

/// `struct disk`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    pub start: u64,
    pub end: u64,
    pub disk_sectors: u64,
    pub cluster_shift: u32,
    pub flags: u32,
    pub outside: u64,
    pub passthrough: u64,
    pub zone: u64,
    pub unmarked: u64,
}
plain!(Disk, 64);

/// `struct count`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub sectors: u64,
    pub events: u64,
}
plain!(Count, 16);

/// `struct stats`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub queued: u64,
    pub completed: [Count; COUNTERS],
}
plain!(Stats, 8 + 16 * COUNTERS);

/// `struct processor`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Processor {
    pub request: u64,
    pub ended: u64,
    pub address: [u64; COUNTERS],
    pub worked: [u64; COPIES],
}
plain!(Processor, 8 * (2 + COUNTERS + COPIES));

/// Programs that are attached.
pub(crate) const PROGRAMS: usize = 7;
/// Maps whose ids are noted: [`SHARED_MAPS`] and the three of a watch.
pub(crate) const MAPS: usize = SHARED_MAPS + 3;
/// Maps that all disks share.
pub(crate) const SHARED_MAPS: usize = 7;

/// What is compared to find out whether the bits can be believed, as it was at one moment.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub boot_id: [u8; 16],
    /// How long this boot has been suspended, in nanoseconds.
    pub suspended_ns: u64,
    /// 0 where the kernel has none.
    pub diskseq: u64,
    pub target_sectors: u64,
    pub start_sector: u64,
    pub disk_sectors: u64,
    pub programs: [u32; PROGRAMS],
    pub links: [u32; PROGRAMS],
    pub maps: [u32; MAPS],
    /// Runs of a program that the kernel skipped.
    pub misses: [u64; PROGRAMS],
    /// bios_full, bios_stale, chain; outside, passthrough, zone, unmarked of the disk.
    pub errors: [u64; ERRORS],
    /// The kernel's own counts of the whole disk, which only ever grow: reads, sectors read, writes, sectors written.
    pub kernel: [u64; KERNEL_COUNTS],
}
plain!(
    Evidence,
    16 + 5 * 8 + 4 * (2 * PROGRAMS + MAPS) + 8 * (PROGRAMS + ERRORS + KERNEL_COUNTS)
);

impl Evidence {
    /// Before there is any.
    pub(crate) const fn none() -> Evidence {
        Evidence {
            boot_id: [0; 16],
            suspended_ns: 0,
            diskseq: 0,
            target_sectors: 0,
            start_sector: 0,
            disk_sectors: 0,
            programs: [0; PROGRAMS],
            links: [0; PROGRAMS],
            maps: [0; MAPS],
            misses: [0; PROGRAMS],
            errors: [0; ERRORS],
            kernel: [0; KERNEL_COUNTS],
        }
    }
}

/// Error counters in [`Evidence`].
pub(crate) const ERRORS: usize = 7;
/// Counts of the kernel in [`Evidence`].
pub(crate) const KERNEL_COUNTS: usize = 4;

/// What the counts of sectors differ by when nothing is lost.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Books {
    /// What is known of `balance`: [`UNKNOWN`], [`AT_MOST`], [`KNOWN`].
    pub certainty: u64,
    /// Sectors queued less sectors completed with nothing in flight, as a two's complement.
    pub balance: i64,
    /// Sectors that the kernel counts too, as we count, less those in its statistics: at least so much, always.
    pub ahead: i64,
}
plain!(Books, 24);

/// The disk was never seen with nothing in flight.
pub(crate) const UNKNOWN: u64 = 0;
/// It was for a moment only, and writes may have been on their way to the driver, which is not seen: the balance may be
/// lower.
pub(crate) const AT_MOST: u64 = 1;
/// It was at rest.
pub(crate) const KNOWN: u64 = 2;

impl Books {
    /// Before they were opened.
    pub(crate) const fn none() -> Books {
        Books {
            certainty: UNKNOWN,
            balance: 0,
            ahead: 0,
        }
    }
}

/// The beginning of a text that fits into so many bytes.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let ends = text.char_indices().map(|(start, char)| start + char.len_utf8());
    let end = ends.take_while(|end| *end <= bytes).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Bytes of text about a failure.
pub(crate) const REASON_BYTES: usize = 256;

/// The map that says what the bits of a watch are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub magic: u64,
    pub layout: u64,
    /// major << 32 | minor, of the device as it was given.
    pub target: u64,
    /// The same of its whole disk.
    pub disk: u64,
    pub slot: u64,
    pub cluster_bytes: u64,
    pub clusters: u64,
    /// Unix time in seconds.
    pub since: u64,
    /// As the watch found them; `diskseq` is 0 where the kernel has none.
    pub diskseq: u64,
    pub start_sector: u64,
    pub target_sectors: u64,
    pub disk_sectors: u64,
    /// Why an earlier watch of this device was given up: see `begun_anew` in watch.rs. 0: there was none.
    pub anew: u64,
    /// 1: `image` and `baseline` count.
    pub has_image: u64,
    /// 1: a sync has begun, and has neither been committed nor abandoned.
    pub under_way: u64,
    /// Length of `reason`; 0: not failed.
    pub reason_bytes: u64,
    pub image: [u8; 32],
    pub baseline: Evidence,
    pub books: Books,
    pub reason: [u8; REASON_BYTES],
}
plain!(
    Header,
    16 * 8 + 32 + size_of::<Evidence>() + size_of::<Books>() + REASON_BYTES
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers in bpf/layout.h are the ones here.
    #[test]
    fn both_sides_have_the_same_numbers() {
        let header = include_str!("../bpf/layout.h");
        let defined = |name: &str| {
            let line = header
                .lines()
                .find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.and_then(|value| value.trim().parse::<u64>().ok())
        };
        assert_eq!(defined("SLOTS"), Some(u64::from(SLOTS)));
        assert_eq!(defined("WINDOW"), Some(u64::from(WINDOW)));
        assert_eq!(defined("COPIES"), Some(COPIES as u64));
        assert_eq!(defined("COUNTERS"), Some(COUNTERS as u64));
        assert_eq!(defined("DISK_BIO_BASED"), Some(u64::from(DISK_BIO_BASED)));
    }
}
