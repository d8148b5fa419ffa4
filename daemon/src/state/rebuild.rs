//! Finding jobs again in their stores, when the state is lost.
//!
//! Every job keeps a note in its store: its record and its newest runs. It is written with every change of state,
//! after the database, and read only here.

use super::NoteKey;
use super::records::{StoredJob, StoredNote, Unreadable, parse};
use crate::clock::Moment;
use crate::engine::Place;
use crate::job::JobRecord;
use crate::stores::{Stores, Unanswered};
use api::Status;
use imagefmt::{ErrorKind, Store};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs that a note keeps.
pub const NOTE_RUNS: u32 = 50;

/// A job that was found in a store.
#[derive(Debug, Clone)]
pub struct FoundJob {
    /// The job, as it goes on here.
    pub job: JobRecord,
    /// Its record as it was kept.
    pub record: Value,
    /// Records of its runs as they were kept, with their numbers.
    pub runs: Vec<(u64, Value)>,
    /// Whether this machine's key shows that it wrote the record, for this store.
    pub is_ours: bool,
}

/// What was found in the stores.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The jobs.
    pub jobs: Vec<FoundJob>,
    /// Jobs whose note cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// Stores that are none, or that could not be read whole: they may be there, or be readable, later.
    pub unseen: BTreeSet<PathBuf>,
    /// What was found and could not be used.
    pub warnings: Vec<String>,
}

/// What tells this machine from others, and from copies of it that were started elsewhere.
///
/// # Errors
/// When it is there and cannot be read: this machine must not be taken for another one then.
pub fn host() -> io::Result<String> {
    host_of(
        Path::new("/etc/machine-id"),
        Path::new("/sys/class/dmi/id/product_uuid"),
    )
}

fn host_of(installed: &Path, firmware: &Path) -> io::Result<String> {
    let read = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "which machine this is cannot be read from {}: {error}",
                path.display()
            ),
        )),
    };
    Ok(format!("{}/{}", read(installed)?, read(firmware)?))
}

/// Reads the notes of all stores at the same time, and waits for each as long as [`PATIENCE`]. Of two jobs of one name,
/// the one that was created last counts.
pub fn rebuild(stores: &Arc<Stores>, paths: &[PathBuf], key: &NoteKey, now: &Moment) -> Rebuilt {
    let asked: Vec<_> = paths
        .iter()
        .map(|path| {
            let (at, key) = (path.clone(), key.clone());
            let question = stores.begin(path, move |store| {
                let names = store.notes()?;
                Ok(names
                    .iter()
                    .map(|name| read_note(store, &at, &key, name))
                    .collect::<Vec<_>>())
            });
            (path, question)
        })
        .collect();
    let begun = Instant::now();
    let mut rebuilt = Rebuilt::default();
    let mut found: BTreeMap<String, FoundJob> = BTreeMap::new();
    for (path, question) in asked {
        let notes = match question.wait(PATIENCE.saturating_sub(begun.elapsed())) {
            Ok(notes) => notes,
            Err(error) => {
                rebuilt.missed(path, &error);
                continue;
            }
        };
        for mut note in notes.into_iter().filter_map(|note| rebuilt.sort(path, note)) {
            let is_ours = note.is_ours;
            adapt(&mut note.job, path, is_ours, now);
            match found.get(&note.job.name) {
                Some(other) if other.job.created >= note.job.created => {}
                _ => drop(found.insert(note.job.name.clone(), note)),
            }
        }
    }
    rebuilt.unreadable.retain(|job| !found.contains_key(&job.name));
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

/// How long stores are waited for; those that do not answer are looked through later.
const PATIENCE: Duration = Duration::from_secs(10);

impl Rebuilt {
    /// A store that could not be looked through.
    fn missed(&mut self, path: &Path, error: &Unanswered) {
        self.unseen.insert(path.to_owned());
        let is_no_store = matches!(error, Unanswered::Store(error) if error.kind() == ErrorKind::NotAStore);
        if !is_no_store {
            self.warnings.push(format!(
                "store {} cannot be searched for jobs: {}",
                path.display(),
                error.full_message()
            ));
        }
    }

    /// Puts a note where it belongs; returns the job if it is one.
    fn sort(&mut self, path: &Path, note: Note) -> Option<FoundJob> {
        match note {
            Note::Found(found) => return Some(*found),
            Note::LeftAlone(warning) => self.warnings.push(warning),
            Note::Unreadable(mut job) => {
                job.store = Some(path.to_owned());
                self.unreadable.push(job);
                self.unseen.insert(path.to_owned());
            }
        }
        None
    }
}

/// What a note turns out to be.
enum Note {
    Found(Box<FoundJob>),
    LeftAlone(String),
    Unreadable(Unreadable),
}

fn read_note(store: &Store, path: &Path, key: &NoteKey, name: &str) -> Note {
    let unreadable =
        |reason: String, record: &[u8]| Note::Unreadable(Unreadable::new(name.to_owned(), reason, record));
    let note = match store.note::<StoredNote>(name) {
        Ok(note) => note,
        Err(error) => return unreadable(error.full_message(), &[]),
    };
    let host = match host() {
        Ok(host) => host,
        Err(error) => return unreadable(error.to_string(), &[]),
    };
    if note.host != host {
        return Note::LeftAlone(format!(
            "job {name} in {} belongs to another machine and was skipped. A new job can continue its images: --take-up {name}",
            path.display()
        ));
    }
    let record = note.job.to_string();
    if let Err(reason) = note.check() {
        return unreadable(reason, record.as_bytes());
    }
    match parse::<StoredJob>(record.as_bytes()) {
        Err(reason) => unreadable(reason, record.as_bytes()),
        Ok(stored) if stored.name != name => Note::LeftAlone(format!(
            "the note of job {name} in {} describes another job and was skipped",
            path.display()
        )),
        Ok(stored) => {
            let is_sealed = note.is_sealed_by(key);
            let job = stored.into_job();
            Note::Found(Box::new(FoundJob {
                // A copy in another store would have the disks' content written there.
                is_ours: is_sealed && job.place.store() == Some(path),
                job,
                record: note.job,
                runs: note.runs.into_iter().filter_map(numbered).collect(),
            }))
        }
    }
}

/// A run's record with its number, which one has that this version cannot read too.
fn numbered(run: Value) -> Option<(u64, Value)> {
    Some((run.get("number")?.as_u64()?, run))
}

/// What a note says may be older than what happened last, and its store may have been moved.
fn adapt(job: &mut JobRecord, store: &Path, is_ours: bool, now: &Moment) {
    if !is_ours {
        distrust(job);
    }
    job.place = Place::Store(store.to_owned());
    job.expires = job.expires.anchored_by_measure(now);
    job.next_sync = job.next_sync.as_ref().map(|next| next.anchored(now));
    if job.status == Status::Waiting && job.next_sync.is_none() {
        job.status = Status::Stopped;
    }
    job.warnings.push(
        "the daemon's state was lost and this job was restored from its store: check its parameters"
            .to_owned(),
    );
}

/// Anybody who can write to the store may have written this: nothing is done for the job before root has confirmed it.
fn distrust(job: &mut JobRecord) {
    // What their programs would do, and what would be deleted, root has not confirmed: not of an ended job either.
    job.hooks_owed = None;
    job.thaw_owed = None;
    job.retention_pending = false;
    // What has ended does nothing else by itself, and cannot be started.
    if !job.status.is_unfinished() && job.status != Status::Deleting {
        return;
    }
    job.unconfirmed = true;
    job.status = Status::Stopped;
    job.error = None;
    job.start_at = None;
    job.next_sync = None;
    job.completing = false;
    job.run = None;
    job.purge = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_cannot_be_read_makes_no_other_machine() {
        let dir = tempfile::tempdir().unwrap();
        let (installed, firmware) = (dir.path().join("machine-id"), dir.path().join("uuid"));
        fs::write(&installed, "0123\n").unwrap();
        assert_eq!(host_of(&installed, &firmware).unwrap(), "0123/");
        fs::write(&firmware, "4567\n").unwrap();
        assert_eq!(host_of(&installed, &firmware).unwrap(), "0123/4567");
        // A directory stands for whatever is there and cannot be read.
        fs::remove_file(&firmware).unwrap();
        fs::create_dir(&firmware).unwrap();
        let error = host_of(&installed, &firmware).unwrap_err().to_string();
        assert!(
            error.starts_with("which machine this is cannot be read from"),
            "{error}"
        );
    }
}
