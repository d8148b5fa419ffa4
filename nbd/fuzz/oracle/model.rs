//! The disks as they must be, in the plainest way: a byte is a byte.

use std::ops::Range;
use std::sync::OnceLock;

use super::exports::{self, Kind, SIZE};
use crate::{HOLE, ZERO};

const SECTOR: u64 = 512;

/// Error numbers, as the protocol has them.
pub(super) mod errno {
    pub(in crate::fuzzing) const EPERM: u32 = 1;
    pub(in crate::fuzzing) const EIO: u32 = 5;
    pub(in crate::fuzzing) const EINVAL: u32 = 22;
    pub(in crate::fuzzing) const ENOSPC: u32 = 28;
    pub(in crate::fuzzing) const ENOTSUP: u32 = 95;
    pub(in crate::fuzzing) const ESHUTDOWN: u32 = 108;
}

/// One opened export.
pub(super) struct Model {
    kind: Kind,
    /// What a writable disk holds.
    bytes: Vec<u8>,
    /// Sectors that are not the base's any more.
    owned: Vec<bool>,
}

impl Model {
    pub(super) fn new(kind: Kind) -> Self {
        let bytes = match kind {
            Kind::Disk | Kind::Huge => Vec::new(),
            Kind::Plain => exports::plain_contents(),
            Kind::Overlay => base_contents(),
        };
        let owned = vec![false; bytes.len().div_ceil(512)];
        Self { kind, bytes, owned }
    }

    pub(super) fn is_still(&self) -> bool {
        matches!(self.kind, Kind::Disk | Kind::Huge)
    }

    pub(super) fn is_overlay(&self) -> bool {
        self.kind == Kind::Overlay
    }

    /// The first byte of a range that cannot be read.
    pub(super) fn first_bad(&self, offset: u64, length: u64) -> Option<u64> {
        if self.kind == Kind::Plain || length == 0 {
            return None;
        }
        let mut buf = vec![0; usize::try_from(length).unwrap()];
        let mut at = offset;
        while at < offset + length {
            let rest = &mut buf[..usize::try_from(offset + length - at).unwrap()];
            match self.kind.still().read(at, rest) {
                Ok(()) => return None,
                Err(bad) if self.owns(bad) => at = bad + 1,
                Err(bad) => return Some(bad),
            }
        }
        None
    }

    fn owns(&self, offset: u64) -> bool {
        let sector = usize::try_from(offset / SECTOR).unwrap();
        self.owned.get(sector).copied().unwrap_or_default()
    }

    /// What a range holds that can be read.
    pub(super) fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        if !self.is_still() {
            return self.bytes[range(offset, length as u64)].to_vec();
        }
        let mut buf = vec![0; length];
        self.kind.still().read(offset, &mut buf).unwrap();
        buf
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        if self.kind == Kind::Plain && offset < exports::FULL {
            return Err(errno::ENOSPC);
        }
        let length = data.len() as u64;
        if self.kind == Kind::Overlay && self.edges(offset, length).any(|edge| self.is_lost(edge)) {
            return Err(errno::EIO);
        }
        self.bytes[range(offset, length)].copy_from_slice(data);
        self.own(offset / SECTOR..(offset + length).div_ceil(SECTOR));
        Ok(())
    }

    pub(super) fn zero(&mut self, offset: u64, length: u64, fast: bool) -> Result<(), u32> {
        if self.kind == Kind::Plain && fast {
            return Err(errno::ENOTSUP);
        }
        self.write(offset, &vec![0; usize::try_from(length).unwrap()])
    }

    pub(super) fn trim(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let whole = match self.kind {
            Kind::Plain => offset..end,
            _ if end == SIZE => offset.next_multiple_of(SECTOR)..SIZE,
            _ => offset.next_multiple_of(SECTOR)..end / SECTOR * SECTOR,
        };
        if !whole.is_empty() {
            self.bytes[range(whole.start, whole.end - whole.start)].fill(0);
            self.own(whole.start / SECTOR..whole.end.div_ceil(SECTOR));
        }
    }

    /// Sectors that a range covers in part.
    fn edges(&self, offset: u64, length: u64) -> impl Iterator<Item = u64> + use<> {
        let end = offset + length;
        let head = (!offset.is_multiple_of(SECTOR)).then_some(offset / SECTOR);
        let tail = (!end.is_multiple_of(SECTOR) && end < SIZE).then_some(end / SECTOR);
        head.into_iter().chain(tail)
    }

    fn is_lost(&self, sector: u64) -> bool {
        let start = sector * SECTOR;
        self.first_bad(start, SECTOR.min(SIZE - start)).is_some()
    }

    fn own(&mut self, sectors: Range<u64>) {
        self.owned[range(sectors.start, sectors.end - sectors.start)].fill(true);
    }

    /// Checks what is said of a run of bytes in a meta context.
    pub(super) fn check_flags(&self, context: &str, offset: u64, length: u64, flags: u64) {
        let flags = u32::try_from(flags).expect("flags are no longer than this");
        match context {
            "base:allocation" if self.is_still() => {
                let mut at = offset;
                while at < offset + length {
                    let (run, truth) = self.kind.still().flags(at);
                    assert_eq!(flags, truth, "allocation at {at}");
                    at += run;
                }
            }
            "base:allocation" => {
                assert_eq!(flags & !(HOLE | ZERO), 0, "unknown flags in base:allocation");
                let zeros = self.bytes[range(offset, length)].iter().all(|byte| *byte == 0);
                assert!(
                    flags & ZERO == 0 || zeros,
                    "no zeros in {length} bytes at {offset}"
                );
                assert!(
                    flags & ZERO == 0 || self.first_bad(offset, length).is_none(),
                    "damage is no zeros"
                );
            }
            exports::PAGES => {
                for at in (offset..offset + length)
                    .step_by(512)
                    .chain([offset + length - 1])
                {
                    assert_eq!(flags, exports::page_flags(at), "page flags at {at}");
                }
            }
            _ => assert_eq!(flags, 7, "flags of {context}"),
        }
    }
}

fn range(start: u64, length: u64) -> Range<usize> {
    usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap()
}

/// What an overlay shows of its base; zeros where that is damaged.
fn base_contents() -> Vec<u8> {
    static CONTENTS: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENTS.get_or_init(read_base).clone()
}

fn read_base() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    let mut at = 0;
    while let Err(bad) = Kind::Disk.still().read(at as u64, &mut bytes[at..]) {
        at = usize::try_from(bad).unwrap() + 1;
    }
    bytes
}
