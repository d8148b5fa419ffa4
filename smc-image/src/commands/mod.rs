//! One module per command: its arguments, and what it does.

pub mod boot;
pub mod cp;
pub mod diff;
pub mod digest;
pub mod export;
pub mod gc;
pub mod info;
pub mod inspect;
pub mod ls;
pub mod ls_files;
pub mod map;
pub mod mount;
pub mod pin;
pub mod pull;
pub mod restore;
pub mod rm;
pub mod serve;
pub mod tls_init;
pub mod umount;
pub mod verdict;
pub mod verify;
