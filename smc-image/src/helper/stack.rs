//! Putting volumes together, in the guest: arrays of md, LUKS containers and volume groups, again and again until nothing new
//! comes of it, because each may lie in another.

use super::supplies::{LOADER, PROGRAMS, TOOLS};
use super::wire::{Opened, Part, SERIAL, Volume};
use crate::mount::filesystem::{Content, Stacked, probe};
use crate::mount::partition::Source;
use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How deep things may lie in each other.
const ROUNDS_MAX: usize = 8;
/// How long the drivers may take to find all disks.
const DISKS_TIMEOUT: Duration = Duration::from_secs(60);
/// Of what a program says, the end.
const SAID_LEN_MAX: usize = 500;

/// Nobody else is here: no udev, no daemons, no other machine; and nothing is worth a backup.
const LVM_CONFIG: &str = "devices { use_devicesfile=0 obtain_device_list_from_udev=0 \
    external_device_info_source=\"none\" } activation { udev_sync=0 udev_rules=0 monitoring=0 \
    auto_activation_volume_list=[\"@*\"] thin_pool_autoextend_threshold=100 } backup { backup=0 archive=0 } \
    global { use_lvmpolld=0 use_lvmlockd=0 event_activation=0 thin_check_executable=\"\" cache_check_executable=\"\" }";

/// Runs one of the programs of the initramfs, with `input` on its standard input.
fn run(name: &str, arguments: &[&str], input: &[u8]) -> anyhow::Result<()> {
    let programs = Path::new("/").join(PROGRAMS);
    let program = programs.join(name);
    if !program.exists() {
        let package = TOOLS.iter().find(|(tool, _)| *tool == name);
        let package = package.map_or(name, |(_, package)| package);
        bail!("{name} is not installed on the machine that opens the image: install the package {package}");
    }
    let mut command = Command::new(programs.join(LOADER));
    command.arg("--library-path").arg(&programs).arg(&program);
    let mut child = command
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that has failed already reads nothing.
        let _ = stdin.write_all(input);
    }
    let ended = child
        .wait_with_output()
        .with_context(|| format!("wait for {name}"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    let said = said.trim().replace('\n', "; ");
    let cut = said.len().saturating_sub(SAID_LEN_MAX);
    let cut = (cut..=said.len()).find(|&at| said.is_char_boundary(at));
    ensure!(
        ended.status.success(),
        "{name}: {}",
        &said[cut.unwrap_or_default()..]
    );
    Ok(())
}

/// What is put together, and of what.
#[derive(Debug)]
pub struct Stack {
    /// The guest's names of the image's disks, and the image's.
    disks: BTreeMap<String, String>,
    problems: BTreeSet<String>,
}

/// A block device as the kernel shows it.
#[derive(Debug, Clone)]
struct Device {
    name: String,
    dir: PathBuf,
}

impl Stack {
    /// Waits until all disks are there; `names` are the image's, in their order.
    ///
    /// # Errors
    /// Where one does not come.
    pub fn wait_for(names: &[String]) -> anyhow::Result<Self> {
        let deadline = Instant::now() + DISKS_TIMEOUT;
        loop {
            let disks = disks_there(names);
            if disks.len() == names.len() {
                return Ok(Self {
                    disks,
                    problems: BTreeSet::new(),
                });
            }
            ensure!(Instant::now() < deadline, "not all disks are there");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Opens what can be opened. Gives what can be shown, and the devices that it is on, in the same order.
    pub fn open(mut self, key: Option<&[u8]>) -> (Opened, Vec<PathBuf>) {
        for _ in 0..ROUNDS_MAX {
            let before = names();
            self.problems.clear();
            self.assemble_arrays();
            self.open_containers(key);
            self.activate_groups();
            if names() == before {
                break;
            }
        }
        let (volumes, devices) = self.volumes().into_iter().unzip();
        let problems = self.problems.into_iter().collect();
        (Opened { volumes, problems }, devices)
    }

    fn note<T>(&mut self, what: &str, done: anyhow::Result<T>) {
        if let Err(error) = done {
            self.problems.insert(format!("{what}: {error:#}"));
        }
    }

    /// Arrays start also without a member that has failed. Nothing is resynchronized: the overlay would take a whole disk.
    fn assemble_arrays(&mut self) {
        let members = Self::holding(Stacked::Raid);
        if members.is_empty() {
            return;
        }
        let read_only = Path::new("/sys/module/md_mod/parameters/start_ro");
        // Where it cannot be set, an array starts as it does on a server.
        let _ = fs::write(read_only, "1");
        let config = "/etc/mdadm.conf";
        let written = fs::write(config, "DEVICE partitions\nHOMEHOST <ignore>\nAUTO +all\n");
        let assembled = written.context("configure mdadm").and_then(|()| {
            run(
                "mdadm",
                &["--assemble", "--scan", "--run", "--config", config],
                &[],
            )
        });
        for array in devices().iter().filter(|device| device.is_array()) {
            let _ = fs::write(array.dir.join("md/sync_action"), "frozen");
        }
        let missing = Self::holding(Stacked::Raid);
        if !missing.is_empty() {
            let places = self.places(&missing);
            self.note(
                &format!("the RAID array on {places}"),
                assembled.and(Err::<(), _>(anyhow::anyhow!("it cannot be assembled"))),
            );
        }
    }

    fn open_containers(&mut self, key: Option<&[u8]>) {
        for device in Self::holding(Stacked::Luks) {
            let place = self.places(std::slice::from_ref(&device));
            let opened = match key {
                Some(key) => open_container(&device, key),
                None => Err(anyhow::anyhow!(
                    "it needs a passphrase: --key-file FILE, or a terminal"
                )),
            };
            self.note(&format!("the LUKS container on {place}"), opened);
        }
    }

    fn activate_groups(&mut self) {
        let members = Self::holding(Stacked::Lvm);
        if members.is_empty() {
            return;
        }
        let places = self.places(&members);
        let activated = run("lvm", &["vgchange", "--config", LVM_CONFIG, "-ay", "-K"], &[]);
        self.note(&format!("the volume groups on {places}"), activated);
    }

    /// Devices that hold a part of something which is not open yet.
    fn holding(wanted: Stacked) -> Vec<Device> {
        let holds = |device: &Device| {
            let content = device.source().and_then(|source| {
                let size = source.size_bytes();
                probe(&source, 0, size)
            });
            matches!(content, Ok(Content::Stacked(found)) if found == wanted)
        };
        devices()
            .into_iter()
            .filter(|device| !device.is_held() && holds(device))
            .collect()
    }

    /// Devices in words: `partition 2 of vda and md0`.
    fn places(&self, devices: &[Device]) -> String {
        let place = |device: &Device| match self.part(&device.name) {
            Some(Part {
                disk,
                partition: Some(number),
            }) => format!("partition {number} of {disk}"),
            Some(Part { disk, .. }) => disk,
            None => device.shown_name(),
        };
        devices.iter().map(place).collect::<Vec<_>>().join(" and ")
    }

    /// What a device of the guest is in the image.
    fn part(&self, name: &str) -> Option<Part> {
        let (own, disk) = self
            .disks
            .iter()
            .find(|(own, _)| name.starts_with(own.as_str()))?;
        let rest = &name[own.len()..];
        let partition = match rest {
            "" => None,
            number => Some(number.parse().ok()?),
        };
        let disk = disk.clone();
        Some(Part { disk, partition })
    }

    fn volumes(&mut self) -> Vec<(Volume, PathBuf)> {
        let mut volumes = Vec::new();
        for device in devices() {
            if !device.is_volume() {
                continue;
            }
            let Some(size_bytes) = device.size_bytes().filter(|&size| size > 0) else {
                if device.is_array() {
                    let name = device.shown_name();
                    self.problems.insert(format!("{name}: the array is not active"));
                }
                continue;
            };
            let mut parts = Vec::new();
            self.add_parts(&device, &mut parts, 0);
            let volume = Volume {
                name: device.shown_name(),
                size_bytes,
                block_bytes: device.number("queue/logical_block_size").unwrap_or(512),
                aliases: device.aliases(),
                parts,
            };
            volumes.push((volume, device.node()));
        }
        volumes
    }

    fn add_parts(&self, device: &Device, parts: &mut Vec<Part>, depth: usize) {
        if let Some(part) = self.part(&device.name) {
            if !parts.contains(&part) {
                parts.push(part);
            }
            return;
        }
        if depth > ROUNDS_MAX {
            return;
        }
        for below in entries(&device.dir.join("slaves")) {
            if let Some(below) = devices().into_iter().find(|device| device.name == below) {
                self.add_parts(&below, parts, depth + 1);
            }
        }
    }
}

fn open_container(device: &Device, key: &[u8]) -> anyhow::Result<()> {
    let source = device.source()?;
    let mut head = [0; 4096];
    source.read_at(0, &mut head)?;
    let id = hostdev::filesystem_id(&head).unwrap_or_default();
    let id = id.split_once(':').map_or(device.name.as_str(), |(_, id)| id);
    let node = device.node();
    let node = node.to_str().context("a device has a strange name")?;
    run(
        "cryptsetup",
        &[
            "open",
            "--key-file",
            "-",
            "--batch-mode",
            node,
            &format!("luks-{id}"),
        ],
        key,
    )
}

fn disks_there(names: &[String]) -> BTreeMap<String, String> {
    let serial = |device: &Device| fs::read_to_string(device.dir.join("serial")).ok();
    let named = |device: Device| {
        let serial = serial(&device)?;
        let index: usize = serial.trim().strip_prefix(SERIAL)?.parse().ok()?;
        Some((device.name, names.get(index)?.clone()))
    };
    devices().into_iter().filter_map(named).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn names() -> Vec<String> {
    entries(Path::new("/sys/class/block"))
}

fn devices() -> Vec<Device> {
    let device = |name: String| Device {
        dir: Path::new("/sys/class/block").join(&name),
        name,
    };
    names().into_iter().map(device).collect()
}

impl Device {
    fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    fn text(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, file: &str) -> Option<u32> {
        self.text(file)?.parse().ok()
    }

    fn size_bytes(&self) -> Option<u64> {
        let sectors: u64 = self.text("size")?.parse().ok()?;
        sectors.checked_mul(512)
    }

    fn is_array(&self) -> bool {
        self.dir.join("md").is_dir()
    }

    /// Whether something is put together from it, or from a partition of it.
    fn is_held(&self) -> bool {
        !entries(&self.dir.join("holders")).is_empty()
    }

    /// Whether it is what somebody has put together to be used: not a part of a thin pool, for example.
    fn is_volume(&self) -> bool {
        if self.is_held() {
            return false;
        }
        match self.text("dm/uuid") {
            // LVM marks its own devices behind the two ids, each of 32 characters.
            Some(uuid) if uuid.starts_with("LVM-") => uuid.len() == 4 + 64,
            Some(_) => true,
            None => self.is_array(),
        }
    }

    /// The name of a disk in an image has no other characters than these.
    fn shown_name(&self) -> String {
        let name = self.text("dm/name").unwrap_or_else(|| self.name.clone());
        let plain = |c: char| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') => c,
            _ => '_',
        };
        name.chars().map(plain).collect()
    }

    fn aliases(&self) -> Vec<String> {
        let Some(name) = self.text("dm/name") else {
            let links = entries(Path::new("/dev/md")).into_iter().filter(|link| {
                let target = fs::canonicalize(Path::new("/dev/md").join(link));
                target.is_ok_and(|target| target == self.node())
            });
            return links.map(|link| format!("/dev/md/{link}")).collect();
        };
        let mapper = format!("/dev/mapper/{name}");
        let of_group = logical_volume(&name).map(|(group, volume)| format!("/dev/{group}/{volume}"));
        [mapper].into_iter().chain(of_group).collect()
    }

    fn source(&self) -> anyhow::Result<DeviceSource> {
        let node = self.node();
        let mut file = File::open(&node).with_context(|| format!("open {}", node.display()))?;
        let size_bytes = file.seek(SeekFrom::End(0)).context("find the size")?;
        Ok(DeviceSource { file, size_bytes })
    }
}

/// Volume group and logical volume: in the mapper's name a hyphen is between them, and those in the names are doubled.
fn logical_volume(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'-', Some(b'-')) => at += 2,
            (b'-', _) => {
                let plain = |text: &str| text.replace("--", "-");
                return Some((plain(&name[..at]), plain(&name[at + 1..])));
            }
            _ => at += 1,
        }
    }
    None
}

struct DeviceSource {
    file: File,
    size_bytes: u64,
}

impl Source for DeviceSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> anyhow::Result<()> {
        Ok(self.file.read_exact_at(target, offset)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logical_volume_is_known_by_its_group() {
        let named = |name: &str| logical_volume(name).map(|(group, volume)| format!("{group}/{volume}"));
        assert_eq!(named("vg0-root").unwrap(), "vg0/root");
        assert_eq!(named("my--vg-my--data").unwrap(), "my-vg/my-data");
        assert_eq!(named("a---b").unwrap(), "a-/b");
        assert_eq!(named("plain"), None);
        assert_eq!(named("luks--x"), None);
    }

    #[test]
    fn a_device_is_named_as_in_the_image() {
        let stack = Stack {
            disks: [("vda", "sdb"), ("vdb", "nvme0n1")]
                .map(|(own, disk)| (own.to_owned(), disk.to_owned()))
                .into(),
            problems: BTreeSet::new(),
        };
        let part = stack.part("vdb12").unwrap();
        assert_eq!((part.disk.as_str(), part.partition), ("nvme0n1", Some(12)));
        assert_eq!(stack.part("vda").unwrap().partition, None);
        assert_eq!(stack.part("md0"), None);
        assert_eq!(stack.part("vdax"), None);
    }
}
