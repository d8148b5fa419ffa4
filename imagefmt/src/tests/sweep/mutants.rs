//! Orderings that are broken on purpose: each is found by the sweep, or the sweep would be worth nothing.

use super::explore::{Effort, Explorer, Tally};
use super::place::Place;
use super::workload;
use super::{effort, sweep};
use crate::tests::sim::{Kind, Lies, Op};

/// Sweeps workloads with some syncs left out; what is found is printed.
fn found(what: &str, names: &[&str], lies: Lies) -> Tally {
    let mut workloads = workload::all();
    workloads.retain(|workload| names.contains(&workload.name.as_str()));
    assert_eq!(workloads.len(), names.len());
    let effort = Effort {
        nest_one_in: u64::MAX,
        lies: Some(lies),
        ..effort()
    };
    let tally = sweep(&workloads, effort);
    assert!(!tally.violations.is_empty(), "{what}: nothing is found");
    let first = &tally.violations[0];
    println!(
        "found as it must be: {what}: {} violations, the first: {first}",
        tally.violations.len()
    );
    tally
}

/// Whether the last of these operations is a sync of that directory.
fn is_sync_dir(ops: &[Op], end: &str) -> bool {
    ops.last()
        .is_some_and(|op| op.kind == Kind::SyncDir && op.path.ends_with(end))
}

/// Whether the last of these operations is a sync of a file whose name ends so.
fn is_sync_file(ops: &[Op], end: &str) -> bool {
    ops.last()
        .is_some_and(|op| op.kind == Kind::SyncFile && op.path.ends_with(end))
}

/// Some violation says this.
fn says(tally: &Tally, what: &str) -> bool {
    tally.violations.iter().any(|violation| violation.contains(what))
}

#[test]
fn no_sync_of_a_file_before_its_rename_is_found() {
    let lies: Lies = |ops| is_sync_file(ops, ".tmp");
    let tally = found("a file is renamed before it is synced", &["incremental"], lies);
    assert!(says(&tally, "/xfs/") && says(&tally, "/ext4/"));
}

#[test]
fn layers_that_are_not_synced_are_found() {
    let tally = found("layers are not synced", &["incremental"], |ops| {
        is_sync_file(ops, ".layer")
    });
    assert!(says(&tally, "cannot be read"));
}

#[test]
fn names_of_layers_that_are_not_synced_are_found() {
    let lies: Lies = |ops| is_sync_dir(ops, "/layers");
    let tally = found("the names of layers are not synced", &["incremental"], lies);
    assert!(says(&tally, "cannot be read"));
}

#[test]
fn an_image_acknowledged_before_its_name_is_durable_is_found() {
    let tally = found("images/ is not synced", &["incremental"], |ops| {
        is_sync_dir(ops, "/images")
    });
    assert!(says(&tally, "was acknowledged and is not there"));
}

#[test]
fn space_given_back_before_the_name_is_gone_is_found() {
    // What came before the first rename to N.deleting was synced as it must be.
    let lies: Lies = |ops| {
        let is_deletion = |op: &Op| op.kind == Kind::Rename && op.path.ends_with(".json");
        is_sync_dir(ops, "/images") && ops.iter().any(is_deletion)
    };
    let tally = found("space is freed before the name is gone", &["delete-oldest"], lies);
    assert!(says(&tally, "/posix/") && says(&tally, "cannot be read"));
    assert!(says(&tally, "was deleted, and is there"));
}

#[test]
fn a_checkpoint_that_is_not_durable_is_found() {
    let lies: Lies = |ops| {
        let before = ops.iter().rev().nth(1);
        let renamed = before.is_some_and(|op| op.kind == Kind::Rename && op.path.contains("checkpoint"));
        is_sync_dir(ops, "web") && renamed
    };
    let tally = found(
        "a checkpoint's name is not synced",
        &["resume", "checkpoints"],
        lies,
    );
    assert!(says(&tally, "unfinished sync"));
}

#[test]
fn numbers_that_come_twice_are_found() {
    // chain.json is durable when the chain is made, and never again.
    let lies: Lies = |ops| {
        let is_raise = |op: &&Op| op.kind == Kind::Rename && op.path.ends_with("chain.json.tmp");
        is_sync_dir(ops, "web") && ops.iter().filter(is_raise).count() > 1
    };
    let tally = found(
        "numbers are used before they are raised",
        &["delete-newest"],
        lies,
    );
    assert!(says(&tally, "was made when there had been") || says(&tally, "was used"));
}

#[test]
fn what_is_found_is_found_again() {
    let lies: Lies = |ops| is_sync_file(ops, ".layer");
    let tally = found("layers are not synced", &["incremental"], lies);
    for violation in tally.violations.iter().take(20) {
        let place = violation.split(": ").next().and_then(Place::parse).unwrap();
        let workload = workload::named(&place.workload).unwrap();
        let effort = Effort {
            lies: Some(lies),
            ..effort()
        };
        Explorer::new(&workload, effort).reproduce(&place).unwrap_err();
    }
}
