//! `smc-image ls`: what images there are.

use crate::commands::verdict as boot_verdict;
use crate::context::Context;
use crate::exit;
use crate::selection::{self, Selected};
use cli::output;
use cli::table::{Align, Table};
use cli::units;
use imagefmt::{BootVerdict, DiskRecord, Error, ImageId, Manifest, Pin, Store, Verdict, VerdictState};
use serde_json::json;
use std::collections::HashSet;
use std::process::ExitCode;

/// List images
///
/// Shows for every image when and how it was created, its consistency class, the size of its disks, how much of it
/// differs from its parent image, and how much space that takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the images of these jobs
    #[arg(value_name = "JOB")]
    selected: Vec<Selected>,
}

/// Lists every image; one whose manifest is damaged is listed as that.
///
/// # Errors
/// A store that cannot be opened, and output that cannot be written.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let mut list = List::new(context.json);
    let found = selection::find(&store, &args.selected)?;
    for image in found.images {
        match selection::unless_deleted(store.manifest(&image)) {
            Some(Ok(manifest)) => {
                let label = image.to_string();
                let (said, unread) = Said::of(&store, &image, &manifest);
                list.image(&manifest, &said)?;
                for (what, error) in unread {
                    list.unread_beside(&label, what, &error.into())?;
                }
            }
            Some(Err(error)) => list.unreadable(&image.to_string(), &error.into())?,
            None => {}
        }
    }
    for error in found.unread {
        list.unlisted(&error.into())?;
    }
    let mut unreadable = HashSet::new();
    for images in found.jobs {
        let job = images.job();
        match store.unfinished(job) {
            Ok(Some(unfinished)) => list.unfinished(&unfinished)?,
            // A chain has one, and which of its jobs it is of cannot be read either.
            Err(error) if unreadable.insert(images.chain().to_owned()) => {
                list.unreadable(&format!("{job}/unfinished"), &error.into())?;
            }
            _ => {}
        }
    }
    list.finish(store.label())
}

/// What was said of an image since it was made.
struct Said {
    verdict: Option<Verdict>,
    boot: Option<BootVerdict>,
    pins: Vec<Pin>,
}

impl Said {
    /// What can be read of it, and what cannot. The image itself is what counts: it is shown all the same.
    fn of(store: &Store, image: &ImageId, manifest: &Manifest) -> (Self, Vec<(&'static str, Error)>) {
        let mut unread = Vec::new();
        let verdict = store.verdict(image, manifest).unwrap_or_else(|error| {
            unread.push(("result of its verification", error));
            None
        });
        let boot = store.boot_verdict(image, manifest).unwrap_or_else(|error| {
            unread.push(("boot verdict", error));
            None
        });
        let pins = store.pins(image).unwrap_or_else(|error| {
            unread.push(("pins", error));
            Vec::new()
        });
        (Self { verdict, boot, pins }, unread)
    }

    fn booted(&self) -> String {
        self.boot
            .as_ref()
            .map_or_else(|| "-".to_owned(), boot_verdict::in_short)
    }

    fn verified(&self) -> String {
        let state = self
            .verdict
            .as_ref()
            .map_or(VerdictState::Unknown, Verdict::state);
        match state {
            VerdictState::Damaged(time) => format!("DAMAGED {}", units::local_date(time)),
            VerdictState::Stopped(percent) => format!("stopped at {percent}%"),
            VerdictState::Good(time) => format!("good {}", units::local_date(time)),
            VerdictState::Sampled(percent, time) => format!("{percent}% good {}", units::local_date(time)),
            VerdictState::Unknown => "-".to_owned(),
        }
    }
}

struct List {
    json: bool,
    table: Table,
    images: usize,
    code: ExitCode,
}

impl List {
    fn new(json: bool) -> Self {
        let left =
            ["IMAGE", "CREATED", "KIND", "METHOD", "CONSISTENCY"].map(|heading| (heading, Align::Left));
        let right = ["DISKS", "SIZE", "DIRTY", "STORED"].map(|heading| (heading, Align::Right));
        let last = [("VERIFIED", Align::Left), ("BOOTED", Align::Left)];
        let table = Table::new(&[left.as_slice(), &right, &last].concat());
        Self {
            json,
            table,
            images: 0,
            code: ExitCode::SUCCESS,
        }
    }

    fn image(&mut self, manifest: &Manifest, said: &Said) -> anyhow::Result<()> {
        self.images += 1;
        if self.json {
            return output::unless_closed(output::json(&object(manifest, said)));
        }
        let consistency = manifest.consistency.to_string();
        self.row(
            label(manifest),
            manifest,
            methods(manifest).join("+"),
            consistency,
            [said.verified(), said.booted()],
        );
        if !said.pins.is_empty() {
            let names: Vec<&str> = said.pins.iter().map(|pin| pin.name.as_str()).collect();
            self.table
                .note(format!("{}  pinned: {}", label(manifest), names.join(", ")));
        }
        Ok(())
    }

    fn unfinished(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        self.images += 1;
        let label = format!("{}/unfinished", manifest.job);
        if self.json {
            return output::unless_closed(output::json(&json!({
                "unfinished": label,
                "job": manifest.job,
                "started": manifest.started,
                "saved": manifest.finished,
                "disks": manifest.disks.iter().map(|disk| &disk.name).collect::<Vec<_>>(),
                "dirty_bytes": sum(manifest, |disk| disk.dirty_bytes),
                "stored_bytes": sum(manifest, |disk| disk.stored_bytes),
            })));
        }
        self.row(
            label,
            manifest,
            "-".to_owned(),
            "unfinished".to_owned(),
            ["-".to_owned(), "-".to_owned()],
        );
        Ok(())
    }

    fn row(
        &mut self,
        label: String,
        manifest: &Manifest,
        method: String,
        consistency: String,
        [verified, booted]: [String; 2],
    ) {
        self.table.row([
            label,
            units::local_time(manifest.finished),
            manifest.kind.to_string(),
            method,
            consistency,
            manifest.disks.len().to_string(),
            units::size(sum(manifest, |disk| disk.size_bytes)),
            units::size(sum(manifest, |disk| disk.dirty_bytes)),
            units::size(sum(manifest, |disk| disk.stored_bytes)),
            verified,
            booted,
        ]);
    }

    fn unreadable(&mut self, label: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        self.images += 1;
        let damaged = self.judge(error);
        let error = exit::full_message(error);
        if self.json {
            return output::unless_closed(output::json(
                &json!({ "image": label, "damaged": damaged, "error": error }),
            ));
        }
        let state = if damaged { "damaged" } else { "cannot be read" };
        self.table.note(format!("{label}  {state}: {error}"));
        Ok(())
    }

    /// Says what cannot be read of what lies beside an image, which is listed.
    fn unread_beside(&mut self, label: &str, what: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        let damaged = self.judge(error);
        let error = exit::full_message(error);
        if self.json {
            return output::unless_closed(output::json(
                &json!({ "beside": label, "what": what, "damaged": damaged, "error": error }),
            ));
        }
        self.table
            .note(format!("{label}  {what} cannot be read: {error}"));
        Ok(())
    }

    /// Says that a part of the store is missing in the list.
    fn unlisted(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        self.images += 1;
        let damaged = self.judge(error);
        let error = exit::full_message(error);
        if self.json {
            return output::unless_closed(output::json(&json!({ "damaged": damaged, "error": error })));
        }
        self.table.note(format!("incomplete: {error}"));
        Ok(())
    }

    /// Lets an error count for the exit code, and says whether it is damage.
    fn judge(&mut self, error: &anyhow::Error) -> bool {
        let damaged = exit::is_damage(error);
        if damaged {
            self.code = ExitCode::from(exit::DAMAGED);
        } else if self.code == ExitCode::SUCCESS {
            self.code = ExitCode::FAILURE;
        }
        damaged
    }

    fn finish(self, store: &str) -> anyhow::Result<ExitCode> {
        if self.json {
            return Ok(self.code);
        }
        let printed = match self.images {
            0 => output::line(format_args!("no images in {store}")),
            _ => self.table.print(),
        };
        output::unless_closed(printed)?;
        Ok(self.code)
    }
}

fn label(manifest: &Manifest) -> String {
    format!("{}/{}", manifest.job, manifest.sequence)
}

fn sum(manifest: &Manifest, bytes: impl Fn(&DiskRecord) -> u64) -> u64 {
    manifest.disks.iter().map(bytes).fold(0, u64::saturating_add)
}

/// The methods of all disks, each once.
fn methods(manifest: &Manifest) -> Vec<String> {
    let mut methods: Vec<String> = manifest
        .disks
        .iter()
        .map(|disk| disk.method.to_string())
        .collect();
    methods.sort();
    methods.dedup();
    methods
}

fn object(manifest: &Manifest, said: &Said) -> serde_json::Value {
    let disk = |disk: &DiskRecord| json!({ "name": disk.name, "size_bytes": disk.size_bytes });
    json!({
        "image": label(manifest),
        "job": manifest.job,
        "sequence": manifest.sequence,
        "id": manifest.id,
        "parent": manifest.parent,
        "started": manifest.started,
        "finished": manifest.finished,
        "kind": manifest.kind,
        "methods": methods(manifest),
        "consistency": manifest.consistency,
        "cluster_size": manifest.cluster_size,
        "disks": manifest.disks.iter().map(disk).collect::<Vec<_>>(),
        "size_bytes": sum(manifest, |disk| disk.size_bytes),
        "dirty_bytes": sum(manifest, |disk| disk.dirty_bytes),
        "stored_bytes": sum(manifest, |disk| disk.stored_bytes),
        "verified": said.verdict,
        "booted": said.boot.as_ref().map(|verdict| verdict.booted),
        "pins": said.pins,
    })
}
