//! A job: all of it, or where it stands in a few lines.

use crate::view::fields::Fields;
use crate::view::run;
use crate::view::words::{deferred, headline, next, waiting};
use api::{
    ChecksView, DiskTracking, DiskView, Forecast, HooksView, IoPriority, JobView, LeastConsistency,
    OnReadError, Progress, Status, Tracking, Transfer,
};
use cli::paint::{Paint, Tone};
use cli::text::count;
use cli::units::{duration, local_time, measured, rate, setting, size};

/// Where it stands and what happens next: what every action answers with.
pub fn brief(paint: Paint, job: &JobView) -> Vec<String> {
    let mut fields = Fields::under(paint, headline(paint, job));
    state(&mut fields, job);
    fields.lines()
}

/// The same after a sync, with what that came to.
pub fn ended(paint: Paint, job: &JobView) -> Vec<String> {
    let mut fields = Fields::under(paint, headline(paint, job));
    state(&mut fields, job);
    last_run(&mut fields, job);
    fields.lines()
}

/// The same after a change, with the parameters.
pub fn parameters(paint: Paint, job: &JobView) -> Vec<String> {
    let mut fields = Fields::under(paint, headline(paint, job));
    about(&mut fields, job);
    state(&mut fields, job);
    settings(&mut fields, job);
    fields.lines()
}

/// Everything there is to know.
pub fn full(paint: Paint, job: &JobView) -> Vec<String> {
    let mut fields = Fields::under(paint, headline(paint, job));
    about(&mut fields, job);
    state(&mut fields, job);
    if let Some(progress) = &job.progress {
        fields.list("progress", progress_lines(progress));
    }
    if let Some(forecast) = &job.forecast {
        fields.list("last sync", forecast_lines(forecast, job.freeze_budget_ms));
    }
    fields.list("disks", disks(job));
    place(&mut fields, job);
    fields.field("images", images(job));
    if let Some(before) = &job.take_up {
        fields.field(
            "continues",
            format!("{before}: its newest image is what the first sync builds on"),
        );
    }
    settings(&mut fields, job);
    last_run(&mut fields, job);
    fields.lines()
}

fn place(fields: &mut Fields, job: &JobView) {
    if let Some(store) = &job.store {
        fields.field("store", store);
    }
    if let Some(target) = &job.target {
        fields.field("target", target);
    }
}

fn about(fields: &mut Fields, job: &JobView) {
    if !job.description.is_empty() {
        fields.field("about", &job.description);
    }
}

fn settings(fields: &mut Fields, job: &JobView) {
    schedule(fields, job);
    fields.field("syncs", sync(job));
    if let Some(note) = &job.io_priority_note {
        fields.field("note", note);
    }
    consistency(fields, job);
    fields.list("checks", checks(&job.checks));
    fields.list("hooks", hooks(&job.hooks));
    life(fields, job);
}

fn last_run(fields: &mut Fields, job: &JobView) {
    if let Some(last) = &job.last_run {
        fields.list("last run", run::lines(last));
    }
}

fn state(fields: &mut Fields, job: &JobView) {
    if let Some(error) = &job.error {
        fields.painted("error", Tone::Bad, error);
    }
    if let Some(wait) = job
        .progress
        .as_ref()
        .and_then(|progress| progress.waiting_for_target.as_ref())
    {
        fields.painted("waiting", Tone::Warning, &waiting(wait));
    }
    if job.status == Status::InError {
        let name = &job.name;
        fields.field(
            "to do",
            format!("correct what the error says, then `smcctl job start {name}` resumes the sync"),
        );
    }
    if job.unconfirmed {
        let name = &job.name;
        fields.painted(
            "unconfirmed",
            Tone::Warning,
            &format!(
                "it was found in its store, and anybody who can write there may have changed it: check its disks and \
                 hooks with `smcctl job show {name}`, then run `smcctl job confirm {name}`"
            ),
        );
    }
    for warning in &job.warnings {
        fields.painted("warning", Tone::Warning, warning);
    }
    if let Some(ending) = &job.ending {
        fields.field("requested", format!("{ending}, in progress"));
    }
    if job.completing {
        let compared = if job.verifying {
            ", if the comparison after it finds everything the same"
        } else {
            ""
        };
        fields.field(
            "completing",
            format!("the job is Finished after this sync{compared}"),
        );
    }
    if !job.next.text.is_empty() {
        fields.field("next", next(&job.next));
    }
    if let Some(reason) = &job.next.deferred {
        fields.painted("deferred", Tone::Warning, &deferred(&job.next, reason));
    }
}

fn progress_lines(progress: &Progress) -> Vec<String> {
    let image = progress.image.as_deref().unwrap_or("an image");
    let mut lines = vec![format!(
        "{image}, since {} ({}){}{}",
        local_time(progress.started),
        measured(progress.elapsed_seconds),
        progress
            .disk
            .as_deref()
            .map(|disk| format!(", reading {disk}"))
            .unwrap_or_default(),
        if progress.resumed {
            ", resumes an unfinished sync"
        } else {
            ""
        },
    )];
    lines.push(format!(
        "compared {} of {} at {}{}",
        size(progress.compared_bytes),
        size(progress.total_bytes),
        rate(progress.compare_rate_bytes),
        progress.eta_seconds.map(left).unwrap_or_default(),
    ));
    lines.push(format!(
        "changed {}, stored {} at {}",
        size(progress.dirty_bytes),
        size(progress.stored_bytes),
        rate(progress.store_rate_bytes),
    ));
    lines.extend(progress.held_up.as_ref().map(|by| format!("held up: {by}")));
    lines.extend(progress.transfer.as_ref().map(sent));
    lines
}

fn sent(transfer: &Transfer) -> String {
    format!(
        "sent {} at {}, of which {} survive a power cut of the target",
        size(transfer.sent_bytes),
        rate(transfer.send_rate_bytes),
        size(transfer.durable_bytes),
    )
}

fn left(seconds: u64) -> String {
    format!(", {} left", duration(seconds))
}

/// How long writers would be held, if they would be at all.
fn held(measured_ms: Option<u64>, budget_ms: Option<u64>) -> Option<String> {
    match (measured_ms, budget_ms) {
        (Some(held), _) => Some(format!(
            "writers would be held for {held} ms: the longest time of the last syncs"
        )),
        (None, Some(budget)) => Some(format!(
            "writers would be held for {budget} ms at most: none of the last syncs has frozen anything"
        )),
        (None, None) => None,
    }
}

fn forecast_lines(forecast: &Forecast, freeze_budget_ms: Option<u64>) -> Vec<String> {
    let mut lines = vec![
        format!(
            "if you stopped services now, the last sync would take about {}:",
            measured(forecast.seconds)
        ),
        format!(
            "comparing {} at {}: {}",
            size(forecast.compare_bytes),
            rate(forecast.compare_rate_bytes),
            measured(forecast.compare_seconds)
        ),
        format!(
            "storing {} of changes at {}: {}, meanwhile",
            size(forecast.dirty_bytes),
            rate(forecast.transfer_rate_bytes),
            measured(forecast.transfer_seconds)
        ),
        format!(
            "hooks, making the image durable, deleting old ones: {}",
            measured(forecast.other_seconds)
        ),
    ];
    lines.extend(held(forecast.writers_held_ms, freeze_budget_ms));
    lines.push(format!(
        "basis: {} ({} changes)",
        forecast.basis,
        rate(forecast.dirty_rate_bytes)
    ));
    lines
}

fn disks(job: &JobView) -> Vec<String> {
    let width = job
        .disks
        .iter()
        .map(|disk| disk.name.chars().count())
        .max()
        .unwrap_or(0);
    let line = |disk: &DiskView| {
        let tracked = disk.tracking.as_ref().map(tracked).unwrap_or_default();
        let size = size(disk.size_bytes);
        format!("{:<width$}  {}  {size}{tracked}", disk.name, disk.path)
    };
    job.disks.iter().map(line).collect()
}

/// Whether a disk is tracked, or why the next sync reads all of it.
fn tracked(disk: &DiskTracking) -> String {
    match (&disk.doubt, disk.since) {
        (None, _) => format!(
            ", tracked: {} written to since the newest image",
            size(disk.dirty_bytes)
        ),
        (Some(doubt), None) => format!(", not tracked: {doubt}"),
        (Some(doubt), Some(_)) => format!(", tracked, but the next sync reads all of it: {doubt}"),
    }
}

fn images(job: &JobView) -> String {
    if job.images.is_empty() {
        "none yet".to_owned()
    } else {
        job.images.join(", ")
    }
}

/// A value in force, with the one to come.
fn with_pending(in_force: Option<String>, pending: Option<String>) -> String {
    let in_force = in_force.unwrap_or_else(|| "none".to_owned());
    match pending {
        Some(pending) => format!("{in_force}, {pending} after the next sync"),
        None => in_force,
    }
}

fn schedule(fields: &mut Fields, job: &JobView) {
    if !job.automatic_incremental {
        fields.field("schedule", "a single full sync");
        return;
    }
    let images = |number: u32| count(usize::try_from(number).unwrap_or(usize::MAX), "image");
    fields.field(
        "interval",
        with_pending(
            job.interval_seconds.map(setting),
            job.pending.interval_seconds.map(setting),
        ),
    );
    let least = job.min_scan_interval_seconds;
    if job.interval_seconds.is_some_and(|interval| interval < least) {
        fields.field(
            "scans",
            format!(
                "at least {} from one that reads a whole disk to the next",
                setting(least)
            ),
        );
    }
    if job.target.is_some() {
        fields.field("keeps", "what the target decides");
        return;
    }
    fields.field(
        "keeps",
        with_pending(job.max_images.map(images), job.pending.max_images.map(images)),
    );
}

fn sync(job: &JobView) -> String {
    let limit = match job.bandwidth_limit_bytes {
        0 => "reads without limit".to_owned(),
        bytes => format!("reads at most {}", rate(bytes)),
    };
    let sends = job
        .send_limit
        .as_ref()
        .map(|limit| format!(", sends at most {limit}"));
    let clusters = job
        .cluster_size_bytes
        .map(|bytes| format!(", clusters of {}", size(bytes.into())));
    let changed_disk = job
        .accept_changed_disk
        .then_some(", takes a changed disk for one image");
    let skips = match job.on_read_error {
        OnReadError::Stop => "",
        OnReadError::Skip => ", skips what cannot be read",
    };
    let takes_over = job
        .take_over
        .then_some(", takes over another job's images with the next one");
    let priority = match job.io_priority {
        IoPriority::None => String::new(),
        priority => format!(" with I/O priority {priority}"),
    };
    let tracking = match job.tracking {
        Tracking::Auto => "",
        Tracking::Off => ", without tracking",
    };
    format!(
        "{limit}{}{priority}{tracking}{skips}, compression level {}{}{}{}",
        sends.unwrap_or_default(),
        job.compress_level,
        clusters.unwrap_or_default(),
        changed_disk.unwrap_or_default(),
        takes_over.unwrap_or_default()
    )
}

/// Which checks are made of the images, and what the last ones found.
fn checks(checks: &ChecksView) -> Vec<String> {
    let mut lines = Vec::new();
    match checks.boot_every_images {
        0 => {}
        1 => lines.push("boots each new image".to_owned()),
        images => lines.push(format!("boots one of {images} new images")),
    }
    if checks.boot_every_seconds > 0 {
        let time = setting(checks.boot_every_seconds);
        lines.push(format!("boots the newest image if none was booted for {time}"));
    }
    if checks.verify_every_seconds > 0 {
        let time = setting(checks.verify_every_seconds);
        lines.push(format!("reads all images again within {time}"));
    }
    let last = [&checks.booted, &checks.verified].into_iter().flatten();
    for check in last {
        let finished = local_time(check.finished);
        let mut text = check.text.lines().map(|line| line.trim_end().to_owned());
        let first = text.next().unwrap_or_else(|| check.image.clone());
        lines.push(format!("{finished}: {first}"));
        lines.extend(text);
    }
    lines
}

/// What is wanted of the images, and what the last one is.
fn consistency(fields: &mut Fields, job: &JobView) {
    let wanted = match job.consistency {
        LeastConsistency::Any => None,
        class if job.require_consistency => Some(format!("at least {class}, or the sync fails")),
        class => Some(format!("at least {class} is wanted")),
    };
    let freezes = job
        .freeze_budget_ms
        .map(|budget| format!("writers may be held for {budget} ms"));
    let last = job.last_run.as_ref().and_then(|run| run.consistency.as_deref());
    let last = last.map(|class| format!("the last image is {class}"));
    if wanted.is_some() || freezes.is_some() {
        let said: Vec<String> = [wanted, last, freezes].into_iter().flatten().collect();
        fields.field("consistency", said.join("; "));
    }
}

fn hooks(hooks: &HooksView) -> Vec<String> {
    let (usual, short) = (hooks.timeout_seconds, hooks.freeze_timeout_seconds);
    [
        ("before every sync", &hooks.pre, usual),
        ("before a freeze", &hooks.freeze, short),
        ("after the thaw", &hooks.thaw, usual),
        ("after every sync", &hooks.post, usual),
    ]
    .into_iter()
    .filter_map(|(when, hook, seconds)| {
        let hook = hook.as_deref()?;
        Some(format!("{when}: {hook} (at most {})", setting(seconds)))
    })
    .collect()
}

fn life(fields: &mut Fields, job: &JobView) {
    fields.field("created", local_time(job.created));
    if let Some(start) = job.start_at {
        fields.field("starts", local_time(start));
    }
    let valid = setting(job.valid_seconds);
    match job.expires {
        Some(expires) => fields.field(
            "expires",
            format!("{}, {valid} after its creation", local_time(expires)),
        ),
        None => fields.field("valid", format!("{valid}, if it stays unfinished")),
    }
}
