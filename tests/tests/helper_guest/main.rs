//! LVM, RAID and LUKS inside images: `smc-image` opens them in a helper guest. This machine's kernel need not know them.

use anyhow::{Context, Result, ensure};
use smc_tests::{Bench, Disk, code, helper_root, program, stderr};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use testkit::guard::MountedFile;
use testkit::process::{run, wait_for};
use vm_tests::guest::BootOptions;
use vm_tests::kernel::cache_dir;
use vm_tests::system::{self, Release, System, Until};

const SCRIPT: &str = include_str!("guest.sh");
/// The id by which fstab names one of the filesystems.
const HIDDEN: &str = "11111111-2222-4333-8444-555555555555";
const MIB: u64 = 1 << 20;
const IMAGE: &str = "web01/1";
const DISKS: [&str; 5] = ["pva", "pvb", "mda", "mdb", "luks"];

/// A server whose files are in LVM, RAID and LUKS, as an image.
struct Server {
    /// The root of a system that has the programs: it is mounted in the bench's directory and goes before it.
    helper: MountedFile,
    bench: Bench,
    /// The digest of a file that lies on both disks of a volume group.
    sum: String,
}

impl Server {
    fn new(name: &str) -> Result<Self> {
        let bench = Bench::new(name)?;
        let disks: Vec<Disk> = DISKS
            .iter()
            .map(|serial| bench.disk(serial, 72 * MIB))
            .collect::<Result<_>>()?;
        let payload = bench.dir.join("payload");
        fs::create_dir(&payload)?;
        fs::write(payload.join("run"), system::script(&[SCRIPT]))?;
        for (name, mib) in [("", 100), ("srv", 8), ("mirror", 8), ("hidden", 8)] {
            let file = payload.join(format!("{name}.ext4"));
            let mut mkfs = Command::new("mkfs.ext4");
            mkfs.args(["-q", "-F", "-U", if name == "hidden" { HIDDEN } else { "random" }]);
            run(mkfs.arg(&file).arg(format!("{mib}M")))?;
        }
        let mut system = System::of(Release::Newer, Release::Own, &payload)?;
        system.without_systemd();
        for (serial, disk) in DISKS.iter().zip(&disks) {
            system.attach(&disk.backing, serial);
        }
        let options = BootOptions {
            memory_mib: 512,
            timeout: Duration::from_secs(400),
            ..BootOptions::default()
        };
        let said = system.boot("make", Until::Line("SMC-DONE"), &options)?;
        let sum = said
            .value("SMC-SUM")
            .context("the guest says no digest")?
            .to_owned();
        let devices: Vec<(&str, &Path)> = DISKS.iter().copied().zip(disks.iter().map(Disk::path)).collect();
        bench.sync(&devices)?;
        let helper = helper_root(&bench)?;
        fs::write(bench.dir.join("key"), "secret")?;
        fs::create_dir(bench.dir.join("mnt"))?;
        Ok(Self { bench, helper, sum })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("smc-image"));
        command.arg("--store").arg(self.bench.store()).args(args);
        command.arg("--helper-root").arg(self.helper.path());
        command.arg("--kernel").arg(cache_dir().join("kernel/vmlinuz"));
        command
    }

    fn image(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args).output()?)
    }

    fn done(&self, args: &[&str]) -> Result<String> {
        let output = self.image(args)?;
        ensure!(code(&output) == 0, "{args:?}: {}", stderr(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn key(&self) -> String {
        self.bench.dir.join("key").display().to_string()
    }

    fn mount_point(&self) -> (PathBuf, String) {
        let dir = self.bench.dir.join("mnt");
        let text = dir.display().to_string();
        (dir, text)
    }

    fn umount(&self) -> Result<()> {
        let unmounted = self.bench.image(&["umount", &self.mount_point().1])?;
        ensure!(code(&unmounted) == 0, "{}", stderr(&unmounted));
        Ok(())
    }

    fn digests(&self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for disk in DISKS {
            let output = self
                .bench
                .image(&["digest", &format!("{IMAGE}:{disk}"), "--recompute"])?;
            ensure!(code(&output) == 0, "{}", stderr(&output));
            all.extend(output.stdout);
        }
        Ok(all)
    }
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The processes that a process has started.
fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = children.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The server of a mount and its guest, by what mount printed.
fn helpers(said: &str) -> Result<(u32, u32)> {
    let said: serde_json::Value = serde_json::from_str(said)?;
    let server = said["server_pid"].as_u64().context("no process is named")?;
    let server = u32::try_from(server)?;
    let guests = children_of(server);
    ensure!(guests.len() == 1, "not one guest: {guests:?}");
    Ok((server, guests[0]))
}

fn kill(pid: u32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid.try_into()?);
    Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?)
}

/// All of the server's files, each in the place where the server has them, with what was in a journal only.
#[test]
fn the_files_of_a_server_on_lvm_raid_and_luks_are_seen() -> Result<()> {
    let server = Server::new("helper-guest")?;
    let key = server.key();
    let listed = server.done(&["--json", "ls-files", "-r", IMAGE, "--key-file", &key])?;
    for path in ["/last", "/srv/last", "/mirror/last", "/hidden/last"] {
        ensure!(
            listed.contains(&format!("\"path\":\"{path}\"")),
            "no {path} in {listed}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes: make vm-test"]
fn volumes_are_mounted_by_name_and_nothing_stays() -> Result<()> {
    let server = Server::new("helper-guest-long")?;
    let before = server.digests()?;
    a_key_that_is_missing_hides_only_what_it_opens(&server)?;
    a_volume_is_changed_in_its_overlay(&server)?;
    ensure!(server.digests()? == before, "the image changed");
    what_is_killed_leaves_nothing(&server)
}

fn a_key_that_is_missing_hides_only_what_it_opens(server: &Server) -> Result<()> {
    let out = server.bench.dir.join("out");
    fs::create_dir(&out)?;
    let to = out.display().to_string();
    let copied = server.image(&["cp", "web01/1:/large", &to])?;
    ensure!(code(&copied) == 0, "{}", stderr(&copied));
    ensure!(
        stderr(&copied).contains("needs a passphrase"),
        "{}",
        stderr(&copied)
    );
    let sum = Command::new("sha256sum").arg(out.join("large")).output()?;
    ensure!(
        String::from_utf8_lossy(&sum.stdout).starts_with(&server.sum),
        "the file differs"
    );
    // A wrong one is told.
    fs::write(server.bench.dir.join("wrong"), "wrong")?;
    let wrong = server.bench.dir.join("wrong").display().to_string();
    let refused = server.image(&["ls-files", "web01/1:luks", "--key-file", &wrong])?;
    ensure!(code(&refused) == 1, "{}", stderr(&refused));
    ensure!(
        stderr(&refused).contains("No key available"),
        "{}",
        stderr(&refused)
    );
    Ok(())
}

fn a_volume_is_changed_in_its_overlay(server: &Server) -> Result<()> {
    let (mnt, dir) = server.mount_point();
    let said = server.done(&["--json", "mount", "--rw", "web01/1:vg0-data", &dir])?;
    ensure!(
        text(&mnt.join("last"))? == "written last\n",
        "it is not what was written"
    );
    fs::write(mnt.join("new"), "new")?;
    let (serving, guest) = helpers(&said)?;
    server.umount()?;
    ensure!(!is_alive(serving) && !is_alive(guest), "a process stays");
    Ok(())
}

fn what_is_killed_leaves_nothing(server: &Server) -> Result<()> {
    let (mnt, dir) = server.mount_point();
    // The guest: what is mounted fails, and goes.
    let said = server.done(&["--json", "mount", "web01/1:mda", &dir])?;
    ensure!(
        text(&mnt.join("name"))? == "/dev/md0\n",
        "it is another filesystem"
    );
    let (serving, guest) = helpers(&said)?;
    kill(guest)?;
    server.umount()?;
    wait_for("the server to end", || !is_alive(serving));
    ensure!(!is_alive(guest), "the guest stays");
    // The server of the disks: the guest goes with it.
    let said = server.done(&["--json", "mount", "web01/1:vg0-data", &dir])?;
    let (serving, guest) = helpers(&said)?;
    kill(serving)?;
    wait_for("the guest to end", || !is_alive(guest));
    server.umount()?;
    // The mounter, while the guest starts.
    let mut mounting = server.command(&["mount", "web01/1:vg0-data", &dir]).spawn()?;
    let servers = || children_of(mounting.id());
    wait_for("the server to start its guest", || {
        servers().iter().any(|server| !children_of(*server).is_empty())
    });
    let serving = servers();
    let guests: Vec<u32> = serving.iter().flat_map(|server| children_of(*server)).collect();
    mounting.kill()?;
    mounting.wait()?;
    wait_for("all to end", || {
        serving.iter().chain(&guests).all(|pid| !is_alive(*pid))
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains("/run/smc/mounts/web01-1-"), "{mounts}");
    Ok(())
}
