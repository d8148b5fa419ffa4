//! Targets, after something was done with one.

use api::TargetView;
use cli::units::local_date;

/// A target that was made known.
pub fn added(target: &TargetView) -> String {
    format!(
        "this machine is source {} of target {name} at {}: smcctl job create NAME --target {name} ...",
        target.source,
        target.address,
        name = target.name
    )
}

/// A target that has signed a new key.
pub fn renewed(target: &TargetView) -> String {
    let until = target.valid_until.map_or("?".to_owned(), local_date);
    format!(
        "the certificate for target {} is valid until {until}",
        target.name
    )
}
