//! Names of the files in a cpio archive of the kind that the kernel unpacks ("newc").
//!
//! An entry is a header of 110 bytes of hexadecimal text, the name with its NUL, and the content, the latter two
//! padded to 4 bytes (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use crate::command::Output;

const MAGIC_LEN: usize = 6;
const HEADER_LEN: usize = 110;

/// Where the size of the content and the length of the name stand in the header.
const FILE_SIZE: std::ops::Range<usize> = 54..62;
const NAME_SIZE: std::ops::Range<usize> = 94..102;

/// The kernel takes no longer path.
const NAME_MAX: u64 = 4096;

const TRAILER: &[u8] = b"TRAILER!!!";

/// Starts of archives: without and with checksums.
pub(super) fn is_magic(magic: [u8; MAGIC_LEN]) -> bool {
    &magic == b"070701" || &magic == b"070702"
}

/// Bytes that can be skipped.
pub(super) trait Source: BufRead {
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl Source for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(bytes).map_err(|_| damaged())?)
    }
}

impl Source for BufReader<Output> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if io::copy(&mut self.take(bytes), &mut io::sink())? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// How an archive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Trailer,
    /// The visitor has seen enough.
    Stopped,
}

/// Visits the names of an archive whose magic has been read, to after its trailer. The number is that of the bytes read.
///
/// # Errors
/// When the archive cannot be read, or is none.
pub(super) fn names(
    source: &mut impl Source,
    visit: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<(End, u64)> {
    let mut read = MAGIC_LEN_U64;
    loop {
        let mut header = [0; HEADER_LEN - MAGIC_LEN];
        source.read_exact(&mut header)?;
        let field =
            |range: std::ops::Range<usize>| field(&header[range.start - MAGIC_LEN..range.end - MAGIC_LEN]);
        let (file_size, name_size) = (field(FILE_SIZE)?, field(NAME_SIZE)?);
        if name_size == 0 || name_size > NAME_MAX {
            return Err(damaged());
        }
        let mut name = Vec::new();
        let padded_name = pad(HEADER_LEN_U64 + name_size) - HEADER_LEN_U64;
        source.by_ref().take(padded_name).read_to_end(&mut name)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        source.skip(pad(file_size))?;
        read += HEADER_LEN_U64 - MAGIC_LEN_U64 + padded_name + pad(file_size);
        if name == TRAILER {
            return Ok((End::Trailer, read));
        }
        if !visit(name) {
            return Ok((End::Stopped, read));
        }
        let mut magic = [0; MAGIC_LEN];
        source.read_exact(&mut magic)?;
        read += MAGIC_LEN_U64;
        if !is_magic(magic) {
            return Err(damaged());
        }
    }
}

const MAGIC_LEN_U64: u64 = MAGIC_LEN as u64;
const HEADER_LEN_U64: u64 = HEADER_LEN as u64;

fn pad(bytes: u64) -> u64 {
    bytes.next_multiple_of(4)
}

fn field(digits: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(digits).map_err(|_| damaged())?;
    u64::from_str_radix(text, 16).map_err(|_| damaged())
}

pub(super) fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is damaged, or of an unknown format",
    )
}
