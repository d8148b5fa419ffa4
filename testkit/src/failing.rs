//! A file with places that cannot be read: nbdkit serves it, nbdfuse shows it as a file.

use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::error::{IoContext, Result};
use crate::process::wait_for;

/// A file in which some reads fail, until they are to fail no more.
#[derive(Debug)]
pub struct FailingFile {
    path: PathBuf,
    bad: PathBuf,
    content: PathBuf,
    server: Child,
}

/// A place whose reads fail, unless they are short.
#[derive(Debug, Clone)]
pub struct BadPlace {
    /// The bytes.
    pub bytes: Range<u64>,
    /// Reads of at most this many bytes succeed.
    pub tolerated: u64,
}

impl FailingFile {
    /// Serves `content` from files in `directory`. Needs root, nbdkit and nbdfuse.
    ///
    /// # Errors
    /// `Io` where a file cannot be written or nbdfuse not be started.
    pub fn serve(directory: &Path, content: &[u8], bad: &[BadPlace]) -> Result<Self> {
        let at = |name: &str| directory.join(name);
        let (script, path) = (at("plugin.sh"), at("served"));
        fs::write(at("content"), content).context(|| "write what is served".to_owned())?;
        let text = plugin(&at("content"), &at("bad"), content.len());
        fs::write(&script, text).context(|| "write nbdkit's plugin".to_owned())?;
        fs::set_permissions(&script, Permissions::from_mode(0o700))
            .context(|| "make it a program".to_owned())?;
        fs::write(&path, "").context(|| "make the place of the file".to_owned())?;
        let mut command = Command::new("nbdfuse");
        command.arg("-r").arg(&path);
        command
            .args(["[", "nbdkit", "--exit-with-parent", "sh"])
            .arg(&script)
            .arg("]");
        let file = Self {
            bad: at("bad"),
            content: at("content"),
            server: command.spawn().context(|| "start nbdfuse".to_owned())?,
            path,
        };
        file.fail_at(bad)?;
        wait_for("nbdfuse and nbdkit to serve", || {
            fs::metadata(&file.path).is_ok_and(|data| data.len() == content.len() as u64)
        });
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file behind it, of which everything can be read.
    pub fn content(&self) -> &Path {
        &self.content
    }

    /// From now on these places cannot be read, and all others can.
    ///
    /// # Errors
    /// `Io` where that cannot be written down.
    pub fn fail_at(&self, bad: &[BadPlace]) -> Result<()> {
        let line = |place: &BadPlace| {
            let Range { start, end } = place.bytes;
            format!("{start} {end} {}\n", place.tolerated)
        };
        let lines: String = bad.iter().map(line).collect();
        let new = self.bad.with_extension("new");
        let replaced = fs::write(&new, lines).and_then(|()| fs::rename(&new, &self.bad));
        replaced.context(|| format!("write {}", self.bad.display()))
    }
}

impl Drop for FailingFile {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Shell script for nbdkit's sh plugin: `$3` is the count and `$4` the offset of a read.
fn plugin(content: &Path, bad: &Path, size: usize) -> String {
    format!(
        r#"#!/bin/sh
case "$1" in
get_size) echo {size} ;;
pread)
    while read -r start end tolerated; do
        if [ "$3" -gt "$tolerated" ] && [ "$4" -lt "$end" ] && [ $(($4 + $3)) -gt "$start" ]; then
            echo "EIO bad sector" >&2
            exit 1
        fi
    done <{bad}
    dd if={content} iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
*) exit 2 ;;
esac
"#,
        content = content.display(),
        bad = bad.display()
    )
}
