//! A server of in-memory exports, and the clients that judge it.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd::{Access, Catalog, Client, ErrorKind, Export, ExportError, ExportInfo, Extent, Limits, ServeError};
use nbd::{Server, ShutdownHandle, Tls};
use testkit::Random;
use testkit::process::{PATIENCE, wait_for};
use testkit::program::{Run, run_within};

pub mod certificates;
pub mod disk;
pub mod raw;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Granularity of the memory disk's allocation.
pub const CLUSTER: usize = 64 << 10;

/// A disk in memory: clusters of zeros are holes, chosen ranges cannot be read.
pub struct MemoryDisk {
    pub bytes: Vec<u8>,
    /// Reading this byte fails with a text.
    pub damaged: Option<u64>,
    /// Reading this byte panics.
    pub panics: Option<u64>,
    /// Reads from this byte on take that long.
    pub slow: Option<(u64, Duration)>,
    /// Reads from this byte on wait until the gate is opened.
    pub gate: Option<(u64, Arc<Gate>)>,
    /// How many reads have begun.
    pub begun: Arc<AtomicUsize>,
    pub at_once: Arc<AtOnce>,
}

/// Holds up every thread that passes until it is opened.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(
            self.changed
                .wait_while(self.open.lock().unwrap(), |open| !*open)
                .unwrap(),
        );
    }
}

/// How many reads run at the same time.
#[derive(Default)]
pub struct AtOnce {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl AtOnce {
    /// The most that there have been.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn during(&self, work: impl FnOnce()) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        work();
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MemoryDisk {
    /// Data, holes and a tail that is no multiple of anything: 16 MiB + 1234 bytes.
    pub fn mixed() -> Self {
        let mut bytes = vec![0; (16 * MIB + 1234) as usize];
        let mut random = Random::new(1);
        for (index, cluster) in bytes.chunks_mut(CLUSTER).enumerate() {
            // Runs of different lengths, the tail being data.
            if matches!(index % 16, 0 | 1 | 2 | 5 | 9 | 10) {
                // No byte of it is zero.
                cluster.copy_from_slice(&random.bytes(cluster.len()));
                cluster.iter_mut().for_each(|byte| *byte |= 1);
            }
        }
        Self::of(bytes)
    }

    pub fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            damaged: None,
            panics: None,
            slow: None,
            gate: None,
            begun: Arc::default(),
            at_once: Arc::default(),
        }
    }

    fn is_zero(&self, cluster: usize) -> bool {
        let start = cluster * CLUSTER;
        let end = self.bytes.len().min(start + CLUSTER);
        self.bytes[start..end].iter().all(|&byte| byte == 0)
    }

    /// The whole disk's extents, as `(offset, length, is a hole)`.
    pub fn map(&self) -> Vec<(u64, u64, bool)> {
        let mut map: Vec<(u64, u64, bool)> = Vec::new();
        for (index, cluster) in self.bytes.chunks(CLUSTER).enumerate() {
            let hole = self.is_zero(index);
            match map.last_mut() {
                Some(last) if last.2 == hole => last.1 += cluster.len() as u64,
                _ => map.push(((index * CLUSTER) as u64, cluster.len() as u64, hole)),
            }
        }
        map
    }
}

impl Export for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if let Some((_, delay)) = self.slow.filter(|(from, _)| offset >= *from) {
            self.at_once.during(|| std::thread::sleep(delay));
        }
        if let Some((_, gate)) = self.gate.as_ref().filter(|(from, _)| offset >= *from) {
            self.at_once.during(|| gate.pass());
        }
        let range = offset..offset + buf.len() as u64;
        assert!(
            !self.panics.is_some_and(|at| range.contains(&at)),
            "the test's export panics here"
        );
        if let Some(bad) = self.damaged.filter(|at| range.contains(at)) {
            let message = format!("image web01/7, cluster {} is damaged", bad / CLUSTER as u64);
            return Err(ExportError::io(bad, message));
        }
        buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        // At cluster granularity, so it runs past the end of most requests.
        let first = offset as usize / CLUSTER;
        let last = (offset + length - 1) as usize / CLUSTER;
        let mut at = offset;
        let extents = (first..=last).map(|cluster| {
            let end = (((cluster + 1) * CLUSTER) as u64).min(self.size_bytes());
            let extent = if self.is_zero(cluster) {
                Extent::hole(end - at)
            } else {
                Extent::data(end - at)
            };
            at = end;
            extent
        });
        Ok(extents.collect())
    }
}

/// A few named disks; the first is the default export too.
pub struct Disks {
    pub named: Vec<(String, Arc<MemoryDisk>)>,
    pub opened: AtomicUsize,
}

impl Disks {
    pub fn new(named: Vec<(&str, MemoryDisk)>) -> Arc<Self> {
        let named = named
            .into_iter()
            .map(|(name, disk)| (name.to_owned(), Arc::new(disk)))
            .collect();
        Arc::new(Self {
            named,
            opened: AtomicUsize::new(0),
        })
    }

    fn find(&self, name: &str) -> Result<&(String, Arc<MemoryDisk>), ServeError> {
        if name == "forbidden" {
            return Err(ServeError::new(ErrorKind::Refused, "this image is being deleted"));
        }
        let is_it = |disk: &&(String, _)| name.is_empty() || disk.0 == name;
        self.named
            .iter()
            .find(is_it)
            .ok_or_else(|| ServeError::not_found(name))
    }

    fn describe((name, disk): &(String, Arc<MemoryDisk>)) -> ExportInfo {
        ExportInfo {
            name: name.clone(),
            description: Some(format!("the disk called {name}")),
            size_bytes: disk.size_bytes(),
            preferred_block_bytes: CLUSTER as u32,
            access: Access::ReadOnly,
        }
    }
}

impl Catalog for Disks {
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError> {
        Ok(self.named.iter().map(Self::describe).collect())
    }

    fn info(&self, name: &str, _: &Client) -> Result<ExportInfo, ServeError> {
        self.find(name).map(Self::describe)
    }

    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn Export>, ServeError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (_, disk) = self.find(name)?;
        Ok(Arc::clone(disk) as Arc<dyn Export>)
    }
}

/// A running server with its own directory; ends when dropped.
pub struct Running {
    pub directory: tempfile::TempDir,
    pub tcp: SocketAddr,
    pub handle: ShutdownHandle,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    pub fn start(catalog: Arc<dyn Catalog>, limits: Limits) -> Self {
        Self::start_with(catalog, limits, None)
    }

    /// The same, with TLS on its TCP address.
    pub fn start_with(catalog: Arc<dyn Catalog>, limits: Limits, tls: Option<Tls>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Server::new(catalog, limits).unwrap();
        server.listen_unix(directory.path().join("nbd.sock")).unwrap();
        let tcp = server.listen_tcp("127.0.0.1:0".parse().unwrap(), tls).unwrap();
        let handle = server.shutdown_handle();
        let thread = Some(std::thread::spawn(move || server.run()));
        Self {
            directory,
            tcp,
            handle,
            thread,
        }
    }

    /// One disk, `web01/7:vda`, and default limits.
    pub fn of(disk: MemoryDisk) -> Self {
        Self::start(Disks::new(vec![("web01/7:vda", disk)]), Limits::default())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The URI of an export on the Unix socket.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    pub fn tcp_uri(&self, name: &str) -> String {
        format!("nbd://{}/{name}", self.tcp)
    }

    /// Shuts down and waits for what the server returns, but not for one that does not end.
    #[track_caller]
    pub fn stop(&mut self) -> Result<(), ServeError> {
        self.handle.shutdown();
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        wait_for("the server ends", || thread.is_finished());
        thread.join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed; it must not wait for a server that may never end.
            self.handle.shutdown();
        } else {
            self.stop().unwrap();
        }
    }
}

/// Runs a client under a time limit: a server that stalls fails the test and does not stop it. A missing client is a failure
/// that says what to install.
#[track_caller]
pub fn client(program: &str, args: &[&str]) -> Run {
    run_within(PATIENCE, Command::new(program).args(args))
}

/// Runs a client that must succeed, and returns what it printed.
#[track_caller]
pub fn expect(program: &str, args: &[&str]) -> String {
    client(program, args).ok()
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
