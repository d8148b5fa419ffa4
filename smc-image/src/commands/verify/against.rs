//! `smc-image verify --against`: whether a device holds what an image says.

use crate::context::Context;
use crate::copy::Pipeline;
use crate::exit::{self, Advise};
use anyhow::{Context as _, bail, ensure};
use blockio::{Chunk, Device, ReadOptions, SequentialReader};
use cli::interrupt::Interrupt;
use cli::output;
use cli::progress::Progress;
use cli::text;
use cli::units;
use imagefmt::{Against, Disk, Image, ImageId, Span, Store, Verdict, cluster_digest};
use jiff::Timestamp;
use serde_json::json;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

/// Differing ranges that people are shown before they are only counted.
const RANGES_SHOWN_MAX: usize = 20;

/// Compares one disk of one image with a device and keeps the result beside the image.
///
/// Exit code 0 when both hold the same, 1 when they differ: a device that was written to since does.
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
    let differing = compare(disk, &device)?;
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
        equal: differing.is_empty() && device.size_bytes() == disk.size_bytes(),
        ranges: differing.len() as u64,
        differing_bytes: differing.iter().map(|range| range.end - range.start).sum(),
    };
    keep(store, &image, &result);
    report(context.json, disk, &result, &differing)?;
    Ok(if result.equal {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The ranges in which the device differs from the disk, as far as both reach.
fn compare(disk: &Disk, device: &Device) -> anyhow::Result<Vec<Range<u64>>> {
    let common = disk.size_bytes().min(device.size_bytes());
    let options = ReadOptions {
        ranges: Some((0..common).into()),
        ..ReadOptions::default()
    };
    let interrupt = Interrupt::install()?;
    let bar = Progress::bytes(common, format!("compare {}", disk.label()));
    let chunks = SequentialReader::new(device, &options)?.map(|chunk| Ok(chunk?));
    let compare = || |chunk: Chunk| Ok((chunk.len() as u64, differing_in(disk, chunk.offset(), &chunk)?));
    let mut differing: Vec<Range<u64>> = Vec::new();
    let mut compared = 0;
    Pipeline::on_all_cores(Some(&interrupt)).run(chunks, compare, |(bytes, found)| {
        differing.extend(found);
        compared += bytes;
        bar.advance(bytes);
        Ok(())
    })?;
    device.check_unchanged()?;
    // What was not read must not be taken for equal.
    ensure!(compared == common, "only {compared} of {common} bytes were read");
    differing.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in differing {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

/// The clusters of a chunk that differ. One that both have in part is compared byte by byte.
fn differing_in(disk: &Disk, offset: u64, bytes: &[u8]) -> anyhow::Result<Vec<Range<u64>>> {
    let mut differing = Vec::new();
    let geometry = disk.geometry();
    let first = geometry.cluster_at(offset);
    let clusters = bytes.chunks(geometry.cluster_size().byte_len());
    let known = disk.digests(first..first + clusters.len() as u64)?;
    for ((index, plain), known) in (first..).zip(clusters).zip(known) {
        let start = geometry.cluster_offset(index);
        let same = if plain.len() == geometry.cluster_len(index) {
            known == cluster_digest(plain)
        } else {
            let mut known = vec![0; plain.len()];
            disk.read_at(start, &mut known)?;
            known == plain
        };
        if !same {
            differing.push(start..start + plain.len() as u64);
        }
    }
    Ok(differing)
}

fn keep(store: &Store, image: &Image, result: &Against) {
    let known = store.verdict(image.id(), image.manifest()).ok().flatten();
    let mut verdict = known.unwrap_or_else(|| Verdict::new(image.manifest()));
    verdict.add_comparison(result.clone(), &[]);
    if let Err(error) = store.keep_verdict(image, &verdict) {
        output::complain(format_args!(
            "smc-image: the result cannot be kept beside the image: {}",
            exit::full_message(&error.into())
        ));
    }
}

fn report(json: bool, disk: &Disk, result: &Against, differing: &[Range<u64>]) -> anyhow::Result<()> {
    if json {
        for range in differing {
            output::json(
                &json!({ "type": "range", "offset": range.start, "length": range.end - range.start }),
            )?;
        }
        return output::json(&json!({ "type": "comparison", "image": disk.label(), "result": result }));
    }
    let (ours, theirs) = (result.size_bytes, result.device_size_bytes);
    if ours != theirs {
        output::line(format_args!(
            "{} has {ours} bytes, {} has {theirs}",
            disk.label(),
            result.device
        ))?;
    }
    for range in differing.iter().take(RANGES_SHOWN_MAX) {
        output::line(format_args!("bytes {} to {} differ", range.start, range.end))?;
    }
    let rest = differing.len().saturating_sub(RANGES_SHOWN_MAX);
    if rest > 0 {
        output::line(format_args!("{} more", text::count(rest, "range")))?;
    }
    let verdict = if result.equal {
        "they hold the same".to_owned()
    } else {
        format!(
            "{} differ, which is no damage of the image if the device was written to since",
            units::size(result.differing_bytes)
        )
    };
    output::line(format_args!("{} and {}: {verdict}", disk.label(), result.device))
        .context("report the comparison")
}
