//! What a precheck, or a look into an image, found.

use crate::paint::{Paint, Tone};
use crate::table::Align::Left;
use crate::table::{Cell, Table};
use crate::text::count;
use api::{Check, Level, Precheck};

/// A row a finding, with what to do about it below, and the verdict.
pub fn lines(paint: Paint, precheck: &Precheck) -> Vec<String> {
    let mut table = Table::new(&[("LEVEL", Left), ("FOUND", Left)]);
    for check in &precheck.checks {
        table.row([
            Cell::painted(tone(check.level), check.level.to_string()),
            check.found.clone().into(),
        ]);
        if let Some(advice) = &check.advice {
            table.note(format!("{:9}{advice}", ""));
        }
    }
    let mut lines = table.lines(paint);
    lines.push(paint.paint(tone(precheck.worst()), &verdict(&precheck.checks)));
    lines
}

fn tone(level: Level) -> Tone {
    match level {
        Level::Ok => Tone::Good,
        Level::Warning => Tone::Warning,
        Level::Critical => Tone::Bad,
    }
}

fn verdict(checks: &[Check]) -> String {
    let number = |level: Level| checks.iter().filter(|check| check.level == level).count();
    match (number(Level::Critical), number(Level::Warning)) {
        (0, 0) => "ready".to_owned(),
        (0, warnings) => format!("ready with {}", count(warnings, "warning")),
        (critical, _) => format!("not ready: {critical} critical"),
    }
}
