#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imagefmt::fuzzing::node(data));
