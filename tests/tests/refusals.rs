//! Bad input: each gets a message that says what to do, its exit code, and changes nothing.

use anyhow::{Context, Result, ensure};
use smc_tests::{Bench, code, program, stderr};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use testkit::guard::{LoopDevice, Mount};
use testkit::process::{PATIENCE, run, wait_until};

const MIB: u64 = 1 << 20;

/// All files of a store with their content, to see that nothing changed.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            found.extend(snapshot(&entry.path()));
        } else {
            found.push((
                entry.path().display().to_string(),
                fs::read(entry.path()).expect("a file of the store can be read"),
            ));
        }
    }
    found.sort();
    found
}

/// Syncs once, then expects a sync with these disks to fail with `words` and to change nothing.
fn expect_refusal(bench: &Bench, disks: &[(&str, &Path)], more: &[&str], words: &[&str]) -> Result<()> {
    let before = snapshot(&bench.store());
    let output = bench.sync_with(disks, more)?;
    let message = stderr(&output);
    assert_eq!(code(&output), 1, "{message}");
    assert!(
        output.stdout.is_empty(),
        "nothing was done, so nothing is reported"
    );
    for word in words {
        assert!(message.contains(word), "\"{word}\" is missing in: {message}");
    }
    assert_eq!(snapshot(&bench.store()), before, "the store changed");
    Ok(())
}

#[test]
fn a_disk_that_cannot_be_one_is_refused() -> Result<()> {
    let bench = Bench::new("notadisk")?;
    let fifo = bench.dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    let empty = bench.dir.join("empty");
    fs::write(&empty, b"")?;
    let cases: [(&Path, &str); 5] = [
        (Path::new("/dev/no-such-disk"), "/dev/no-such-disk"),
        (Path::new("/dev/null"), "block device"),
        (bench.dir.path(), "block device"),
        (&fifo, "block device"),
        (&empty, "empty"),
    ];
    for (path, words) in cases {
        expect_refusal(&bench, &[("vda", path)], &[], &[words])?;
        assert!(!bench.store().exists(), "{} made a store", path.display());
    }
    Ok(())
}

#[test]
fn a_directory_that_is_no_store_is_refused() -> Result<()> {
    let bench = Bench::new("nostore")?;
    let disk = bench.disk("disk.img", MIB)?;
    fs::create_dir(bench.store())?;
    fs::write(bench.store().join("letter.txt"), "dear reader")?;
    expect_refusal(
        &bench,
        &[("vda", disk.path())],
        &[],
        &["not a store", "letter.txt", "empty directory"],
    )
}

#[test]
fn another_disk_is_refused() -> Result<()> {
    let bench = Bench::new("otherdisk")?;
    let (disk, other) = (bench.disk("disk.img", MIB)?, bench.disk("other.img", MIB)?);
    bench.sync(&[("vda", disk.path())])?;
    expect_refusal(&bench, &[("vdb", disk.path())], &[], &["vda", "vdb"])?;
    expect_refusal(
        &bench,
        &[("vda", disk.path()), ("vdb", other.path())],
        &[],
        &["vdb"],
    )?;
    expect_refusal(
        &bench,
        &[("vda", other.path())],
        &[],
        &["backing file", "--accept-changed-disk"],
    )?;
    let accepted = bench.sync_with(&[("vda", other.path())], &["--accept-changed-disk"])?;
    assert_eq!(code(&accepted), 0, "{}", stderr(&accepted));
    Ok(())
}

/// `smcd sync` of job web01 as on a machine with another `/etc/machine-id`.
fn sync_elsewhere(bench: &Bench, disk: &Path, more: &[&str]) -> Result<Output> {
    let id = bench
        .dir
        .file("machine-id", b"5eb9d1a07c1f4a51a3ac4f0c7b5d3a11\n")?;
    let script = "mount --bind \"$1\" /etc/machine-id && shift && exec \"$@\"";
    Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&id)
        .arg(program("smcd"))
        .args(["sync", "--job", "web01", "--store"])
        .arg(bench.store())
        .arg("--disk")
        .arg(format!("vda={}", disk.display()))
        .args(more)
        .output()
        .context("run smcd in a mount namespace")
}

#[test]
fn another_machine_takes_a_chain_over_only_when_told_to() -> Result<()> {
    let bench = Bench::new("machines")?;
    let disk = bench.disk("disk.img", MIB)?;
    bench.sync(&[("vda", disk.path())])?;
    let refused = sync_elsewhere(&bench, disk.path(), &[])?;
    assert_eq!(code(&refused), 1, "{}", stderr(&refused));
    let said = stderr(&refused);
    for words in ["belongs to job web01 of machine", "--take-over"] {
        ensure!(said.contains(words), "{said}");
    }
    let taken = sync_elsewhere(&bench, disk.path(), &["--take-over"])?;
    assert_eq!(code(&taken), 0, "{}", stderr(&taken));
    expect_refusal(
        &bench,
        &[("vda", disk.path())],
        &[],
        &["belongs to job web01", "--take-over"],
    )?;
    let back = bench.sync_with(&[("vda", disk.path())], &["--take-over"])?;
    assert_eq!(code(&back), 0, "{}", stderr(&back));
    Ok(())
}

#[test]
fn a_job_of_two_disks_is_not_synced_with_one() -> Result<()> {
    let bench = Bench::new("onedisk")?;
    let (a, b) = (bench.disk("a.img", MIB)?, bench.disk("b.img", MIB)?);
    bench.sync(&[("vda", a.path()), ("vdb", b.path())])?;
    expect_refusal(&bench, &[("vda", a.path())], &[], &["also has disk vdb"])
}

#[test]
fn the_same_disk_twice_is_refused() -> Result<()> {
    let bench = Bench::new("twice")?;
    let disk = bench.disk("disk.img", MIB)?;
    expect_refusal(
        &bench,
        &[("vda", disk.path()), ("vdb", disk.path())],
        &[],
        &["same disk"],
    )?;
    let other = bench.disk("other.img", MIB)?;
    expect_refusal(
        &bench,
        &[("vda", disk.path()), ("vda", other.path())],
        &[],
        &["both have the disk name vda"],
    )
}

#[test]
fn a_disk_that_shrank_is_refused() -> Result<()> {
    let bench = Bench::new("shrunk")?;
    let disk = bench.disk("disk.img", 4 * MIB)?;
    bench.sync(&[("vda", disk.path())])?;
    fs::File::options()
        .write(true)
        .open(&disk.backing)?
        .set_len(2 * MIB)?;
    run(Command::new("losetup").arg("-c").arg(disk.path()))?;
    expect_refusal(&bench, &[("vda", disk.path())], &[], &["shrank", "new job"])
}

#[test]
fn another_cluster_size_is_refused() -> Result<()> {
    let bench = Bench::new("clustersize")?;
    let disk = bench.disk("disk.img", MIB)?;
    bench.sync(&[("vda", disk.path())])?;
    expect_refusal(
        &bench,
        &[("vda", disk.path())],
        &["--cluster-size", "16KiB"],
        &["--cluster-size"],
    )
}

#[test]
fn a_store_on_the_imaged_disk_is_refused() -> Result<()> {
    let bench = Bench::new("ownstore")?;
    let disk = bench.disk("disk.img", 64 * MIB)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.path()))?;
    let mounted = Mount::new(
        disk.path(),
        &bench.dir.join("mnt"),
        "ext4",
        nix::mount::MsFlags::empty(),
    )?;
    let store = mounted.path().join("store");
    let output = Command::new(program("smcd"))
        .args(["sync", "--job", "web01", "--store"])
        .arg(&store)
        .arg("--disk")
        .arg(disk.path())
        .output()?;
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("image itself"), "{}", stderr(&output));
    assert!(!store.exists());
    mounted.unmount()?;
    Ok(())
}

#[test]
fn a_newer_version_is_refused_by_name() -> Result<()> {
    let bench = Bench::new("newer")?;
    let disk = bench.disk("disk.img", MIB)?;
    bench.sync(&[("vda", disk.path())])?;
    let path = bench.store().join("web01/images/000001.json");
    let text = fs::read_to_string(&path)?;
    let body = text[..text.rfind("blake3:").unwrap()]
        .replace("\"format\": 1", "\"format\": 2")
        .replace(
            "\"consistency\": \"crash\"",
            "\"consistency\": \"a class to come\"",
        );
    let mut sealed = body.clone().into_bytes();
    let seal = imagefmt_seal(&sealed);
    sealed.extend_from_slice(seal.as_bytes());
    fs::write(&path, sealed)?;
    expect_refusal(
        &bench,
        &[("vda", disk.path())],
        &[],
        &["version 2", "upgrade smc"],
    )?;
    let info = bench.image(&["info", "web01/1"])?;
    assert_eq!(code(&info), 1);
    assert!(stderr(&info).contains("version 2"), "{}", stderr(&info));
    Ok(())
}

/// The last line of a sealed file, as docs/format.md defines it.
fn imagefmt_seal(body: &[u8]) -> String {
    let digest: [u8; 32] = blake3::derive_key("smc 2026-11 sealed text", body);
    format!("blake3:{}\n", blake3::Hash::from_bytes(digest))
}

#[test]
fn a_damaged_layer_is_damage_and_says_which() -> Result<()> {
    let bench = Bench::new("damaged")?;
    let disk = bench.disk("disk.img", 4 * MIB)?;
    disk.write_noise(0, 4 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let layer = bench.store().join("web01/layers/00000001.layer");
    let file = fs::File::options().read(true).write(true).open(layer)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096 + 5 * 65536 + 17)?;
    file.write_all_at(&[byte[0] ^ 4], 4096 + 5 * 65536 + 17)?;
    let verified = bench.image(&["verify"])?;
    assert_eq!(code(&verified), 3);
    let said = String::from_utf8(verified.stdout)?;
    assert!(said.contains("web01/1") && said.contains("cluster 5"), "{said}");
    let target = bench.dir.join("out.img");
    let exported = bench.image(&["export", "web01/1", target.to_str().unwrap()])?;
    assert_eq!(code(&exported), 3, "{}", stderr(&exported));
    assert!(stderr(&exported).contains("cluster 5"), "{}", stderr(&exported));
    assert!(!target.exists(), "a damaged export was left as if it were good");
    Ok(())
}

#[test]
fn a_sync_on_top_of_damage_stores_anew_what_cannot_be_read() -> Result<()> {
    let bench = Bench::new("damagedparent")?;
    let disk = bench.disk("disk.img", 4 * MIB)?;
    disk.write_noise(0, 1 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let layer = bench.store().join("web01/layers/00000001.layer");
    let file = fs::File::options().write(true).open(layer)?;
    // The only leaf stands behind the 16 clusters: the sync finds it. A cluster is found by a verification.
    file.write_all_at(&[0xff; 8], 4096 + (1 << 20) + 100)?;
    let output = bench.sync_with(&[("vda", disk.path())], &[])?;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let warned = stderr(&output);
    assert!(
        warned.contains("64 clusters of vda") && warned.contains("web01/2"),
        "{warned}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["disks"][0]["repaired_clusters"], 64);
    assert_eq!(code(&bench.image(&["verify", "web01/2"])?), 0);

    let layer = fs::File::options()
        .write(true)
        .open(bench.store().join("web01/layers/00000002.layer"))?;
    layer.write_all_at(&[0xff; 8], 4096 + 3 * 65536 + 100)?;
    let device = disk.path().to_str().unwrap();
    let against = bench.image(&["verify", "web01/2", "--against", device])?;
    assert_eq!(code(&against), 3, "it vouches only for what it has read");
    let said = String::from_utf8(against.stdout)?;
    assert!(
        said.contains("web01/2:vda cluster 3") && said.contains("the rest is the same"),
        "{said}"
    );
    let output = bench.sync_with(&[("vda", disk.path())], &[])?;
    assert!(
        stderr(&output).contains("1 cluster of vda"),
        "{}",
        stderr(&output)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["disks"][0]["repaired_clusters"], 1);
    assert_eq!(
        code(&bench.image(&["verify", "web01/3", "--against", device])?),
        0
    );
    assert_eq!(
        code(&bench.image(&["verify"])?),
        3,
        "earlier images remain damaged"
    );
    let listed = String::from_utf8(bench.image(&["ls"])?.stdout)?;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(
        lines[2].contains("DAMAGED") && lines[3].contains("good"),
        "{listed}"
    );
    Ok(())
}

#[test]
fn a_newest_image_that_is_locked_is_no_reason_to_start_anew() -> Result<()> {
    let bench = Bench::new("locked")?;
    let disk = bench.disk("disk.img", MIB)?;
    bench.sync(&[("vda", disk.path())])?;
    let manifest = fs::File::open(bench.store().join("web01/images/000001.json"))?;
    manifest.lock()?;
    expect_refusal(&bench, &[("vda", disk.path())], &[], &["lock image web01/1"])?;
    drop(manifest);
    bench.sync(&[("vda", disk.path())])?;
    Ok(())
}

/// What the layers of web01 take in the store; nothing where there are none yet.
fn stored_bytes(bench: &Bench) -> u64 {
    let layers = fs::read_dir(bench.store().join("web01/layers"));
    let sizes = layers.into_iter().flatten().flatten();
    sizes
        .filter_map(|layer| layer.metadata().ok())
        .map(|layer| layer.len())
        .sum()
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

#[test]
fn a_first_sync_that_failed_binds_nobody() -> Result<()> {
    let bench = Bench::new("unbound")?;
    let disk = bench.disk("disk.img", 1024 * MIB)?;
    disk.write_noise(0, 256 << 20, 1)?;
    let mut child = Command::new(program("smcd"))
        .args(["sync", "--job", "web01", "--store"])
        .arg(bench.store())
        .arg("--disk")
        .arg(disk.path())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    wait_until(PATIENCE, || stored_bytes(&bench) > 4096 || has_ended(&mut child))?;
    ensure!(!has_ended(&mut child), "it was too fast to be killed");
    child.kill()?;
    child.wait()?;
    let output = bench.sync_with(&[("root", disk.path())], &["--cluster-size", "16KiB"])?;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    Ok(())
}

#[test]
fn a_store_with_the_imaged_disk_mounted_inside_is_refused() -> Result<()> {
    let bench = Bench::new("inside")?;
    let disk = bench.disk("disk.img", 64 * MIB)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.path()))?;
    let other = bench.disk("other.img", MIB)?;
    bench.sync(&[("vda", other.path())])?;
    let mounted = Mount::new(
        disk.path(),
        &bench.store().join("web02"),
        "ext4",
        nix::mount::MsFlags::empty(),
    )?;
    let output = Command::new(program("smcd"))
        .args(["sync", "--job", "web02", "--store"])
        .arg(bench.store())
        .arg("--disk")
        .arg(disk.path())
        .output()?;
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("another filesystem"),
        "{}",
        stderr(&output)
    );
    mounted.unmount()?;
    Ok(())
}

#[test]
fn an_image_is_safe_though_its_report_is_not_read() -> Result<()> {
    let bench = Bench::new("unread")?;
    let disk = bench.disk("disk.img", MIB)?;
    let full = fs::File::options().write(true).open("/dev/full")?;
    let output = Command::new(program("smcd"))
        .args(["sync", "--job", "web01", "--json", "--store"])
        .arg(bench.store())
        .arg("--disk")
        .arg(disk.path())
        .stdout(full)
        .output()?;
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("web01/1 is complete and safe"),
        "{}",
        stderr(&output)
    );
    assert_eq!(bench.image_json(&["ls"])?.len(), 1);
    Ok(())
}

#[test]
fn wrong_use_is_exit_code_2() -> Result<()> {
    for args in [
        &["sync"][..],
        &["--no-such"],
        &[
            "sync",
            "--store",
            "x",
            "--job",
            "j",
            "--disk",
            "a",
            "--compress-level",
            "20",
        ],
    ] {
        let output = Command::new(program("smcd"))
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        assert_eq!(code(&output), 2, "{args:?}");
    }
    Ok(())
}

#[test]
fn two_syncs_of_one_job_at_once_do_not_mix() -> Result<()> {
    let bench = Bench::new("atonce")?;
    let disk = bench.disk("disk.img", 256 * MIB)?;
    disk.write_noise(0, 64 << 20, 1)?;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.sync_with(&[("vda", disk.path())], &[])))
            .collect();
        runs.into_iter()
            .map(|run| run.join().unwrap())
            .collect::<Result<_>>()
    })?;
    let done = outcomes.iter().filter(|output| code(output) == 0).count();
    assert!(done >= 1);
    for refused in outcomes.iter().filter(|output| code(output) != 0) {
        assert_eq!(code(refused), 1);
        assert!(stderr(refused).contains("is being synced"), "{}", stderr(refused));
    }
    let listed = bench.image_json(&["ls"])?;
    assert_eq!(listed.len(), done);
    assert_eq!(code(&bench.image(&["verify"])?), 0);
    Ok(())
}

#[test]
fn a_full_disk_loses_nothing_but_the_new_image() -> Result<()> {
    let bench = Bench::new("full")?;
    let disk = bench.disk("disk.img", 64 * MIB)?;
    disk.write_noise(0, 4 << 20, 1)?;
    let backing = bench.dir.sparse_file("small.img", 32 * MIB)?;
    let small = LoopDevice::attach(&backing)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(small.path()))?;
    let mounted = Mount::new(small.path(), &bench.store(), "ext4", nix::mount::MsFlags::empty())?;
    bench.sync(&[("vda", disk.path())])?;
    let free = || nix::sys::statvfs::statvfs(mounted.path()).map(|stat| stat.blocks_free());
    let before = free()?;
    disk.write_noise(8 * MIB, 48 << 20, 2)?;
    let output = bench.sync_with(&[("vda", disk.path())], &[])?;
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    assert!(
        free()? + 64 >= before,
        "the layers of the image that was given up are still there"
    );
    assert_eq!(code(&bench.image(&["verify"])?), 0);
    disk.write_noise(8 * MIB, 48 << 20, 0)?;
    mounted.unmount()?;
    Ok(())
}

#[test]
fn a_killed_sync_leaves_the_store_as_it_was() -> Result<()> {
    let bench = Bench::new("killed")?;
    let disk = bench.disk("disk.img", 512 * MIB)?;
    disk.write_noise(0, 16 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    for round in 0..6u64 {
        disk.write_noise(16 * MIB, 128 << 20, round + 2)?;
        let mut child = Command::new(program("smcd"))
            .args(["sync", "--job", "web01", "--store"])
            .arg(bench.store())
            .arg("--disk")
            .arg(format!("vda={}", disk.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // From before its first byte to its commit.
        let before = stored_bytes(&bench);
        let enough = || stored_bytes(&bench) >= before + round * 28 * MIB;
        wait_until(PATIENCE, || enough() || has_ended(&mut child))?;
        child.kill()?;
        child.wait()?;
        assert_eq!(code(&bench.image(&["verify"])?), 0);
    }
    let report = bench.sync(&[("vda", disk.path())])?;
    let exported = bench.dir.join("exported.img");
    assert_eq!(
        code(&bench.image(&[
            "export",
            report["image"].as_str().unwrap(),
            exported.to_str().unwrap()
        ])?),
        0
    );
    smc_tests::assert_same_bytes(&exported, &disk.backing)
}
