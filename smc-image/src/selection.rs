//! Which images of a store a command means.

use imagefmt::{ErrorKind, ImageRef, Store, check_name};
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

/// An image's place in the store: its chain and its number.
pub type Place = (String, u64);

/// The places of what was selected, each once, ascending; of all images where nothing was.
pub fn places(store: &Store, selected: &[Selected]) -> imagefmt::Result<Vec<Place>> {
    let mut places = Vec::new();
    for selected in selected {
        match selected {
            Selected::Job(job) => {
                let images = store.job(job)?;
                places.extend(
                    images
                        .sequences
                        .into_iter()
                        .map(|sequence| (images.chain.clone(), sequence)),
                );
            }
            Selected::Image(image) => places.push(store.resolve(image)?),
        }
    }
    if selected.is_empty() {
        for chain in store.chains()? {
            places.extend(of_chain(store, &chain)?);
        }
    }
    places.sort();
    places.dedup();
    Ok(places)
}

fn of_chain(store: &Store, chain: &str) -> imagefmt::Result<Vec<Place>> {
    Ok(store
        .sequences(chain)?
        .into_iter()
        .map(|sequence| (chain.to_owned(), sequence))
        .collect())
}

/// What could be opened, or why not; `None` for an image that was deleted since it was listed.
pub fn unless_deleted<T>(opened: imagefmt::Result<T>) -> Option<imagefmt::Result<T>> {
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened),
    }
}
