//! What a worker sends on a stream: decoded, and checked at the door.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weir_coordinator::fuzzing::stream_message(bytes));
