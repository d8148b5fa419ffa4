//! NBD clients of other projects read and write through `smc-image serve`: a store with real images, the program as users run it.
//!
//! Each command is printed with its exit code; `cargo test -p smc-tests --test nbd_clients -- --nocapture` shows them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dissector;
mod guest;
mod newer;
mod overlays;
mod readers;
mod run;
mod served;
mod transports;
