//! Reading images: every node and cluster is checked before anything in it is believed.

pub(crate) mod bytes;
pub(crate) mod cache;
pub(crate) mod diff;
pub(crate) mod image;
pub(crate) mod tree;
