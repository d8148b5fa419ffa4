//! Crashes on real filesystems: power cuts, kills, and no space. `make crash` does the same for longer.

use anyhow::Result;
use smc_tests::code;
use smc_tests::crash::{Crash, Kind, World, rounds};
use smc_tests::damage;
use smc_tests::stderr;
use std::fs;

const MIB: u64 = 1 << 20;

fn crash(kind: Kind, how: Crash, seed: u64, count: u64) -> Result<()> {
    println!("seed {seed}");
    let mut world = World::new(kind, seed, 384 * MIB, 16 * MIB)?;
    rounds(&mut world, how, count)?;
    println!("{:?}", world.counts);
    Ok(())
}

#[test]
fn power_cuts_on_ext4_lose_no_image() -> Result<()> {
    crash(Kind::Ext4, Crash::PowerCut, 11, 20)
}

#[test]
fn power_cuts_on_xfs_lose_no_image() -> Result<()> {
    crash(Kind::Xfs, Crash::PowerCut, 12, 20)
}

#[test]
fn kills_lose_no_image() -> Result<()> {
    for (seed, kind) in [(13, Kind::Ext4), (14, Kind::Xfs), (15, Kind::Btrfs)] {
        crash(kind, Crash::Kill, seed, 8)?;
    }
    Ok(())
}

#[test]
fn good_images_stay_good_and_the_next_sync_heals_whatever_is_damaged() -> Result<()> {
    println!("{:?}", damage::live(1, 8 << 20, 25)?);
    Ok(())
}

/// A sync that meets the end of the filesystem: earlier images remain, and the next one resumes what is
/// stored.
fn no_space_for_a_sync(kind: Kind) -> Result<()> {
    let mut world = World::new(kind, 21, 400 * MIB, 48 * MIB)?;
    world.sync()?;
    world.overwrite_source(22)?;
    let filler = world.fs.fill(16 * MIB)?;
    let output = world.try_sync()?;
    let message = stderr(&output);
    assert_eq!(code(&output), 1, "{message}");
    assert!(message.contains("No space left"), "{message}");
    assert!(message.contains("earlier images are unchanged"), "{message}");
    world.verify()?;
    assert_eq!(world.sequences(), [1]);
    fs::remove_file(filler)?;
    world.sync()?;
    assert_eq!(world.counts.resumed, 1, "what was stored is not stored again");
    world.finish()
}

/// Deleting on a filesystem without a free block: it is done, or told, and the space comes back.
fn no_space_for_a_delete(kind: Kind) -> Result<()> {
    let mut world = World::new(kind, 31, 400 * MIB, 24 * MIB)?;
    for _ in 0..4 {
        world.sync()?;
        world.change_source()?;
    }
    let filler = world.fs.fill(0)?;
    let before = world.layer_bytes()?;
    for doomed in [1, 3, 2] {
        let output = world.try_remove(doomed)?;
        let message = stderr(&output);
        println!("{}: rm {doomed}: {} {message}", kind.name(), code(&output));
        assert!(
            code(&output) == 0 || message.contains("No space left"),
            "{message}"
        );
    }
    world.verify()?;
    fs::remove_file(filler)?;
    world.collect()?;
    assert!(world.layer_bytes()? < before, "space comes back");
    world.finish()
}

#[test]
fn a_full_ext4_ends_a_sync_but_no_image() -> Result<()> {
    no_space_for_a_sync(Kind::Ext4)
}

#[test]
fn a_full_xfs_ends_a_sync_but_no_image() -> Result<()> {
    no_space_for_a_sync(Kind::Xfs)
}

#[test]
fn a_full_btrfs_ends_a_sync_but_no_image() -> Result<()> {
    no_space_for_a_sync(Kind::Btrfs)
}

#[test]
fn images_are_deleted_from_a_full_ext4() -> Result<()> {
    no_space_for_a_delete(Kind::Ext4)
}

#[test]
fn images_are_deleted_from_a_full_xfs() -> Result<()> {
    no_space_for_a_delete(Kind::Xfs)
}

#[test]
fn images_are_deleted_from_a_full_btrfs() -> Result<()> {
    no_space_for_a_delete(Kind::Btrfs)
}
