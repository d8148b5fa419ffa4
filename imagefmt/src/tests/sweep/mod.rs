//! The crash sweep: short workloads on a simulated disk, the power cut at every operation, one oracle.
//!
//! `make sweep` runs the long version: `SMC_SWEEP_SEEDS` random outcomes at each place, `SMC_SWEEP_LISTS`
//! longer lists of steps, other ones for another `SMC_SWEEP_SEED`. A failure prints the one command that goes
//! to its place again.

mod driver;
mod explore;
mod faults;
mod history;
mod mutants;
mod oracle;
mod place;
mod workload;
mod world;

use explore::{Effort, Explorer, Prepared, Tally};
use place::Place;
use std::sync::atomic::{AtomicUsize, Ordering};
use workload::Workload;

/// The environment's number of this name, or the usual one.
fn number(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    }
}

/// What every run of the tests tries.
fn effort() -> Effort {
    Effort {
        corners: true,
        seeds: 2,
        nest_one_in: 80,
        nested_outcomes: 1,
        seed: 0,
        lies: None,
    }
}

/// What `make sweep` tries.
fn long_effort() -> Effort {
    Effort {
        seeds: number("SMC_SWEEP_SEEDS", 40) as usize,
        nest_one_in: 20,
        nested_outcomes: 4,
        seed: number("SMC_SWEEP_SEED", 1),
        ..effort()
    }
}

/// Of long lists of steps, only random outcomes.
fn only_samples(effort: Effort) -> Effort {
    Effort {
        corners: false,
        ..effort
    }
}

/// Does `work` with each item, on all cores.
fn on_all_cores<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Explores workloads; prints a line for each, and one of their sums.
fn sweep(workloads: &[Workload], effort: Effort) -> Tally {
    let explorers: Vec<Explorer<'_>> = workloads
        .iter()
        .map(|workload| Explorer::new(workload, effort))
        .collect();
    let points: Vec<(&Explorer<'_>, usize)> = explorers
        .iter()
        .flat_map(|explorer| (0..explorer.points()).map(move |point| (explorer, point)))
        .collect();
    on_all_cores(&points, |(explorer, point)| explorer.explore(*point));
    let mut total = Tally::default();
    for (workload, explorer) in workloads.iter().zip(&explorers) {
        let tally = explorer.tally();
        print_line(&workload.name, &tally);
        total.add(&tally);
    }
    print_line("total", &total);
    total
}

fn print_line(name: &str, tally: &Tally) {
    println!(
        "{name:24} {:5} crash points, with 3 models and all outcomes {:7} cases, {:6} distinct states; \
         nested {:6} + {:5}; {} violations",
        tally.points,
        tally.cases,
        tally.states,
        tally.nested[0],
        tally.nested[1],
        tally.violations.len()
    );
}

/// Fails with the first few violations, if there are any.
fn assert_clean(tally: &Tally) {
    let shown = tally.violations.iter().take(10).cloned().collect::<Vec<_>>();
    assert!(
        shown.is_empty(),
        "{} violations:\n{}",
        tally.violations.len(),
        shown.join("\n")
    );
}

#[test]
fn no_power_cut_hurts_what_was_acknowledged() {
    assert_clean(&sweep(&workload::all(), effort()));
}

#[test]
fn no_power_cut_hurts_in_longer_lists_of_steps() {
    let workloads: Vec<Workload> = (0..6).map(workload::random).collect();
    assert_clean(&sweep(&workloads, only_samples(effort())));
}

#[test]
#[ignore = "takes long; make sweep runs it"]
fn long() {
    let effort = long_effort();
    let mut total = sweep(&workload::all(), effort);
    let first = effort.seed * 1000;
    let lists = number("SMC_SWEEP_LISTS", 40);
    let workloads: Vec<Workload> = (first..first + lists).map(workload::random).collect();
    total.add(&sweep(&workloads, only_samples(effort)));
    assert_clean(&total);
}

/// Goes to the place that `SMC_SWEEP` names, or to some place to see that this works.
#[test]
fn reproduce() {
    let place = match std::env::var("SMC_SWEEP") {
        Ok(text) => Place::parse(&text).unwrap_or_else(|| panic!("{text} names no place")),
        Err(_) => {
            let workload = workload::random(1);
            Explorer::new(&workload, effort()).any_place().unwrap()
        }
    };
    let workload = workload::named(&place.workload);
    let workload = workload.unwrap_or_else(|| panic!("there is no workload {}", place.workload));
    let prepared = Prepared::new(&workload, None);
    for (number, op) in prepared.ops(place.fault).iter().enumerate() {
        println!("{number:5} {:?} {}", op.kind, op.path);
    }
    if let Err(violation) = Explorer::with_fault(&prepared, effort(), place.fault).reproduce(&place) {
        panic!("{place}: {violation}");
    }
}
