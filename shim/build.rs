//! Turns `proto/pod.proto` into message types.

use std::{env, fs, io, path::PathBuf};

use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?).join("wire");
    fs::create_dir_all(&out)?;
    Codegen::new()
        .out_dir(&out)
        .input("proto/pod.proto")
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true).generate_accessors(false))
        .run()
}
