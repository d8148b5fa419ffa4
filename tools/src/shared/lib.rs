//! What `smc-image` and `smcctl` have in common: how they print, how they end, and the pages made from their command
//! lines.

pub mod exit;
pub mod interrupt;
pub mod output;
pub mod pages;
pub mod paint;
