#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd::fuzzing::sequence(data));
