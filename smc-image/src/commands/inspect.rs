//! `smc-image inspect`: whether an image would boot, without booting it.

use crate::context::Context;
use crate::guest_path::{self, OpenTree, TreeArgs};
use crate::inspected;
use crate::mount::Access;
use anyhow::Context as _;
use api::Level;
use clap::ColorChoice;
use cli::findings;
use cli::interrupt::Interrupt;
use cli::output;
use cli::paint::Paint;
use imagefmt::ImageRef;
use std::process::ExitCode;

/// Check whether the server in an image would boot elsewhere, without booting it
///
/// Reads its files: operating system, kernels and the drivers in their initramfs, boot loader, names of disks in
/// fstab, crypttab and on the kernel's command line, network configuration, cloud-init. The rules are those of
/// 'smcctl precheck', and every finding says what to do about it. The exit code is 1 if a finding is critical. The
/// image is not changed, nothing of it is run, and nothing stays mounted. Needs what 'smc-image mount' needs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image; with :DISK if several disks have a root filesystem
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    #[command(flatten)]
    tree: TreeArgs,
}

/// Prints the findings, and fails if one is critical.
///
/// # Errors
/// An image that cannot be looked into.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    // Writable: directories that the description needs are made where they are missing, in the overlay.
    let OpenTree { tree, image } =
        guest_path::open(context, &args.image, &args.tree, Access::Writable, &interrupt)?;
    inspected::describe(&tree, &image).context("describe the disks of the image")?;
    interrupt.check()?;
    let found = machine::inspect(&tree.root);
    if context.json {
        output::json(&found)?;
    } else {
        for line in findings::lines(Paint::for_stdout(ColorChoice::Auto), &found) {
            output::painted(&line)?;
        }
    }
    Ok(match found.worst() {
        Level::Critical => ExitCode::FAILURE,
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
    })
}
