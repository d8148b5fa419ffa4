//! What the programs of smc (`smcd`, `smcctl`, `smc-image`) have in common: how they read and write sizes and times, how
//! they print, how they end, and the pages made from their command lines. It knows nothing of images or jobs.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written"
)]

pub mod ask;
pub mod disk;
pub mod exit;
pub mod findings;
pub mod interrupt;
pub mod output;
pub mod pages;
pub mod paint;
pub mod progress;
pub mod table;
pub mod targets;
pub mod text;
pub mod units;
