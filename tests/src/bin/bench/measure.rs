//! Taking times, and what follows from several of them.

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use testkit::process::{check_interrupt, wait_until};

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

/// A goal (docs/benchmarks.md).
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
        let (goal, met) = self.goal.judge(ratio);
        let seconds =
            |pick: fn(&Pair) -> f64| format!("{:.2} s", median(&sorted(self.pairs.iter().map(pick))));
        vec![
            self.what.to_owned(),
            self.against.clone(),
            seconds(|pair| pair.ours),
            seconds(|pair| pair.theirs),
            format!("{ratio:.3}"),
            spread(&ratios),
            goal,
            met.to_owned(),
            self.stored.map_or("-".to_owned(), |(ours, theirs)| {
                format!("{} / {} MiB", ours >> 20, theirs >> 20)
            }),
        ]
    }
}

impl Goal {
    /// How it is written, and whether this ratio meets it.
    pub fn judge(self, ratio: f64) -> (String, &'static str) {
        match self {
            Self::RateAtLeast(goal) => (format!(">= {goal} of its rate"), yes_no(ratio >= goal)),
            Self::TimeAtMost(goal) => (format!("<= {goal} of its time"), yes_no(ratio <= goal)),
            Self::Beside => ("-".to_owned(), "-"),
        }
    }
}

/// The least and the most of ascending values.
pub fn spread(ascending: &[f64]) -> String {
    format!(
        "{:.2} .. {:.2}",
        ascending.first().unwrap_or(&0.0),
        ascending.last().unwrap_or(&0.0)
    )
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
    check_interrupt()?;
    // SAFETY: sync(2) has no arguments and always succeeds.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// Runs a program to its end; its output is shown only when it fails. Fails once a signal has arrived, so that what
/// was made for the bench is removed on the way out.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}: is it installed? `make setup`"))?;
    check_interrupt()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Asks a program to end, and waits for that.
pub fn end(child: &mut Child, signal: Signal) -> Result<()> {
    let id = i32::try_from(child.id()).context("the id of a process")?;
    nix::sys::signal::kill(Pid::from_raw(id), signal)?;
    wait_until(Duration::from_secs(60), || {
        matches!(child.try_wait(), Ok(Some(_)) | Err(_))
    })?;
    Ok(())
}

/// A copy by `dd`, around the page cache and flushed at the end.
pub fn dd(source: &Path, target: &Path) -> Command {
    let mut command = Command::new("dd");
    command.args([
        "bs=1M",
        "iflag=direct",
        "oflag=direct",
        "conv=fsync",
        "status=none",
    ]);
    command
        .arg(format!("if={}", source.display()))
        .arg(format!("of={}", target.display()));
    command
}

/// What fio reports.
pub fn fio(command: &mut Command) -> Result<Value> {
    let output = run(command.arg("--output-format=json"))?;
    serde_json::from_slice(&output).context("parse fio's report")
}

/// The time that fio itself took for reading, its start-up left out.
pub fn fio_read_seconds(command: &mut Command) -> Result<f64> {
    let millis = fio(command)?["jobs"][0]["read"]["runtime"].as_f64();
    Ok(millis.context("fio reports no runtime")? / 1000.0)
}

/// A table of comparisons, whose last column has this title.
pub fn comparison_table(last: &str) -> Table {
    table(&[
        "what",
        "against",
        "ours",
        "theirs",
        "ratio (median)",
        "spread",
        "goal",
        "met",
        last,
    ])
}

/// A table with these titles.
pub fn table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(titles);
    table
}

/// Whether a goal is met, as a cell.
pub fn met(is_met: bool) -> String {
    yes_no(is_met).to_owned()
}
