//! `smc-image cp`: a file or a directory out of an image.

use crate::context::Context;
use crate::exit::Advise;
use crate::guest_path::{self, TreeArgs};
use crate::mount::Access;
use anyhow::{Context as _, anyhow, bail, ensure};
use cli::interrupt::Interrupt;
use cli::output;
use cli::text::{self, printable_line};
use imagefmt::ImageRef;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Read at a time; zeros of this length become a hole.
const PIECE_BYTES: usize = 128 << 10;

/// Copy a file or a directory out of an image
///
/// The path is as the server itself sees it; with IMAGE:DISK:PATH or --partition, it is in the filesystem there. See
/// 'smc-image ls-files'. Owners, permissions, times, extended attributes (with access control lists and capabilities) and
/// hard links within what is copied are kept; what the filesystem of DEST cannot keep is named. Sockets are left out. The
/// copy appears at DEST when it is complete, and not before. A symbolic link that is named is followed; those below a
/// directory are copied as links.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image and the file in it, as in web01/7:/etc/fstab
    #[arg(value_name = "IMAGE:PATH")]
    source: Source,
    /// Where to: a directory that exists, or the name of the copy
    #[arg(value_name = "DEST")]
    dest: PathBuf,
    /// Copy directories with all that is in them
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    tree: TreeArgs,
}

/// A file of an image.
#[derive(Debug, Clone)]
struct Source {
    image: ImageRef,
    path: PathBuf,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(":/")
            .ok_or("write the image, a colon and an absolute path, as in web01/7:/etc/fstab")?;
        let (image, path) = text.split_at(at);
        Ok(Self {
            image: image
                .parse()
                .map_err(|error: imagefmt::Error| error.to_string())?,
            path: PathBuf::from(&path[1..]),
        })
    }
}

/// Copies it.
///
/// # Errors
/// An image that cannot be looked into, a path that does not exist, what cannot be read or written, and an interrupt:
/// nothing is at DEST then that was not there before.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let Source { image, path } = &args.source;
    let dest = destination(path, &args.dest)?;
    let opened = guest_path::open(context, image, &args.tree, Access::ReadOnly, &interrupt)?;
    let place = opened.tree.root.located(path)?;
    let metadata = match fs::symlink_metadata(&place) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{image} has no {}", path.display()),
        found => found.with_context(|| format!("look at {}", path.display()))?,
    };
    if metadata.is_dir() && !args.recursive {
        return Err(anyhow!("{} is a directory", path.display())).advise("copy it with -r");
    }
    let is_dir = dest.symlink_metadata().is_ok_and(|there| there.is_dir());
    ensure!(
        !is_dir && (!metadata.is_dir() || dest.symlink_metadata().is_err()),
        "{} is there already",
        dest.display()
    );
    let mut copy = Copy {
        interrupt: &interrupt,
        files: 0,
        bytes: 0,
        sockets: 0,
        linked: HashMap::new(),
        attributes: Attributes::default(),
    };
    copy.whole(&place, &metadata, &dest)
        .with_context(|| format!("copy {} to {}", path.display(), dest.display()))?;
    copy.complain(&dest);
    if context.json {
        output::json(&serde_json::json!({
            "dest": dest,
            "files": copy.files,
            "bytes": copy.bytes,
            "sockets_left_out": copy.sockets,
            "attributes_not_kept": copy.attributes.lost,
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of the copy.
fn destination(path: &Path, dest: &Path) -> anyhow::Result<PathBuf> {
    if !dest.is_dir() {
        ensure!(
            dest.file_name().is_some(),
            "{} is no name for a copy",
            dest.display()
        );
        return Ok(dest.to_owned());
    }
    let name = path.file_name().unwrap_or(OsStr::new("root"));
    Ok(dest.join(name))
}

struct Copy<'a> {
    interrupt: &'a Interrupt,
    files: u64,
    bytes: u64,
    /// Sockets that were left out.
    sockets: usize,
    /// A copy of each file that has several names, by device and inode, and how many names are still to come.
    linked: HashMap<(u64, u64), (PathBuf, u64)>,
    attributes: Attributes,
}

impl Copy<'_> {
    /// Copies to a name beside the destination, and renames that when it is complete.
    fn whole(&mut self, place: &Path, metadata: &Metadata, dest: &Path) -> anyhow::Result<()> {
        let parent = dest.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("."));
        let beside = tempfile::Builder::new().prefix(".smc-cp-").tempdir_in(parent);
        let beside = beside.with_context(|| format!("make a directory in {}", parent.display()))?;
        let made = beside.path().join("copy");
        self.any(place, metadata, &made)?;
        fs::rename(&made, dest).with_context(|| format!("rename it to {}", dest.display()))
    }

    fn any(&mut self, place: &Path, metadata: &Metadata, dest: &Path) -> anyhow::Result<()> {
        self.interrupt.check()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory(place, metadata, dest);
        }
        if kind.is_socket() {
            // It means nothing without the process that listens.
            self.sockets += 1;
            return Ok(());
        }
        if metadata.nlink() > 1 && self.is_linked(metadata, dest)? {
            self.files += 1;
            return Ok(());
        }
        if kind.is_file() {
            self.file(place, dest)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(place)?, dest)?;
            lchown(dest, Some(metadata.uid()), Some(metadata.gid()))?;
            return self.attributes.keep(place, dest);
        } else {
            let kind = SFlag::from_bits_truncate(metadata.mode() & libc::S_IFMT);
            mknod(dest, kind, Mode::empty(), metadata.rdev())?;
        }
        self.files += 1;
        self.keep(place, metadata, dest)
    }

    /// Whether a name of a file that has several is one more name of its copy now. Otherwise it becomes a copy, also where the
    /// filesystem allows no more names for the last one.
    fn is_linked(&mut self, metadata: &Metadata, dest: &Path) -> anyhow::Result<bool> {
        let inode = (metadata.dev(), metadata.ino());
        let Some((copy, to_come)) = self.linked.get_mut(&inode) else {
            let to_come = metadata.nlink() - 1;
            self.linked.insert(inode, (dest.to_owned(), to_come));
            return Ok(false);
        };
        let linked = fs::hard_link(&*copy, dest);
        *to_come = to_come.saturating_sub(1);
        if linked
            .as_ref()
            .is_err_and(|error| error.raw_os_error() == Some(libc::EMLINK))
        {
            dest.clone_into(copy);
            return Ok(false);
        }
        linked?;
        if *to_come == 0 {
            self.linked.remove(&inode);
        }
        Ok(true)
    }

    fn directory(&mut self, place: &Path, metadata: &Metadata, dest: &Path) -> anyhow::Result<()> {
        // Closed to others until it is complete.
        fs::create_dir(dest)?;
        fs::set_permissions(dest, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(place)? {
            let name = entry?.file_name();
            let below = place.join(&name);
            let metadata = fs::symlink_metadata(&below)?;
            self.any(&below, &metadata, &dest.join(&name))
                .with_context(|| name.to_string_lossy().into_owned())?;
        }
        self.keep(place, metadata, dest)
    }

    /// Gives a copy its owner, extended attributes, permissions and times. In this order: a change of the owner takes the
    /// setuid bit and capabilities away, and an access control list sets permissions.
    fn keep(&mut self, place: &Path, metadata: &Metadata, dest: &Path) -> anyhow::Result<()> {
        chown(dest, Some(metadata.uid()), Some(metadata.gid()))?;
        self.attributes.keep(place, dest)?;
        fs::set_permissions(dest, Permissions::from_mode(metadata.mode() & 0o7777))?;
        if metadata.is_file() || metadata.is_dir() {
            let times = FileTimes::new()
                .set_accessed(metadata.accessed()?)
                .set_modified(metadata.modified()?);
            File::open(dest)?.set_times(times)?;
        }
        Ok(())
    }

    /// Says what could not be kept.
    fn complain(&self, dest: &Path) {
        if self.sockets > 0 {
            let sockets = text::count(self.sockets, "socket");
            output::complain(format_args!(
                "smc-image: {sockets} left out: without its process a socket is of no use"
            ));
        }
        if let Some(first) = &self.attributes.first {
            let (lost, dest) = (self.attributes.lost, dest.display());
            let attributes = text::count(lost, "extended attribute");
            output::complain(format_args!(
                "smc-image: {attributes} could not be kept in {dest}; the first: {}",
                printable_line(first)
            ));
        }
    }

    /// Copies what is in a file; zeros take no space.
    fn file(&mut self, place: &Path, dest: &Path) -> anyhow::Result<()> {
        let source = File::open(place)?;
        let mut copy = File::options().write(true).create_new(true).open(dest)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut length = 0;
        loop {
            self.interrupt.check()?;
            piece.clear();
            let read = (&source).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            if read == 0 {
                break;
            }
            if blockio::is_zero(&piece) {
                copy.seek(SeekFrom::Current(i64::try_from(read)?))?;
            } else {
                copy.write_all(&piece)?;
            }
            length += read as u64;
        }
        copy.set_len(length)?;
        self.bytes += length;
        Ok(())
    }
}

/// Copies extended attributes, and counts those that the other filesystem does not take.
#[derive(Debug, Default)]
struct Attributes {
    lost: usize,
    /// Name, file and reason.
    first: Option<String>,
}

impl Attributes {
    /// Copies those of a file, or of a symbolic link itself.
    fn keep(&mut self, place: &Path, dest: &Path) -> anyhow::Result<()> {
        let names = match xattr::list(place) {
            Ok(names) => names,
            Err(error) if is_not_supported(&error) => return Ok(()),
            Err(error) => return Err(error).context("list its extended attributes"),
        };
        for name in names {
            let context = || format!("read its extended attribute {}", name.to_string_lossy());
            let Some(value) = xattr::get(place, &name).with_context(context)? else {
                continue;
            };
            if let Err(error) = xattr::set(dest, &name, &value) {
                self.lose(&name, place, &error);
            }
        }
        Ok(())
    }

    fn lose(&mut self, name: &OsStr, place: &Path, error: &std::io::Error) {
        self.lost += 1;
        let file = place.file_name().unwrap_or_default().to_string_lossy();
        let lost = || format!("{} of {file}: {error}", name.to_string_lossy());
        self.first.get_or_insert_with(lost);
    }
}

fn is_not_supported(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}
