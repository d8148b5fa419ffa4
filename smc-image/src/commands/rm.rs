//! `smc-image rm`: deletes images, or what an unfinished sync has stored.

use crate::context::Context;
use crate::exit::{self, Advise};
use cli::output;
use cli::text;
use cli::units;
use imagefmt::{ErrorKind, ImageId, ImageRef, Reclaimed, Store};
use serde_json::json;
use std::process::ExitCode;
use std::str::FromStr;

/// What stands for the number of an image that is not finished.
const UNFINISHED: &str = "unfinished";

/// Delete images and free the space that only they used
///
/// Any image can be deleted: the oldest, the newest or one between. No data is copied, and all other images stay
/// whole. An image that is served, mounted, being read or pinned is not deleted. Neither is the last image that may
/// be good while a newer one is damaged, unless --force is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images to delete; JOB/unfinished is what an unfinished sync has stored
    #[arg(value_name = "IMAGE", required = true)]
    doomed: Vec<Doomed>,
    /// Also delete the last image that may be good while a newer one is damaged
    #[arg(long)]
    force: bool,
}

/// Something to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doomed {
    Image(ImageRef),
    Unfinished(String),
}

impl FromStr for Doomed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((job, UNFINISHED)) = text.split_once('/') {
            imagefmt::check_name("job", job).map_err(|error| error.to_string())?;
            return Ok(Self::Unfinished(job.to_owned()));
        }
        let image: ImageRef = text.parse().map_err(|error: imagefmt::Error| error.to_string())?;
        match &image.disk {
            None => Ok(Self::Image(image)),
            Some(disk) => Err(format!("images are deleted whole: leave :{disk} out")),
        }
    }
}

/// Deletes one after another; one that cannot be deleted keeps no other from it.
///
/// # Errors
/// Images that do not exist, are in use or pinned, and a store that cannot be read or written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    // Named once more as numbers before anything goes: `latest` must not mean another one each time.
    let named: Vec<(String, anyhow::Result<Named>)> =
        args.doomed.iter().map(|doomed| name(&store, doomed)).collect();
    let mut code = ExitCode::SUCCESS;
    for (label, named) in named {
        match named.and_then(|named| delete(&store, &named, args.force)) {
            Ok(reclaimed) => code = worse(code, report(context.json, &label, &reclaimed)?),
            Err(error) => {
                let failed = exit::report(&error);
                code = worse(code, failed);
            }
        }
    }
    Ok(code)
}

/// Something to delete, found in the store.
enum Named {
    Image(ImageId),
    Unfinished(String),
}

fn name(store: &Store, doomed: &Doomed) -> (String, anyhow::Result<Named>) {
    match doomed {
        Doomed::Image(image) => match store.resolve(image) {
            Ok(id) => (id.to_string(), Ok(Named::Image(id))),
            Err(error) => (image.to_string(), Err(error.into())),
        },
        Doomed::Unfinished(job) => {
            let named = store.job(job).map(|_| Named::Unfinished(job.clone()));
            (format!("{job}/{UNFINISHED}"), named.map_err(anyhow::Error::from))
        }
    }
}

/// Refuses to delete the last image that may be good.
fn check_fallback(store: &Store, image: &ImageId) -> anyhow::Result<()> {
    match store.fallback(image)? {
        Some(found) if found.image == *image => Err(anyhow::anyhow!(
            "{image} is the newest image that may be good: {} is damaged, and no newer one was verified",
            found.damaged
        ))
        .advise(format!(
            "verify a newer one first (`smc-image verify {}/latest`), or delete it with --force",
            image.job()
        )),
        _ => Ok(()),
    }
}

fn delete(store: &Store, named: &Named, force: bool) -> anyhow::Result<Reclaimed> {
    match named {
        Named::Unfinished(job) => Ok(store.discard_unfinished(job)?),
        Named::Image(image) => {
            if !force {
                check_fallback(store, image)?;
            }
            let deleted = store.delete(image);
            let damaged_pins = matches!(&deleted, Err(error) if error.kind() == ErrorKind::Damaged);
            let deleted = deleted.map_err(anyhow::Error::from);
            if damaged_pins {
                return deleted.advise(
                    "whether it is pinned cannot be read: `smc-image unpin` takes all its pins away",
                );
            }
            deleted
        }
    }
}

/// The exit code that tells more.
pub fn worse(one: ExitCode, other: ExitCode) -> ExitCode {
    if one == ExitCode::SUCCESS || other == ExitCode::from(exit::DAMAGED) {
        other
    } else {
        one
    }
}

fn report(json: bool, label: &str, reclaimed: &Reclaimed) -> anyhow::Result<ExitCode> {
    let printed = if json {
        output::json(&json!({ "deleted": label, "space": space(reclaimed) }))
    } else {
        output::line(format_args!("{label} deleted, {}", in_words(reclaimed)))
    };
    // The rest is deleted all the same.
    output::unless_closed(printed)?;
    Ok(judge(label, reclaimed))
}

/// The result of reclaiming space, for programs.
pub fn space(reclaimed: &Reclaimed) -> serde_json::Value {
    json!({
        "freed_bytes": reclaimed.freed_bytes,
        "removed_layers": reclaimed.removed_layers,
        "kept": reclaimed.kept,
        "unfinished": reclaimed.unfinished,
    })
}

/// The result of reclaiming space, for people.
pub fn in_words(reclaimed: &Reclaimed) -> String {
    let freed = units::size(reclaimed.freed_bytes);
    match reclaimed.removed_layers {
        0 => format!("{freed} freed"),
        layers => format!("{freed} freed, {} removed", text::count(layers, "layer")),
    }
}

/// Says on stderr what was not freed, and gives the exit code for it.
pub fn judge(label: &str, reclaimed: &Reclaimed) -> ExitCode {
    for kept in &reclaimed.kept {
        output::complain(format_args!("smc-image: {label}: space was kept: {kept}"));
    }
    if let Some(reason) = &reclaimed.unfinished {
        output::complain(format_args!(
            "smc-image: {label}: not all space is free yet: {reason}"
        ));
        output::complain("  the next sync of the job, or `smc-image gc`, continues");
        return ExitCode::FAILURE;
    }
    if reclaimed.kept.is_empty() {
        ExitCode::SUCCESS
    } else {
        // Space is only kept where something cannot be read.
        ExitCode::from(exit::DAMAGED)
    }
}
