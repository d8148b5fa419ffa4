#![no_main]

use std::sync::Once;

/// What Rust's own `main` does: to write to a client that is gone is an error and no signal.
fn ignore_sigpipe() {
    static ONCE: Once = Once::new();
    // SAFETY: SIG_IGN is a valid disposition, and runs no code of ours.
    ONCE.call_once(|| unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    });
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ignore_sigpipe();
    nbd::fuzzing::server(data);
});
