//! The words of the format: sizes, digests, pointers, nodes, layers and manifests, as docs/format.md gives them.

pub(crate) mod clusters;
pub(crate) mod codec;
pub(crate) mod digest;
pub(crate) mod geometry;
pub(crate) mod id;
pub(crate) mod instant;
pub(crate) mod int;
pub(crate) mod layer;
pub(crate) mod manifest;
pub(crate) mod name;
pub(crate) mod node;
pub(crate) mod owner;
pub(crate) mod pointer;
pub(crate) mod sealed;
