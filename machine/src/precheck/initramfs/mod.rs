//! The initramfs that a kernel starts with, and which drivers are in it.

mod cpio;
mod segments;

use std::collections::BTreeSet;
use std::io;
use std::time::Instant;

use hostdev::Root;

use super::Context;
use super::boot::Kernel;
use crate::text::{cause, list};

/// What was seen in an initramfs.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Names of the drivers that were looked for and are there.
    pub found: BTreeSet<String>,
    /// Why it could not be checked to its end.
    pub problem: Option<String>,
    /// Whether it holds a filesystem image, as dracut's squash module makes it, which is not looked into.
    pub is_packed_twice: bool,
}

/// The name of the driver in a module's file: `kernel/drivers/block/virtio_blk.ko.xz`, with one spelling of hyphens.
pub(super) fn module_name(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (name, packing) = file.split_once(".ko")?;
    let is_module = matches!(packing, "" | ".gz" | ".xz" | ".zst" | ".bz2" | ".lzma");
    is_module.then(|| name.replace('-', "_"))
}

/// Where a boot loader's path may be: it sees its own partition, which may be mounted at one of these.
const PARTITIONS: [&str; 4] = ["", "/boot", "/boot/efi", "/efi"];

/// The files that make up a kernel's initramfs: as a boot loader was told, else where distributions put them.
pub(super) fn files(case: &Context<'_>, kernel: &Kernel) -> Vec<String> {
    let mut told = case
        .entries
        .iter()
        .filter(|entry| entry.starts(&kernel.label) || entry.starts(&kernel.release));
    let told = told.find_map(|entry| {
        let files: Vec<String> = entry
            .initrds
            .iter()
            .filter_map(|path| located(case, path))
            .collect();
        (!files.is_empty()).then_some(files)
    });
    told.unwrap_or_else(|| usual(case, kernel))
}

/// The machine's path of a loader's: `(hd0,1)/initrd.img`, `/@/boot/initrd.img` on a btrfs, `../initrd.img`.
fn located(case: &Context<'_>, path: &str) -> Option<String> {
    let path = path.split_once(')').map_or(path, |(_, path)| path);
    let path = path.trim_start_matches("../").trim_start_matches('/');
    let below_subvolume = path
        .split_once('/')
        .filter(|(first, _)| first.starts_with('@'))
        .map(|(_, rest)| rest);
    let spellings = [Some(path), below_subvolume];
    let mut places = spellings
        .into_iter()
        .flatten()
        .filter(|path| !path.contains(".."))
        .flat_map(|path| {
            let readable = PARTITIONS
                .iter()
                .filter(|directory| !case.is_behind_automount(directory));
            readable.map(move |directory| format!("{directory}/{path}"))
        });
    places.find(|path| case.files.file_bytes(path).is_some())
}

fn usual(case: &Context<'_>, kernel: &Kernel) -> Vec<String> {
    let (label, release) = (&kernel.label, &kernel.release);
    let machine = case.files.attribute("/etc/machine-id").unwrap_or_default();
    let mut places = vec![
        format!("/boot/initrd.img-{label}"),
        format!("/boot/initramfs-{label}.img"),
        format!("/boot/initrd-{label}"),
        format!("/boot/initrd-{label}.img"),
        format!("/boot/initramfs-{label}"),
        format!("/boot/initramfs-genkernel-x86_64-{label}"),
        format!("/lib/modules/{release}/initrd"),
        format!("/lib/modules/{release}/initramfs.img"),
    ];
    if machine.len() == 32 && machine.chars().all(|c| c.is_ascii_hexdigit()) {
        let partitions = PARTITIONS[1..].iter();
        places.extend(partitions.map(|directory| format!("{directory}/{machine}/{release}/initrd")));
    }
    places
        .into_iter()
        .find(|path| !case.is_behind_automount(path) && case.files.file_bytes(path).is_some())
        .into_iter()
        .collect()
}

/// Looks for drivers of this release in the files of an initramfs, until all are found.
pub(crate) fn scan(
    root: &Root,
    files: &[String],
    release: &str,
    wanted: &[&str],
    deadline: Instant,
) -> Listing {
    let mut listing = Listing::default();
    for file in files {
        let mut visit = |name: &[u8]| listing.visit(name, release, wanted);
        let opened = root.open(file).map_err(|error| cause(&error));
        let scanned = opened
            .and_then(|file| segments::scan(file, deadline, &mut visit).map_err(|error| message(&error)));
        if let Err(problem) = scanned {
            listing.problem = Some(problem);
        }
        if listing.found.len() == wanted.len() {
            listing.problem = None;
            break;
        }
    }
    listing
}

impl Listing {
    /// Looks at the name of one file of the archive. False once there is nothing left to look for.
    fn visit(&mut self, name: &[u8], release: &str, wanted: &[&str]) -> bool {
        let name = String::from_utf8_lossy(name);
        self.is_packed_twice |= ["squash-root.img", "squashfs-root.img", "erofs-root.img"]
            .iter()
            .any(|image| name.ends_with(image));
        let mut directories = name.split('/');
        let is_of_release = directories.any(|part| part == "modules") && directories.next() == Some(release);
        if let Some(driver) =
            module_name(&name).filter(|driver| is_of_release && wanted.contains(&driver.as_str()))
        {
            self.found.insert(driver);
        }
        self.found.len() < wanted.len()
    }
}

fn message(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "it is too large to be read in a few seconds".to_owned(),
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    }
}

/// What puts drivers into the initramfs, for the program that makes it on this machine.
pub(super) fn advice(case: &Context<'_>, kernel: &Kernel, drivers: &[&str]) -> String {
    let spaced = drivers.join(" ");
    let release = crate::text::shown(&kernel.release);
    let has = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|d| case.files.exists(format!("{d}/{program}")))
    };
    let file = files(case, kernel)
        .pop()
        .map_or_else(String::new, |file| format!("{} ", crate::text::shown(&file)));
    if has("update-initramfs") {
        format!("printf '%s\\n' {spaced} >> /etc/initramfs-tools/modules && update-initramfs -u -k {release}")
    } else if has("dracut") {
        let file = if file.is_empty() {
            format!("--kver {release}")
        } else {
            format!("{file}{release}")
        };
        format!("echo 'add_drivers+=\" {spaced} \"' > /etc/dracut.conf.d/smc-virtio.conf && dracut -f {file}")
    } else if has("mkinitcpio") {
        format!("add {spaced} to MODULES=() in /etc/mkinitcpio.conf, then mkinitcpio -P")
    } else if has("mkinitfs") {
        format!("add virtio and nvme to features in /etc/mkinitfs/mkinitfs.conf, then mkinitfs {release}")
    } else {
        let drivers = list(drivers, drivers.len());
        format!(
            "add {drivers} with the distribution's program for initramfs (update-initramfs, dracut -f, mkinitcpio), or build them into the kernel"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::module_name;

    #[test]
    fn modules_are_known_however_they_are_packed_and_spelled() {
        let cases = [
            ("kernel/drivers/block/virtio_blk.ko", Some("virtio_blk")),
            ("lib/modules/6.1/kernel/virtio-blk.ko.zst", Some("virtio_blk")),
            ("virtio_blk.ko.xz", Some("virtio_blk")),
            ("virtio_blk.ko.sig", None),
            ("virtio_blk.koala", None),
            ("virtio_blk", None),
            ("", None),
        ];
        for (path, name) in cases {
            assert_eq!(module_name(path).as_deref(), name, "{path}");
        }
    }
}
