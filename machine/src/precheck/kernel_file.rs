//! Whether the file of a kernel is whole: by its own header, and by the checksum that Debian's package manager keeps.

use md5::{Digest, Md5};

use super::Context;
use super::boot::Kernel;
use super::findings::Findings;
use crate::text::shown;

/// No kernel is larger.
const KERNEL_MAX_BYTES: u64 = 256 << 20;
const PACKAGES: &str = "/var/lib/dpkg/info";
const LIST_MAX_BYTES: u64 = 16 << 20;
const ADVICE: &str =
    "install the kernel's package again, for example: apt-get install --reinstall linux-image-RELEASE";

/// What of the kernels' files differs from what was installed.
pub(super) fn check(case: &Context<'_>, kernels: &[Kernel], out: &mut Findings) {
    for kernel in kernels {
        let path = format!("/boot/vmlinuz-{}", kernel.label);
        if case.is_behind_automount(&path) || !case.files.exists(&path) {
            continue;
        }
        let Some(content) = case.files.bytes_up_to(&path, KERNEL_MAX_BYTES) else {
            continue;
        };
        if is_cut_off(&content) {
            let found = format!(
                "{} is shorter than its header says: it would not start",
                shown(&path)
            );
            out.critical("kernel_image", found, ADVICE);
            continue;
        }
        let installed = installed_checksum(case, kernel, &path);
        if installed.is_some_and(|installed| installed != checksum(&content)) {
            let found = format!(
                "{} is not what its package has installed: it is damaged, or was replaced",
                shown(&path)
            );
            out.critical("kernel_image", found, ADVICE);
        }
    }
}

/// Whether the file ends before the kernel does (Linux, Documentation/arch/x86/boot.rst: `setup_sects` and `syssize`).
fn is_cut_off(content: &[u8]) -> bool {
    if content.get(0x202..0x206) != Some(b"HdrS") {
        return false;
    }
    let setup_sectors = match content[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let paragraphs = content[0x1f4..0x1f8]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    content.len() < (setup_sectors + 1) * 512 + paragraphs * 16
}

fn checksum(content: &[u8]) -> String {
    hex::encode(Md5::digest(content))
}

/// What dpkg noted when it installed the file: lines of checksum and path.
fn installed_checksum(case: &Context<'_>, kernel: &Kernel, path: &str) -> Option<String> {
    let names = case.files.names(PACKAGES).into_iter();
    let lists = names.filter(|name| name.ends_with(".md5sums") && name.contains(&kernel.release));
    lists.into_iter().find_map(|name| {
        let text = case
            .files
            .text_up_to(format!("{PACKAGES}/{name}"), LIST_MAX_BYTES);
        let line = text.lines().find(|line| line.ends_with(&path[1..]))?;
        let (checksum, listed) = line.split_once(char::is_whitespace)?;
        (listed.trim() == &path[1..]).then(|| checksum.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::{checksum, is_cut_off};

    #[test]
    fn a_kernel_says_how_long_it_is() {
        let mut file = vec![0; 3 * 512 + 32];
        assert!(!is_cut_off(&file));
        file[0x1f1] = 2;
        file[0x1f4] = 2;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(!is_cut_off(&file));
        file.pop();
        assert!(is_cut_off(&file));
        assert!(!is_cut_off(b"MZ"));
    }

    #[test]
    fn a_checksum_is_written_as_md5sum_does() {
        assert_eq!(checksum(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
    }
}
