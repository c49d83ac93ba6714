//! Turns the `.proto` files into message types and asynchronous ttrpc services.

use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    let protos =
        ["agent", "csi", "empty", "health", "oci", "types"].map(|name| format!("proto/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?).join("wire");
    fs::create_dir_all(&out)?;
    Codegen::new()
        .out_dir(&out)
        .inputs(&protos)
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true).generate_accessors(false))
        .run()?;
    // The generator's mod.rs names the message modules only.
    let mut modules = fs::OpenOptions::new().append(true).open(out.join("mod.rs"))?;
    modules.write_all(b"pub mod agent_ttrpc;\npub mod health_ttrpc;\n")
}
