//! `tributary_tests::fuzz::record` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tributary_tests::fuzz::record(bytes));
