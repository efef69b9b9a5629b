//! `containerd-shim-spark-v1`: containerd's runtime v2 shim.
//!
//! As `containerd-shim-spark-v1 oci …` it is `spark-oci`, which the shim runs for each operation: containerd has to find
//! one file only, and the two cannot be of different versions.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(word) if word == "oci" => sparks::oci::main_of(std::env::args_os().skip(1)),
        _ => sparks::shim::main(),
    }
}
