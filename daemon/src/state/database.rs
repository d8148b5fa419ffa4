//! The database: two tables, each row a record as JSON beside what is looked up by.

use super::NoteKey;
use super::rebuild::FoundJob;
use super::records::{Checked, StoredJob, StoredNote, StoredRun, Unreadable, parse};
use crate::job::JobRecord;
use anyhow::{Context, Result, anyhow, bail};
use api::RunView;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, params};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A step from one version of the schema to the next.
struct Migration {
    sql: &'static str,
    /// The earliest version whose smcd can use the file after this step.
    min_reader: u32,
}

/// Brings a database from one version of the schema to the next. `PRAGMA user_version` holds the `min_reader` of the last
/// step: an smcd that knows a lower version leaves the file alone. The version itself is in the table `schema`, which the
/// second step makes; a step that only adds keeps `min_reader` as it was.
const MIGRATIONS: [Migration; 3] = [
    Migration {
        sql: "
    CREATE TABLE jobs (
        name TEXT PRIMARY KEY,
        client_token TEXT UNIQUE,
        record TEXT NOT NULL
    ) STRICT;
    CREATE TABLE runs (
        job TEXT NOT NULL REFERENCES jobs (name) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT;
    CREATE TABLE unseen_stores (
        path TEXT PRIMARY KEY
    ) STRICT;
    CREATE TABLE host (
        id TEXT NOT NULL
    ) STRICT;
",
        min_reader: 1,
    },
    Migration {
        sql: "
    CREATE TABLE schema (
        version INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE foreign_jobs (
        name TEXT PRIMARY KEY REFERENCES jobs (name) ON DELETE CASCADE
    ) STRICT;
",
        min_reader: 1,
    },
    // The digest is NULL where an earlier smcd wrote the record: it knows no digests.
    Migration {
        sql: "
    ALTER TABLE jobs ADD COLUMN digest BLOB;
    ALTER TABLE runs ADD COLUMN digest BLOB;
    CREATE TRIGGER jobs_without_digest AFTER UPDATE OF record ON jobs
        WHEN NEW.digest IS OLD.digest AND NEW.record IS NOT OLD.record
        BEGIN UPDATE jobs SET digest = NULL WHERE name = NEW.name; END;
    CREATE TRIGGER runs_without_digest AFTER UPDATE OF record ON runs
        WHEN NEW.digest IS OLD.digest AND NEW.record IS NOT OLD.record
        BEGIN UPDATE runs SET digest = NULL WHERE job = NEW.job AND number = NEW.number; END;
",
        min_reader: 1,
    },
];

/// Runs kept of a job: a year of hourly syncs.
const RUNS_KEPT: u64 = 9000;

/// The open database. Every change is durable when it returns.
#[derive(Debug)]
pub struct State {
    connection: Connection,
    /// The directory of the database.
    dir: PathBuf,
    key: NoteKey,
    has_new_key: bool,
}

/// What was found when the state was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It was there.
    Found,
    /// There was none.
    New,
    /// It was damaged, and is kept under this name.
    Damaged(PathBuf, String),
}

/// All jobs of the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Jobs {
    /// Those whose record can be read.
    pub readable: Vec<JobRecord>,
    /// The others.
    pub unreadable: Vec<Unreadable>,
}

/// Runs of a job, newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runs {
    /// Those whose record can be read.
    pub readable: Vec<RunView>,
    /// Numbers of the others, and why they cannot be read.
    pub unreadable: Vec<(u64, String)>,
}

impl State {
    /// Opens the database in `dir`, or makes one where there is none or the one there is damaged.
    ///
    /// # Errors
    /// When it cannot be opened, or a newer version wrote it whose schema this one cannot use: it is left alone then.
    pub fn open(dir: &Path) -> Result<(Self, Opened)> {
        let path = dir.join("state.db");
        let existed = path.exists();
        let (key, has_new_key) = NoteKey::open(dir)?;
        let open = || {
            let connection = Self::try_open(&path)?;
            Ok(Self {
                connection,
                dir: dir.to_owned(),
                key: key.clone(),
                has_new_key,
            })
        };
        match open() {
            // One that has no host is one whose making was cut short.
            Ok(state) if existed && state.host()?.is_some() => Ok((state, Opened::Found)),
            Ok(state) => Ok((state, Opened::New)),
            Err(error) if existed && is_damage(&error) => {
                let kept = set_aside(&path)?;
                let state = open()?;
                Ok((state, Opened::Damaged(kept, format!("{error:#}"))))
            }
            Err(error) => Err(error),
        }
    }

    /// The key that seals notes.
    pub fn note_key(&self) -> &NoteKey {
        &self.key
    }

    /// Whether the key was just made: then no note in any store is sealed by it.
    pub fn has_new_key(&self) -> bool {
        self.has_new_key
    }

    fn try_open(path: &Path) -> Result<Connection> {
        let shown = path.display();
        let mut connection = Connection::open(path).with_context(|| format!("open {shown}"))?;
        // A rollback journal, synced fully: after a power cut a change is there or it is not.
        connection
            .execute_batch(
                "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; PRAGMA foreign_keys = ON;",
            )
            .with_context(|| format!("set up {shown}"))?;
        let verdict: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .with_context(|| format!("check {shown}"))?;
        if verdict != "ok" {
            bail!(Damage(verdict));
        }
        migrate(&mut connection).with_context(|| format!("upgrade {shown}"))?;
        Ok(connection)
    }

    /// All jobs, by name.
    ///
    /// # Errors
    /// When the database cannot be read. A record that cannot be read is none.
    pub fn jobs(&self) -> Result<Jobs> {
        let mut statement = self
            .connection
            .prepare("SELECT name, record, digest FROM jobs ORDER BY name")?;
        let mut rows = statement.query([])?;
        let mut jobs = Jobs::default();
        while let Some(row) = rows.next()? {
            let (name, record) = (text(row, 0)?, bytes(row, 1)?);
            match read::<StoredJob>(record, bytes(row, 2)?) {
                Ok(stored) if stored.name == name => jobs.readable.push(stored.into_job()),
                Ok(stored) => {
                    let reason = format!("it is about job {}", stored.name);
                    jobs.unreadable.push(Unreadable::new(name, reason, record));
                }
                Err(reason) => jobs.unreadable.push(Unreadable::new(name, reason, record)),
            }
        }
        Ok(jobs)
    }

    /// Keeps a job as it is now, and runs of it with it: all or nothing.
    ///
    /// # Errors
    /// When it cannot be written: then nothing has changed.
    pub fn save<'a>(&mut self, job: &JobRecord, runs: impl IntoIterator<Item = &'a RunView>) -> Result<()> {
        let saved = self.in_transaction(|transaction| {
            put_job(transaction, job)?;
            let mut runs = runs.into_iter();
            runs.try_for_each(|run| put_run(transaction, &job.name, run))
        });
        self.explain(saved)
    }

    /// Writes something that changes nothing.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn try_write(&mut self) -> Result<()> {
        let written = self.in_transaction(|transaction| {
            transaction.execute("UPDATE host SET id = id", [])?;
            Ok(())
        });
        self.explain(written)
    }

    fn in_transaction(&mut self, work: impl FnOnce(&Transaction<'_>) -> Result<()>) -> Result<()> {
        let transaction = self.connection.transaction()?;
        work(&transaction)?;
        Ok(transaction.commit()?)
    }

    /// Adds to an error of a write where that was, and what helps.
    fn explain(&self, written: Result<()>) -> Result<()> {
        written.map_err(|error| {
            let dir = self.dir.display();
            match code_of(&error) {
                Some(ErrorCode::DiskFull) => {
                    anyhow!("there is no space left for the state in {dir}: free space on its filesystem")
                }
                _ => error.context(format!("write the state in {dir}")),
            }
        })
    }

    /// Forgets a job and its runs.
    ///
    /// # Errors
    /// When that cannot be written: then nothing has changed.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let removed = self.in_transaction(|transaction| {
            transaction.execute("DELETE FROM jobs WHERE name = ?1", [name])?;
            Ok(())
        });
        self.explain(removed)
    }

    /// Fills a state that is new, or was, with what stores knew: all of it or nothing. `unseen` are stores that are to be
    /// looked through later.
    ///
    /// # Errors
    /// When it cannot be written: then nothing has changed.
    pub fn fill(&mut self, found: &[FoundJob], unseen: &BTreeSet<PathBuf>) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for found in found {
            // The record as it was kept, so that its unknown fields are inherited by what is written over it.
            let record = serde_json::to_string(&found.record)?;
            insert_job(&transaction, &found.job, &record)?;
            put_job(&transaction, &found.job)?;
            for (number, run) in &found.runs {
                insert_run(
                    &transaction,
                    &found.job.name,
                    *number,
                    &serde_json::to_string(run)?,
                )?;
            }
        }
        transaction.execute("DELETE FROM unseen_stores", [])?;
        for store in unseen {
            let path = store.to_string_lossy();
            transaction.execute("INSERT OR IGNORE INTO unseen_stores (path) VALUES (?1)", [path])?;
        }
        put_host(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Stores that are still to be looked through.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn unseen(&self) -> Result<Vec<PathBuf>> {
        let mut statement = self.connection.prepare("SELECT path FROM unseen_stores")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(PathBuf::from(row?))).collect()
    }

    /// The machine that the state was written on.
    fn host(&self) -> Result<Option<String>> {
        let host = self
            .connection
            .query_row("SELECT id FROM host", [], |row| row.get(0));
        Ok(host.optional()?)
    }

    /// Whether the state was written on another machine: a copy of this disk that was started elsewhere.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_of_another_host(&self) -> Result<bool> {
        let host = super::host()?;
        Ok(self.host()?.is_some_and(|known| known != host))
    }

    /// The state is this machine's from now on. Jobs whose record cannot be read are remembered as another machine's, so
    /// that a version that can read them does not start them here.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn claim(&mut self, unreadable: &[Unreadable]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for job in unreadable {
            transaction.execute(
                "INSERT OR IGNORE INTO foreign_jobs (name) SELECT name FROM jobs WHERE name = ?1",
                [&job.name],
            )?;
        }
        put_host(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Whether a job was of another machine when its record could not be read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_foreign(&self, job: &str) -> Result<bool> {
        let mut statement = self
            .connection
            .prepare("SELECT 1 FROM foreign_jobs WHERE name = ?1")?;
        Ok(statement.exists([job])?)
    }

    /// The job is this machine's now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn adopt(&mut self, job: &str) -> Result<()> {
        self.connection
            .execute("DELETE FROM foreign_jobs WHERE name = ?1", [job])?;
        Ok(())
    }

    /// Runs of a job, newest first.
    ///
    /// # Errors
    /// When the database cannot be read. A record that cannot be read is none.
    pub fn runs(&self, job: &str, limit: u32) -> Result<Runs> {
        let mut statement = self.connection.prepare(
            "SELECT number, record, digest FROM runs WHERE job = ?1 ORDER BY number DESC LIMIT ?2",
        )?;
        let mut rows = statement.query(params![job, limit])?;
        let mut runs = Runs::default();
        while let Some(row) = rows.next()? {
            let record = bytes(row, 1)?;
            match read::<StoredRun>(record, bytes(row, 2)?) {
                Ok(stored) => runs.readable.push(stored.into_run()),
                Err(reason) => {
                    let number: i64 = row.get(0)?;
                    runs.unreadable.push((u64::try_from(number).unwrap_or(0), reason));
                }
            }
        }
        Ok(runs)
    }

    /// One run of a job.
    ///
    /// # Errors
    /// When the database or the record cannot be read.
    pub fn run(&self, job: &str, number: u64) -> Result<Option<RunView>> {
        let stored = stored_run(&self.connection, job, number)?;
        let run = |stored: Stored| stored.read::<StoredRun>().map(StoredRun::into_run);
        stored.map(run).transpose().map_err(anyhow::Error::msg)
    }

    /// What a store is to keep of a job: its record and its newest runs, as they are.
    ///
    /// # Errors
    /// When the database cannot be read. A run whose record is damaged is left out.
    pub fn note(&self, job: &str, runs: u32) -> Result<Option<StoredNote>> {
        let Some(record) = stored_job(&self.connection, job)? else {
            return Ok(None);
        };
        let read = is_as_written(&record.text, &record.digest).map_err(anyhow::Error::msg);
        let record = read
            .and_then(|()| Ok(serde_json::from_slice(&record.text)?))
            .with_context(|| format!("record of job {job}"))?;
        let mut statement = self
            .connection
            .prepare("SELECT record, digest FROM runs WHERE job = ?1 ORDER BY number DESC LIMIT ?2")?;
        let mut rows = statement.query(params![job, runs])?;
        let mut newest = Vec::new();
        while let Some(row) = rows.next()? {
            let record = bytes(row, 0)?;
            if is_as_written(record, bytes(row, 1)?).is_ok() {
                newest.extend(serde_json::from_slice(record).ok());
            }
        }
        let note = StoredNote::new(super::host()?, record, newest);
        Ok(Some(note.sealed_by(&self.key)))
    }
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let min_reader: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = MIGRATIONS.len();
    if usize::try_from(min_reader).unwrap_or(usize::MAX) > known {
        bail!(
            "a newer smcd wrote it: it needs an smcd that supports schema {min_reader}, and this one supports schemas up to \
             {known}. Install the newer smcd, or move the file away so that the jobs are restored from their stores"
        );
    }
    // A version beyond ours has only added to what we know: it is used as it is.
    let done = schema_version(connection, min_reader)?;
    for (number, step) in (1u32..).zip(&MIGRATIONS) {
        if number <= done {
            continue;
        }
        let transaction = connection.transaction()?;
        transaction.execute_batch(step.sql)?;
        transaction.pragma_update(None, "user_version", step.min_reader)?;
        if number > 1 {
            transaction.execute("DELETE FROM schema", [])?;
            transaction.execute("INSERT INTO schema (version) VALUES (?1)", [number])?;
        }
        transaction.commit()?;
    }
    Ok(())
}

/// The last step that was done. A file of before the second step says it by `user_version`, which is 0 or 1 then.
fn schema_version(connection: &Connection, user_version: u32) -> Result<u32> {
    let has_table: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema')",
        [],
        |row| row.get(0),
    )?;
    if !has_table {
        return Ok(user_version);
    }
    let version = connection.query_row("SELECT version FROM schema", [], |row| row.get(0));
    Ok(version?)
}

/// A column as it is: a record that was damaged need not be text any more.
pub(super) fn bytes<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a [u8]> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    })
}

pub(super) fn text(row: &Row<'_>, column: usize) -> Result<String> {
    Ok(String::from_utf8_lossy(bytes(row, column)?).into_owned())
}

fn put_host(transaction: &Transaction<'_>) -> Result<()> {
    transaction.execute("DELETE FROM host", [])?;
    transaction.execute("INSERT INTO host (id) VALUES (?1)", [super::host()?])?;
    Ok(())
}

/// A record as it is, and the digest of what was written; empty where that is not known.
struct Stored {
    text: Vec<u8>,
    digest: Vec<u8>,
}

impl Stored {
    /// Columns 0 and 1 of a row.
    fn of(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            text: bytes(row, 0)?.to_vec(),
            digest: bytes(row, 1)?.to_vec(),
        })
    }

    fn read<T: DeserializeOwned + Checked>(&self) -> Result<T, String> {
        read(&self.text, &self.digest)
    }
}

/// A record with its digest, as what it is; or why it cannot be read.
pub(super) fn read<T: DeserializeOwned + Checked>(record: &[u8], digest: &[u8]) -> Result<T, String> {
    is_as_written(record, digest)?;
    parse(record)
}

/// Finds a record that a disk has changed, although it still looks like one.
fn is_as_written(record: &[u8], digest: &[u8]) -> Result<(), String> {
    if digest.is_empty() || blake3::hash(record).as_bytes() == digest {
        return Ok(());
    }
    Err("it is damaged: it is not what smcd has written".to_owned())
}

/// The record of a job as it is.
fn stored_job(connection: &Connection, name: &str) -> Result<Option<Stored>> {
    let sql = "SELECT record, digest FROM jobs WHERE name = ?1";
    let record = connection.query_row(sql, [name], |row| Ok(Stored::of(row)));
    record.optional()?.transpose()
}

/// The record of a run as it is.
fn stored_run(connection: &Connection, job: &str, number: u64) -> Result<Option<Stored>> {
    let sql = "SELECT record, digest FROM runs WHERE job = ?1 AND number = ?2";
    let record = connection.query_row(sql, params![job, signed(number)], |row| Ok(Stored::of(row)));
    record.optional()?.transpose()
}

/// Writes a job over its record. One that cannot be read is not written over.
fn put_job(transaction: &Transaction<'_>, job: &JobRecord) -> Result<()> {
    let before = stored_job(transaction, &job.name)?;
    let before = before.map(|record| record.read::<StoredJob>()).transpose();
    let before = before.map_err(|reason| anyhow::anyhow!("its record cannot be read: {reason}"))?;
    let record = serde_json::to_string(&StoredJob::new(job, before))?;
    insert_job(transaction, job, &record)
}

fn insert_job(transaction: &Transaction<'_>, job: &JobRecord, record: &str) -> Result<()> {
    transaction.execute(
        "INSERT INTO jobs (name, client_token, record, digest) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name) DO UPDATE SET client_token = ?2, record = ?3, digest = ?4",
        params![
            job.name,
            job.request.client_token,
            record,
            blake3::hash(record.as_bytes()).as_bytes()
        ],
    )?;
    Ok(())
}

fn put_run(transaction: &Transaction<'_>, job: &str, run: &RunView) -> Result<()> {
    let before = stored_run(transaction, job, run.number)?;
    // A run is written again only while it is this version's own: what cannot be read is damaged.
    let before = before.and_then(|record| record.read::<StoredRun>().ok());
    let record = serde_json::to_string(&StoredRun::new(run, before))?;
    insert_run(transaction, job, run.number, &record)
}

fn insert_run(transaction: &Transaction<'_>, job: &str, number: u64, record: &str) -> Result<()> {
    transaction.execute(
        "INSERT OR REPLACE INTO runs (job, number, record, digest) VALUES (?1, ?2, ?3, ?4)",
        params![
            job,
            signed(number),
            record,
            blake3::hash(record.as_bytes()).as_bytes()
        ],
    )?;
    transaction.execute(
        "DELETE FROM runs WHERE job = ?1 AND number <= ?2",
        params![job, signed(number.saturating_sub(RUNS_KEPT))],
    )?;
    Ok(())
}

/// SQLite's integers have a sign.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The file is not what was written to it.
#[derive(Debug)]
struct Damage(String);

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Damage {}

fn is_damage(error: &anyhow::Error) -> bool {
    let code = code_of(error);
    error.chain().any(|cause| cause.is::<Damage>())
        || matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// SQLite's code of an error, if it is one of SQLite's.
fn code_of(error: &anyhow::Error) -> Option<ErrorCode> {
    let mut causes = error.chain();
    causes.find_map(|cause| cause.downcast_ref::<rusqlite::Error>()?.sqlite_error_code())
}

/// Moves a damaged file out of the way, under a name that nothing has.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let free = (1u32..)
        .map(|number| path.with_extension(format!("db.damaged-{number}")))
        .find(|name| !name.exists());
    let kept = free.unwrap_or_else(|| path.with_extension("db.damaged"));
    fs::rename(path, &kept).with_context(|| format!("rename {}", path.display()))?;
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    // What is left of it belongs to the damaged file, and would be taken for the new one's.
    let _ = fs::remove_file(journal);
    Ok(kept)
}

#[cfg(test)]
mod tests;
