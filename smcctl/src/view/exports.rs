//! Images in use.

use api::ExportView;
use cli::paint::{Paint, Tone};
use cli::table::Align::Left;
use cli::table::Table;

/// A row an image, with who uses it, and a line for what is not known.
pub fn lines(paint: Paint, exports: &[ExportView]) -> Vec<String> {
    if exports.is_empty() {
        return vec!["no image is in use".to_owned()];
    }
    let mut table = Table::new(&[
        ("IMAGE", Left),
        ("STORE", Left),
        ("HELD-BY", Left),
        ("PINS", Left),
    ]);
    let joined = |names: &[String]| {
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(", ")
        }
    };
    let (known, unknown): (Vec<_>, Vec<_>) = exports.iter().partition(|export| export.error.is_none());
    for export in &known {
        let (held_by, pins) = (joined(&export.held_by), joined(&export.pins));
        table.row([export.image.clone(), export.store.clone(), held_by, pins]);
    }
    let mut lines = if known.is_empty() {
        Vec::new()
    } else {
        table.lines(paint)
    };
    lines.extend(unknown.iter().map(|export| {
        let error = export.error.as_deref().unwrap_or_default();
        let (what, verb) = if export.image.is_empty() {
            ("images", "are")
        } else {
            (export.image.as_str(), "is")
        };
        paint.paint(
            Tone::Warning,
            &format!(
                "not known whether {what} of store {} {verb} in use: {error}",
                export.store
            ),
        )
    }));
    lines
}
