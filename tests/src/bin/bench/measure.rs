//! Taking times, and what follows from several of them.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// One thing measured beside another, in turn.
#[derive(Debug)]
pub struct Comparison {
    pub what: &'static str,
    pub against: String,
    pub goal: Goal,
    pub pairs: Vec<Pair>,
    /// Bytes that both stored, where that matters.
    pub stored: Option<(u64, u64)>,
}

/// Seconds that the same work took.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub ours: f64,
    pub theirs: f64,
}

/// What design.md §11 asks for.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Our rate is at least this share of theirs.
    RateAtLeast(f64),
    /// Our time is at most this share of theirs.
    TimeAtMost(f64),
    /// Shown, but no goal.
    Beside,
}

impl Comparison {
    /// The ratio in the direction in which the goal is stated, for each pair, ascending.
    fn ratios(&self) -> Vec<f64> {
        let ratio = |pair: &Pair| match self.goal {
            Goal::RateAtLeast(_) => pair.theirs / pair.ours,
            Goal::TimeAtMost(_) | Goal::Beside => pair.ours / pair.theirs,
        };
        sorted(self.pairs.iter().map(ratio))
    }

    /// The cells of its row.
    pub fn row(&self) -> Vec<String> {
        let ratios = self.ratios();
        let ratio = median(&ratios);
        let (goal, met) = match self.goal {
            Goal::RateAtLeast(goal) => (format!(">= {goal} of its rate"), yes_no(ratio >= goal)),
            Goal::TimeAtMost(goal) => (format!("<= {goal} of its time"), yes_no(ratio <= goal)),
            Goal::Beside => ("-".to_owned(), "-"),
        };
        let spread = format!(
            "{:.2} .. {:.2}",
            ratios.first().unwrap_or(&0.0),
            ratios.last().unwrap_or(&0.0)
        );
        let seconds =
            |pick: fn(&Pair) -> f64| format!("{:.2} s", median(&sorted(self.pairs.iter().map(pick))));
        vec![
            self.what.to_owned(),
            self.against.clone(),
            seconds(|pair| pair.ours),
            seconds(|pair| pair.theirs),
            format!("{ratio:.3}"),
            spread,
            goal,
            met.to_owned(),
            self.stored.map_or("-".to_owned(), |(ours, theirs)| {
                format!("{} / {} MiB", ours >> 20, theirs >> 20)
            }),
        ]
    }
}

fn yes_no(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}

/// Ascending.
pub fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle one of ascending values.
pub fn median(ascending: &[f64]) -> f64 {
    let middle = ascending.len() / 2;
    match ascending.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => ascending[middle],
        _ => f64::midpoint(ascending[middle - 1], ascending[middle]),
    }
}

/// Seconds of wall clock that `work` takes, with cold caches and a quiet disk.
pub fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    settle()?;
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Writes back what is dirty and drops what is cached, so that no run pays for or profits from another.
pub fn settle() -> Result<()> {
    // SAFETY: sync(2) has no arguments and always succeeds.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// Runs a program to its end; its output is shown only when it fails.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}: is it installed? `make setup`"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
