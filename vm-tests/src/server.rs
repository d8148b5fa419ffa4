//! Real servers as disks that start by themselves: a Debian with its own kernel, initramfs, GRUB and systemd, on disks that are
//! laid out as servers have them.
//!
//! `scripts/setup.sh servers` installs the files. What this machine's kernel can do to them is done here; LVM, encryption and
//! GRUB's installation need another kernel, so a guest does these. The finished disks are kept in the cache directory.

mod content;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use boot::{Bus, Firmware, Network, Ovmf, Pc, PcDisk, Running, Said, Source, Transcript};
use testkit::error::IoContext;
use testkit::guard::{LoopDevice, ScratchDir};
use testkit::{Error, ErrorKind, Result, process};

use crate::guest::{BootOptions, accelerator, converted};
use crate::kernel::cache_dir;
use crate::system::{self, Release, System, Until};
use crate::uefi::mtool;
pub use content::make_initramfs;
use content::{Content, ROOT_MIB};

const SCRIPT: &str = include_str!("../guest/install-server.sh");
const BOOT_ID: &str = "5dc00b00-0000-4000-8000-000000000002";
const LUKS_ID: &str = "5dc00b00-0000-4000-8000-000000000003";
/// Of the filesystem that has the root directory.
pub const ROOT_ID: &str = "5dc00b00-0000-4000-8000-000000000001";
/// What opens the encrypted root.
pub const PASSPHRASE: &str = "correct horse";
/// What a server writes to its console at each boot, before the number of boots that came before it.
pub const COUNTED: &str = "SMC-COUNTED ";
/// What it writes as soon as that number is on its disk.
const SAVED: &str = "SMC-SAVED";
/// The system partition of a server that UEFI starts, and its place in bytes.
const ESP_OFFSET: u64 = MIB;

const MIB: u64 = 1 << 20;
const ESP_MIB: u64 = 96;
const BOOT_MIB: u64 = 192;
/// Where the first partition ends, on every layout: GRUB's own, or the EFI system partition.
const FIRST_END: u64 = (1 + ESP_MIB) * MIB;
/// Translated, beside other work.
const BOOT_TIMEOUT: Duration = Duration::from_secs(1200);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(2400);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const TAIL_LINES: usize = 40;

/// What the root filesystem is, and what it lies on. All but the last start by BIOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// ext4 on a partition.
    Ext4,
    /// ext4 on a logical volume that lies on two disks.
    Lvm,
    /// xfs on a partition.
    Xfs,
    /// A subvolume of btrfs on a partition.
    Btrfs,
    /// ext4 on an encrypted partition: the server waits for a passphrase.
    Luks,
    /// ext4 on a partition, started by UEFI from a loader on the EFI system partition that no boot entry names.
    Uefi,
}

/// A server's disks, as copies that may be written to.
#[derive(Debug)]
pub struct Server {
    layout: Layout,
    disks: Vec<PathBuf>,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Lvm => "lvm",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Luks => "luks",
            Self::Uefi => "uefi",
        }
    }

    /// The serial numbers of its disks in the guest that finishes them, and the names of their files.
    fn disks(self) -> &'static [&'static str] {
        match self {
            Self::Lvm => &["servera", "serverb"],
            _ => &["servera"],
        }
    }

    /// Whether /boot is a partition of its own.
    fn has_boot(self) -> bool {
        matches!(self, Self::Lvm | Self::Luks)
    }
}

impl Server {
    /// A server of this release on disks of this layout, as it is right after its installation, copied to `directory`. It is
    /// installed first if that has not been done yet, which takes minutes.
    ///
    /// # Errors
    /// [`ErrorKind::Setup`] where `scripts/setup.sh servers` has not been run, and what the programs fail with.
    pub fn new(release: Release, layout: Layout, directory: &Path) -> Result<Self> {
        let kept = kept(release, layout)?;
        let mut disks = Vec::new();
        for name in layout.disks() {
            let copy = directory.join(name);
            copy_disk(&kept.join(name), &copy)?;
            disks.push(copy);
        }
        Ok(Self { layout, disks })
    }

    /// The files of its disks, in their order.
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// Starts it on these disks until it has counted that, and cuts its power then. The passphrase is typed where one is asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Guest`] if it ends before and [`ErrorKind::Timeout`] if it does not come so far, both with the end of its
    /// console.
    pub fn start(&self) -> Result<()> {
        let mut running = Running::start(self.machine()?).map_err(|error| converted(&error))?;
        let mut console = Transcript::default();
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let (mut has_counted, mut typed) = (false, false);
        loop {
            process::check_interrupt()?;
            if Instant::now() > deadline {
                return Err(unfinished(
                    ErrorKind::Timeout,
                    "the server did not start",
                    &console,
                ));
            }
            match running.read(POLL_INTERVAL).map_err(|error| converted(&error))? {
                Said::Nothing => continue,
                Said::End => return Err(unfinished(ErrorKind::Guest, "the server ended", &console)),
                Said::Bytes(bytes) => {
                    console.push(bytes, |line| has_counted |= line.contains(SAVED));
                }
            }
            if has_counted {
                return Ok(());
            }
            if !typed && is_passphrase_prompt(&console.unfinished()) {
                typed = true;
                let answer = format!("{PASSPHRASE}\n");
                running
                    .write(answer.as_bytes())
                    .map_err(|error| converted(&error))?;
            }
        }
    }

    fn machine(&self) -> Result<Pc> {
        let firmware = match self.layout {
            Layout::Uefi => Firmware::Uefi(Ovmf::find().map_err(|error| converted(&error))?),
            _ => Firmware::Bios,
        };
        let mut disks = Vec::new();
        for file in &self.disks {
            let opened = File::options().read(true).write(true).open(file);
            disks.push(PcDisk {
                source: Source::File(opened.context(|| format!("open {}", file.display()))?.into()),
                serial: file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                block_bytes: 512,
            });
        }
        Ok(Pc {
            accelerator: accelerator()?,
            memory_mib: 768,
            cpus: 2,
            firmware,
            bus: Bus::Virtio,
            disks,
            network: Network::None,
            vnc: None,
        })
    }
}

/// The partition with the root of a server that has it on one.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn root_partition(disk: &Path) -> Result<LoopDevice> {
    LoopDevice::attach_range(disk, FIRST_END, ROOT_MIB * MIB)
}

/// Takes the loader of a server that UEFI starts to where only a boot entry in the firmware would find it.
///
/// # Errors
/// What the programs fail with.
pub fn hide_loader(disk: &Path) -> Result<()> {
    mtool("mmd", &esp(disk), &["::EFI/debian"])?;
    mtool(
        "mmove",
        &esp(disk),
        &["::EFI/BOOT/BOOTX64.EFI", "::EFI/debian/grubx64.efi"],
    )
}

/// Removes all loaders of a server that UEFI starts.
///
/// # Errors
/// What the programs fail with.
pub fn remove_loaders(disk: &Path) -> Result<()> {
    mtool("mdeltree", &esp(disk), &["::EFI"])?;
    mtool("mmd", &esp(disk), &["::EFI"])
}

fn esp(disk: &Path) -> String {
    format!("{}@@{ESP_OFFSET}", disk.display())
}

/// Whether a line is the prompt for the passphrase, which has no end.
pub fn is_passphrase_prompt(line: &str) -> bool {
    line.contains("Please unlock disk ")
}

fn unfinished(kind: ErrorKind, what: &str, console: &Transcript) -> Error {
    let tail = console.tail(TAIL_LINES).join("\n");
    Error::new(kind, format!("{what}; its console ended with:\n{tail}"))
}

/// A copy of a disk, with its holes.
fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to);
    process::run(&mut copy).map(drop)
}

/// The directory with the finished disks; they are made if there are none, or others.
fn kept(release: Release, layout: Layout) -> Result<PathBuf> {
    let all = cache_dir().join("servers");
    fs::create_dir_all(&all).context(|| format!("create {}", all.display()))?;
    // Several tests want the same one: only the first makes it.
    let lock = all.join("lock");
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.context(|| "take the lock of the servers")?;
    let directory = all.join(format!("{}-{}", release.name(), layout.name()));
    let wanted = recipe(release, layout)?;
    if fs::read_to_string(directory.join("CONTENT")).is_ok_and(|made_of| made_of == wanted) {
        return Ok(directory);
    }
    let scratch = ScratchDir::new("smc-server")?;
    install(release, layout, scratch.path())?;
    if directory.exists() {
        fs::remove_dir_all(&directory).context(|| format!("remove {}", directory.display()))?;
    }
    fs::create_dir(&directory).context(|| format!("create {}", directory.display()))?;
    for name in layout.disks() {
        copy_disk(&scratch.join(name), &directory.join(name))?;
    }
    // Last: without it they are made again.
    fs::write(directory.join("CONTENT"), wanted).context(|| "note what the disks are made of")?;
    Ok(directory)
}

/// All that the disks are made of, as a text: they are made again when it changes.
fn recipe(release: Release, layout: Layout) -> Result<String> {
    let packages = release.server()?.with_file_name("CONTENT");
    let packages = fs::read_to_string(&packages).context(|| format!("read {}", packages.display()))?;
    let settings = content::settings(layout);
    Ok(format!("{packages}{settings:?}{}", script()))
}

fn script() -> String {
    let ids = format!("LUKS_ID={LUKS_ID} PASSPHRASE='{PASSPHRASE}' ROOT_MIB={ROOT_MIB}\n");
    system::script(&[&ids, SCRIPT])
}

/// Makes the disks in `directory`.
fn install(release: Release, layout: Layout, directory: &Path) -> Result<()> {
    let content = Content::make(&release.server()?, layout, directory)?;
    for name in layout.disks() {
        let file = File::create_new(directory.join(name)).context(|| format!("create the disk {name}"))?;
        file.set_len(disk_bytes(layout))
            .context(|| format!("size the disk {name}"))?;
    }
    let first = directory.join(layout.disks()[0]);
    write_table(layout, &first)?;
    content.put_on(layout, &first)?;

    let payload = directory.join("payload");
    fs::create_dir(&payload).context(|| "create the payload")?;
    fs::write(payload.join("run"), script()).context(|| "write the script")?;
    let mut system = System::of(Release::Newer, Release::Own, &payload)?;
    system.without_systemd();
    system.attach(&content.root, "content");
    for name in layout.disks() {
        system.attach(&directory.join(name), name);
    }
    let options = BootOptions {
        memory_mib: 768,
        timeout: INSTALL_TIMEOUT,
        ..BootOptions::default()
    };
    let said = system.boot(layout.name(), Until::PowerOff, &options)?;
    match said.value("SMC-DONE") {
        Some(_) => Ok(()),
        None => Err(Error::new(
            ErrorKind::Guest,
            format!("the server was not installed:\n{}", said.describe()),
        )),
    }
}

/// Room for the root and what is in front of it; each of two disks has half of the root.
fn disk_bytes(layout: Layout) -> u64 {
    let root = match layout {
        Layout::Lvm => ROOT_MIB / 2,
        _ => ROOT_MIB,
    };
    let boot = if layout.has_boot() { BOOT_MIB } else { 0 };
    // LVM, LUKS and the second copy of the partition table take some more.
    FIRST_END + (root + boot + 40) * MIB
}

/// One partition for the firmware, one for /boot where it has one of its own, and the rest.
fn write_table(layout: Layout, disk: &Path) -> Result<()> {
    let last = match layout {
        Layout::Lvm => "8e00",
        _ => "8300",
    };
    let first = match layout {
        Layout::Uefi => format!("--new=1:{}M:+{ESP_MIB}M", ESP_OFFSET / MIB),
        // The BIOS boot partition, where GRUB's second part is.
        _ => format!("--new=1:1M:+{ESP_MIB}M"),
    };
    let kind = if layout == Layout::Uefi { "ef00" } else { "ef02" };
    let mut table = Command::new("sgdisk");
    table.arg(first).arg(format!("--typecode=1:{kind}"));
    let rest = if layout.has_boot() {
        table
            .arg(format!("--new=2:0:+{BOOT_MIB}M"))
            .arg("--typecode=2:8300");
        3
    } else {
        2
    };
    table
        .arg(format!("--new={rest}:0:0"))
        .arg(format!("--typecode={rest}:{last}"));
    process::run(table.arg(disk)).map(drop)
}
