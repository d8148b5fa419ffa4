//! The helper guest from within: this program is its init. It loads the drivers, has the volumes put together, and serves them
//! until the machine ends.

use super::stack::Stack;
use super::supplies::MARK;
use super::wire::{self, Answer, Opened, Order, PIECE_LEN_MAX, PORT, Request};
use anyhow::{Context, bail, ensure};
use cli::output;
use crossbeam_channel::{Receiver, bounded};
use nix::errno::Errno;
use nix::kmod::init_module;
use nix::mount::MsFlags;
use nix::sys::reboot::{RebootMode, reboot};
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many requests are executed at the same time.
const WORKERS: usize = 4;
/// How long the drivers may take to find the line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// Open and serve the volumes of a helper guest (what smc-image starts in it)
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Does all that the guest is for, and powers it off.
///
/// # Errors
/// Where this is not the init of a helper guest.
pub fn run() -> anyhow::Result<ExitCode> {
    let is_init = std::process::id() == 1 && Path::new("/").join(MARK).exists();
    ensure!(is_init, "this is what smc-image starts in a guest of its own");
    if let Err(error) = serve() {
        output::complain(format_args!("smc-image: {error:#}"));
    }
    reboot(RebootMode::RB_POWER_OFF).context("power off")?;
    Ok(ExitCode::FAILURE)
}

fn serve() -> anyhow::Result<()> {
    prepare()?;
    load_modules()?;
    let mut line = open_line()?;
    let order: Order = wire::receive(&mut line).context("wait for the order")?;
    let stack = Stack::wait_for(&order.disks)?;
    let (opened, devices) = stack.open(order.key.as_deref());
    let served = open_all(opened, devices);
    wire::send(&mut line, &served.opened).context("say what was opened")?;
    answer(line, served.files)
}

fn prepare() -> anyhow::Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        match nix::mount::mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>) {
            // The kernel has done it.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("mount {place}")),
        }
    }
    for dir in [
        "/run/lvm",
        "/run/lock/lvm",
        "/run/cryptsetup",
        "/run/mdadm",
        "/etc/lvm",
    ] {
        fs::create_dir_all(dir).with_context(|| format!("make {dir}"))?;
    }
    Ok(())
}

/// Loads what the initramfs has. What a processor cannot do is refused, and not needed then.
fn load_modules() -> anyhow::Result<()> {
    let order = fs::read_to_string("/modules/order").context("read which modules there are")?;
    for name in order.lines() {
        let content = fs::read(Path::new("/modules").join(name)).with_context(|| format!("read {name}"))?;
        if let Err(error) = init_module(&content, c"") {
            output::complain(format_args!("smc-image: {name}: {error}"));
        }
    }
    Ok(())
}

fn open_line() -> anyhow::Result<File> {
    let deadline = Instant::now() + LINE_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(device) = line_device() {
            let mut options = File::options();
            return options
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("open {}", device.display()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("this machine has no port {PORT}")
}

fn line_device() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = Path::new("/dev").join(port.file_name());
        (name.trim() == PORT && device.exists()).then_some(device)
    })
}

/// What is served, and what it is read from, in the same order.
struct Served {
    opened: Opened,
    files: Vec<File>,
}

fn open_all(mut opened: Opened, devices: Vec<PathBuf>) -> Served {
    let mut files = Vec::new();
    let mut volumes = Vec::new();
    for (volume, device) in opened.volumes.into_iter().zip(devices) {
        match File::options().read(true).write(true).open(&device) {
            Ok(file) => {
                files.push(file);
                volumes.push(volume);
            }
            Err(error) => opened.problems.push(format!("{}: {error}", volume.name)),
        }
    }
    opened.volumes = volumes;
    Served { opened, files }
}

/// Answers until the line is gone.
fn answer(line: File, files: Vec<File>) -> anyhow::Result<()> {
    let files = Arc::new(files);
    let answers = Arc::new(Mutex::new(line.try_clone().context("use the line twice")?));
    let (sender, requests) = bounded::<(Request, Vec<u8>)>(WORKERS);
    for _ in 0..WORKERS {
        let (files, answers, requests) = (Arc::clone(&files), Arc::clone(&answers), requests.clone());
        thread::Builder::new()
            .spawn(move || work(&files, &answers, &requests))
            .context("start a thread")?;
    }
    let mut line = BufReader::with_capacity(1 << 20, line);
    loop {
        let request = Request::read(&mut line).context("wait for a request")?;
        ensure!(request.length <= PIECE_LEN_MAX, "a request is too long");
        let length = if request.writes {
            request.length as usize
        } else {
            0
        };
        let mut data = vec![0; length];
        line.read_exact(&mut data).context("read what is to be written")?;
        sender.send((request, data)).context("pass on a request")?;
    }
}

fn work(files: &[File], answers: &Mutex<File>, requests: &Receiver<(Request, Vec<u8>)>) {
    for (request, data) in requests {
        let done = execute(files, &request, &data);
        let (errno, bytes) = match done {
            Ok(bytes) => (0, bytes),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
        };
        let answer = Answer {
            id: request.id,
            errno,
            // No longer than the request wants.
            length: u32::try_from(bytes.len()).unwrap_or(0),
        };
        let mut line = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let message = [answer.encode(), bytes].concat();
        if line.write_all(&message).is_err() {
            return;
        }
    }
}

fn execute(files: &[File], request: &Request, data: &[u8]) -> std::io::Result<Vec<u8>> {
    let file = files
        .get(usize::from(request.volume))
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENXIO))?;
    if request.writes {
        file.write_all_at(data, request.offset)?;
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; request.length as usize];
    file.read_exact_at(&mut bytes, request.offset)?;
    Ok(bytes)
}
