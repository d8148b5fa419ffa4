//! Which files can be reached: Landlock (Linux 5.13 and later).

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::Path;

/// What is newer than the running kernel is left out by the crate.
const NEWEST: ABI = ABI::V10;

/// From now on this thread, and those that it starts, read below `store` and remove files in `socket_dirs`. Any other
/// access to files, TCP, signals to others and abstract sockets are refused, as far as the kernel knows how.
pub(super) fn restrict(store: &Path, socket_dirs: &[&Path]) -> anyhow::Result<()> {
    let status = enforce(store, socket_dirs)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => tracing::warn!(
            "this kernel has no Landlock: the server is not kept from files outside the store that its user may use"
        ),
        _ => {
            tracing::debug!(landlock = ?status.landlock, ruleset = ?status.ruleset, "files are out of reach")
        }
    }
    Ok(())
}

fn enforce(store: &Path, socket_dirs: &[&Path]) -> anyhow::Result<RestrictionStatus> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
        .context("make a Landlock ruleset")?;
    let mut ruleset = allow(ruleset, store, AccessFs::ReadFile | AccessFs::ReadDir)?;
    for dir in socket_dirs {
        ruleset = allow(ruleset, dir, AccessFs::RemoveFile.into())?;
    }
    ruleset.restrict_self().context("apply a Landlock ruleset")
}

fn allow(ruleset: RulesetCreated, dir: &Path, access: BitFlags<AccessFs>) -> anyhow::Result<RulesetCreated> {
    let beneath = PathFd::new(dir).map(|opened| PathBeneath::new(opened, access));
    let beneath = beneath.with_context(|| format!("open {}", dir.display()))?;
    ruleset
        .add_rule(beneath)
        .with_context(|| format!("allow access to {}", dir.display()))
}
