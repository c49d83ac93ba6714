//! Anything on QEMU's monitor.
#![no_main]

libfuzzer_sys::fuzz_target!(|said: &[u8]| vmm::fuzzing::qmp(said));
