//! `smc-store follow`: a disk is at the newest image of a source, whatever is killed, deleted or written behind its back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use serde_json::Value;
use smc_tests::target::{Source, Target};
use smc_tests::{Bench, Disk, assert_same_bytes, code, stderr};
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use testkit::guard::Mount;
use testkit::process::wait_for;
use testkit::program::Running;

const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

/// A target with images of a disk, and a disk that follows it.
struct Scene {
    bench: Bench,
    target: Target,
    source: Source,
    disk: Disk,
    copy: Disk,
}

impl Scene {
    fn new(name: &str, settings: &str) -> Result<Scene> {
        let target = Target::new(&format!("{name}-target"), settings)?;
        let source = target.enrol("web01", target.address)?;
        let bench = Bench::new(name)?;
        let disk = bench.disk("disk.img", 64 * MIB)?;
        let copy = bench.disk("copy.img", 64 * MIB + 512)?;
        disk.write_noise(5 * MIB, 8 << 20, 1)?;
        Ok(Scene {
            bench,
            target,
            source,
            disk,
            copy,
        })
    }

    fn command(&self, source: &str, device: &Path, more: &[&str]) -> Command {
        let mut command = self.target.command(&["follow", source]);
        command.arg(device).args(["--yes", "--json"]).args(more);
        command.arg("--restored").arg(self.bench.dir.join("restored.d"));
        command
    }

    fn follow(&self, more: &[&str]) -> Command {
        self.command("web01", self.copy.path(), more)
    }

    /// One round that succeeds.
    fn once(&self, more: &[&str]) -> Result<Value> {
        let output = self.follow(&[&["--once"], more].concat()).output()?;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Flips a bit in the stored bytes of what a disk holds at `offset`, which is noise.
    fn damage(&self, disk: &Disk, offset: u64) -> Result<()> {
        let mut block = [0; 4096];
        fs::File::open(&disk.backing)?.read_exact_at(&mut block, offset)?;
        for entry in fs::read_dir(self.target.store("web01").join("web/layers"))? {
            let path = entry?.path();
            let bytes = fs::read(&path)?;
            if let Some(at) = bytes.windows(block.len()).position(|window| window == block) {
                let layer = fs::File::options().write(true).open(&path)?;
                layer.write_all_at(&[bytes[at] ^ 1], at as u64)?;
                return Ok(());
            }
        }
        anyhow::bail!("no layer holds what is at byte {offset}")
    }

    /// Several disks, until somebody ends it or one round long.
    fn follow_disks(&self, disks: &[(&str, &Disk)], more: &[&str]) -> Command {
        let mut command = self.target.command(&["follow", "web01", "--yes", "--json"]);
        for (name, disk) in disks {
            let named = format!("{name}={}", disk.path().display());
            command.arg("--disk").arg(named);
        }
        command.args(more);
        command.arg("--restored").arg(self.bench.dir.join("restored.d"));
        command
    }

    fn sync(&self) -> Result<Value> {
        self.source.sync(&self.disk, &[])
    }

    /// The copy holds what the disk holds, and behind it nothing was written.
    fn check(&self) -> Result<()> {
        let copy = self.bench.dir.join("compared.img");
        self.copy.copy_to(&copy)?;
        fs::File::options().write(true).open(&copy)?.set_len(64 * MIB)?;
        assert_same_bytes(&copy, &self.disk.backing)
    }
}

fn written(round: &Value) -> u64 {
    round["data_bytes"].as_u64().unwrap() + round["zero_bytes"].as_u64().unwrap()
}

/// The next line that it complains with.
fn next_complaint(running: &mut Running) -> String {
    let stderr = running.0.stderr.as_mut().unwrap();
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stderr.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn next_round(running: &mut Running) -> Value {
    let lines = running.lines(1);
    assert!(!lines.is_empty(), "it has ended");
    serde_json::from_str(&lines[0]).unwrap()
}

#[test]
fn each_new_image_costs_its_difference() -> Result<()> {
    let scene = Scene::new("follow-life", "")?;
    // It waits for the first image.
    let mut running = Running::start(&mut scene.follow(&[]));
    scene.sync()?;
    let first = next_round(&mut running);
    assert_eq!(first["image"], "web/1:vda");
    assert_eq!(first["compared_bytes"], 64 * MIB);
    assert_eq!(written(&first), 8 * MIB, "zeros were there already");
    scene.check()?;
    scene.disk.write_noise(40 * MIB, 1 << 20, 2)?;
    scene.disk.write_at(5 * MIB, &[0; 65536])?;
    scene.sync()?;
    let second = next_round(&mut running);
    assert_eq!(second["believed"], "web/1:vda", "{second}");
    assert_eq!(
        (&second["compared_bytes"], written(&second)),
        (&0.into(), 17 * CLUSTER)
    );
    assert_eq!(second["read_back_bytes"], 17 * CLUSTER);
    assert_eq!(second["compared"], first["compared"], "the rest was read then");
    scene.check()?;
    let (ended, said) = running.signal("TERM");
    assert_eq!(ended, Some(0), "{said}");
    // What is written down is enough after that.
    scene.disk.write_noise(50 * MIB, 65536, 3)?;
    scene.sync()?;
    let third = scene.once(&[])?;
    assert_eq!(
        (third["believed"].as_str(), written(&third)),
        (Some("web/2:vda"), CLUSTER)
    );
    scene.check()?;
    let again = scene.once(&[])?;
    assert_eq!(
        (again["believed"].as_str(), written(&again)),
        (Some("web/3:vda"), 0)
    );
    let compared = scene.once(&["--compare"])?;
    assert_eq!(
        (&compared["compared_bytes"], written(&compared)),
        (&(64 * MIB).into(), 0)
    );
    Ok(())
}

#[test]
fn what_was_written_behind_it_is_found() -> Result<()> {
    let scene = Scene::new("follow-behind", "")?;
    scene.sync()?;
    let mut running = Running::start(&mut scene.follow(&[]));
    next_round(&mut running);
    // By a program that does not ask whether somebody uses the disk.
    scene.copy.write_at(20 * MIB + 3, b"not of the image")?;
    scene.disk.write_noise(30 * MIB, 65536, 2)?;
    scene.sync()?;
    let round = next_round(&mut running);
    assert!(
        round["compared_because"].as_str().unwrap().contains("written to"),
        "{round}"
    );
    assert_eq!(written(&round), 2 * CLUSTER);
    scene.check()?;
    assert_eq!(running.signal("INT").0, Some(0));
    // The same of a file, while nothing follows.
    let file = scene.bench.dir.sparse_file("copy.raw", 64 * MIB)?;
    let once = || -> Result<Value> {
        let output = scene.command("web01/web", &file, &["--once"]).output()?;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    once()?;
    // Who else wrote to a file while it was written cannot be seen: it is compared once more.
    let round = once()?;
    assert!(
        round["compared_because"]
            .as_str()
            .unwrap()
            .contains("could not be seen"),
        "{round}"
    );
    assert_eq!(once()?["believed"], "web/2:vda");
    fs::File::options()
        .write(true)
        .open(&file)?
        .write_all_at(b"x", 7)?;
    let round = once()?;
    assert!(round["compared_because"].is_string(), "{round}");
    assert_eq!(written(&round), CLUSTER);
    assert_same_bytes(&file, &scene.disk.backing)
}

/// Killed while the third image is written: the disk is between two, and the next one completes it.
#[test]
fn a_follower_that_was_killed_is_followed_by_another() -> Result<()> {
    let scene = Scene::new("follow-killed", "")?;
    scene.sync()?;
    scene.once(&[])?;
    scene.disk.write_noise(2 * MIB, 65536, 2)?;
    scene.sync()?;
    assert_eq!(written(&scene.once(&[])?), CLUSTER);
    scene.disk.write_noise(0, 48 << 20, 3)?;
    scene.sync()?;
    let (copy, disk) = (
        fs::File::open(&scene.copy.backing)?,
        fs::File::open(&scene.disk.backing)?,
    );
    let mut cut_off = 0;
    for at in [3 * MIB, 30 * MIB] {
        let mut running = Running::start(&mut scene.follow(&["--once"]));
        let mut both = [[0; 512]; 2];
        wait_for("it has written so far", || {
            copy.read_exact_at(&mut both[0], at).unwrap();
            disk.read_exact_at(&mut both[1], at).unwrap();
            both[0] == both[1] || running.0.try_wait().unwrap().is_some()
        });
        cut_off += u32::from(running.signal("KILL").0.is_none());
    }
    let round = scene.once(&[])?;
    if cut_off > 0 {
        assert!(
            round["compared_because"].is_string() || written(&round) == 0,
            "{round}"
        );
    }
    scene.check()?;
    assert_eq!(scene.once(&[])?["believed"], "web/3:vda");
    Ok(())
}

#[test]
fn an_image_that_retention_has_deleted_is_not_needed() -> Result<()> {
    let scene = Scene::new("follow-retention", "max_images = 1\nkeep_within = '0s'\n")?;
    scene.sync()?;
    scene.once(&[])?;
    for seed in 2..5 {
        scene.disk.write_noise(seed * 10 * MIB, 65536, seed)?;
        scene.sync()?;
    }
    let gone = scene.source.image(&["info", "web/1"])?;
    assert_eq!(code(&gone), 1, "it was to be deleted");
    let round = scene.once(&[])?;
    assert!(
        round["compared_because"]
            .as_str()
            .unwrap()
            .contains("not in the store"),
        "{round}"
    );
    assert_eq!(written(&round), 3 * CLUSTER);
    scene.check()?;
    // One that follows has the image that it needs next.
    let mut running = Running::start(&mut scene.follow(&[]));
    next_round(&mut running);
    scene.disk.write_noise(60 * MIB, 65536, 9)?;
    scene.sync()?;
    let round = next_round(&mut running);
    assert_eq!(
        (round["believed"].as_str(), written(&round)),
        (Some("web/4:vda"), CLUSTER)
    );
    scene.check()
}

#[test]
fn wrong_arguments_and_disks_that_are_used_are_refused() -> Result<()> {
    let scene = Scene::new("follow-refused", "")?;
    let fails = |command: &mut Command, expected: i32, words: &str| {
        let output = command.output().unwrap();
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    };
    let copy = scene.copy.path();
    fails(&mut scene.follow(&["--once"]), 1, "no image of web01 yet");
    fails(
        &mut scene.command("web02", copy, &["--once"]),
        1,
        "no source web02",
    );
    fails(
        &mut scene.command("../web01", copy, &["--once"]),
        2,
        "source name",
    );
    fails(
        &mut scene.follow(&["--disk", "vda=/dev/null"]),
        2,
        "cannot be used with",
    );
    scene.sync()?;
    fails(
        &mut scene.command("web01/db", copy, &["--once"]),
        1,
        "no image of web01/db yet",
    );
    fails(
        &mut scene.command("web01", &scene.bench.dir.join("none"), &["--once"]),
        1,
        "none",
    );
    let inside = scene.target.store("web01").join("store.json");
    fails(&mut scene.command("web01", &inside, &["--once"]), 1, "too small");
    let mount = Mount::format("ext4", copy, &scene.bench.dir.join("mnt"))?;
    fails(&mut scene.follow(&["--once"]), 1, "mounted on");
    mount.unmount()?;
    Ok(())
}

#[test]
fn several_disks_follow_together() -> Result<()> {
    let scene = Scene::new("follow-several", "")?;
    let second = scene.bench.disk("second.img", 8 * MIB)?;
    second.write_noise(MIB, 1 << 20, 7)?;
    let named = format!("vdb={}", second.path().display());
    scene.source.sync(&scene.disk, &["--disk", &named])?;
    let output = scene.follow(&["--once"]).output()?;
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("--disk vda="), "{}", stderr(&output));
    let copy_of_second = scene.bench.disk("second-copy.img", 8 * MIB)?;
    let disks = [("vda", &scene.copy), ("vdb", &copy_of_second)];
    let mut command = scene.follow_disks(&disks, &["--once"]);
    let output = command.output()?;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(String::from_utf8(output.stdout)?.lines().count(), 2);
    scene.check()?;
    assert_same_bytes(&copy_of_second.backing, &second.backing)
}

/// All that is to be written is read before: a damaged image changes nothing.
#[test]
fn a_damaged_image_is_left_out_and_costs_nothing() -> Result<()> {
    let scene = Scene::new("follow-damaged", "")?;
    scene.sync()?;
    scene.once(&[])?;
    let before = fs::read(&scene.copy.backing)?;
    scene.disk.write_noise(2 * MIB, 65536, 2)?;
    scene.disk.write_noise(40 * MIB, 65536, 3)?;
    scene.sync()?;
    scene.damage(&scene.disk, 40 * MIB)?;
    let output = scene.follow(&["--once"]).output()?;
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("nothing was written"),
        "{}",
        stderr(&output)
    );
    assert!(fs::read(&scene.copy.backing)? == before);
    // One that waits for the next image says so, and what to do.
    let mut running = Running::start(&mut scene.follow(&[]));
    let said = next_complaint(&mut running);
    assert!(said.contains("image web/2 is left out"), "{said}");
    assert!(next_complaint(&mut running).contains("smc-image verify"));
    assert_eq!(running.signal("TERM").0, Some(0), "the disk is at image 1");
    assert!(fs::read(&scene.copy.backing)? == before);
    // The next image is whole: the damaged cluster is sent anew.
    scene.disk.write_noise(40 * MIB, 65536, 4)?;
    scene.sync()?;
    let round = scene.once(&[])?;
    assert_eq!(
        (round["believed"].as_str(), written(&round)),
        (Some("web/1:vda"), 2 * CLUSTER)
    );
    scene.check()
}

#[test]
fn a_disk_between_two_images_is_no_success() -> Result<()> {
    let scene = Scene::new("follow-between", "")?;
    scene.sync()?;
    scene.once(&[])?;
    scene.disk.write_noise(2 * MIB, 65536, 2)?;
    scene.sync()?;
    scene.damage(&scene.disk, 2 * MIB)?;
    // As if somebody had killed the one that wrote image 2.
    let records = fs::read_dir(scene.bench.dir.join("restored.d"))?;
    let records = records.map(|entry| entry.unwrap().path());
    let record = records.filter(|path| path.extension().is_some_and(|end| end == "json"));
    for path in record {
        let mut text: Value = serde_json::from_slice(&fs::read(&path)?)?;
        text["state"] = serde_json::json!({"between": {
            "from": "web/1:vda", "to": "web/2:vda", "since": "2026-01-01T00:00:00Z"
        }});
        fs::write(&path, text.to_string())?;
    }
    let mut running = Running::start(&mut scene.follow(&[]));
    next_complaint(&mut running);
    assert!(next_complaint(&mut running).contains("between two images"));
    let (ended, said) = running.signal("TERM");
    assert_eq!(ended, Some(130), "{said}");
    assert!(said.contains("between two images, do not use"), "{said}");
    Ok(())
}

#[test]
fn disks_at_different_images_are_no_success() -> Result<()> {
    let scene = Scene::new("follow-apart", "")?;
    let second = scene.bench.disk("second.img", 8 * MIB)?;
    second.write_noise(MIB, 1 << 20, 7)?;
    let named = format!("vdb={}", second.path().display());
    let sync = || scene.source.sync(&scene.disk, &["--disk", &named]);
    let copy_of_second = scene.bench.disk("second-copy.img", 8 * MIB)?;
    let disks = [("vda", &scene.copy), ("vdb", &copy_of_second)];
    sync()?;
    assert!(scene.follow_disks(&disks, &["--once"]).output()?.status.success());
    // The second disk's data is damaged: the first one is not written either.
    scene.disk.write_noise(2 * MIB, 65536, 2)?;
    second.write_noise(4 * MIB, 65536, 3)?;
    sync()?;
    scene.damage(&second, 4 * MIB)?;
    let before = fs::read(&scene.copy.backing)?;
    let output = scene.follow_disks(&disks, &["--once"]).output()?;
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(fs::read(&scene.copy.backing)? == before);
    // Somebody brings one of them there all the same.
    assert!(
        scene
            .follow_disks(&disks[..1], &["--once"])
            .output()?
            .status
            .success()
    );
    let mut running = Running::start(&mut scene.follow_disks(&disks, &[]));
    next_complaint(&mut running);
    let (ended, said) = running.signal("TERM");
    assert_eq!(ended, Some(130), "{said}");
    assert!(
        said.contains("holds web/2") && said.contains("holds web/1"),
        "{said}"
    );
    Ok(())
}

/// An image that cannot be read for a while is not skipped.
#[test]
fn an_image_that_cannot_be_read_now_is_tried_again() -> Result<()> {
    let scene = Scene::new("follow-again", "")?;
    scene.sync()?;
    let manifest = fs::File::open(scene.target.store("web01").join("web/images/000001.json"))?;
    let lock = blockio::LockedFile::try_lock(manifest).map_err(|(_, error)| error)?;
    let mut running = Running::start(&mut scene.follow(&[]));
    let said = next_complaint(&mut running);
    assert!(said.contains("it is tried again"), "{said}");
    drop(lock);
    assert_eq!(next_round(&mut running)["image"], "web/1:vda");
    scene.check()?;
    assert_eq!(running.signal("TERM").0, Some(0));
    Ok(())
}

/// Under the name of a file that is followed there is another one: nothing is written that nobody would find.
#[test]
fn a_file_that_was_replaced_is_noticed() -> Result<()> {
    let scene = Scene::new("follow-replaced", "")?;
    scene.sync()?;
    let file = scene.bench.dir.sparse_file("copy.raw", 64 * MIB)?;
    let mut running = Running::start(&mut scene.command("web01", &file, &[]));
    next_round(&mut running);
    let moved = scene.bench.dir.join("moved.raw");
    fs::rename(&file, &moved)?;
    scene.bench.dir.sparse_file("copy.raw", 64 * MIB)?;
    let before = fs::read(&moved)?;
    scene.disk.write_noise(2 * MIB, 65536, 2)?;
    scene.sync()?;
    assert!(next_complaint(&mut running).contains("renamed or replaced"));
    wait_for("it has ended", || running.0.try_wait().unwrap().is_some());
    assert_eq!(running.0.wait()?.code(), Some(1));
    assert!(fs::read(&moved)? == before);
    Ok(())
}
