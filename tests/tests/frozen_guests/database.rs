//! A server with a database that is written to images its own root disk; the images boot in other guests.

use super::{MIB, make_ext4};
use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use serde_json::Value;
use smc_tests::instant::postgres;
use smc_tests::{guest_payload, program};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::guard::{LoopDevice, Mount, ScratchDir};
use testkit::process::run;
use vm_tests::guest::BootOptions;
use vm_tests::system::{Release, Said, System, Until};

const SCRIPT: &str = include_str!("database.sh");
const PROGRAMS: [&str; 7] = [
    "initdb",
    "postgres",
    "psql",
    "pg_ctl",
    "pgbench",
    "pg_amcheck",
    "pg_checksums",
];

/// The files of this machine's PostgreSQL and the libraries that it needs, for a guest of the same release.
fn pack_postgres(file: &Path) -> Result<()> {
    let programs = postgres::programs()?;
    let home = programs.parent().context("no directory")?;
    let version = home.file_name().context("a version")?;
    let mut files: BTreeSet<PathBuf> = PROGRAMS.iter().map(|name| programs.join(name)).collect();
    for program in files.clone() {
        let libraries = run(Command::new("ldd").arg(&program))?;
        files.extend(
            libraries
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    files.insert(home.join("lib"));
    files.insert(Path::new("/usr/share/postgresql").join(version));
    files.insert("/usr/share/zoneinfo/UTC".into());
    let mut pack = Command::new("tar");
    pack.args([
        "--exclude=bitcode",
        "--exclude=llvmjit*",
        "--exclude=man",
        "--dereference",
    ]);
    run(pack.arg("-cPf").arg(file).args(files))?;
    Ok(())
}

fn boot(system: &System, phase: &str) -> Result<Said> {
    let options = BootOptions {
        memory_mib: 1024,
        processors: 2,
        timeout: Duration::from_secs(1200),
        ..BootOptions::default()
    };
    let said = system.boot(phase, Until::PowerOff, &options)?;
    println!("---- {phase}, {}:\n{}", system.kernel(), said.text());
    ensure!(said.has("SMC-DONE"), "{}", said.describe());
    Ok(said)
}

/// The images of class `filesystem` that are still in a store.
fn retained(said: &Said, store: &Path) -> Result<Vec<String>> {
    let lines = said.text().lines();
    let reports = lines.filter_map(|line| line.strip_prefix("SMC-SYNC "));
    let reports = reports
        .map(serde_json::from_str)
        .collect::<serde_json::Result<Vec<Value>>>()?;
    let frozen = reports
        .iter()
        .filter(|report| report["consistency"] == "filesystem");
    let labels = frozen.filter_map(|report| Some(report["image"].as_str()?.to_owned()));
    Ok(labels
        .filter(|label| smc_tests::has_image(store, label))
        .collect())
}

#[test]
#[ignore = "minutes: make test-guests-freeze"]
fn images_that_a_server_makes_of_its_own_root_boot_elsewhere_with_their_database() -> Result<()> {
    let scratch = ScratchDir::new("frozen-database")?;
    let payload = scratch.join("payload");
    let script = format!("SUMS='{}'\n{SCRIPT}", postgres::SUMS);
    guest_payload(&payload, &["smcd"], &script)?;
    pack_postgres(&payload.join("postgres.tar"))?;
    let store = scratch.sparse_file("store", 3072 * MIB)?;
    make_ext4(&store, &[], 3072)?;
    let mut server = System::new(&payload)?;
    server.attach(&store, "store");
    let said = boot(&server, "make")?;
    drop(server);

    let device = LoopDevice::attach(&store)?;
    let mount = Mount::new(device.path(), &scratch.join("images"), "ext4", MsFlags::empty())?;
    let images = retained(&said, mount.path())?;
    ensure!(images.len() >= 2, "too few instants: {images:?}");
    let mut transactions = 0;
    for image in &images {
        let root = scratch.join("root.img");
        let mut export = Command::new(program("smc-image"));
        export
            .arg("--store")
            .arg(mount.path())
            .args(["export", "--force", image])
            .arg(&root);
        run(&mut export)?;
        let said = boot(&System::with_root(&root, Release::Own, &payload)?, "check")?;
        let sums: BTreeSet<&str> = said.value("SMC-SUMS").context("no sums")?.split('|').collect();
        ensure!(
            sums.len() == 1 && !sums.contains(""),
            "{image}: half a transaction: {sums:?}"
        );
        let more: u64 = said.value("SMC-TRANSACTIONS").context("none")?.parse()?;
        ensure!(
            more > transactions,
            "{image}: {more} transactions after {transactions}"
        );
        transactions = more;
    }
    println!("{} images booted, all right", images.len());
    Ok(mount.unmount()?)
}
