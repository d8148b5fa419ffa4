//! One device that is kept at the newest image.

use super::complain;
use anyhow::{Context, Result, anyhow, bail};
use blockio::Ranges;
use cli::exit::Advise;
use cli::interrupt::Interrupt;
use cli::units;
use imagefmt::{Disk, Image, ImageRef, Store};
use jiff::Timestamp;
use restore::held::{Held, Holding, State};
use restore::onto::{self, Difference};
use restore::target::Target;
use restore::write::Written;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A device, and what is known of it.
pub struct Followed {
    /// The disk's name, where the image may have several.
    name: Option<String>,
    path: PathBuf,
    records: PathBuf,
    /// Nothing is believed.
    compares: bool,
    opened: Option<Opened>,
}

struct Opened {
    target: Target,
    held: Held,
    /// What it holds: while it is open, that image is not deleted.
    last: Option<Disk>,
}

/// What one image has cost.
#[derive(Debug, Serialize)]
pub struct Round {
    image: String,
    target: String,
    digest: String,
    /// The disk that the device was believed to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    believed: Option<String>,
    /// Why all of it was read instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_because: Option<String>,
    /// When all of it was read last, and had the digests of an image.
    compared: Timestamp,
    compared_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    read_back_bytes: u64,
    seconds: f64,
    /// Since the target had the image.
    lag_seconds: f64,
}

/// What is to be written, and how that was found.
pub struct Plan {
    found: Difference,
    /// How long it took, with reading what is to be written.
    took: Duration,
    /// What the device was believed to hold, or why nothing was believed.
    believed: Result<String, String>,
}

impl Followed {
    /// A device that is opened for the first image.
    pub fn new(name: Option<String>, path: PathBuf, records: &Path, compares: bool) -> Self {
        Self {
            name,
            path,
            records: records.to_owned(),
            compares,
            opened: None,
        }
    }

    /// Whether it is for the disk of this name.
    pub fn is_of(&self, disk: &str) -> bool {
        self.name.as_deref().is_none_or(|name| name == disk)
    }

    /// What people should recognize it by, once it is open.
    pub fn description(&self) -> Option<String> {
        Some(self.opened.as_ref()?.target.description())
    }

    /// Opens the device, if that was not done yet, and looks whether it can take the image.
    ///
    /// # Errors
    /// An image without such a disk; a device that is refused.
    pub fn open(&mut self, image: &Image, store: &Path) -> Result<()> {
        // It is the command line that is wrong, not the image.
        let found = image
            .disk(self.name.as_deref())
            .map_err(|error| anyhow!(error.full_message()));
        let disk = found.advise("name a device for each disk, as in --disk vda=/dev/vdb")?;
        if let Some(opened) = &self.opened {
            opened.target.check_in_place()?;
            opened.target.check_unused()?;
            let (has, wanted) = (opened.target.device.size_bytes(), disk.size_bytes());
            if has < wanted {
                return Err(anyhow!(
                    "{} is too small now: it has {has} bytes, {} has {wanted}",
                    self.path.display(),
                    disk.label()
                ))
                .advise("follow on a larger device; this one holds the image before");
            }
            return Ok(());
        }
        let target = Target::open(&self.path, disk.size_bytes(), store)?;
        let held = Held::open(&self.records, &target, &|text| {
            complain(&format!("warning: {text}"))
        })?;
        self.opened = Some(Opened {
            target,
            held,
            last: None,
        });
        Ok(())
    }

    /// Finds what differs from its disk of an image, and reads all that is to be written: nothing is written yet.
    ///
    /// # Errors
    /// A device that cannot be read, an image that cannot be read or is damaged, an interrupt.
    pub fn plan(&self, image: &Image, store: &Store, interrupt: &Interrupt) -> Result<Plan> {
        let begun = Instant::now();
        let disk = image.disk(self.name.as_deref())?;
        onto::check_readable(disk)?;
        let plan = self.opened()?.plan(disk, store, self.compares, interrupt)?;
        onto::check_data(disk, &plan.found.ranges, Some(interrupt))?;
        Ok(Plan {
            took: begun.elapsed(),
            ..plan
        })
    }

    /// Makes the device hold its disk of an image, verified.
    ///
    /// # Errors
    /// A device that cannot be written or read, an image that cannot be read, an interrupt.
    pub fn bring_to(&mut self, image: &Image, plan: Plan, interrupt: &Interrupt) -> Result<Round> {
        let begun = Instant::now();
        let disk = image.disk(self.name.as_deref())?;
        let Some(opened) = &mut self.opened else {
            bail!("{} is not open", self.path.display());
        };
        let plan = opened.plan_again(disk, plan, interrupt)?;
        let (compared, read_back_bytes) = (plan.found.compared, plan.found.ranges.bytes());
        let written = opened.write(disk, &plan.found.ranges, interrupt)?;
        opened.target.check_in_place()?;
        let proof = plan.found.proof(disk, &opened.target);
        let noted = opened.held.holds(disk, &proof, &opened.target);
        if let Some(text) = noted.unwrap_or_else(|error| Some(format!("{error:#}"))) {
            complain(&format!("warning: {text}"));
        }
        opened.last = Some(disk.clone());
        Ok(Round {
            image: disk.label().to_owned(),
            target: self.path.display().to_string(),
            digest: disk.digest().to_string(),
            compared,
            compared_bytes: if plan.believed.is_err() {
                disk.size_bytes()
            } else {
                0
            },
            data_bytes: written.data_bytes,
            zero_bytes: written.zero_bytes,
            read_back_bytes,
            seconds: (plan.took + begun.elapsed()).as_secs_f64(),
            lag_seconds: Timestamp::now()
                .duration_since(image.manifest().finished)
                .as_secs_f64()
                .max(0.0),
            compared_because: plan.believed.as_ref().err().cloned(),
            believed: plan.believed.ok(),
        })
    }

    fn opened(&self) -> Result<&Opened> {
        let opened = self.opened.as_ref();
        opened.with_context(|| format!("{} is not open", self.path.display()))
    }

    /// Which image it holds, as far as that is written down: `web01/7`.
    fn holds(&self) -> Option<&str> {
        match self.opened.as_ref()?.held.state()? {
            State::Holds(holding) => holding.disk.split(':').next(),
            State::Between { .. } => None,
        }
    }

    fn is_between(&self) -> bool {
        let state = self.opened.as_ref().and_then(|opened| opened.held.state());
        matches!(state, Some(State::Between { .. }))
    }
}

/// What has to be known before anybody uses the disks: that some are between two images, or that they are not all at the same one.
pub fn standing(disks: &[Followed]) -> Option<String> {
    let names = |disks: &mut dyn Iterator<Item = &Followed>| -> String {
        let names: Vec<String> = disks.map(|disk| disk.path.display().to_string()).collect();
        names.join(", ")
    };
    let between = names(&mut disks.iter().filter(|disk| disk.is_between()));
    if !between.is_empty() {
        return Some(format!(
            "between two images, do not use: {between}. The next smc-store follow, or smc-image restore --onto, reads all of it and \
             completes it"
        ));
    }
    let first = disks.iter().find_map(Followed::holds)?;
    if disks.iter().all(|disk| disk.holds() == Some(first)) {
        return None;
    }
    let each = disks.iter().map(|disk| {
        let holds = disk.holds().unwrap_or("no image as far as is known");
        format!("{} holds {holds}", disk.path.display())
    });
    let each: Vec<String> = each.collect();
    Some(format!(
        "the disks are not all at the same image, do not use them together: {}. The next smc-store follow brings them to one",
        each.join(", ")
    ))
}

impl Opened {
    /// Finds what differs: from the image that the device is known to hold, or by reading it.
    fn plan(&self, disk: &Disk, store: &Store, compares: bool, interrupt: &Interrupt) -> Result<Plan> {
        let believed = match compares {
            true => Err("--compare asks for it".to_owned()),
            false => self.believed(disk, store),
        };
        let (found, believed) = match believed {
            Ok((found, holding)) => (found, Ok(holding.disk.clone())),
            Err(reason) => {
                let found = onto::differing_from_device(disk, &self.target, Some(interrupt))?;
                (found, Err(reason))
            }
        };
        Ok(Plan {
            found,
            believed,
            took: Duration::ZERO,
        })
    }

    /// The plan, or another one if the device was written to since.
    fn plan_again(&self, disk: &Disk, plan: Plan, interrupt: &Interrupt) -> Result<Plan> {
        Ok(
            match onto::found_again(disk, &self.target, &plan.found, interrupt)? {
                None => plan,
                Some(found) => Plan {
                    found,
                    believed: Err(format!(
                        "{} was written to meanwhile",
                        self.target.device.path().display()
                    )),
                    ..plan
                },
            },
        )
    }

    /// What differs from the disk that the device holds, if that is written down, nothing speaks against it and the store can still
    /// read it.
    fn believed(&self, disk: &Disk, store: &Store) -> Result<(Difference, &Holding), String> {
        let holding = self.held.believed(&self.target)?;
        let is_it = |old: &Disk| old.digest().to_string() == holding.digest;
        let last = self.last.clone().filter(is_it);
        let old = last.or_else(|| stored(store, &holding.disk).filter(is_it));
        let old =
            old.ok_or_else(|| format!("{}, which it held, is not in the store any more", holding.disk))?;
        if old.geometry() != disk.geometry() {
            return Err(format!("the disk's size has changed since {}", holding.disk));
        }
        // If it is the new image that cannot be read, comparing says so.
        let differing = onto::differing_from_disk(disk, &old)
            .map_err(|error| format!("{} cannot be compared with: {error:#}", holding.disk))?;
        Ok((Difference::believed(differing, holding), holding))
    }

    /// Writes and reads back. That it begins is written down before.
    fn write(&mut self, disk: &Disk, differing: &Ranges, interrupt: &Interrupt) -> Result<Written> {
        if differing.is_empty() {
            return Ok(Written::default());
        }
        let (begun, held) = (AtomicBool::new(false), &mut self.held);
        let written = onto::write(disk, &self.target, differing, held, &begun, interrupt)?;
        onto::verify(disk, &self.target, differing, interrupt)?;
        Ok(written)
    }
}

/// A disk of an image by its label, if it can be read.
fn stored(store: &Store, label: &str) -> Option<Disk> {
    let image: ImageRef = label.parse().ok()?;
    let found = store.image(&image).ok()?;
    found.disk(image.disk.as_deref()).ok().cloned()
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, target, .. } = self;
        let (written, took) = (self.data_bytes + self.zero_bytes, units::measured(self.seconds));
        write!(f, "{target} holds {image}: ")?;
        match &self.compared_because {
            Some(_) if written == 0 => write!(f, "it was compared, and nothing differed")?,
            Some(_) => write!(
                f,
                "it was compared, {} written and read back",
                units::size(written)
            )?,
            None => write!(
                f,
                "{} written and read back; the rest was last compared {}, and no other write to it was seen since",
                units::size(written),
                units::local_time(self.compared)
            )?,
        }
        let lag = units::measured(self.lag_seconds);
        write!(f, " ({took}; {lag} after the image was received)")
    }
}
