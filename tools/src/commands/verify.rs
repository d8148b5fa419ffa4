//! `smc-image verify`: whether everything is as it was written.

use crate::context::Context;
use crate::exit;
use crate::output::{self, ClosedOutput, Progress};
use crate::selection::{self, Place, Selected};
use imagefmt::{Chain, ErrorKind, Finding, Image, Store, Verifier, VerifyProgress};
use serde_json::json;
use std::cell::Cell;
use std::collections::HashMap;
use std::process::ExitCode;

/// Findings that people are shown of one disk before they are only counted.
const FINDINGS_SHOWN_MAX: usize = 20;

/// Read everything that images hold and report what is not as it was written
///
/// What images share is read once. Exit code 3 if there is any damage; the other images are verified all the
/// same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images or jobs to verify; everything in the store where none is named
    #[arg(value_name = "IMAGE|JOB")]
    selected: Vec<Selected>,
}

/// Verifies what was selected, and reports.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let places = selection::places(&store, &args.selected)?;
    let mut run = Verification::new(&store, context.json);
    for place in &places {
        match run.image(place) {
            // Nobody reads on: the exit code still tells what was found.
            Err(error) if error.is::<ClosedOutput>() && run.findings > 0 => break,
            verified => verified?,
        }
    }
    run.summary()
}

struct Verification<'a> {
    store: &'a Store,
    json: bool,
    verifier: Verifier,
    chains: HashMap<String, Chain>,
    images: usize,
    damaged: usize,
    /// Images that could not be judged, for a reason other than damage.
    failed: usize,
    findings: usize,
    checked_bytes: u64,
    read_bytes: u64,
}

impl<'a> Verification<'a> {
    fn new(store: &'a Store, json: bool) -> Self {
        Self {
            store,
            json,
            verifier: Verifier::new(),
            chains: HashMap::new(),
            images: 0,
            damaged: 0,
            failed: 0,
            findings: 0,
            checked_bytes: 0,
            read_bytes: 0,
        }
    }

    fn image(&mut self, (chain, sequence): &Place) -> anyhow::Result<()> {
        let label = format!("{chain}/{sequence}");
        match selection::unless_deleted(self.open(chain, *sequence)) {
            Some(Ok(image)) => self.content(&image),
            Some(Err(error)) if error.kind() == ErrorKind::Damaged => {
                let what = exit::told(&error.into());
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

    /// Opens an image through its chain's one set of caches.
    fn open(&mut self, chain: &str, sequence: u64) -> imagefmt::Result<Image> {
        if !self.chains.contains_key(chain) {
            self.chains.insert(chain.to_owned(), self.store.chain(chain)?);
        }
        self.chains[chain].image(sequence)
    }

    fn content(&mut self, image: &Image) -> anyhow::Result<()> {
        let label = image.label();
        let total = image
            .disks()
            .iter()
            .map(imagefmt::Disk::size_bytes)
            .fold(0, u64::saturating_add);
        let bar = Progress::bytes(total, format!("verify {label}"));
        let done = Cell::new(VerifyProgress::default());
        let findings = self.verifier.verify(image, &|now| {
            bar.set(now.checked_bytes);
            done.set(now);
        });
        drop(bar);
        self.report(&label, &findings, done.get())
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
        let error = exit::told(error);
        if self.json {
            return output::json(&json!({ "type": "error", "image": label, "error": error }));
        }
        eprintln!("smc-image: {label} cannot be verified: {error}");
        Ok(())
    }

    fn summary(&self) -> anyhow::Result<ExitCode> {
        let code = match (self.findings, self.failed) {
            (0, 0) => ExitCode::SUCCESS,
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
        let images = output::count(self.images, "image");
        let (checked, read) = (output::size(self.checked_bytes), output::size(self.read_bytes));
        let verdict = match self.findings {
            0 => "no damage".to_owned(),
            _ => format!(
                "{} damaged, {}",
                self.damaged,
                output::count(self.findings, "finding")
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
                output::count(rest, "finding")
            ))?;
        }
    }
    Ok(())
}
