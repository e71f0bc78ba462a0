//! `tributary_tests::fuzz::ack` under a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tributary_tests::fuzz::ack(bytes));
