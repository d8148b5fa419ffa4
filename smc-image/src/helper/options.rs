//! What people say about the helper guest, and the key of encrypted disks.

use super::Means;
use crate::mount::filesystem::Stacked;
use crate::mount::select::{self, NamedDisk, Wanted};
use anyhow::{Context, ensure};
use cli::output;
use imagefmt::{Image, ImageRef};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// More than any key file has: cryptsetup reads 8 MiB at most, and a message to the guest takes four characters a byte.
const KEY_LEN_MAX: u64 = 64 << 10;

/// The helper guest, which opens LVM, RAID and LUKS in an image.
#[derive(Debug, clap::Args)]
pub struct HelperArgs {
    /// File with the passphrase of encrypted disks (LUKS), taken as it is; without it the terminal is asked
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Kernel for the guest that opens LVM, RAID and LUKS; without it, one that is installed here
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    kernel: Option<PathBuf>,
    /// Root directory of the system whose kernel modules and programs that guest gets
    #[arg(long, value_name = "DIR", default_value = "/", hide_short_help = true)]
    helper_root: PathBuf,
}

impl HelperArgs {
    /// Whether the guest is needed for what is wanted of an image, and the key of its encrypted disks.
    ///
    /// # Errors
    /// A disk that the image does not have, one that cannot be read, and a key that cannot be read.
    pub fn prepare(
        &self,
        name: &ImageRef,
        image: &Image,
        disks: &[NamedDisk<'_>],
        wanted: Wanted<'_>,
    ) -> anyhow::Result<(Option<Means<'_>>, Option<Vec<u8>>)> {
        let found = select::stacked(disks, wanted).with_context(|| format!("look into {name}"))?;
        if found.is_empty() {
            // What is named can only be a disk: says which disks there are otherwise.
            if let Some(disk) = wanted.disk {
                image.disk(Some(disk))?;
            }
            return Ok((None, None));
        }
        let key = match &self.key_file {
            Some(file) => Some(read_key(file)?),
            None if found.contains(&Stacked::Luks) && io::stdin().is_terminal() => Some(ask(name)?),
            None => None,
        };
        Ok((Some(self.means()), key))
    }

    /// What the guest is made of.
    pub fn means(&self) -> Means<'_> {
        Means {
            kernel: self.kernel.as_deref(),
            root: &self.helper_root,
        }
    }
}

fn read_key(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut key = Vec::new();
    File::open(path)
        .and_then(|file| file.take(KEY_LEN_MAX + 1).read_to_end(&mut key))
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(
        key.len() as u64 <= KEY_LEN_MAX,
        "{} is larger than 64 KiB, which no key is",
        path.display()
    );
    Ok(key)
}

/// Asks for a passphrase, which is not shown.
fn ask(image: &ImageRef) -> anyhow::Result<Vec<u8>> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).context("read the terminal's settings")?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    let question = format!("Passphrase for the encrypted disks of {image}: ");
    let asked = io::stderr().write_all(question.as_bytes());
    asked.context("ask for the passphrase")?;
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden).context("hide what is typed")?;
    let mut line = Vec::new();
    let read = stdin.lock().read_until(b'\n', &mut line);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).context("show again what is typed")?;
    output::complain("");
    read.context("read the passphrase")?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(line)
}
