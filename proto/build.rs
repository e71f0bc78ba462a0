//! Generates the messages of `edge.proto`: parsed by protox, so that no machine needs protoc.
//!
//! Maps become `BTreeMap`s: `no_std` has no other, and their order makes a catalogue's bytes, hence its hash, the same
//! each time.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=edge.proto");
    let descriptors = protox::compile(["edge.proto"], ["."])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
