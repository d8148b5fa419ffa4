//! The targets that a machine knows.

use crate::paint::Paint;
use crate::table::Align::{Left, Right};
use crate::table::Table;
use crate::units::{local_date, size};
use anyhow::Context;
use api::{TargetStatus, TargetView};
use std::io::Read;

/// From so many seconds on, a clock is said to differ.
pub const CLOCK_DIFFERS_S: u64 = 60;

/// An invitation is shorter than this.
const INVITATION_MAX_BYTES: u64 = 4096;

/// The invitation of a command line; `-` reads it from standard input.
///
/// # Errors
/// When standard input cannot be read.
pub fn invitation(line: &str) -> anyhow::Result<String> {
    let mut text = line.to_owned();
    if line == "-" {
        text.clear();
        std::io::stdin()
            .take(INVITATION_MAX_BYTES)
            .read_to_string(&mut text)
            .context("read the line from standard input")?;
    }
    Ok(text.trim().to_owned())
}

/// A row a target; what is wrong with one stands below it.
pub fn lines(paint: Paint, targets: &[TargetView], how_to_add: &str) -> Vec<String> {
    if targets.is_empty() {
        return vec![format!(
            "this machine knows no target: `smc-store enrol` there prints the line for `{how_to_add}`"
        )];
    }
    let mut table = Table::new(&[
        ("TARGET", Left),
        ("ADDRESS", Left),
        ("SOURCE", Left),
        ("CERTIFICATE UNTIL", Left),
        ("FREE THERE", Right),
        ("JOBS THERE", Left),
        ("USED BY", Left),
    ]);
    for target in targets {
        table.row(row(target));
        notes(target).for_each(|note| table.note(note));
    }
    table.lines(paint)
}

fn row(target: &TargetView) -> [String; 7] {
    let status = target.status.as_ref();
    [
        target.name.clone(),
        target.address.clone(),
        target.source.clone(),
        target.valid_until.map_or("?".to_owned(), local_date),
        status.map_or("-".to_owned(), |status| size(status.free_bytes)),
        status.map_or("-".to_owned(), jobs_there),
        match target.used_by.as_deref() {
            None => "?".to_owned(),
            Some([]) => "-".to_owned(),
            Some(jobs) => jobs.join(", "),
        },
    ]
}

fn jobs_there(status: &TargetStatus) -> String {
    if status.jobs.is_empty() {
        return "none".to_owned();
    }
    let newest = status.jobs.iter().map(|(job, newest)| format!("{job}/{newest}"));
    newest.collect::<Vec<_>>().join(" ")
}

fn notes(target: &TargetView) -> impl Iterator<Item = String> {
    let name = &target.name;
    let problem = target
        .problem
        .iter()
        .map(move |problem| format!("  {name}: {problem}"));
    // What a clock says is shown, and compared with nothing.
    let status = target.status.iter();
    let clock = status.filter(|status| status.clock_differs_s.unsigned_abs() > CLOCK_DIFFERS_S);
    let clock = clock.map(move |status| {
        format!(
            "  the clock of {name} differs by {} s: how long images are kept there goes by that clock",
            status.clock_differs_s
        )
    });
    problem.chain(clock)
}
