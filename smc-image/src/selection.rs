//! Which images of a store a command means.

use imagefmt::{Error, ErrorKind, ImageId, ImageRef, JobImages, Store, check_name};
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

/// What was selected of a store.
#[derive(Debug, Default)]
pub struct Selection {
    /// The images, each once, by chain and number.
    pub images: Vec<ImageId>,
    /// The jobs that were selected as a whole.
    pub jobs: Vec<JobImages>,
    /// Why some of the store is left out that cannot be listed.
    pub unread: Vec<Error>,
}

/// Finds what was selected; all of the store where nothing was.
///
/// # Errors
/// When a job or image that was named does not exist, or cannot be looked for; when the store cannot be listed.
pub fn find(store: &Store, selected: &[Selected]) -> imagefmt::Result<Selection> {
    let mut found = Selection::default();
    for selected in selected {
        match selected {
            Selected::Job(job) => found.jobs.push(store.job(job)?),
            Selected::Image(image) => found.images.push(store.resolve(image)?),
        }
    }
    if selected.is_empty() {
        let (jobs, unread) = store.readable_jobs()?;
        found.jobs = jobs.into_values().collect();
        found.unread = unread;
    }
    let of_jobs = found.jobs.iter().flat_map(JobImages::ids);
    found.images.extend(of_jobs);
    found.images.sort();
    found.images.dedup();
    Ok(found)
}

/// What could be opened, or why not; `None` for an image that was deleted since it was listed.
pub fn unless_deleted<T>(opened: imagefmt::Result<T>) -> Option<imagefmt::Result<T>> {
    match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened),
    }
}
