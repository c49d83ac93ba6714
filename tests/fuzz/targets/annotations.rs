//! Any annotations of a sandbox, all of them allowed by name.
#![no_main]

libfuzzer_sys::fuzz_target!(|asked: &str| configuration::fuzzing::annotations(asked));
