//! Images in use.

use api::ExportView;
use cli::paint::Paint;
use cli::table::Align::Left;
use cli::table::Table;

/// A row an image, with who uses it.
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
    for export in exports {
        let (held_by, pins) = (joined(&export.held_by), joined(&export.pins));
        table.row([export.image.clone(), export.store.clone(), held_by, pins]);
    }
    table.lines(paint)
}
