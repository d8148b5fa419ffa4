//! What an image lacks of what was wanted of it. It is kept all the same: the next sync builds on it.

use crate::engine::{Compared, Error, ErrorKind, Result, Synced};
use api::LeastConsistency;
use imagefmt::{Consistency, Manifest};

/// What is wanted of an image.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its consistency class at least.
    pub class: LeastConsistency,
    /// Whether the sync fails without that class.
    pub is_required: bool,
    /// Whether everything is compared after the sync, and the sync fails if it is not the same.
    pub is_compared: bool,
}

impl Wanted {
    /// A warning of what the image lacks, if it lacks anything.
    ///
    /// # Errors
    /// `Shortfall` if the sync is to fail because of it.
    pub fn judge(self, synced: &Synced) -> Result<Option<String>> {
        let manifest = &synced.manifest;
        if self.is_compared
            && let Some(problems) = problems(synced.compared.as_ref())
        {
            return Err(shortfall(format!(
                "image {}/{} is complete, but the comparison after the sync failed: {problems}. Stop whatever writes to the \
                 disks and sync again: what differs or is damaged is then read from the disks and stored anew",
                manifest.job, manifest.sequence
            )));
        }
        match below(self.class, manifest) {
            Some(text) if self.is_required => Err(shortfall(text)),
            text => Ok(text),
        }
    }
}

fn shortfall(text: String) -> Error {
    Error::new(ErrorKind::Shortfall, text)
}

/// Says that an image is below the class that was wanted, and why; `None` if it is not.
fn below(wanted: LeastConsistency, manifest: &Manifest) -> Option<String> {
    let least = match wanted {
        LeastConsistency::Any => Consistency::Fuzzy,
        LeastConsistency::Crash => Consistency::Crash,
        LeastConsistency::Filesystem => Consistency::Filesystem,
    };
    let class = manifest.consistency;
    (class < least).then(|| {
        format!(
            "image {}/{} is complete, but its consistency class is {class}, and at least {least} is wanted: {}",
            manifest.job, manifest.sequence, manifest.consistency_reason
        )
    })
}

/// What is not the same, or was not compared; `None` if all was and is.
fn problems(compared: Option<&Compared>) -> Option<String> {
    match compared {
        Some(compared) if compared.is_equal => None,
        Some(compared) => Some(compared.problems.join("; ")),
        None => Some("smcd ended before it was over".to_owned()),
    }
}
