//! A store made for one test, and the tool run on it.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

pub mod mounts;

use imagefmt::{ClusterEncoder, ClusterSize, Consistency, Digest, DiskIdentity, DiskMeta, Manifest, Method};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::guard::ScratchDir;
pub use testkit::noise;
use testkit::program::{Run, Running, nbdsh, run, tool};

/// The tool under test.
pub const SMC_IMAGE: &str = env!("CARGO_BIN_EXE_smc-image");

/// Bytes of a cluster where a test does not ask for another size.
pub const CLUSTER: usize = 64 << 10;

pub const MIB: usize = 1 << 20;

/// A scratch directory with a store in it; both go when it is dropped.
pub struct Fixture {
    dir: ScratchDir,
}

impl Fixture {
    /// An empty store.
    pub fn new() -> Self {
        let dir = ScratchDir::new("smc-image").unwrap();
        imagefmt::Store::open_or_create(&dir.join("store"), false).unwrap();
        Self { dir }
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.join("store")
    }

    /// The socket of [`serving`].
    pub fn socket(&self) -> PathBuf {
        self.join("nbd.sock")
    }

    /// A path in the scratch directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file into the scratch directory.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a file of zeros in the scratch directory that takes no space.
    pub fn sparse_file(&self, name: &str, len: usize) -> PathBuf {
        self.dir.sparse_file(name, len as u64).unwrap()
    }

    /// Whether something in the scratch directory has a name that starts with `prefix`.
    pub fn has_entry(&self, prefix: &str) -> bool {
        has_entry(self.dir.path(), prefix)
    }

    /// Syncs `job` with these disks, of 64 KiB clusters.
    pub fn sync(&self, job: &str, disks: &[(&str, &[u8])]) -> Manifest {
        self.sync_with(job, ClusterSize::K64, disks)
    }

    /// Syncs `job`: full the first time, then only what differs.
    pub fn sync_with(&self, job: &str, cluster_size: ClusterSize, disks: &[(&str, &[u8])]) -> Manifest {
        self.sync_sectors(job, cluster_size, 512, disks)
    }

    /// Syncs `job` with disks whose logical blocks have `sector` bytes.
    pub fn sync_sectors(
        &self,
        job: &str,
        cluster_size: ClusterSize,
        sector: u32,
        disks: &[(&str, &[u8])],
    ) -> Manifest {
        let store = imagefmt::Store::open(&self.store()).unwrap();
        let image = store.begin(job, Some(cluster_size), &names(disks)).unwrap();
        self.write(image, cluster_size, sector, disks)
    }

    /// Syncs `job`, which continues the chain of the job `from`, with these disks, of 64 KiB clusters.
    pub fn take_up(&self, job: &str, from: &str, disks: &[(&str, &[u8])]) -> Manifest {
        let store = imagefmt::Store::open(&self.store()).unwrap();
        let image = store.take_up(job, from, &names(disks)).unwrap();
        self.write(image, ClusterSize::K64, 512, disks)
    }

    /// Leaves of the chain of `job` what other jobs made in it, and puts two images of a job of this name into a
    /// chain elsewhere, the second of them with these disks.
    pub fn namesake(&self, job: &str, disks: &[(&str, &[u8])]) {
        self.run(&["rm", &format!("{job}/1")]).ok();
        let other = Self::new();
        other.sync(job, disks);
        other.sync(job, disks);
        let (from, to) = (other.store().join(job), self.store().join("elsewhere"));
        tool("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
    }

    fn write(
        &self,
        mut image: imagefmt::ImageWriter,
        cluster_size: ClusterSize,
        sector: u32,
        disks: &[(&str, &[u8])],
    ) -> Manifest {
        for (name, content) in disks {
            let meta = DiskMeta {
                name: (*name).to_owned(),
                size_bytes: content.len() as u64,
                logical_block_size: sector,
                identity: DiskIdentity {
                    serial: Some(format!("serial-{name}")),
                    ..DiskIdentity::default()
                },
            };
            write_disk(&mut image, meta, content, cluster_size).unwrap();
        }
        image.commit(Consistency::Crash, "made by a test").unwrap()
    }

    /// The tool, on this store.
    pub fn command(&self) -> Command {
        let mut command = Command::new(SMC_IMAGE);
        command.env_remove("SMC_STORE").arg("--store").arg(self.store());
        command.env("SMC_RESTORED", self.join("restored"));
        command
    }

    /// Runs the tool on this store.
    pub fn run(&self, args: &[&str]) -> Run {
        run(self.command().args(args))
    }

    /// Flips one bit of a file of the store, in the last byte of the first place that holds `pattern`.
    pub fn damage(&self, file: &Path, pattern: &[u8]) {
        let mut bytes = fs::read(file).unwrap();
        let at = find(&bytes, pattern).expect("what is to be damaged");
        bytes[at + pattern.len() - 1] ^= 1;
        fs::write(file, bytes).unwrap();
    }

    /// Flips a bit in the stored bytes of the cluster that holds `plain`, in whichever layer of `chain`.
    pub fn damage_cluster(&self, chain: &str, plain: &[u8]) {
        let block = &plain[..4096];
        let layers = fs::read_dir(self.store().join(chain).join("layers")).unwrap();
        let file = layers
            .map(|entry| entry.unwrap().path())
            .find(|path| find(&fs::read(path).unwrap(), block).is_some());
        self.damage(&file.expect("a layer that holds the cluster"), block);
    }

    /// A layer file of a chain.
    pub fn layer(&self, chain: &str, id: u32) -> PathBuf {
        self.store().join(format!("{chain}/layers/{id:08x}.layer"))
    }

    /// The manifest's file of an image.
    pub fn manifest(&self, chain: &str, sequence: u64) -> PathBuf {
        self.store().join(format!("{chain}/images/{sequence:06}.json"))
    }
}

fn names(disks: &[(&str, &[u8])]) -> Vec<String> {
    disks.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn write_disk(
    image: &mut imagefmt::ImageWriter,
    meta: DiskMeta,
    content: &[u8],
    cluster_size: ClusterSize,
) -> imagefmt::Result<()> {
    let disk = image.disk(meta)?;
    let base = image.base(disk).cloned();
    let method = if base.is_some() {
        Method::Scan
    } else {
        Method::Full
    };
    image.begin_pass(disk, method, "")?;
    let mut encoder = ClusterEncoder::new(1);
    for (index, plain) in (0..).zip(content.chunks(cluster_size.byte_len())) {
        let digest = encoder.digest(plain);
        let before = match &base {
            Some(base) => base.digests(index..index + 1)?[0],
            None => Some(Digest::NULL),
        };
        if before != Some(digest) {
            image.push(disk, &encoder.encode(index, digest, plain))?;
        }
    }
    image.end_pass(disk, content.len() as u64)
}

/// Where `pattern` begins in `bytes`.
pub fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Whether a shared reader holds the file's lock: one that an exclusive lock must wait for.
pub fn is_locked(file: &Path) -> bool {
    let tried = run(Command::new("flock")
        .args(["--nonblock", "--exclusive"])
        .arg(file)
        .arg("true"));
    assert!(tried.stderr.is_empty(), "{tried:?}");
    tried.code != Some(0)
}

/// Whether `dir` has an entry whose name starts with `prefix`.
pub fn has_entry(dir: &Path, prefix: &str) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
    })
}

/// A disk of data, zeros and text: `len` bytes, of which the middle third is zero.
pub fn disk_content(len: usize, seed: u64) -> Vec<u8> {
    let mut content = noise(len, seed);
    content[len / 3..2 * len / 3].fill(0);
    let text = len * 5 / 6..len;
    content[text].fill(b'a');
    content
}

/// A disk with data at its beginning, in its middle and in its short last cluster.
pub fn disk(seed: u64) -> Vec<u8> {
    let mut disk = vec![0; 40 * CLUSTER + 512];
    disk[..2 * CLUSTER].copy_from_slice(&noise(2 * CLUSTER, seed));
    disk[20 * CLUSTER..23 * CLUSTER].copy_from_slice(&noise(3 * CLUSTER, seed + 1));
    disk[40 * CLUSTER..].copy_from_slice(&noise(512, seed + 2));
    disk
}

/// A server on a Unix socket in the fixture's directory, and the first `lines` lines that it wrote.
pub fn serving(fixture: &Fixture, args: &[&str], lines: usize) -> (Running, Vec<String>) {
    let mut command = fixture.command();
    command
        .arg("serve")
        .args(args)
        .arg("--socket")
        .arg(fixture.socket());
    let mut running = Running::start(&mut command);
    let lines = running.lines(lines);
    (running, lines)
}

/// The URI of an export of that server.
pub fn uri(fixture: &Fixture, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", fixture.socket().display())
}

/// Runs lines of libnbd's shell, connected to `uri`, and returns what they printed.
pub fn script(uri: &str, lines: &str) -> String {
    run(nbdsh().args(["--uri", uri, "-c", lines])).ok()
}
