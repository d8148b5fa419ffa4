//! `make demo`: a server is imaged twice, the second time while it is written to, and both images are booted.
//!
//! Every step is real: a loop device with a boot loader, a kernel and files; two syncs by `smcd`; an NBD server;
//! two guests that say which point in time they woke up in and check every file. The demo fails unless each
//! image boots into its own point in time, and it leaves nothing behind, also when it fails or is interrupted.

mod report;
mod steps;
mod tools;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::guard::ScratchDir;
use testkit::process;

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        // Whatever failed then failed because a signal ended it, or us waiting for it.
        Err(_) if process::check_interrupt().is_err() => {
            eprintln!("\ndemo: interrupted; everything it made has been removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\ndemo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    process::catch_interrupts()?;
    let tools = tools::Tools::locate()?;
    let scratch = ScratchDir::new("smc-demo")?;
    let place = scratch.path().to_path_buf();
    let outcome = steps::run(&tools, &scratch);
    drop(scratch);
    // Looked at also after a failure: a mess is the worse news of the two only if all else went well.
    let tidy = check_nothing_left(&place);
    let images = outcome?;
    tidy?;
    report::print(&images);
    println!(
        "\nLeft behind: nothing. Both images booted into their own point in time with every file intact."
    );
    Ok(())
}

fn check_nothing_left(place: &Path) -> Result<()> {
    ensure!(!place.exists(), "{} is still there", place.display());
    let place = place.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the list of mounts")?;
    ensure!(
        !mounts.contains(&*place),
        "something is still mounted below {place}"
    );
    // udev may open a device for a moment, and keep it from being detached for as long.
    let _ = process::wait_until(Duration::from_secs(5), || {
        attached_below(&place).is_ok_and(|all| all.is_empty())
    });
    let loops = attached_below(&place)?;
    ensure!(loops.is_empty(), "still attached to files in {place}: {loops:?}");
    Ok(())
}

fn attached_below(place: &str) -> Result<Vec<PathBuf>> {
    let mut attached = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list block devices")? {
        let path = entry.context("list block devices")?.path();
        if fs::read_to_string(path.join("loop/backing_file")).is_ok_and(|file| file.starts_with(place)) {
            attached.push(path);
        }
    }
    Ok(attached)
}
