//! What an initramfs is put together of: archives one after the other, the later ones mostly compressed.
//!
//! Those in the clear are read here. The first compressed one is unpacked by the program that packed it, together
//! with all behind it: on the machine that made its initramfs with it, it is there.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::process::Stdio;
use std::time::Instant;

use super::cpio::{self, End, Source, damaged};
use crate::command::Output;

const BUFFER_BYTES: usize = 256 << 10;

/// Archives are padded to a sector or a page, by careful programs to a few MiB.
const PADDING_MAX_BYTES: u64 = 16 << 20;

/// How compressed archives start, and what unpacks them.
const FORMATS: [(&[u8], &str, &[&str]); 9] = [
    (b"\x1f\x8b", "gzip", &["-dc"]),
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dcq"]),
    (b"\xfd7zXZ\0", "xz", &["-dc"]),
    (b"\x5d\0\0", "xz", &["-dc", "--format=lzma"]),
    (b"\x02\x21\x4c\x18", "lz4", &["-dcq"]),
    (b"\x04\x22\x4d\x18", "lz4", &["-dcq"]),
    (b"BZh", "bzip2", &["-dc"]),
    (b"\x89LZO\0", "lzop", &["-dc"]),
    (b"\x1f\x9e", "gzip", &["-dc"]),
];

/// Visits the names in all archives of a file, until `visit` says no.
///
/// # Errors
/// `TimedOut` past the deadline; otherwise when the file cannot be read or understood.
pub(super) fn scan(file: File, deadline: Instant, visit: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut source = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut archives = 0;
    let mut offset = 0;
    loop {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Some((magic, padding)) = next_magic(&mut source)? else {
            return if archives > 0 { Ok(()) } else { Err(damaged()) };
        };
        offset += padding;
        if !cpio::is_magic(magic) {
            return unpack(source.into_inner(), offset, magic, deadline, visit);
        }
        let (end, read) = cpio::names(&mut source, &mut in_time(deadline, visit))?;
        if end == End::Stopped {
            return overdue(deadline);
        }
        offset += read;
        archives += 1;
    }
}

/// A visitor that says no past the deadline.
fn in_time(deadline: Instant, visit: &mut dyn FnMut(&[u8]) -> bool) -> impl FnMut(&[u8]) -> bool {
    move |name| visit(name) && Instant::now() < deadline
}

fn overdue(deadline: Instant) -> io::Result<()> {
    if Instant::now() >= deadline {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

/// Lets the right program unpack the file from `offset` on, and visits the names in what it prints.
fn unpack(
    mut file: File,
    offset: u64,
    magic: [u8; 6],
    deadline: Instant,
    visit: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let format = FORMATS.iter().find(|(start, _, _)| magic.starts_with(start));
    let (_, program, args) = format.ok_or_else(damaged)?;
    file.seek(SeekFrom::Start(offset))?;
    let output =
        Output::of(program, args, Stdio::from(file), deadline).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), format!("the program {program} is not installed"))
            }
            _ => error,
        })?;
    let mut source = BufReader::with_capacity(BUFFER_BYTES, output);
    let mut archives = 0;
    while let Some((magic, _)) = next_magic(&mut source)? {
        if !cpio::is_magic(magic) {
            return Err(damaged());
        }
        let (end, _) = cpio::names(&mut source, &mut in_time(deadline, visit))?;
        if end == End::Stopped {
            return overdue(deadline);
        }
        archives += 1;
    }
    if archives > 0 { Ok(()) } else { Err(damaged()) }
}

/// The first six bytes after any zeros, which pad archives, and how many zeros there were. None at the end.
fn next_magic(source: &mut impl Source) -> io::Result<Option<([u8; 6], u64)>> {
    let mut padding = 0;
    let mut bytes = source.by_ref().take(PADDING_MAX_BYTES).bytes();
    let first = loop {
        match bytes.next().transpose()? {
            Some(0) => padding += 1,
            Some(first) => break first,
            None if padding == PADDING_MAX_BYTES => return Err(damaged()),
            None => return Ok(None),
        }
    };
    let mut magic = [first, 0, 0, 0, 0, 0];
    source.read_exact(&mut magic[1..])?;
    Ok(Some((magic, padding)))
}
