//! Messages as the code generator writes them, of `proto/pod.proto`.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]

include!(concat!(env!("OUT_DIR"), "/wire/mod.rs"));
