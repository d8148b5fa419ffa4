//! A file as the disk, a real store, and a watchdog.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of test functions")]

use blockio::Device;
use changetrack::{Error, Pass, Pipeline, PipelineOptions, Plan, Sink};
use imagefmt::{
    Base, ClusterSize, ClusterUpdate, Codec, Consistency, Digest, DiskIdentity, DiskMeta, Geometry,
    ImageWriter, Manifest, Store,
};
use std::fs;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use testkit::guard::ScratchDir;
pub use testkit::noise;

pub const MIB: usize = 1 << 20;

/// The name of the job, and of its one disk.
pub const JOB: &str = "web01";
const DISK: &str = "vda";

/// What a test does, with all that it leaves behind when it hangs, ends after this time.
const TIMEOUT: Duration = Duration::from_secs(240);

/// Runs a test in a thread of this name; one that hangs fails instead.
///
/// The threads of a scan bear the name too, because a thread has that of its creator until it is given one.
pub fn watched(name: &str, test: impl FnOnce() + Send + 'static) {
    let (running, ended) = channel::<()>();
    let body = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _running = running;
        test();
    });
    let body = body.unwrap();
    assert_eq!(
        ended.recv_timeout(TIMEOUT),
        Err(RecvTimeoutError::Disconnected),
        "{name} hangs"
    );
    if let Err(panic) = body.join() {
        resume_unwind(panic);
    }
}

/// Options that say all.
pub fn options(compress_level: i32, workers: usize, depth: usize, buffers: usize) -> PipelineOptions {
    PipelineOptions {
        compress_level,
        workers,
        readers: 1,
        depth,
        buffers,
    }
}

/// How far a scan is, and how it is stopped.
#[derive(Debug, Default)]
pub struct Progress {
    counters: Arc<changetrack::Progress>,
    pub cancel: AtomicBool,
}

impl Deref for Progress {
    type Target = changetrack::Progress;

    fn deref(&self) -> &changetrack::Progress {
        &self.counters
    }
}

/// Takes what a scan of one disk finds.
pub type Push<'a> = &'a mut dyn FnMut(&ClusterUpdate<'_>) -> imagefmt::Result<()>;

struct Pushing<'a>(Push<'a>);

impl Sink for Pushing<'_> {
    fn push(&mut self, _pass: usize, update: &ClusterUpdate<'_>) -> imagefmt::Result<()> {
        (self.0)(update)
    }
}

/// Scans a disk with a pipeline of its own.
pub fn scan(
    device: &Device,
    geometry: Geometry,
    base: Option<Base>,
    options: &PipelineOptions,
    progress: &Progress,
    push: Push<'_>,
) -> Result<(), Error> {
    let plan = Plan::scan(geometry, base.is_some());
    let pass = Pass {
        device,
        geometry,
        plan: &plan,
        base,
        pace: None,
        on_read_error: blockio::OnReadError::Fail,
        progress: progress.counters.clone(),
    };
    Pipeline::new(options)?.run(&[pass], &progress.cancel, &mut Pushing(push))
}

/// One cluster as a scan pushed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub index: u64,
    pub digest: Digest,
    pub codec: Codec,
    pub stored_len: usize,
}

impl Pushed {
    pub fn new(update: &ClusterUpdate<'_>) -> Self {
        Self {
            index: update.index,
            digest: update.digest,
            codec: update.codec,
            stored_len: update.stored.len(),
        }
    }
}

/// What a scan into the store left.
#[derive(Debug)]
pub struct Synced {
    pub pushed: Vec<Pushed>,
    pub progress: Progress,
    pub result: Result<Manifest, Error>,
}

impl Synced {
    /// Bytes compared and bytes that differ, as the counters have them.
    pub fn counters(&self) -> (u64, u64) {
        (
            self.progress.compared_bytes.load(Ordering::Relaxed),
            self.progress.dirty_bytes.load(Ordering::Relaxed),
        )
    }

    pub fn indices(&self) -> Vec<u64> {
        self.pushed.iter().map(|pushed| pushed.index).collect()
    }
}

/// What a test does with a cluster before the store gets it; `usize` counts those before it.
pub type Hook<'a> = &'a mut dyn FnMut(usize, &Progress) -> imagefmt::Result<()>;

/// A scratch directory with a store and a file that is the disk; all go when it is dropped.
pub struct Bench {
    dir: ScratchDir,
    cluster_size: ClusterSize,
    disk: PathBuf,
}

impl Bench {
    /// An empty store, and a disk with this content.
    pub fn new(cluster_size: ClusterSize, content: &[u8]) -> Self {
        let dir = ScratchDir::new("smc-scan").unwrap();
        imagefmt::Store::open_or_create(&dir.join("store"), false).unwrap();
        let disk = dir.join("disk.raw");
        fs::write(&disk, content).unwrap();
        Self {
            dir,
            cluster_size,
            disk,
        }
    }

    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Takes another device as the disk.
    pub fn set_disk(&mut self, path: &Path) {
        self.disk = path.to_owned();
    }

    /// Gives the disk another content.
    pub fn write(&self, content: &[u8]) {
        fs::write(&self.disk, content).unwrap();
    }

    /// The store, with nothing remembered of what was read from it before.
    pub fn store(&self) -> Store {
        imagefmt::Store::open(&self.dir.join("store")).unwrap()
    }

    pub fn begin(&self) -> ImageWriter {
        let names = [DISK.to_owned()];
        self.store().begin(JOB, Some(self.cluster_size), &names).unwrap()
    }

    /// Scans the disk into a new image, as smcd does.
    pub fn sync(&self, options: &PipelineOptions) -> Synced {
        self.sync_with(options, &mut |_, _| Ok(()))
    }

    /// As [`sync`](Self::sync), with `hook` called before each cluster is stored.
    pub fn sync_with(&self, options: &PipelineOptions, hook: Hook<'_>) -> Synced {
        let (mut pushed, progress) = (Vec::new(), Progress::default());
        let result = self.write_image(options, &progress, &mut pushed, hook);
        Synced {
            pushed,
            progress,
            result,
        }
    }

    fn write_image(
        &self,
        options: &PipelineOptions,
        progress: &Progress,
        pushed: &mut Vec<Pushed>,
        hook: Hook<'_>,
    ) -> Result<Manifest, Error> {
        let device = Device::open(&self.disk)?;
        let mut image = self.begin();
        let disk = image.disk(DiskMeta {
            name: DISK.to_owned(),
            size_bytes: device.size_bytes(),
            logical_block_size: device.logical_block_size(),
            identity: DiskIdentity::default(),
        })?;
        let (geometry, base) = (disk.geometry(), image.base(disk).cloned());
        let plan = Plan::scan(geometry, base.is_some());
        image.begin_pass(disk, plan.method(), plan.reason())?;
        let mut store = |update: &ClusterUpdate<'_>| {
            hook(pushed.len(), progress)?;
            pushed.push(Pushed::new(update));
            image.push(disk, update)
        };
        scan(&device, geometry, base, options, progress, &mut store)?;
        image.end_pass(disk, plan.bytes())?;
        Ok(image.commit(Consistency::Offline, "test")?)
    }

    /// What the newest image holds.
    pub fn newest(&self) -> Vec<u8> {
        let image = self.begin();
        let disk = &image.parent().unwrap().disks()[0];
        let mut content = vec![0; usize::try_from(disk.size_bytes()).unwrap()];
        disk.read_at(0, &mut content).unwrap();
        content
    }

    /// Checks that there are `count` images, and no layer that none of them needs.
    #[track_caller]
    pub fn assert_images(&self, count: u64) {
        let store = self.store();
        let images: Vec<_> = store
            .images_of(JOB)
            .unwrap()
            .iter()
            .flat_map(imagefmt::JobImages::ids)
            .collect();
        assert_eq!(images.len() as u64, count);
        let stored = |image| {
            let manifest = store.manifest(image).unwrap();
            let disks = manifest.disks.iter();
            disks.filter(|disk| disk.stored_bytes > 0).count()
        };
        let needed: usize = images.iter().map(stored).sum();
        assert_eq!(self.layers().len(), needed, "layers");
    }

    /// The layer files, oldest first.
    pub fn layers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("store").join(JOB).join("layers")).unwrap();
        let mut layers: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        layers.sort_unstable();
        layers
    }
}

/// The clusters in which a disk differs from what it was before, or from zeros.
pub fn differing(before: &[u8], now: &[u8], cluster_size: ClusterSize) -> Vec<u64> {
    let len = cluster_size.byte_len();
    let is_different = |index: usize, cluster: &[u8]| {
        let start = (index * len).min(before.len());
        let old = &before[start..(start + len).min(before.len())];
        let all_zero = old.iter().chain(cluster).all(|&byte| byte == 0);
        old != cluster && !all_zero
    };
    now.chunks(len)
        .enumerate()
        .filter(|(index, cluster)| is_different(*index, cluster))
        .map(|(index, _)| index as u64)
        .collect()
}

/// Checks that `synced` pushed just what differs, in order, with the right digests and codecs, and counted it.
#[track_caller]
pub fn assert_pushed(
    synced: &Synced,
    before: &[u8],
    now: &[u8],
    cluster_size: ClusterSize,
    compress_level: i32,
) {
    let expected = differing(before, now, cluster_size);
    assert_eq!(synced.indices(), expected);
    let mut dirty = 0;
    for pushed in &synced.pushed {
        let start = usize::try_from(pushed.index).unwrap() * cluster_size.byte_len();
        let plain = &now[start..now.len().min(start + cluster_size.byte_len())];
        dirty += plain.len() as u64;
        assert_eq!(pushed.digest, Digest::of_cluster(plain));
        match pushed.codec {
            Codec::Null => assert!(plain.iter().all(|&byte| byte == 0) && pushed.stored_len == 0),
            Codec::Raw => assert_eq!(pushed.stored_len, plain.len()),
            Codec::Zstd => assert!(compress_level > 0 && pushed.stored_len < plain.len()),
            Codec::Damaged => panic!("cluster {} was readable", pushed.index),
        }
    }
    assert_eq!(synced.counters(), (now.len() as u64, dirty));
}

/// A disk of zeros, text and noise in turn, in pieces of up to 400 KiB that fit no cluster; it ends in data.
pub fn disk_content(len: usize, seed: u64) -> Vec<u8> {
    let mut content = noise(len, seed);
    let (mut at, mut turn) = (0, seed);
    while at < len {
        let piece = 1 + usize::from(content[at]) * 1600;
        let end = len.min(at + piece);
        match turn % 3 {
            0 if end < len => content[at..end].fill(0),
            1 => content[at..end]
                .iter_mut()
                .zip(b"a line of text that repeats\n".iter().cycle())
                .for_each(|(byte, &text)| *byte = text),
            _ => {}
        }
        (at, turn) = (end, turn + 1);
    }
    content
}

/// As it is some time later: bytes changed here and there, the first and the last too, a part zeroed, a part new.
pub fn changed(before: &[u8], seed: u64) -> Vec<u8> {
    let (mut now, len) = (before.to_vec(), before.len());
    let random = noise(64, seed);
    for four in random.chunks_exact(4) {
        let at = u32::from_le_bytes(four.try_into().unwrap()) as usize % len;
        now[at] ^= 1;
    }
    now[len / 3..len / 3 + len / 16].fill(0);
    let fresh = noise(len / 20, seed);
    now[len / 2..len / 2 + fresh.len()].copy_from_slice(&fresh);
    now[0] = !before[0];
    now[len - 1] = !before[len - 1];
    now
}
