//! Alone in its process, because it watches the process's panics: whatever a client does, none of the server's own
//! code panics, not even where a panic would be caught.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "test disks are small")]

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::raw::{OPT_EXPORT_NAME, OPT_LIST, Raw, option_bytes};
use common::{MemoryDisk, Running};

static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_client_that_is_sent_away_without_a_word_is_no_fault_of_the_server() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(panic);
    }));
    let server = Running::of(MemoryDisk::mixed());
    let sent_away = |bytes: &[u8]| {
        let mut raw = Raw::connect(&server.socket());
        raw.take(18);
        // The server may have closed before the last byte.
        let _ = raw.0.write_all(bytes);
        assert!(raw.rest().is_empty());
    };
    sent_away(&[0xff; 4]);
    sent_away(&[&[0, 0, 0, 3][..], &[0; 16]].concat());
    sent_away(&[&[0, 0, 0, 3][..], &option_bytes(OPT_EXPORT_NAME, b"unknown")].concat());
    sent_away(&[&[0, 0, 0, 0][..], &option_bytes(OPT_LIST, &[])].concat());
    drop(server);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}
