//! An NBD server for anything that can be read at an offset.
//!
//! [`Server`] speaks the NBD protocol (fixed newstyle, structured replies, meta contexts) on Unix
//! and TCP sockets and serves whatever implements [`Catalog`] and [`Export`]. It knows nothing of
//! images. `docs/nbd.md` lists every MUST of the protocol with the place and the test that keep it.

mod buffer;
mod catalog;
mod channel;
mod client;
mod connection;
mod context;
mod driver;
mod error;
mod execute;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[path = "../fuzz/oracle/mod.rs"]
pub mod fuzzing;
mod handshake;
mod input;
mod limits;
mod link;
mod listen;
mod options;
mod overlay;
mod pool;
mod proto;
mod readahead;
mod reply;
mod server;
mod shared;
mod tls;
mod transmission;

pub use catalog::{Access, Catalog, ExportInfo};
pub use client::Client;
pub use error::{ErrorKind, ServeError};
pub use export::{Export, ExportError, Extent, FailureKind, HOLE, Ready, ZERO, Zeroing};
pub use limits::Limits;
pub use overlay::{Overlay, Space};
pub use server::{Server, ShutdownHandle};
pub use tls::Tls;
