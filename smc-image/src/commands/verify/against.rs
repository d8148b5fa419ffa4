//! `smc-image verify --against`: whether a device holds what an image does.

use super::{known, print_findings};
use crate::context::Context;
use crate::exit::{self, Advise};
use anyhow::{Context as _, bail, ensure};
use blockio::{Chunk, Device, ReadOptions, SequentialReader};
use cli::interrupt::Interrupt;
use cli::output;
use cli::progress::Progress;
use cli::text;
use cli::units;
use imagefmt::{Against, Disk, ErrorKind, Finding, Image, ImageId, Span, Store};
use jiff::Timestamp;
use restore::pipeline::Pipeline;
use serde_json::json;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

/// Differing ranges that people are shown before they are only counted.
const RANGES_SHOWN_MAX: usize = 20;

/// Compares one disk of one image with a device, by reading both, and keeps the result beside the image.
///
/// Exit code 0 when both hold the same, 1 when they differ: a device that was written to since does. 3 when the image
/// is damaged.
///
/// # Errors
/// Wrong use, an image or a device that cannot be opened, a device that cannot be read, and output that cannot be
/// written.
pub fn run(
    context: &Context,
    store: &Store,
    images: &[ImageId],
    disk: Option<&str>,
    path: &Path,
) -> anyhow::Result<ExitCode> {
    let [image] = images else {
        bail!("--against compares with one image: name it as JOB/NUMBER or JOB/latest");
    };
    let image = store.open_image(image)?;
    let disk = image
        .disk(disk)
        .map_err(anyhow::Error::from)
        .advise("name one with --disk")?;
    let device = Device::open(path)?;
    let started = Timestamp::now();
    let found = compare(image.id(), disk, &device)?;
    let result = Against {
        span: Span {
            run: started,
            started,
            finished: Timestamp::now(),
        },
        disk: disk.name().to_owned(),
        device: path.display().to_string(),
        size_bytes: disk.size_bytes(),
        device_size_bytes: device.size_bytes(),
        equal: found.is_nothing() && device.size_bytes() == disk.size_bytes(),
        ranges: found.differing.len() as u64,
        differing_bytes: bytes_of(&found.differing),
    };
    keep(store, &image, &result, &found.damage);
    output::unless_closed(report(context.json, &image, disk, &result, &found))?;
    Ok(match (found.damage.is_empty(), result.equal) {
        (false, _) => ExitCode::from(exit::DAMAGED),
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
    })
}

/// What a comparison found, in ascending order.
#[derive(Debug, Default)]
struct Found {
    /// Bytes in which the device differs from the disk.
    differing: Vec<Range<u64>>,
    /// Clusters of the disk that cannot be read: nothing is known of whether they differ.
    damage: Vec<Finding>,
}

impl Found {
    fn is_nothing(&self) -> bool {
        self.differing.is_empty() && self.damage.is_empty()
    }

    fn add(&mut self, more: Self) {
        self.differing.extend(more.differing);
        self.damage.extend(more.damage);
    }

    /// Sorts what was found, with neighbours as one.
    fn merged(mut self) -> Self {
        self.differing.sort_by_key(|range| range.start);
        self.damage.sort_by_key(|finding| finding.clusters.start);
        let mut merged = Self::default();
        for range in self.differing {
            match merged.differing.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => merged.differing.push(range),
            }
        }
        for finding in self.damage {
            match merged.damage.last_mut() {
                Some(last) if last.clusters.end == finding.clusters.start && last.cause == finding.cause => {
                    last.clusters.end = finding.clusters.end;
                }
                _ => merged.damage.push(finding),
            }
        }
        merged
    }
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Compares a device with a disk of `image`, as far as both reach.
fn compare(image: &ImageId, disk: &Disk, device: &Device) -> anyhow::Result<Found> {
    let common = disk.size_bytes().min(device.size_bytes());
    let options = ReadOptions {
        ranges: Some((0..common).into()),
        ..ReadOptions::default()
    };
    let interrupt = Interrupt::install()?;
    let bar = Progress::bytes(common, format!("compare {}", disk.label()));
    let chunks = SequentialReader::new(device, &options)?.map(|chunk| Ok(chunk?));
    let compare = || {
        let mut stored = Vec::new();
        move |chunk: Chunk| {
            stored.resize(chunk.len(), 0);
            let found = compare_chunk(image, disk, chunk.offset(), &chunk, &mut stored)?;
            Ok((chunk.len() as u64, found))
        }
    };
    let mut found = Found::default();
    let mut compared = 0;
    Pipeline::on_all_cores(Some(&interrupt)).run(chunks, compare, |(bytes, of_chunk)| {
        found.add(of_chunk);
        compared += bytes;
        bar.advance(bytes);
        Ok(())
    })?;
    device.check_unchanged()?;
    // What was not read must not be taken for equal.
    ensure!(compared == common, "only {compared} of {common} bytes were read");
    Ok(found.merged())
}

/// Compares `bytes` of a device, from `offset` on, with what the image stores for them: all of that is read and verified.
/// `stored` is as long.
fn compare_chunk(
    image: &ImageId,
    disk: &Disk,
    offset: u64,
    bytes: &[u8],
    stored: &mut [u8],
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    if disk.read_at(offset, stored).is_ok() && stored == bytes {
        return Ok(found);
    }
    // Cluster by cluster: one that cannot be read says nothing of the others.
    let geometry = disk.geometry();
    let len = geometry.cluster_size().byte_len();
    let first = geometry.cluster_at(offset);
    for ((index, plain), stored) in (first..).zip(bytes.chunks(len)).zip(stored.chunks_mut(len)) {
        let start = geometry.cluster_offset(index);
        let same = match disk.read_at(start, stored) {
            Ok(()) => stored == plain,
            Err(error) if error.is_lost() => {
                found.damage.push(Finding {
                    image: image.to_string(),
                    disk: Some(disk.name().to_owned()),
                    clusters: index..index + 1,
                    offset: start,
                    what: error.full_message(),
                    cause: error.cause().to_owned(),
                });
                continue;
            }
            // The source could not be read there, and now it can.
            Err(error) if error.kind() == ErrorKind::Unreadable => false,
            Err(error) => return Err(error.into()),
        };
        if !same {
            found.differing.push(start..start + plain.len() as u64);
        }
    }
    Ok(found)
}

fn keep(store: &Store, image: &Image, result: &Against, damage: &[Finding]) {
    let kept = known(store, image).and_then(|mut verdict| {
        verdict.add_comparison(result.clone(), damage);
        store.keep_verdict(image, &verdict)
    });
    if let Err(error) = kept {
        output::complain(format_args!(
            "smc-image: the result cannot be kept beside the image: {}",
            exit::full_message(&error.into())
        ));
    }
}

fn report(json: bool, image: &Image, disk: &Disk, result: &Against, found: &Found) -> anyhow::Result<()> {
    let Found { differing, damage } = found;
    let label = image.id().to_string();
    if json {
        for range in differing {
            output::json(
                &json!({ "type": "range", "offset": range.start, "length": range.end - range.start }),
            )?;
        }
        print_findings(json, &label, damage)?;
        return output::json(&json!({
            "type": "comparison",
            "image": disk.label(),
            "result": result,
            "findings": damage.len(),
        }));
    }
    let (ours, theirs) = (result.size_bytes, result.device_size_bytes);
    if ours != theirs {
        output::line(format_args!(
            "{} has {ours} bytes, {} has {theirs}",
            disk.label(),
            result.device
        ))?;
    }
    if !damage.is_empty() {
        print_findings(json, &label, damage)?;
    }
    for range in differing.iter().take(RANGES_SHOWN_MAX) {
        output::line(format_args!("bytes {} to {} differ", range.start, range.end))?;
    }
    let rest = differing.len().saturating_sub(RANGES_SHOWN_MAX);
    if rest > 0 {
        output::line(format_args!("{} more", text::count(rest, "range")))?;
    }
    output::line(format_args!(
        "{} and {}: {}",
        disk.label(),
        result.device,
        conclusion(disk, result, found)
    ))
    .context("report the comparison")
}

/// The result in one sentence.
fn conclusion(disk: &Disk, result: &Against, found: &Found) -> String {
    let differ = format!(
        "{} differ, which is no damage of the image if the device was written to since",
        units::size(result.differing_bytes)
    );
    if found.damage.is_empty() {
        return if result.equal {
            "they hold the same".to_owned()
        } else {
            differ
        };
    }
    let geometry = disk.geometry();
    let bytes = |finding: &Finding| {
        let start = geometry.cluster_offset(finding.clusters.start);
        geometry
            .cluster_offset(finding.clusters.end)
            .min(geometry.size_bytes())
            - start
    };
    let damaged = units::size(found.damage.iter().map(bytes).sum());
    let rest = if found.differing.is_empty() {
        "the rest is the same".to_owned()
    } else {
        format!("of the rest, {differ}")
    };
    format!("{damaged} of the image are damaged and cannot be compared; {rest}")
}
