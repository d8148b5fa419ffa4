//! That tracked syncs lose no write, with the real programs, for a short time. `make test-tracked` does the same for long.

use anyhow::Result;
use smc_tests::truth::known::Driver;
use smc_tests::truth::{fire, jobs, life};

#[test]
fn images_equal_their_disks_through_changes_kills_and_deletions() -> Result<()> {
    let counts = life::live(41, 40)?;
    println!("{counts:#?}");
    assert!(
        counts.killed.0 + counts.stopped > 0,
        "no signal met a sync: {counts:#?}"
    );
    Ok(())
}

#[test]
fn images_equal_their_disks_under_fio() -> Result<()> {
    println!("{:#?}", fire::fire(2)?);
    Ok(())
}

#[test]
fn after_a_kill_of_the_service_the_next_image_equals_the_disk() -> Result<()> {
    for (driver, seed) in [(Driver::Loop, 42), (Driver::Zram, 43)] {
        println!("{:#?}", jobs::live(driver, seed, 5)?);
    }
    Ok(())
}
