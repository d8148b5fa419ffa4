//! What the server under test serves, and what is true of it: the only thing that the server and the checks share.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use crate::{
    Access, Catalog, Client, ErrorKind, Export, ExportError, ExportInfo, Extent, FailureKind, Limits,
};
use crate::{HOLE, Overlay, Ready, ServeError, Space, ZERO};

/// Bytes of the disks that have contents worth the name.
pub(super) const SIZE: u64 = (600 << 10) + 77;
/// Every export's preferred block size, and what is made of it on the wire.
pub(super) const PREFERRED: (u32, u32) = (3000, 4096);
/// Writes that begin before this byte of `rw` find no space.
pub(super) const FULL: u64 = 4096;
/// The meta context whose flags differ from page to page.
pub(super) const PAGES: &str = "fuzz:pages";
/// The meta context that cannot be answered.
pub(super) const BROKEN: &str = "fuzz:broken";
const PAGE: u64 = 4096;

/// Bounds that fuzzers reach.
pub(super) fn limits() -> Limits {
    Limits {
        connections: 4096,
        in_flight: 4,
        max_payload_bytes: 300 << 10,
        max_write_bytes: 400 << 10,
        option_bytes: 8 << 10,
        options: 24,
        memory_bytes: 1 << 20,
        connection_memory_bytes: 512 << 10,
        workers: 1,
        io_threads: 2,
        ..Limits::default()
    }
}

/// What lies in a part of a disk that does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matter {
    Data,
    Hole,
    /// Stored, and zeros all the same.
    Zeros,
    Damaged,
}

impl Matter {
    fn flags(self) -> u32 {
        match self {
            Self::Data | Self::Damaged => 0,
            Self::Hole => HOLE | ZERO,
            Self::Zeros => ZERO,
        }
    }
}

/// A disk that does not change: parts by where they end.
#[derive(Debug)]
pub(super) struct Still(&'static [(u64, Matter)]);

const DISK: Still = Still(&[
    (70_000, Matter::Data),
    (140_000, Matter::Hole),
    (200_001, Matter::Data),
    (201_025, Matter::Damaged),
    (300_000, Matter::Data),
    (300_001, Matter::Zeros),
    (450_000, Matter::Data),
    (SIZE - 1, Matter::Hole),
    (SIZE, Matter::Data),
]);

const HUGE_SIZE: u64 = i64::MAX as u64;
const HUGE: Still = Still(&[
    (PAGE, Matter::Data),
    (HUGE_SIZE - PAGE, Matter::Hole),
    (HUGE_SIZE, Matter::Data),
]);

/// Where something changes on some disk; offsets near these are worth asking for.
pub(super) fn borders() -> impl Iterator<Item = u64> {
    let parts = DISK.0.iter().chain(HUGE.0).map(|(end, _)| *end);
    parts.chain([0, FULL, 65_536, 262_144, 300 << 10, u64::MAX, 1 << 32])
}

fn stored(offset: u64) -> u8 {
    (offset.wrapping_mul(31) ^ (offset >> 9)).to_le_bytes()[0] | 1
}

/// The flags of [`PAGES`].
pub(super) fn page_flags(offset: u64) -> u32 {
    [0, 5, u32::MAX, 5][usize::try_from(offset / PAGE % 4).unwrap()]
}

impl Still {
    pub(super) fn size(&self) -> u64 {
        self.0.last().unwrap().0
    }

    /// The rest of the part in which a byte lies.
    fn part(&self, offset: u64) -> (u64, Matter) {
        let part = self.0.iter().find(|(end, _)| offset < *end).unwrap();
        (part.0 - offset, part.1)
    }

    /// Flags at a byte, and for how long.
    pub(super) fn flags(&self, offset: u64) -> (u64, u32) {
        let (length, matter) = self.part(offset);
        (length, matter.flags())
    }

    /// Fills `buf`, or says which byte cannot be read.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), u64> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (length, matter) = self.part(at);
            let step = usize::try_from(length).unwrap().min(buf.len() - done);
            let piece = &mut buf[done..done + step];
            match matter {
                Matter::Data => (at..).zip(piece).for_each(|(at, byte)| *byte = stored(at)),
                Matter::Damaged => return Err(at),
                Matter::Hole | Matter::Zeros => piece.fill(0),
            }
            done += step;
        }
        Ok(())
    }
}

impl Export for Still {
    fn size_bytes(&self) -> u64 {
        self.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        let damaged = |at| ExportError::io(at, "damaged");
        self.read(offset, buf).map_err(damaged)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Ready {
        let (length, matter) = self.part(offset);
        match matter {
            _ if length < buf.len() as u64 => Ready::No,
            Matter::Hole | Matter::Zeros => Ready::Zeros,
            Matter::Data if !offset.is_multiple_of(3) && self.read(offset, buf).is_ok() => Ready::Data,
            _ => Ready::No,
        }
    }

    /// Stops after three parts, and does not stop at the end of the request.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        let mut found = Vec::new();
        let mut at = offset;
        while found.len() < 3 && at < offset + length {
            let (length, flags) = self.flags(at);
            found.push(Extent { length, flags });
            at += length;
        }
        Ok(found)
    }

    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        status(context, offset, length, self.size())
    }
}

/// The meta contexts beside the allocation, five extents at a time.
fn status(context: &str, offset: u64, length: u64, size: u64) -> Result<Vec<Extent>, ExportError> {
    match context {
        BROKEN => Err(ExportError::io(offset + length + 7, "no answer to this")),
        PAGES => {
            let ends = (1..=5).map(|page| (offset / PAGE * PAGE + page * PAGE).min(size));
            let mut at = offset;
            let extents = ends.map(|end| {
                let flags = page_flags(at);
                let length = end - std::mem::replace(&mut at, end);
                Extent { length, flags }
            });
            Ok(extents.filter(|extent| extent.length > 0).collect())
        }
        _ => Ok(vec![Extent { length, flags: 7 }]),
    }
}

/// A disk in memory that zeroes by writing.
struct Plain(Mutex<Vec<u8>>);

impl Plain {
    fn range(offset: u64, length: u64) -> Range<usize> {
        usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
    }
}

impl Export for Plain {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        buf.copy_from_slice(&self.0.lock().unwrap()[Self::range(offset, buf.len() as u64)]);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        let bytes = self.0.lock().unwrap();
        let blocks = bytes[Self::range(offset, length)].chunks(512);
        Ok(blocks
            .map(|block| match block.iter().all(|byte| *byte == 0) {
                true => Extent::hole(block.len() as u64),
                false => Extent::data(block.len() as u64),
            })
            .collect())
    }

    fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        status(context, offset, length, SIZE)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        if offset < FULL {
            return Err(ExportError::new(FailureKind::NoSpace, offset, "full"));
        }
        self.0.lock().unwrap()[Self::range(offset, data.len() as u64)].copy_from_slice(data);
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.0.lock().unwrap()[Self::range(offset, length)].fill(0);
        Ok(())
    }
}

/// The contents of `rw` before anything is written.
pub(super) fn plain_contents() -> Vec<u8> {
    static CONTENTS: OnceLock<Vec<u8>> = OnceLock::new();
    let contents = CONTENTS.get_or_init(|| (0..SIZE).map(stored).collect());
    contents.clone()
}

/// What kind of export a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Disk,
    Huge,
    Plain,
    Overlay,
}

impl Kind {
    pub(super) fn still(self) -> &'static Still {
        match self {
            Self::Huge => &HUGE,
            _ => &DISK,
        }
    }

    pub(super) fn access(self) -> Access {
        match self {
            Self::Disk | Self::Huge => Access::ReadOnly,
            Self::Plain => Access::Writable { shared: false },
            Self::Overlay => Access::Writable { shared: true },
        }
    }
}

/// Why a name cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    Unknown,
    Refused,
    /// It is described, but cannot be opened.
    Shut,
}

/// Names that are listed, in this order; the last one fits in no reply.
pub(super) const LISTED: [&str; 4] = ["disk", "rw", "overlay", "no\0name"];

/// What a name stands for.
pub(super) fn find(name: &str) -> Result<Kind, Denied> {
    match name {
        "" | "disk" | "many" => Ok(Kind::Disk),
        "huge" => Ok(Kind::Huge),
        "rw" => Ok(Kind::Plain),
        "overlay" => Ok(Kind::Overlay),
        "secret" => Err(Denied::Refused),
        "shut" => Err(Denied::Shut),
        _ => Err(Denied::Unknown),
    }
}

/// How an export is described.
pub(super) fn describe(name: &str) -> Result<ExportInfo, Denied> {
    let kind = match find(name) {
        Err(Denied::Shut) => Kind::Disk,
        found => found?,
    };
    Ok(ExportInfo {
        name: if name.is_empty() { "disk" } else { name }.to_owned(),
        description: (kind != Kind::Huge).then(|| format!("the disk {name}\0")),
        size_bytes: kind.still().size(),
        preferred_block_bytes: PREFERRED.0,
        access: kind.access(),
    })
}

/// The meta contexts of an export beside `base:allocation`.
pub(super) fn contexts(name: &str) -> Vec<String> {
    match name {
        "overlay" => Vec::new(),
        "many" => (0..70).map(|number| format!("many:{number}")).collect(),
        _ => vec![PAGES.to_owned(), BROKEN.to_owned(), "bad\0context".to_owned()],
    }
}

/// The catalog of all that.
pub(super) struct Exports;

impl Catalog for Exports {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        let listed = LISTED.map(|name| ExportInfo {
            name: name.to_owned(),
            ..describe("disk").unwrap()
        });
        Ok(listed.to_vec())
    }

    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        describe(name).map_err(|denied| refusal(name, denied))
    }

    fn contexts(&self, name: &str, _: &Client) -> Result<Vec<String>, ServeError> {
        Ok(contexts(name))
    }

    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        let kind = find(name).map_err(|denied| refusal(name, denied))?;
        Ok(match kind {
            Kind::Disk => Arc::new(DISK),
            Kind::Huge => Arc::new(HUGE),
            Kind::Plain => Arc::new(Plain(Mutex::new(plain_contents()))),
            Kind::Overlay => Arc::new(Overlay::new(Arc::new(DISK), space())),
        })
    }
}

fn refusal(name: &str, denied: Denied) -> ServeError {
    match denied {
        Denied::Unknown => ServeError::not_found(name),
        Denied::Refused => ServeError::new(ErrorKind::Refused, "not for you\0"),
        Denied::Shut => ServeError::new(ErrorKind::Io, "it does not open"),
    }
}

/// Memory for what is written to overlays: with the file behind it never needed, zeroing is always fast.
fn space() -> &'static Arc<Space> {
    static SPACE: OnceLock<Arc<Space>> = OnceLock::new();
    SPACE.get_or_init(|| {
        let bytes = 64 << 20;
        Space::new(&std::env::temp_dir(), bytes, bytes).unwrap()
    })
}
