//! `smc-image map`: where a disk of an image holds data.

use crate::context::Context;
use cli::output;
use imagefmt::{Extent, ImageRef};
use restore::pieces::extents;
use serde_json::json;
use std::process::ExitCode;

/// List the extents of a disk: offset and length in bytes, and whether they hold data or zeros
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk of an image, as in web01/7:vda
    image: ImageRef,
}

/// Lists the extents in ascending order; together they cover the disk.
///
/// # Errors
/// An image that cannot be opened, a map that cannot be read, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let disk = context.open_disk(&args.image)?;
    if !context.json {
        output::line(format_args!("{:>20}  {:>20}  KIND", "OFFSET", "LENGTH"))?;
    }
    for extent in extents(&disk) {
        print(context.json, &extent?)?;
    }
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
