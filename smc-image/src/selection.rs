//! Which images of a store a command means.

use imagefmt::{ErrorKind, ImageId, ImageRef, JobImages, Store, check_name};
use std::str::FromStr;

/// One image, or all images of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selected {
    /// All images of a job.
    Job(String),
    /// One image, with all its disks.
    Image(ImageRef),
}

impl FromStr for Selected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('/') {
            check_name("job", text).map_err(|error| error.to_string())?;
            return Ok(Self::Job(text.to_owned()));
        }
        let image: ImageRef = text.parse().map_err(|error: imagefmt::Error| error.to_string())?;
        match &image.disk {
            None => Ok(Self::Image(image)),
            Some(disk) => Err(format!("images are taken whole: leave :{disk} out")),
        }
    }
}

/// The images that were selected, each once, by chain and number; all of the store where nothing was.
pub fn images(store: &Store, selected: &[Selected]) -> imagefmt::Result<Vec<ImageId>> {
    let mut images = Vec::new();
    for selected in selected {
        match selected {
            Selected::Job(job) => images.extend(store.job(job)?.ids()),
            Selected::Image(image) => images.push(store.resolve(image)?),
        }
    }
    if selected.is_empty() {
        images.extend(store.jobs()?.values().flat_map(JobImages::ids));
    }
    images.sort();
    images.dedup();
    Ok(images)
}

/// What could be opened, or why not; `None` for an image that was deleted since it was listed.
pub fn unless_deleted<T>(opened: imagefmt::Result<T>) -> Option<imagefmt::Result<T>> {
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened),
    }
}
