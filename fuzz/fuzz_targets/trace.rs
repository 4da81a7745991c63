#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(points) = nestd_policy::trace::read(bytes) {
        let _ = points.take_while(Result::is_ok).count();
    }
});
