//! `smc-image verify`: whether everything is as it was written.

mod against;
mod throttle;

use crate::context::Context;
use crate::exit;
use crate::selection::{self, Selected};
use anyhow::Context as _;
use cli::interrupt::Interrupt;
use cli::output::{self, ClosedOutput};
use cli::progress::Progress;
use cli::text;
use cli::units;
use imagefmt::{
    ErrorKind, Finding, Image, ImageId, Readers, Scope, Span, Store, Verdict, Verifier, VerifyPlan,
    VerifyProgress,
};
use jiff::Timestamp;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use throttle::Throttle;

/// Findings that people are shown of one disk before they are only counted.
const FINDINGS_SHOWN_MAX: usize = 20;

/// Read everything that images hold and report what is not as it was written
///
/// What images share is read once. Exit code 3 if there is any damage; the other images are verified all the
/// same. When it was done and what it came to is kept beside each image, and `ls` shows it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images or jobs to verify; everything in the store where none is named
    #[arg(value_name = "IMAGE|JOB")]
    selected: Vec<Selected>,
    /// Read all content [default]
    #[arg(long, conflicts_with = "sample")]
    all: bool,
    /// Read only this part of the content, each time another one: at 1%, a hundred times read everything
    #[arg(long, value_name = "PERCENT", value_parser = parse_sample)]
    sample: Option<u32>,
    /// Read no more than this many stored bytes a second, like 50MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    rate: Option<u64>,
    /// Go on where the last verification of these images was interrupted
    #[arg(long = "continue", conflicts_with_all = ["all", "sample"])]
    resume: bool,
    /// Compare with this device or file instead, which is read whole; needs one image, or JOB/NUMBER:DISK
    #[arg(long, value_name = "DEV", conflicts_with_all = ["all", "sample", "resume", "rate"])]
    against: Option<PathBuf>,
    /// The disk of the image to compare, where it has several
    #[arg(long, value_name = "DISK", requires = "against")]
    disk: Option<String>,
}

/// In how many samples everything is read.
fn parse_sample(text: &str) -> Result<u32, String> {
    let percent: f64 = text
        .trim_end_matches('%')
        .parse()
        .map_err(|_| "write a percentage, like 1%".to_owned())?;
    if !(0.001..=100.0).contains(&percent) {
        return Err("only 0.001% to 100% of an image can be read".to_owned());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 100,000"
    )]
    let samples = (100.0 / percent).ceil() as u32;
    Ok(samples)
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match units::parse_rate(text)? {
        0 => Err("at 0 bytes a second it would never end".to_owned()),
        rate => Ok(rate),
    }
}

/// Verifies what was selected, and reports.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let images = selection::images(&store, &args.selected)?;
    if let Some(device) = &args.against {
        return against::run(context, &store, &images, args.disk.as_deref(), device);
    }
    let mut run = Verification::new(&store, context.json, args)?;
    if args.resume {
        run.begun = interrupted(&store, &images)?;
    }
    for image in &images {
        match run.image(image) {
            // Nobody reads on: the exit code still tells what was found.
            Err(error) if error.is::<ClosedOutput>() && run.findings > 0 => break,
            verified => verified?,
        }
        if run.stopped {
            break;
        }
    }
    run.summary()
}

/// When the verification began that was interrupted last.
fn interrupted(store: &Store, images: &[ImageId]) -> anyhow::Result<Timestamp> {
    let stopped = |image: &ImageId| {
        let manifest = store.manifest(image).ok()?;
        let verdict = store.verdict(image, &manifest).ok()??;
        verdict.stopped.map(|stopped| stopped.span.run)
    };
    images
        .iter()
        .filter_map(stopped)
        .max()
        .context("no verification of these images was interrupted: leave --continue out")
}

struct Verification<'a> {
    store: &'a Store,
    args: &'a Args,
    json: bool,
    verifier: Verifier,
    readers: Readers,
    interrupt: Interrupt,
    throttle: Throttle,
    /// When it began, or when the resumed one began.
    begun: Timestamp,
    /// Somebody asked it to stop.
    stopped: bool,
    /// It was said that the results cannot be kept.
    told_unkept: bool,
    images: usize,
    damaged: usize,
    /// Images that could not be judged, for a reason other than damage.
    failed: usize,
    findings: usize,
    checked_bytes: u64,
    read_bytes: u64,
}

impl<'a> Verification<'a> {
    fn new(store: &'a Store, json: bool, args: &'a Args) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            args,
            json,
            verifier: Verifier::new(),
            readers: store.readers(),
            interrupt: Interrupt::install()?,
            throttle: Throttle::new(args.rate),
            begun: Timestamp::now(),
            stopped: false,
            told_unkept: false,
            images: 0,
            damaged: 0,
            failed: 0,
            findings: 0,
            checked_bytes: 0,
            read_bytes: 0,
        })
    }

    fn image(&mut self, id: &ImageId) -> anyhow::Result<()> {
        let label = id.to_string();
        match selection::unless_deleted(self.readers.open(id)) {
            Some(Ok(image)) => self.content(&image),
            Some(Err(error)) if error.kind() == ErrorKind::Damaged => {
                let what = exit::full_message(&error.into());
                let finding = Finding {
                    image: label.clone(),
                    disk: None,
                    clusters: 0..0,
                    offset: 0,
                    cause: what.clone(),
                    what,
                };
                self.report(&label, &[finding], VerifyProgress::default())
            }
            Some(Err(error)) => self.failure(&label, &error.into()),
            None => Ok(()),
        }
    }

    fn content(&mut self, image: &Image) -> anyhow::Result<()> {
        let label = image.id().to_string();
        let mut verdict = self.verdict(image);
        if self.args.resume && verdict.done_by(self.begun).is_some() {
            return self.was_done(image, &verdict);
        }
        let plan = self.plan(&verdict);
        let sizes: Vec<u64> = image.disks().iter().map(imagefmt::Disk::size_bytes).collect();
        let total = sizes
            .iter()
            .map(|&size| plan.scope.bytes_of(size))
            .fold(0, u64::saturating_add);
        let bar = Progress::bytes(total, format!("verify {label}"));
        let started = Timestamp::now();
        let (throttle, interrupt) = (&mut self.throttle, &self.interrupt);
        throttle.next_image();
        let verified = self.verifier.verify(image, &plan, &mut |now| {
            bar.set(now.checked_bytes);
            throttle.wait(now.read_bytes, interrupt)
        });
        drop(bar);
        let span = Span {
            run: self.begun,
            started,
            finished: Timestamp::now(),
        };
        verdict.add(&plan, span, &sizes, &verified);
        self.keep(image, &verdict);
        self.report(&label, &verified.findings, verified.progress)?;
        if verified.stopped.is_some() {
            self.stopped = true;
            let percent = verified.progress.checked_bytes.saturating_mul(100) / total.max(1);
            output::complain(format_args!(
                "smc-image: stopped at {percent} % of {label}; `smc-image verify --continue` goes on from there"
            ));
        }
        Ok(())
    }

    /// What is known of an image; nothing where the record cannot be read, since it will be replaced.
    fn verdict(&self, image: &Image) -> Verdict {
        let known = self.store.verdict(image.id(), image.manifest());
        known
            .ok()
            .flatten()
            .unwrap_or_else(|| Verdict::new(image.manifest()))
    }

    fn plan(&self, verdict: &Verdict) -> VerifyPlan {
        let left = verdict.resume().filter(|_| self.args.resume);
        left.unwrap_or_else(|| VerifyPlan {
            scope: match self.args.sample {
                Some(of) if of > 1 => Scope::Sample(verdict.next_sample(of)),
                _ => Scope::All,
            },
            resume: None,
        })
    }

    /// An image that was done before the interruption: what it shares with the next need not be read again.
    fn was_done(&mut self, image: &Image, verdict: &Verdict) -> anyhow::Result<()> {
        let label = image.id().to_string();
        match verdict.done_by(self.begun) {
            Some((scope, Some([]))) => {
                self.verifier.remember(image, scope, &[]);
                self.report(&label, &[], VerifyProgress::default())
            }
            _ => self.report(
                &label,
                verdict.damage.as_ref().map_or(&[], |damage| &damage.findings),
                VerifyProgress::default(),
            ),
        }
    }

    fn keep(&mut self, image: &Image, verdict: &Verdict) {
        if let Err(error) = self.store.keep_verdict(image, verdict)
            && !std::mem::replace(&mut self.told_unkept, true)
        {
            output::complain(format_args!(
                "smc-image: the result cannot be kept beside the images: {}",
                error.full_message()
            ));
        }
    }

    fn report(&mut self, label: &str, findings: &[Finding], done: VerifyProgress) -> anyhow::Result<()> {
        self.images += 1;
        self.damaged += usize::from(!findings.is_empty());
        self.findings += findings.len();
        self.checked_bytes += done.checked_bytes;
        self.read_bytes += done.read_bytes;
        if !self.json {
            return print_for_people(label, findings);
        }
        findings
            .iter()
            .try_for_each(|finding| output::json(&finding_object(finding)))?;
        output::json(&json!({
            "type": "image",
            "image": label,
            "good": findings.is_empty(),
            "findings": findings.len(),
            "checked_bytes": done.checked_bytes,
            "read_bytes": done.read_bytes,
        }))
    }

    fn failure(&mut self, label: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        self.failed += 1;
        let error = exit::full_message(error);
        if self.json {
            return output::json(&json!({ "type": "error", "image": label, "error": error }));
        }
        output::complain(format_args!("smc-image: {label} cannot be verified: {error}"));
        Ok(())
    }

    fn summary(&self) -> anyhow::Result<ExitCode> {
        let code = match (self.findings, self.failed) {
            (0, 0) if !self.stopped => ExitCode::SUCCESS,
            (0, _) => ExitCode::FAILURE,
            _ => ExitCode::from(exit::DAMAGED),
        };
        match self.print_summary() {
            Err(error) if !error.is::<ClosedOutput>() => Err(error),
            _ => Ok(code),
        }
    }

    fn print_summary(&self) -> anyhow::Result<()> {
        if self.json {
            return output::json(&json!({
                "type": "summary",
                "images": self.images,
                "damaged_images": self.damaged,
                "failed_images": self.failed,
                "findings": self.findings,
                "checked_bytes": self.checked_bytes,
                "read_bytes": self.read_bytes,
            }));
        }
        let images = text::count(self.images, "image");
        let (checked, read) = (units::size(self.checked_bytes), units::size(self.read_bytes));
        let verdict = match self.findings {
            0 => "no damage".to_owned(),
            _ => format!(
                "{} damaged, {}",
                self.damaged,
                text::count(self.findings, "finding")
            ),
        };
        output::line(format_args!(
            "{images} verified, {checked} of content from {read} stored: {verdict}"
        ))
    }
}

fn finding_object(finding: &Finding) -> serde_json::Value {
    json!({
        "type": "finding",
        "image": finding.image,
        "disk": finding.disk,
        "first_cluster": finding.clusters.start,
        "cluster_count": finding.clusters.end - finding.clusters.start,
        "offset": finding.offset,
        "what": finding.what,
    })
}

fn print_for_people(label: &str, findings: &[Finding]) -> anyhow::Result<()> {
    if findings.is_empty() {
        return output::line(format_args!("{label}: good"));
    }
    for of_disk in findings.chunk_by(|a, b| a.disk == b.disk) {
        of_disk
            .iter()
            .take(FINDINGS_SHOWN_MAX)
            .try_for_each(output::line)?;
        let rest = of_disk.len().saturating_sub(FINDINGS_SHOWN_MAX);
        if rest > 0 {
            let disk = of_disk[0]
                .disk
                .as_ref()
                .map_or(String::new(), |disk| format!(":{disk}"));
            output::line(format_args!(
                "{label}{disk}: {} more",
                text::count(rest, "finding")
            ))?;
        }
    }
    Ok(())
}
