//! `smc-store follow`: a disk of this machine that is kept at the newest image of a source.

mod disk;

use crate::config::Config;
use anyhow::{Result, anyhow, bail};
use cli::exit::{Advise, WrongUse};
use cli::interrupt::{Interrupt, Interrupted};
use cli::{ask, output};
use disk::{Followed, Round};
use imagefmt::{Image, ImageId, Store};
use restore::held;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// How often is looked for a new image.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
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
/// read. An interrupt while the device is between two images.
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
    match following.run() {
        // Nothing was being written.
        Err(error) if error.is::<Interrupted>() && !args.once => Ok(ExitCode::SUCCESS),
        done => done.map(|()| ExitCode::SUCCESS),
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
    fn run(&self) -> Result<()> {
        let mut disks = self.disks();
        let mut last: Option<ImageId> = None;
        let mut is_confirmed = false;
        loop {
            let (store, id) = self.next(last.as_ref())?;
            let done = self.round(&store, &id, &mut disks, &mut is_confirmed);
            match done {
                Ok(()) => {}
                // The next image may be whole.
                Err(error) if !self.args.once && is_of_image(&error) => complain(&format!(
                    "image {id} is left out: {}",
                    cli::exit::full_message(&error)
                )),
                Err(error) => return Err(error),
            }
            if self.args.once {
                return Ok(());
            }
            last = Some(id);
        }
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

    /// Brings all disks to an image.
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
        for disk in disks {
            let round = disk.bring_to(&image, store, self.interrupt)?;
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
        loop {
            self.interrupt.check()?;
            if let Some(found) = self.newest()?.filter(|(_, found)| Some(found) != last) {
                return Ok(found);
            }
            if self.args.once {
                bail!("there is no image of {} yet", self.args.source);
            }
            if !is_said && last.is_none() {
                is_said = true;
                complain(&format!("waiting for the first image of {}", self.args.source));
            }
            let mut waited = Duration::ZERO;
            while waited < POLL_INTERVAL && !self.interrupt.is_set() {
                sleep(SIGNAL_INTERVAL);
                waited += SIGNAL_INTERVAL;
            }
        }
    }

    /// The newest image of the job.
    fn newest(&self) -> Result<Option<(Store, ImageId)>> {
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
        let images = match self.job {
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

/// Whether an image cannot be read: the device is not to blame.
fn is_of_image(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<imagefmt::Error>())
}

fn report(round: &Round, json: bool) -> Result<()> {
    if json {
        output::json(round)
    } else {
        output::line(round)
    }
}
