//! `smc-image verify`: whether everything is as it was written.

mod against;
mod throttle;

use crate::context::Context;
use crate::exit;
use crate::selection::{self, Selected};
use anyhow::Context as _;
use cli::interrupt::Interrupt;
use cli::output::{self, unless_closed};
use cli::progress::Progress;
use cli::text;
use cli::units;
use imagefmt::{
    Error, ErrorKind, Finding, Image, ImageId, Inspection, JobImages, Readers, Span, Store, Verdict,
    Verified, Verifier, VerifyPlan, VerifyProgress,
};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use throttle::Throttle;

/// Findings that people are shown of one disk before they are only counted.
const FINDINGS_SHOWN_MAX: usize = 20;

/// Read everything that images contain, and report damage
///
/// What several images share is read once. If an image is damaged, the others are verified all the same, and the exit
/// code is 3. The result is stored beside each image, and `ls` shows it.
///
/// verify also checks the small files of the images' chains, and reports what is damaged, missing or left over. It
/// reads what an unfinished sync has stored if the sync's job or nothing is named, and looks at the rest of the store
/// if nothing is named.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images or jobs to verify [default: everything in the store]
    #[arg(value_name = "IMAGE|JOB")]
    selected: Vec<Selected>,
    /// Read all content [default]
    #[arg(long, conflicts_with = "sample")]
    all: bool,
    /// Read only this part of the content, a different part each time: a hundred runs at 1% read everything
    #[arg(long, value_name = "PERCENT", value_parser = parse_sample)]
    sample: Option<u32>,
    /// Read at most this many stored bytes per second, for example 50MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    rate: Option<u64>,
    /// Resume the last verification of these images, which was interrupted
    #[arg(long = "continue", conflicts_with_all = ["all", "sample"])]
    resume: bool,
    /// Compare one image, or one disk of it (--disk), with this device or file, which is read completely
    #[arg(long, value_name = "DEV", conflicts_with_all = ["all", "sample", "resume", "rate"])]
    against: Option<PathBuf>,
    /// The disk of the image to compare, if the image has several
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
///
/// # Errors
/// Wrong use, a store that cannot be opened, and output that cannot be written. Damage is no error: the exit code says
/// it.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let found = selection::find(&store, &args.selected)?;
    if let Some(device) = &args.against {
        return against::run(context, &store, &found.images, args.disk.as_deref(), device);
    }
    let mut run = Verification::new(&store, context.json, args)?;
    if args.resume {
        run.begun = interrupted(&store, &found.images)?;
    }
    for error in found.unread {
        run.failure(None, &error.into())?;
    }
    run.beside_images(&found.images, &found.jobs)?;
    if args.selected.is_empty() {
        let inspection = store.inspect()?;
        run.inspection("store", inspection)?;
    }
    for image in &found.images {
        run.image(image)?;
        if run.stopped {
            break;
        }
    }
    for chain in chains(found.jobs.iter().map(JobImages::chain)) {
        if !run.stopped {
            run.unfinished(chain)?;
        }
    }
    run.summary()
}

/// Each chain once.
fn chains<'a>(chains: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    chains.collect()
}

/// When the verification began that was interrupted last.
fn interrupted(store: &Store, images: &[ImageId]) -> anyhow::Result<Timestamp> {
    let mut last = None;
    for image in images {
        last = last.max(stopped_run(store, image)?);
    }
    last.context("no verification of these images was interrupted: leave --continue out")
}

/// When the verification of an image began that was interrupted; a damaged image or record tells of none.
fn stopped_run(store: &Store, image: &ImageId) -> imagefmt::Result<Option<Timestamp>> {
    let manifest = store.manifest(image);
    match manifest.and_then(|manifest| store.verdict(image, &manifest)) {
        Ok(verdict) => Ok(verdict
            .and_then(|verdict| verdict.stopped)
            .map(|stopped| stopped.span.run)),
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
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
    /// Of these, those that are not about an image.
    beside: usize,
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
            beside: 0,
            checked_bytes: 0,
            read_bytes: 0,
        })
    }

    /// Looks at what the chains of these images and jobs hold beside the content of images.
    fn beside_images(&mut self, images: &[ImageId], jobs: &[JobImages]) -> anyhow::Result<()> {
        let of_jobs = jobs.iter().map(JobImages::chain);
        for chain in chains(images.iter().map(ImageId::chain).chain(of_jobs)) {
            let inspection = self.store.inspect_chain(chain);
            self.inspection(&format!("chain {chain}"), inspection)?;
        }
        Ok(())
    }

    fn inspection(&mut self, place: &str, inspection: Inspection) -> anyhow::Result<()> {
        for error in inspection.errors {
            let damaged = error.kind() == ErrorKind::Damaged;
            let error = exit::full_message(&error.into());
            if damaged {
                self.findings += 1;
                self.beside += 1;
            } else {
                self.failed += 1;
            }
            self.say_beside(place, if damaged { "finding" } else { "error" }, &error)?;
        }
        for remark in inspection.remarks {
            self.say_beside(place, "remark", &remark)?;
        }
        Ok(())
    }

    fn say_beside(&self, place: &str, kind: &str, what: &str) -> anyhow::Result<()> {
        if self.json {
            return unless_closed(output::json(
                &json!({ "type": kind, "place": place, "what": what }),
            ));
        }
        unless_closed(output::line(format_args!("{place}: {what}")))
    }

    /// Verifies the content that an unfinished sync has stored; what it came to is not kept.
    fn unfinished(&mut self, chain: &str) -> anyhow::Result<()> {
        let plan = VerifyPlan::first(self.args.sample);
        let (throttle, interrupt) = (&mut self.throttle, &self.interrupt);
        throttle.next_image();
        let mut wait = |now: VerifyProgress| throttle.wait(now.read_bytes, interrupt);
        let verified = self
            .verifier
            .verify_unfinished(self.store, chain, &plan, &mut wait);
        match verified {
            Ok(Some(verified)) => {
                self.stopped |= verified.stopped.is_some();
                self.beside += verified.findings.len();
                self.count(&verified.findings, verified.progress);
                print_findings(self.json, &format!("chain {chain}"), &verified.findings)
            }
            // It could be read when the chain was looked at.
            Err(error) if error.kind() == ErrorKind::Io && self.findings + self.failed == 0 => {
                self.failure(None, &error.into())
            }
            // The look at the chain has printed the reason.
            Ok(None) | Err(_) => Ok(()),
        }
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
            Some(Err(error)) => self.failure(Some(&label), &error.into()),
            None => Ok(()),
        }
    }

    fn content(&mut self, image: &Image) -> anyhow::Result<()> {
        let label = image.id().to_string();
        // The result of this run must not take the place of a record that is there and cannot be read.
        let (mut verdict, unread) = match known(self.store, image) {
            Ok(verdict) => (verdict, None),
            Err(error) => (Verdict::new(image.manifest()), Some(error)),
        };
        if self.args.resume && verdict.done_by(self.begun).is_some() {
            return self.was_done(image, &verdict);
        }
        let plan = self.plan(&verdict);
        let sizes: Vec<u64> = image.disks().iter().map(imagefmt::Disk::size_bytes).collect();
        let total = sizes
            .iter()
            .map(|&size| plan.bytes_of(size))
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
        let kept = unread.map_or_else(|| self.store.keep_verdict(image, &verdict), Err);
        if let Err(error) = kept {
            self.tell_unkept(&error);
        }
        if verified.stopped.is_none() {
            return self.report(&label, &verified.findings, verified.progress);
        }
        let percent = verified.progress.checked_bytes.saturating_mul(100) / total.max(1);
        self.report_stopped(&label, &verified, percent)
    }

    /// What was found until somebody asked to stop. That nothing was found says nothing of the rest.
    fn report_stopped(&mut self, label: &str, verified: &Verified, percent: u64) -> anyhow::Result<()> {
        self.stopped = true;
        let findings = &verified.findings;
        self.damaged += usize::from(!findings.is_empty());
        self.count(findings, verified.progress);
        print_findings(self.json, label, findings)?;
        if self.json {
            let mut object = json!({
                "type": "image",
                "image": label,
                "stopped_percent": percent,
                "findings": findings.len(),
                "checked_bytes": verified.progress.checked_bytes,
                "read_bytes": verified.progress.read_bytes,
            });
            if !findings.is_empty() {
                object["good"] = false.into();
            }
            unless_closed(output::json(&object))?;
        }
        output::complain(format_args!(
            "smc-image: stopped at {percent} % of {label}; `smc-image verify --continue` resumes there"
        ));
        Ok(())
    }

    fn plan(&self, verdict: &Verdict) -> VerifyPlan {
        let left = verdict.resume().filter(|_| self.args.resume);
        left.unwrap_or_else(|| verdict.next(self.args.sample))
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

    fn tell_unkept(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.told_unkept, true) {
            output::complain(format_args!(
                "smc-image: the result cannot be kept beside the images: {}",
                error.full_message()
            ));
        }
    }

    fn report(&mut self, label: &str, findings: &[Finding], done: VerifyProgress) -> anyhow::Result<()> {
        self.images += 1;
        self.damaged += usize::from(!findings.is_empty());
        self.count(findings, done);
        print_findings(self.json, label, findings)?;
        if self.json {
            return unless_closed(output::json(&json!({
                "type": "image",
                "image": label,
                "good": findings.is_empty(),
                "findings": findings.len(),
                "checked_bytes": done.checked_bytes,
                "read_bytes": done.read_bytes,
            })));
        }
        if findings.is_empty() {
            unless_closed(output::line(format_args!("{label}: good")))?;
        }
        Ok(())
    }

    fn count(&mut self, findings: &[Finding], done: VerifyProgress) {
        self.findings += findings.len();
        self.checked_bytes += done.checked_bytes;
        self.read_bytes += done.read_bytes;
    }

    /// Something that cannot be judged, for a reason other than damage; an image, if it is one.
    fn failure(&mut self, image: Option<&str>, error: &anyhow::Error) -> anyhow::Result<()> {
        self.failed += 1;
        let error = exit::full_message(error);
        if self.json {
            return unless_closed(output::json(
                &json!({ "type": "error", "image": image, "error": error }),
            ));
        }
        match image {
            Some(image) => output::complain(format_args!("smc-image: {image} cannot be verified: {error}")),
            None => output::complain(format_args!("smc-image: not verified: {error}")),
        }
        Ok(())
    }

    fn summary(&self) -> anyhow::Result<ExitCode> {
        self.print_summary()?;
        Ok(match (self.findings, self.stopped, self.failed) {
            (1.., _, _) => ExitCode::from(exit::DAMAGED),
            (0, true, _) => ExitCode::from(exit::INTERRUPTED),
            (0, false, 1..) => ExitCode::FAILURE,
            (0, false, 0) => ExitCode::SUCCESS,
        })
    }

    fn print_summary(&self) -> anyhow::Result<()> {
        if self.json {
            return unless_closed(output::json(&json!({
                "type": "summary",
                "interrupted": self.stopped,
                "images": self.images,
                "damaged_images": self.damaged,
                "failed_images": self.failed,
                "findings": self.findings,
                "checked_bytes": self.checked_bytes,
                "read_bytes": self.read_bytes,
            })));
        }
        let images = text::count(self.images, "image");
        let (checked, read) = (units::size(self.checked_bytes), units::size(self.read_bytes));
        let verdict = match (self.findings, self.stopped) {
            (0, false) => "no damage".to_owned(),
            (0, true) => "interrupted, no damage so far".to_owned(),
            _ => format!(
                "{}{} damaged, {}{}",
                if self.stopped { "interrupted, " } else { "" },
                self.damaged,
                text::count(self.findings, "finding"),
                match self.beside {
                    0 => String::new(),
                    beside => format!(", {beside} of them beside the images"),
                }
            ),
        };
        unless_closed(output::line(format_args!(
            "{images} verified, {checked} of content from {read} stored: {verdict}"
        )))
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

/// The record of an image; a new one where there is none, or it is damaged: what that said is lost.
fn known(store: &Store, image: &Image) -> imagefmt::Result<Verdict> {
    let known = match store.verdict(image.id(), image.manifest()) {
        Err(error) if error.is_lost() => None,
        known => known?,
    };
    Ok(known.unwrap_or_else(|| Verdict::new(image.manifest())))
}

fn print_findings(json: bool, label: &str, findings: &[Finding]) -> anyhow::Result<()> {
    if json {
        let mut objects = findings.iter().map(finding_object);
        return objects.try_for_each(|object| unless_closed(output::json(&object)));
    }
    for of_disk in findings.chunk_by(|a, b| a.disk == b.disk) {
        of_disk
            .iter()
            .take(FINDINGS_SHOWN_MAX)
            .try_for_each(|finding| unless_closed(output::line(finding)))?;
        let rest = of_disk.len().saturating_sub(FINDINGS_SHOWN_MAX);
        if rest > 0 {
            let disk = of_disk[0]
                .disk
                .as_ref()
                .map_or(String::new(), |disk| format!(":{disk}"));
            unless_closed(output::line(format_args!(
                "{label}{disk}: {} more",
                text::count(rest, "finding")
            )))?;
        }
    }
    Ok(())
}
