//! A simulated disk under a store: it keeps what is durable and what is on its way for every file and
//! directory, cuts the power at any operation, and lets any operation fail.

mod alone;
mod crash;
mod disk;
mod fs;
mod media;
mod random;
mod tests;

pub(super) use alone::Alone;
pub(super) use crash::{Outcome, corners, random};
pub(super) use disk::{Failure, Fault, Kind, Lies, Op, SimDisk, Snapshot};
pub(super) use media::{FsModel, Media};
pub(super) use random::Random;
