//! The database: two tables, each row a record as JSON beside what is looked up by.

use super::JobNote;
use crate::job::JobRecord;
use anyhow::{Context, Result, bail};
use api::RunView;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::fs;
use std::path::{Path, PathBuf};

/// Brings a database from one version to the next. `PRAGMA user_version` counts those that have been done.
const MIGRATIONS: [&str; 1] = ["
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
"];

/// Runs kept of a job: a year of hourly syncs.
const RUNS_KEPT: u64 = 9000;

/// The open database. Every change is durable when it returns.
#[derive(Debug)]
pub struct State {
    connection: Connection,
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

impl State {
    /// Opens the database in `dir`, or makes one where there is none or the one there is damaged.
    ///
    /// # Errors
    /// One that a newer version wrote is left alone.
    pub fn open(dir: &Path) -> Result<(Self, Opened)> {
        let path = dir.join("state.db");
        let existed = path.exists();
        match Self::try_open(&path) {
            // One that has no host is one whose making was cut short.
            Ok(state) if existed && state.host()?.is_some() => Ok((state, Opened::Found)),
            Ok(state) => Ok((state, Opened::New)),
            Err(error) if existed && is_damage(&error) => {
                let kept = set_aside(&path)?;
                let state = Self::try_open(&path)?;
                Ok((state, Opened::Damaged(kept, format!("{error:#}"))))
            }
            Err(error) => Err(error),
        }
    }

    fn try_open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let connection = Connection::open(path).with_context(|| format!("open {shown}"))?;
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
        let mut state = Self { connection };
        state
            .migrate()
            .with_context(|| format!("bring {shown} up to date"))?;
        state.jobs()?;
        Ok(state)
    }

    fn migrate(&mut self) -> Result<()> {
        let version: u32 = self
            .connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let done = usize::try_from(version).unwrap_or(usize::MAX);
        if done > MIGRATIONS.len() {
            bail!(
                "it has version {version}, and this smcd knows up to {}: a newer smcd wrote it. Install that one, or \
                 move the file away and let the jobs be found again in their stores",
                MIGRATIONS.len()
            );
        }
        for (number, step) in (1u32..).zip(MIGRATIONS).skip(done) {
            let transaction = self.connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()?;
        }
        Ok(())
    }

    /// All jobs, by name.
    pub fn jobs(&self) -> Result<Vec<JobRecord>> {
        let mut statement = self
            .connection
            .prepare("SELECT name, record FROM jobs ORDER BY name")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (name, record) = row?;
            serde_json::from_str(&record).map_err(|error| Damage(format!("job {name}: {error}")).into())
        })
        .collect()
    }

    /// Keeps a job as it is now, and a run of it with it: both or neither.
    pub fn save(&mut self, job: &JobRecord, run: Option<&RunView>) -> Result<()> {
        let transaction = self.connection.transaction()?;
        put_job(&transaction, job)?;
        if let Some(run) = run {
            put_run(&transaction, &job.name, run)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Forgets a job and its runs.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.connection
            .execute("DELETE FROM jobs WHERE name = ?1", [name])?;
        Ok(())
    }

    /// Fills a state that is new, or was, with what stores knew: all of it or nothing. `unseen` are stores that are to be
    /// looked through later.
    pub fn fill(&mut self, notes: &[JobNote], unseen: &[PathBuf]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for note in notes {
            put_job(&transaction, &note.job)?;
            for run in &note.runs {
                put_run(&transaction, &note.job.name, run)?;
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
    pub fn is_of_another_host(&self) -> Result<bool> {
        Ok(self.host()?.is_some_and(|known| known != super::host()))
    }

    /// The state is this machine's from now on.
    pub fn claim(&mut self) -> Result<()> {
        let transaction = self.connection.transaction()?;
        put_host(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// Runs of a job, newest first.
    pub fn runs(&self, job: &str, limit: u32) -> Result<Vec<RunView>> {
        let mut statement = self
            .connection
            .prepare("SELECT record FROM runs WHERE job = ?1 ORDER BY number DESC LIMIT ?2")?;
        let rows = statement.query_map(params![job, limit], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
    }

    /// One run of a job.
    pub fn run(&self, job: &str, number: u64) -> Result<Option<RunView>> {
        let record: Option<String> = self
            .connection
            .query_row(
                "SELECT record FROM runs WHERE job = ?1 AND number = ?2",
                params![job, signed(number)],
                |row| row.get(0),
            )
            .optional()?;
        record
            .map(|record| Ok(serde_json::from_str(&record)?))
            .transpose()
    }
}

fn put_host(transaction: &Transaction<'_>) -> Result<()> {
    transaction.execute("DELETE FROM host", [])?;
    transaction.execute("INSERT INTO host (id) VALUES (?1)", [super::host()])?;
    Ok(())
}

fn put_job(transaction: &Transaction<'_>, job: &JobRecord) -> Result<()> {
    transaction.execute(
        "INSERT INTO jobs (name, client_token, record) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET client_token = ?2, record = ?3",
        params![job.name, job.request.client_token, serde_json::to_string(job)?],
    )?;
    Ok(())
}

fn put_run(transaction: &Transaction<'_>, job: &str, run: &RunView) -> Result<()> {
    transaction.execute(
        "INSERT OR REPLACE INTO runs (job, number, record) VALUES (?1, ?2, ?3)",
        params![job, signed(run.number), serde_json::to_string(run)?],
    )?;
    transaction.execute(
        "DELETE FROM runs WHERE job = ?1 AND number <= ?2",
        params![job, signed(run.number.saturating_sub(RUNS_KEPT))],
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
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    error.chain().any(|cause| {
        let code = cause
            .downcast_ref::<rusqlite::Error>()
            .and_then(rusqlite::Error::sqlite_error_code);
        cause.is::<Damage>() || matches!(code, Some(DatabaseCorrupt | NotADatabase))
    })
}

/// Moves a damaged file out of the way, under a name that nothing has.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let free = (1u32..)
        .map(|number| path.with_extension(format!("db.damaged-{number}")))
        .find(|name| !name.exists());
    let kept = free.unwrap_or_else(|| path.with_extension("db.damaged"));
    fs::rename(path, &kept).with_context(|| format!("set {} aside", path.display()))?;
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    // What is left of it belongs to the damaged file, and would be taken for the new one's.
    let _ = fs::remove_file(journal);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, HandClock};
    use crate::config::Config;
    use crate::job::new_record;

    fn job(name: &str) -> JobRecord {
        let request = api::CreateJob {
            name: name.to_owned(),
            client_token: Some(format!("token-{name}")),
            ..Default::default()
        };
        let given = crate::job::ResolvedInput {
            store: "/srv/store".into(),
            disks: Vec::new(),
        };
        new_record(
            &request,
            given,
            &Config::load(None).unwrap(),
            &HandClock::new().now(),
        )
        .unwrap()
    }

    fn run(number: u64) -> RunView {
        crate::service::run_begun(number, api::RunType::Manual, jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn jobs_and_runs_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, opened) = State::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::New);
        let mut web = job("web01");
        state.save(&web, Some(&run(1))).unwrap();
        web.description = "changed".to_owned();
        state.save(&web, Some(&run(2))).unwrap();
        state.save(&job("db"), None).unwrap();
        state.claim().unwrap();
        drop(state);
        let (mut state, opened) = State::open(dir.path()).unwrap();
        assert_eq!(opened, Opened::Found);
        assert_eq!(state.jobs().unwrap(), [job("db"), web]);
        let numbers = |state: &State, limit| -> Vec<u64> {
            state
                .runs("web01", limit)
                .unwrap()
                .iter()
                .map(|run| run.number)
                .collect()
        };
        assert_eq!(numbers(&state, 10), [2, 1]);
        assert_eq!(numbers(&state, 1), [2]);
        assert_eq!(state.run("web01", 1).unwrap().unwrap().number, 1);
        state.remove("web01").unwrap();
        assert_eq!(numbers(&state, 10), [0u64; 0]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (number, garbage) in [&b"this is no database"[..], &[0xff; 5000]].iter().enumerate() {
            fs::write(dir.path().join("state.db"), garbage).unwrap();
            let (state, opened) = State::open(dir.path()).unwrap();
            let Opened::Damaged(kept, why) = opened else {
                panic!("{opened:?}")
            };
            assert_eq!(fs::read(&kept).unwrap(), *garbage, "{why}");
            assert!(kept.ends_with(format!("state.db.damaged-{}", number + 1)));
            assert_eq!(state.jobs().unwrap(), []);
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, _) = State::open(dir.path()).unwrap();
        state.save(&job("web01"), None).unwrap();
        state.claim().unwrap();
        state
            .connection
            .execute("UPDATE jobs SET record = '{}'", [])
            .unwrap();
        drop(state);
        let (_, opened) = State::open(dir.path()).unwrap();
        assert!(matches!(opened, Opened::Damaged(..)), "{opened:?}");
    }

    #[test]
    fn a_newer_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = State::open(dir.path()).unwrap();
        state.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(state);
        let error = format!("{:#}", State::open(dir.path()).unwrap_err());
        assert!(error.contains("a newer smcd wrote it"), "{error}");
    }
}
