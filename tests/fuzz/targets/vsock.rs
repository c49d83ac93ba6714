//! Anything in the memory that a guest shares with its vsock device.
#![no_main]

libfuzzer_sys::fuzz_target!(|said: &[u8]| vmm::fuzzing::vsock(said));
