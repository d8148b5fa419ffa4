//! Finding jobs again in their stores, when the state is lost.
//!
//! Every job keeps a note in its store: its record and its newest runs. It is written with every change of state,
//! after the database, and read only here.

use crate::clock::Moment;
use crate::job::JobRecord;
use api::{RunView, Status};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Runs that a note keeps.
pub const NOTE_RUNS: u32 = 50;

/// What a store keeps of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobNote {
    /// The machine whose job it is.
    pub host: String,
    /// The job.
    pub job: JobRecord,
    /// Its newest runs, newest first.
    pub runs: Vec<RunView>,
}

/// What was found in the stores.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The jobs.
    pub jobs: Vec<JobNote>,
    /// Stores that are none, or could not be read: they may be there later.
    pub unseen: Vec<PathBuf>,
    /// What was found and could not be used.
    pub warnings: Vec<String>,
}

/// What tells this machine from others, and from copies of it that were started elsewhere.
pub fn host() -> String {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    format!(
        "{}/{}",
        read("/etc/machine-id"),
        read("/sys/class/dmi/id/product_uuid")
    )
}

/// Reads the notes of all `stores`. Of two jobs of one name, the one that was created last counts.
pub fn rebuild<'a>(stores: impl Iterator<Item = &'a PathBuf>, now: &Moment) -> Rebuilt {
    let mut rebuilt = Rebuilt::default();
    let mut found: BTreeMap<String, JobNote> = BTreeMap::new();
    for path in stores {
        for mut note in read_store(path, &mut rebuilt) {
            adapt(&mut note.job, path, now);
            match found.get(&note.job.name) {
                Some(other) if other.job.created >= note.job.created => {}
                _ => drop(found.insert(note.job.name.clone(), note)),
            }
        }
    }
    rebuilt.jobs = found.into_values().collect();
    let mut tokens = BTreeSet::new();
    for note in &mut rebuilt.jobs {
        // A token is of one job: the note of one that was deleted while its store was away may be left.
        let token = &mut note.job.request.client_token;
        if token.as_ref().is_some_and(|token| !tokens.insert(token.clone())) {
            *token = None;
        }
    }
    rebuilt
}

fn read_store(path: &Path, rebuilt: &mut Rebuilt) -> Vec<JobNote> {
    let shown = path.display();
    let read = imagefmt::open_store(path).and_then(|store| Ok((store.notes()?, store)));
    let (names, store) = match read {
        Ok(read) => read,
        Err(error) => {
            rebuilt.unseen.push(path.to_owned());
            if error.kind() != imagefmt::ErrorKind::NotAStore {
                let warning = format!("store {shown} cannot be looked through: {}", error.full_message());
                rebuilt.warnings.push(warning);
            }
            return Vec::new();
        }
    };
    let mut notes = Vec::new();
    for name in names {
        match store.note::<JobNote>(&name) {
            Ok(note) if note.host != host() => rebuilt.warnings.push(format!(
                "job {name} in {shown} is of another machine: left alone. A new job can go on with its images: \
                 --take-up {name}"
            )),
            Ok(note) if note.job.name == name => notes.push(note),
            Ok(_) => rebuilt.warnings.push(format!(
                "the note of job {name} in {shown} is about another job: left alone"
            )),
            Err(error) => rebuilt
                .warnings
                .push(format!("job {name} in {shown} cannot be found again: {}", error.full_message())),
        }
    }
    notes
}

/// What a note says may be older than what happened last, and its store may have been moved.
fn adapt(job: &mut JobRecord, store: &Path, now: &Moment) {
    job.store = store.to_owned();
    job.expires = job.expires.anchored_by_measure(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
    if job.status == Status::Waiting && job.next_sync.is_none() {
        job.status = Status::Stopped;
    }
    job.warnings.push(
        "the daemon's state was lost, and this job was found again in its store: check its parameters"
            .to_owned(),
    );
}
