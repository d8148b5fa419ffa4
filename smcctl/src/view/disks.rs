//! The machine's disks.

use api::{DiskList, ListedDisk};
use cli::paint::{Paint, Tone};
use cli::table::Align::{Left, Right};
use cli::table::{Cell, Table};
use cli::text::count;
use cli::units::size;

/// A row a disk, with why a job of all disks leaves it out.
pub fn lines(paint: Paint, list: &DiskList) -> Vec<String> {
    if list.disks.is_empty() {
        return vec!["no disks".to_owned()];
    }
    let mut table = Table::new(&[
        ("NAME", Left),
        ("SIZE", Right),
        ("TAKEN", Left),
        ("PATH", Left),
        ("MODEL", Left),
        ("SERIAL", Left),
        ("HOLDS", Left),
    ]);
    for disk in &list.disks {
        table.row(row(disk));
        if let Some(why) = &disk.left_out {
            table.note(format!("  left out: {why}"));
        }
    }
    table.lines(paint)
}

fn row(disk: &ListedDisk) -> [Cell; 7] {
    let or_dash = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
    let taken = match disk.left_out {
        None => Cell::painted(Tone::Good, "yes"),
        Some(_) => Cell::painted(Tone::Faint, "no"),
    };
    [
        disk.name.clone().into(),
        size(disk.size_bytes).into(),
        taken,
        disk.path.clone().into(),
        or_dash(&disk.model),
        or_dash(&disk.serial),
        disk.holds.clone().into(),
    ]
}

/// The same as the beginning of a job of all disks.
pub fn chosen(paint: Paint, list: &DiskList) -> Vec<String> {
    let taken = list.disks.iter().filter(|disk| disk.left_out.is_none()).count();
    let mut lines = lines(paint, list);
    lines.push(format!(
        "a job of all disks takes {} of {}",
        taken,
        count(list.disks.len(), "disk")
    ));
    lines
}
