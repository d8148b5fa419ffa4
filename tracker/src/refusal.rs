//! What is remembered when the kernel's verifier refuses a program: to ask it again takes a second each time.
//!
//! It is a map that is pinned beside the tracker's. So it ends with the boot, as bpffs does, and with the tracker's removal.

use std::os::fd::AsFd;

use crate::layout::{self, MAGIC, Plain};
use crate::mapping::Mapping;
use crate::pins::{Pins, REFUSAL};
use crate::{Error, ErrorKind, Result, sys};

const TEXT_BYTES: usize = 240;

/// The only value of the map.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Refusal {
    magic: u64,
    /// Which programs were refused: others may not be.
    object: u64,
    text_bytes: u64,
    text: [u8; TEXT_BYTES],
}

// SAFETY: repr(C), numbers only, and 3 * 8 + 240 bytes, a multiple of eight, so there is no padding.
unsafe impl Plain for Refusal {}
const _: () = assert!(size_of::<Refusal>() == 24 + TEXT_BYTES);

/// # Errors
/// `Unsupported`, if these programs were refused before.
pub(crate) fn check(pins: &Pins, object: u64) -> Result<()> {
    let found = sys::open_pin(&pins.map(REFUSAL)).ok();
    let found = found.and_then(|map| Mapping::<Refusal>::new(&map).ok()?.load(0));
    let Some(found) = found.filter(|found| found.magic == MAGIC && found.object == object) else {
        return Ok(());
    };
    let length = usize::try_from(found.text_bytes)
        .unwrap_or(TEXT_BYTES)
        .min(TEXT_BYTES);
    let text = String::from_utf8_lossy(&found.text[..length]).into_owned();
    Err(Error::new(ErrorKind::Unsupported, text))
}

/// Remembers why programs were refused. The directory's lock is held.
///
/// # Errors
/// `Io`, `NotFound`.
pub(crate) fn remember(pins: &Pins, object: u64, reason: &str) -> Result<()> {
    let fail = |error| Error::os("remember that the kernel refused the tracker's programs", error);
    let size = u32::try_from(size_of::<Refusal>()).unwrap_or(u32::MAX);
    let map = sys::create_array("smc_refusal", size, 1, 0).map_err(fail)?;
    let mut text = [0; TEXT_BYTES];
    let reason = layout::cut(reason, TEXT_BYTES);
    text[..reason.len()].copy_from_slice(reason.as_bytes());
    let refusal = Refusal {
        magic: MAGIC,
        object,
        text_bytes: u64::try_from(reason.len()).unwrap_or(0),
        text,
    };
    Mapping::new(&map).map_err(fail)?.store(0, refusal);
    let path = pins.map(REFUSAL);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    sys::pin(map.as_fd(), &path).map_err(fail)
}
