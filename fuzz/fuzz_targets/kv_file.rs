#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nestd_elastic::fuzzing::kv_file(bytes));
