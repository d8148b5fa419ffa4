//! What of a GPT several readers need: the check of its header, and how its ids are written (UEFI specification 2.10,
//! chapter 5.3).

use std::fmt;
use std::ops::Range;

const SIGNATURE: &[u8] = b"EFI PART";
/// The shortest header.
const HEADER_BYTES: usize = 92;
const CHECKSUM: Range<usize> = 16..20;

/// Why a block holds no valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GptDefect {
    /// It does not begin with the signature.
    NoSignature,
    /// It gives a length, in bytes, that no header in this block can have.
    Length(u64),
    /// It does not match its checksum.
    Checksum,
}

impl fmt::Display for GptDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("it has no signature"),
            Self::Length(bytes) => write!(f, "it gives its length as {bytes} bytes"),
            Self::Checksum => f.write_str("it does not match its checksum"),
        }
    }
}

impl std::error::Error for GptDefect {}

/// The header in a block, without what follows it there, and with zeros for its checksum.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn gpt_header(block: &[u8]) -> Result<Vec<u8>, GptDefect> {
    if !block.starts_with(SIGNATURE) {
        return Err(GptDefect::NoSignature);
    }
    let bytes = number_at(block, 12, 4).unwrap_or(0);
    let len = usize::try_from(bytes).ok().filter(|&len| len >= HEADER_BYTES);
    let header = len.and_then(|len| block.get(..len));
    let mut header = header.ok_or(GptDefect::Length(bytes))?.to_vec();
    let checksum = number_at(&header, CHECKSUM.start, 4);
    header[CHECKSUM].fill(0);
    if checksum == Some(u64::from(crc32fast::hash(&header))) {
        Ok(header)
    } else {
        Err(GptDefect::Checksum)
    }
}

/// A GUID as people write it. Its first three numbers are stored with their last byte first.
pub fn guid_text(guid: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *guid;
    uuid_text(&[[d, c, b, a, f, e, h, g], rest].concat())
}

/// The bytes of a UUID, of which there are 16, as people write it.
pub fn uuid_text(bytes: &[u8]) -> String {
    let dash = |index| if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
    let digits = bytes.iter().enumerate();
    digits
        .map(|(index, byte)| format!("{}{byte:02x}", dash(index)))
        .collect()
}

/// The little-endian number of at most 8 bytes at `at`.
pub(crate) fn number_at(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut number = [0; 8];
    number
        .get_mut(..len)?
        .copy_from_slice(bytes.get(at..)?.get(..len)?);
    Some(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(len: u32) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..8].copy_from_slice(SIGNATURE);
        block[12..16].copy_from_slice(&len.to_le_bytes());
        block[91] = 7;
        let end = usize::try_from(len).unwrap().min(512);
        let checksum = crc32fast::hash(&block[..end]).to_le_bytes();
        block[CHECKSUM].copy_from_slice(&checksum);
        block
    }

    #[test]
    fn a_header_is_what_its_length_and_checksum_say() {
        for len in [92, 96, 512] {
            let header = gpt_header(&block(len)).unwrap();
            assert_eq!((header.len(), header[91]), (usize::try_from(len).unwrap(), 7));
            assert_eq!(header[CHECKSUM], [0; 4]);
        }
        for len in [0, 91, 513, u32::MAX] {
            assert_eq!(gpt_header(&block(len)), Err(GptDefect::Length(len.into())));
        }
        let mut changed = block(92);
        changed[91] ^= 1;
        assert_eq!(gpt_header(&changed), Err(GptDefect::Checksum));
        assert_eq!(gpt_header(b"EFI PARt"), Err(GptDefect::NoSignature));
        assert_eq!(gpt_header(SIGNATURE), Err(GptDefect::Length(0)));
    }

    #[test]
    fn a_guid_is_written_as_everywhere() {
        let linux = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
        assert_eq!(guid_text(&linux), "0fc63daf-8483-4772-8e79-3d69d8477de4");
    }
}
