//! A meta context (`base:allocation` and those of the catalog) of a connection.

/// A meta context as a client selected it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) id: u32,
    pub(crate) name: String,
}
