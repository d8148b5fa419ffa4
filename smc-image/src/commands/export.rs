//! `smc-image export`: a disk of an image as a file that needs no store.

mod convert;
mod part;
mod vhd;

use crate::context::Context;
use crate::exit::Advise;
use anyhow::{Context as _, anyhow};
use blockio::Device;
use clap::ValueEnum;
use cli::interrupt::Interrupt;
use cli::progress::Progress;
use cli::{output, units};
use imagefmt::{Disk, Image, ImageRef};
use jiff::Timestamp;
use part::PartFile;
use restore::apart;
use restore::write::{Target, write_disk};
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::{fs, io};

/// Write a disk of an image to a file
///
/// Only the owner of the file can read it. It appears under its name when it is complete and durable; until then it
/// is in the directory FILE.part.
///
/// A vhd, vhdx or vmdk is always a disk with sectors of 512 bytes. If the image's disk has larger sectors, its
/// partitions are not found there, and a warning says so: export it as raw or qcow2 instead, and attach that as a
/// disk with sectors of the same size.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, with :DISK if it has several disks
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format of the file [default: by the file's extension, or raw]
    #[arg(long)]
    format: Option<Format>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// A disk image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Format {
    /// The disk's bytes as they are, in a sparse file
    Raw,
    /// QEMU
    Qcow2,
    /// Virtual PC and Hyper-V, growing with its content
    Vhd,
    /// Azure: of fixed size, rounded up to whole MiB
    VhdFixed,
    /// Hyper-V
    Vhdx,
    /// VMware
    Vmdk,
}

impl Format {
    /// The format that a file's extension stands for.
    fn of(file: &Path) -> Self {
        let extension = file
            .extension()
            .and_then(OsStr::to_str)
            .map(str::to_ascii_lowercase);
        let named = |format: &Self| Some(format.name()) == extension;
        Self::value_variants()
            .iter()
            .copied()
            .find(named)
            .unwrap_or(Self::Raw)
    }

    /// As it is given on the command line.
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The options of `qemu-img convert`; `None` for what is written without it.
    fn converter_options(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Raw | Self::VhdFixed => None,
            Self::Qcow2 => Some(&["-O", "qcow2"]),
            // Without force_size a disk's size is rounded up to what cylinders, heads and sectors can express.
            Self::Vhd => Some(&["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]),
            Self::Vhdx => Some(&["-O", "vhdx", "-o", "subformat=dynamic"]),
            Self::Vmdk => Some(&["-O", "vmdk"]),
        }
    }

    /// Whether a disk in this format always has sectors of 512 bytes; for others that is said where it is used.
    fn has_small_sectors(self) -> bool {
        matches!(self, Self::Vhd | Self::VhdFixed | Self::Vhdx | Self::Vmdk)
    }
}

/// What `--json` shows at the end.
#[derive(Debug, Serialize)]
struct Done<'a> {
    image: &'a str,
    file: &'a Path,
    format: Format,
    size_bytes: u64,
    digest: String,
}

/// Writes the file.
///
/// # Errors
/// A file that exists or must not be written, an image that cannot be read, a failed write, an interrupt: nothing is
/// left of the file then.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let image = context.open_image(&args.image)?;
    let disk = image.disk(args.image.disk.as_deref())?;
    let format = args.format.unwrap_or_else(|| Format::of(&args.file));
    refuse_occupied(&args.file, args.force)?;
    let parent = apart::open_directory(apart::parent_of(&args.file))?;
    warn_of_sectors(&image, disk, format);
    let interrupt = Interrupt::install()?;
    let part =
        PartFile::create(&args.file, parent).with_context(|| format!("export to {}", args.file.display()))?;
    let progress = Progress::bytes(disk.size_bytes(), format!("export {}", disk.label()));
    match format.converter_options() {
        None => write_plain(disk, format, &part, &progress, &interrupt)?,
        Some(options) => convert::convert(disk, options, &part.path(), &progress, &interrupt)?,
    }
    part.finish(args.force)?;
    progress.clear();
    report(context, args, disk, format)?;
    Ok(ExitCode::SUCCESS)
}

/// A partition table counts in sectors: where these have another length, it is not understood.
fn warn_of_sectors(image: &Image, disk: &Disk, format: Format) {
    let record = image.manifest().disk(disk.name());
    let Some(sector) = record
        .map(|record| record.logical_block_size)
        .filter(|&bytes| bytes > 512)
    else {
        return;
    };
    let (label, name) = (disk.label(), format.name());
    output::complain(if format.has_small_sectors() {
        format!(
            "smc-image: warning: {label} has sectors of {sector} bytes, a disk in the format {name} has 512: its \
             partitions will not be found there; export it as raw or qcow2"
        )
    } else {
        format!(
            "smc-image: warning: {label} has sectors of {sector} bytes, which the format {name} does not say: attach \
             it as a disk with such sectors, or its partitions will not be found"
        )
    });
}

fn report(context: &Context, args: &Args, disk: &Disk, format: Format) -> anyhow::Result<()> {
    // Everything that was written was read through this disk's tree and verified against its root.
    let digest = disk.digest().to_string();
    if context.json {
        return output::json(&Done {
            image: disk.label(),
            file: &args.file,
            format,
            size_bytes: disk.size_bytes(),
            digest,
        });
    }
    let size = units::size(disk.size_bytes());
    output::line(format!(
        "exported {} ({size}, {digest}) to {}",
        disk.label(),
        args.file.display()
    ))
}

/// A look before anything is done; what counts is the one when the file gets its name.
fn refuse_occupied(file: &Path, force: bool) -> anyhow::Result<()> {
    match fs::metadata(file) {
        Ok(found) if !found.is_file() => Err(anyhow!("{} is not a regular file", file.display()))
            .advise("to write to a device, use restore"),
        Ok(_) if !force => Err(part::occupied(file)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", file.display())),
    }
}

/// Writes what the disk holds at its place; the rest is a hole. A fixed VHD has its footer behind that.
fn write_plain(
    disk: &Disk,
    format: Format,
    part: &PartFile,
    progress: &Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let size = match format {
        Format::VhdFixed => disk.size_bytes().next_multiple_of(vhd::SIZE_STEP),
        _ => disk.size_bytes(),
    };
    part.file().set_len(size).context("set the file's size")?;
    let path = part.path();
    let file = blockio::open_exclusive(&path)?;
    let target = Target {
        file: &file,
        alignment: Device::open(&path)?.alignment(),
        is_zero: true,
        begun: &AtomicBool::new(false),
    };
    write_disk(disk, target, interrupt, progress)?;
    if format == Format::VhdFixed {
        let mut id = [0; 16];
        getrandom::fill(&mut id).context("make a unique id")?;
        let footer = vhd::footer(size, id, Timestamp::now());
        part.file()
            .write_all_at(&footer, size)
            .context("write the footer")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_the_extension() {
        assert_eq!(Format::of(Path::new("a/b.QCOW2")), Format::Qcow2);
        assert_eq!(Format::of(Path::new("b.vhd")), Format::Vhd);
        assert_eq!(Format::of(Path::new("b.img")), Format::Raw);
        assert_eq!(Format::of(Path::new("vmdk")), Format::Raw);
        assert_eq!(Format::of(Path::new("x")), Format::Raw);
    }
}
