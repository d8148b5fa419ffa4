//! `smc-image verdict`: what the last boot check of an image came to.

use crate::context::Context;
use crate::exit::Advise;
use anyhow::{Context as _, anyhow};
use cli::output;
use cli::units;
use imagefmt::{BootVerdict, ImageId, ImageRef};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lines of the console that people are shown of a guest that did not boot.
const LINES_SHOWN: usize = 12;

/// Show the result of the last boot check of an image
///
/// 'smc-image boot --check' checks an image. The exit code is 0 if the image booted, and 1 if it did not boot or was
/// not checked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// Write the picture of the guest's screen to this file, which must not exist yet
    #[arg(long, value_name = "FILE")]
    screenshot: Option<PathBuf>,
}

/// Shows it.
///
/// # Errors
/// An image or verdict that cannot be read, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let id = store.resolve(&args.image)?;
    let manifest = store.manifest(&id)?;
    let Some(verdict) = store.boot_verdict(&id, &manifest)? else {
        return Err(anyhow!("no boot check of {id} was made"))
            .advise(format!("make one: smc-image boot {id} --check"));
    };
    if let Some(file) = &args.screenshot {
        let picture = verdict.screenshot()?;
        let picture = picture.with_context(|| format!("the boot verdict of {id} has no picture"))?;
        write_new(file, &picture)?;
    }
    tell(&id, &verdict, context.json)?;
    Ok(if verdict.booted {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_new(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut options = File::options();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    let mut opened = opened.with_context(|| format!("create {}", file.display()))?;
    opened
        .write_all(content)
        .with_context(|| format!("write {}", file.display()))
}

/// Prints a verdict.
///
/// # Errors
/// Where nothing can be printed.
pub fn tell(image: &ImageId, verdict: &BootVerdict, json: bool) -> anyhow::Result<()> {
    if json {
        let mut object = object(verdict)?;
        object["image"] = image.to_string().into();
        return output::json(&object);
    }
    let machine = &verdict.machine;
    let how = format!(
        "{}, {}, {}",
        machine.firmware, machine.accelerator, machine.disk_bus
    );
    let kernel = after("kernel", verdict.kernel_ms);
    let checked = units::local_time(verdict.started);
    let Some(problem) = &verdict.problem else {
        let reached = after(&verdict.check, verdict.reached_ms);
        return output::line(format_args!(
            "{image} booted: {kernel}, {reached} ({how}; checked {checked})"
        ));
    };
    output::line(format_args!("{image} did not boot: {}", problem.what))?;
    output::line(format_args!("  {kernel} ({how}; checked {checked})"))?;
    output::line(format_args!("  to do: {}", problem.advice))?;
    let last = verdict.console.len().saturating_sub(LINES_SHOWN);
    if last < verdict.console.len() {
        output::line("  the console ended with:")?;
    }
    verdict.console[last..]
        .iter()
        .try_for_each(|line| output::line(format_args!("    {line}")))
}

fn after(what: &str, milliseconds: Option<u64>) -> String {
    match milliseconds {
        None => format!("{what} not seen"),
        Some(milliseconds) => {
            let seconds = std::time::Duration::from_millis(milliseconds).as_secs_f64();
            format!("{what} after {}", units::measured(seconds))
        }
    }
}

/// A verdict for programs. The picture is not in it, but whether there is one.
///
/// # Errors
/// Where it has no form in JSON.
pub fn object(verdict: &BootVerdict) -> anyhow::Result<Value> {
    let has_screenshot = verdict.screenshot()?.is_some();
    Ok(json!({
        "booted": verdict.booted,
        "check": verdict.check,
        "started": verdict.started,
        "finished": verdict.finished,
        "kernel_ms": verdict.kernel_ms,
        "reached_ms": verdict.reached_ms,
        "problem": verdict.problem,
        "machine": verdict.machine,
        "console": verdict.console,
        "has_screenshot": has_screenshot,
        "smc": verdict.smc,
        "qemu": verdict.qemu,
    }))
}

/// A verdict in two words.
pub fn in_short(verdict: &BootVerdict) -> String {
    let date = units::local_date(verdict.finished);
    if verdict.booted {
        format!("yes {date}")
    } else {
        format!("NO {date}")
    }
}
