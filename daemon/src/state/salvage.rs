//! What can still be read of a damaged database: SQLite finds that a page of it is damaged, and the others hold records that
//! are as smcd wrote them.
//!
//! The tables are read from both ends up to where the damage is. Only a record that its digest vouches for counts; what is
//! not found here is looked for in the stores' notes.

use super::database::{bytes, read, text};
use super::rebuild::{FoundJob, host};
use super::records::StoredJob;
use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The jobs that can be read in a damaged database, with those of their runs that can.
///
/// # Errors
/// When it cannot be read at all, or does not show that it is this machine's.
pub fn salvage(path: &Path) -> Result<Vec<FoundJob>> {
    let shown = || format!("read {}", path.display());
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).with_context(shown)?;
    let written_on: String = connection
        .query_row("SELECT id FROM host", [], |row| row.get(0))
        .with_context(shown)?;
    ensure!(written_on == host()?, "another machine wrote it");
    let foreign = foreign_jobs(&connection).with_context(shown)?;
    let mut jobs = BTreeMap::new();
    from_both_ends(&connection, "jobs", "name, record, digest", |row| {
        let found = found_job(row)?.filter(|found| !foreign.contains(&found.job.name));
        jobs.extend(found.map(|found| (found.job.name.clone(), found)));
        Ok(())
    });
    let mut runs: BTreeMap<(String, u64), Value> = BTreeMap::new();
    from_both_ends(&connection, "runs", "job, number, record, digest", |row| {
        let key = (text(row, 0)?, u64::try_from(row.get::<_, i64>(1)?)?);
        runs.extend(as_written(bytes(row, 2)?, bytes(row, 3)?).map(|run| (key, run)));
        Ok(())
    });
    for ((name, number), run) in runs {
        if let Some(found) = jobs.get_mut(&name) {
            found.runs.push((number, run));
        }
    }
    Ok(jobs.into_values().collect())
}

fn foreign_jobs(connection: &Connection) -> Result<BTreeSet<String>> {
    let mut statement = connection.prepare("SELECT name FROM foreign_jobs")?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// Reads a table up to its damaged part from either end. An error ends it there: that is the damage.
fn from_both_ends(
    connection: &Connection,
    table: &str,
    columns: &str,
    mut take: impl FnMut(&Row<'_>) -> Result<()>,
) {
    for order in ["ASC", "DESC"] {
        let sql = format!("SELECT {columns} FROM {table} ORDER BY rowid {order}");
        let read = connection.prepare(&sql).map_err(anyhow::Error::from);
        let read = read.and_then(|mut statement| {
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                take(row)?;
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!("table {table} of the damaged state database ends early: {error:#}");
        }
    }
}

fn found_job(row: &Row<'_>) -> Result<Option<FoundJob>> {
    let (name, record, digest) = (text(row, 0)?, bytes(row, 1)?, bytes(row, 2)?);
    let (Some(kept), Ok(stored)) = (as_written(record, digest), read::<StoredJob>(record, digest)) else {
        return Ok(None);
    };
    Ok((stored.name == name).then(|| FoundJob {
        job: stored.into_job(),
        record: kept,
        runs: Vec::new(),
        is_ours: true,
    }))
}

/// A record that is as smcd wrote it.
fn as_written(record: &[u8], digest: &[u8]) -> Option<Value> {
    let is_intact = blake3::hash(record).as_bytes() == digest;
    serde_json::from_slice(record).ok().filter(|_| is_intact)
}
