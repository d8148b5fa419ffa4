//! An image as a guest in QEMU: what starts it, the machine, its console, and what is waited for.

pub mod firmware;
pub mod machine;
pub mod probe;
pub mod terminal;
pub mod watch;
