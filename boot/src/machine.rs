//! A headless PC for QEMU, described piece by piece.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use crate::accelerator::Accelerator;
use crate::bus::{Attached, Bus};

/// The program that runs guests.
pub const QEMU: &str = "qemu-system-x86_64";

/// All but what a URI's path and query may hold as it is (RFC 3986, section 3.3), without `&` and `+`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

/// A machine with one processor, nothing on its screen, and its first serial line as its console. It ends instead of
/// restarting.
#[derive(Debug)]
pub struct Machine {
    command: Command,
    disks: usize,
    /// Those whose controller it has.
    buses: Vec<Bus>,
}

/// A disk.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// A file, a device or a URI, such as [`nbd_uri`] makes.
    pub source: &'a str,
    /// `raw`, `qcow2`: as QEMU names it.
    pub format: &'a str,
    /// Whether what the guest writes goes to an overlay that is thrown away.
    pub snapshot: bool,
    /// The guest finds the disk as `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: Option<&'a str>,
}

impl Machine {
    /// A machine without disks.
    pub fn new(accelerator: Accelerator, memory_mib: u32) -> Self {
        let mut command = Command::new(QEMU);
        command.args(["-no-user-config", "-nodefaults", "-display", "none"]);
        command.args(["-monitor", "none", "-serial", "stdio", "-no-reboot"]);
        command.arg("-m").arg(memory_mib.to_string());
        command.args(accelerator.arguments());
        Self {
            command,
            disks: 0,
            buses: Vec::new(),
        }
    }

    /// Gives it so many processors instead of one.
    pub fn processors(&mut self, count: u32) -> &mut Self {
        self.command.arg("-smp").arg(count.to_string());
        self
    }

    /// Adds a virtio disk. The first one is what the machine boots from, unless it has a kernel.
    pub fn disk(&mut self, disk: &Disk<'_>) -> &mut Self {
        match disk.serial {
            None => self.option("-drive", &(drive(disk) + ",if=virtio")),
            Some(serial) => self.disk_on(Bus::Virtio, disk, serial),
        }
    }

    /// Adds a disk with this serial number to this bus. What the guest discards reads as zeros afterwards.
    pub fn disk_on(&mut self, bus: Bus, disk: &Disk<'_>, serial: &str) -> &mut Self {
        self.option("-drive", &format!("{},if=none,id={serial}", drive(disk)));
        if let Some(controller) = bus.controller().filter(|_| !self.buses.contains(&bus)) {
            self.option("-device", controller);
        }
        self.buses.push(bus);
        let attached = Attached {
            drive: serial,
            index: self.disks,
            serial,
            more: "",
        };
        self.disks += 1;
        for device in bus.devices(&attached) {
            self.option("-device", &device);
        }
        self
    }

    fn option(&mut self, name: &str, value: &str) -> &mut Self {
        self.command.arg(name).arg(value);
        self
    }

    /// Starts this kernel without a boot loader. `console` is the serial line that it writes to, as `ttyS0`;
    /// `parameters` join its command line.
    pub fn kernel(&mut self, kernel: &Path, initramfs: &Path, console: &str, parameters: &str) -> &mut Self {
        self.command.arg("-kernel").arg(kernel);
        self.command.arg("-initrd").arg(initramfs);
        let line = format!("console={console} panic=-1 {parameters}");
        self.command.arg("-append").arg(line);
        self
    }

    /// Adds a serial line that is written to a file.
    pub fn serial_file(&mut self, file: &Path) -> &mut Self {
        let file = file.display().to_string().replace(',', ",,");
        self.command.arg("-serial").arg(format!("file:{file}"));
        self
    }

    /// Adds a virtio network card. Through it the guest reaches this machine's 127.0.0.1 at 10.0.2.2, and nothing
    /// reaches the guest.
    pub fn network(&mut self) -> &mut Self {
        self.command.args(["-netdev", "user,id=net0"]);
        // Without a ROM: nothing boots from this card.
        self.command
            .args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
        self
    }

    /// Leaves the processor stopped.
    #[cfg(test)]
    pub(crate) fn paused(&mut self) {
        self.command.arg("-S");
    }

    /// The command that starts it.
    pub fn command(&self) -> &Command {
        &self.command
    }

    pub(crate) fn into_command(self) -> Command {
        self.command
    }
}

/// The value of QEMU's option `-drive` without what it is attached to.
fn drive(disk: &Disk<'_>) -> String {
    // A comma would end the option's value; doubled it stands for itself.
    let source = disk.source.replace(',', ",,");
    let snapshot = if disk.snapshot { ",snapshot=on" } else { "" };
    format!("file={source},format={}{snapshot},discard=unmap", disk.format)
}

/// The address of an export on a Unix socket, as QEMU and libnbd read it.
pub fn nbd_uri(socket: &Path, export: &str) -> String {
    format!(
        "nbd+unix:///{}?socket={}",
        utf8_percent_encode(export, ENCODED),
        percent_encode(socket.as_os_str().as_bytes(), ENCODED)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(machine: &Machine) -> Vec<String> {
        let arguments = machine.command().get_args();
        arguments
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn export_names_survive_the_uri() {
        let uri = nbd_uri(Path::new("/run/a b.sock"), "web01/1:vda");
        assert_eq!(uri, "nbd+unix:///web01/1:vda?socket=/run/a%20b.sock");
        let uri = nbd_uri(Path::new("/s"), "ä&b?c+d#e%f,g");
        assert_eq!(uri, "nbd+unix:///%C3%A4%26b%3Fc%2Bd%23e%25f%2Cg?socket=/s");
    }

    #[test]
    fn a_disks_name_cannot_add_options_to_it() {
        let mut machine = Machine::new(Accelerator::Tcg, 64);
        machine.disk(&Disk {
            source: "/srv/a,readonly=off",
            format: "raw",
            snapshot: true,
            serial: Some("root"),
        });
        let arguments = arguments(&machine);
        let wanted = "file=/srv/a,,readonly=off,format=raw,snapshot=on,discard=unmap,if=none,id=root";
        assert!(arguments.contains(&wanted.to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"virtio-blk-pci,drive=root,serial=root".to_owned()));
    }

    #[test]
    fn disks_share_one_scsi_controller_and_two_nvme_controllers_share_a_disk() {
        let mut machine = Machine::new(Accelerator::Tcg, 64);
        let disk = Disk {
            source: "/srv/a",
            format: "raw",
            snapshot: false,
            serial: None,
        };
        machine.disk_on(Bus::Scsi, &disk, "one");
        machine.disk_on(Bus::Scsi, &disk, "two");
        machine.disk_on(Bus::NvmeMultipath, &disk, "three");
        let line = arguments(&machine).join(" ");
        assert_eq!(line.matches("virtio-scsi-pci").count(), 1, "{line}");
        assert_eq!(line.matches("scsi-hd").count(), 2, "{line}");
        assert_eq!(line.matches("-device nvme,").count(), 2, "{line}");
        assert_eq!(line.matches("-device nvme-ns,").count(), 1, "{line}");
    }

    #[test]
    fn an_accelerator_is_named_and_a_kernel_has_its_console() {
        let mut machine = Machine::new(Accelerator::Kvm, 64);
        machine.kernel(Path::new("/k"), Path::new("/i"), "ttyS1", "smc.phase=a");
        let line = arguments(&machine).join(" ");
        assert!(line.contains("-m 64 -accel kvm -cpu host"), "{line}");
        assert!(
            line.ends_with("-kernel /k -initrd /i -append console=ttyS1 panic=-1 smc.phase=a"),
            "{line}"
        );
    }
}
