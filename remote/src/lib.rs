//! Targets: machines that take images over the network (docs/targets.md), as the source of the images sees them.
//!
//! - [`Invitation`] and [`enrol`] make this machine known to a target; [`TargetFiles`] is what is kept of that.
//! - [`begin`] begins an image there, which a sync then writes as it writes one into a store of this machine.
//! - [`pull`] reads what a target has of a source, for another machine.
//! - [`tls`], [`stream`] and the messages of [`http`] are what the target's program shares with it.

mod checked;
mod error;
mod files;
pub mod http;
mod image;
mod invitation;
mod link;
mod meter;
pub mod pull;
mod rate;
mod speed;
mod stall;
pub mod stream;
pub mod tls;
mod tree;

pub use checked::{BYTES_MAX, DISKS_MAX};
pub use error::{Error, ErrorKind, Result};
pub use files::{Credentials, DIRECTORY, Remembered, TargetFiles, TargetRecord};
pub use http::{RENEW_BEFORE, Status, discard, enrol, images, newest, renew, renew_if_old, status};
pub use image::{PushNote, PushRequest, RemoteImage, begin};
pub use invitation::{Invitation, check_address};
pub use link::{Link, LinkOptions, LinkWait, Traffic};
pub use meter::Meter;
pub use rate::{Rate, SendLimit};
pub use speed::{Speed, measure_speed};
