//! The fixed form of VHD: the disk's bytes, then a footer of 512 bytes that says what they are.
//!
//! After Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0.

use jiff::Timestamp;
use std::array;

/// Length of the footer.
pub const FOOTER_BYTES: usize = 512;

/// Azure takes disks of whole MiB only.
pub const SIZE_STEP: u64 = 1 << 20;

/// 2000-01-01T00:00:00Z, from which the format counts seconds, in seconds of Unix time.
const EPOCH: i64 = 946_684_800;
/// Cylinders, heads and sectors a track: the most that can be said, where the size cannot be expressed so. QEMU writes
/// the same for files whose size counts.
const GEOMETRY: [u8; 4] = [0xff, 0xff, 16, 255];
/// Who made it: QEMU. Readers take the size from its field only where they know the name, and from the geometry otherwise.
const CREATOR: &[u8; 4] = b"qem2";

/// The footer of a disk of `size` bytes with this unique id, made at this time.
pub fn footer(size: u64, id: [u8; 16], made: Timestamp) -> [u8; FOOTER_BYTES] {
    let seconds = u32::try_from(made.as_second() - EPOCH).unwrap_or(0);
    let mut fields: Vec<u8> = Vec::with_capacity(FOOTER_BYTES);
    fields.extend(b"conectix");
    // Features: the reserved bit, which is always set. Then the version.
    fields.extend(2u32.to_be_bytes());
    fields.extend(0x0001_0000u32.to_be_bytes());
    // A fixed disk has no other header.
    fields.extend(u64::MAX.to_be_bytes());
    fields.extend(seconds.to_be_bytes());
    fields.extend(CREATOR);
    fields.extend(0x0001_0000u32.to_be_bytes());
    fields.extend(b"Wi2k");
    // Original and current size.
    fields.extend(size.to_be_bytes());
    fields.extend(size.to_be_bytes());
    fields.extend(GEOMETRY);
    // Type: fixed. The checksum follows when all else is known.
    fields.extend(2u32.to_be_bytes());
    fields.extend([0; 4]);
    fields.extend(id);
    let mut footer: [u8; FOOTER_BYTES] = array::from_fn(|at| fields.get(at).copied().unwrap_or(0));
    let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_is_where_the_specification_has_it() {
        let made = Timestamp::from_second(EPOCH + 7).unwrap();
        let footer = footer(3 << 20, [9; 16], made);
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(footer[24..28], 7u32.to_be_bytes());
        assert_eq!(footer[48..56], (3u64 << 20).to_be_bytes());
        assert_eq!(footer[60..64], 2u32.to_be_bytes());
        assert_eq!(footer[68..84], [9; 16]);
        let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum::<u32>()
            - footer[64..68].iter().map(|&byte| u32::from(byte)).sum::<u32>();
        assert_eq!(footer[64..68], (!sum).to_be_bytes());
    }
}
