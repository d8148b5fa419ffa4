//! Freeing what no image needs any more: deleting images, repairing what a crash left, mark and sweep.

pub(crate) mod delete;
pub(crate) mod gc;
pub(crate) mod recover;
pub(crate) mod roots;
pub(crate) mod walk;
