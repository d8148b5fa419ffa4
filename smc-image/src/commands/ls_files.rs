//! `smc-image ls-files`: what is in a directory of an image.

use crate::context::Context;
use crate::guest_path::{self, TreeArgs};
use crate::mount::Access;
use anyhow::{Context as _, bail};
use cli::interrupt::Interrupt;
use cli::output;
use cli::table::{Align, Table};
use cli::text::printable_line;
use cli::units;
use imagefmt::ImageRef;
use jiff::Timestamp;
use serde::Serialize;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// List the files in a directory of an image
///
/// PATH is as the server itself sees it: its root filesystem is found, and what its /etc/fstab mounts is below that.
/// With IMAGE:DISK or --partition, PATH is in the filesystem there. Journals are replayed into an overlay; the image is
/// not changed, and nothing stays mounted. Needs what 'smc-image mount' needs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: ImageRef,
    /// The directory or file
    #[arg(value_name = "PATH", default_value = "/")]
    path: PathBuf,
    /// Also list what is in its directories, and theirs
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    tree: TreeArgs,
}

/// What `--json` shows of each.
#[derive(Debug, Serialize)]
struct Entry {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

/// Lists it.
///
/// # Errors
/// An image that cannot be looked into, a path that does not exist, and what cannot be read.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let opened = guest_path::open(context, &args.image, &args.tree, Access::ReadOnly, &interrupt)?;
    let place = opened.tree.root.located(&args.path)?;
    let mut list = List {
        json: context.json,
        recursive: args.recursive,
        interrupt: &interrupt,
        table: Table::new(&[
            ("MODE", Align::Left),
            ("OWNER", Align::Left),
            ("SIZE", Align::Right),
            ("MODIFIED", Align::Left),
            ("NAME", Align::Left),
        ]),
    };
    match fs::symlink_metadata(&place) {
        Ok(metadata) if metadata.is_dir() => list.directory(&place, &args.path)?,
        Ok(metadata) => list.add(&place, &args.path, &metadata)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{} has no {}", args.image, args.path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("look at {}", args.path.display())),
    }
    if !context.json {
        list.table.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

struct List<'a> {
    json: bool,
    recursive: bool,
    interrupt: &'a Interrupt,
    table: Table,
}

impl List<'_> {
    /// Adds what is in a directory; `shown` is how the machine names it.
    fn directory(&mut self, place: &Path, shown: &Path) -> anyhow::Result<()> {
        let fail = || format!("list {}", shown.display());
        let entries = fs::read_dir(place).with_context(fail)?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(fail)?;
        names.sort();
        for name in names {
            self.interrupt.check()?;
            let (place, shown) = (place.join(&name), shown.join(&name));
            let metadata = fs::symlink_metadata(&place);
            let metadata = metadata.with_context(|| format!("look at {}", shown.display()))?;
            self.add(&place, &shown, &metadata)?;
            if self.recursive && metadata.is_dir() {
                self.directory(&place, &shown)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, place: &Path, shown: &Path, metadata: &Metadata) -> anyhow::Result<()> {
        let link_target = match metadata.is_symlink() {
            true => Some(fs::read_link(place).with_context(|| format!("read the link {}", shown.display()))?),
            false => None,
        };
        let modified = Timestamp::from_second(metadata.mtime()).unwrap_or_default();
        let (kind, letter) = kind(metadata);
        let path = if self.recursive || self.json {
            shown.to_string_lossy()
        } else {
            shown.file_name().unwrap_or(shown.as_os_str()).to_string_lossy()
        };
        let entry = Entry {
            path: path.into_owned(),
            kind,
            mode: format!("{:04o}", metadata.mode() & 0o7777),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size_bytes: metadata.len(),
            modified: modified.to_string(),
            link_target: link_target.map(|target| target.to_string_lossy().into_owned()),
        };
        if self.json {
            return output::json(&entry);
        }
        let target = entry.link_target.iter().map(|target| format!(" -> {target}"));
        let name = format!("{}{}", entry.path, target.collect::<String>());
        self.table.row([
            format!("{letter}{}", permissions(metadata.mode())),
            format!("{}:{}", entry.uid, entry.gid),
            entry.size_bytes.to_string(),
            units::local_time(modified),
            printable_line(&name),
        ]);
        Ok(())
    }
}

fn kind(metadata: &Metadata) -> (&'static str, char) {
    match metadata.file_type() {
        kind if kind.is_dir() => ("directory", 'd'),
        kind if kind.is_symlink() => ("link", 'l'),
        kind if kind.is_block_device() => ("block device", 'b'),
        kind if kind.is_char_device() => ("character device", 'c'),
        kind if kind.is_fifo() => ("fifo", 'p'),
        kind if kind.is_socket() => ("socket", 's'),
        _ => ("file", '-'),
    }
}

/// As ls(1) shows them: `rwxr-x---`, with `s` and `t` for the special bits.
fn permissions(mode: u32) -> String {
    let special = |shift: u32| mode & (0o1000 << shift) != 0;
    let triple = |shift: u32, set: bool, letter: char| {
        let bits = mode >> (3 * shift);
        let last = match (bits & 1 != 0, set) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        let flag = |bit: u32, letter: char| if bits & bit != 0 { letter } else { '-' };
        [flag(4, 'r'), flag(2, 'w'), last]
    };
    [
        triple(2, special(2), 's'),
        triple(1, special(1), 's'),
        triple(0, special(0), 't'),
    ]
    .concat()
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::permissions;

    #[test]
    fn permissions_are_shown_as_by_ls() {
        let cases = [
            (0o644, "rw-r--r--"),
            (0o4755, "rwsr-xr-x"),
            (0o2644, "rw-r-Sr--"),
            (0o1777, "rwxrwxrwt"),
            (0o0, "---------"),
        ];
        for (mode, shown) in cases {
            assert_eq!(permissions(mode), shown);
        }
    }
}
