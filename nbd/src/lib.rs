//! An NBD server for anything that can be read at an offset.
//!
//! [`Server`] speaks the NBD protocol (fixed newstyle, structured replies, meta contexts) on Unix
//! and TCP sockets and serves whatever implements [`Catalog`] and [`Export`]. It knows nothing of
//! images. `docs/nbd.md` lists every MUST of the protocol with the place and the test that keep it.

mod catalog;
mod connection;
mod error;
mod execute;
mod handshake;
mod limits;
mod listen;
mod options;
mod pool;
mod proto;
mod reply;
mod server;
mod transmission;
mod uring;

pub use catalog::{Catalog, Export, ExportInfo, Extent, ExtentKind, ReadError};
pub use error::{ErrorKind, ServeError};
pub use limits::Limits;
pub use server::{Server, ShutdownHandle};
