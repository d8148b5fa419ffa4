//! Pins: who wants an image kept. A pinned image is in use, and an image in use is never deleted.

use crate::error::{Error, ErrorKind, Result, Within};
use crate::format::id::Uuid;
use crate::format::sealed;
use crate::storage::LockMode;
use crate::storage::paths::{images_dir, manifest_path, pins_path, reclaim_lock_path};
use crate::store::Store;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One reason to keep an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What it is known by, among the image's pins.
    pub name: String,
    /// When it was set.
    pub since: Timestamp,
}

/// The pins of one image as stored beside its manifest.
#[derive(Debug, Serialize, Deserialize)]
struct PinsRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    image: Uuid,
    pins: Vec<Pin>,
}

/// The name of a pin where nobody gives one.
pub const PIN_NAME: &str = "pinned";

impl Store {
    /// The pins of an image; none for an image that does not exist.
    pub fn pins(&self, chain: &str, sequence: u64) -> Result<Vec<Pin>> {
        let path = pins_path(chain, sequence);
        match sealed::read::<PinsRecord>(&**self.storage(), &path) {
            Ok(record) => Ok(record.pins),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.within(format!("pins of image {chain}/{sequence}"))),
        }
    }

    /// Keeps an image from being deleted until the pin is taken away. A pin of the same name stays as it is.
    pub fn pin(&self, chain: &str, sequence: u64, name: &str) -> Result<()> {
        crate::format::name::check_name("pin", name)?;
        let _reclaim = self.storage().lock_waiting(&reclaim_lock_path(chain))?;
        let _image = self
            .storage()
            .lock(&manifest_path(chain, sequence), LockMode::Shared)?;
        let mut pins = self.pins(chain, sequence)?;
        if pins.iter().any(|pin| pin.name == name) {
            return Ok(());
        }
        pins.push(Pin {
            name: name.to_owned(),
            since: Timestamp::now(),
        });
        self.write_pins(chain, sequence, pins)
    }

    /// Takes a pin away, or all of them where none is named, and says how many that were.
    ///
    /// Pins that cannot be read any more are taken away as well when all are meant.
    pub fn unpin(&self, chain: &str, sequence: u64, name: Option<&str>) -> Result<usize> {
        let _reclaim = self.storage().lock_waiting(&reclaim_lock_path(chain))?;
        let pins = match (self.pins(chain, sequence), name) {
            (Err(error), None) if error.kind() == ErrorKind::Damaged => {
                return self.remove_pins(chain, sequence).map(|()| 1);
            }
            (pins, _) => pins?,
        };
        let (gone, left): (Vec<Pin>, Vec<Pin>) = pins
            .into_iter()
            .partition(|pin| name.is_none_or(|name| pin.name == name));
        match (gone.len(), left.is_empty(), name) {
            (0, _, Some(name)) => {
                let what = format!("image {chain}/{sequence} has no pin {name}");
                return Err(Error::new(ErrorKind::NotFound, what));
            }
            (0, _, None) => {}
            (_, true, _) => self.remove_pins(chain, sequence)?,
            (_, false, _) => self.write_pins(chain, sequence, left)?,
        }
        Ok(gone.len())
    }

    fn write_pins(&self, chain: &str, sequence: u64, pins: Vec<Pin>) -> Result<()> {
        let record = PinsRecord {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            image: self.manifest(chain, sequence)?.id,
            pins,
        };
        let path = pins_path(chain, sequence);
        sealed::replace(&**self.storage(), &images_dir(chain), &path, &record)
            .within(|| format!("pins of image {chain}/{sequence}"))
    }

    fn remove_pins(&self, chain: &str, sequence: u64) -> Result<()> {
        self.storage().remove(&pins_path(chain, sequence))?;
        self.storage().sync_dir(&images_dir(chain))
    }

    /// Refuses if an image is pinned, or if that cannot be known.
    pub(crate) fn check_unpinned(&self, chain: &str, sequence: u64) -> Result<()> {
        let names: Vec<String> = self
            .pins(chain, sequence)?
            .into_iter()
            .map(|pin| pin.name)
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let what = format!(
            "image {chain}/{sequence} is pinned ({}): unpin it first",
            names.join(", ")
        );
        Err(Error::new(ErrorKind::InUse, what))
    }
}
