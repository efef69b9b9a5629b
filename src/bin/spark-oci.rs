//! `spark-oci`: the OCI runtime command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sparks::oci::main()
}
