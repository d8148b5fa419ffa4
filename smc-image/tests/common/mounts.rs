//! What tests of mounts share.

use super::{Fixture, MIB, has_entry};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub const STATE: &str = "/run/smc/mounts";

/// These tests take turns: every mount sweeps the one state directory of the machine, and with it what another test
/// left there on purpose (a dead server, a directory without a record) before that test has looked at it.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk with an MBR and these partitions, the first one at 1 MiB.
pub fn partitioned(partitions: &[(u8, &[u8])]) -> Vec<u8> {
    let mut disk = vec![0; MIB];
    for (slot, (kind, content)) in partitions.iter().enumerate() {
        let at = 446 + 16 * slot;
        let first = u32::try_from(disk.len() / 512).unwrap();
        let count = u32::try_from(content.len() / 512).unwrap();
        disk[at + 4] = *kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk.extend_from_slice(content);
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

pub fn target(fixture: &Fixture) -> PathBuf {
    let dir = fixture.join("mnt");
    fs::create_dir_all(&dir).unwrap();
    dir.canonicalize().unwrap()
}

/// Whether anything is left of mounts of `job`'s images, or on the fixture's directory.
pub fn leftovers(fixture: &Fixture, job: &str) -> Vec<String> {
    let mut left = Vec::new();
    let ours = format!("{STATE}/{job}-");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = fixture.join("mnt");
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&ours) || line.contains(dir.to_str().unwrap()))
            .map(str::to_owned),
    );
    for entry in fs::read_dir("/sys/block").unwrap() {
        let backing = fs::read_to_string(entry.unwrap().path().join("loop/backing_file"));
        left.extend(backing.ok().filter(|backing| backing.contains(&ours)));
    }
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let is_zombie = fs::read_to_string(path.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        left.extend(Some(command).filter(|command| !is_zombie && command.contains(&ours)));
    }
    if has_entry(Path::new(STATE), &format!("{job}-")) {
        left.push(format!("an entry in {STATE}"));
    }
    left
}
