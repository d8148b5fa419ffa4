//! The image that must not go while a newer one is damaged: the newest from which everything can still be restored.

use crate::error::{ErrorKind, Result};
use crate::format::name::ImageId;
use crate::parallel;
use crate::store::Store;

/// An image to keep, and the newer one because of which it is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// The newest image below the damaged one that is known to be good; if none is, that is not known to be damaged.
    pub image: ImageId,
    /// The newest image that is damaged, or of which that cannot be ruled out: its manifest or what its verifications
    /// came to cannot be read. While it is there, it is known why the other one must stay.
    pub damaged: ImageId,
}

/// What is known of an image without reading its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It was verified whole, and nothing was found later.
    Good,
    /// It is damaged, or that cannot be ruled out: its manifest or what its verifications came to cannot be read.
    Damaged,
    /// It was not verified whole, and no damage is known.
    Nothing,
}

impl Store {
    /// Which image of a chain must stay, because a newer one is damaged and none that is newer than that is known to
    /// be good; nothing where there is no such image. `of` is any image of the chain.
    ///
    /// # Errors
    /// When the chain cannot be listed.
    pub fn fallback(&self, of: &ImageId) -> Result<Option<Fallback>> {
        let mut damaged = None;
        let mut fallback = None;
        for (image, known) in self.known_of_all(of.chain())? {
            match (known, &damaged) {
                (Known::Good, None) => return Ok(None),
                (Known::Good, Some(_)) => {
                    fallback = Some(image);
                    break;
                }
                (Known::Damaged, None) => damaged = Some(image),
                (Known::Nothing, Some(_)) if fallback.is_none() => fallback = Some(image),
                _ => {}
            }
        }
        Ok(damaged
            .zip(fallback)
            .map(|(damaged, image)| Fallback { image, damaged }))
    }

    /// What is known of the images of a chain, the newest first; of that one alone if it is good.
    fn known_of_all(&self, chain: &str) -> Result<Vec<(ImageId, Known)>> {
        let mut sequences = self.sequences(chain)?;
        let known = |&sequence: &u64| {
            let image = self.image_id(chain, sequence);
            self.known_of(&image).map(|known| (image, known))
        };
        let newest = sequences.pop().as_ref().and_then(known);
        if matches!(newest, Some((_, Known::Good))) {
            return Ok(newest.into_iter().collect());
        }
        sequences.reverse();
        // Where there are very many, reading their manifests takes the time of a deletion.
        let earlier = parallel::map(&sequences, known);
        Ok(newest.into_iter().chain(earlier.into_iter().flatten()).collect())
    }

    /// What is known of an image without reading its content; `None` for one that was deleted since it was listed.
    pub fn known_of(&self, image: &ImageId) -> Option<Known> {
        let verdict = self
            .manifest(image)
            .and_then(|manifest| self.verdict(image, &manifest));
        Some(match verdict {
            Ok(Some(verdict)) if verdict.is_good() => Known::Good,
            Ok(Some(verdict)) if verdict.damage.is_some() => Known::Damaged,
            Ok(_) => Known::Nothing,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(_) => Known::Damaged,
        })
    }
}
