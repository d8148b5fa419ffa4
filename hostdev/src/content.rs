//! What tells one disk from another by what is stored on it: the ids of partition tables and filesystems.
//!
//! Nothing here trusts the disk: every field is looked for within the bytes that were read, and an id counts only
//! behind its magic number. Of a filesystem on several devices, the id is the device's.

use crate::gpt::{gpt_header, guid_text, number_at, uuid_text};

/// How much from the beginning of a disk or partition has to be read.
pub const HEAD_BYTES: usize = 68 << 10;

/// Bytes of a boot record.
const MBR_BYTES: usize = 512;
const TYPE_PROTECTIVE: u8 = 0xee;

/// How an id is stored.
enum Id {
    /// 16 bytes.
    Uuid,
    /// Text of so many bytes, at most.
    Text(usize),
    /// A number of so many bytes, little-endian.
    Number(usize),
}

struct Signature {
    kind: &'static str,
    magic: (usize, &'static [u8]),
    id: (usize, Id),
}

const fn signature(kind: &'static str, magic: (usize, &'static [u8]), id: (usize, Id)) -> Signature {
    Signature { kind, magic, id }
}

/// What is recognized, as the headers of the kernel, of LVM, mdadm and cryptsetup describe it. What holds other things
/// comes first: what lay there before may still be seen behind it.
const SIGNATURES: [Signature; 13] = [
    signature("luks", (0, b"LUKS\xba\xbe"), (168, Id::Text(40))),
    signature("lvm", (536, b"LVM2 001"), (544, Id::Text(32))),
    signature("md", (4096, &[0xfc, 0x4e, 0x2b, 0xa9]), (4096 + 168, Id::Uuid)),
    signature("md", (0, &[0xfc, 0x4e, 0x2b, 0xa9]), (168, Id::Uuid)),
    signature("xfs", (0, b"XFSB"), (32, Id::Uuid)),
    signature("btrfs", (0x1_0040, b"_BHRfS_M"), (0x1_0000 + 201 + 66, Id::Uuid)),
    signature("ext", (1080, &[0x53, 0xef]), (1128, Id::Uuid)),
    signature("f2fs", (1024, &[0x10, 0x20, 0xf5, 0xf2]), (1024 + 108, Id::Uuid)),
    signature("swap", (4086, b"SWAPSPACE2"), (1036, Id::Uuid)),
    signature("fat", (82, b"FAT32   "), (67, Id::Number(4))),
    signature("fat", (54, b"FAT1"), (39, Id::Number(4))),
    signature("ntfs", (3, b"NTFS    "), (72, Id::Number(8))),
    signature("exfat", (3, b"EXFAT   "), (100, Id::Number(4))),
];

/// The id of the partition table at the beginning of a disk with logical blocks of `block_bytes`: `gpt:` and the disk's
/// GUID, or `dos:` and eight hexadecimal digits. `None` where there is no table, or it has no id, or is damaged.
pub fn table_id(head: &[u8], block_bytes: usize) -> Option<String> {
    let mbr = head.get(..MBR_BYTES)?;
    if mbr[510..] != [0x55, 0xaa] {
        return None;
    }
    let entry = |slot: usize| &mbr[446 + 16 * slot..][..16];
    let types = [0, 1, 2, 3].map(|slot| entry(slot)[4]);
    if types.contains(&TYPE_PROTECTIVE) {
        return gpt_id(head.get(block_bytes..block_bytes.checked_mul(2)?)?);
    }
    // The boot sector of a filesystem ends like a boot record; boot code may lie where entries would.
    let is_table = [0, 1, 2, 3]
        .iter()
        .all(|&slot| matches!(entry(slot)[0], 0 | 0x80));
    if !is_table || types == [0; 4] || filesystem_id(head).is_some() {
        return None;
    }
    let id = number_at(mbr, 440, 4)?;
    (id != 0).then(|| format!("dos:{id:08x}"))
}

/// The disk's GUID in a GPT header.
fn gpt_id(block: &[u8]) -> Option<String> {
    let header = gpt_header(block).ok()?;
    let guid: &[u8; 16] = header.get(56..)?.first_chunk()?;
    (*guid != [0; 16]).then(|| format!("gpt:{}", guid_text(guid)))
}

/// The id of what lies in a disk or partition that begins with `head`, after its type: `xfs:` and a UUID. `None` where
/// nothing is recognized, or it has no id.
pub fn filesystem_id(head: &[u8]) -> Option<String> {
    let found = SIGNATURES.iter().find(|signature| {
        let (at, magic) = signature.magic;
        head.get(at..).is_some_and(|rest| rest.starts_with(magic))
    })?;
    let (at, id) = &found.id;
    let id = match *id {
        Id::Uuid => uuid(head.get(*at..)?.get(..16)?)?,
        Id::Text(len) => text(head.get(*at..)?.get(..len)?)?,
        Id::Number(len) => {
            let number = number_at(head, *at, len).filter(|&number| number != 0)?;
            format!("{number:0width$x}", width = 2 * len)
        }
    };
    Some(format!("{}:{id}", found.kind))
}

/// A UUID as people write it; none of zeros.
fn uuid(bytes: &[u8]) -> Option<String> {
    bytes.iter().any(|&byte| byte != 0).then(|| uuid_text(bytes))
}

/// Text up to the first NUL byte, of the characters that ids consist of.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let bytes = bytes.get(..end).filter(|bytes| !bytes.is_empty())?;
    bytes
        .iter()
        .all(good)
        .then(|| bytes.iter().map(|&byte| char::from(byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    const ID: [u8; 16] = [
        0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    ];
    const SHOWN: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn every_filesystem_is_recognized_by_magic_and_id() {
        for signature in &SIGNATURES {
            let mut disk = head(&[signature.magic]);
            assert_eq!(filesystem_id(&disk), None, "{} without an id", signature.kind);
            let (at, id) = &signature.id;
            let (bytes, shown): (&[u8], &str) = match id {
                Id::Uuid => (&ID, SHOWN),
                Id::Text(_) => (b"Ab-1", "Ab-1"),
                Id::Number(4) => (&[4, 3, 2, 1], "01020304"),
                Id::Number(_) => (&[8, 7, 6, 5, 4, 3, 2, 1], "0102030405060708"),
            };
            disk[*at..*at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(filesystem_id(&disk), Some(format!("{}:{shown}", signature.kind)));
            for cut in [0, 1, signature.magic.0, *at, *at + 1] {
                assert_eq!(filesystem_id(&disk[..cut]), None, "{} cut off", signature.kind);
            }
        }
        assert_eq!(filesystem_id(&vec![0; HEAD_BYTES]), None);
    }

    #[test]
    fn text_that_is_no_id_is_none() {
        let disk = head(&[(0, b"LUKS\xba\xbe"), (168, b"\x1b[2J")]);
        assert_eq!(filesystem_id(&disk), None);
    }

    fn mbr(kind: u8) -> Vec<u8> {
        head(&[(440, &[4, 3, 2, 1]), (450, &[kind]), (510, &[0x55, 0xaa])])
    }

    #[test]
    fn boot_records_have_their_signature() {
        assert_eq!(table_id(&mbr(0x83), 512), Some("dos:01020304".to_owned()));
        assert_eq!(table_id(&mbr(0), 512), None, "without a partition");
        let mut fat = mbr(0x83);
        fat[54..58].copy_from_slice(b"FAT1");
        fat[39..43].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(table_id(&fat, 512), None, "the boot sector of a filesystem");
        let mut code = mbr(0x83);
        code[446] = 0x33;
        assert_eq!(table_id(&code, 512), None, "boot code");
        assert_eq!(table_id(&[], 512), None);
    }

    #[test]
    fn a_gpt_has_its_guid_where_its_checksum_is_right() {
        for block in [512, 4096] {
            let mut disk = mbr(TYPE_PROTECTIVE);
            assert_eq!(table_id(&disk, block), None);
            disk[block..block + 8].copy_from_slice(b"EFI PART");
            disk[block + 12] = 92;
            disk[block + 56..block + 72].copy_from_slice(&ID);
            let checksum = crc32fast::hash(&disk[block..block + 92]).to_le_bytes();
            disk[block + 16..block + 20].copy_from_slice(&checksum);
            let guid = "gpt:33221100-5544-7766-8899-aabbccddeeff";
            assert_eq!(table_id(&disk, block), Some(guid.to_owned()));
            disk[block + 60] ^= 1;
            assert_eq!(table_id(&disk, block), None);
            disk[block + 12] = 0xff;
            disk[block + 13] = 0xff;
            assert_eq!(table_id(&disk, block), None);
        }
        assert_eq!(table_id(&mbr(TYPE_PROTECTIVE), usize::MAX), None);
    }
}
