//! `tributary_tests::fuzz::envelope` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tributary_tests::fuzz::envelope(bytes));
