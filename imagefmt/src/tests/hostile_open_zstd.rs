//! zstd frames that somebody made to hurt, as clusters and as nodes. Every check around them is right.

use super::hostile::{Forge, SIZE, pointer};
use super::support::*;
use crate::format::codec::decompress;
use crate::format::digest::frame_check;
use crate::{Codec, Digest, ErrorKind};

const MAGIC: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();
/// Content size in 8 bytes, and no window descriptor.
const SINGLE_SEGMENT: u8 = 0b1110_0000;
/// Content size in 8 bytes behind a window descriptor.
const WINDOWED: u8 = 0b1100_0000;

/// A block of one byte repeated `len` times.
fn repeated(byte: u8, len: u32, last: bool) -> Vec<u8> {
    let header = u32::from(last) | 1 << 1 | len << 3;
    let [a, b, c, _] = header.to_le_bytes();
    vec![a, b, c, byte]
}

/// A frame for `claimed` bytes, with the fields `between` descriptor and content size.
fn frame(descriptor: u8, between: &[u8], claimed: u64, blocks: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &[descriptor], between, &claimed.to_le_bytes(), blocks].concat()
}

/// Frames that claim to be of `len` bytes of 7 and are not one plain frame of that.
fn hostile_frames(len: u32) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let size = u64::from(len);
    let block = repeated(7, len, true);
    let good = frame(SINGLE_SEGMENT, &[], size, &block);
    let skippable = |number: u8| [&[0x50 + number, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let many_empty = repeated(7, 0, false).repeat(2000);
    vec![
        (
            "claims all there is",
            "instead of",
            frame(SINGLE_SEGMENT, &[], u64::MAX, &block),
        ),
        (
            "claims 2^63 bytes",
            "instead of",
            frame(SINGLE_SEGMENT, &[], 1 << 63, &block),
        ),
        (
            "claims a byte more",
            "instead of",
            frame(SINGLE_SEGMENT, &[], size + 1, &block),
        ),
        (
            "claims a byte less",
            "instead of",
            frame(SINGLE_SEGMENT, &[], size - 1, &block),
        ),
        (
            "claims nothing",
            "instead of",
            [&MAGIC[..], &[0, 0x30], &block].concat(),
        ),
        (
            "holds more than it claims",
            "zstd",
            frame(
                SINGLE_SEGMENT,
                &[],
                size,
                &[repeated(7, len, false), repeated(7, len, true)].concat(),
            ),
        ),
        (
            "is a bomb of 256 MiB",
            "zstd",
            frame(
                SINGLE_SEGMENT,
                &[],
                size,
                &[repeated(7, len, false).repeat(2000), block.clone()].concat(),
            ),
        ),
        (
            "holds less than it claims",
            "zstd",
            frame(SINGLE_SEGMENT, &[], size, &repeated(7, len - 1, true)),
        ),
        (
            "has no last block",
            "zstd frame is damaged or cut off",
            frame(SINGLE_SEGMENT, &[], size, &repeated(7, len, false)),
        ),
        (
            "is two frames",
            "bytes follow",
            [&good[..], &frame(SINGLE_SEGMENT, &[], 0, &repeated(0, 0, true))].concat(),
        ),
        (
            "is behind a skippable frame",
            "instead of",
            [&skippable(0)[..], &good].concat(),
        ),
        (
            "is before a skippable frame",
            "bytes follow",
            [&good[..], &skippable(15)].concat(),
        ),
        ("is a skippable frame", "instead of", skippable(3)),
        ("has a byte behind it", "bytes follow", [&good[..], &[0]].concat()),
        ("is cut off", "zstd frame", good[..good.len() - 1].to_vec()),
        (
            "is its header only",
            "zstd frame",
            frame(SINGLE_SEGMENT, &[], size, &[]),
        ),
        ("is a magic number only", "zstd frame", MAGIC.to_vec()),
        (
            "needs a dictionary",
            "zstd: ",
            frame(SINGLE_SEGMENT | 1, &[9], size, &block),
        ),
        (
            "needs a dictionary of a long id",
            "zstd: ",
            frame(SINGLE_SEGMENT | 3, &[1, 2, 3, 4], size, &block),
        ),
        (
            "sets the reserved bit",
            "zstd",
            frame(SINGLE_SEGMENT | 8, &[], size, &block),
        ),
        (
            "has a window of terabytes",
            "zstd",
            frame(WINDOWED, &[0xff], size, &block),
        ),
        (
            "has a block of the reserved type",
            "zstd",
            frame(SINGLE_SEGMENT, &[], size, &[7, 0, 0, 0]),
        ),
        (
            "has a wrong checksum",
            "zstd: ",
            [&frame(SINGLE_SEGMENT | 4, &[], size, &block)[..], &[1, 2, 3, 4]].concat(),
        ),
        (
            "has a compressed block of nothing",
            "zstd",
            frame(SINGLE_SEGMENT, &[], size, &[5, 0, 0]),
        ),
        ("is of many empty blocks and no end", "zstd", {
            frame(SINGLE_SEGMENT, &[], size, &many_empty)
        }),
    ]
}

#[test]
fn the_frame_that_the_hostile_ones_differ_from_is_good() {
    for len in [12288, 16384] {
        let block = repeated(7, len, true);
        for good in [
            frame(SINGLE_SEGMENT, &[], len.into(), &block),
            frame(WINDOWED, &[0x40], len.into(), &block),
            // 2 GiB of window are not taken: everything is expanded in place.
            frame(WINDOWED, &[0xa8], len.into(), &block),
        ] {
            assert_eq!(decompress(&good, len as usize).unwrap(), vec![7; len as usize]);
        }
    }
}

#[test]
fn hostile_frames_as_clusters_are_refused() {
    let plain = vec![7; 16384];
    for (what, told, hostile) in hostile_frames(16384) {
        let mut forge = Forge::new();
        let stored = [&hostile[..], &frame_check(&hostile)].concat();
        assert!(stored.len() < 16384, "{what}");
        let place = forge.append(&stored);
        let child = pointer(place, Codec::Zstd, Digest::of_cluster(&plain)).to_raw();
        forge.set_raw_root(SIZE, &[(1, child)]);
        let image = forge.open().unwrap();
        let error = image.disks()[0].read_at(16384, &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}");
        for part in [told, "job/1:vda", "cluster 1 (byte 16384)", "layer 00000001"] {
            assert!(
                error.to_string().contains(part),
                "a frame that {what}: expected \"{part}\" in: {error}"
            );
        }
        assert_ne!(findings(&forge.store, "job", 1), NOTHING, "{what}");
        let mut rest = [9; 100];
        image.disks()[0].read_at(2 * 16384, &mut rest).unwrap();
        assert_eq!(rest, [0; 100]);
    }
}

#[test]
fn hostile_frames_as_nodes_are_refused() {
    for (what, told, hostile) in hostile_frames(12288) {
        let mut forge = Forge::new();
        forge.set_root(SIZE, Codec::Zstd, &hostile, crate::Digest([3; 32]));
        let error = read_all(&forge.open().unwrap().disks()[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}");
        for part in [told, "job/1:vda", "node 0 of level 0", "layer 00000001"] {
            assert!(
                error.to_string().contains(part),
                "a frame that {what}: expected \"{part}\" in: {error}"
            );
        }
    }
}
