//! `smc-store follow`: a disk of this machine that is kept at the newest image of a source.

mod disk;

use crate::config::Config;
use anyhow::{Result, anyhow, bail};
use cli::exit::{Advise, WrongUse, advised, complain_of};
use cli::interrupt::{Interrupt, Interrupted};
use cli::{ask, output};
use disk::{Followed, Plan, Round};
use imagefmt::{ErrorKind, Image, ImageId, Store};
use restore::held;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often is looked for a new image.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long is waited after an error of the store, and how often such an error is repeated while it lasts.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody wants this to end.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Keep a disk of this machine at the newest image of a source
///
/// It waits for each new image and writes what differs to the device or file, so that at the cutover only the last difference has to
/// be written. What was written is read back and compared by digests. SIGTERM and SIGINT end it.
///
/// At first the device is read and compared with the image. It is not read again as long as it can be seen that nothing else was
/// written to it: then what differs between the two images is written, and the rest is believed, also when smc-store follow is started
/// again. What is written to the file behind a loop device, or below a volume, cannot be seen: use --compare for the last round.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The source, and its job if it has several: web01, or web01/web
    #[arg(value_name = "SOURCE[/JOB]")]
    source: String,
    /// A block device, or an existing file that is large enough; its content is overwritten
    #[arg(required_unless_present = "disk", conflicts_with = "disk")]
    device: Option<PathBuf>,
    /// The same for one disk of several; may be repeated
    #[arg(long, value_name = "NAME=DEVICE", value_parser = named_device)]
    disk: Vec<(String, PathBuf)>,
    /// Write the newest image and end
    #[arg(long)]
    once: bool,
    /// Read all of the device in each round, and believe nothing
    #[arg(long)]
    compare: bool,
    /// Do not ask before overwriting
    #[arg(long, short)]
    yes: bool,
    /// Print one JSON object for each disk and image
    #[arg(long)]
    json: bool,
    /// Directory in which it is written down which image each device holds [default: /var/lib/smc/restored; of users other than
    /// root, ~/.local/state/smc/restored]
    #[arg(long, value_name = "DIR")]
    restored: Option<PathBuf>,
}

fn named_device(text: &str) -> Result<(String, PathBuf), String> {
    match cli::disk::name_and_device(text) {
        (Some(name), device) if !name.is_empty() && !device.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(device)))
        }
        _ => Err("write NAME=DEVICE, as in vda=/dev/vdb".to_owned()),
    }
}

/// Follows until a signal ends it, or, with `--once`, one image long.
///
/// # Errors
/// A source or job that there is not; a device that is refused or cannot be read or written; with `--once`, an image that cannot be
/// read. An interrupt while a device is between two images, or while the devices are not all at the same one.
pub fn run(config: &Config, args: &Args) -> Result<ExitCode> {
    let (source, job) = match args.source.split_once('/') {
        Some((source, job)) => (source, Some(job)),
        None => (args.source.as_str(), None),
    };
    for (what, name) in [("source", Some(source)), ("job", job)] {
        let checked = name.map_or(Ok(()), |name| imagefmt::check_name(what, name));
        checked.map_err(|error| WrongUse(error.to_string()))?;
    }
    let interrupt = Interrupt::install()?;
    let following = Following {
        config,
        source,
        job,
        args,
        interrupt: &interrupt,
    };
    let mut disks = following.disks();
    let ended = following.run(&mut disks);
    match (ended, disk::standing(&disks)) {
        // Nothing was being written.
        (Err(error), None) if !args.once && is_interrupt(&error) => Ok(ExitCode::SUCCESS),
        (Err(error), Some(standing)) => Err(advised(error, standing)),
        (ended, _) => ended.map(|()| ExitCode::SUCCESS),
    }
}

struct Following<'a> {
    config: &'a Config,
    source: &'a str,
    job: Option<&'a str>,
    args: &'a Args,
    interrupt: &'a Interrupt,
}

impl Following<'_> {
    fn run(&self, disks: &mut [Followed]) -> Result<()> {
        let mut last: Option<ImageId> = None;
        let mut is_confirmed = false;
        let mut trouble = Trouble::default();
        loop {
            let done = self.next(last.as_ref()).and_then(|(store, id)| {
                let done = self.round(&store, &id, disks, &mut is_confirmed);
                done.or_else(|error| self.leave_out(&id, error, disks))?;
                Ok(id)
            });
            match done {
                Ok(_) if self.args.once => return Ok(()),
                Ok(id) => {
                    trouble = Trouble::default();
                    last = Some(id);
                }
                Err(error) if self.args.once || !is_of_store(&error) => return Err(error),
                // The same image is tried again.
                Err(error) => {
                    trouble.say(&with_standing(error, disks));
                    self.pause(RETRY_INTERVAL)?;
                }
            }
        }
    }

    /// Says that an image cannot be used, if the error is of that kind: it stays as it is, and the next one may be whole.
    fn leave_out(&self, id: &ImageId, error: anyhow::Error, disks: &[Followed]) -> Result<()> {
        if self.args.once || !is_of_image(&error) {
            return Err(error);
        }
        let error = with_standing(error, disks);
        complain_of(format_args!("smc-store: image {id} is left out"), &error);
        Ok(())
    }

    /// Waits, unless somebody wants this to end.
    fn pause(&self, pause: Duration) -> Result<()> {
        let mut waited = Duration::ZERO;
        while waited < pause {
            self.interrupt.check()?;
            sleep(SIGNAL_INTERVAL);
            waited += SIGNAL_INTERVAL;
        }
        Ok(())
    }

    fn disks(&self) -> Vec<Followed> {
        let records = self.args.restored.clone().unwrap_or_else(held::default_directory);
        let one = self.args.device.iter().map(|device| (None, device.clone()));
        let named = self
            .args
            .disk
            .iter()
            .map(|(name, device)| (Some(name.clone()), device.clone()));
        let followed = |(name, device)| Followed::new(name, device, &records, self.args.compare);
        one.chain(named).map(followed).collect()
    }

    /// Brings all disks to an image. Before anything is written to one, all that is to be written to any of them was read.
    fn round(
        &self,
        store: &Store,
        id: &ImageId,
        disks: &mut [Followed],
        is_confirmed: &mut bool,
    ) -> Result<()> {
        let image = store.open_image(id)?;
        let directory = self.config.store_of(self.source);
        for disk in &mut *disks {
            disk.open(&image, &directory)?;
        }
        if !*is_confirmed {
            self.confirm(&image, disks)?;
            *is_confirmed = true;
        }
        let plans = disks.iter().map(|disk| disk.plan(&image, store, self.interrupt));
        let plans = plans.collect::<Result<Vec<Plan>>>()?;
        for (disk, plan) in disks.iter_mut().zip(plans) {
            let round = disk.bring_to(&image, plan, self.interrupt)?;
            output::unless_closed(report(&round, self.args.json))?;
        }
        Ok(())
    }

    fn confirm(&self, image: &Image, disks: &[Followed]) -> Result<()> {
        for disk in image.disks() {
            if !disks.iter().any(|followed| followed.is_of(disk.name())) {
                complain(&format!("disk {} of {} is not followed", disk.name(), image.id()));
            }
        }
        if self.args.yes {
            return Ok(());
        }
        let targets: Vec<String> = disks.iter().filter_map(Followed::description).collect();
        let targets = targets.join(", ");
        if !ask::is_possible() {
            return Err(anyhow!(
                "{targets} would be overwritten, and there is no terminal to ask on"
            ))
            .advise("give --yes if that is what you want");
        }
        output::complain(format_args!(
            "What is on {targets} will be overwritten by each new image of {}.",
            self.source
        ));
        match ask::is_confirmed("Follow?")? {
            true => Ok(()),
            false => bail!("not confirmed: nothing was written"),
        }
    }

    /// Waits for an image that is newer than `last`.
    fn next(&self, last: Option<&ImageId>) -> Result<(Store, ImageId)> {
        let mut is_said = false;
        let mut say = |text: String| {
            if !std::mem::replace(&mut is_said, true) {
                complain(&text);
            }
        };
        loop {
            self.interrupt.check()?;
            let found = self.newest(last)?;
            match (found, last) {
                (Some(found), None) => return Ok(found),
                (Some((store, id)), Some(last)) if is_newer(&id, last)? => return Ok((store, id)),
                (Some((_, id)), Some(last)) if id != *last => say(format!(
                    "the newest image is {id}, which is older than {last}: waiting for one that is newer"
                )),
                (None, _) if self.args.once => bail!("there is no image of {} yet", self.args.source),
                (None, None) => say(format!("waiting for the first image of {}", self.args.source)),
                _ => {}
            }
            self.pause(POLL_INTERVAL)?;
        }
    }

    /// The newest image of the job: of the one that `last` was of, if there was one.
    fn newest(&self, last: Option<&ImageId>) -> Result<Option<(Store, ImageId)>> {
        let Some(store) = self.config.open_store(self.source)? else {
            let known = crate::registry::Registry::in_directory(&self.config.state_dir).sources()?;
            if !known.contains_key(self.source) {
                bail!(
                    "there is no source {}: `smc-store ls` shows which there are",
                    self.source
                );
            }
            return Ok(None);
        };
        let images = match self.job.or(last.map(ImageId::job)) {
            Some(job) => store.images_of(job)?,
            None => {
                let mut jobs = store.jobs()?;
                if jobs.len() > 1 {
                    let names: Vec<&str> = jobs.keys().map(String::as_str).collect();
                    return Err(WrongUse(format!(
                        "source {} has several jobs: follow {}/{}, or another one of {}",
                        self.source,
                        self.source,
                        names[0],
                        names.join(", ")
                    ))
                    .into());
                }
                jobs.pop_first().map(|(_, images)| images)
            }
        };
        let latest = images.and_then(|images| images.latest());
        Ok(latest.map(|latest| (store, latest)))
    }
}

fn complain(text: &str) {
    output::complain(format_args!("smc-store: {text}"));
}

/// Whether an image is newer than the one that the disks were brought to.
///
/// # Errors
/// An image of another chain: their numbers say nothing about each other.
fn is_newer(image: &ImageId, last: &ImageId) -> Result<bool> {
    if image.chain() != last.chain() {
        return Err(anyhow!(
            "the newest image is {image} in chain {} now, the last one was {last} in chain {}",
            image.chain(),
            last.chain()
        ))
        .advise("start smc-store follow again, if the disk is to follow these images");
    }
    Ok(image.sequence() > last.sequence())
}

/// Whether an image can never be used: it is damaged, or lacks what was unreadable at the source.
fn is_of_image(error: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::Damaged, ErrorKind::Unreadable];
    store_error(error).is_some_and(|error| kinds.contains(&error.kind()))
}

/// Whether the store cannot be read, which may be different later: the devices are not to blame.
fn is_of_store(error: &anyhow::Error) -> bool {
    store_error(error).is_some()
}

fn store_error(error: &anyhow::Error) -> Option<&imagefmt::Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Interrupted>())
}

fn with_standing(error: anyhow::Error, disks: &[Followed]) -> anyhow::Error {
    match disk::standing(disks) {
        Some(standing) => advised(error, standing),
        None => error,
    }
}

/// What keeps being wrong: said when it changes, and from time to time.
#[derive(Debug, Default)]
struct Trouble {
    said: Option<(String, Instant)>,
}

impl Trouble {
    fn say(&mut self, error: &anyhow::Error) {
        let text = cli::exit::full_message(error);
        let is_known = |(said, when): &(String, Instant)| *said == text && when.elapsed() < REPEAT_INTERVAL;
        if self.said.as_ref().is_some_and(is_known) {
            return;
        }
        complain_of("smc-store: it is tried again", error);
        self.said = Some((text, Instant::now()));
    }
}

fn report(round: &Round, json: bool) -> Result<()> {
    if json {
        output::json(round)
    } else {
        output::line(round)
    }
}
