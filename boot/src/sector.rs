//! Whether KVM runs a guest here, found out without a kernel: a boot sector that does what every kernel does first.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::accelerator::Accelerator;
use crate::bus::Bus;
use crate::error::{Error, ErrorKind, Result};
use crate::firmware::memory_file;
use crate::pc::{Firmware, Network, Pc, PcDisk, Source};
use crate::probe::opens_kvm;
use crate::running::{Running, Said};

/// How often it has to run.
const TIMES: u32 = 4;
/// How long the sector may take: a hundred times what it takes.
const TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const MEMORY_MIB: u32 = 32;
const PROOF: &str = "SMC-PROBE-OK";
/// The BIOS boots from no disk of one sector.
const DISK_BYTES: usize = 1 << 20;

/// Makes page tables, enters 64-bit mode and writes [`PROOF`] to the first serial line: from 0x7c00 on, as the BIOS
/// loads it. Where `/dev/kvm` is there and cannot run guests, it stops on the way, or QEMU does.
const CODE: [u8; 149] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xfc, // cli; ds = es = 0
    0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xf3, 0xab, // clear 0x1000 to 0x4000
    0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, // page tables: the first 2 MiB
    0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, //
    0x0f, 0x01, 0x16, 0x80, 0x7c, // lgdt
    0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0, // cr4: PAE
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, // cr3
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30, // EFER: long mode
    0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0: paging, protection
    0xea, 0x56, 0x7c, 0x08, 0x00, // jump to 64-bit code
    0xbe, 0x86, 0x7c, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, // esi = text; dx = 0x3f8
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // until NUL: out
    0xf4, 0xeb, 0xfd, 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, // halt
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // the descriptor table: null, 64-bit code
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, //
    0x0f, 0x00, 0x70, 0x7c, 0x00, 0x00, // its length and place
    0x0a, b'S', b'M', b'C', b'-', b'P', b'R', b'O', b'B', b'E', b'-', b'O', b'K', 0x0a, 0x00,
];

impl Accelerator {
    /// KVM where a boot sector that enters 64-bit mode has just run on it, each of several times, otherwise TCG: in some virtual
    /// machines it runs now and then, and no kernel ever does. It takes a second or two.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] without QEMU, [`ErrorKind::Canceled`]. A probe that fails is no error: it is TCG then.
    pub fn found_by_sector(is_canceled: &dyn Fn() -> bool) -> Result<Self> {
        if !opens_kvm() {
            return Ok(Self::Tcg);
        }
        for _ in 0..TIMES {
            if !sector_runs(Self::Kvm, is_canceled)? {
                return Ok(Self::Tcg);
            }
        }
        Ok(Self::Kvm)
    }
}

fn sector_runs(accelerator: Accelerator, is_canceled: &dyn Fn() -> bool) -> Result<bool> {
    let pc = Pc {
        accelerator,
        memory_mib: MEMORY_MIB,
        cpus: 1,
        firmware: Firmware::Bios,
        bus: Bus::Virtio,
        disks: vec![PcDisk {
            source: Source::File(sector_disk()?),
            serial: "probe".to_owned(),
            block_bytes: 512,
        }],
        network: Network::None,
        vnc: None,
    };
    let mut running = match Running::start(pc) {
        Err(error) if error.kind() == ErrorKind::Missing => return Err(error),
        Err(_) => return Ok(false),
        Ok(running) => running,
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut said = String::new();
    while Instant::now() < deadline && !said.contains(PROOF) {
        if is_canceled() {
            return Err(Error::new(ErrorKind::Canceled, "the guest was canceled"));
        }
        match running.read(POLL_INTERVAL)? {
            Said::Bytes(bytes) => said.push_str(&String::from_utf8_lossy(bytes)),
            Said::Nothing => {}
            Said::End => break,
        }
    }
    Ok(said.contains(PROOF))
}

fn sector_disk() -> Result<OwnedFd> {
    let mut disk = vec![0; DISK_BYTES];
    disk[..CODE.len()].copy_from_slice(&CODE);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut file = File::from(memory_file("smc-probe")?);
    file.write_all(&disk)
        .map_err(|source| Error::io("write a disk to memory", source))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sector_runs_where_guests_run() {
        assert!(sector_runs(Accelerator::Tcg, &|| false).unwrap());
    }

    #[test]
    fn a_probe_can_be_canceled() {
        let error = sector_runs(Accelerator::Tcg, &|| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Canceled);
    }
}
