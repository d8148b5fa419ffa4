//! The images that were proven: retention keeps the newest of each kind.

use crate::error::{ErrorKind, Result};
use crate::format::name::ImageId;
use crate::store::Store;
use crate::verify::verdict::Verdict;

/// The newest images of a chain of which something was proven.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proven {
    /// The newest image of which everything was read and is good.
    pub verified: Option<ImageId>,
    /// The newest image that booted, and is not known to be damaged.
    pub booted: Option<ImageId>,
    /// The newest image for which everything could be read from the disks.
    pub whole: Option<ImageId>,
}

impl Store {
    /// The newest images of a chain that are known to be good, and to boot. `of` is any image of the chain. Of an
    /// image whose records cannot be read, nothing is known.
    ///
    /// # Errors
    /// When the chain cannot be listed.
    pub fn proven(&self, of: &ImageId) -> Result<Proven> {
        let mut proven = Proven::default();
        for sequence in self.sequences(of.chain())?.into_iter().rev() {
            let image = self.image_id(of.chain(), sequence);
            match self.proofs_of(&image) {
                Ok(proofs) => {
                    note(&mut proven.verified, proofs.is_good, &image);
                    note(&mut proven.booted, proofs.has_booted, &image);
                    note(&mut proven.whole, proofs.is_whole, &image);
                }
                Err(error) if !is_about_the_image(error.kind()) => return Err(error),
                Err(_) => {}
            }
            if [&proven.verified, &proven.booted, &proven.whole]
                .into_iter()
                .all(Option::is_some)
            {
                break;
            }
        }
        Ok(proven)
    }

    fn proofs_of(&self, image: &ImageId) -> Result<Proofs> {
        let manifest = self.manifest(image)?;
        let verdict = self.verdict(image, &manifest)?;
        let is_good = verdict.as_ref().is_some_and(Verdict::is_good);
        let is_damaged = verdict.is_some_and(|verdict| verdict.damage.is_some());
        let boot = self.boot_verdict(image, &manifest)?;
        Ok(Proofs {
            is_good,
            has_booted: !is_damaged && boot.is_some_and(|boot| boot.booted),
            is_whole: !is_damaged && manifest.unreadable_clusters() == 0,
        })
    }
}

/// What is proven of one image.
struct Proofs {
    is_good: bool,
    has_booted: bool,
    is_whole: bool,
}

fn note(newest: &mut Option<ImageId>, is_proven: bool, image: &ImageId) {
    if is_proven && newest.is_none() {
        *newest = Some(image.clone());
    }
}

/// Whether an error says something of one image and its records, and nothing of the store.
fn is_about_the_image(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::Unsupported
    )
}
