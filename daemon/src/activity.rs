//! Whether a disk was written to while it was read: the kernel's own counters say so.

use blockio::{Device, DeviceKind};
use imagefmt::Consistency;
use std::fs;
use std::path::{Path, PathBuf};

/// Watches the disks of a sync from before its first read.
#[derive(Debug)]
pub struct Watch {
    disks: Vec<(String, PathBuf, Option<Counters>)>,
}

/// Write counters of a disk (Documentation/block/stat.rst: fields 5, 7, 9, 12 and 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    write_requests: u64,
    write_sectors: u64,
    in_flight: u64,
    discard_requests: u64,
    discard_sectors: u64,
}

impl Watch {
    /// Notes the counters of all disks.
    pub fn start<'a>(disks: impl Iterator<Item = (&'a str, &'a Device)>) -> Self {
        let disks = disks.map(|(name, device)| {
            let path = stat_path(device);
            (name.to_owned(), path.clone(), read(&path))
        });
        Self {
            disks: disks.collect(),
        }
    }

    /// The class that an image earns without a freeze, and why it is no better.
    pub fn finish(&self) -> (Consistency, String) {
        for (name, path, before) in &self.disks {
            let Some(before) = before else {
                return (
                    Consistency::Fuzzy,
                    format!("nothing tells whether {name} was written to meanwhile"),
                );
            };
            match read(path) {
                Some(now) if now == *before && now.in_flight == 0 => {}
                Some(now) => {
                    let sectors = now.write_sectors.wrapping_sub(before.write_sectors);
                    return (
                        Consistency::Fuzzy,
                        format!("{name} was being written to: {sectors} sectors meanwhile"),
                    );
                }
                None => return (Consistency::Fuzzy, format!("the counters of {name} are gone")),
            }
        }
        (
            Consistency::Crash,
            "no disk was written to meanwhile, but nothing was flushed or frozen".to_owned(),
        )
    }
}

/// The counters of the whole disk, so that writes through any of its partitions count.
fn stat_path(device: &Device) -> PathBuf {
    match (device.kind(), device.device_number()) {
        (DeviceKind::Block, Some((major, minor))) => format!("/sys/dev/block/{major}:{minor}").into(),
        _ => PathBuf::new(),
    }
}

fn read(dir: &Path) -> Option<Counters> {
    let whole_disk = !dir.join("partition").exists();
    let queue = if whole_disk {
        dir.join("queue")
    } else {
        dir.join("../queue")
    };
    // With iostats off the counters stand still, whatever is written.
    if fs::read_to_string(queue.join("iostats")).ok()?.trim() != "1" {
        return None;
    }
    let text = fs::read_to_string(dir.join("stat")).ok()?;
    let fields: Vec<u64> = text
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    Some(Counters {
        write_requests: *fields.get(4)?,
        write_sectors: *fields.get(6)?,
        in_flight: *fields.get(8)?,
        discard_requests: *fields.get(11)?,
        discard_sectors: *fields.get(13)?,
    })
}
