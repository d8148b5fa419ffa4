//! Files in images, as commands name them.

use crate::context::Context;
use crate::helper::HelperArgs;
use crate::mount::select::{self, Wanted};
use crate::mount::tree::{GuestTree, Order};
use crate::mount::{self, Access, Service};
use crate::overlay::parse_limit;
use anyhow::Context as _;
use cli::interrupt::Interrupt;
use cli::output;
use cli::text::printable_line;
use imagefmt::{Image, ImageRef};
use std::path::PathBuf;

/// Which filesystem of the image, and the overlay that its journal is replayed into.
#[derive(Debug, clap::Args)]
pub struct TreeArgs {
    /// Number of the partition whose filesystem is meant, instead of the tree of files that the server itself sees
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Largest amount that replaying journals may write
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = parse_limit, hide_short_help = true)]
    overlay_limit: u64,
    /// Directory for what is written and does not fit into memory, in a file without a name
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", hide_short_help = true)]
    overlay_dir: PathBuf,
    #[command(flatten)]
    helper: HelperArgs,
}

/// An opened image with its tree. The image is held for as long.
#[derive(Debug)]
pub struct OpenTree {
    /// The tree.
    pub tree: GuestTree,
    /// The image.
    pub image: Image,
}

/// Opens the tree of an image, and tells what of it is missing.
///
/// # Errors
/// As [`GuestTree::open`]; a process that is not root's, and an image that cannot be opened.
pub fn open(
    context: &Context,
    image: &ImageRef,
    args: &TreeArgs,
    access: Access,
    interrupt: &Interrupt,
) -> anyhow::Result<OpenTree> {
    mount::require_root()?;
    let opened = context.open_image(&image.with_disk(None))?;
    let disks = select::disks_of(&opened);
    let wanted = Wanted {
        disk: image.disk.as_deref(),
        partition: args.partition,
    };
    let (helper, key) = args.helper.prepare(image, &opened, &disks, wanted)?;
    let order = Order {
        service: Service {
            store: &context.store,
            image: &opened.id().reference(None),
            image_id: &opened.manifest().id.to_string(),
            overlay_dir: &std::path::absolute(&args.overlay_dir).context("find the overlay's directory")?,
            overlay_limit_bytes: args.overlay_limit,
            helper,
        },
        key: key.as_deref(),
        disks: &disks,
        wanted,
        access,
    };
    let tree = GuestTree::open(&order, interrupt).with_context(|| format!("look into {image}"))?;
    for missing in &tree.missing {
        output::complain(format_args!("smc-image: not shown: {}", printable_line(missing)));
    }
    Ok(OpenTree { tree, image: opened })
}
