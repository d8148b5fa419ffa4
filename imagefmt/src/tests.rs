//! Tests of the whole format: against a naive model, against damage, and against docs/format.md.

#![allow(
    clippy::cast_possible_truncation,
    reason = "what a test makes is small, and it runs on 64 bits"
)]

mod chain;
mod changed;
mod damage;
mod deleting;
mod directory;
mod document;
mod fixture;
mod flips;
mod fuzz;
mod hostile;
mod hostile_list;
mod long;
mod misuse;
mod model;
mod notes;
mod openers;
mod openers_files;
mod openers_zstd;
mod reading;
mod sim;
mod support;
mod sweep;
mod verifying;
