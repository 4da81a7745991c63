#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nestd_client::fuzzing::client_grpc(bytes));
