//! What the demo shows: numbered steps, sizes as people read them, and the table at the end.

use std::process::Command;

use comfy_table::{CellAlignment, Table, presets};
use testkit::process;
use vm_tests::guest::BootReport;

use crate::tools::SyncReport;

/// An image with what its sync and its guest said.
pub struct Image {
    pub sync: SyncReport,
    pub boot: BootReport,
}

/// Long enough for every command whose end matters.
const LONGEST_COMMAND: usize = 320;

/// Announces steps, numbered from 1.
#[derive(Default)]
pub struct Steps(u32);

impl Steps {
    pub fn next(&mut self, what: &str) {
        self.0 += 1;
        println!("\n{}. {what}", self.0);
    }
}

/// Shows a command as a person would type it; one with hundreds of file names is cut.
pub fn command(command: &Command) {
    let line = process::display(command);
    match line.char_indices().nth(LONGEST_COMMAND) {
        Some((end, _)) => println!("   $ {} ...", &line[..end]),
        None => println!("   $ {line}"),
    }
}

/// What an image of this consistency class is worth.
pub fn class_meaning(class: &str) -> &'static str {
    match class {
        "offline" => "nobody could write to the disk",
        "filesystem" => "its filesystems were frozen together",
        "crash" => "mounted, but nothing was written: like a power cut",
        "fuzzy" => "read while writes went on: good as a base for the next sync, not promised to boot",
        _ => "a class this demo does not know",
    }
}

pub fn result(text: &str) {
    println!("   {text}");
}

/// A size in binary units with three digits or so.
#[allow(clippy::cast_precision_loss, reason = "a size for people")]
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// The digest with its scheme and its first 12 hexadecimal digits.
fn short(digest: &str) -> &str {
    let start = digest.find(':').map_or(0, |colon| colon + 1);
    digest.get(..start + 12).unwrap_or(digest)
}

pub fn print(images: &[Image]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "image",
        "kind",
        "found by",
        "consistency",
        "compared",
        "dirty",
        "stored",
        "sync",
        "digest",
        "booted as",
        "booted in",
    ]);
    for Image { sync, boot } in images {
        let disk = sync.disk();
        table.add_row([
            sync.image.clone(),
            sync.kind.clone(),
            sync.method.clone(),
            sync.consistency.clone(),
            size(disk.compared_bytes),
            size(disk.dirty_bytes),
            size(disk.stored_bytes),
            format!("{:.1} s", sync.seconds),
            short(&disk.digest).to_owned(),
            boot.point_in_time.clone(),
            format!("{:.1} s ({})", boot.seconds, boot.accelerator),
        ]);
    }
    for column in [4, 5, 6, 7, 10] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("\n{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1 << 30), "1.0 GiB");
        assert_eq!(size((1 << 30) - 1), "1.0 GiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
    }

    #[test]
    fn a_digest_keeps_its_scheme() {
        assert_eq!(short("smc1-64k:0123456789abcdef"), "smc1-64k:0123456789ab");
        assert_eq!(short("smc1-64k:01"), "smc1-64k:01");
    }
}
