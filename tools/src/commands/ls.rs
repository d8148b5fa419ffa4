//! `smc-image ls`: what images there are.

use crate::context::Context;
use crate::exit;
use crate::output::{self, Align, Table};
use crate::selection::{self, Selected};
use imagefmt::{DiskRecord, Manifest};
use serde_json::json;
use std::process::ExitCode;

/// List images
///
/// Of every image: when it was made, how, what it is as a point in time, the size of its disks, how much of
/// it differs from the image before it, and what that took to store.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the images of these jobs
    #[arg(value_name = "JOB")]
    selected: Vec<Selected>,
}

/// Lists every image; one whose manifest is damaged is listed as that.
pub fn run(context: &Context, args: &Args) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let places = selection::places(&store, &args.selected)?;
    let mut list = List::new(context.json);
    for (chain, sequence) in places {
        match selection::unless_deleted(store.manifest(&chain, sequence)) {
            Some(Ok(manifest)) => list.image(&manifest)?,
            Some(Err(error)) => list.unreadable(&format!("{chain}/{sequence}"), &error.into())?,
            None => {}
        }
    }
    list.finish(store.label())
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
        let table = Table::new(&[left.as_slice(), &right].concat());
        Self {
            json,
            table,
            images: 0,
            code: ExitCode::SUCCESS,
        }
    }

    fn image(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        self.images += 1;
        if self.json {
            return output::json(&object(manifest));
        }
        self.table.row([
            label(manifest),
            output::local_time(manifest.finished),
            manifest.kind.to_string(),
            methods(manifest).join("+"),
            manifest.consistency.to_string(),
            manifest.disks.len().to_string(),
            output::size(sum(manifest, |disk| disk.size_bytes)),
            output::size(sum(manifest, |disk| disk.dirty_bytes)),
            output::size(sum(manifest, |disk| disk.stored_bytes)),
        ]);
        Ok(())
    }

    fn unreadable(&mut self, label: &str, error: &anyhow::Error) -> anyhow::Result<()> {
        self.images += 1;
        let damaged = exit::is_damage(error);
        if damaged {
            self.code = ExitCode::from(exit::DAMAGED);
        } else if self.code == ExitCode::SUCCESS {
            self.code = ExitCode::FAILURE;
        }
        let error = exit::told(error);
        if self.json {
            return output::json(&json!({ "image": label, "damaged": damaged, "error": error }));
        }
        let state = if damaged { "damaged" } else { "cannot be read" };
        self.table.note(format!("{label}  {state}: {error}"));
        Ok(())
    }

    fn finish(self, store: &str) -> anyhow::Result<ExitCode> {
        if self.json {
            return Ok(self.code);
        }
        match self.images {
            0 => output::line(format_args!("no images in {store}"))?,
            _ => self.table.print()?,
        }
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

fn object(manifest: &Manifest) -> serde_json::Value {
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
    })
}
