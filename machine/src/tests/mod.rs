//! Machines that are trees of files: what is told of each.

mod fake;
mod hostile;
mod initramfs;
mod inventory;
mod layout;
mod lines;
mod ready;
