//! What booting an image came to: a record beside its manifest.

use crate::error::{Error, ErrorKind, Result};
use crate::format::id::Uuid;
use crate::format::manifest::Manifest;
use crate::format::name::ImageId;
use crate::format::sealed::{self, sealed_record};
use crate::read::image::Image;
use crate::storage::paths::{boot_path, images_dir};
use crate::store::Store;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Lines of a console that are kept, and characters of each.
const LINES_MAX: usize = 40;
const LINE_CHARS_MAX: usize = 400;
/// Larger pictures are not kept: a listing reads the records of many images.
const SCREENSHOT_BYTES_MAX: usize = 2 << 20;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The last boot check of an image: whether its server booted, how, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootVerdict {
    format: u32,
    #[serde(default)]
    incompatible: Vec<String>,
    #[serde(default)]
    compatible: Vec<String>,
    /// Id of the image.
    image: Uuid,
    /// When it was started.
    pub started: Timestamp,
    /// When the check was over.
    pub finished: Timestamp,
    /// Whether what was waited for came.
    pub booted: bool,
    /// What was waited for, in words.
    pub check: String,
    /// From the start to the kernel's first line, in milliseconds; nothing where no line was seen.
    pub kernel_ms: Option<u64>,
    /// From the start to what was waited for, in milliseconds; nothing where it did not come.
    pub reached_ms: Option<u64>,
    /// Why it did not boot.
    pub problem: Option<BootProblem>,
    /// The machine.
    pub machine: BootMachine,
    /// The last lines of the console.
    pub console: Vec<String>,
    /// A picture of the screen at the end: PNG in Base64.
    screenshot: Option<String>,
    /// Version of the smc that made the check.
    pub smc: String,
    /// Version of QEMU.
    pub qemu: String,
}

sealed_record!(BootVerdict);

/// The machine that an image was booted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMachine {
    /// `bios` or `uefi`.
    pub firmware: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// How its disks were attached.
    pub disk_bus: String,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// How many processors it had.
    pub cpus: u32,
    /// Whether it had a network.
    pub network: bool,
}

/// Why an image did not boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootProblem {
    /// A name that does not change, for programs.
    pub name: String,
    /// What happened.
    pub what: String,
    /// What to do.
    pub advice: String,
    /// The device that was waited for.
    pub device: Option<String>,
    /// The first unit that failed.
    pub unit: Option<String>,
    /// The line of the console that says it.
    pub line: Option<String>,
}

/// How a boot check went, apart from what is said of every one.
#[derive(Debug, Clone)]
pub struct BootResult {
    /// When it was started.
    pub started: Timestamp,
    /// When it was over.
    pub finished: Timestamp,
    /// What was waited for, in words.
    pub check: String,
    /// From the start to the kernel's first line, in milliseconds.
    pub kernel_ms: Option<u64>,
    /// From the start to what was waited for, in milliseconds.
    pub reached_ms: Option<u64>,
    /// Why it did not boot; nothing if it did.
    pub problem: Option<BootProblem>,
    /// The machine.
    pub machine: BootMachine,
    /// The last lines of the console. What is too much of them is left out.
    pub console: Vec<String>,
    /// A picture of the screen, as PNG.
    pub screenshot: Option<Vec<u8>>,
    /// Version of the smc that made the check.
    pub smc: String,
    /// Version of QEMU.
    pub qemu: String,
}

impl BootVerdict {
    /// The verdict on an image.
    pub fn new(manifest: &Manifest, result: BootResult) -> Self {
        let screenshot = result
            .screenshot
            .filter(|png| png.starts_with(PNG_SIGNATURE) && png.len() <= SCREENSHOT_BYTES_MAX);
        let last = result.console.len().saturating_sub(LINES_MAX);
        Self {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            image: manifest.id,
            started: result.started,
            finished: result.finished,
            booted: result.problem.is_none(),
            check: result.check,
            kernel_ms: result.kernel_ms,
            reached_ms: result.reached_ms,
            problem: result.problem,
            machine: result.machine,
            console: result.console[last..]
                .iter()
                .map(|line| shortened(line))
                .collect(),
            screenshot: screenshot.map(|png| STANDARD.encode(png)),
            smc: result.smc,
            qemu: result.qemu,
        }
    }

    /// The picture of the screen, as PNG.
    ///
    /// # Errors
    /// `Damaged` for what is no picture.
    pub fn screenshot(&self) -> Result<Option<Vec<u8>>> {
        let Some(text) = &self.screenshot else {
            return Ok(None);
        };
        let png = STANDARD.decode(text).ok();
        let png = png.filter(|png| png.starts_with(PNG_SIGNATURE));
        png.map(Some)
            .ok_or_else(|| Error::damaged("field screenshot is no picture"))
    }

    /// Refuses what no boot check writes.
    fn check(&self, manifest: &Manifest) -> Result<()> {
        if self.image != manifest.id {
            return Err(Error::damaged(format!(
                "is about image {}, not this one",
                self.image
            )));
        }
        if self.booted == self.problem.is_some() {
            return Err(Error::damaged("fields booted and problem contradict each other"));
        }
        self.screenshot().map(drop)
    }
}

fn shortened(line: &str) -> String {
    line.chars().take(LINE_CHARS_MAX).collect()
}

impl Store {
    /// What the last boot check of an image came to; nothing if there is no record.
    ///
    /// # Errors
    /// `Damaged` for a record that is damaged or about another image, `Unsupported` for one of a newer smc:
    /// nothing depends on it, so continue without it.
    pub fn boot_verdict(&self, image: &ImageId, manifest: &Manifest) -> Result<Option<BootVerdict>> {
        let path = boot_path(image.chain(), image.sequence());
        let Some(verdict) = sealed::read_if_there::<BootVerdict>(&**self.storage(), &path)? else {
            return Ok(None);
        };
        let checked = verdict.check(manifest);
        checked.map_err(|error| error.in_file(&path).of_image("boot verdict of image", image))?;
        Ok(Some(verdict))
    }

    /// Puts a boot verdict beside its image, in the place of the one before. The image is held open, so it cannot be
    /// deleted meanwhile.
    ///
    /// # Errors
    /// `Io` where the store cannot be written. `Unsupported` where the record that is there is of a newer smc: it is left
    /// alone.
    pub fn keep_boot_verdict(&self, image: &Image, verdict: &BootVerdict) -> Result<()> {
        let id = image.id();
        match self.boot_verdict(id, image.manifest()) {
            Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
            _ => {}
        }
        let path = boot_path(id.chain(), id.sequence());
        sealed::replace(&**self.storage(), &images_dir(id.chain()), &path, verdict)
            .map_err(|error| error.of_image("keep the boot verdict of image", id))
    }
}
