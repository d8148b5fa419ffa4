//! Extended headers end to end, by a client of our own: the ones packaged here are too old to
//! speak them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::sync::Arc;

use common::disk::{Only, WritableDisk};
use common::raw::{CMD_BLOCK_STATUS, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES};
use common::raw::{FUA, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, PAYLOAD_LEN};
use common::raw::{REP_ACK, REP_ERR_POLICY, Raw, be64, option_bytes};
use common::{CLUSTER, MIB, MemoryDisk, Running};
use nbd::{Access, Export, ExportError, Extent, Limits};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// 1 PiB of zeros, for lengths that need 64 bits.
struct Huge;

const HUGE: u64 = 1 << 50;

impl Export for Huge {
    fn size_bytes(&self) -> u64 {
        HUGE
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        buf.fill(0);
        Ok(())
    }

    fn extents(&self, offset: u64, _: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::hole(HUGE - offset)])
    }

    fn write_zeroes(&self, _: u64, _: u64, _: nbd::Zeroing) -> Result<(), ExportError> {
        Ok(())
    }
}

fn huge() -> Running {
    let access = Access::Writable { shared: true };
    let export = Arc::new(Huge);
    Running::start(Arc::new(Only { export, access }), Limits::default())
}

#[test]
fn t13_lengths_of_64_bits_are_served() {
    let server = huge();
    let mut raw = Raw::extended(&server.socket());
    for (command, offset, length) in [
        (CMD_TRIM, 0, HUGE),
        (CMD_WRITE_ZEROES, 1, HUGE - 1),
        (CMD_WRITE_ZEROES, 1 << 33, (1 << 40) + 7),
    ] {
        raw.request_extended(command, FUA, 1, offset, length);
        assert_eq!(raw.extended_verdict(1, offset), 0);
    }
    raw.request_extended(CMD_WRITE_ZEROES, 0, 2, 1, HUGE);
    assert_eq!(raw.extended_verdict(2, 1), ENOSPC);
    raw.request_extended(CMD_TRIM, 0, 3, 1, HUGE);
    assert_eq!(raw.extended_verdict(3, 1), EINVAL);
}

/// The descriptors of a reply with one context, whose id must be 1.
fn descriptors(raw: &mut Raw, cookie: u64, offset: u64) -> Vec<(u64, u64)> {
    let (flags, kind, payload) = raw.extended_chunk(cookie, offset);
    assert_eq!((flags, kind, &payload[..4]), (1, 6, &[0, 0, 0, 1][..]));
    let count = u32::from_be_bytes(payload[4..8].try_into().unwrap());
    let found: Vec<_> = payload[8..]
        .chunks(16)
        .map(|one| (be64(&one[..8]), be64(&one[8..])))
        .collect();
    assert_eq!(found.len(), count as usize);
    found
}

#[test]
fn n9_a_petabyte_of_zeros_is_one_descriptor() {
    let server = huge();
    let mut raw = Raw::extended(&server.socket());
    raw.request_extended(CMD_BLOCK_STATUS, 0, 7, 5, HUGE - 5);
    assert_eq!(descriptors(&mut raw, 7, 5), [(HUGE - 5, 3)]);
    let mut filter = (1_u64 << 40).to_be_bytes().to_vec();
    filter.extend([0, 0, 0, 1]);
    // REQ_ONE, in the payload form.
    raw.request_extended(CMD_BLOCK_STATUS, PAYLOAD_LEN | 8, 8, 9, 12);
    raw.say(&filter);
    assert_eq!(descriptors(&mut raw, 8, 9), [(1 << 40, 3)]);
    filter[11] = 2;
    raw.request_extended(CMD_BLOCK_STATUS, PAYLOAD_LEN, 9, 9, 12);
    raw.say(&filter);
    assert_eq!(raw.extended_verdict(9, 9), EINVAL);
    raw.request_extended(CMD_FLUSH, 0, 10, 0, 0);
    assert_eq!(raw.extended_verdict(10, 0), 0);
}

#[test]
fn t2_t3_reads_come_as_extended_chunks_with_the_bytes_of_the_disk() {
    let disk = MemoryDisk::mixed();
    let original = disk.bytes.clone();
    let server = Running::of(disk);
    let mut raw = Raw::extended(&server.socket());
    let (offset, length) = (CLUSTER / 2, 12 * MIB as usize);
    raw.request_extended(CMD_READ, 0, 3, offset as u64, length as u64);
    let (mut found, mut kinds) = (vec![0xee; length], Vec::new());
    loop {
        let (flags, kind, payload) = raw.extended_chunk(3, offset as u64);
        let at = be64(&payload[..8]) as usize - offset;
        match kind {
            1 => found[at..at + payload.len() - 8].copy_from_slice(&payload[8..]),
            2 => {
                let size = u32::from_be_bytes(payload[8..].try_into().unwrap());
                found[at..at + size as usize].fill(0);
            }
            other => panic!("chunk type {other}"),
        }
        kinds.push(kind);
        if flags == 1 {
            break;
        }
    }
    assert!(found == original[offset..offset + length]);
    assert!(kinds.contains(&1) && kinds.contains(&2));
    raw.request_extended(CMD_READ, 0, 4, 0, 33 * MIB);
    assert_eq!(raw.extended_verdict(4, 0), EINVAL);
    raw.request_extended(CMD_READ, 0, 5, original.len() as u64, 1);
    assert_eq!(raw.extended_verdict(5, original.len() as u64), EINVAL);
}

#[test]
fn writes_are_taken_with_their_payload_and_too_long_a_payload_ends_the_connection() {
    let disk = Arc::new(WritableDisk::of(66 * MIB));
    let server = Running::start(Only::writable(&disk), Limits::default());
    let mut raw = Raw::extended(&server.socket());
    raw.request_extended(CMD_WRITE, PAYLOAD_LEN | FUA, 1, 5, 64 * MIB);
    raw.say(&vec![0xab; 64 * MIB as usize]);
    assert_eq!(raw.extended_verdict(1, 5), 0);
    assert!(disk.read(5, 64 * MIB as usize).iter().all(|byte| *byte == 0xab));
    // QEMU's clients do not announce it.
    raw.request_extended(CMD_WRITE, 0, 2, 0, 512);
    raw.say(&[0xcd; 512]);
    assert_eq!(raw.extended_verdict(2, 0), 0);
    assert_eq!(disk.read(0, 513)[511..], [0xcd, 0xab]);
    raw.request_extended(CMD_READ, PAYLOAD_LEN, 3, 0, 7);
    raw.say(b"1234567");
    assert_eq!(raw.extended_verdict(3, 0), EINVAL);
    raw.request_extended(CMD_WRITE, PAYLOAD_LEN, 4, 66 * MIB, 3);
    raw.say(b"123");
    assert_eq!(raw.extended_verdict(4, 66 * MIB), ENOSPC);
    raw.request_extended(CMD_WRITE, PAYLOAD_LEN, 5, 0, 64 * MIB + 1);
    assert!(raw.rest().is_empty());
}

#[test]
fn h5_export_name_after_extended_headers_ends_the_connection() {
    let server = huge();
    let mut raw = Raw::greeted(&server.socket());
    assert_eq!(raw.option(OPT_EXTENDED_HEADERS, &[]), REP_ACK);
    raw.say(&option_bytes(OPT_EXPORT_NAME, b""));
    assert!(raw.rest().is_empty());
}

#[test]
fn t16_disc_ends_an_extended_connection_without_a_reply() {
    let server = huge();
    let mut raw = Raw::extended(&server.socket());
    raw.request_extended(CMD_DISC, 0, 1, 0, 0);
    assert!(raw.rest().is_empty());
}

/// Says a size, and nothing else.
struct Sized(u64);

impl Export for Sized {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        buf.fill(0xda);
        Ok(())
    }

    fn extents(&self, _: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::data(length)])
    }
}

#[test]
fn n13_a_size_that_clients_cannot_take_is_refused() {
    let serve = |size| {
        let access = Access::ReadOnly;
        let export = Arc::new(Sized(size));
        Running::start(Arc::new(Only { export, access }), Limits::default())
    };
    let server = serve(1 << 63);
    let mut raw = Raw::greeted(&server.socket());
    for option in [OPT_INFO, OPT_GO] {
        assert_eq!(raw.option(option, &[0; 6]), REP_ERR_POLICY);
    }
    let largest = (1 << 63) - 1;
    let server = serve(largest);
    let mut raw = Raw::extended(&server.socket());
    raw.request_extended(CMD_READ, 0, 1, largest - 1, 1);
    let (flags, kind, payload) = raw.extended_chunk(1, largest - 1);
    assert_eq!((flags, kind, payload[8]), (1, 1, 0xda));
    raw.request_extended(CMD_READ, 0, 2, largest, 1);
    assert_eq!(raw.extended_verdict(2, largest), EINVAL);
}
