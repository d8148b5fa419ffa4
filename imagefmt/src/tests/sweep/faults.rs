//! Lets every operation of a workload fail, once or for good, and asks the same oracle: of those who go on,
//! and after a power cut.

use super::explore::{Effort, Explorer, Prepared, Tally};
use super::workload::{self, Workload};
use super::{assert_clean, effort, long_effort, on_all_cores};
use crate::tests::sim::{Failure, Fault, Random};
use std::sync::Mutex;

/// All faults of a workload's operations.
fn faults(prepared: &Prepared<'_>) -> Vec<Vec<Fault>> {
    let first = prepared.disk.ops().len();
    let ops = prepared.ops(None);
    let faults_at = |at: usize| {
        let all = Failure::ALL
            .into_iter()
            .flat_map(|(failure, _)| [(failure, false), (failure, true)]);
        let fitting = all.filter(|&(failure, sticky)| failure.fits(ops[at].kind, sticky));
        fitting
            .map(|(failure, sticky)| Fault { at, failure, sticky })
            .collect()
    };
    (first..ops.len()).map(faults_at).collect()
}

/// What the faults of one workload came to.
#[derive(Debug, Default)]
struct Sum {
    faults: usize,
    tally: Tally,
}

/// Tries faults of each operation, `per_op` of them or all, each with some power cuts after it.
fn sweep(workloads: &[Workload], effort: Effort, per_op: usize, cuts: usize) -> Tally {
    let prepared: Vec<Prepared<'_>> = workloads
        .iter()
        .map(|workload| Prepared::new(workload, None))
        .collect();
    let sums: Vec<Mutex<Sum>> = workloads.iter().map(|_| Mutex::default()).collect();
    let mut items = Vec::new();
    for (prepared, sum) in prepared.iter().zip(&sums) {
        let mut random = Random::new(Random::seed_of(&prepared.workload.name) ^ effort.seed);
        for mut of_one in faults(prepared) {
            // Which ones differs from operation to operation and from seed to seed.
            while of_one.len() > per_op {
                of_one.swap_remove(random.below(of_one.len() as u64) as usize);
            }
            items.extend(of_one.into_iter().map(|fault| (prepared, sum, fault)));
        }
    }
    on_all_cores(&items, |(prepared, sum, fault)| {
        let explorer = Explorer::with_fault(prepared, effort, Some(*fault));
        explorer.explore_some(cuts);
        let mut sum = sum.lock().unwrap();
        sum.faults += 1;
        sum.tally.add(&explorer.tally());
    });
    let mut total = Sum::default();
    for (workload, sum) in workloads.iter().zip(sums) {
        let sum = sum.into_inner().unwrap();
        print_line(&workload.name, &sum);
        total.faults += sum.faults;
        total.tally.add(&sum.tally);
    }
    print_line("total", &total);
    total.tally
}

fn print_line(name: &str, sum: &Sum) {
    println!(
        "{name:24} {:6} faults, {:6} power cuts after them; {} violations",
        sum.faults,
        sum.tally.cases,
        sum.tally.violations.len()
    );
}

#[test]
fn no_failing_operation_hurts_what_was_acknowledged() {
    assert_clean(&sweep(&workload::all(), effort(), 1, 2));
}

#[test]
#[ignore = "takes long; make sweep runs it"]
fn long() {
    let effort = long_effort();
    let cuts = effort.seeds / 5;
    let mut total = sweep(&workload::all(), effort, usize::MAX, cuts);
    let workloads: Vec<Workload> = (0..20)
        .map(|i| workload::random(effort.seed * 1000 + i))
        .collect();
    total.add(&sweep(&workloads, effort, 1, cuts));
    assert_clean(&total);
}
