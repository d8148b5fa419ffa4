//! Where jobs are shown again and again while time passes.

use crate::client::Answer;
use crate::context::Context;
use crate::view::frame;
use anyhow::Context as _;
use api::JobView;
use cli::output;
use cli::paint::Paint;
use cli::units;
use console::Term;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::env;
use std::io;
use std::time::Duration;

/// How often the daemon is asked.
pub const POLL: Duration = Duration::from_millis(500);

/// A job, as it is and as it came.
pub type Seen = (JobView, Answer);

/// Where jobs are shown again and again.
#[derive(Debug)]
pub enum Screen {
    /// A terminal, with so many lines drawn on it.
    Live(Term, Paint, usize),
    /// A line a change, JSON or text; with what was shown last of each job.
    Changes(bool, BTreeMap<String, String>),
    /// Nobody looks.
    Nowhere,
}

impl Screen {
    /// What fits where stdout goes.
    pub fn new(context: &Context) -> Self {
        match Self::live_only(context) {
            Self::Nowhere => Self::Changes(context.json, BTreeMap::new()),
            live => live,
        }
    }

    /// A terminal, or nothing.
    pub fn live_only(context: &Context) -> Self {
        let term = Term::buffered_stdout();
        let is_dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        if context.json || is_dumb || !term.is_term() {
            return Self::Nowhere;
        }
        Self::Live(term, context.paint, 0)
    }

    /// Shows the jobs as they are now.
    ///
    /// # Errors
    /// A terminal or output that cannot be written to.
    pub fn show(&mut self, jobs: &[Seen]) -> anyhow::Result<()> {
        match self {
            Self::Live(term, paint, drawn) => {
                let lines: Vec<String> = jobs
                    .iter()
                    .flat_map(|(job, _)| frame::lines(*paint, job))
                    .collect();
                *drawn = draw(term, *drawn, &lines).context("draw on the terminal")?;
                Ok(())
            }
            Self::Changes(json, shown) => jobs.iter().try_for_each(|seen| show_change(*json, shown, seen)),
            Self::Nowhere => Ok(()),
        }
    }

    /// Takes what was drawn off the terminal.
    ///
    /// # Errors
    /// A terminal that cannot be written to.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        if let Self::Live(term, _, drawn) = self {
            *drawn = draw(term, *drawn, &[]).context("draw on the terminal")?;
        }
        Ok(())
    }
}

fn show_change(json: bool, shown: &mut BTreeMap<String, String>, seen: &Seen) -> anyhow::Result<()> {
    let (job, answer) = seen;
    let key = frame::key(job);
    if shown.get(&job.name) == Some(&key) {
        return Ok(());
    }
    shown.insert(job.name.clone(), key);
    if json {
        return answer.print_json();
    }
    output::line(format_args!(
        "{}  {}",
        units::local_time(Timestamp::now()),
        frame::line(job)
    ))
}

/// Draws over the last lines; returns how many there are now. A line that is too long is cut, and so is a screen full.
fn draw(term: &Term, drawn: usize, lines: &[String]) -> io::Result<usize> {
    let (rows, columns) = term.size();
    let fitting = lines.len().min(usize::from(rows.saturating_sub(1)));
    term.move_cursor_up(drawn)?;
    term.clear_to_end_of_screen()?;
    for line in &lines[..fitting] {
        term.write_line(&console::truncate_str(line, columns.into(), "\u{2026}"))?;
    }
    term.flush()?;
    Ok(fitting)
}
