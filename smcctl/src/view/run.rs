//! Runs: as a table, and one in a few lines.

use crate::view::words::outcome_tone;
use api::{RunDisk, RunTransfer, RunView};
use cli::paint::Paint;
use cli::table::Align::{Left, Right};
use cli::table::{Align, Cell, Table};
use cli::text::{count_if_any, writers_held};
use cli::units::{local_time, measured, rate, size};

const COLUMNS: [(&str, Align); 12] = [
    ("RUN", Right),
    ("STARTED", Left),
    ("TOOK", Right),
    ("TYPE", Left),
    ("OUTCOME", Left),
    ("IMAGE", Left),
    ("METHOD", Left),
    ("CLASS", Left),
    ("COMPARED", Right),
    ("CHANGED", Right),
    ("STORED", Right),
    ("RATE", Right),
];

/// What is counted of each disk of a run.
type Count = fn(&RunDisk) -> u64;

/// Counts of clusters that nearly all runs have none of: a column is shown where a run has some.
const RARE: [(&str, Count); 2] = [
    // Damaged in the store, and stored anew.
    ("REPAIRED", |disk| disk.repaired_clusters),
    // With sectors that could not be read from the disk.
    ("UNREADABLE", |disk| disk.unreadable_clusters),
];

/// A row a run, in the order they come in; what went wrong stands below.
pub fn table(paint: Paint, runs: &[RunView]) -> Vec<String> {
    if runs.is_empty() {
        return vec!["no runs yet".to_owned()];
    }
    let sum = |run: &RunView, count: Count| run.disks.iter().map(count).sum::<u64>();
    let rare = RARE
        .into_iter()
        .filter(|(_, count)| runs.iter().any(|run| sum(run, *count) > 0));
    let rare: Vec<_> = rare.collect();
    let has_sent = runs.iter().any(|run| run.transfer.is_some());
    let columns: Vec<_> = COLUMNS
        .into_iter()
        .chain(has_sent.then_some(("SENT", Right)))
        .chain(rare.iter().map(|(name, _)| (*name, Right)))
        .collect();
    let mut table = Table::new(&columns);
    for run in runs {
        let counts = rare.iter().map(|(_, count)| sum(run, *count).to_string().into());
        let sent = run
            .transfer
            .as_ref()
            .map_or("-".to_owned(), |sent| size(sent.sent_bytes));
        let sent = has_sent.then(|| Cell::from(sent));
        table.row(row(run).into_iter().chain(sent).chain(counts));
        complaints(run).for_each(|text| table.note(format!("  {text}")));
    }
    table.lines(paint)
}

fn row(run: &RunView) -> [Cell; 12] {
    let or_dash = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
    [
        run.number.to_string().into(),
        local_time(run.started).into(),
        or_dash(&run.seconds.map(measured)),
        run.run_type.to_string().into(),
        Cell::painted(outcome_tone(run.outcome), run.outcome.to_string()),
        or_dash(&run.image),
        or_dash(&run.method),
        or_dash(&run.consistency),
        size(run.compared_bytes).into(),
        size(run.dirty_bytes).into(),
        size(run.stored_bytes).into(),
        rate(run.compare_rate_bytes).into(),
    ]
}

fn complaints(run: &RunView) -> impl Iterator<Item = String> {
    let error = run.error.iter().map(|error| format!("error: {error}"));
    error.chain(run.warnings.iter().map(|warning| format!("warning: {warning}")))
}

/// One run: how it ended, what it made, and of which disks.
pub fn lines(run: &RunView) -> Vec<String> {
    let mut lines = vec![ending(run)];
    lines.extend(made(run));
    lines.extend(compared(run));
    let instant = run.instant.iter();
    lines.extend(instant.map(|instant| writers_held(instant.held_us, instant.passes.len())));
    lines.extend(run.transfer.as_ref().map(transfer));
    lines.extend(run.disks.iter().flat_map(disk));
    if !run.deleted.is_empty() {
        lines.push(format!("deleted afterwards: {}", run.deleted.join(", ")));
    }
    lines.extend(complaints(run));
    lines
}

/// What was sent to a target.
fn transfer(sent: &RunTransfer) -> String {
    let again = match sent.sent_again_bytes {
        0 => String::new(),
        bytes => format!(", up to {} of it twice, as connections were lost", size(bytes)),
    };
    let waited = match sent.waited_seconds {
        seconds if seconds < 1.0 => String::new(),
        seconds => format!(", waited {} for the target", measured(seconds)),
    };
    format!("sent {}{again}{waited}", size(sent.sent_bytes))
}

fn compared(run: &RunView) -> Option<String> {
    let text = match run.verified? {
        true => "compared with the disks: everything is the same",
        false => "compared with the disks: not everything is the same, or could be compared",
    };
    Some(text.to_owned())
}

fn ending(run: &RunView) -> String {
    let took = run.seconds.map(|seconds| format!(", took {}", measured(seconds)));
    format!(
        "run {} ({}): {}, began {}{}{}",
        run.number,
        run.run_type,
        run.outcome,
        local_time(run.started),
        took.unwrap_or_default(),
        if run.resumed {
            ", resumed an unfinished run"
        } else {
            ""
        },
    )
}

fn made(run: &RunView) -> Option<String> {
    let image = run.image.as_ref()?;
    let kind = run.kind.as_deref().map(|kind| format!(": {kind} image"));
    let method = run.method.as_deref().map(|method| format!(" ({method})"));
    let class = run.consistency.as_deref().map(|class| format!(", {class}"));
    let reason = run
        .consistency_reason
        .as_deref()
        .map(|reason| format!(" ({reason})"));
    Some(
        [Some(image.clone()), kind, method, class, reason]
            .into_iter()
            .flatten()
            .collect(),
    )
}

fn disk(disk: &RunDisk) -> Vec<String> {
    let (compared, changed, stored) = (
        size(disk.compared_bytes),
        size(disk.dirty_bytes),
        size(disk.stored_bytes),
    );
    let repaired = count_if_any("damaged clusters repaired", disk.repaired_clusters);
    let unreadable = count_if_any("clusters with unreadable sectors", disk.unreadable_clusters);
    let name = &disk.name;
    let digest = disk.digest.iter().map(|digest| {
        let width = name.chars().count();
        format!("{:width$}  {digest}", "")
    });
    let audited = match disk.audited_bytes {
        0 => String::new(),
        bytes => format!(" ({} of it to check the tracker)", size(bytes)),
    };
    let method = disk.method.as_ref().map(|method| format!("{method}, "));
    let method = method.unwrap_or_default();
    let counts = format!(
        "{name}: {method}{compared} compared{audited}, {changed} changed, {stored} stored{repaired}{unreadable}"
    );
    let reason = disk
        .method_reason
        .iter()
        .filter(|_| disk.method.as_deref() == Some("scan"));
    let reason =
        reason.map(|reason| format!("{:width$}  scanned: {reason}", "", width = name.chars().count()));
    std::iter::once(counts).chain(reason).chain(digest).collect()
}
