#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| spanledger_fuzz::journal::run(data));
