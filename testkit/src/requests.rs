//! The requests that a disk gets, as the kernel's block layer records them (tracefs).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::guard::{LoopDevice, Mount, ScratchDir};

/// Records the requests to one loop device, in a trace of its own, until it is dropped.
#[derive(Debug)]
pub struct Requests {
    trace: PathBuf,
    // The trace is removed before they are dropped.
    _mount: Mount,
    _directory: ScratchDir,
}

impl Requests {
    /// Begins to record; `None` where this kernel (older than 6.12) does not record priorities, which is said on standard error.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when there is no tracefs; [`ErrorKind::Setup`] in place of `None` under `CI=true`.
    pub fn record(disk: &LoopDevice) -> Result<Option<Self>> {
        let directory = ScratchDir::new("requests")?;
        let mount = Mount::new(
            Path::new("none"),
            &directory.join("tracing"),
            "tracefs",
            MsFlags::empty(),
        )?;
        let event = "events/block/block_rq_issue";
        let format = mount.path().join(event).join("format");
        let format = fs::read_to_string(&format).context(|| format!("read {}", format.display()))?;
        if !format.contains("ioprio") {
            let why = "this kernel's trace of requests does not have their priority, so it is not checked";
            if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
                return Err(Error::new(ErrorKind::Setup, why));
            }
            eprintln!("{why}");
            return Ok(None);
        }
        let (major, minor) = disk.number()?;
        let trace = mount.path().join(format!("instances/smc-{major}-{minor}"));
        fs::create_dir(&trace).context(|| format!("create {}", trace.display()))?;
        let requests = Self {
            trace,
            _mount: mount,
            _directory: directory,
        };
        let filter = format!("dev == {}", (u64::from(major) << 20) | u64::from(minor));
        requests.write(&format!("{event}/filter"), &filter)?;
        requests.write(&format!("{event}/enable"), "1")?;
        Ok(Some(requests))
    }

    /// The priorities of all reads so far, each as the kernel writes it, without repetitions in a row: `idle,0,0`, `be,0,7`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn read_priorities(&self) -> Result<Vec<String>> {
        let mut found: Vec<String> = self.reads()?.into_iter().map(|(priority, _)| priority).collect();
        found.dedup();
        Ok(found)
    }

    /// How many bytes were read so far with each priority.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn read_bytes(&self) -> Result<BTreeMap<String, u64>> {
        let mut found = BTreeMap::new();
        for (priority, bytes) in self.reads()? {
            *found.entry(priority).or_default() += bytes;
        }
        Ok(found)
    }

    fn reads(&self) -> Result<Vec<(String, u64)>> {
        let path = self.trace.join("trace");
        let text = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        let reads = text.lines().filter_map(read);
        Ok(reads
            .map(|(priority, bytes)| (priority.to_owned(), bytes))
            .collect())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.trace.join(name);
        fs::write(&path, content).context(|| format!("write {content} to {}", path.display()))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Its event goes with it.
        let _ = fs::remove_dir(&self.trace);
    }
}

/// Priority and bytes of a line like `... block_rq_issue: 7,0 R 131072 () 0 + 256 idle,0,0 [name]`; `None` for what is no
/// read of data.
fn read(line: &str) -> Option<(&str, u64)> {
    let (_, request) = line.split_once("block_rq_issue: ")?;
    let mut fields = request.split_whitespace().skip(1);
    let is_read = fields.next()?.starts_with('R');
    let bytes: u64 = fields.next()?.parse().ok()?;
    let priority = fields.find(|field| field.matches(',').count() == 2)?;
    (is_read && bytes > 0).then_some((priority, bytes))
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn reads_are_told_from_other_requests() {
        let line = |kind: &str, bytes: u32| {
            format!("  name-7 [001] ..... 1.5: block_rq_issue: 7,0 {kind} {bytes} () 0 + 8 be,0,7 [a, b]")
        };
        for kind in ["R", "RA", "RS"] {
            assert_eq!(read(&line(kind, 4096)), Some(("be,0,7", 4096)), "{kind}");
        }
        assert_eq!(read(&line("WS", 4096)), None);
        assert_eq!(read(&line("FF", 0)), None);
        assert_eq!(read("# tracer: nop"), None);
    }
}
