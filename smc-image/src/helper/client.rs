//! Our side of the helper guest: it is started, waited for, and asked for bytes of its volumes.

use super::Means;
use super::supplies::{OWN_LIBRARIES, Supplies};
use super::wire::{self, Answer, Opened, Order, PIECE_LEN_MAX, Request, SERIAL, Volume};
use crate::catalog::GuestDisks;
use crate::exit::Advise;
use crate::guest::machine::{self, INSTALL_QEMU, advised};
use anyhow::{Context, anyhow, bail, ensure};
use boot::{Accelerator, Bus, DirectKernel, Firmware, KVM_VERDICT, Network, Pc, Running, Said};
use imagefmt::{Image, check_name};
use nbd::{Export, ExportError, Extent};
use std::collections::{HashMap, HashSet};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The guest's memory beside its initramfs, which is there twice while it is unpacked.
const MEMORY_MIB: usize = 512;
/// A key of LUKS is made with up to 1 GiB of memory.
const KEY_MEMORY_MIB: usize = 1280;
const MIB: usize = 1 << 20;
/// How long the guest may take to put everything together: a translated one needs minutes for a key of LUKS.
const START_TIMEOUT: Duration = Duration::from_secs(900);
/// How long it may take to read or write.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How often is looked whether it is still wanted.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How much of its console is kept, to say why it failed.
const CONSOLE_LEN_MAX: usize = 4096;
const VOLUMES_MAX: usize = 1024;

/// A running helper guest; it ends when this is dropped, and with this process.
#[derive(Debug)]
pub struct Helper {
    shared: Arc<Shared>,
    keeper: Option<Keeper>,
}

/// What was read, or why not.
type Outcome = Result<Vec<u8>, String>;

#[derive(Debug)]
struct Shared {
    line: Mutex<UnixStream>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    is_over: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    length: usize,
    outcome: Sender<Outcome>,
}

/// The thread that started QEMU, with which it ends, and which reads its console.
#[derive(Debug)]
struct Keeper {
    thread: JoinHandle<String>,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    /// Ends the guest; gives the end of its console.
    fn end(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
    }
}

impl Helper {
    /// Starts the guest with all disks of an image, and waits until it has put together what it can.
    ///
    /// # Errors
    /// Where QEMU, a kernel or memory is missing, where the guest fails, and where `is_canceled`.
    pub fn start(
        image: &Image,
        disks: &Arc<GuestDisks>,
        means: &Means<'_>,
        key: Option<Vec<u8>>,
        is_canceled: &dyn Fn() -> bool,
    ) -> anyhow::Result<(Self, Opened)> {
        ensure!(
            disks.disks().len() <= Bus::Virtio.disks_max(),
            "more disks than a helper guest takes ({})",
            Bus::Virtio.disks_max()
        );
        let order = Order {
            disks: image.disks().iter().map(|disk| disk.name().to_owned()).collect(),
            key,
        };
        let pc = pc(image, disks, means, order.key.is_some(), is_canceled)?;
        let (line, keeper) = keep(pc)?;
        let opened = match handshake(&line, order, is_canceled) {
            Ok(opened) => checked(opened, image),
            Err(error) => {
                let console = keeper.end();
                tracing::debug!("the console of the helper guest: {console}");
                return Err(error).with_context(|| format!("it failed: {}", last_words(&console)));
            }
        };
        let shared = Arc::new(Shared {
            line: Mutex::new(line.try_clone().context("use the line to the helper guest")?),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let of_reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("helper-line".to_owned())
            .spawn(move || of_reader.read_answers(line))
            .context("start a thread")?;
        let keeper = Some(keeper);
        Ok((Self { shared, keeper }, opened))
    }

    /// A volume of it, to be read and written.
    pub fn export(&self, index: usize, volume: &Volume) -> VolumeExport {
        VolumeExport {
            shared: Arc::clone(&self.shared),
            // At most VOLUMES_MAX.
            index: u16::try_from(index).unwrap_or(u16::MAX),
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
        }
    }
}

/// What a console says of why it ended: what init or the kernel complains about, otherwise its last lines.
fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim).collect();
    let complains = |line: &&&str| line.contains("smc-image: ") || line.contains("Kernel panic");
    let complaints: Vec<&str> = lines.iter().filter(complains).copied().collect();
    let said = if complaints.is_empty() { lines } else { complaints };
    said[said.len().saturating_sub(3)..].join("; ")
}

fn pc(
    image: &Image,
    disks: &Arc<GuestDisks>,
    means: &Means<'_>,
    has_key: bool,
    is_canceled: &dyn Fn() -> bool,
) -> anyhow::Result<Pc> {
    let supplies = Supplies::gather(means)?;
    let accelerator = Accelerator::found_by_kernel(&supplies.kernel, Path::new(KVM_VERDICT), is_canceled);
    let accelerator = advised(accelerator, INSTALL_QEMU)?;
    let memory_mib =
        MEMORY_MIB + 2 * supplies.initramfs.len().div_ceil(MIB) + if has_key { KEY_MEMORY_MIB } else { 0 };
    let mut of_guest = machine::serve(image, disks)?;
    for (index, disk) in of_guest.iter_mut().enumerate() {
        disk.serial = format!("{SERIAL}{index}");
    }
    Ok(Pc {
        accelerator,
        memory_mib: u32::try_from(memory_mib)?,
        cpus: 1,
        firmware: Firmware::Kernel(DirectKernel {
            image: supplies.kernel,
            initramfs: supplies.initramfs,
            // What the kernel does not know is in init's environment; what is after the dashes is its arguments.
            parameters: format!(
                "console=ttyS0 loglevel=4 panic=-1 LD_LIBRARY_PATH=/{OWN_LIBRARIES} rdinit=/smc-image -- helper-guest"
            ),
        }),
        bus: Bus::Virtio,
        disks: of_guest,
        network: Network::None,
        vnc: None,
    })
}

/// Starts the guest in a thread, and gives the line to it.
fn keep(pc: Pc) -> anyhow::Result<(UnixStream, Keeper)> {
    let (sender, started) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let keep = move || {
        match Running::start(pc) {
            Ok(mut running) => {
                let agent = running.take_agent();
                // Whoever waits for it is there until it has come.
                let _ = sender.send(Ok(agent.map(boot::Agent::into_line)));
                read_console(running, &until)
            }
            Err(error) => {
                let _ = sender.send(Err(error));
                String::new()
            }
        }
    };
    let thread = thread::Builder::new()
        .name("helper".to_owned())
        .spawn(keep)
        .context("start a thread")?;
    let keeper = Keeper { thread, stop };
    let line = started.recv().context("start the helper guest")?;
    let line = advised(line, INSTALL_QEMU)?.context("the helper guest has no line")?;
    Ok((line, keeper))
}

/// Keeps the end of the console until the guest has ended, or is to end.
fn read_console(mut running: Running, stop: &AtomicBool) -> String {
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match running.read(POLL_INTERVAL) {
            Ok(Said::Bytes(bytes)) => {
                kept.extend_from_slice(bytes);
                let excess = kept.len().saturating_sub(CONSOLE_LEN_MAX);
                kept.drain(..excess);
            }
            Ok(Said::Nothing) => {}
            Ok(Said::End) | Err(_) => break,
        }
    }
    let how = running.end().unwrap_or_default();
    format!("{}\n{how}", String::from_utf8_lossy(&kept))
        .trim()
        .to_owned()
}

/// Tells the guest what it has, and waits until it says what came of it.
fn handshake(line: &UnixStream, order: Order, is_canceled: &dyn Fn() -> bool) -> anyhow::Result<Opened> {
    let mut line = line.try_clone().context("use the line to the helper guest")?;
    let (sender, answer) = channel();
    let talk = move || {
        let done = wire::send(&mut line, &order).and_then(|()| wire::receive::<Opened>(&mut line));
        // Nobody listens any more if it took too long.
        let _ = sender.send(done);
    };
    thread::Builder::new()
        .name("handshake".to_owned())
        .spawn(talk)
        .context("start a thread")?;
    wait(&answer, is_canceled)?.context("talk to the helper guest")
}

fn wait<T>(answer: &Receiver<T>, is_canceled: &dyn Fn() -> bool) -> anyhow::Result<T> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        match answer.recv_timeout(POLL_INTERVAL) {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Disconnected) => bail!("the helper guest has ended"),
            Err(RecvTimeoutError::Timeout) if is_canceled() => bail!("it is not wanted any more"),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    Err(anyhow!(
        "the helper guest was not ready after {} minutes",
        START_TIMEOUT.as_secs() / 60
    ))
    .advise("a host with KVM runs it ten times faster")
}

/// What of it can be shown as files beside those of the disks: each name once, and only names that a disk could have.
fn checked(opened: Opened, image: &Image) -> Opened {
    let Opened {
        mut volumes,
        problems,
    } = opened;
    let mut names: HashSet<String> = image.disks().iter().map(|disk| disk.name().to_owned()).collect();
    volumes.truncate(VOLUMES_MAX);
    // Those that are not shown keep their place: requests name volumes by it.
    for volume in &mut volumes {
        let is_shown = check_name("volume", &volume.name).is_ok()
            && i64::try_from(volume.size_bytes).is_ok()
            && names.insert(volume.name.clone());
        if !is_shown {
            volume.name.clear();
        }
        if !matches!(volume.block_bytes, 512 | 1024 | 2048 | 4096) {
            volume.block_bytes = 512;
        }
    }
    Opened { volumes, problems }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, UnixStream> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what comes until the guest has ended, or says what nobody asked for.
    fn read_answers(&self, line: UnixStream) {
        let mut line = BufReader::with_capacity(1 << 20, line);
        while let Ok(answer) = Answer::read(&mut line) {
            let Some(waiting) = self.waiting().remove(&answer.id) else {
                tracing::error!("the helper guest answers what it was not asked");
                break;
            };
            let outcome = if answer.errno != 0 {
                Err(nix::errno::Errno::from_raw(answer.errno).desc().to_owned())
            } else if answer.length as usize == waiting.length {
                let mut bytes = vec![0; waiting.length];
                if line.read_exact(&mut bytes).is_err() {
                    break;
                }
                Ok(bytes)
            } else {
                tracing::error!("the helper guest answers with another length");
                break;
            };
            // It may have waited for too long.
            let _ = waiting.outcome.send(outcome);
        }
        self.is_over.store(true, Ordering::SeqCst);
        // Their senders go: whoever waits learns that nothing comes.
        self.waiting().clear();
    }

    /// Asks and waits. The answer has `length` bytes.
    fn ask(&self, mut request: Request, data: &[u8], length: usize) -> Outcome {
        let ended = || "the helper guest has ended".to_owned();
        let (sender, outcome) = channel();
        request.id = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting {
            length,
            outcome: sender,
        };
        self.waiting().insert(request.id, waiting);
        let sent = {
            let mut line = self.line();
            line.write_all(&request.encode())
                .and_then(|()| line.write_all(data))
        };
        if sent.is_err() || self.is_over.load(Ordering::SeqCst) {
            self.waiting().remove(&request.id);
            return Err(ended());
        }
        outcome.recv_timeout(ANSWER_TIMEOUT).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => "the helper guest does not answer".to_owned(),
                RecvTimeoutError::Disconnected => ended(),
            })
        })
    }
}

/// A volume in the helper guest.
#[derive(Debug)]
pub struct VolumeExport {
    shared: Arc<Shared>,
    index: u16,
    name: String,
    size_bytes: u64,
}

impl VolumeExport {
    fn request(&self, offset: u64, length: usize, writes: bool) -> Request {
        Request {
            id: 0,
            volume: self.index,
            writes,
            offset,
            // No piece is longer than PIECE_LEN_MAX.
            length: u32::try_from(length).unwrap_or(PIECE_LEN_MAX),
        }
    }

    fn failed(&self, offset: u64, why: &str) -> ExportError {
        let error = ExportError::io(offset, format!("{} in the helper guest: {why}", self.name));
        tracing::error!("{error}");
        error
    }
}

impl Export for VolumeExport {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ExportError> {
        let mut offset = offset;
        for piece in buf.chunks_mut(PIECE_LEN_MAX as usize) {
            let request = self.request(offset, piece.len(), false);
            let read = self.shared.ask(request, &[], piece.len());
            piece.copy_from_slice(&read.map_err(|why| self.failed(offset, &why))?);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn extents(&self, _offset: u64, length: u64) -> Result<Vec<Extent>, ExportError> {
        Ok(vec![Extent::data(length)])
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        let mut offset = offset;
        for piece in data.chunks(PIECE_LEN_MAX as usize) {
            let request = self.request(offset, piece.len(), true);
            let written = self.shared.ask(request, piece, 0);
            written.map_err(|why| self.failed(offset, &why))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}
