//! What boot loaders were told to start, and by which name the kernel is to find its root.

use std::collections::BTreeSet;

use api::Level;

use super::Context;
use super::findings::Findings;
use super::fstab::{absent, by_uuid};
use super::names::Stability;
use crate::text::{list, shown};

/// Configuration that lists kernels, each with the loader's name.
const CONFIGS: [(&str, &str); 8] = [
    ("/boot/grub/grub.cfg", "GRUB 2"),
    ("/boot/grub2/grub.cfg", "GRUB 2"),
    ("/boot/grub/menu.lst", "GRUB 0.97"),
    ("/boot/grub/grub.conf", "GRUB 0.97"),
    ("/boot/extlinux/extlinux.conf", "extlinux"),
    ("/boot/extlinux.conf", "extlinux"),
    ("/boot/syslinux/syslinux.cfg", "syslinux"),
    ("/boot/efi/EFI/grub/grub.cfg", "GRUB 2"),
];

/// Directories with a file for each kernel, as GRUB of Fedora and systemd-boot read them.
const ENTRY_DIRECTORIES: [&str; 3] = [
    "/boot/loader/entries",
    "/efi/loader/entries",
    "/boot/efi/loader/entries",
];

/// Files with a kernel's command line, but no kernel.
const COMMAND_LINES: [&str; 4] = [
    "/etc/default/grub",
    "/boot/grub/grubenv",
    "/boot/grub2/grubenv",
    "/etc/kernel/cmdline",
];

/// Menu entries looked at.
const ENTRIES_MAX: usize = 512;

/// One kernel that a boot loader may start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The file that says so.
    pub file: String,
    /// The loader's name.
    pub loader: &'static str,
    /// The kernel's file as the loader sees it: seen from its own partition.
    pub kernel: String,
    /// Release, where the entry says it.
    pub version: Option<String>,
    /// Initial file systems, as the loader sees them.
    pub initrds: Vec<String>,
    /// The kernel's command line.
    pub options: String,
}

impl Entry {
    /// Whether it starts the kernel of this release or label: `vmlinuz-6.1.0-18-amd64`, `vmlinuz-linux`.
    pub(super) fn starts(&self, label: &str) -> bool {
        if self.version.as_deref() == Some(label) {
            return true;
        }
        // Below a directory of the release in systemd's layout: /MACHINE/RELEASE/linux.
        let mut parts = self.kernel.rsplit('/');
        let file = parts.next().unwrap_or_default();
        file.strip_suffix(label).is_some_and(|kind| kind.ends_with('-')) || parts.next() == Some(label)
    }

    /// The parameters of the command line called `name=`.
    pub(super) fn parameters<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        parameters(&self.options, name)
    }
}

fn parameters<'a>(options: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let words = options.split(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    words
        .filter_map(move |word| word.strip_prefix(name))
        .filter(|value| !value.is_empty())
}

/// Everything that boot loaders may start.
pub(super) fn entries(case: &Context<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (file, loader) in CONFIGS {
        if !case.is_behind_automount(file) {
            let text = case.files.text(file);
            parse_menu(&text, file, loader, &mut entries);
        }
    }
    for directory in ENTRY_DIRECTORIES {
        if case.is_behind_automount(directory) {
            continue;
        }
        for file in case.files.files(directory, ".conf") {
            let text = case.files.text(&file);
            entries.extend(parse_entry(&text, &file));
        }
    }
    entries.truncate(ENTRIES_MAX);
    entries
}

/// Kernels in a menu of GRUB or extlinux, whose lines start with alike words.
fn parse_menu(text: &str, file: &str, loader: &'static str, entries: &mut Vec<Entry>) {
    let mut last: Option<Entry> = None;
    for line in text.lines() {
        let (word, rest) = first_word(line);
        let (target, arguments) = first_word(rest);
        match word.to_ascii_lowercase().as_str() {
            "linux" | "linux16" | "linuxefi" | "kernel" => {
                entries.extend(last.replace(new_entry(file, loader, target, arguments)));
            }
            // Xen starts the kernel as a module.
            "module" | "module2" if target.contains("vmlinuz") => {
                entries.extend(last.replace(new_entry(file, loader, target, arguments)));
            }
            "module" | "module2" | "initrd" | "initrd16" | "initrdefi" => add_initrds(last.as_mut(), rest),
            "append" => add_options(last.as_mut(), rest),
            _ => {}
        }
        if entries.len() >= ENTRIES_MAX {
            return;
        }
    }
    entries.extend(last);
}

fn new_entry(file: &str, loader: &'static str, kernel: &str, options: &str) -> Entry {
    Entry {
        file: file.to_owned(),
        loader,
        kernel: kernel.to_owned(),
        options: options.to_owned(),
        ..Entry::default()
    }
}

fn add_initrds(entry: Option<&mut Entry>, paths: &str) {
    if let Some(entry) = entry {
        let paths = paths.split(|c: char| c.is_whitespace() || c == ',');
        // GRUB's variables hold what other scripts add.
        let paths = paths.filter(|path| !path.is_empty() && !path.contains('$'));
        entry.initrds.extend(paths.take(16).map(str::to_owned));
    }
}

/// extlinux and systemd-boot take `initrd=` among the options too.
fn add_options(entry: Option<&mut Entry>, options: &str) {
    if let Some(entry) = entry {
        entry.options.push(' ');
        entry.options.push_str(options);
        let initrds: Vec<String> = entry
            .parameters("initrd=")
            .map(|path| path.replace('\\', "/"))
            .collect();
        initrds.iter().for_each(|paths| add_initrds(Some(entry), paths));
    }
}

/// A file of the Boot Loader Specification: one kernel, the lines in any order.
fn parse_entry(text: &str, file: &str) -> Option<Entry> {
    let mut entry = new_entry(file, "boot loader entries", "", "");
    for line in text.lines() {
        let (word, rest) = first_word(line);
        match word {
            "linux" => entry.kernel = rest.trim().to_owned(),
            "version" => entry.version = Some(rest.trim().to_owned()),
            "initrd" => add_initrds(Some(&mut entry), rest),
            "options" => add_options(Some(&mut entry), rest),
            _ => {}
        }
    }
    (!entry.kernel.is_empty()).then_some(entry)
}

fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(|c: char| c.is_whitespace()).unwrap_or((line, ""))
}

pub(super) fn check(case: &Context<'_>, out: &mut Findings) {
    found_loader(case, out);
    root_names(case, out);
    grub_default(case, out);
    device_map(case, out);
}

fn found_loader(case: &Context<'_>, out: &mut Findings) {
    let loaders: BTreeSet<String> = case
        .entries
        .iter()
        .map(|entry| format!("{} ({})", entry.loader, place(&entry.file)))
        .collect();
    // The finding about GRUB alone, which a BIOS would start, is there already.
    if loaders.is_empty() && out.has("boot_loader") {
        return;
    }
    if loaders.is_empty() {
        let found = "no configuration of a known boot loader was found (GRUB, systemd-boot, extlinux)";
        out.warning(
            "boot_loader",
            found,
            "make sure that the disk starts by itself: boot an image of it for a trial",
        );
    } else {
        out.ok(
            "boot_loader",
            format!("kernels are started by {}", list(loaders, 4)),
        );
    }
}

/// The file, or the directory of a file for one kernel.
fn place(file: &str) -> String {
    let directory = ENTRY_DIRECTORIES
        .iter()
        .find(|directory| file.starts_with(**directory));
    shown(directory.map_or(file, |directory| *directory))
}

/// Every `root=` and `resume=` on command lines, with the file that has it.
fn root_names(case: &Context<'_>, out: &mut Findings) {
    let mut lines: Vec<(String, String)> = case
        .entries
        .iter()
        .map(|entry| (entry.file.clone(), entry.options.clone()))
        .collect();
    for file in COMMAND_LINES {
        let text = case.files.text(file);
        let settings = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.extend(settings.map(|line| (file.to_owned(), after_assignment(line).to_owned())));
    }
    if case.entries.is_empty() {
        let running = case.files.text("/proc/cmdline");
        lines.push(("the running kernel's command line".to_owned(), running));
    }
    let mut seen = BTreeSet::new();
    for (file, options) in &lines {
        for name in ["root=", "resume="] {
            for device in
                parameters(options, name).filter(|device| seen.insert((file, name, (*device).to_owned())))
            {
                root_name(case, file, name, device, out);
            }
        }
    }
    if !out.has("boot_root") {
        match seen.iter().find(|(_, name, _)| *name == "root=") {
            Some((_, _, device)) => out.ok(
                "boot_root",
                format!("the kernel finds its root by {}", shown(device)),
            ),
            None => out.ok(
                "boot_root",
                "no command line names the root: the initramfs finds it by itself",
            ),
        }
    }
}

/// `GRUB_CMDLINE_LINUX="root=/dev/sda1"` and grubenv's `kernelopts=root=/dev/sda1`: what is after the first sign.
fn after_assignment(line: &str) -> &str {
    match line.split_once('=') {
        Some((key, value)) if key.starts_with("GRUB_CMDLINE") || key == "kernelopts" => value,
        _ => line,
    }
}

fn root_name(case: &Context<'_>, file: &str, name: &str, device: &str, out: &mut Findings) {
    let found = format!("{} has {name}{}", shown(file), shown(device));
    let (level, found) = match (Stability::of(device), name) {
        (Stability::Stable, "root=") => {
            let Some(kind) = absent(case, device) else { return };
            let found =
                format!("{found}, and no device here has this {kind}: the copy would not find its root");
            let advice = format!("correct the {kind}, and regenerate the boot loader's configuration");
            return out.critical("boot_root", found, advice);
        }
        (Stability::Stable, _) => return,
        (Stability::Changes, "root=") => (
            Level::Critical,
            format!("{found}, which will have another name: the copy would not find its root"),
        ),
        (Stability::Changes, _) => (Level::Warning, format!("{found}, which will have another name")),
        (Stability::MayChange, _) => (
            Level::Warning,
            format!("{found}, which may be another disk elsewhere"),
        ),
    };
    out.bad(
        "boot_root",
        level,
        found,
        format!(
            "{}, and regenerate the boot loader's configuration",
            by_uuid(case, device)
        ),
    );
}

/// GRUB's scripts can be told to name the root by its device.
fn grub_default(case: &Context<'_>, out: &mut Findings) {
    let text = case.files.text("/etc/default/grub");
    let disabled = text.lines().any(|line| {
        let (key, value) = line.trim().split_once('=').unwrap_or(("", ""));
        key == "GRUB_DISABLE_LINUX_UUID" && value.trim_matches(|c| c == '"' || c == '\'') == "true"
    });
    if disabled {
        let found = "/etc/default/grub has GRUB_DISABLE_LINUX_UUID=true: GRUB names the root by its device";
        out.warning(
            "grub_default",
            found,
            "remove that line, then update-grub (or grub2-mkconfig -o /boot/grub2/grub.cfg)",
        );
    }
}

/// Lines such as `(hd0) /dev/sda`: only grub-install reads them, and fails where the device is not there.
fn device_map(case: &Context<'_>, out: &mut Findings) {
    for file in ["/boot/grub/device.map", "/boot/grub2/device.map"] {
        let text = case.files.text(file);
        let names = text
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().nth(1));
        let stale: Vec<String> = names
            .filter(|name| Stability::of(name) != Stability::Stable)
            .map(shown)
            .collect();
        if !stale.is_empty() {
            let found = format!(
                "{file} names {}, which will have another name: grub-install would fail there",
                list(stale, 4)
            );
            out.warning(
                "grub_device_map",
                found,
                format!("remove {file}: GRUB does without it"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn menu(text: &str) -> Vec<Entry> {
        let mut entries = Vec::new();
        parse_menu(text, "/f", "GRUB 2", &mut entries);
        entries
    }

    #[test]
    fn a_grub_menu_yields_its_kernels() {
        let entries = menu(
            "menuentry 'x' {\n\tsearch --fs-uuid 1\n\tlinux /vmlinuz-6.1.0-18-amd64 root=UUID=6e ro quiet\n\
             \tinitrd\t/ucode.img /initrd.img-6.1.0-18-amd64 $tuned_initrd\n}\nlinux16 /memtest86+.bin\n",
        );
        assert_eq!(entries.len(), 2);
        assert!(entries[0].starts("6.1.0-18-amd64"));
        assert!(!entries[0].starts("18-amd64-x") && !entries[0].starts("6.1.0-1"));
        assert_eq!(entries[0].initrds, ["/ucode.img", "/initrd.img-6.1.0-18-amd64"]);
        assert_eq!(entries[0].parameters("root=").collect::<Vec<_>>(), ["UUID=6e"]);
    }

    #[test]
    fn extlinux_has_its_options_on_a_line_of_their_own() {
        let entries = menu(
            "LABEL l\n KERNEL ../vmlinuz-linux\n APPEND root=/dev/sda1 initrd=../initramfs-linux.img,../u.img\n",
        );
        assert_eq!(entries[0].initrds, ["../initramfs-linux.img", "../u.img"]);
        assert_eq!(entries[0].parameters("root=").collect::<Vec<_>>(), ["/dev/sda1"]);
    }

    #[test]
    fn an_entry_file_may_have_its_lines_in_any_order() {
        let text = "title x\noptions root=LABEL=r\nversion 6.8\ninitrd /a /b\nlinux /0123/6.8/linux\n";
        let entry = parse_entry(text, "/f").expect("it has a kernel");
        assert!(entry.starts("6.8"));
        assert_eq!(entry.initrds, ["/a", "/b"]);
        assert_eq!(parse_entry("title x\n", "/f"), None);
    }
}
