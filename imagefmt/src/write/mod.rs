//! Writing an image: clusters in ascending order, nodes above them, layers, and the manifest at the end.

pub(crate) mod base;
pub(crate) mod builder;
pub(crate) mod checkpoint;
pub(crate) mod disk;
pub(crate) mod draft;
pub(crate) mod encoder;
pub(crate) mod known;
pub(crate) mod new_layers;
pub(crate) mod sync;
pub(crate) mod target;
