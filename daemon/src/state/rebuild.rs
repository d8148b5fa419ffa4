//! Finding jobs again in their stores, when the state is lost.
//!
//! Every job keeps a note in its store: its record and its newest runs. It is written with every change of state,
//! after the database, and read only here.

use crate::clock::Moment;
use crate::job::JobRecord;
use api::{RunView, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs that a note keeps.
pub const NOTE_RUNS: u32 = 50;

/// What a store keeps of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobNote {
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
    /// What was found and could not be used.
    pub warnings: Vec<String>,
}

/// Reads the notes of all `stores`. Of two jobs of one name, the one that was created last counts.
pub fn rebuild<'a>(stores: impl Iterator<Item = &'a PathBuf>, now: &Moment) -> Rebuilt {
    let mut rebuilt = Rebuilt::default();
    let mut found: BTreeMap<String, JobNote> = BTreeMap::new();
    for path in stores {
        for mut note in read_store(path, &mut rebuilt.warnings) {
            settle(&mut note.job, path, now);
            match found.get(&note.job.name) {
                Some(other) if other.job.created >= note.job.created => {}
                _ => drop(found.insert(note.job.name.clone(), note)),
            }
        }
    }
    rebuilt.jobs = found.into_values().collect();
    rebuilt
}

fn read_store(path: &Path, warnings: &mut Vec<String>) -> Vec<JobNote> {
    let shown = path.display();
    let store = match imagefmt::open_store(path) {
        Ok(store) => store,
        Err(error) if error.kind() == imagefmt::ErrorKind::NotAStore => return Vec::new(),
        Err(error) => {
            warnings.push(format!("store {shown} cannot be looked through: {error}"));
            return Vec::new();
        }
    };
    let names = store.notes().unwrap_or_else(|error| {
        warnings.push(format!("store {shown} cannot be looked through: {error}"));
        Vec::new()
    });
    let mut notes = Vec::new();
    for name in names {
        match store.note::<JobNote>(&name) {
            Ok(note) if note.job.name == name => notes.push(note),
            Ok(_) => warnings.push(format!(
                "the note of job {name} in {shown} is about another job: left alone"
            )),
            Err(error) => warnings.push(format!("job {name} in {shown} cannot be found again: {error}")),
        }
    }
    notes
}

/// What a note says may be older than what happened last, and its store may have been moved.
fn settle(job: &mut JobRecord, store: &Path, now: &Moment) {
    job.store = store.to_owned();
    job.expires = job.expires.anchored(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
    if job.status == Status::Waiting && job.next_sync.is_none() {
        job.status = Status::Stopped;
    }
    job.warnings.push(
        "the daemon's state was lost, and this job was found again in its store: check its parameters"
            .to_owned(),
    );
}
