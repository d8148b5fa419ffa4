//! A store with two images of one disk, and the server on it.

use anyhow::Result;
use boot::nbd_uri;
use smc_tests::{Bench, Disk, program};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::noise;
use testkit::process::{PATIENCE, Server, run, wait_until};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const CLUSTER: u64 = 64 * KIB;
pub const DISK: u64 = 64 * MIB;
/// Size of the ext4 filesystem at the disk's start.
pub const FILESYSTEM: u64 = 16 * MIB;
/// Where noise lies, which no compression makes smaller, and its length.
pub const NOISE: (u64, u64) = (20 * MIB, 8 * MIB);
/// Where text lies, which compresses well, and its length.
pub const TEXT: (u64, u64) = (32 * MIB, 6 * MIB);
/// Clusters by their offset that image 2 has changed: within the noise, to zero within the text, and one that was zero.
pub const CHANGED: [u64; 3] = [24 * MIB, 36 * MIB, 50 * MIB];

/// The store; `web01/1` and `web01/2` have one disk each, `vda`.
#[derive(Debug)]
pub struct Store {
    pub bench: Bench,
    /// The disk as image 1 and image 2 must have it.
    pub truth: [PathBuf; 2],
    /// Digests of both images, before anybody was let near them.
    digests: Vec<String>,
}

impl Store {
    /// Syncs a disk twice.
    pub fn new(name: &str) -> Result<Self> {
        let bench = Bench::new(name)?;
        let disk = bench.disk("disk.img", DISK)?;
        fill(&bench, &disk)?;
        let truth = [bench.dir.join("truth1.img"), bench.dir.join("truth2.img")];
        bench.sync(&[("vda", disk.path())])?;
        disk.copy_to(&truth[0])?;
        disk.write_at(CHANGED[0], &noise(512, 7))?;
        disk.write_at(CHANGED[1], &vec![0; 1 << 16])?;
        disk.write_at(CHANGED[2] + 512, &noise(1024, 8))?;
        bench.sync(&[("vda", disk.path())])?;
        disk.copy_to(&truth[1])?;
        let digests = digests(&bench)?;
        Ok(Self {
            bench,
            truth,
            digests,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.dir.join(name)
    }

    /// Path of the socket that [`serve`](Self::serve) serves on.
    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    /// URI of an export on the socket.
    pub fn uri(&self, export: &str) -> String {
        nbd_uri(&self.socket(), export)
    }

    /// `smc-image serve`, with nothing that says where.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("smc-image"));
        command
            .arg("--store")
            .arg(self.bench.store())
            .arg("serve")
            .args(args);
        command
    }

    /// Serves on the socket until the server is dropped.
    pub fn serve(&self, args: &[&str]) -> Result<Server> {
        let (socket, log) = (self.socket(), self.path("serve.log"));
        let mut command = self.command(args);
        command.arg("--socket").arg(&socket);
        Server::start_on_socket(&mut command, &socket, &log).map_err(Into::into)
    }

    /// Serves on a free port of 127.0.0.1 too, and tells which.
    pub fn serve_tcp(&self, args: &[&str]) -> Result<(Server, u16)> {
        let server = self.serve(&[&["--listen", "127.0.0.1:0"], args].concat())?;
        let mut port = None;
        wait_until(PATIENCE, || {
            port = port_of(&server.log());
            port.is_some()
        })?;
        Ok((server, port.expect("it was just found")))
    }

    /// Both images have the digests that they had at first, and every byte in the store is intact.
    pub fn assert_unchanged(&self) -> Result<()> {
        assert_eq!(
            digests(&self.bench)?,
            self.digests,
            "an image was changed by being used"
        );
        let verified = self.bench.image(&["verify"])?;
        assert!(verified.status.success(), "{}", smc_tests::stderr(&verified));
        Ok(())
    }
}

/// The port in the URIs that the server printed.
fn port_of(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once("://127.0.0.1:")?;
    rest.split_once('/')?.0.parse().ok()
}

fn digests(bench: &Bench) -> Result<Vec<String>> {
    let of = |image: &&str| Ok(bench.image_json(&["digest", image])?[0]["digest"].to_string());
    ["web01/1:vda", "web01/2:vda"].iter().map(of).collect()
}

fn fill(bench: &Bench, disk: &Disk) -> Result<()> {
    let files = bench.dir.join("files");
    fs::create_dir(&files)?;
    fs::write(files.join("hello"), "from the image\n")?;
    fs::write(files.join("noise"), noise(1 << 20, 3))?;
    let filesystem = bench.dir.sparse_file("ext4.img", FILESYSTEM)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(&files)
        .arg(&filesystem))?;
    disk.write_at(0, &fs::read(&filesystem)?)?;
    disk.write_noise(NOISE.0, usize::try_from(NOISE.1)?, 1)?;
    let text = "all work and no play\n".repeat(1 << 19);
    disk.write_at(TEXT.0, &text.as_bytes()[..usize::try_from(TEXT.1)?])?;
    // Clusters of zeros but for one byte.
    for i in 0..8 {
        disk.write_at(44 * MIB + i * 2 * CLUSTER + i, &[1])?;
    }
    Ok(())
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("scratch paths are text")
}
