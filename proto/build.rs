//! Compiles the contracts without protoc, and keeps the descriptor set for
//! gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = [
    "externalscaler.proto",
    "weir/v1/job.proto",
    "weir/v1/job_service.proto",
    "weir/v1/search.proto",
    "weir/v1/source.proto",
    "weir/v1/status.proto",
    "weir/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("weir.v1.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    // By its name a message finds its descriptor.
    config.enable_type_names();
    tonic_prost_build::configure()
        // What a message would take is known before it is taken in.
        .codec_path("crate::codec::BoundedCodec")
        // Vectors stay slices of the message they came in.
        .bytes(".weir.v1.EmbeddedChunk.vector")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
