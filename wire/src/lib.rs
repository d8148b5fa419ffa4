//! The protocol `smc-push/1`, by which a source sends the clusters of its syncs to a target (docs/wire.md is normative).
//!
//! This crate knows bytes and order, and does no I/O: it knows neither disks nor stores. Digests, codecs and stored pieces are opaque to
//! it, and so are the records of images, which travel as JSON.
//!
//! - [`frame`] cuts a stream of bytes into frames; [`Message`] is what one says.
//! - [`Window`] is the source's side of the order: it numbers what is sent, holds it until the target has it, and sends it
//!   again when a connection is lost.
//! - [`Order`] is the target's side: whatever connection a numbered message comes by, and however often, it is handed over once
//!   and in order.
//! - [`digests`] are those of what the target has, on their way to the source.

pub mod digests;
mod error;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[path = "../fuzz/oracle/mod.rs"]
pub mod fuzzing;
mod hexed;
pub mod message;
mod order;
mod put;
mod window;

pub use error::{Error, ErrorKind, Result};
pub use frame::{Frame, Frames};
pub use hexed::{Id128, Root};
pub use message::Message;
pub use order::{Order, Taken};
pub use put::{Piece, Put, PutBuilder};
pub use window::{Sent, Window};

/// The name that both sides give in `Upgrade:`.
pub const PROTOCOL: &str = "smc-push/1";

/// The version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;

/// Data connections of a session, beside its control connection.
pub const LANES_MAX: u32 = 8;

/// Bytes that a target lets a source send before it has taken them, unless it says otherwise.
pub const CREDIT_BYTES: u64 = 32 << 20;

/// The most credit that a source makes use of: what it holds in memory to send again.
pub const CREDIT_MAX_BYTES: u64 = 64 << 20;
