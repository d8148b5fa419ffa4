//! What a server offers: the catalog, which a user of this crate implements.

use std::sync::Arc;

use crate::{Client, Export, ServeError};

/// What a server offers. All methods may block: they are called on a pool of threads made for
/// that, never on a thread that drives connections.
///
/// An export's name is at most 4096 bytes of UTF-8 without NUL; a name from the wire has been
/// checked for that before it gets here, and a listed one that breaks it is left out.
pub trait Catalog: Send + Sync + 'static {
    /// Every export that clients may see. Cheap: opens nothing.
    fn list(&self) -> Result<Vec<ExportInfo>, ServeError>;

    /// Describes one export without opening it: for INFO and before GO. `""` is the default
    /// export. An unknown name is an error of kind [`NotFound`](crate::ErrorKind::NotFound).
    fn info(&self, name: &str, client: &Client) -> Result<ExportInfo, ServeError>;

    /// The meta contexts of an export beside `base:allocation`, as `namespace:leaf`, which its
    /// [`Export::status`] answers. Cheap: opens nothing.
    fn contexts(&self, name: &str, client: &Client) -> Result<Vec<String>, ServeError> {
        let _ = (name, client);
        Ok(Vec::new())
    }

    /// Opens one export. Called only at GO and EXPORT_NAME, once for each connection; the export
    /// is dropped when the connection ends. Where an export [may be used over several
    /// connections](Access), all connections of a client get the same one, by whatever name.
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn Export>, ServeError>;
}

/// What clients learn about an export before they open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name, which may differ from the one asked for (the default export's does).
    pub name: String,
    /// A text for people.
    pub description: Option<String>,
    /// Size in bytes, at most 2^63 - 1.
    pub size_bytes: u64,
    /// The block size at which reads are cheapest; rounded to a power of two of at least 512.
    pub preferred_block_bytes: u32,
    /// What clients may do to it.
    pub access: Access,
}

/// What clients may do to an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read; writing commands are refused before they reach the export.
    ReadOnly,
    /// Read, write, zero and trim.
    Writable {
        /// Several connections see one another's writes as soon as these were replied to, and a
        /// flush on one covers the writes of all (the protocol's CAN_MULTI_CONN). What is read
        /// only can always be read over several.
        shared: bool,
    },
}
