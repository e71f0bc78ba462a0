//! `tributary_tests::fuzz::catalogue` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tributary_tests::fuzz::catalogue(bytes));
