//! `tributary_tests::fuzz::message` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tributary_tests::fuzz::message(bytes));
