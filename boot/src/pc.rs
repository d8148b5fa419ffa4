//! A PC that a whole server starts on: its disks, its firmware, its console and its screen. All that it shares with us
//! are open descriptors, so nothing of it is left in any directory, however either side ends.

use std::fmt::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::accelerator::Accelerator;
use crate::bus::{Attached, Bus};
use crate::error::Result;
use crate::firmware::{Ovmf, filled_memory_file};
use crate::machine::QEMU;

/// What guests may not do to this machine through QEMU: start programs, change privileges, change limits.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The longest serial number that every kind of disk takes.
const SERIAL_LEN_MAX: usize = 20;

/// Where QEMU finds the file in memory that it writes a picture of the screen to.
pub(crate) const SCREEN_FILE: &str = "/dev/fdset/1";

/// The machine.
#[derive(Debug)]
pub struct Pc {
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// Its memory.
    pub memory_mib: u32,
    /// How many processors it has.
    pub cpus: u32,
    /// What starts first.
    pub firmware: Firmware,
    /// How all of its disks are attached.
    pub bus: Bus,
    /// Its disks. The firmware tries them in this order.
    pub disks: Vec<PcDisk>,
    /// What it reaches.
    pub network: Network,
    /// A Unix socket for a VNC viewer, which QEMU creates.
    pub vnc: Option<PathBuf>,
}

/// What starts a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU's BIOS.
    Bios,
    /// UEFI with a variable store in which nothing is set.
    Uefi(Ovmf),
    /// None: this kernel starts by itself.
    Kernel(DirectKernel),
}

/// A kernel that QEMU starts without a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectKernel {
    /// Its image.
    pub image: PathBuf,
    /// Its initramfs, as an [`Archive`](crate::Archive) gives it.
    pub initramfs: Vec<u8>,
    /// Its command line.
    pub parameters: String,
}

/// A disk of the machine.
#[derive(Debug)]
pub struct PcDisk {
    /// Where its content is.
    pub source: Source,
    /// The serial number that the guest sees; what no disk can have is left out.
    pub serial: String,
    /// Its logical block size in bytes.
    pub block_bytes: u32,
}

/// Where a disk's content is.
#[derive(Debug)]
pub enum Source {
    /// An export of an NBD server, by a connection that is made.
    Nbd {
        /// The connection.
        connection: UnixStream,
        /// The export's name.
        export: String,
    },
    /// A file, opened.
    File(OwnedFd),
}

/// What a machine reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// It has no network card.
    None,
    /// QEMU's own network, without a way out: the guest reaches nothing, and is reached by these ports alone.
    Isolated(Vec<Forward>),
    /// QEMU's own network: the guest reaches what this machine reaches, and is reached by these ports alone.
    User(Vec<Forward>),
}

impl Network {
    /// The ports that lead to the guest.
    pub fn forwards(&self) -> &[Forward] {
        match self {
            Self::None => &[],
            Self::Isolated(forwards) | Self::User(forwards) => forwards,
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// A TCP port of this machine's 127.0.0.1 that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The port here.
    pub host: u16,
    /// The port of the guest.
    pub guest: u16,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bios => "bios",
            Self::Uefi(_) => "uefi",
            Self::Kernel(_) => "kernel",
        })
    }
}

/// QEMU's command line, and what it inherits.
pub(crate) struct Prepared {
    pub(crate) command: Command,
    pub(crate) inherited: Vec<OwnedFd>,
}

/// Our ends of what a machine inherits.
pub(crate) struct Theirs {
    pub(crate) console: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) screen: OwnedFd,
    pub(crate) agent: OwnedFd,
}

impl Prepared {
    fn pass(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    fn option(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) {
        self.command.arg(name).arg(value);
    }
}

impl Pc {
    /// The command that starts it.
    pub(crate) fn prepare(self, theirs: Theirs) -> Result<Prepared> {
        let mut prepared = Prepared {
            command: Command::new(QEMU),
            inherited: Vec::new(),
        };
        self.add_base(&mut prepared);
        add_lines(&mut prepared, theirs);
        match &self.firmware {
            Firmware::Bios => {}
            Firmware::Uefi(ovmf) => add_uefi(&mut prepared, ovmf)?,
            Firmware::Kernel(kernel) => add_kernel(&mut prepared, kernel)?,
        }
        self.add_network(&mut prepared);
        if let Some(socket) = &self.vnc {
            prepared.option("-vnc", format!("unix:{}", escaped(socket)));
        }
        if let Some(controller) = self.bus.controller() {
            prepared.option("-device", controller);
        }
        let boots = !matches!(self.firmware, Firmware::Kernel(_));
        for (index, disk) in self.disks.into_iter().enumerate() {
            add_disk(&mut prepared, self.bus, index, disk, boots);
        }
        Ok(prepared)
    }

    fn add_base(&self, prepared: &mut Prepared) {
        let machine = if self.bus == Bus::Ide { "pc" } else { "q35" };
        // Without graphics the BIOS, and what writes through it, writes to the serial line too. The screen stays.
        let flash = match self.firmware {
            Firmware::Bios | Firmware::Kernel(_) => "",
            Firmware::Uefi(_) => ",pflash0=code,pflash1=variables",
        };
        prepared.option("-machine", format!("{machine},graphics=off{flash}"));
        let command = &mut prepared.command;
        command.args(["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(["-sandbox", SANDBOX, "-device", "VGA"]);
        command.args(["-accel", &self.accelerator.to_string(), "-cpu", self.cpu()]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
    }

    /// As much as there is: what was built for newer processors runs on no others.
    fn cpu(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "host",
            // A fifth level of page tables costs the translator time, and nobody needs it.
            Accelerator::Tcg => "max,la57=off",
        }
    }

    fn add_network(&self, prepared: &mut Prepared) {
        let (restrict, forwards) = match &self.network {
            Network::None => return,
            Network::Isolated(forwards) => ("on", forwards),
            Network::User(forwards) => ("off", forwards),
        };
        let mut network = format!("user,id=net0,restrict={restrict}");
        for Forward { host, guest } in forwards {
            // Writing to a text cannot fail.
            let _ = write!(network, ",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
        }
        prepared.option("-netdev", network);
        prepared.option("-device", "virtio-net-pci,netdev=net0,romfile=");
    }
}

/// The serial line, the control socket, the line to the guest agent, and where pictures of the screen go.
fn add_lines(prepared: &mut Prepared, theirs: Theirs) {
    let console = prepared.pass(theirs.console);
    prepared.option("-chardev", format!("socket,id=console,fd={console}"));
    prepared.option("-serial", "chardev:console");
    let control = prepared.pass(theirs.control);
    prepared.option("-chardev", format!("socket,id=control,fd={control}"));
    prepared.option("-mon", "chardev=control,mode=control");
    let agent = prepared.pass(theirs.agent);
    prepared.option("-chardev", format!("socket,id=agent,fd={agent}"));
    prepared.option("-device", "virtio-serial-pci");
    prepared.option(
        "-device",
        "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
    );
    let screen = prepared.pass(theirs.screen);
    prepared.option("-add-fd", format!("fd={screen},set=1"));
}

fn add_uefi(prepared: &mut Prepared, ovmf: &Ovmf) -> Result<()> {
    let code = escaped(&ovmf.code);
    prepared.option(
        "-blockdev",
        format!("driver=raw,node-name=code,read-only=on,file.driver=file,file.filename={code}"),
    );
    let variables = prepared.pass(ovmf.variable_store()?);
    prepared.option("-add-fd", format!("fd={variables},set=2"));
    let file = "file.driver=file,file.locking=off,file.filename=/dev/fdset/2";
    prepared.option("-blockdev", format!("driver=raw,node-name=variables,{file}"));
    Ok(())
}

fn add_kernel(prepared: &mut Prepared, kernel: &DirectKernel) -> Result<()> {
    let initramfs = prepared.pass(filled_memory_file("smc-initramfs", &kernel.initramfs)?);
    prepared.option("-kernel", &kernel.image);
    prepared.option("-initrd", format!("/proc/self/fd/{initramfs}"));
    prepared.option("-append", &kernel.parameters);
    Ok(())
}

/// `boots` says that the firmware may start from it.
fn add_disk(prepared: &mut Prepared, bus: Bus, index: usize, disk: PcDisk, boots: bool) {
    let node = format!("node-name=disk{index}");
    match disk.source {
        Source::Nbd { connection, export } => {
            let fd = prepared.pass(connection.into());
            let export = export.replace(',', ",,");
            prepared.option(
                "-blockdev",
                format!("driver=nbd,{node},discard=unmap,server.type=fd,server.str={fd},export={export}"),
            );
        }
        Source::File(file) => {
            let fd = prepared.pass(file);
            prepared.option("-add-fd", format!("fd={fd},set={}", index + 3));
            let file = format!(
                "file.driver=file,file.locking=off,file.filename=/dev/fdset/{}",
                index + 3
            );
            prepared.option("-blockdev", format!("driver=raw,{node},{file}"));
        }
    }
    let mut more = String::new();
    if boots {
        // Writing to a text cannot fail.
        let _ = write!(more, ",bootindex={index}");
    }
    if bus.has_large_blocks() {
        let bytes = disk.block_bytes;
        // Writing to a text cannot fail.
        let _ = write!(more, ",logical_block_size={bytes},physical_block_size={bytes}");
    }
    let attached = Attached {
        drive: &format!("disk{index}"),
        index,
        serial: &serial(&disk.serial),
        more: &more,
    };
    for device in bus.devices(&attached) {
        prepared.option("-device", device);
    }
}

/// What of a text a serial number can have.
fn serial(text: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.chars().filter(allowed).take(SERIAL_LEN_MAX).collect()
}

/// A path in a list of options: a comma would end it, and doubled it stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::memory_file;

    fn line(bus: Bus, firmware: Firmware, disks: &[&str]) -> String {
        let disk = |serial: &&str| PcDisk {
            source: Source::Nbd {
                connection: UnixStream::pair().unwrap().0,
                export: (*serial).to_owned(),
            },
            serial: (*serial).to_owned(),
            block_bytes: 512,
        };
        let pc = Pc {
            accelerator: Accelerator::Tcg,
            memory_mib: 512,
            cpus: 2,
            firmware,
            bus,
            disks: disks.iter().map(disk).collect(),
            network: Network::None,
            vnc: Some(PathBuf::from("/run/a,b")),
        };
        let file = || memory_file("test").unwrap();
        let theirs = Theirs {
            console: file(),
            control: file(),
            screen: file(),
            agent: file(),
        };
        let command = pc.prepare(theirs).unwrap().command;
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn disks_keep_their_order_and_their_names() {
        let line = line(Bus::Virtio, Firmware::Bios, &["vda", "data,readonly=on"]);
        assert!(
            line.contains("virtio-blk-pci,drive=disk0,serial=vda,bootindex=0,"),
            "{line}"
        );
        assert!(line.contains("drive=disk1,serial=datareadonlyon,bootindex=1,"));
        assert!(line.contains(",export=data,,readonly=on"), "{line}");
        assert!(line.contains("-vnc unix:/run/a,,b"));
        assert!(!line.contains("netdev") && !line.contains("pflash"));
    }

    #[test]
    fn an_old_pc_has_two_disks_on_each_channel() {
        let line = line(Bus::Ide, Firmware::Bios, &["a", "b", "c"]);
        assert!(line.contains("-machine pc,"));
        assert!(line.contains("bus=ide.0,unit=1,drive=disk1"), "{line}");
        assert!(line.contains("bus=ide.1,unit=0,drive=disk2"), "{line}");
    }

    #[test]
    fn a_serial_number_is_short_and_plain() {
        assert_eq!(serial("web-01,bus=\n.x_y"), "web-01bus.x_y");
        assert_eq!(serial(&"a".repeat(64)).len(), SERIAL_LEN_MAX);
    }
}
