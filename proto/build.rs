//! Compiles the .proto files with protox, so that no protoc needs to be installed.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=nestd");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(
        ["governor", "inference", "models", "sessions", "status"]
            .map(|name| format!("nestd/v1/{name}.proto")),
    )?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(out.join("nestd.v1.binpb"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
