use super::*;
use std::cell::Cell;

/// A disk in memory.
pub struct Memory(pub Vec<u8>);

impl Source for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        let offset = usize::try_from(offset)?;
        let found = self
            .0
            .get(offset..offset + target.len())
            .context("beyond the end")?;
        target.copy_from_slice(found);
        Ok(())
    }
}

const SIZE: usize = 4 << 20;

fn entry(disk: &mut [u8], record: usize, slot: usize, kind: u8, first: u32, count: u32) {
    let at = record * 512 + 446 + 16 * slot;
    disk[at + 4] = kind;
    disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    disk[record * 512 + 510..record * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
}

/// A GPT with partitions 1 and 3, primary and backup.
fn gpt(block: usize) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    entry(&mut disk, 0, 0, TYPE_PROTECTIVE, 1, u32::MAX);
    let mut table = vec![0u8; 128 * 128];
    for (slot, first, last) in [(0usize, 40u64, 79u64), (2, 80, 99)] {
        let at = slot * 128;
        table[at..at + 4].copy_from_slice(&0x0fc6_3dafu32.to_le_bytes());
        table[at + 4..at + 8].copy_from_slice(&[0x83, 0x84, 0x72, 0x47]);
        table[at + 8..at + 16].copy_from_slice(&[0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
        table[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        table[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
    }
    let last = SIZE / block - 1;
    let table_blocks = table.len() / block;
    for (own, entries) in [(1, 2), (last, last - table_blocks)] {
        let mut header = vec![0u8; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&(own as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(entries as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let checksum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        disk[own * block..own * block + 92].copy_from_slice(&header);
        disk[entries * block..entries * block + table.len()].copy_from_slice(&table);
    }
    disk
}

#[test]
fn crc_is_the_well_known_one() {
    assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
}

#[test]
fn no_table_is_no_error() {
    for size in [0, 1, 511, 512, SIZE] {
        assert_eq!(
            read_table(&Memory(vec![0; size]), 512).unwrap(),
            None,
            "{size} bytes"
        );
    }
}

#[test]
fn gpt_is_read_at_both_block_sizes() {
    for block in [512, 4096] {
        let found = read_table(&Memory(gpt(block)), block as u64).unwrap().unwrap();
        let numbers: Vec<u32> = found.iter().map(|partition| partition.number).collect();
        assert_eq!(numbers, [1, 3]);
        assert_eq!(found[0].offset, 40 * block as u64);
        assert_eq!(found[0].length, 40 * block as u64);
        assert_eq!(found[0].kind, "Linux filesystem");
    }
}

#[test]
fn damaged_primary_gpt_is_replaced_by_its_backup() {
    for damaged in [512 + 30, 1024 + 33] {
        let mut disk = gpt(512);
        disk[damaged] ^= 1;
        assert_eq!(
            read_table(&Memory(disk), 512).unwrap().unwrap().len(),
            2,
            "byte {damaged}"
        );
    }
}

#[test]
fn damage_of_both_gpts_is_an_error() {
    let mut disk = gpt(512);
    disk[512 + 30] ^= 1;
    disk[SIZE - 512 + 30] ^= 1;
    let error = read_table(&Memory(disk), 512).unwrap_err();
    assert!(format!("{error:#}").contains("checksum"), "{error:#}");
}

#[test]
fn primary_and_logical_partitions_are_read() {
    let mut disk = vec![0; SIZE];
    entry(&mut disk, 0, 0, 0x83, 8, 8);
    entry(&mut disk, 0, 1, 0x05, 100, 500);
    entry(&mut disk, 100, 0, 0x83, 2, 10);
    entry(&mut disk, 100, 1, 0x05, 50, 20);
    entry(&mut disk, 150, 0, 0x82, 2, 10);
    let found = read_table(&Memory(disk), 512).unwrap().unwrap();
    let places: Vec<_> = found
        .iter()
        .map(|found| (found.number, found.offset / 512, found.length / 512))
        .collect();
    assert_eq!(places, [(1, 8, 8), (5, 102, 10), (6, 152, 10)]);
    assert_eq!(found[2].kind, "Linux swap");
}

#[test]
fn chain_of_logical_partitions_that_loops_ends() {
    let mut disk = vec![0; SIZE];
    entry(&mut disk, 0, 0, 0x05, 100, 500);
    entry(&mut disk, 100, 0, 0x83, 2, 10);
    entry(&mut disk, 100, 1, 0x05, 50, 20);
    entry(&mut disk, 150, 0, 0x83, 2, 10);
    entry(&mut disk, 150, 1, 0x05, 0, 20);
    assert_eq!(read_table(&Memory(disk), 512).unwrap().unwrap().len(), 2);
}

#[test]
fn boot_sector_of_a_filesystem_is_no_table() {
    let mut disk = vec![0; SIZE];
    entry(&mut disk, 0, 0, 0x83, 8, 8);
    disk[54..62].copy_from_slice(b"FAT16   ");
    assert_eq!(read_table(&Memory(disk), 512).unwrap(), None);
}

#[test]
fn partitions_beyond_the_disk_are_cut_or_left_out() {
    let mut disk = vec![0; SIZE];
    entry(&mut disk, 0, 0, 0x83, 8000, u32::MAX);
    entry(&mut disk, 0, 1, 0x83, u32::MAX, 8);
    let found = read_table(&Memory(disk), 512).unwrap().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].length, SIZE as u64 - 8000 * 512);
}

/// Whatever bytes a disk holds: an answer, never a panic, and every partition lies on the disk.
#[test]
fn hostile_tables_do_no_harm() {
    let seed = Cell::new(0x9e37_79b9_7f4a_7c15u64);
    let random = || {
        seed.set(
            seed.get()
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        );
        usize::try_from(seed.get() >> 33).unwrap()
    };
    for _ in 0..2000 {
        let mut disk = gpt(512);
        disk.truncate(64 << 10);
        for _ in 0..=random() % 40 {
            // Mostly where the tables are; half of the time with a protective entry, half without.
            let at = [random() % 512, random() % 2048, 446 + random() % 64][random() % 3];
            disk[at] = u8::try_from(random() % 256).unwrap();
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        if let Ok(Some(partitions)) = read_table(&Memory(disk.clone()), 512) {
            for partition in partitions {
                assert!(partition.length > 0 && partition.offset + partition.length <= disk.len() as u64);
            }
        }
    }
}
