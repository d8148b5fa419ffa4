//! `smc-image digest`: one value for the content of a disk, wherever it is.

use crate::context::Context;
use crate::exit::Advise;
use anyhow::Context as _;
use blockio::Device;
use clap::ValueEnum;
use cli::output;
use cli::progress::Progress;
use imagefmt::{ClusterSize, DiskDigest, Geometry, ImageRef};
use restore::digest;
use serde_json::json;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::thread;

/// Print the digest of a disk's content
///
/// The same content has the same digest in an image, on a device, in a raw file and on an NBD server, if the cluster
/// size is the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A disk of an image, a path that starts with / or ., or an NBD URI
    what: Source,
    /// Cluster size of the digest [default: the cluster size of the image, or 64K]
    #[arg(long, value_name = "SIZE", value_enum, ignore_case = true)]
    cluster_size: Option<Size>,
    /// Compute the digest of an image from its content, instead of printing the one that is stored in it
    #[arg(long)]
    recompute: bool,
}

/// The cluster sizes that exist.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Size {
    #[value(name = "16K")]
    K16,
    #[value(name = "64K")]
    K64,
    #[value(name = "256K")]
    K256,
}

impl From<Size> for ClusterSize {
    fn from(size: Size) -> Self {
        match size {
            Size::K16 => Self::K16,
            Size::K64 => Self::K64,
            Size::K256 => Self::K256,
        }
    }
}

/// Where the content is.
#[derive(Debug, Clone)]
enum Source {
    Path(PathBuf),
    Uri(String),
    Image(ImageRef),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let schemes = ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"];
        if text.starts_with(['/', '.']) {
            return Ok(Self::Path(text.into()));
        }
        if schemes.iter().any(|scheme| text.starts_with(scheme)) {
            return Ok(Self::Uri(text.to_owned()));
        }
        let image = text
            .parse()
            .map_err(|error| format!("{error}; a path starts with / or ./, an NBD URI with nbd"))?;
        Ok(Self::Image(image))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Uri(uri) => uri.fmt(f),
            Self::Image(image) => image.fmt(f),
        }
    }
}

/// A digest, the size of what it is of, and whether the content was read for it.
struct Answer {
    digest: DiskDigest,
    size_bytes: u64,
    computed: bool,
}

/// Prints the digest, then what it is of.
///
/// # Errors
/// What cannot be opened or read, damage, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let cluster_size = args.cluster_size.map(ClusterSize::from);
    let answer = match &args.what {
        Source::Path(path) => of_path(path, cluster_size.unwrap_or(ClusterSize::K64))?,
        Source::Uri(uri) => of_uri(uri, cluster_size.unwrap_or(ClusterSize::K64))?,
        Source::Image(image) => of_image(context, image, cluster_size, args.recompute)?,
    };
    let Answer {
        digest,
        size_bytes,
        computed,
    } = answer;
    if context.json {
        output::json(&json!({
            "what": args.what.to_string(),
            "digest": digest.to_string(),
            "size_bytes": size_bytes,
            "cluster_size": digest.cluster_size.bytes(),
            "computed": computed,
        }))?;
    } else {
        output::line(format_args!("{digest}  {}", args.what))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn bar(size_bytes: u64, what: impl fmt::Display) -> Progress {
    Progress::bytes(size_bytes, format!("digest {what}"))
}

fn of_path(path: &std::path::Path, cluster_size: ClusterSize) -> anyhow::Result<Answer> {
    let device = Device::open(path)?;
    let size_bytes = device.size_bytes();
    let geometry = Geometry::new(size_bytes, cluster_size)?;
    let digest = digest::of_device(&device, geometry, &bar(size_bytes, path.display()), None)?;
    Ok(Answer {
        digest,
        size_bytes,
        computed: true,
    })
}

fn of_image(
    context: &Context,
    image: &ImageRef,
    cluster_size: Option<ClusterSize>,
    recompute: bool,
) -> anyhow::Result<Answer> {
    let disk = context.open_disk(image)?;
    let (size_bytes, recorded) = (disk.size_bytes(), disk.digest());
    let cluster_size = cluster_size.unwrap_or(recorded.cluster_size);
    if !recompute && cluster_size == recorded.cluster_size {
        return Ok(Answer {
            digest: recorded,
            size_bytes,
            computed: false,
        });
    }
    let geometry = Geometry::new(size_bytes, cluster_size)?;
    let digest = digest::of_disk(&disk, geometry, &bar(size_bytes, disk.label()))?;
    if digest.cluster_size == recorded.cluster_size && digest != recorded {
        let what = format!(
            "{}: its content gives {digest}, its root {recorded}",
            disk.label()
        );
        return Err(imagefmt::Error::damaged(what).into());
    }
    Ok(Answer {
        digest,
        size_bytes,
        computed: true,
    })
}

fn of_uri(uri: &str, cluster_size: ClusterSize) -> anyhow::Result<Answer> {
    let size_bytes = uri_size(uri)?;
    let geometry = Geometry::new(size_bytes, cluster_size)?;
    let mut copy = Client::start(Command::new("nbdcopy").args(["--", uri, "-"]), "nbdcopy")?;
    let stdout = copy.child.stdout.take().context("nbdcopy has no output")?;
    let digest = digest::of_stream(stdout, geometry, &bar(size_bytes, uri));
    // Why nbdcopy ended early says more than that it did.
    copy.finish().with_context(|| format!("read {uri}"))?;
    Ok(Answer {
        digest: digest?,
        size_bytes,
        computed: true,
    })
}

fn uri_size(uri: &str) -> anyhow::Result<u64> {
    let mut info = Client::start(Command::new("nbdinfo").args(["--size", "--", uri]), "nbdinfo")?;
    let text = info.child.stdout.take().map(io::read_to_string).transpose();
    info.finish().with_context(|| format!("ask {uri} for its size"))?;
    let text = text.context("read the output of nbdinfo")?.unwrap_or_default();
    text.trim()
        .parse()
        .with_context(|| format!("nbdinfo said no size of {uri}: {:?}", text.trim()))
}

/// A client of libnbd at work; killed when dropped.
struct Client {
    child: Child,
    name: &'static str,
    /// Collects what it says on stderr while its output is being read.
    complaints: Option<thread::JoinHandle<String>>,
}

impl Client {
    fn start(command: &mut Command, name: &'static str) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let missing = Err(anyhow::Error::from(error).context(format!("{name} is not installed")));
                return missing.advise("NBD servers are read with libnbd's clients: install libnbd-bin");
            }
            spawned => spawned.with_context(|| format!("start {name}"))?,
        };
        let complaints = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(move || io::read_to_string(stderr).unwrap_or_default()));
        Ok(Self {
            child,
            name,
            complaints,
        })
    }

    /// Waits until it ends; an error is what it complained about.
    fn finish(mut self) -> anyhow::Result<()> {
        let status = self
            .child
            .wait()
            .with_context(|| format!("wait for {}", self.name))?;
        if status.success() {
            return Ok(());
        }
        let complaints = self
            .complaints
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let complaints = complaints.trim().replace('\n', "; ");
        anyhow::bail!("{} ended with {status}: {complaints}", self.name)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
