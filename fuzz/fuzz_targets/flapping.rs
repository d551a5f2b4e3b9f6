#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| roomcast_fuzz::flapping::run(input));
