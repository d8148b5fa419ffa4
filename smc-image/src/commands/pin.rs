//! `smc-image pin` and `unpin`: keep an image from being deleted.

use crate::context::Context;
use cli::output;
use cli::text;
use imagefmt::{ImageRef, Pin};
use serde_json::json;
use std::process::ExitCode;

/// Pin an image: neither rm nor a sync deletes it until it is unpinned
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    image: ImageRef,
    /// Name of the pin: everyone who needs the image for a while sets a pin with a name of their own
    #[arg(long, value_name = "NAME", default_value = Pin::DEFAULT_NAME)]
    name: String,
}

/// Remove pins from an image
#[derive(Debug, clap::Args)]
pub struct UnpinArgs {
    /// The image
    image: ImageRef,
    /// Remove only the pin with this name [default: all]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Pins an image.
///
/// # Errors
/// An image that does not exist, and a store that cannot be written to.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let image = store.resolve(&args.image)?;
    store.pin(&image, &args.name)?;
    if context.json {
        output::json(&json!({ "image": image.to_string(), "pinned": args.name }))?;
    } else {
        output::line(format_args!("{image} is pinned ({})", args.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes pins away.
///
/// # Errors
/// An image or a pin that does not exist, and a store that cannot be written to.
pub fn run_unpin(context: &Context, args: &UnpinArgs) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let image = store.resolve(&args.image)?;
    let gone = store.unpin(&image, args.name.as_deref())?;
    if context.json {
        output::json(&json!({ "image": image.to_string(), "unpinned": gone }))?;
    } else {
        output::line(format_args!("{image}: {} taken away", text::count(gone, "pin")))?;
    }
    Ok(ExitCode::SUCCESS)
}
