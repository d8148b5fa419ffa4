//! Tests of the whole format: against a naive model, against damage, and against docs/format.md.

#![allow(
    clippy::cast_possible_truncation,
    reason = "what a test makes is small, and it runs on 64 bits"
)]

mod bad_sectors;
mod chain;
mod changed;
pub(crate) mod counting;
mod damage;
mod deleting;
mod directory;
mod document;
mod fixture;
mod flips;
mod fuzz;
mod hostile;
mod hostile_list;
mod hostile_open;
mod hostile_open_files;
mod hostile_open_zstd;
mod inspecting;
mod long;
mod misuse;
mod model;
mod notes;
mod owners;
mod passes;
mod reading;
mod repair;
mod sim;
mod support;
mod sweep;
mod tracked;
mod unread;
mod verifying;
