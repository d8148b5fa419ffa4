//! Several processes on one store: who waits, who is refused, and what a killed one leaves behind.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smc_tests::{Bench, Disk, assert_same_bytes, code, program, stderr};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use testkit::process::{PATIENCE, Server, run, wait_until};

const MIB: u64 = 1 << 20;

/// A program that was stopped in the middle of its work, holding what it holds.
struct Stopped(Option<Child>);

impl Stopped {
    /// Starts `command` and stops it as soon as `there` says so.
    fn at(command: &mut Command, there: impl FnMut() -> bool) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let stopped = Self(Some(command.spawn()?));
        wait_until(PATIENCE, there)?;
        stopped.signal(Signal::SIGSTOP)?;
        Ok(stopped)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.0.as_ref().context("it has ended")?.id())
    }

    /// Lets it go on to its end.
    fn go_on(mut self) -> Result<Output> {
        self.signal(Signal::SIGCONT)?;
        let child = self.0.take().context("it has ended")?;
        Ok(child.wait_with_output()?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A store with one image of 8 MiB of noise, and its disk of 512 MiB, on which much has changed since.
fn two_states(name: &str) -> Result<(Bench, Disk, PathBuf)> {
    let bench = Bench::new(name)?;
    let disk = bench.disk("disk.img", 512 * MIB)?;
    disk.write_noise(0, 8 << 20, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let copy = bench.dir.join("copy1.img");
    disk.copy_to(&copy)?;
    disk.write_noise(4 * MIB, 300 << 20, 2)?;
    Ok((bench, disk, copy))
}

/// A sync that stopped once it had begun its layer: it is the job's writer.
fn stopped_sync(bench: &Bench, disk: &Disk) -> Result<Stopped> {
    stopped_sync_with(bench, disk, &["--job", "web01"])
}

fn stopped_sync_with(bench: &Bench, disk: &Disk, args: &[&str]) -> Result<Stopped> {
    let layers = bench.store().join("web01/layers");
    let count = || fs::read_dir(&layers).map_or(0, Iterator::count);
    let before = count();
    let mut command = Command::new(program("smcd"));
    command
        .args(["sync", "--json"])
        .args(args)
        .arg("--store")
        .arg(bench.store());
    command
        .arg("--disk")
        .arg(format!("vda={}", disk.path().display()));
    let stopped = Stopped::at(&mut command, || count() > before)?;
    ensure!(count() > before, "it has no layer");
    Ok(stopped)
}

/// An export of an image that stopped in its middle: the image is being read.
fn stopped_export(bench: &Bench, image: &str) -> Result<Stopped> {
    let target = bench.dir.join(format!("held-{}.img", image.replace('/', "-")));
    let part = target.with_extension("img.part");
    let mut command = Command::new(program("smc-image"));
    command
        .arg("--store")
        .arg(bench.store())
        .args(["export", image])
        .arg(&target);
    Stopped::at(&mut command, || part.exists())
}

fn expect(output: &Output, wanted: i32, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(code(output), wanted, "{message}");
    for word in words {
        assert!(message.contains(word), "\"{word}\" is missing in: {message}");
    }
}

fn ls(bench: &Bench) -> Result<Vec<u64>> {
    let objects = bench.image_json(&["ls"])?;
    Ok(objects
        .iter()
        .filter_map(|object| object["sequence"].as_u64())
        .collect())
}

#[test]
fn a_job_has_one_writer_who_is_named() -> Result<()> {
    let (bench, disk, _) = two_states("onewriter")?;
    let first = stopped_sync(&bench, &disk)?;
    let pid = format!("pid {}", first.pid()?);
    let second = bench.sync_with(&[("vda", disk.path())], &[])?;
    expect(&second, 1, &["being synced", "smcd", &pid]);
    let gc = bench.image(&["gc", "web01"])?;
    expect(&gc, 1, &["being synced", &pid]);
    let gc_of_all = bench.image(&["gc"])?;
    expect(&gc_of_all, 0, &["web01 is skipped", &pid]);
    let done = first.go_on()?;
    expect(&done, 0, &[]);
    assert_eq!(ls(&bench)?, [1, 2]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

/// Two jobs share a chain, and a message says which of them cannot go on.
#[test]
fn a_job_that_waits_for_the_chain_of_another_one_is_named() -> Result<()> {
    let (bench, disk, _) = two_states("sharedchain")?;
    let taking_up = ["--job", "web02", "--take-up", "web01"];
    let first = stopped_sync_with(&bench, &disk, &taking_up)?;
    let pid = format!("pid {}", first.pid()?);
    let device = format!("vda={}", disk.path().display());
    let second = Command::new(program("smcd"))
        .args(["sync", "--json", "--disk", &device, "--store"])
        .arg(bench.store())
        .args(taking_up)
        .output()?;
    expect(&second, 1, &["job web02", "chain", "being synced", &pid]);
    ensure!(
        !stderr(&second).contains("job web01 is being synced"),
        "{}",
        stderr(&second)
    );
    expect(&first.go_on()?, 0, &[]);
    Ok(())
}

#[test]
fn readers_do_not_wait_for_a_writer() -> Result<()> {
    let (bench, disk, copy) = two_states("readers")?;
    let writer = stopped_sync(&bench, &disk)?;
    // The writer stands still: whoever waited for it would wait for ever.
    expect(&bench.image(&["verify"])?, 0, &[]);
    let exported = bench.dir.join("exported.img");
    let target = exported.to_str().context("path")?;
    expect(&bench.image(&["export", "web01/1", target])?, 0, &[]);
    assert_same_bytes(&exported, &copy)?;
    let socket = bench.dir.join("nbd.sock");
    let server = bench.serve(&socket)?;
    let uri = boot::nbd_uri(&socket, "web01/1:vda");
    expect(&bench.image(&["digest", &uri])?, 0, &[]);
    drop(server);
    expect(&writer.go_on()?, 0, &[]);
    Ok(())
}

#[test]
fn an_image_is_deleted_while_its_job_is_synced() -> Result<()> {
    let (bench, disk, _) = two_states("rmsync")?;
    bench.sync(&[("vda", disk.path())])?;
    disk.write_noise(100 * MIB, 200 << 20, 3)?;
    let writer = stopped_sync(&bench, &disk)?;
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    assert_eq!(ls(&bench)?, [2]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    expect(&writer.go_on()?, 0, &[]);
    assert_eq!(ls(&bench)?, [2, 3]);
    let exported = bench.dir.join("exported.img");
    let target = exported.to_str().context("path")?;
    expect(&bench.image(&["export", "web01/3", target])?, 0, &[]);
    assert_same_bytes(&exported, &disk.backing)?;
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

#[test]
fn the_parent_of_a_running_sync_is_not_deleted() -> Result<()> {
    let (bench, disk, _) = two_states("rmparent")?;
    let writer = stopped_sync(&bench, &disk)?;
    let pid = format!("pid {}", writer.pid()?);
    expect(&bench.image(&["rm", "web01/1"])?, 1, &["in use", &pid]);
    expect(&writer.go_on()?, 0, &[]);
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

#[test]
fn an_image_that_is_read_stays_until_its_reader_goes() -> Result<()> {
    let (bench, disk, copy) = two_states("read")?;
    bench.sync(&[("vda", disk.path())])?;
    let reader = stopped_export(&bench, "web01/1")?;
    let pid = format!("pid {}", reader.pid()?);
    expect(
        &bench.image(&["rm", "web01/1"])?,
        1,
        &["in use", "smc-image", &pid],
    );
    assert_eq!(ls(&bench)?, [1, 2]);
    expect(&reader.go_on()?, 0, &[]);
    assert_same_bytes(&bench.dir.join("held-web01-1.img"), &copy)?;
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    assert_eq!(ls(&bench)?, [2]);
    Ok(())
}

#[test]
fn an_image_that_is_served_stays_until_it_is_not() -> Result<()> {
    let (bench, disk, _) = two_states("served")?;
    bench.sync(&[("vda", disk.path())])?;
    let socket = bench.dir.join("one.sock");
    let mut command = Command::new(program("smc-image"));
    command
        .arg("--store")
        .arg(bench.store())
        .args(["serve", "web01/1", "--socket"])
        .arg(&socket);
    let server = Server::start_on_socket(&mut command, &socket, Path::new(&socket.with_extension("log")))?;
    expect(
        &bench.image(&["rm", "web01/1"])?,
        1,
        &["in use", "smc-image", "pid"],
    );
    drop(server);
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    assert_eq!(ls(&bench)?, [2]);
    Ok(())
}

#[test]
fn an_image_that_is_mounted_stays_until_it_is_not() -> Result<()> {
    let bench = Bench::new("mounted")?;
    let disk = bench.disk("disk.img", 16 * MIB)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.path()))?;
    bench.sync(&[("vda", disk.path())])?;
    disk.write_noise(8 * MIB, 4096, 1)?;
    bench.sync(&[("vda", disk.path())])?;
    let dir = bench.dir.join("mnt");
    fs::create_dir(&dir)?;
    let path = dir.to_str().context("path")?;
    expect(&bench.image(&["mount", "web01/1", path])?, 0, &[]);
    let refused = bench.image(&["rm", "web01/1"]);
    // Before anything can fail: a mount that stays would keep the scratch directory.
    expect(&bench.image(&["umount", path])?, 0, &[]);
    expect(&refused?, 1, &["in use", "smc-image", "pid"]);
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    assert_eq!(ls(&bench)?, [2]);
    Ok(())
}

#[test]
fn a_killed_holder_holds_nothing() -> Result<()> {
    let (bench, disk, _) = two_states("killed")?;
    drop(stopped_sync(&bench, &disk)?);
    bench.sync(&[("vda", disk.path())])?;
    drop(stopped_export(&bench, "web01/1")?);
    let first = ls(&bench)?[0];
    expect(&bench.image(&["rm", &format!("web01/{first}")])?, 0, &[]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

#[test]
fn of_two_that_delete_one_image_one_does() -> Result<()> {
    let bench = Bench::new("tworm")?;
    let disk = bench.disk("disk.img", 16 * MIB)?;
    for round in 1..=8u64 {
        disk.write_noise(0, 8 << 20, round)?;
        bench.sync(&[("vda", disk.path())])?;
    }
    for doomed in 1..=7u64 {
        let image = format!("web01/{doomed}");
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| bench.image(&["rm", &image]));
            let one = bench.image(&["rm", &image]);
            (one, other.join().expect("it does not panic"))
        });
        let (one, other) = (one?, other?);
        let mut codes = [code(&one), code(&other)];
        codes.sort_unstable();
        assert_eq!(codes, [0, 1], "{}{}", stderr(&one), stderr(&other));
        expect(&bench.image(&["verify"])?, 0, &[]);
    }
    assert_eq!(ls(&bench)?, [8]);
    Ok(())
}

#[test]
fn a_pinned_image_stays_until_it_is_unpinned() -> Result<()> {
    let bench = Bench::new("pinned")?;
    let disk = bench.disk("disk.img", 16 * MIB)?;
    for round in 1..=3u64 {
        disk.write_noise(0, 1 << 20, round)?;
        bench.sync(&[("vda", disk.path())])?;
    }
    expect(&bench.image(&["pin", "web01/1", "--name", "boss"])?, 0, &[]);
    expect(&bench.image(&["rm", "web01/1"])?, 1, &["pinned", "boss", "unpin"]);
    let synced = bench.sync_with(&[("vda", disk.path())], &["--max-images", "2"])?;
    expect(&synced, 0, &["web01/1", "pinned"]);
    assert!(ls(&bench)?.contains(&1));
    expect(&bench.image(&["unpin", "web01/1"])?, 0, &[]);
    expect(&bench.image(&["rm", "web01/1"])?, 0, &[]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

#[test]
fn pin_and_rm_at_once_leave_no_pin_of_nothing() -> Result<()> {
    let bench = Bench::new("pinrm")?;
    let disk = bench.disk("disk.img", 16 * MIB)?;
    for round in 1..=8u64 {
        disk.write_noise(0, 1 << 20, round)?;
        bench.sync(&[("vda", disk.path())])?;
    }
    for image in 1..=7u64 {
        let label = format!("web01/{image}");
        let (pinned, removed) = std::thread::scope(|scope| {
            let pinned = scope.spawn(|| bench.image(&["pin", &label]));
            let removed = bench.image(&["rm", &label]);
            (pinned.join().expect("it does not panic"), removed)
        });
        let (pinned, removed) = (pinned?, removed?);
        let is_there = ls(&bench)?.contains(&image);
        assert_eq!(is_there, code(&removed) != 0, "{}", stderr(&removed));
        assert_eq!(is_there, code(&pinned) == 0, "{}", stderr(&pinned));
    }
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}

#[test]
fn the_oldest_in_use_goes_with_a_later_sync() -> Result<()> {
    let (bench, disk, _) = two_states("retention")?;
    let reader = stopped_export(&bench, "web01/1")?;
    let pid = format!("pid {}", reader.pid()?);
    let kept = bench.sync_with(&[("vda", disk.path())], &["--max-images", "1"])?;
    expect(&kept, 0, &["web01/1", "in use", &pid, "later sync"]);
    assert_eq!(ls(&bench)?, [1, 2]);
    drop(reader);
    let later = bench.sync_with(&[("vda", disk.path())], &["--max-images", "1"])?;
    expect(&later, 0, &[]);
    assert_eq!(ls(&bench)?, [3]);
    expect(&bench.image(&["verify"])?, 0, &[]);
    Ok(())
}
