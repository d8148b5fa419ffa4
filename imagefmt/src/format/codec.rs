//! From a cluster's plain bytes to its stored ones, and back.

use crate::error::{Error, ErrorKind, Result};
use crate::format::digest::{Digest, FRAME_CHECK_LEN, damaged_digest, frame_check};
use crate::format::pointer::Codec;
use std::cell::RefCell;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, ResetDirective, get_frame_content_size};

/// Sector of the bitmap in a damaged cluster.
pub const SECTOR_LEN: usize = 512;

/// A compressed cluster must save at least 1/16: below that it is not worth decompressing, and a raw one
/// can be read with O_DIRECT.
const SAVING_MIN_SHIFT: u32 = 4;

/// The level for node blocks: they hold mostly digests, or mostly nothing.
const NODE_LEVEL: i32 = 1;

thread_local! {
    /// Contexts are hundreds of KiB and slow to make, so each thread keeps its own.
    static COMPRESSOR: RefCell<CCtx<'static>> = RefCell::new(CCtx::create());
    static DECOMPRESSOR: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Compresses a cluster into `target`, replacing what it held. Level 0 stores everything raw.
///
/// Returns the codec; with `Codec::Raw` the caller stores the plain bytes and `target` is empty.
pub fn compress_cluster(plain: &[u8], level: i32, target: &mut Vec<u8>) -> Codec {
    target.clear();
    if level == 0 || looks_incompressible(plain) {
        return Codec::Raw;
    }
    let saving = (plain.len() >> SAVING_MIN_SHIFT).max(1) + FRAME_CHECK_LEN;
    let Some(limit) = plain.len().checked_sub(saving) else {
        return Codec::Raw;
    };
    if !compress_within(plain, level, limit, target) {
        return Codec::Raw;
    }
    let check = frame_check(target);
    target.extend_from_slice(&check);
    Codec::Zstd
}

/// A frame has bits that a decoder ignores, so its content's digest does not find every flip in it.
fn check_frame(stored: &[u8]) -> Result<&[u8]> {
    match stored.split_last_chunk::<FRAME_CHECK_LEN>() {
        Some((frame, check)) if frame_check(frame) == *check => Ok(frame),
        _ => Err(Error::damaged("compressed cluster fails its check")),
    }
}

pub(crate) fn compress_node(plain: &[u8]) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    compress_within(plain, NODE_LEVEL, plain.len() - 1, &mut packed).then_some(packed)
}

/// Compresses into at most `limit` bytes; false if that is not enough.
fn compress_within(plain: &[u8], level: i32, limit: usize, target: &mut Vec<u8>) -> bool {
    target.reserve(limit);
    let done = COMPRESSOR.with_borrow_mut(|context| {
        let ready = context.reset(ResetDirective::SessionAndParameters).is_ok()
            && context.set_parameter(CParameter::CompressionLevel(level)).is_ok();
        // zstd stops with an error as soon as `limit` is exceeded, which is the cheap way to a no.
        let mut window = Bounded { bytes: target, limit };
        ready && context.compress2(&mut window, plain).is_ok()
    });
    if !done {
        target.clear();
    }
    done
}

/// A vector as a zstd output buffer of limited size.
struct Bounded<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
}

// SAFETY: pointer and capacity describe the vector's spare capacity, of which `limit` bytes were reserved
// by the caller; `filled_until` is called by zstd with the count that it has written from the start.
unsafe impl zstd::zstd_safe::WriteBuf for Bounded<'_> {
    fn as_slice(&self) -> &[u8] {
        self.bytes
    }
    fn capacity(&self) -> usize {
        self.limit
    }
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }
    unsafe fn filled_until(&mut self, count: usize) {
        // SAFETY: the trait promises that the first `count` bytes are initialized, and count <= capacity.
        unsafe { self.bytes.set_len(count) };
    }
}

/// Expands one frame that must hold exactly `plain_len` bytes and nothing behind them.
pub(crate) fn decompress(stored: &[u8], plain_len: usize) -> Result<Vec<u8>> {
    check_one_frame(stored, plain_len)?;
    let mut plain = Vec::with_capacity(plain_len);
    expand(stored, plain_len, &mut plain)?;
    Ok(plain)
}

/// Looks at what a frame says of itself, before memory is taken or time is spent on it.
fn check_one_frame(stored: &[u8], plain_len: usize) -> Result<()> {
    match get_frame_content_size(stored) {
        Ok(Some(size)) if size == plain_len as u64 => {}
        Ok(size) => {
            return Err(Error::damaged(format!(
                "zstd frame is for {size:?} bytes instead of {plain_len}"
            )));
        }
        Err(_) => return Err(Error::damaged("zstd frame header is damaged")),
    }
    let frame_len = zstd::zstd_safe::find_frame_compressed_size(stored)
        .map_err(|_| Error::damaged("zstd frame is damaged or cut off"))?;
    if frame_len != stored.len() {
        return Err(Error::damaged("bytes follow the zstd frame"));
    }
    Ok(())
}

fn expand<T: zstd::zstd_safe::WriteBuf + ?Sized>(
    stored: &[u8],
    plain_len: usize,
    target: &mut T,
) -> Result<()> {
    let written = DECOMPRESSOR
        .with_borrow_mut(|context| context.decompress(target, stored))
        .map_err(|code| Error::damaged(format!("zstd: {}", zstd::zstd_safe::get_error_name(code))))?;
    if written != plain_len {
        return Err(Error::damaged(format!(
            "zstd frame holds {written} bytes instead of {plain_len}"
        )));
    }
    Ok(())
}

/// Expands a whole compressed cluster straight to where it is wanted, and checks it against `digest`.
/// After an error `target` may hold anything.
pub(crate) fn decompress_cluster_into(stored: &[u8], digest: Digest, target: &mut [u8]) -> Result<()> {
    let frame = check_frame(stored)?;
    check_one_frame(frame, target.len())?;
    expand(frame, target.len(), target)?;
    check_plain(target, digest)
}

/// Checks the plain bytes of a cluster.
pub(crate) fn check_plain(plain: &[u8], digest: Digest) -> Result<()> {
    if Digest::of_cluster(plain) == digest {
        Ok(())
    } else {
        Err(Error::damaged("content does not match its digest"))
    }
}

/// Whether a cluster of `plain` bytes can be stored in `stored` bytes with this codec.
pub(crate) fn cluster_len_fits(codec: Codec, stored: usize, plain: usize) -> bool {
    match codec {
        Codec::Null => stored == 0,
        Codec::Raw => stored == plain,
        Codec::Zstd => (FRAME_CHECK_LEN + 1..plain).contains(&stored),
        Codec::Damaged => stored == plain + bitmap_len(plain),
    }
}

/// Length of the bitmap of a damaged cluster in bytes, a bit a sector.
fn bitmap_len(plain: usize) -> usize {
    plain.div_ceil(SECTOR_LEN).div_ceil(8)
}

/// What a cluster holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The plain bytes.
    Plain(Vec<u8>),
    /// Plain bytes, some sectors of which could not be read at the source.
    Damaged {
        /// The bytes; unreadable sectors are zero here and must not be handed out.
        plain: Vec<u8>,
        /// A bit a sector of 512 bytes, least significant first: set where the source was unreadable.
        unreadable: Vec<u8>,
    },
}

impl Content {
    /// The plain bytes `range`, or an error that names the first unreadable sector in it.
    ///
    /// # Errors
    /// `Unreadable`, with the first sector of the range that the source could not read.
    pub fn readable(&self, range: std::ops::Range<usize>) -> Result<&[u8]> {
        match self {
            Self::Plain(plain) => Ok(&plain[range]),
            Self::Damaged { plain, unreadable } => {
                let sectors = range.start / SECTOR_LEN..range.end.div_ceil(SECTOR_LEN);
                match sectors.clone().find(|&sector| bit(unreadable, sector)) {
                    None => Ok(&plain[range]),
                    Some(sector) => Err(Error::new(
                        ErrorKind::Unreadable,
                        format!("sector {sector} of the cluster was unreadable at the source"),
                    )),
                }
            }
        }
    }
}

fn bit(bitmap: &[u8], index: usize) -> bool {
    bitmap
        .get(index / 8)
        .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// Stored form and digest of a cluster of which the sectors set in `unreadable` could not be read.
pub fn encode_damaged(plain: &[u8], unreadable: &[u8]) -> (Digest, Vec<u8>) {
    let mut stored = plain.to_vec();
    stored.extend_from_slice(unreadable);
    (damaged_digest(&stored), stored)
}

/// Checks stored bytes against `digest`, without keeping what they stand for.
pub(crate) fn check_cluster(codec: Codec, stored: &[u8], plain_len: usize, digest: Digest) -> Result<()> {
    let found = match codec {
        Codec::Null => Digest::NULL,
        Codec::Raw => Digest::of_cluster(stored),
        Codec::Zstd => Digest::of_cluster(&decompress(check_frame(stored)?, plain_len)?),
        Codec::Damaged => damaged_digest(stored),
    };
    if found == digest {
        Ok(())
    } else {
        Err(Error::damaged("content does not match its digest"))
    }
}

/// Turns stored bytes back into content and checks them against `digest`.
pub(crate) fn decode_cluster(
    codec: Codec,
    stored: Vec<u8>,
    plain_len: usize,
    digest: Digest,
) -> Result<Content> {
    let (content, found) = match codec {
        Codec::Null => (Content::Plain(vec![0; plain_len]), Digest::NULL),
        Codec::Raw | Codec::Zstd => {
            let plain = if codec == Codec::Raw {
                stored
            } else {
                decompress(check_frame(&stored)?, plain_len)?
            };
            let found = Digest::of_cluster(&plain);
            (Content::Plain(plain), found)
        }
        Codec::Damaged => {
            let found = damaged_digest(&stored);
            let mut plain = stored;
            let unreadable = plain.split_off(plain_len.min(plain.len()));
            (Content::Damaged { plain, unreadable }, found)
        }
    };
    if found != digest {
        return Err(Error::damaged("content does not match its digest"));
    }
    Ok(content)
}

/// A cheap look at a cluster: media, archives and encrypted data are not worth an attempt.
///
/// Takes 256 samples of 16 bytes. Compressible data betrays itself by an uneven distribution of byte
/// values, or by repeating itself at a distance.
fn looks_incompressible(plain: &[u8]) -> bool {
    const SAMPLES: usize = 256;
    const SAMPLE_LEN: usize = 16;
    if plain.len() < SAMPLES * SAMPLE_LEN * 2 {
        return false;
    }
    let stride = plain.len() / SAMPLES;
    let mut counts = [0u32; 256];
    let mut heads = [0u64; SAMPLES];
    for (sample, head) in plain.chunks_exact(stride).zip(&mut heads) {
        let sample = &sample[..SAMPLE_LEN];
        for &byte in sample {
            counts[usize::from(byte)] += 1;
        }
        *head = u64::from_le_bytes([
            sample[0], sample[1], sample[2], sample[3], sample[4], sample[5], sample[6], sample[7],
        ]);
    }
    is_flat(&counts) && all_differ(&mut heads)
}

/// Whether 4096 samples are spread as evenly over the 256 values as random ones: the sum of squares is
/// 4096 + 4096²/256 = 69632 on average, with a deviation of about 360; text and code are far above.
fn is_flat(counts: &[u32; 256]) -> bool {
    const EVEN_MAX: u32 = 75_000;
    counts.iter().map(|count| count * count).sum::<u32>() < EVEN_MAX
}

fn all_differ(heads: &mut [u64]) -> bool {
    heads.sort_unstable();
    heads.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn random_data_is_not_compressed_and_text_is() {
        let mut target = Vec::new();
        assert!(looks_incompressible(&random(65536)));
        assert_eq!(compress_cluster(&random(65536), 3, &mut target), Codec::Raw);
        let text: Vec<u8> = (0u32..)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .take(65536)
            .collect();
        assert_eq!(compress_cluster(&text, 3, &mut target), Codec::Zstd);
        assert!(target.len() < 20_000);
        assert_eq!(decompress(check_frame(&target).unwrap(), 65536).unwrap(), text);
    }

    #[test]
    fn random_data_that_repeats_is_compressed() {
        let repeated = random(4096).repeat(16);
        let mut target = Vec::new();
        assert_eq!(compress_cluster(&repeated, 3, &mut target), Codec::Zstd);
        assert!(target.len() < 5000);
    }

    #[test]
    fn frames_that_lie_are_refused() {
        let plain = vec![7u8; 65536];
        let mut packed = Vec::new();
        assert_eq!(compress_cluster(&plain, 3, &mut packed), Codec::Zstd);
        let packed = check_frame(&packed).unwrap();
        assert!(decompress(packed, 65535).is_err(), "wrong size");
        assert!(decompress(&packed[..packed.len() - 1], 65536).is_err(), "cut off");
        let mut trailing = packed.to_vec();
        trailing.push(0);
        assert!(decompress(&trailing, 65536).is_err(), "bytes behind the frame");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], packed].concat();
        assert!(decompress(&skippable, 65536).is_err(), "skippable frame");
    }

    #[test]
    fn unreadable_sectors_are_errors_and_not_zeros() {
        let plain = [vec![1u8; 512], vec![0; 512], vec![3; 100]].concat();
        let (digest, stored) = encode_damaged(&plain, &[0b010]);
        assert!(cluster_len_fits(Codec::Damaged, stored.len(), plain.len()));
        let content = decode_cluster(Codec::Damaged, stored, plain.len(), digest).unwrap();
        assert_eq!(content.readable(0..512).unwrap(), &plain[..512]);
        assert_eq!(content.readable(1024..1124).unwrap(), &plain[1024..]);
        for range in [512..513, 0..513, 1023..1100] {
            assert_eq!(content.readable(range).unwrap_err().kind(), ErrorKind::Unreadable);
        }
    }
}
