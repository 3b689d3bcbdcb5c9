//! What clients send: decoded from bytes, by the first of them, or from JSON,
//! and checked at the door.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| weir_coordinator::fuzzing::request(input));
