//! `smc-image diff`: where two images differ.

use crate::context::Context;
use crate::exit::Advise;
use cli::output::{self, unless_closed};
use cli::text;
use cli::units;
use imagefmt::{Disk, ImageRef};
use serde_json::json;
use std::ops::{ControlFlow, Range};
use std::process::ExitCode;

/// List the byte ranges in which two images differ
///
/// Compares the trees of the images, so it reads little more than what differs. Ranges consist of whole clusters. The
/// exit code is 0 whether or not the images differ.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An image, or one disk of it
    a: ImageRef,
    /// The other image, or one disk of it
    b: ImageRef,
}

/// Compares the disks that were named, or those of the same name; all of them, even where nobody reads on: that no damage
/// was met is part of the answer.
///
/// # Errors
/// Images that cannot be opened, read or compared, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let (a, b) = (store.image(&args.a)?, store.image(&args.b)?);
    if args.a.disk.is_some() || args.b.disk.is_some() || (a.disks().len() == 1 && b.disks().len() == 1) {
        compare(
            context.json,
            a.disk(args.a.disk.as_deref())?,
            b.disk(args.b.disk.as_deref())?,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    for disk in a.disks() {
        match b.disks().iter().find(|other| other.name() == disk.name()) {
            Some(other) => compare(context.json, disk, other)?,
            None => alone(context.json, disk, &b.id().to_string())?,
        }
    }
    for disk in b.disks() {
        if !a.disks().iter().any(|other| other.name() == disk.name()) {
            alone(context.json, disk, &a.id().to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn alone(json: bool, disk: &Disk, other: &str) -> anyhow::Result<()> {
    let printed = if json {
        output::json(&json!({ "type": "alone", "disk": disk.label(), "missing_in": other }))
    } else {
        output::line(format_args!("{}: {other} has no such disk", disk.label()))
    };
    unless_closed(printed)
}

fn compare(json: bool, a: &Disk, b: &Disk) -> anyhow::Result<()> {
    check_comparable(a, b)?;
    let mut ranges = Ranges {
        json,
        disk: a.name(),
        size: a.size_bytes().max(b.size_bytes()),
        pending: None,
        count: 0,
        bytes: 0,
    };
    let mut printed = Ok(());
    let compared = a.each_difference(b, &mut |range| {
        printed = ranges.add(range);
        if printed.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    compared?;
    printed?;
    ranges.flush()?;
    unless_closed(summary(json, a, b, &ranges))
}

fn check_comparable(a: &Disk, b: &Disk) -> anyhow::Result<()> {
    let sizes = [a, b].map(|disk| disk.geometry().cluster_size());
    if sizes[0] == sizes[1] {
        return Ok(());
    }
    let what = format!(
        "{}: their cluster sizes differ, {} and {}",
        pair(a, b),
        sizes[0],
        sizes[1]
    );
    Err(anyhow::anyhow!(what)).advise(
        "compare what `smc-image digest --cluster-size 64K` prints for both; to see where they differ, export \
         both and use cmp",
    )
}

fn pair(a: &Disk, b: &Disk) -> String {
    format!("compare {} with {}", a.label(), b.label())
}

/// Prints ranges, those that touch as one.
struct Ranges<'a> {
    json: bool,
    disk: &'a str,
    /// Size of the larger disk: the last cluster may be short.
    size: u64,
    pending: Option<Range<u64>>,
    count: usize,
    bytes: u64,
}

impl Ranges<'_> {
    fn add(&mut self, range: Range<u64>) -> anyhow::Result<()> {
        match &mut self.pending {
            Some(pending) if pending.end == range.start => {
                pending.end = range.end;
                Ok(())
            }
            _ => {
                self.flush()?;
                self.pending = Some(range);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let Some(range) = self.pending.take() else {
            return Ok(());
        };
        let (offset, length) = (range.start, range.end.min(self.size) - range.start);
        self.count += 1;
        self.bytes += length;
        if self.json {
            return unless_closed(output::json(
                &json!({ "type": "range", "disk": self.disk, "start": offset, "length": length }),
            ));
        }
        if self.count == 1 {
            unless_closed(output::line(format_args!("{:>20}  {:>20}", "OFFSET", "LENGTH")))?;
        }
        unless_closed(output::line(format_args!("{offset:>20}  {length:>20}")))
    }
}

fn summary(json: bool, a: &Disk, b: &Disk, ranges: &Ranges<'_>) -> anyhow::Result<()> {
    let (size_a, size_b) = (a.size_bytes(), b.size_bytes());
    if json {
        return output::json(&json!({
            "type": "summary",
            "a": { "disk": a.label(), "size_bytes": size_a },
            "b": { "disk": b.label(), "size_bytes": size_b },
            "equal": ranges.count == 0 && size_a == size_b,
            "ranges": ranges.count,
            "differing_bytes": ranges.bytes,
        }));
    }
    let (a, b) = (a.label(), b.label());
    match ranges.count {
        0 => output::line(format_args!("{a} and {b}: no difference"))?,
        count => {
            let (bytes, count) = (units::size(ranges.bytes), text::count(count, "range"));
            output::line(format_args!("{a} and {b}: {bytes} differ, in {count}"))?;
        }
    }
    if size_a != size_b {
        output::line(format_args!(
            "{a} has {size_a} bytes, {b} has {size_b}: what only one has counts as zeros in the other"
        ))?;
    }
    Ok(())
}
