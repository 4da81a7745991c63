#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nestd::fuzzing::sensors(bytes));
