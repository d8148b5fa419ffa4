//! What a job would cost.

use crate::view::fields::Fields;
use api::{DiskEstimate, Estimate};
use cli::paint::{Paint, Tone};
use cli::table::Align::{Left, Right};
use cli::table::Table;
use cli::units::{measured, rate, size};

/// The disks as measured, then both kinds of syncs and whether there is room.
pub fn lines(paint: Paint, estimate: &Estimate) -> Vec<String> {
    let mut table = Table::new(&[
        ("DISK", Left),
        ("PATH", Left),
        ("SIZE", Right),
        ("READS", Right),
        ("SAMPLED", Right),
        ("ZEROS", Right),
        ("COMPRESSED-TO", Right),
    ]);
    estimate.disks.iter().for_each(|disk| table.row(row(disk)));
    let mut lines = table.lines(paint);
    lines.extend(sums(paint, estimate));
    lines
}

fn row(disk: &DiskEstimate) -> [String; 7] {
    [
        disk.name.clone(),
        disk.path.clone(),
        size(disk.size_bytes),
        rate(disk.read_rate_bytes),
        size(disk.sampled_bytes),
        share(disk.zero_share),
        share(disk.compressed_share),
    ]
}

fn share(share: f64) -> String {
    format!("{:.0}%", share.clamp(0.0, 1.0) * 100.0)
}

fn sums(paint: Paint, estimate: &Estimate) -> Vec<String> {
    let mut fields = Fields::new(paint);
    if let Some(store) = &estimate.store {
        let (free, writes) = (size(store.free_bytes), rate(store.write_rate_bytes));
        fields.field("store", format!("{}: {free} free, writes {writes}", store.path));
    }
    if let Some(target) = &estimate.target {
        let (free, takes) = (size(target.free_bytes), rate(target.send_rate_bytes));
        fields.field("target", format!("{}: {free} free, takes {takes}", target.name));
    }
    let there = match estimate.target.is_some() {
        true => "there",
        false => "in the store",
    };
    fields.field(
        "full",
        format!(
            "about {} for {}, which take about {} {there}",
            measured(estimate.full_seconds),
            size(estimate.total_bytes),
            size(estimate.stored_bytes)
        ),
    );
    let written = estimate
        .written_per_hour_bytes
        .map(|bytes| format!("; {} are written in an hour", size(bytes)));
    let incremental = measured(estimate.incremental_seconds);
    fields.field(
        "incremental",
        format!("about {incremental}{}", written.unwrap_or_default()),
    );
    match estimate.fits {
        true => fields.painted("room", Tone::Good, "enough for the full sync"),
        false => fields.painted(
            "room",
            Tone::Bad,
            match estimate.target.is_some() {
                true => "not enough for the full sync: free some there, or raise this machine's quota",
                false => "not enough for the full sync: free some, or take another store",
            },
        ),
    }
    fields.list("notes", estimate.notes.iter().cloned());
    fields.lines()
}
