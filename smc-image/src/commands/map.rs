//! `smc-image map`: where a disk of an image holds data.

use crate::context::Context;
use cli::output;
use imagefmt::{Disk, Extent, ImageRef};
use serde_json::json;
use std::process::ExitCode;

/// Extents asked for at a time.
const EXTENTS_MAX: usize = 4096;

/// List the extents of a disk: offset and length in bytes, and whether they hold data or zeros
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk of an image, as in web01/7:vda
    image: ImageRef,
}

/// Lists the extents in ascending order; together they cover the disk.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let disk = context.open_disk(&args.image)?;
    if !context.json {
        output::line(format_args!("{:>20}  {:>20}  KIND", "OFFSET", "LENGTH"))?;
    }
    each_extent(&disk, |extent| print(context.json, extent))?;
    Ok(ExitCode::SUCCESS)
}

fn print(json: bool, extent: &Extent) -> anyhow::Result<()> {
    let Extent { offset, length, data } = *extent;
    if json {
        return output::json(&json!({ "start": offset, "length": length, "data": data, "zero": !data }));
    }
    let kind = if data { "data" } else { "zero" };
    output::line(format_args!("{offset:>20}  {length:>20}  {kind}"))
}

/// Visits all extents of a disk in ascending order, a bounded number in memory at a time.
pub fn each_extent(disk: &Disk, mut visit: impl FnMut(&Extent) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let size = disk.size_bytes();
    let mut offset = 0;
    while offset < size {
        let extents = disk.extents(offset, size - offset, EXTENTS_MAX)?;
        let Some(last) = extents.last() else {
            anyhow::bail!("{}: its map ends at byte {offset} of {size}", disk.label());
        };
        offset = last.offset + last.length;
        extents.iter().try_for_each(&mut visit)?;
    }
    Ok(())
}
