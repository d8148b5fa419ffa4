//! Pins: who wants an image kept. A pinned image is in use, and an image in use is never deleted.

use crate::error::{Error, ErrorKind, Result};
use crate::format::id::Uuid;
use crate::format::name::{ImageId, check_name};
use crate::format::sealed;
use crate::storage::paths::{images_dir, pins_path};
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
pub(crate) struct PinsRecord {
    format: u32,
    #[serde(default, deserialize_with = "sealed::words")]
    incompatible: Vec<String>,
    #[serde(default, deserialize_with = "sealed::words")]
    compatible: Vec<String>,
    /// Id of the image.
    pub image: Uuid,
    pins: Vec<Pin>,
}

sealed::sealed_record!(PinsRecord);

impl Pin {
    /// The name of a pin where nobody gives one.
    pub const DEFAULT_NAME: &str = "pinned";
}

impl Store {
    /// The pins of an image; none for an image that does not exist.
    ///
    /// # Errors
    /// `Damaged` where its pins cannot be read any more.
    pub fn pins(&self, image: &ImageId) -> Result<Vec<Pin>> {
        let path = pins_path(image.chain(), image.sequence());
        let read = sealed::read_if_there::<PinsRecord>(&**self.storage(), &path);
        let record = read.map_err(|error| error.of_image("pins of image", image))?;
        Ok(record.map_or_else(Vec::new, |record| record.pins))
    }

    /// Keeps an image from being deleted until the pin is taken away. A pin of the same name stays as it is.
    ///
    /// # Errors
    /// `NotFound` when there is no such image, `Invalid` for a name that does not fit.
    pub fn pin(&self, image: &ImageId, name: &str) -> Result<()> {
        check_name("pin", name)?;
        let _reclaim = self.lock_reclaim(image.chain())?;
        self.check_writable(image.chain())?;
        let _image = self.hold(image)?;
        let mut pins = self.pins(image)?;
        if pins.iter().any(|pin| pin.name == name) {
            return Ok(());
        }
        pins.push(Pin {
            name: name.to_owned(),
            since: Timestamp::now(),
        });
        self.write_pins(image, pins)
    }

    /// Takes a pin away, or all of them where none is named, and says how many that were.
    ///
    /// Pins that cannot be read any more are taken away as well when all are meant.
    ///
    /// # Errors
    /// `NotFound` where the image has no pin of this name, `Damaged` where one is named and they cannot be read.
    pub fn unpin(&self, image: &ImageId, name: Option<&str>) -> Result<usize> {
        let _reclaim = self.lock_reclaim(image.chain())?;
        self.check_writable(image.chain())?;
        let pins = match (self.pins(image), name) {
            (Err(error), None) if error.kind() == ErrorKind::Damaged => {
                return self.remove_pins(image).map(|()| 1);
            }
            (pins, _) => pins?,
        };
        let (gone, left): (Vec<Pin>, Vec<Pin>) = pins
            .into_iter()
            .partition(|pin| name.is_none_or(|name| pin.name == name));
        match (gone.len(), left.is_empty(), name) {
            (0, _, Some(name)) => {
                let what = format!("has no pin {name}");
                return Err(Error::refused(ErrorKind::NotFound, image, &what));
            }
            (0, _, None) => {}
            (_, true, _) => self.remove_pins(image)?,
            (_, false, _) => self.write_pins(image, left)?,
        }
        Ok(gone.len())
    }

    fn write_pins(&self, image: &ImageId, pins: Vec<Pin>) -> Result<()> {
        let record = PinsRecord {
            format: 1,
            incompatible: Vec::new(),
            compatible: Vec::new(),
            image: self.manifest(image)?.id,
            pins,
        };
        let path = pins_path(image.chain(), image.sequence());
        sealed::replace(&**self.storage(), &images_dir(image.chain()), &path, &record)
            .map_err(|error| error.of_image("pins of image", image))
    }

    fn remove_pins(&self, image: &ImageId) -> Result<()> {
        self.storage()
            .remove(&pins_path(image.chain(), image.sequence()))?;
        self.storage().sync_dir(&images_dir(image.chain()))
    }

    /// Refuses if an image is pinned, or if that cannot be known.
    pub(crate) fn check_unpinned(&self, image: &ImageId) -> Result<()> {
        let pins = self.pins(image)?;
        let names: Vec<&str> = pins.iter().map(|pin| pin.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let what = format!("is pinned ({}): unpin it first", names.join(", "));
        Err(Error::refused(ErrorKind::InUse, image, &what))
    }
}
