//! Freezes filesystems for the tests, in a process of its own that can be killed: the test's own process would hang with them.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use freeze::{OnDisks, Watchdog, WatchdogProgram};
use hostdev::{Node, Root};
use serde_json::json;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// How long the net goes on after the test has died: its other processes die at the same time.
const NET: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
enum Task {
    /// Says what lies on disks.
    Find { disks: Vec<PathBuf> },
    /// Flushes what lies on disks.
    Flush { disks: Vec<PathBuf> },
    /// Freezes once, says `frozen`, holds it, thaws, and says what it was.
    Hold(Freeze),
    /// Freezes and thaws until it is killed; says `frozen` the first time.
    Again(Freeze),
    /// Thaws mount points when its standard input ends, for some seconds; after any byte, once.
    Net { mount_points: Vec<PathBuf> },
}

#[derive(Debug, clap::Args)]
struct Freeze {
    /// The program of the watchdog.
    #[arg(long)]
    smcd: PathBuf,
    #[arg(long)]
    lists: PathBuf,
    #[arg(long)]
    budget_ms: u64,
    #[arg(long)]
    hold_ms: u64,
    #[arg(required = true)]
    disks: Vec<PathBuf>,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Find { disks } => find(&disks),
        Task::Flush { disks } => {
            let flushed = on(&disks)?.flush();
            ensure!(flushed.failures.is_empty(), "{:?}", flushed.failures);
            Ok(())
        }
        Task::Hold(args) => hold(&args),
        Task::Again(args) => again(&args),
        Task::Net { mount_points } => net(&mount_points),
    }
}

fn on(disks: &[PathBuf]) -> Result<OnDisks> {
    let nodes = disks.iter().map(|disk| Node::at(&Root::system(), disk));
    let nodes = nodes.collect::<hostdev::Result<Vec<_>>>()?;
    Ok(freeze::on_disks(&nodes, freeze::Holders::Find)?)
}

fn find(disks: &[PathBuf]) -> Result<()> {
    let found = on(disks)?;
    let filesystem = |one: &freeze::Filesystem| json!({ "mount_point": one.mount_point, "fs_type": one.fs_type, "kind": format!("{:?}", one.kind) });
    let said = json!({
        "filesystems": found.filesystems.iter().map(filesystem).collect::<Vec<_>>(),
        "swaps": found.swaps,
        "unaccounted": found.unaccounted.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    println!("{said}");
    Ok(())
}

impl Freeze {
    fn begin(&self) -> Result<(OnDisks, Watchdog)> {
        let found = on(&self.disks)?;
        let program = WatchdogProgram {
            program: self.smcd.clone(),
            arguments: vec!["thaw-watchdog".into()],
            list_directory: self.lists.clone(),
        };
        let watchdog = Watchdog::start(&program, &found)?;
        ensure!(watchdog.is_locked(), "the watchdog's memory is not locked");
        Ok((found, watchdog))
    }

    fn budget(&self) -> Duration {
        Duration::from_millis(self.budget_ms)
    }

    fn hold(&self) {
        sleep(Duration::from_millis(self.hold_ms));
    }
}

/// Standard output is a pipe, which no filesystem holds up; the text is a constant.
fn say_frozen() {
    let _ = std::io::stdout().write_all(b"frozen\n");
}

fn hold(args: &Freeze) -> Result<()> {
    let (found, mut watchdog) = args.begin()?;
    found.flush();
    let frozen = found.freeze(&mut watchdog, args.budget())?;
    say_frozen();
    if frozen.is_holding() {
        args.hold();
    }
    let evidence = frozen.thaw();
    let said = json!({
        "doubt": evidence.doubt(),
        "held_ms": evidence.held.as_secs_f64() * 1e3,
        "is_over_budget": evidence.is_over_budget,
        "is_thawed_by_watchdog": evidence.is_thawed_by_watchdog,
        "has_own_cgroup": watchdog.has_own_cgroup(),
    });
    println!("{said}");
    Ok(())
}

fn again(args: &Freeze) -> Result<()> {
    let (found, mut watchdog) = args.begin()?;
    let mut is_first = true;
    loop {
        let frozen = found.freeze(&mut watchdog, args.budget())?;
        if std::mem::take(&mut is_first) {
            say_frozen();
        }
        args.hold();
        drop(frozen);
    }
}

fn net(mount_points: &[PathBuf]) -> Result<()> {
    // Before anything is frozen, as the program lies on a filesystem too.
    thaw_all(mount_points)?;
    println!("ready");
    let mut byte = [0];
    let is_asked = std::io::stdin().read(&mut byte).context("read standard input")? > 0;
    let rounds = if is_asked { 1 } else { NET.as_millis() / 50 };
    for _ in 0..rounds {
        thaw_all(mount_points)?;
        if !is_asked {
            sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn thaw_all(mount_points: &[PathBuf]) -> Result<()> {
    mount_points.iter().try_for_each(|mount_point| thaw(mount_point))
}

fn thaw(mount_point: &Path) -> Result<()> {
    let thawing = Command::new("fsfreeze").arg("-u").arg(mount_point).output();
    match thawing {
        Ok(_) => Ok(()),
        Err(error) => bail!("fsfreeze: {error}"),
    }
}
