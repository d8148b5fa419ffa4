//! Who the process is and what it may do beyond that.

use crate::exit::Advise;
use anyhow::Context;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Becomes `user` and gives up every capability but those that serving needs, for good.
pub(super) fn reduce(user: Option<&User>, socket_dirs: &[&Path]) -> anyhow::Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("read the capabilities")?;
    let kept: CapsHashSet = needed(user, socket_dirs).intersection(&held).copied().collect();
    let user = user.filter(|user| user.uid != geteuid());
    if held.contains(&Capability::CAP_SYS_RESOURCE) {
        // Before Linux 5.12, what a ring takes counts here unless one has CAP_IPC_LOCK. Later ones do not care.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    }
    drop_bounding(&held, &kept).context("drop capabilities")?;
    if let Some(user) = user {
        become_user(user)
            .with_context(|| format!("become user {}", user.name))
            .advise("only root can become another user: leave --user out, or run this as root")?;
    }
    keep_only(&kept).context("drop capabilities")?;
    prctl::set_no_new_privs().context("set no_new_privs")?;
    tracing::debug!(uid = %geteuid(), capabilities = ?kept, "privileges given up");
    Ok(())
}

/// The store's files are their owner's alone, so that another user reads them by capability. Root, whose sockets lie
/// in somebody else's directory, removes them by another; a user that was named cannot, since with that one it could
/// also connect to every Unix socket of the machine.
fn needed(user: Option<&User>, socket_dirs: &[&Path]) -> CapsHashSet {
    let mut needed = CapsHashSet::from([Capability::CAP_DAC_READ_SEARCH]);
    let is_others = |dir: &&Path| fs::metadata(dir).is_ok_and(|found| found.uid() != geteuid().as_raw());
    if user.is_none() && socket_dirs.iter().any(is_others) {
        needed.insert(Capability::CAP_DAC_OVERRIDE);
    }
    needed
}

/// Keeps capabilities from coming back with an exec, which no_new_privs and seccomp prevent anyway: so where this is
/// not ours to do, it is left.
fn drop_bounding(held: &CapsHashSet, kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    if !held.contains(&Capability::CAP_SETPCAP) {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    Ok(())
}

fn become_user(user: &User) -> anyhow::Result<()> {
    let User { uid, gid, .. } = *user;
    // Otherwise capabilities end with root's user id.
    caps::securebits::set_keepcaps(true)?;
    setgroups(&[])?;
    set_ids(uid, gid)?;
    caps::securebits::set_keepcaps(false)?;
    Ok(())
}

/// Real, effective and saved ones, so that there is no way back. The group first: later we may not.
fn set_ids(uid: Uid, gid: Gid) -> nix::Result<()> {
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn keep_only(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    // In this order each set is within the one that bounds it.
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)
}
